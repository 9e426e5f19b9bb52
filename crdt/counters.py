"""Counters that several nodes count at once.

Owns: grow-only and positive-negative counters as plain state.
Never: counts for another origin than the one told.
Invariant: an origin's own tally within an epoch only grows, so merging by the greater is exact.

Source: Shapiro et al., A comprehensive study of convergent and commutative replicated data types
(2011), section 3.1.
"""

from collections.abc import Mapping

from crdt.causal import NodeId


class GCounter:
    """Count upwards, per (origin, epoch): a restarted origin begins a tally of its own."""

    __slots__ = ("_tallies",)

    def __init__(self, tallies: Mapping[tuple[NodeId, int], int] | None = None) -> None:
        self._tallies = dict(tallies or {})

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

    __slots__ = ("_down", "_up")

    def __init__(self, up: GCounter | None = None, down: GCounter | None = None) -> None:
        self._up = up or GCounter()
        self._down = down or GCounter()

    @property
    def value(self) -> int:
        """Return ups less downs. O(origins)."""
        return self._up.value - self._down.value

    def increment(self, origin: NodeId, epoch: int, amount: int = 1) -> None:
        """Count at one origin; a negative amount counts down."""
        (self._up if amount >= 0 else self._down).increment(origin, epoch, abs(amount))

    def merge(self, other: "PNCounter") -> "PNCounter":
        """Return the counter that has counted what either has. O(origins)."""
        return PNCounter(self._up.merge(other._up), self._down.merge(other._down))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PNCounter) and (self._up, self._down) == (other._up, other._down)

    __hash__ = None  # type: ignore[assignment]
