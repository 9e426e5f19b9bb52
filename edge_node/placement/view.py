"""What this node believes of the others' load.

Owns one estimate per peer, corrected by what this node itself sent since, by what rides on every
reply, and by time (a backlog drains). Never asks anybody: the caller passes what it heard and
when. Invariants: an estimate is never negative; a peer that owes an answer is never offered before
its silence has run out; a peer that answers later than it made believe is doubted at once and
trusted again slowly, whatever it says of itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from edge_node.placement.fetch import PRIOR_RTT_S

Waits = tuple[float, float, float]
"""Predicted wait at a node, in ms, of a new task of tier 1, 2 and 3; ascending."""

IDLE: Waits = (0.0, 0.0, 0.0)

SILENCE_MIN_S = 1.0
SILENCE_MAX_S = 30.0
"""How long a peer that left a forward unanswered is out; doubled each time, ended by a reply.

Its load reports do not end it: gossip may get through where requests do not."""

MOST_PEERS = 10_000

STALE_AFTER_S = 10.0
"""Load older than this says nothing about now."""

FRESH_S = 0.5
"""How long what rode on a reply counts more than a load report, which gossip made older."""

DRAIN = 0.5
"""Share of the time that passes by which a backlog shrinks: new work comes in meanwhile."""

NETWORK_GAIN = 0.2
"""Weight of the newest sample in the moving average of a peer's forwarding cost."""

LATE_GAIN, EARLY_GAIN = 0.2, 0.05
"""Weights of the newest answer in how late a peer's are: trust is lost faster than won."""

OVERTAKEN_MS = 100.0
"""An answer later than predicted by no more is no reason for doubt: critical work came first."""

MOST_LATE_MS = 1_000.0
"""A single answer is no evidence for more: what is long for one camera is nothing to another."""

LATE_HALF_LIFE_S = 4.0
"""A peer that is not asked any more wins trust by time alone."""

REFUSAL_GAIN = 0.5
"""Weight of a refusal that had nothing to do with time: it costs the whole budget."""


@dataclass(frozen=True, slots=True)
class Option:
    """One place a frame could run: ``node`` is None here, a peer's id elsewhere. Times in ms."""

    node: bytes | None
    wait_ms: float
    service_ms: float
    network_ms: float = 0.0
    late_ms: float = 0.0
    """How much later than it makes believe its answers have been."""
    share: float = 1.0
    """Of a full pass, which ``service_ms`` is, that the frame is likely to need there."""

    @property
    def before_ms(self) -> float:
        """Predicted time that is not spent on the frame itself."""
        return self.network_ms + self.wait_ms + self.late_ms

    @property
    def finish_ms(self) -> float:
        """Predicted time from now until the answer is back."""
        return self.before_ms + self.share * self.service_ms


@dataclass(slots=True)
class PeerEstimate:
    """One peer: waits in ms as of ``at_s``, service time in ms by kind of task."""

    number: object = None
    waits_ms: Waits = IDLE
    service_ms: Mapping[str, float] = field(default_factory=dict)
    network_ms: float = 0.0
    heard_s: float = 0.0
    at_s: float = 0.0
    replied_s: float = -inf
    answered: bool = False
    silence_s: float = 0.0
    silent_until_s: float = 0.0
    lateness_ms: float = 0.0
    """Mean time by which its answers came later than predicted, as of ``late_s``."""
    late_s: float = 0.0

    def wait_ms(self, tier: int, now_s: float) -> float:
        """Return what is left of the wait of a tier."""
        return max(0.0, self.waits_ms[tier - 1] - DRAIN * (now_s - self.at_s) * 1e3)

    def late_ms(self, now_s: float) -> float:
        """Return how much later than predicted an answer is likely to be."""
        if self.lateness_ms == 0.0:
            return 0.0
        fading: float = 0.5 ** ((now_s - self.late_s) / LATE_HALF_LIFE_S)
        return self.lateness_ms * fading

    def was_late(self, excess_ms: float, gain: float, now_s: float) -> None:
        """Take by how much an answer was later than predicted, lateness included."""
        self.lateness_ms = max(0.0, self.late_ms(now_s) + gain * min(MOST_LATE_MS, excess_ms))
        self.late_s = now_s


@dataclass(slots=True)
class FleetView:
    """Estimates of all peers; every method is O(1) in the number of peers."""

    peers: dict[bytes, PeerEstimate] = field(default_factory=dict)

    def heard_load(
        self,
        node: bytes,
        number: object,
        waits_ms: Waits,
        service_ms: Mapping[str, float],
        network_ms: float,
        now_s: float,
    ) -> None:
        """Take a load report that came by gossip; one that was taken already changes nothing.

        Args:
            number: differs between any two reports of a node.
            network_ms: a probe's round trip; counts until a reply told what forwarding costs.
        """
        peer = self.peers.setdefault(node, PeerEstimate())
        if peer.number == number:
            return
        peer.number, peer.service_ms, peer.heard_s = number, service_ms, now_s
        if now_s - peer.replied_s >= FRESH_S:
            peer.waits_ms, peer.at_s = waits_ms, now_s
        if not peer.answered:
            peer.network_ms = network_ms

    def heard_reply(
        self,
        node: bytes,
        waits_ms: Waits,
        network_ms: float,
        predicted_ms: float,
        actual_ms: float,
        now_s: float,
    ) -> None:
        """Take what rode on a reply and what the way there and back took.

        Args:
            predicted_ms: the finish of the option that was taken.
            actual_ms: when the answer came, from the sending on.
        """
        peer = self.peers.get(node)
        if peer is None:
            return
        gain = NETWORK_GAIN if peer.answered else 1.0
        peer.network_ms = max(0.0, peer.network_ms + gain * (network_ms - peer.network_ms))
        peer.answered, peer.silence_s, peer.silent_until_s = True, 0.0, 0.0
        peer.waits_ms, peer.heard_s, peer.at_s, peer.replied_s = waits_ms, now_s, now_s, now_s
        excess_ms = actual_ms - predicted_ms
        if excess_ms < 0.0:
            peer.was_late(excess_ms, EARLY_GAIN, now_s)
        elif excess_ms > OVERTAKEN_MS:
            peer.was_late(excess_ms - OVERTAKEN_MS, LATE_GAIN, now_s)

    def had_no_time(self, node: bytes, excess_ms: float, now_s: float) -> None:
        """Take a refusal for lack of time: an answer later than predicted by so much at least."""
        peer = self.peers.get(node)
        if peer is not None and excess_ms > 0.0:
            peer.was_late(excess_ms, LATE_GAIN, now_s)

    def refused(self, node: bytes, budget_ms: float, now_s: float) -> None:
        """Take a refusal of what the peer makes believe that it does."""
        peer = self.peers.get(node)
        if peer is not None:
            peer.was_late(max(0.0, budget_ms), REFUSAL_GAIN, now_s)

    def sent(self, node: bytes, kind: str, tier: int, now_s: float, factor: float = 1.0) -> None:
        """Count a task just forwarded as wait of those behind it, until the peer is heard again.

        ``factor``: its work in full passes.
        """
        peer = self.peers.get(node)
        if peer is not None:
            more_ms = factor * peer.service_ms.get(kind, 0.0)
            first, second, third = (peer.wait_ms(one, now_s) for one in (1, 2, 3))
            peer.waits_ms = (
                first + more_ms if tier == 1 else first,
                second + more_ms if tier <= 2 else second,
                third + more_ms,
            )
            peer.at_s = now_s

    def unanswered(self, node: bytes, now_s: float) -> None:
        """Offer this peer nothing for a while."""
        peer = self.peers.get(node)
        if peer is not None and now_s >= peer.silent_until_s:
            peer.silence_s = min(SILENCE_MAX_S, max(SILENCE_MIN_S, 2 * peer.silence_s))
            peer.silent_until_s = now_s + peer.silence_s

    def forget(self, node: bytes) -> None:
        """Offer a peer no more that left or died; if it comes back it is what it was.

        Of very many such the first are dropped.
        """
        peer = self.peers.pop(node, None)
        if peer is not None:
            peer.service_ms, peer.number = {}, None
            self.peers[node] = peer
            while len(self.peers) > MOST_PEERS:
                del self.peers[next(iter(self.peers))]

    def rtt_s(self, node: bytes) -> float:
        """Return what is known of the way to a peer and back, :data:`PRIOR_RTT_S` if nothing."""
        peer = self.peers.get(node)
        return peer.network_ms / 1e3 if peer is not None else PRIOR_RTT_S

    def option(self, node: bytes, kind: str, tier: int, now_s: float) -> Option | None:
        """Return a peer as a place for a task, None if it does not do the kind or is not heard."""
        peer = self.peers.get(node)
        if peer is None or now_s < peer.silent_until_s or now_s - peer.heard_s > STALE_AFTER_S:
            return None
        service_ms = peer.service_ms.get(kind)
        if service_ms is None:
            return None
        wait_ms, late_ms = peer.wait_ms(tier, now_s), peer.late_ms(now_s)
        return Option(node, wait_ms, service_ms, peer.network_ms, late_ms)
