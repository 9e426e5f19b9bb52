"""Pings and their answers: what was said when, so that an answer can be understood.

Owns the numbers of pings and what each one said. Never decides whom to ping, nor what an answer
means for its sender. Invariant: at most 1,024 pings are remembered, and each is answered once, by
the member that it went to.
"""

from collections.abc import Callable
from typing import NamedTuple

from crdt.clock import Instant
from gossip.broadcast import Link, Links
from gossip.config import GossipConfig
from gossip.messages import Ack, Ping

_REMEMBERED = 1024


class Summary(NamedTuple):
    """What this node knows at one time."""

    fingerprint: bytes
    roster: bytes
    volatile: int
    generation: int  # of the store; never sent


class Sent(NamedTuple):
    """A ping that is under way."""

    target: bytes
    sent_s: float
    summary: Summary


class Pings:
    """Send pings, answer them, and take the answers."""

    def __init__(self, config: GossipConfig, links: Links, summary: Callable[[], Summary]) -> None:
        # four at least fit into a probe, however slow the last answer was
        self._longest_s = 0.2 * config.probe_interval_s
        self._retry_s = min(config.probe_retry_s, self._longest_s)
        self._links = links
        self._summary = summary
        self._number = 0
        self._sent: dict[int, Sent] = {}

    def send(self, link: Link, now: Instant) -> None:
        """Send a ping; every one has a number of its own, so that answers give exact times."""
        self._number += 1
        summary = self._summary()
        self._sent[self._number] = Sent(link.node_id, now.mono_s, summary)
        if len(self._sent) > _REMEMBERED:
            del self._sent[next(iter(self._sent))]
        ping = Ping(self._number, summary.fingerprint, summary.roster, summary.volatile)
        self._links.post(link, ping)

    def retry_s(self, link: Link | None, now: Instant) -> float:
        """Return how long an answer may take before it is asked for again."""
        bound_s = link.latency.bound_s(now.mono_s) if link is not None else None
        return min(self._longest_s, max(self._retry_s, bound_s or 0.0))

    def on_ping(self, link: Link, message: Ping, now: Instant) -> None:
        """Answer at once, leaving out what equals the ping's."""
        mine = self._summary()
        fingerprint = b"" if mine.fingerprint == message.fingerprint else mine.fingerprint
        roster = b"" if mine.roster == message.roster else mine.roster
        wall_s = max(0, now.wall_ms // 1000)
        self._links.post(link, Ack(message.number, fingerprint, roster, mine.volatile, wall_s))

    def on_ack(self, link: Link, message: Ack, now: Instant) -> tuple[Sent, Ack] | None:
        """Return the ping that this answers and the answer in full; None if it answers none."""
        sent = self._sent.get(message.number)
        if sent is None or sent.target != link.node_id:
            return None
        del self._sent[message.number]
        self._links.sample(link, now.mono_s - sent.sent_s, now)
        fingerprint = message.fingerprint or sent.summary.fingerprint
        roster = message.roster or sent.summary.roster
        return sent, Ack(message.number, fingerprint, roster, message.volatile, message.wall_s)
