"""Plan, once an epoch, which node runs the frames of which agent.

Owns one function of the replica: the same streams, seats and present places give the same plan on
every node, whatever the order in which they are passed; views that differ for a while cost quality
only. Never looks at a clock. O(n log n): each stream looks at a few seats, and the fullest are
found in sorted lists.

First a linear program says which types of accelerator serve which kinds of task (see
:mod:`edge_node.placement.fluid`); then the streams are placed one after the other, the critical
first, each where it costs least; then each may move once more, now that all are placed.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from operator import itemgetter

from edge_node.placement.choose import Reach
from edge_node.placement.fluid import Shares, shares

SAME_ZONE_MS, OTHER_ZONE_MS = 6.0, 14.0
"""What the way to another node and back is taken to cost."""

WEIGHTS = (4.0, 2.0, 1.0)
"""What a millisecond of an agent of tier 1, 2, 3 counts."""

STICKINESS = 0.6
"""Factor on the cost of the present place: a move makes its reuse state cold."""

SUPPORT, PRICE = 0.02, 1.5
"""A type that serves less than this share of a kind counts so many times its service time.

Not for tier 1, which is placed first and takes what is best for it."""

LATE = 0.8
LATE_MS = 1_000.0
"""Penalty of a seat whose service and network take more than that part of the deadline."""

FULL_MS = 60.0
STEPS = ((0.3, 1.0), (0.5, 1.6), (0.7, 3.0), (0.85, 6.0), (1.0, 15.0), (inf, 80.0))
"""Congestion: up to a utilisation, what more of it costs, in :data:`FULL_MS` per unit."""

TARGET = 0.6
"""Share of a node's capacity that callers should give its seat: demand changes between epochs."""

IN_ZONE, ANYWHERE = 4, 2
"""Seats of each type that a stream looks at, the emptiest, besides its home and present one."""

REACH_ZONE, REACH_FLEET = 12, 24
"""Nodes of the zone, and beyond, among which a task may be drawn to."""


@dataclass(frozen=True, slots=True)
class Stream:
    """The frames of one agent; ``home`` is the node that decodes them."""

    agent: str
    kind: str
    tier: int
    rate_hz: float
    deadline_ms: float
    home: bytes
    factor: float = 1.0
    """Mean work of a frame in full passes: less than one where earlier frames are reused."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A node as a place for streams."""

    node: bytes
    type: str
    zone: str
    service_ms: Mapping[str, float]
    """Time of a full pass by kind; a kind left out cannot run here."""
    capacity: float = 1.0
    """How many passes at once."""
    late_ms: float = 0.0
    """How much later than it makes believe its answers have been."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Where each agent's frames run by default, and the utilisation that this gives each node."""

    primary: Mapping[str, bytes]
    load: Mapping[bytes, float]
    shares: Shares

    def supports(self, kind: str, type: str) -> bool:
        """Tell whether the program has this type serve that kind."""
        return self.shares.get((kind, type), 0.0) >= SUPPORT


def plan(streams: Iterable[Stream], seats: Iterable[Seat], current: Mapping[str, bytes]) -> Plan:
    """Place every stream whose kind somebody does.

    Args:
        current: the node that runs an agent's frames now, where there is one.
    """
    placing = _Placing(
        sorted(seats, key=lambda seat: seat.node), sorted(streams, key=lambda one: one.agent)
    )
    order = sorted(
        range(len(placing.streams)),
        key=lambda index: (
            placing.streams[index].tier,
            -placing.demand[index],
            placing.streams[index].agent,
        ),
    )
    stay = [placing.index.get(current.get(one.agent, b""), -1) for one in placing.streams]
    place = [-1] * len(placing.streams)
    for index in order:
        place[index] = placing.best(index, stay[index])
        placing.add(index, place[index], 1.0)
    for index in order:  # one sweep of best responses
        if place[index] >= 0:
            placing.add(index, place[index], -1.0)
            place[index] = placing.best(index, stay[index], place[index])
            placing.add(index, place[index], 1.0)
    names = [seat.node for seat in placing.seats]
    return Plan(
        {one.agent: names[at] for one, at in zip(placing.streams, place, strict=True) if at >= 0},
        dict(zip(names, placing.load, strict=True)),
        placing.shares,
    )


def reach(plan: Plan, seats: Iterable[Seat], home: bytes, kind: str) -> Reach:
    """Return whom ``home`` may ask for tasks of a kind: those of supported types, best first."""
    able = [seat for seat in seats if kind in seat.service_ms]
    zone = next((seat.zone for seat in able if seat.node == home), None)
    others = [seat for seat in able if seat.node != home]
    if zone is None:  # a node that cannot do it itself still has a zone
        zone = next((seat.zone for seat in seats if seat.node == home), None)
    chosen = [seat for seat in others if plan.supports(kind, seat.type)] or others
    chosen.sort(key=lambda seat: (seat.service_ms[kind], seat.node))
    near = [seat.node for seat in chosen if seat.zone == zone]
    far = [seat.node for seat in chosen if seat.zone != zone]
    return Reach(tuple(near[:REACH_ZONE]), tuple(far[:REACH_FLEET]))


_SEAT: Callable[[tuple[float, int]], int] = itemgetter(1)
_STARTS = (0.0, *(end for end, _ in STEPS[:-1]))
_ENDS = [end for end, _ in STEPS]
_SLOPES = [FULL_MS * slope for _, slope in STEPS]
_BASES = [0.0]
for _start, _end, _slope in zip(_STARTS, _ENDS[:-1], _SLOPES[:-1], strict=False):
    _BASES.append(_BASES[-1] + _slope * (_end - _start))


def congestion(load: float) -> float:
    """Return the cost of a node's utilisation, in ms: convex, steep from 0.85 on."""
    step = bisect_left(_ENDS, load)
    return _BASES[step] + _SLOPES[step] * (load - _STARTS[step])


class _Placing:
    """The state of one plan while it is made. Seats and streams go by their index."""

    def __init__(self, seats: Sequence[Seat], streams: Sequence[Stream]) -> None:
        self.seats = seats
        self.streams = streams
        self.index = {seat.node: at for at, seat in enumerate(seats)}
        self.load = [0.0] * len(seats)
        self._cost = [0.0] * len(seats)  # congestion of the load
        kinds = sorted({one.kind for one in streams})
        self._service = {
            kind: [seat.service_ms.get(kind, inf) if seat.capacity > 0.0 else inf for seat in seats]
            for kind in kinds
        }
        self.demand = self._demand()
        self.shares = self._fluid(kinds)
        self._priced = {kind: self._prices(kind) for kind in kinds}
        self._zones = [seat.zone for seat in seats]
        self._capacity = [1e3 * seat.capacity for seat in seats]  # in ms of work per second
        self._ways: dict[int, list[float]] = {}
        self._types = [seat.type for seat in seats]
        self._near: dict[tuple[str, str], list[tuple[float, int]]] = {}
        self._far: dict[str, list[tuple[float, int]]] = {}
        for at, seat in enumerate(seats):
            self._near.setdefault((seat.zone, seat.type), []).append((0.0, at))
            self._far.setdefault(seat.type, []).append((0.0, at))
        self._of_type = [row for _, row in sorted(self._far.items())]
        self._of_zone = {
            zone: [row for (its, _), row in sorted(self._near.items()) if its == zone]
            for zone in sorted(set(self._zones))
        }

    def _demand(self) -> list[float]:
        least = {kind: min(times, default=inf) for kind, times in self._service.items()}
        return [round(one.rate_hz * one.factor * least[one.kind], 6) for one in self.streams]

    def _fluid(self, kinds: Sequence[str]) -> Shares:
        demand = dict.fromkeys(kinds, 0.0)
        for one in self.streams:
            demand[one.kind] += one.rate_hz * one.factor
        capacity: dict[str, float] = {}
        sums: dict[tuple[str, str], tuple[float, float]] = {}
        for at, seat in enumerate(self.seats):
            capacity[seat.type] = capacity.get(seat.type, 0.0) + seat.capacity
            for kind in kinds:
                if (service_ms := self._service[kind][at]) < inf:
                    total, count = sums.get((kind, seat.type), (0.0, 0.0))
                    sums[kind, seat.type] = total + service_ms / 1e3, count + 1
        service = {pair: total / count for pair, (total, count) in sums.items()}
        return shares(demand, service, capacity)

    def _prices(self, kind: str) -> list[float]:
        """Return the service times with what the program does not want priced up."""
        return [
            time if self.shares.get((kind, seat.type), 0.0) >= SUPPORT else PRICE * time
            for time, seat in zip(self._service[kind], self.seats, strict=True)
        ]

    def add(self, index: int, at: int, sign: float) -> None:
        """Add a stream's work to a seat, or take it away; nothing for a seat of -1."""
        if at < 0:
            return
        one = self.streams[index]
        seat = self.seats[at]
        work = one.rate_hz * one.factor * self._service[one.kind][at] / self._capacity[at]
        for row in (self._near[seat.zone, seat.type], self._far[seat.type]):
            del row[bisect_left(row, (self.load[at], at))]
        self.load[at] = max(0.0, self.load[at] + sign * work)
        self._cost[at] = congestion(self.load[at])
        for row in (self._near[seat.zone, seat.type], self._far[seat.type]):
            insort(row, (self.load[at], at))

    def best(self, index: int, stay: int, present: int = -1) -> int:
        """Return the cheapest seat for a stream, -1 if nobody does its kind.

        Args:
            stay: where it runs now; present: where this plan has put it so far.
        """
        one = self.streams[index]
        service = self._service[one.kind]
        priced = self._priced[one.kind] if one.tier > 1 else service
        home = self.index.get(one.home, -1)
        ways, loads, costs, capacity = self._ways_from(home), self.load, self._cost, self._capacity
        rate, weight = one.rate_hz * one.factor, WEIGHTS[one.tier - 1]
        limit_ms = LATE * one.deadline_ms
        found, least = -1, inf
        for at in self._candidates(home, stay, present):
            run_ms = service[at]
            if run_ms == inf:
                continue
            way_ms = ways[at]
            load = loads[at] + rate * run_ms / capacity[at]
            step = bisect_right(_ENDS, load)
            cost = weight * (priced[at] + way_ms) - costs[at]
            cost += _BASES[step] + _SLOPES[step] * (load - _STARTS[step])
            if run_ms + way_ms > limit_ms:
                cost += weight * LATE_MS
            if at == stay:
                cost *= STICKINESS
            if cost < least or (cost == least and at < found):
                found, least = at, cost
        return found

    def _ways_from(self, home: int) -> list[float]:
        """Return what the way to each seat and back is taken to cost, lateness included."""
        found = self._ways.get(home)
        if found is None:
            zone = self._zones[home] if home >= 0 else None
            found = [
                (0.0 if at == home else SAME_ZONE_MS if seat.zone == zone else OTHER_ZONE_MS)
                + seat.late_ms
                for at, seat in enumerate(self.seats)
            ]
            self._ways[home] = found
        return found

    def _candidates(self, home: int, stay: int, present: int) -> set[int]:
        found = {home, stay, present}
        for row in self._of_type:
            found.update(map(_SEAT, row[:ANYWHERE]))
        for row in self._of_zone[self._zones[home]] if home >= 0 else ():
            found.update(map(_SEAT, row[:IN_ZONE]))
        found.discard(-1)
        return found
