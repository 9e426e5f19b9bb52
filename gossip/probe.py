"""Who is there: one probe per interval, round robin in shuffled order (SWIM, sections 3 and 4.3).

Owns the probe in progress and the probes done for others; never judges (suspicion does).
Invariant: every live member is probed once per round, whatever the chance.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from crdt.clock import Instant
from gossip.broadcast import Link, Links
from gossip.config import GossipConfig
from gossip.events import Address
from gossip.members import Member, Members
from gossip.messages import Ack, IndirectAck, Ping, PingRequest
from gossip.suspicion import Suspicion

_MAX_HEALTH = 7
_RELAY_LIMIT = 256
Summary = tuple[bytes, bytes, int]  # fingerprint, roster digest, volatile sequence


@dataclass(slots=True)
class _Probe:
    target: bytes
    number: int
    sent_s: float | None  # None: no link yet, a handshake is under way
    indirect_s: float
    end_s: float
    helpers: frozenset[bytes] = frozenset()
    answered: bool = False


class Probing:
    """Probe members in turn, and others' targets for them."""

    def __init__(
        self,
        config: GossipConfig,
        rng: random.Random,
        members: Members,
        links: Links,
        suspicion: Suspicion,
        summary: Callable[[], Summary],
        call: Callable[[Address, Instant], None],
    ) -> None:
        self._config = config
        self._rng = rng
        self._members = members
        self._links = links
        self._suspicion = suspicion
        self._summary = summary
        self._call = call  # starts a handshake with an address
        self._order: list[bytes] = []
        self._current: _Probe | None = None
        self._number = 0
        self._relays: dict[int, tuple[bytes, bytes, int]] = {}  # target, asker, asker's number
        self._health = 0
        self._heard = False
        self._lag_s = 0.0
        self._slowed = False

    def deadline(self) -> float:
        """Return when the probe in progress needs attention; inf while nobody is known."""
        if self._current is None:
            return -inf if self._members.live() else inf
        probe = self._current
        waiting = not probe.answered and probe.indirect_s < probe.end_s
        return probe.indirect_s if waiting else probe.end_s

    def tick(self, now: Instant) -> None:
        """Ask others about a silent target, judge an ended probe, begin the next."""
        probe = self._current
        if probe is not None and now.mono_s < probe.end_s:
            if not probe.answered and now.mono_s >= probe.indirect_s:
                probe.indirect_s = inf
                self._ask_others(probe, now)
            return
        if probe is not None:
            self._judge(probe, now)
        self._begin(now)

    def ping(self, link: Link) -> int:
        """Send a ping; return its number."""
        self._number += 1
        self._links.post(link, Ping(self._number, *self._summary()))
        return self._number

    def on_link(self, link: Link, now: Instant) -> None:
        """Go on with a probe that waited for a handshake."""
        probe = self._current
        if probe is not None and probe.target == link.node_id and not probe.answered:
            probe.number = self.ping(link)
            probe.sent_s = now.mono_s

    def on_ping(self, link: Link, message: Ping, now: Instant) -> None:
        """Answer at once."""
        self._links.post(link, Ack(message.number, *self._summary()))

    def on_ack(self, link: Link, message: Ack, now: Instant) -> None:
        """Take an answer: to the probe in progress, or to one done for another."""
        probe = self._current
        if probe and probe.number == message.number and probe.target == link.node_id:
            if not probe.answered and probe.sent_s is not None:
                link.sample(now.mono_s - probe.sent_s)
            probe.answered = True
        target, asker_id, number = self._relays.get(message.number, (b"", b"", 0))
        if target == link.node_id:
            del self._relays[message.number]
            asker = self._links.get(asker_id)
            if asker is not None:
                self._links.post(asker, IndirectAck(number))

    def on_request(self, link: Link, message: PingRequest, now: Instant) -> None:
        """Probe a target for another member; without a link to it, say nothing."""
        target = self._links.get(message.target)
        if target is None or target is link:
            return
        if len(self._relays) >= _RELAY_LIMIT:
            del self._relays[next(iter(self._relays))]
        self._relays[self.ping(target)] = (target.node_id, link.node_id, message.number)

    def on_indirect(self, link: Link, message: IndirectAck, now: Instant) -> None:
        """Take the word of a helper that was asked that the target answered."""
        probe = self._current
        if probe and probe.number == message.number and link.node_id in probe.helpers:
            probe.answered = True

    def heard(self, node_id: bytes) -> None:
        """Note that somebody other than the target was heard: the silence is not ours."""
        if self._current is None or node_id != self._current.target:
            self._heard = True

    def slow(self, lag_s: float) -> None:
        """Widen this node's timeouts after its host was late by `lag_s` seconds."""
        if lag_s > self._config.probe_timeout_s / 2 and not self._slowed:
            self._slowed = True  # once a probe, however often the host reports
            self._worsen(1)
        self._lag_s = max(self._lag_s, min(lag_s, 10.0))

    def defer(self, lag_s: float) -> None:
        """Give the target the time during which this node itself was held up."""
        if self._current is not None:
            self._current.indirect_s += lag_s
            self._current.end_s += lag_s

    def _worsen(self, by: int) -> None:
        self._health = max(0, min(_MAX_HEALTH, self._health + by))
        self._suspicion.patience = 1.0 + self._health / 2

    def _begin(self, now: Instant) -> None:
        member = self._next_target()
        self._current, self._heard, self._slowed = None, False, False
        if member is None:
            return
        factor = 1.0 + self._health
        timeout_s = self._config.probe_timeout_s * factor + self._lag_s
        interval_s = self._config.probe_interval_s * factor + self._lag_s
        end_s = now.mono_s + interval_s
        probe = _Probe(member.node_id, 0, None, now.mono_s + timeout_s, end_s)
        self._current = probe
        link = self._links.get(member.node_id)
        if link is None:
            self._call(member.address, now)
        else:
            probe.number, probe.sent_s = self.ping(link), now.mono_s
            self._suspicion.remind(link)

    def _next_target(self) -> Member | None:
        for _ in range(2):
            while self._order:
                member = self._members.get(self._order.pop())
                if member is not None and member.live:
                    return member
            self._order = sorted(member.node_id for member in self._members.live())
            self._rng.shuffle(self._order)
        return None

    def _ask_others(self, probe: _Probe, now: Instant) -> None:
        helpers = [
            link
            for member in self._members.live()
            if member.node_id != probe.target
            and (link := self._links.get(member.node_id)) is not None
        ]
        wanted = min(self._config.indirect_probes, len(helpers))
        if probe.number == 0:
            self._number += 1
            probe.number = self._number
        asked = self._rng.sample(helpers, wanted)
        probe.helpers = frozenset(link.node_id for link in asked)
        for link in asked:
            self._links.post(link, PingRequest(probe.number, probe.target))
        # it may have restarted: a new boot does not understand this link's seals
        member = self._members.get(probe.target)
        if member is not None:
            self._call(member.address, now)

    def _judge(self, probe: _Probe, now: Instant) -> None:
        if probe.answered:
            self._lag_s = self._lag_s / 2 if self._lag_s > 0.01 else 0.0
            self._worsen(-1)
            return
        if not self._heard and len(self._members.live()) > 1:
            self._worsen(1)
        self._suspicion.accuse(probe.target, now)
