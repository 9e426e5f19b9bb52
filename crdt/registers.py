"""Last-writer-wins registers, and maps of them.

Owns: the candidates of a register, in the order of their stamps.
Never: knows what a stamp is; any tuples that can be compared and are never equal will do. Fleet
registers use (timestamp, origin, epoch, sequence), owner records (epoch, sequence).
Invariant: what a read returns depends on the set of candidates alone.

Superseded candidates are kept for as long as a batch that states them lives: a read may have to
look past candidates from the future, and a dropped batch uncovers what it had superseded.
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, TypeAlias

from crdt.values import Value

Stamp: TypeAlias = tuple[Any, ...]
Candidate: TypeAlias = tuple[Stamp, Value]
# A tuple of a stamp alone sorts right before the candidate with that stamp, so that bisecting
# compares no values.


class LwwMap:
    """Hold a register per key; a register whose value is None counts as absent."""

    __slots__ = ("_registers",)

    def __init__(self) -> None:
        self._registers: dict[str, list[Candidate]] = {}  # never empty, stamps ascending

    def put(self, key: str, stamp: Stamp, value: Value) -> Candidate | None:
        """Add a candidate to a key; return which was the newest before.

        O(candidates), of which there is about one an origin.
        """
        candidates = self._registers.get(key)
        if candidates is None:
            self._registers[key] = [(stamp, value)]
            return None
        newest = candidates[-1]
        if newest[0] < stamp:  # nearly always
            candidates.append((stamp, value))
        else:
            candidates.insert(bisect_left(candidates, (stamp,)), (stamp, value))
        return newest

    def drop(self, key: str, stamp: Stamp) -> None:
        """Remove a candidate from a key."""
        candidates = self._registers[key]
        # What is dropped is nearly always the oldest.
        index = 0 if candidates[0][0] == stamp else bisect_left(candidates, (stamp,))
        assert candidates[index][0] == stamp
        del candidates[index]
        if not candidates:
            del self._registers[key]

    def newest(self, key: str, below: Stamp | None = None) -> Candidate | None:
        """Return the candidate with the greatest stamp, or the greatest one under `below`."""
        candidates = self._registers.get(key)
        if candidates is None:
            return None
        if below is None or candidates[-1][0] < below:
            return candidates[-1]
        end = bisect_left(candidates, (below,))
        return candidates[end - 1] if end else None

    def candidates(self, key: str) -> list[Candidate]:
        """Return all candidates of a key, their stamps ascending; to be read only."""
        return self._registers.get(key, [])

    def __iter__(self) -> Iterator[str]:
        """Yield the keys that have a candidate."""
        return iter(self._registers)

    def items(self, prefix: str, below: Stamp | None = None) -> Iterator[tuple[str, Value]]:
        """Yield the keys under a prefix that have a value, sorted. O(keys log keys)."""
        for key in sorted(key for key in self._registers if key.startswith(prefix)):
            found = self.newest(key, below)
            if found is not None and found[1] is not None:
                yield key, found[1]
