"""What the network does to one datagram.

Owns loss, delay, reordering, duplication, corruption, cuts, partitions and black holes; never
knows what a datagram means. Invariants: the fate of a datagram depends on which went before it
between the same two, on the seed and on the faults in force, on nothing else; what goes from one
node to another stays in order, unless `reorder` says otherwise.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from struct import Struct

Name = str

_DRAWS = Struct("<6I")
_UNIT = 1 / (1 << 32)


@dataclass(slots=True)
class Faults:
    """The faults in force; probabilities from 0 to 1, durations in seconds."""

    loss: float = 0.0
    delay_s: float = 0.001
    jitter_s: float = 0.0005
    duplicate: float = 0.0
    reorder: float = 0.0  # held back for reorder_s, so that later ones overtake it
    reorder_s: float = 0.02
    corrupt: float = 0.0  # arrives with one byte changed
    cut: set[tuple[Name, Name]] = field(default_factory=set)  # (from, to), one way
    silent: set[Name] = field(default_factory=set)  # neither sends nor receives, but runs on
    sides: dict[Name, int] = field(default_factory=dict)  # who is where in a partition


class Network:
    """Decide when, how often and how damaged a datagram arrives."""

    def __init__(self, seed: int) -> None:
        self.faults = Faults()
        self._seed = seed
        self._sent: dict[tuple[Name, Name], int] = {}
        self._latest_s: dict[tuple[Name, Name], float] = {}

    def partition(self, *groups: Iterable[Name]) -> None:
        """Cut every pair of nodes that are in different groups, both ways; O(nodes)."""
        self.faults.sides = {name: side for side, group in enumerate(groups) for name in group}

    def heal(self) -> None:
        """Undo every cut, partition and black hole."""
        self.faults.cut.clear()
        self.faults.silent.clear()
        self.faults.sides.clear()

    def arrivals(
        self, source: Name, target: Name, data: bytes, now_s: float
    ) -> list[tuple[float, bytes]]:
        """Return (when, bytes) of every copy of a datagram sent now that arrives; maybe none."""
        faults, pair = self.faults, (source, target)
        lost, late, twice, held, bad, where = self._draws(pair)
        if lost < faults.loss or self._cut(source, target):
            return []
        delay_s = faults.delay_s + late * faults.jitter_s
        at_s = max(now_s + delay_s, self._latest_s.get(pair, 0.0))
        self._latest_s[pair] = at_s
        if held < faults.reorder:
            at_s += faults.reorder_s
        if bad < faults.corrupt:
            place = int(where * len(data))
            data = data[:place] + bytes((data[place] ^ 0x55,)) + data[place + 1 :]
        if twice < faults.duplicate:
            return [(at_s, data), (at_s + delay_s, data)]
        return [(at_s, data)]

    def _cut(self, source: Name, target: Name) -> bool:
        faults = self.faults
        if faults.sides:
            here, there = faults.sides.get(source), faults.sides.get(target)
            if here is not None and there is not None and here != there:
                return True
        if faults.silent and (source in faults.silent or target in faults.silent):
            return True
        return (source, target) in faults.cut

    def _draws(self, pair: tuple[Name, Name]) -> list[float]:
        """Return the next numbers from 0 to 1 of a pair; by counting, since pairs are many."""
        number = self._sent[pair] = self._sent.get(pair, 0) + 1
        text = f"{self._seed} {pair[0]} {pair[1]} {number}".encode()
        drawn = _DRAWS.unpack(blake2b(text, digest_size=_DRAWS.size).digest())
        return [one * _UNIT for one in drawn]
