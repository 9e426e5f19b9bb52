"""The epoch's plan against what no plan can beat: parts of `make bench-placement`.

Owns instances of the fluid kind (a fleet, its streams, no time): the cost of a placement, its
lower bound by linear programming, tier 1 by brute force, and how long a plan takes to make. Never
simulates frames. Invariant: bound and plan are judged by one cost function, which is that of
`edge_node.placement.epoch`: weighted service and way, plus congestion.
"""

import dataclasses
import itertools
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import linprog

from edge_node.placement import epoch
from edge_node.placement.epoch import Seat, Stream
from simnet.scenario import load
from tests.bench.report import Figure

S1 = load("city")
assert S1.city is not None
CITY = S1.city

UTILISATION = 0.6
"""Of the least that is possible: what the demand of an instance would use, placed like a fluid."""

LP_LOSS = 0.035
BRUTE_LOSS = 0.01
TIMED = (100, 200, 250, 400, 800, 1600)
ROUNDS = 5
SMALL, FEW, BRUTE_FLEETS = 32, 5, 10
EMULATED = "emulated fleet"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Instance:
    """Streams and seats, and for each stream and seat the cost of being there and its load."""

    streams: list[Stream]
    seats: list[Seat]
    cost_ms: Floats
    work: Floats


def instance(count: int, seed: int) -> Instance:
    """Draw a fleet of ``count`` cameras on a quarter as many nodes (eight at the least)."""
    rng = random.Random(f"instance {seed}")
    scenario, city = S1, CITY
    nodes = max(8, count // 4)
    profiles = [one for one in city.profile[:-1] for _ in range(round(nodes * one.share))]
    profiles += [city.profile[-1]] * (nodes - len(profiles))
    zones = max(1, nodes // (scenario.nodes // scenario.zones))
    seats = []
    for at, profile in enumerate(profiles):
        speed = math.exp(city.speed_spread * rng.gauss(0.0, 1.0))
        table = {kind: time_ms * speed for kind, time_ms in profile.service_ms.items()}
        seats.append(Seat(b"n%04d" % at, profile.name, f"zone{at % zones}", table))
    kinds = rng.choices(*zip(*city.cameras.mix.items(), strict=True), k=count)
    tiers = [1] * (count // 10) + [2] * (count * 4 // 10 - count // 10)
    tiers += [3] * (count - len(tiers))
    rng.shuffle(tiers)
    rate_hz = UTILISATION / _utilisation_per_hz(count, seats, city.cameras.mix)
    streams = [
        Stream(f"camera{at:05d}", kind, tier, rate_hz, math.inf, seats[rng.randrange(nodes)].node)
        for at, (kind, tier) in enumerate(zip(kinds, tiers, strict=True))
    ]
    return _priced(streams, seats)


def _priced(streams: list[Stream], seats: list[Seat]) -> Instance:
    zone = {seat.node: seat.zone for seat in seats}
    cost, work = np.zeros((len(streams), len(seats))), np.zeros((len(streams), len(seats)))
    for row, one in enumerate(streams):
        for at, seat in enumerate(seats):
            way_ms = epoch.SAME_ZONE_MS if seat.zone == zone[one.home] else epoch.OTHER_ZONE_MS
            way_ms = 0.0 if seat.node == one.home else way_ms
            service_ms = seat.service_ms[one.kind]
            cost[row, at] = epoch.WEIGHTS[one.tier - 1] * (service_ms + way_ms)
            work[row, at] = one.rate_hz * service_ms / 1e3
    return Instance(streams, seats, cost, work)


def _utilisation_per_hz(count: int, seats: Sequence[Seat], mix: Mapping[str, float]) -> float:
    """Return the least possible highest utilisation per frame and second of each camera."""
    kinds, types = list(mix), sorted({seat.type for seat in seats})
    base = {one.name: one.service_ms for one in CITY.profile}
    width = len(kinds) * len(types)
    each = np.zeros((len(kinds), width + 1))
    full = np.zeros((len(types), width + 1))
    for row in range(len(kinds)):
        each[row, row * len(types) : (row + 1) * len(types)] = 1.0
    for column, one in enumerate(types):
        full[column, -1] = -sum(seat.type == one for seat in seats)
        for row, kind in enumerate(kinds):
            full[column, row * len(types) + column] = base[one][kind] / 1e3
    objective = np.zeros(width + 1)
    objective[-1] = 1.0
    demand = [count * mix[kind] for kind in kinds]
    return float(linprog(objective, full, np.zeros(len(types)), each, demand).x[-1])


def placed(one: Instance) -> list[int]:
    """Return the seat of each stream by the epoch's plan."""
    found = epoch.plan(one.streams, one.seats, {}).primary
    at = {seat.node: index for index, seat in enumerate(one.seats)}
    return [at[found[stream.agent]] for stream in one.streams]


def cost(one: Instance, places: Sequence[int]) -> float:
    """Return the cost of a placement."""
    rows = np.arange(len(places))
    loads = np.bincount(places, one.work[rows, list(places)], len(one.seats))
    return float(one.cost_ms[rows, list(places)].sum()) + sum(map(epoch.congestion, loads))


def bound(one: Instance) -> float:
    """Return a cost that no placement is below: streams may be split over seats."""
    count, nodes = one.cost_ms.shape
    ends = [end if end < math.inf else 9.0 for end, _ in epoch.STEPS]
    widths = np.diff([0.0, *ends])
    slopes = [epoch.FULL_MS * slope for _, slope in epoch.STEPS]
    steps = len(slopes)
    shares = count * nodes
    each = sparse.csr_matrix(
        (np.ones(shares), (np.repeat(np.arange(count), nodes), np.arange(shares))),
        (count, shares + nodes * steps),
    )
    values = np.concatenate([one.work.ravel(), -np.ones(nodes * steps)])
    rows = np.concatenate([np.tile(np.arange(nodes), count), np.repeat(np.arange(nodes), steps)])
    loads = sparse.csr_matrix(
        (values, (rows, np.arange(shares + nodes * steps))), (nodes, shares + nodes * steps)
    )
    found = linprog(
        np.concatenate([one.cost_ms.ravel(), np.tile(slopes, nodes)]),
        A_eq=sparse.vstack([each, loads]),
        b_eq=np.concatenate([np.ones(count), np.zeros(nodes)]),
        bounds=[(0, None)] * shares + [(0, width) for width in np.tile(widths, nodes)],
        method="highs",
    )
    return float(found.fun)


def losses(seeds: Sequence[int]) -> list[Figure]:
    """Compare the plan with the bound."""
    figures = []
    for count in (100, 200, 400):
        found = []
        for seed in seeds:
            one = instance(count, seed)
            found.append(cost(one, placed(one)) / bound(one) - 1)
        note = f"mean of {len(found)} instances, worst {max(found):.3f}; {EMULATED}"
        figures.append(Figure(f"lp.loss{count}", sum(found) / len(found), "<=", LP_LOSS, note))
    return figures


def brute(seeds: Sequence[int]) -> Figure:
    """Compare tier 1 alone with the best of all its placements on small fleets."""
    found = []
    for seed in seeds:
        one = instance(SMALL, seed)
        few = [dataclasses.replace(stream, tier=1) for stream in one.streams[:FEW]]
        small = _priced(few, one.seats)
        best = min(
            map(partial(cost, small), itertools.product(range(len(small.seats)), repeat=len(few)))
        )
        found.append(cost(small, placed(small)) / best - 1)
    note = f"{FEW} streams on 8 nodes, mean of {len(found)}, worst {max(found):.3f}; {EMULATED}"
    return Figure("s1.tier1_brute", sum(found) / len(found), "<=", BRUTE_LOSS, note)


def solve_times() -> list[Figure]:
    """Time the plan, thread-CPU, the least of some rounds."""
    took_ms = {}
    for count in TIMED:
        one = instance(count, 1)
        rounds = []
        for _ in range(ROUNDS):
            begun_s = time.thread_time()
            epoch.plan(one.streams, one.seats, {})
            rounds.append((time.thread_time() - begun_s) * 1e3)
        took_ms[count] = min(rounds)
    exponent = slope(took_ms)
    note = f"thread-CPU, least of {ROUNDS}, K = N/4; {EMULATED}"
    table = ", ".join(f"{count}: {took:.1f}" for count, took in took_ms.items())
    return [
        Figure("epoch.ms250", took_ms[250], "<=", 20.0, note),
        Figure("epoch.ms1600", took_ms[1600], "<=", 100.0, note),
        Figure("epoch.exponent", exponent, "<=", 1.3, f"ms by N: {table}; {note}"),
    ]


def figures(seeds: Sequence[int]) -> list[Figure]:
    """Return all figures of this part."""
    return [*losses(seeds), brute(range(1, BRUTE_FLEETS + 1)), *solve_times()]


def slope(values: dict[int, float]) -> float:
    """Return the exponent with which values grow, by least squares of the logarithms."""
    return float(np.polyfit(np.log(list(values)), np.log(list(values.values())), 1)[0])
