"""Names for events: dots and version vectors.

Owns: the identity of one add (`Dot`) and a summary of the events seen (`VersionVector`).
Never: knows what an event meant.
Invariant: a dot is issued once; a version vector only grows.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import NamedTuple

NodeId = bytes
"""The first 16 bytes of the SHA-256 of a node's Ed25519 public key."""


def node_id_of(public_key: bytes) -> NodeId:
    """Return the id that belongs to an Ed25519 public key."""
    return sha256(public_key).digest()[:16]


class Dot(NamedTuple):
    """Name one event: the origin's `counter`-th in its `epoch`. Ordered within an origin."""

    origin: NodeId
    epoch: int
    counter: int


class VersionVector:
    """Remember, per origin, the newest event seen: every earlier one counts as seen too."""

    __slots__ = ("_newest",)

    def __init__(self, newest: Mapping[NodeId, tuple[int, int]] | None = None) -> None:
        self._newest = dict(newest or {})

    def observe(self, dot: Dot) -> None:
        """Count `dot` and everything before it at its origin as seen."""
        seen = self._newest.get(dot.origin, (0, 0))
        self._newest[dot.origin] = max(seen, (dot.epoch, dot.counter))

    def covers(self, dot: Dot) -> bool:
        """Say whether `dot` has been seen."""
        return (dot.epoch, dot.counter) <= self._newest.get(dot.origin, (0, 0))

    def newest(self, origin: NodeId) -> tuple[int, int]:
        """Return (epoch, counter) of the newest event seen of `origin`, (0, 0) for none."""
        return self._newest.get(origin, (0, 0))

    def merge(self, other: "VersionVector") -> "VersionVector":
        """Return what either has seen. O(origins)."""
        merged = VersionVector(self._newest)
        for origin, (epoch, counter) in other._newest.items():
            merged.observe(Dot(origin, epoch, counter))
        return merged

    def __le__(self, other: "VersionVector") -> bool:
        """Say whether `other` has seen everything this has. O(origins)."""
        return all(seen <= other.newest(origin) for origin, seen in self._newest.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VersionVector) and self._newest == other._newest

    __hash__ = None  # type: ignore[assignment]
