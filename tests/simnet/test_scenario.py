"""Scenario files, and the plans that come of them."""

import tomllib
from collections import Counter
from typing import Any

import pytest

from simnet import runs, scenario, swarm
from simnet.faults import Crash, Step, names_of
from simnet.runs import ScenarioError, find
from simnet.scenario import Scenario, Time, load, parse, tables, text
from simnet.workload import workload


def small(**changes: Any) -> dict[str, Any]:
    return {"name": "small", "nodes": 10, "time": {"duration_s": 20.0}, **changes}


@pytest.mark.parametrize("name", scenario.names())
def test_what_comes_with_the_simulator_is_sound_and_says_what_it_is(name: str) -> None:
    found = load(name)
    assert found.name == name
    assert len(found.about) > 20
    assert found.plan(1) == found.plan(1)


@pytest.mark.parametrize("name", scenario.names())
def test_a_scenario_survives_being_written(name: str) -> None:
    found = load(name)
    assert parse(tomllib.loads(text(found))) == found


@pytest.mark.parametrize("seed", range(1, 30))
def test_what_the_swarm_draws_survives_being_written(seed: int) -> None:
    found = swarm.draw(seed)
    assert 25 <= found.nodes <= 60
    assert parse(tomllib.loads(text(found))) == found


def test_the_swarm_leaves_every_kind_of_fault_out_of_many_seeds_and_none_out_of_all() -> None:
    kinds = Counter(
        kind for seed in range(200) for kind in {fault.kind for fault in swarm.draw(seed).faults}
    )
    assert len(kinds) == 14
    assert all(10 <= count <= 140 for count in kinds.values()), kinds


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"nodez": 3}, "unknown key 'nodez'; did you mean 'nodes'"),
        ({"nodes": 0}, "nodes = 0: must be from 1"),
        ({"nodes": "ten"}, "nodes = 'ten': must be a whole number"),
        ({"time": {}}, "'duration_s' is missing"),
        ({"time": {"duration_s": 5.0, "heel_s": 2.0}}, "did you mean 'heal_s'"),
        ({"start": "hot"}, "'cold' or 'warm'"),
        ({"zones": 11}, "zones = 11"),
        ({"gossip": {"probe_interval_s": 0.1}}, "probe_timeout_s must be below"),
        ({"network": {"loss": 1.5}}, r"loss = 1.5: must be from 0 to 1"),
        ({"writes": {"kinds": ["owner", "own"]}}, "'own' is not one of"),
        ({"fault": [{"kind": "crush", "at_s": 1.0}]}, "must be one of crash"),
        ({"fault": [{"kind": "crash"}]}, r"1 \(crash\): 'at_s' is missing"),
        ({"fault": [{"kind": "crash", "at_s": 1.0, "nodes": 11}]}, "the scenario has 10"),
        ({"fault": [{"kind": "crash", "at_s": 1.0, "nodes": ["n10"]}]}, "there is no 'n10'"),
        ({"fault": [{"kind": "crash", "at_s": 1.0, "nodes": "zone 1"}]}, "zones 0 to 0"),
        ({"fault": [{"kind": "crash", "at_s": 30.0}]}, "begins after"),
        ({"fault": [{"kind": "crash", "at_s": 1.0, "disk": "wet"}]}, "'whole', 'torn'"),
        ({"fault": [{"kind": "crash", "at_s": 1.0, "times": 2}]}, "needs every_s"),
        ({"fault": [{"kind": "partition", "at_s": 1.0, "shares": [1.0, 0.5]}]}, "add up to 1"),
        ({"fault": [{"kind": "join", "at_s": 1.0}]}, "at least one node"),
        ({"fault": [{"kind": "link", "at_s": 1.0, "loss": 2.0}]}, "loss = 2"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(
    change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(small(**change))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no scenario 'smoky'.*smoke"):
        load("smoky")


def test_more_nodes_than_the_machine_holds_are_refused_with_what_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runs, "_free_mib", lambda: 200.0)
    with pytest.raises(ScenarioError, match=r"nodes = 2000: .* 200 MiB are free; \d+ nodes would"):
        find("steady", 1, nodes=2000)
    assert find("steady", 1, nodes=100).nodes == 100
    with pytest.raises(ScenarioError, match="must be from 1 to 20000"):
        find("steady", 1, nodes=1_000_000)


def steps(**fault: Any) -> list[Step]:
    return parse(small(fault=[fault])).plan(1)


def test_faults_begin_and_end_when_they_should() -> None:
    begin, end = steps(kind="pause", at_s=3.0, nodes=["n1", "n4"], lasting_s=2.0)
    assert (begin.at_s, end.at_s) == (3.0, 5.0)
    assert begin.names == end.names == ("n1", "n4")
    assert (begin.begins, end.begins) == (True, False)
    (only,) = steps(kind="crash", at_s=3.0, nodes=0.2)
    assert only.begins, "for good"
    _, end = steps(kind="silence", at_s=3.0)
    assert end.at_s == 20.0, "what is no crash ends with the faults"
    _, end = steps(kind="silence", at_s=18.0, lasting_s=9.0)
    assert end.at_s == 20.0
    times = [step.at_s for step in steps(kind="cut", at_s=1, lasting_s=1, times=3, every_s=4)]
    assert times == [1, 2, 5, 6, 9, 10]


def test_a_spread_fault_hits_each_node_at_its_own_time() -> None:
    found = steps(kind="crash", at_s=3.0, nodes=0.5, spread_s=4.0, lasting_s=1.0)
    begins = [step for step in found if step.begins]
    assert len(begins) == 5
    assert len({step.at_s for step in begins}) == 5
    assert all(3.0 <= step.at_s <= 7.0 for step in begins)


def test_a_partition_has_everybody_on_one_side() -> None:
    begin, _ = steps(kind="partition", at_s=1.0, shares=[0.5, 0.3, 0.2], lasting_s=1.0)
    assert [len(side) for side in begin.others] == [5, 3, 2]
    assert sorted(name for side in begin.others for name in side) == sorted(names_of(10))


def test_leaving_a_fault_out_leaves_the_others_as_they_were() -> None:
    both = Scenario(
        "both", 30, Time(20.0), faults=(Crash(at_s=1.0, nodes=3), Crash(at_s=2.0, nodes=3))
    )
    one = Scenario("one", 30, Time(20.0), faults=both.faults[1:])
    assert both.plan(5)[1].names == one.plan(5)[0].names


def test_writes_are_drawn_from_the_seed_and_removes_follow_their_adds() -> None:
    found = load("churn")
    writes = workload(found, 3)
    assert writes == workload(found, 3)
    assert writes != workload(found, 4)
    added: set[tuple[str, int]] = set()
    for write in writes:
        if write.kind == "add":
            added.add((write.key, write.number))
        elif write.kind == "remove":
            added.remove((write.key, write.number))
    assert {write.kind for write in writes} == {"owner", "fleet", "add", "remove"}


def test_only_what_differs_from_the_default_is_written() -> None:
    assert tables(parse(small())) == small()
