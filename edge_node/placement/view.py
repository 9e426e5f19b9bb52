"""What this node believes of the others' load.

Owns one estimate per peer, corrected by what this node itself sent since, by the backlog that
rides on every reply, and by time (a backlog drains). Never asks anybody: the caller passes what
it heard and when. Invariant: an estimate is never negative, and a peer that owes an answer is
never offered before its silence has run out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_node.placement.fetch import PRIOR_RTT_S

SILENCE_MIN_S = 1.0
SILENCE_MAX_S = 30.0
"""How long a peer that left a forward unanswered is out; doubled each time, ended by a reply.

Its load reports do not end it: gossip may get through where requests do not."""

STALE_AFTER_S = 10.0
"""Load older than this says nothing about now."""

NETWORK_GAIN = 0.2
"""Weight of the newest sample in the moving average of a peer's forwarding cost."""


@dataclass(frozen=True, slots=True)
class Option:
    """One place a frame could run: ``node`` is None here, a peer's id elsewhere. Times in ms."""

    node: bytes | None
    backlog_ms: float
    service_ms: float
    network_ms: float = 0.0

    @property
    def finish_ms(self) -> float:
        """Predicted time from now until the answer is back."""
        return self.network_ms + self.backlog_ms + self.service_ms


@dataclass(slots=True)
class PeerEstimate:
    """One peer: backlog in ms as of ``at_s``, service time in ms by model digest."""

    number: object = None
    backlog_ms: float = 0.0
    service_ms: Mapping[str, float] = field(default_factory=dict)
    network_ms: float = 0.0
    heard_s: float = 0.0
    at_s: float = 0.0
    answered: bool = False
    silence_s: float = 0.0
    silent_until_s: float = 0.0

    def backlog_at(self, now_s: float) -> float:
        """Return what is left of the backlog, in ms."""
        return max(0.0, self.backlog_ms - (now_s - self.at_s) * 1e3)


@dataclass(slots=True)
class FleetView:
    """Estimates of all peers; every method is O(1) in the number of peers but :meth:`options`."""

    peers: dict[bytes, PeerEstimate] = field(default_factory=dict)

    def heard_load(
        self,
        node: bytes,
        number: object,
        backlog_ms: float,
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
        peer.number, peer.service_ms = number, service_ms
        peer.backlog_ms, peer.heard_s, peer.at_s = max(0.0, backlog_ms), now_s, now_s
        if not peer.answered:
            peer.network_ms = network_ms

    def heard_reply(self, node: bytes, backlog_ms: float, network_ms: float, now_s: float) -> None:
        """Take the backlog that rode on a reply, and what the way there and back took."""
        peer = self.peers.get(node)
        if peer is None:
            return
        gain = NETWORK_GAIN if peer.answered else 1.0
        peer.network_ms = max(0.0, peer.network_ms + gain * (network_ms - peer.network_ms))
        peer.answered, peer.silence_s, peer.silent_until_s = True, 0.0, 0.0
        peer.backlog_ms, peer.heard_s, peer.at_s = max(0.0, backlog_ms), now_s, now_s

    def sent(self, node: bytes, digest: str, now_s: float) -> None:
        """Count a frame just forwarded as backlog of the peer until it is heard again."""
        peer = self.peers.get(node)
        if peer is not None:
            peer.backlog_ms = peer.backlog_at(now_s) + peer.service_ms.get(digest, 0.0)
            peer.at_s = now_s

    def unanswered(self, node: bytes, now_s: float) -> None:
        """Offer this peer nothing for a while."""
        peer = self.peers.get(node)
        if peer is not None and now_s >= peer.silent_until_s:
            peer.silence_s = min(SILENCE_MAX_S, max(SILENCE_MIN_S, 2 * peer.silence_s))
            peer.silent_until_s = now_s + peer.silence_s

    def forget(self, node: bytes) -> None:
        """Drop a peer that left or died."""
        self.peers.pop(node, None)

    def rtt_s(self, node: bytes) -> float:
        """Return what is known of the way to a peer and back, :data:`PRIOR_RTT_S` if nothing."""
        peer = self.peers.get(node)
        return peer.network_ms / 1e3 if peer is not None else PRIOR_RTT_S

    def options(self, digest: str, now_s: float) -> list[Option]:
        """List the peers that run the model ``digest`` and were heard lately, in id order."""
        return [
            Option(node, peer.backlog_at(now_s), peer.service_ms[digest], peer.network_ms)
            for node, peer in sorted(self.peers.items())
            if digest in peer.service_ms
            and now_s >= peer.silent_until_s
            and now_s - peer.heard_s <= STALE_AFTER_S
        ]
