"""Counters that several nodes count at once.

Owns: grow-only and positive-negative counters as plain state, which a host may put wherever it
likes, into a volatile value for instance: no log, no journal and no fingerprint has a part in it.
Never: counts for another origin than the one told.
Invariant: an origin's own tally within an epoch only grows, so merging by the greater is exact.

Source: Shapiro et al., A comprehensive study of convergent and commutative replicated data types
(2011), section 3.1.
"""

from collections.abc import Mapping
from types import MappingProxyType

from crdt.causal import NodeId


class GCounter:
    """Count upwards, per (origin, epoch): a restarted origin begins a tally of its own."""

    __slots__ = ("_tallies",)

    def __init__(self, tallies: Mapping[tuple[NodeId, int], int] | None = None) -> None:
        """Begin with tallies by (origin, epoch), be it those of another counter, or none."""
        self._tallies = dict(tallies or {})

    @property
    def tallies(self) -> Mapping[tuple[NodeId, int], int]:
        """Return what each (origin, epoch) has counted: all that another node has to be told."""
        return MappingProxyType(self._tallies)

    @property
    def value(self) -> int:
        """Return the sum. O(origins)."""
        return sum(self._tallies.values())

    def increment(self, origin: NodeId, epoch: int, amount: int = 1) -> None:
        """Count up at one origin. Raises ValueError for a negative amount."""
        if amount < 0:
            raise ValueError("a grow-only counter cannot count down")
        key = (origin, epoch)
        self._tallies[key] = self._tallies.get(key, 0) + amount

    def merge(self, other: "GCounter") -> "GCounter":
        """Return the counter that has counted what either has. O(origins)."""
        merged = dict(self._tallies)
        for key, tally in other._tallies.items():
            merged[key] = max(merged.get(key, 0), tally)
        return GCounter(merged)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GCounter) and self._tallies == other._tallies

    __hash__ = None  # type: ignore[assignment]


class PNCounter:
    """Count up and down: two grow-only counters."""

    __slots__ = ("down", "up")

    def __init__(self, up: GCounter | None = None, down: GCounter | None = None) -> None:
        """Begin with what was counted up and down, or with nothing."""
        self.up = up or GCounter()
        self.down = down or GCounter()

    @property
    def value(self) -> int:
        """Return ups less downs. O(origins)."""
        return self.up.value - self.down.value

    def increment(self, origin: NodeId, epoch: int, amount: int = 1) -> None:
        """Count at one origin; a negative amount counts down."""
        (self.up if amount >= 0 else self.down).increment(origin, epoch, abs(amount))

    def merge(self, other: "PNCounter") -> "PNCounter":
        """Return the counter that has counted what either has. O(origins)."""
        return PNCounter(self.up.merge(other.up), self.down.merge(other.down))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PNCounter) and (self.up, self.down) == (other.up, other.down)

    __hash__ = None  # type: ignore[assignment]
