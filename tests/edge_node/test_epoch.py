"""The epoch's plan: the same on every node, near the optimum, and within what seats can bear."""

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_node.placement.epoch import (
    OTHER_ZONE_MS,
    SAME_ZONE_MS,
    WEIGHTS,
    Seat,
    Stream,
    congestion,
    plan,
    reach,
)
from edge_node.placement.fluid import shares

KINDS = ("small", "large")


def node(number: int) -> bytes:
    return number.to_bytes(16, "big")


def fleet(seed: int, streams: int, seats: int) -> tuple[list[Stream], list[Seat]]:
    rng = random.Random(seed)
    places = [
        Seat(
            node(at),
            kind := rng.choice(["gpu", "cpu"]),
            f"zone {at % 3}",
            {"small": 5.0 if kind == "gpu" else 10.0, "large": 12.0 if kind == "gpu" else 60.0},
        )
        for at in range(seats)
    ]
    agents = [
        Stream(
            f"camera {index}",
            rng.choice(KINDS),
            rng.choice([1, 2, 2, 3, 3, 3]),
            rng.choice([5.0, 10.0]),
            rng.choice([100.0, 200.0, 500.0]),
            node(rng.randrange(seats)),
        )
        for index in range(streams)
    ]
    return agents, places


@given(st.integers(0, 10_000), st.integers(0, 40), st.integers(1, 12), st.randoms())
@settings(max_examples=40, deadline=None)
def test_the_same_inputs_in_any_order_give_the_same_plan(
    seed: int, streams: int, seats: int, shuffler: random.Random
) -> None:
    agents, places = fleet(seed, streams, seats)
    first = plan(agents, places, {})
    shuffler.shuffle(agents)
    shuffler.shuffle(places)
    assert plan(agents, places, {}) == first
    assert first.primary.keys() == {one.agent for one in agents}
    placed = Counter(first.primary.values())
    assert all((first.load[at] > 0) == (placed[at] > 0) for at in first.load)


def test_a_planned_load_is_the_sum_of_its_streams() -> None:
    agents, places = fleet(3, 30, 8)
    made = plan(agents, places, {})
    times = {seat.node: seat.service_ms for seat in places}
    for seat in places:
        mine = [one for one in agents if made.primary[one.agent] == seat.node]
        work = sum(one.rate_hz * times[seat.node][one.kind] / 1e3 for one in mine)
        assert made.load[seat.node] == pytest.approx(work)


def test_a_plan_that_holds_already_is_kept() -> None:
    agents, places = fleet(5, 40, 10)
    made = plan(agents, places, {})
    again = plan(agents, places, made.primary)
    assert again.primary == made.primary


def test_a_small_change_of_demand_moves_few() -> None:
    agents, places = fleet(6, 60, 12)
    made = plan(agents, places, {})
    changed = [
        Stream(a.agent, a.kind, a.tier, a.rate_hz * 1.05, a.deadline_ms, a.home) for a in agents
    ]
    moved = plan(changed, places, made.primary)
    assert sum(moved.primary[a.agent] != made.primary[a.agent] for a in agents) <= 6


def test_streams_of_a_dead_node_are_placed_elsewhere() -> None:
    agents, places = fleet(7, 40, 10)
    before = plan(agents, places, {})
    dead = Counter(before.primary.values()).most_common(1)[0][0]
    after = plan(agents, [seat for seat in places if seat.node != dead], before.primary)
    assert dead not in after.primary.values()
    assert after.primary.keys() == before.primary.keys()


def test_a_kind_that_nobody_does_is_left_out() -> None:
    agents, places = fleet(8, 5, 3)
    odd = Stream("odd", "unknown", 1, 5.0, 100.0, node(0))
    made = plan([*agents, odd], places, {})
    assert "odd" not in made.primary
    assert len(made.primary) == 5
    assert plan(agents, [], {}).primary == {}


def test_what_cannot_be_in_time_goes_where_it_can() -> None:
    slow = Seat(node(1), "cpu", "", {"large": 90.0})
    fast = Seat(node(2), "gpu", "", {"large": 12.0})
    stream = Stream("door", "large", 3, 1.0, 100.0, node(1))
    assert plan([stream], [slow, fast], {}).primary["door"] == node(2)


def cost(agents: list[Stream], places: list[Seat], at: tuple[int, ...]) -> float:
    """Return what a placement costs, by the definition and not by the planner's sums."""
    load, total = [0.0] * len(places), 0.0
    zones = {seat.node: seat.zone for seat in places}
    for one, place in zip(agents, at, strict=True):
        seat = places[place]
        near = zones[one.home] == seat.zone
        way_ms = 0.0 if one.home == seat.node else SAME_ZONE_MS if near else OTHER_ZONE_MS
        total += WEIGHTS[one.tier - 1] * (seat.service_ms[one.kind] + way_ms)
        load[place] += one.rate_hz * seat.service_ms[one.kind] / 1e3
    return total + sum(map(congestion, load))


def test_small_fleets_come_near_the_best_of_all_placements() -> None:
    losses = []
    for seed in range(12):
        agents, places = fleet(seed, 5, 4)
        agents = [Stream(a.agent, a.kind, 1, a.rate_hz, 1e9, a.home) for a in agents]
        made = plan(agents, places, {})
        order = [seat.node for seat in places]
        mine = tuple(order.index(made.primary[one.agent]) for one in agents)
        best = min(cost(agents, places, at) for at in itertools.product(range(4), repeat=5))
        losses.append(cost(agents, places, mine) / best - 1)
    assert sum(losses) / len(losses) < 0.03
    assert max(losses) < 0.15


def test_reach_names_the_supported_of_the_zone_first_and_never_oneself() -> None:
    agents, places = fleet(9, 40, 12)
    made = plan(agents, places, {})
    home = places[0]
    found = reach(made, places, home.node, "large")
    zones = {seat.node: seat.zone for seat in places}
    types = {seat.node: seat.type for seat in places}
    assert home.node not in (*found.zone, *found.fleet)
    assert {zones[at] for at in found.zone} <= {home.zone}
    assert home.zone not in {zones[at] for at in found.fleet}
    assert all(made.supports("large", types[at]) for at in (*found.zone, *found.fleet))


DEMAND = st.dictionaries(st.sampled_from("abcd"), st.floats(0.1, 100.0), min_size=1)
SERVICE = st.dictionaries(
    st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz")), st.floats(0.001, 0.5), min_size=1
)


@given(DEMAND, SERVICE, st.fixed_dictionaries({one: st.integers(1, 20) for one in "xyz"}))
@settings(deadline=None)
def test_shares_add_up_and_no_single_step_lowers_the_highest_utilisation(
    demand: dict[str, float], service: dict[tuple[str, str], float], count: dict[str, int]
) -> None:
    capacity = {one: float(number) for one, number in count.items()}
    found = shares(demand, service, capacity)
    able = {kind for kind, _ in service} & demand.keys()
    for kind in able:
        assert sum(x for (k, _), x in found.items() if k == kind) == pytest.approx(1.0)
    assert {kind for kind, _ in found} == able

    def highest(split: dict[tuple[str, str], float]) -> float:
        load = dict.fromkeys(capacity, 0.0)
        for (kind, type_), x in split.items():
            load[type_] += demand[kind] * x * service[kind, type_] / capacity[type_]
        return max(load.values())

    reached = highest(found)
    for (kind, source), x in found.items():
        for target in capacity:
            if (kind, target) in service and target != source:
                other = {**found, (kind, source): x / 2}
                other[kind, target] = other.get((kind, target), 0.0) + x / 2
                assert highest(other) >= reached - 1e-3 * (1 + reached)


def test_the_program_gives_each_kind_to_the_type_that_is_comparatively_good_at_it() -> None:
    found = shares(
        {"track": 100.0, "vision": 100.0},
        {("track", "cpu"): 0.006, ("track", "gpu"): 0.005, ("vision", "cpu"): 0.3}
        | {("vision", "gpu"): 0.009},
        {"cpu": 1.0, "gpu": 1.0},
    )
    assert found["track", "cpu"] == pytest.approx(1.0)
    assert found["vision", "gpu"] > 0.98
