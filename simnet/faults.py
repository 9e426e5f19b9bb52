"""What goes wrong in a scenario, and when it befalls whom.

Owns the kinds of fault, and the drawing of a plan from them; never carries one out. Invariant: the
plan depends on the scenario and the seed alone, so that a world, a cluster and every process of it
make the same one.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from simnet.link import Conditions, Name

SEEDS = 3
"""How many nodes everybody else calls."""

Which = float | int | str | tuple[str, ...]
"""A share below 1, a number of nodes, "all", "zone 2", or names."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What all faults have in common. Times are in seconds from the beginning of the run."""

    kind: ClassVar[str]
    at_s: float
    lasting_s: float | None = None
    """None: to the end of the faults (``[time] duration_s``); of crashes and leaves: for good."""
    nodes: Which = "all"
    spread_s: float = 0.0
    """Each node's own beginning is drawn from the time that follows ``at_s``."""
    times: int = 1
    every_s: float = 0.0
    """It happens so often, this far apart; each time to the same nodes."""

    def __post_init__(self) -> None:
        if min(self.at_s, self.spread_s, self.every_s, self.lasting_s or 0.0) < 0:
            raise ValueError("times must not be negative")
        if self.times < 1 or (self.times > 1 and self.every_s <= 0):
            raise ValueError("times must be at least 1, and more than once needs every_s")
        if self.times > 1 and (self.lasting_s is None or self.lasting_s >= self.every_s):
            raise ValueError("what happens more than once needs a lasting_s below every_s")


@dataclass(frozen=True, kw_only=True)
class Crash(Fault):
    """The machine stops without a word (SIGKILL); afterwards it boots again."""

    kind = "crash"
    disk: str = "whole"
    """What it finds then: see ``simnet.disk``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.disk not in ("whole", "torn", "tail", "lost"):
            raise ValueError(f"disk = {self.disk!r}: must be 'whole', 'torn', 'tail' or 'lost'")


@dataclass(frozen=True, kw_only=True)
class Leave(Fault):
    """The node says goodbye (SIGTERM); afterwards it is started again."""

    kind = "leave"


@dataclass(frozen=True, kw_only=True)
class Join(Fault):
    """The node is not there before ``at_s``; it is new then."""

    kind = "join"


@dataclass(frozen=True, kw_only=True)
class Pause(Fault):
    """The process stands still (SIGSTOP), what comes waits in its socket."""

    kind = "pause"


@dataclass(frozen=True, kw_only=True)
class Slow(Fault):
    """Each input takes the node so long; the others wait."""

    kind = "slow"
    each_s: float = 0.005


@dataclass(frozen=True, kw_only=True)
class Clock(Fault):
    """The wall clock jumps by an offset, and both clocks run fast by a drift in parts per million.

    Afterwards the wall clock is set right again.
    """

    kind = "clock"
    offset_s: float = 0.0
    drift_ppm: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if abs(self.drift_ppm) > 100_000:
            raise ValueError("drift_ppm: no clock drifts by more than 100,000")


@dataclass(frozen=True, kw_only=True)
class Full(Fault):
    """The disk takes nothing."""

    kind = "full"


@dataclass(frozen=True, kw_only=True)
class Silence(Fault):
    """The network of a node is gone: it runs, and neither sends nor receives."""

    kind = "silence"


@dataclass(frozen=True, kw_only=True)
class Cut(Fault):
    """Nothing gets through from these nodes to others; one way."""

    kind = "cut"
    towards: Which = "all"


@dataclass(frozen=True, kw_only=True)
class Partition(Fault):
    """The network falls apart."""

    kind = "partition"
    shares: tuple[float, ...] = (0.5, 0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.shares) < 2 or min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError("shares: at least two, all above 0, that add up to 1")
        if self.nodes != "all":
            raise ValueError("a partition divides all nodes: leave 'nodes' out")


@dataclass(frozen=True, kw_only=True)
class Link(Conditions, Fault):
    """What nodes send and receive is treated worse: these conditions are added to the network's."""

    kind = "link"
    delay_s: float = 0.0
    jitter_s: float = 0.0

    def __post_init__(self) -> None:
        Fault.__post_init__(self)
        Conditions.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class Upgrade(Fault):
    """The node is stopped and started again with another range of protocol versions, for good."""

    kind = "upgrade"
    lowest: int = 1
    highest: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.lowest <= self.highest <= 15:
            raise ValueError("versions must be from 1 to 15, the lowest first")


@dataclass(frozen=True, kw_only=True)
class Poison(Fault):
    """The node writes well-signed nonsense under every kind of key that others read."""

    kind = "poison"


@dataclass(frozen=True, kw_only=True)
class Flood(Fault):
    """The node writes far more than its share."""

    kind = "flood"
    per_s: float = 200.0


KINDS: dict[str, type[Fault]] = {
    one.kind: one
    for one in (
        Crash,
        Leave,
        Join,
        Pause,
        Slow,
        Clock,
        Full,
        Silence,
        Cut,
        Partition,
        Link,
        Upgrade,
        Poison,
        Flood,
    )
}
FOR_GOOD = (Crash, Leave, Join, Upgrade, Poison)


class Step(NamedTuple):
    """One thing that happens: a fault's beginning or its end."""

    at_s: float
    number: int
    """Counts what happens, so that an end finds its beginning."""
    fault: Fault
    begins: bool
    names: tuple[Name, ...]
    others: tuple[tuple[Name, ...], ...] = ()
    """A cut's targets; all sides of a partition."""

    def __str__(self) -> str:
        which = "all" if not self.names else ", ".join(self.names[:6])
        more = f" and {len(self.names) - 6} more" if len(self.names) > 6 else ""
        return f"{self.fault.kind} {'begins' if self.begins else 'ends'}: {which}{more}"


def names_of(count: int) -> tuple[Name, ...]:
    """Return what the nodes of every scenario are called."""
    return tuple(f"n{index}" for index in range(count))


def seeds_of(name: Name, count: int) -> tuple[Name, ...]:
    """Return the nodes that a node calls when it starts."""
    return tuple(one for one in names_of(min(count, SEEDS + 1)) if one != name)[:SEEDS]


def zone_of(name: Name, zones: int) -> int:
    """Return the zone that a node stands in."""
    return int(name[1:]) % zones


def chosen(which: Which, count: int, zones: int, rng: random.Random) -> tuple[Name, ...]:
    """Return the nodes meant, in order. Raises ValueError if there are none such, or not enough."""
    names = names_of(count)
    if isinstance(which, str):
        if which == "all":
            return names
        word, _, number = which.partition(" ")
        if word != "zone" or not number.isdigit() or int(number) >= zones:
            raise ValueError(
                f"nodes = {which!r}: there are zones 0 to {zones - 1}; or say 'all', a share, "
                f"a number, or a list of names"
            )
        return tuple(name for name in names if zone_of(name, zones) == int(number))
    if isinstance(which, tuple):
        for name in which:
            if name not in names:
                raise ValueError(f"nodes: there is no {name!r}; they are n0 to n{count - 1}")
        return which
    wanted = which if isinstance(which, int) else max(1, round(which * count))
    if isinstance(which, float) and not 0 < which <= 1:
        raise ValueError(f"nodes = {which:g}: a share must be above 0 and at most 1")
    if not 0 < wanted <= count:
        raise ValueError(f"nodes = {which}: the scenario has {count}")
    return tuple(sorted(rng.sample(names, wanted), key=lambda name: int(name[1:])))


def plan(
    faults: Sequence[Fault], count: int, zones: int, duration_s: float, seed: int
) -> list[Step]:
    """Draw who is hit when; everything that ends has ended by ``duration_s``.

    Raises:
        ValueError: a fault asks for what this fleet does not have.
    """
    steps: list[Step] = []
    number = 0
    alike: Counter[str] = Counter()
    for index, fault in enumerate(faults):
        about = f"{fault.kind} {fault.at_s:g}"  # the others may go, and it hits the same nodes
        alike[about] += 1
        rng = random.Random(f"{seed} {about} {alike[about]}")
        where = f"[[fault]] {index + 1} ({fault.kind})"
        try:
            names = chosen(fault.nodes, count, zones, rng)
            others = _others(fault, names, count, zones, rng)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if fault.at_s + (fault.times - 1) * fault.every_s + fault.spread_s > duration_s:
            raise ValueError(f"{where}: begins after [time] duration_s = {duration_s:g}")
        own_s = {name: rng.uniform(0.0, fault.spread_s) for name in names}
        together = [names] if not fault.spread_s else [(name,) for name in names]
        for time in range(fault.times):
            for group in together:
                at_s = fault.at_s + time * fault.every_s + own_s[group[0]]
                number += 1
                end_s = _end_s(fault, at_s, duration_s)
                if end_s == at_s:
                    continue  # over before it begins
                steps.append(Step(at_s, number, fault, True, group, others))
                if end_s is not None:
                    steps.append(Step(end_s, number, fault, False, group, others))
    return sorted(steps, key=lambda step: (step.at_s, step.begins, step.number))


def absent(steps: Sequence[Step]) -> frozenset[Name]:
    """Return the nodes that are not there at the beginning."""
    return frozenset(name for step in steps if isinstance(step.fault, Join) for name in step.names)


def _others(
    fault: Fault, names: tuple[Name, ...], count: int, zones: int, rng: random.Random
) -> tuple[tuple[Name, ...], ...]:
    if isinstance(fault, Cut):
        towards = chosen(fault.towards, count, zones, rng)
        return (tuple(name for name in towards if name not in names),)
    if isinstance(fault, Partition):
        shuffled = list(names)
        rng.shuffle(shuffled)
        sides, begun, total = [], 0, 0.0
        for share in fault.shares:
            total += share
            end = round(total * count)
            sides.append(tuple(shuffled[begun:end]))
            begun = end
        return tuple(sides)
    return ()


def _end_s(fault: Fault, at_s: float, duration_s: float) -> float | None:
    if fault.lasting_s is None:
        return None if isinstance(fault, FOR_GOOD) else duration_s
    return min(at_s + fault.lasting_s, duration_s)
