"""What this node believes of the others' load.

Owns one estimate per peer, corrected by what this node itself sent since, by the backlog that
rides on every reply, and by time (a backlog drains). Never asks anybody: the caller passes what
it heard and when. Invariant: an estimate is never negative, and a silent peer is never offered.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

SILENT_AFTER_S = 0.6
"""A peer that leaves a forward unanswered for so long is out until it is heard again."""

STALE_AFTER_S = 10.0
"""Load older than this says nothing about now."""

NETWORK_GAIN = 0.2
"""Weight of the newest sample in the moving average of a peer's forwarding cost."""


@dataclass(slots=True)
class PeerEstimate:
    """One peer: backlog in ms as of ``at_s``, service time in ms by model digest."""

    backlog_ms: float
    service_ms: Mapping[str, float]
    network_ms: float
    heard_s: float
    at_s: float
    silent: bool = False
    forwarding_known: bool = False


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
class FleetView:
    """Estimates of all peers; every method is O(1) in the number of peers but :meth:`options`."""

    peers: dict[bytes, PeerEstimate] = field(default_factory=dict)

    def heard_load(
        self,
        node: bytes,
        backlog_ms: float,
        service_ms: Mapping[str, float],
        network_ms: float,
        now_s: float,
    ) -> None:
        """Take a load report that came by gossip; it also ends a peer's silence.

        ``network_ms`` (a probe's round trip) counts only until a reply told what forwarding costs.
        """
        known = self.peers.get(node)
        if known is not None and known.forwarding_known:
            network_ms = known.network_ms
        self.peers[node] = PeerEstimate(
            backlog_ms=max(0.0, backlog_ms),
            service_ms=service_ms,
            network_ms=network_ms,
            heard_s=now_s,
            at_s=now_s,
            forwarding_known=known is not None and known.forwarding_known,
        )

    def heard_reply(self, node: bytes, backlog_ms: float, network_ms: float, now_s: float) -> None:
        """Take the backlog that rode on a reply, and what the way there and back took."""
        peer = self.peers.get(node)
        if peer is not None:
            if peer.forwarding_known:
                network_ms = peer.network_ms + NETWORK_GAIN * (network_ms - peer.network_ms)
            peer.network_ms, peer.forwarding_known = max(0.0, network_ms), True
            peer.backlog_ms = max(0.0, backlog_ms)
            peer.heard_s, peer.at_s, peer.silent = now_s, now_s, False

    def sent(self, node: bytes, digest: str, now_s: float) -> None:
        """Count a frame just forwarded as backlog of the peer until it is heard again."""
        peer = self.peers.get(node)
        if peer is not None:
            peer.backlog_ms = self._backlog_ms(peer, now_s) + peer.service_ms.get(digest, 0.0)
            peer.at_s = now_s

    def unanswered(self, node: bytes) -> None:
        """Offer this peer nothing until it is heard again."""
        peer = self.peers.get(node)
        if peer is not None:
            peer.silent = True

    def forget(self, node: bytes) -> None:
        """Drop a peer that left or died."""
        self.peers.pop(node, None)

    def options(self, digest: str, now_s: float) -> list[Option]:
        """List the peers that run the model ``digest`` and were heard lately, in id order."""
        return [
            Option(node, self._backlog_ms(peer, now_s), peer.service_ms[digest], peer.network_ms)
            for node, peer in sorted(self.peers.items())
            if not peer.silent
            and digest in peer.service_ms
            and now_s - peer.heard_s <= STALE_AFTER_S
        ]

    @staticmethod
    def _backlog_ms(peer: PeerEstimate, now_s: float) -> float:
        return max(0.0, peer.backlog_ms - (now_s - peer.at_s) * 1e3)
