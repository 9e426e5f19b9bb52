"""What the network does to one datagram.

Owns loss, delay, bandwidth, reordering, duplication, corruption, cuts, partitions and black holes;
never knows what a datagram means, and never waits: it says when something arrives. Invariants: the
fate of a datagram depends on which went before it between the same two (with a bandwidth, on all
that its sender sent), on the seed and on the rules in force, on nothing else; what goes from one
node to another stays in order, unless `reorder` says otherwise.
"""

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass, replace
from hashlib import blake2b
from math import inf, log

Name = str

QUEUE_S = 0.25
"""What a sender's bandwidth lets wait; more is dropped at its end."""

_WORD = (1 << 64) - 1
_UNIT = 1 / (1 << 32)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What befalls datagrams; probabilities from 0 to 1, durations in seconds."""

    loss: float = 0.0
    delay_s: float = 0.001
    jitter_s: float = 0.0005
    """Added to the delay: uniform from 0 to this, or with this mean if the tail is exponential."""
    tail: str = "uniform"
    duplicate: float = 0.0
    reorder: float = 0.0
    """Held back for ``reorder_s``, so that later ones overtake it."""
    reorder_s: float = 0.02
    corrupt: float = 0.0
    """Arrives with one byte changed."""
    bytes_per_s: float = 0.0
    """What a node can send; 0 for no limit."""

    def __post_init__(self) -> None:
        for name in ("loss", "duplicate", "reorder", "corrupt"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} = {value:g}: must be from 0 to 1")
        for name in ("delay_s", "jitter_s", "reorder_s", "bytes_per_s"):
            value = getattr(self, name)
            if not 0.0 <= value < inf:
                raise ValueError(f"{name} = {value:g}: must not be negative")
        if self.tail not in ("uniform", "exponential"):
            raise ValueError(f"tail = {self.tail!r}: must be 'uniform' or 'exponential'")

    def under(self, other: "Conditions") -> "Conditions":
        """Return what befalls a datagram that meets these conditions and others."""
        limits = [one for one in (self.bytes_per_s, other.bytes_per_s) if one]
        return Conditions(
            loss=_either(self.loss, other.loss),
            delay_s=self.delay_s + other.delay_s,
            jitter_s=self.jitter_s + other.jitter_s,
            tail="uniform" if self.tail == other.tail == "uniform" else "exponential",
            duplicate=_either(self.duplicate, other.duplicate),
            reorder=_either(self.reorder, other.reorder),
            reorder_s=max(self.reorder_s, other.reorder_s),
            corrupt=_either(self.corrupt, other.corrupt),
            bytes_per_s=min(limits, default=0.0),
        )


IDEAL = Conditions(delay_s=0.0, jitter_s=0.0)
"""Adds nothing to other conditions."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """What holds while a fault lasts."""

    names: frozenset[Name] = frozenset()
    conditions: Conditions | None = None
    """Of what these nodes send and receive; None: they do neither."""
    targets: frozenset[Name] | None = None
    """Those who hear nothing from ``names`` (and only that)."""
    sides: dict[Name, int] | None = None
    """Who is where in a partition; who is nowhere reaches everybody."""

    def blocks(self, source: Name, target: Name) -> bool:
        if self.sides is not None:
            here, there = self.sides.get(source), self.sides.get(target)
            return here is not None and there is not None and here != there
        if self.targets is not None:
            return source in self.names and target in self.targets
        return self.conditions is None and (source in self.names or target in self.names)

    def worsens(self, source: Name, target: Name) -> Conditions | None:
        return self.conditions if source in self.names or target in self.names else None


class _Way:
    """The state of what goes from one node to another."""

    __slots__ = ("conditions", "latest_s", "number", "seed", "version")

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.number = 0
        self.latest_s = 0.0
        self.version = -1
        self.conditions: Conditions | None = None


class Network:
    """Decide when, how often and how damaged a datagram arrives."""

    def __init__(self, seed: int, conditions: Conditions | None = None) -> None:
        self._seed = seed
        self._base = conditions or Conditions()
        self._rules: dict[Hashable, _Rule] = {}
        self._ways: dict[tuple[Name, Name], _Way] = {}
        self._idle_s: dict[Name, float] = {}  # by sender: when all it sent so far has left
        self._version = 0  # of the rules

    @property
    def conditions(self) -> Conditions:
        """Return what befalls every datagram."""
        return self._base

    def change(self, **values: float | str) -> None:
        """Change some of what holds everywhere. ValueError for what makes no sense."""
        self._base = replace(self._base, **values)  # type: ignore[arg-type]
        self._version += 1

    def partition(self, *groups: Iterable[Name], key: Hashable = "partition") -> None:
        """Cut every pair of nodes that are in different groups, both ways; O(nodes)."""
        sides = {name: side for side, group in enumerate(groups) for name in group}
        self._add(key, _Rule(sides=sides))

    def cut(self, sources: Collection[Name], targets: Collection[Name], key: Hashable) -> None:
        """Let nothing through from some nodes to others; one way."""
        self._add(key, _Rule(frozenset(sources), targets=frozenset(targets)))

    def silence(self, names: Collection[Name], key: Hashable) -> None:
        """Let nodes neither send nor receive, but run on."""
        self._add(key, _Rule(frozenset(names)))

    def worsen(self, names: Collection[Name], conditions: Conditions, key: Hashable) -> None:
        """Add conditions to what nodes send and receive."""
        self._add(key, _Rule(frozenset(names), conditions))

    def lift(self, key: Hashable) -> None:
        """End a rule, if it holds."""
        self._rules.pop(key, None)
        self._version += 1

    def heal(self) -> None:
        """End every rule; what holds everywhere stays."""
        self._rules.clear()
        self._version += 1

    def reaches(self, source: Name, target: Name) -> bool:
        """Tell whether anything gets from one node to another."""
        return not any(rule.blocks(source, target) for rule in self._rules.values())

    def arrivals(
        self, source: Name, target: Name, data: bytes, now_s: float
    ) -> list[tuple[float, bytes]]:
        """Return (when, bytes) of every copy of a datagram sent now that arrives; maybe none."""
        way = self._ways.get((source, target))
        if way is None:
            way = self._ways[source, target] = _Way(self._seed_of(source, target))
        if way.version != self._version:
            way.version, way.conditions = self._version, self._effective(source, target)
        met = way.conditions
        way.number += 1
        if met is None:
            return []
        left_s = now_s
        if met.bytes_per_s:
            left_s = max(now_s, self._idle_s.get(source, 0.0))
            if left_s - now_s > QUEUE_S:
                return []
            left_s += len(data) / met.bytes_per_s
            self._idle_s[source] = left_s
        drawn = _drawn(way.seed + way.number)
        if (drawn >> 32) * _UNIT < met.loss:
            return []
        late = (drawn & 0xFFFFFFFF) * _UNIT
        if met.tail == "exponential":
            late = -log(1.0 - late)
        delay_s = met.delay_s + late * met.jitter_s
        at_s = max(left_s + delay_s, way.latest_s)
        way.latest_s = at_s
        if met.duplicate or met.reorder or met.corrupt:
            return _mistreated(met, data, at_s, delay_s, way)
        return [(at_s, data)]

    def _add(self, key: Hashable, rule: _Rule) -> None:
        self._rules[key] = rule
        self._version += 1

    def _effective(self, source: Name, target: Name) -> Conditions | None:
        """Return what holds from one node to another, None if nothing gets through; O(rules)."""
        if not self.reaches(source, target):
            return None
        found = self._base
        for rule in self._rules.values():
            worse = rule.worsens(source, target)
            if worse is not None:
                found = found.under(worse)
        return found

    def _seed_of(self, source: Name, target: Name) -> int:
        text = f"{self._seed} {source} {target}".encode()
        return int.from_bytes(blake2b(text, digest_size=8).digest())


def _mistreated(
    met: Conditions, data: bytes, at_s: float, delay_s: float, way: _Way
) -> list[tuple[float, bytes]]:
    """Return the copies of a datagram that may be held back, damaged, doubled."""
    drawn = _drawn(~way.seed + way.number)
    more = _drawn(drawn)
    if (drawn >> 32) * _UNIT < met.reorder:
        at_s += met.reorder_s
    if (drawn & 0xFFFFFFFF) * _UNIT < met.corrupt:
        place = int((more & 0xFFFFFFFF) * _UNIT * len(data))
        data = data[:place] + bytes((data[place] ^ 0x55,)) + data[place + 1 :]
    if (more >> 32) * _UNIT < met.duplicate:
        return [(at_s, data), (at_s + delay_s, data)]
    return [(at_s, data)]


def _drawn(state: int) -> int:
    """Return 64 random bits of a counter (splitmix64, Steele, Lea, Flood 2014)."""
    state = state * 0x9E3779B97F4A7C15 & _WORD
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    state = (state ^ state >> 27) * 0x94D049BB133111EB & _WORD
    return state ^ state >> 31


def _either(one: float, other: float) -> float:
    """Return the probability of one of two independent things."""
    return 1.0 - (1.0 - one) * (1.0 - other)
