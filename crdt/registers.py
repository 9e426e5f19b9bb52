"""Last-writer-wins registers, and maps of them.

Owns: the candidates of a register, in the order of their stamps.
Never: knows what a stamp is; any tuples that can be compared and are never equal will do. Fleet
registers use (timestamp, origin, epoch, sequence), owner records (epoch, sequence).
Invariant: what a read returns depends on the set of candidates alone.

Superseded candidates are kept for as long as a batch that states them lives: a read may have to
look past candidates from the future, and a dropped batch uncovers what it had superseded.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Any, TypeAlias

from crdt.values import Value

Stamp: TypeAlias = tuple[Any, ...]
Candidate: TypeAlias = tuple[Stamp, Value]


def _stamp(candidate: Candidate) -> Stamp:
    return candidate[0]


class LwwRegister:
    """Hold one value: that of the greatest stamp."""

    __slots__ = ("_candidates",)

    def __init__(self) -> None:
        self._candidates: list[Candidate] = []

    def __len__(self) -> int:
        return len(self._candidates)

    def put(self, stamp: Stamp, value: Value) -> None:
        """Add a candidate. O(candidates), of which there is about one an origin."""
        candidates = self._candidates
        if not candidates or candidates[-1][0] < stamp:  # nearly always
            candidates.append((stamp, value))
        else:
            insort(candidates, (stamp, value), key=_stamp)

    def drop(self, stamp: Stamp) -> None:
        """Remove the candidate with this stamp."""
        index = bisect_left(self._candidates, stamp, key=_stamp)
        assert self._candidates[index][0] == stamp
        del self._candidates[index]

    def newest(self, below: Stamp | None = None) -> Candidate | None:
        """Return the candidate with the greatest stamp, or the greatest one under `below`."""
        end = len(self._candidates)
        if below is not None and end and self._candidates[-1][0] >= below:
            end = bisect_left(self._candidates, below, key=_stamp)
        return self._candidates[end - 1] if end else None

    def merge(self, other: "LwwRegister") -> None:
        """Add the other's candidates. O(candidates)."""
        for stamp, value in other._candidates:
            if not self._has(stamp):
                self.put(stamp, value)

    def _has(self, stamp: Stamp) -> bool:
        index = bisect_left(self._candidates, stamp, key=_stamp)
        return index < len(self._candidates) and self._candidates[index][0] == stamp


class LwwMap:
    """Hold a register per key; a register whose value is None counts as absent."""

    __slots__ = ("_registers",)

    def __init__(self) -> None:
        self._registers: dict[str, LwwRegister] = {}

    def put(self, key: str, stamp: Stamp, value: Value) -> None:
        """Add a candidate to a key."""
        self._registers.setdefault(key, LwwRegister()).put(stamp, value)

    def drop(self, key: str, stamp: Stamp) -> None:
        """Remove a candidate from a key."""
        register = self._registers[key]
        register.drop(stamp)
        if not register:
            del self._registers[key]

    def newest(self, key: str, below: Stamp | None = None) -> Candidate | None:
        """Return the candidate that wins at a key."""
        register = self._registers.get(key)
        return None if register is None else register.newest(below)

    def items(self, prefix: str, below: Stamp | None = None) -> Iterator[tuple[str, Value]]:
        """Yield the keys under a prefix that have a value, sorted. O(keys log keys)."""
        for key in sorted(key for key in self._registers if key.startswith(prefix)):
            found = self._registers[key].newest(below)
            if found is not None and found[1] is not None:
                yield key, found[1]

    def merge(self, other: "LwwMap") -> None:
        """Add the other's candidates. O(size of the other)."""
        for key, register in other._registers.items():
            self._registers.setdefault(key, LwwRegister()).merge(register)
