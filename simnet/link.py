"""What the network does to one datagram.

Owns loss, delay, partitions and black holes; never looks into a datagram. Invariant: the fate of
a datagram depends on the pair's own random stream and the faults set, on nothing else.
"""

import random
from dataclasses import dataclass, field

Name = str


@dataclass(slots=True)
class Faults:
    """The faults in force; probabilities from 0 to 1, durations in seconds."""

    loss: float = 0.0
    delay_s: float = 0.001
    jitter_s: float = 0.0005
    duplicate: float = 0.0
    cut: set[tuple[Name, Name]] = field(default_factory=set)  # (from, to), one way
    silent: set[Name] = field(default_factory=set)  # neither sends nor receives, but runs on


class Network:
    """Decide when, and how often, a datagram arrives."""

    def __init__(self, seed: int) -> None:
        self.faults = Faults()
        self._seed = seed
        self._streams: dict[tuple[Name, Name], random.Random] = {}

    def partition(self, *groups: list[Name]) -> None:
        """Cut every pair of nodes that are in different groups, both ways."""
        for index, group in enumerate(groups):
            for other in groups[index + 1 :]:
                for one in group:
                    for two in other:
                        self.faults.cut.update(((one, two), (two, one)))

    def heal(self) -> None:
        """Undo every cut and black hole."""
        self.faults.cut.clear()
        self.faults.silent.clear()

    def arrivals(self, source: Name, target: Name) -> list[float]:
        """Return the delays, in seconds, after which copies of a datagram arrive; maybe none."""
        faults = self.faults
        rng = self._stream(source, target)
        lost = rng.random() < faults.loss
        delay_s = faults.delay_s + rng.random() * faults.jitter_s
        twice = rng.random() < faults.duplicate
        if lost or (source, target) in faults.cut or {source, target} & faults.silent:
            return []
        return [delay_s, delay_s * 2] if twice else [delay_s]

    def _stream(self, source: Name, target: Name) -> random.Random:
        pair = (source, target)
        if pair not in self._streams:
            # seeding with text hashes it with SHA-512: the same under every PYTHONHASHSEED
            self._streams[pair] = random.Random(f"{self._seed} {source} {target}")
        return self._streams[pair]
