"""The city: the daemon's placement functions among emulated nodes, in virtual time."""

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from simnet.city import City
from simnet.city_decide import NAIVE, OURS, Policy
from simnet.city_load import Load
from simnet.city_outcome import Outcome
from simnet.city_scenario import SCENARIOS, Scenario, load
from simnet.epidemic import hops

S1 = load(SCENARIOS / "s1.toml")


def short(cameras: int, *, duration_s: float = 4.0, nodes: int = 50) -> Scenario:
    """Return S1, shorter."""
    return replace(
        S1,
        time=replace(S1.time, duration_s=duration_s, warmup_s=1.0, drain_s=1.0),
        fleet=replace(S1.fleet, nodes=nodes),
        cameras=replace(S1.cameras, count=cameras),
    )


def run(scenario: Scenario, policy: Policy = OURS, seed: int = 1) -> Outcome:
    return City(Load(scenario, seed), policy).run()


def small_hash() -> str:
    """Return the trace hash of a run in which frames are moved, shed, and lost with their nodes."""
    load_ = Load(short(80, duration_s=5.0, nodes=12), 3)
    return City(load_, die=(2.5, 0.2)).run().trace_hash


def test_the_same_seed_gives_the_same_trace_in_every_process() -> None:
    code = "from tests.simnet.test_city import small_hash; print(small_hash())"
    hashes = {small_hash()}
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        found = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not found.returncode, found.stderr
        hashes.add(found.stdout.strip())
    assert len(hashes) == 1


def test_another_seed_gives_another_trace() -> None:
    scenario = short(40, duration_s=2.0, nodes=12)
    assert run(scenario, seed=1).trace_hash != run(scenario, seed=2).trace_hash


@pytest.mark.parametrize("policy", [OURS, NAIVE, Policy(centre="best")])
def test_every_frame_ends_once_whatever_the_policy(policy: Policy) -> None:
    scenario = short(150, duration_s=2.5, nodes=20)
    found = City(Load(scenario, 2), policy, die=(1.5, 0.2)).run()
    assert found.arrivals == len(Load(scenario, 2).arrivals)
    assert found.ends.total() == found.arrivals
    assert found.met.total() <= found.ends["answered"]


def test_frames_and_chance_do_not_depend_on_the_policy() -> None:
    scenario = short(60, duration_s=2.0)
    assert Load(scenario, 4).arrivals == Load(scenario, 4).arrivals
    assert run(scenario).arrivals == run(scenario, NAIVE).arrivals


def test_ours_holds_where_the_naive_baseline_collapses() -> None:
    scenario = short(200, duration_s=6.0)
    ours, naive = run(scenario), run(scenario, NAIVE)
    assert ours.dsr > 0.97
    assert naive.dsr < 0.6


def test_under_overload_the_critical_are_served_and_the_others_do_not_starve() -> None:
    found = run(short(120, duration_s=6.0, nodes=12))
    assert found.dsr < 0.95
    assert found.tier_dsr(1) > 0.97
    assert 0.05 < found.tier_dsr(3) < found.tier_dsr(1)


def test_nodes_to_which_the_same_has_come_plan_the_same() -> None:
    scenario = short(60, duration_s=2.5, nodes=16)
    city = City(Load(scenario, 1))
    city.run()
    by_news: dict[tuple[int, ...], list[dict[str, bytes]]] = {}
    for node in city.nodes:
        assert node.plan is not None
        by_news.setdefault(node.heard, []).append(dict(node.plan.primary))
    assert any(len(plans) > 1 for plans in by_news.values())
    assert all(plan == plans[0] for plans in by_news.values() for plan in plans)


def test_views_that_differ_for_long_cost_quality_only() -> None:
    scenario = short(100, duration_s=6.0)
    slow = replace(scenario, gossip=replace(scenario.gossip, period_ms=2000.0))
    found = run(slow)
    assert found.plans > 10
    assert found.dsr > 0.97


def test_dead_nodes_lose_what_they_hold_and_their_cameras_find_another_home() -> None:
    scenario = short(80, duration_s=11.0, nodes=24)
    found = City(Load(scenario, 1), die=(4.0, 1 / 6)).run()
    assert found.ends["lost: its node is dead"] > 0
    assert found.epoch_dsr(2) < 0.97
    assert found.epoch_dsr(4) > 0.97
    calm = run(scenario)
    assert calm.ends["lost: its node is dead"] == 0


def test_news_reach_everybody_and_take_a_round_a_hop() -> None:
    found = hops(40, 3, random.Random(1))
    assert all(found[i][i] == 0 for i in range(40))
    assert all(1 <= found[i][j] <= 12 for i in range(40) for j in range(40) if i != j)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("rate_hz", "rate_herz", "rate_herz"),
        ("period_ms = 200.0", "", "period_ms"),
        ("[gossip]", "[gosip]", "gosip|gossip"),
        ("share = 0.60", "share = 0.50", "add up"),
        ("keep_s = 3.0", "keep_s = -3.0", "negative"),
        ('"quiet.ours" = 0.25', '"quite.ours" = 0.25', "quite.ours"),
    ],
)
def test_a_scenario_that_makes_no_sense_is_refused_with_the_reason(
    tmp_path: Path, old: str, new: str, reason: str
) -> None:
    text = (SCENARIOS / "s1.toml").read_text()
    assert old in text
    path = tmp_path / "s1.toml"
    path.write_text(text.replace(old, new, 1))
    (tmp_path / "delta_traces.json").write_text((SCENARIOS / "delta_traces.json").read_text())
    with pytest.raises(ValueError, match=reason):
        load(path)
