"""The city: the daemon's placement, gossip and store in one world, accelerators emulated."""

import os
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simnet.city import alone
from simnet.city.city import City
from simnet.city.load import Load
from simnet.city.outcome import Outcome
from simnet.city.policy import NAIVE, OURS, Policy
from simnet.city.scenario import CityScenario
from simnet.link import Name
from simnet.scenario import SCENARIOS, Scenario, load, parse, text

S1 = load("city")


def of(scenario: Scenario) -> CityScenario:
    assert scenario.city is not None
    return scenario.city


def short(cameras: int, *, duration_s: float = 4.0, nodes: int = 50) -> Scenario:
    """Return S1, shorter."""
    city = of(S1)
    return replace(
        S1,
        nodes=nodes,
        zones=max(1, nodes // 12),
        time=replace(S1.time, duration_s=duration_s),
        city=replace(city, warmup_s=1.0, drain_s=1.0, cameras=replace(city.cameras, count=cameras)),
    )


def run(scenario: Scenario, policy: Policy = OURS, seed: int = 1) -> Outcome:
    return alone.run(alone.settle(Load(scenario, seed), policy))


class Ledger:
    """A watch that keeps what it is told."""

    def __init__(self) -> None:
        self.ends: dict[Hashable, str] = {}
        self.left_s: dict[Hashable, list[tuple[float, float, int]]] = {}
        self.fullest = 0

    def frame_came(self, at_s: float, frame: Hashable, tier: int, left_s: float) -> None:
        assert frame not in self.ends
        self.ends[frame] = ""

    def frame_ended(self, at_s: float, frame: Hashable, reason: str) -> None:
        assert self.ends[frame] == ""
        self.ends[frame] = reason

    def forwarded(self, at_s: float, frame: Hashable, left_s: float, hops: int) -> None:
        assert self.ends[frame] == "" or hops == 2
        self.left_s.setdefault(frame, []).append((at_s, left_s, hops))

    def queued(self, at_s: float, who: Name, what: str, length: int, limit: int) -> None:
        assert length <= limit
        self.fullest = max(self.fullest, length)


def watched(
    scenario: Scenario, act: Callable[[City], object], seed: int = 1
) -> tuple[Outcome, Ledger, City]:
    """Run a city while something is done to it; see what its watch was told."""
    ledger = Ledger()
    city = alone.settle(Load(scenario, seed), watch=ledger)
    act(city)
    return alone.run(city), ledger, city


def small_hash() -> str:
    """Return the trace hash of a run in which frames are moved, shed, and lost with their nodes."""
    city = alone.settle(Load(short(80, duration_s=3.0, nodes=12), 3))
    return alone.run(city, die=(1.5, 0.2)).trace_hash


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
    scenario = short(40, duration_s=1.0, nodes=8)
    assert run(scenario, seed=1).trace_hash != run(scenario, seed=2).trace_hash


@pytest.mark.parametrize("policy", [OURS, NAIVE, Policy(centre="best")])
def test_every_frame_ends_once_whatever_the_policy(policy: Policy) -> None:
    given = Load(short(150, duration_s=2.5, nodes=20), 2)
    ledger = Ledger()
    found = alone.run(alone.settle(given, policy, watch=ledger), die=(1.5, 0.2))
    assert found.arrivals == len(given.arrivals) == len(ledger.ends)
    assert found.ends == Counter(ledger.ends.values())
    assert sum(one.arrived for one in found.frames()) == found.arrivals
    assert found.met.total() <= found.ends["answered"]


def test_frames_and_chance_do_not_depend_on_the_policy() -> None:
    scenario = short(60, duration_s=2.0, nodes=12)
    assert Load(scenario, 4).arrivals == Load(scenario, 4).arrivals
    assert run(scenario).arrivals == run(scenario, NAIVE).arrivals


def test_ours_holds_where_the_naive_baseline_collapses() -> None:
    scenario = short(100, duration_s=5.0, nodes=25)
    ours, naive = run(scenario), run(scenario, NAIVE)
    assert ours.dsr > 0.97
    assert naive.dsr < 0.6


def test_under_overload_the_critical_are_served_and_the_others_do_not_starve() -> None:
    found, ledger, _ = watched(short(120, duration_s=6.0, nodes=12), lambda city: None)
    assert found.dsr < 0.95
    assert found.tier_dsr(1) > 0.9
    assert 0.05 < found.tier_dsr(3) < found.tier_dsr(1)
    assert ledger.fullest > 8


def test_a_budget_only_shrinks_on_its_way() -> None:
    found, ledger, _ = watched(short(120, duration_s=3.0, nodes=12), lambda city: None)
    twice = [one for one in ledger.left_s.values() if len(one) > 1]
    assert found.bounced >= len(twice) > 10
    for (first_s, first_left_s, _), (second_s, second_left_s, hops) in twice:
        assert hops == 2
        assert second_left_s <= first_left_s - (second_s - first_s) + 1e-6


def test_what_nodes_plan_with_has_come_by_gossip() -> None:
    city = alone.settle(Load(short(60, nodes=16), 1))
    assert city.world.converged()
    cameras = {camera.name: camera for camera in city.load.cameras}
    everybody = {node.id for node in city.nodes}
    for node in city.nodes:
        specs = node.hosts.specs()
        assert {name: spec.model for name, spec in specs.items()} == {
            name: camera.kind for name, camera in cameras.items()
        }
        assert node.living().keys() == everybody
        assert set(node.planner.plan.primary) == set(cameras)
        assert {*node.view.peers, node.id} == everybody
        assert all(peer.service_ms for peer in node.view.peers.values())


def test_news_that_are_seldom_cost_quality_only() -> None:
    scenario = short(60, duration_s=6.0, nodes=25)
    slow = replace(scenario, gossip=replace(scenario.gossip, volatile_interval_s=2.0))
    found = run(slow)
    assert found.plans > 50
    assert found.dsr > 0.97


def test_dead_nodes_lose_what_they_hold_and_their_cameras_find_another_home() -> None:
    scenario = short(60, duration_s=11.0, nodes=18)
    city = alone.settle(Load(scenario, 1))
    found = alone.run(city, die=(4.0, 1 / 6))
    assert found.ends["lost: its node is dead"] > 0
    assert found.epoch_dsr(2) < 0.97
    assert found.epoch_dsr(5) > 0.97
    dead = {node.index for node in city.nodes if not node.up}
    for camera in city.load.cameras:
        if camera.home in dead:
            assert [node.runs(camera.name) for node in city.nodes].count(True) == 1


def test_a_node_that_restarts_has_its_cameras_back_and_an_empty_queue() -> None:
    def act(city: City) -> None:
        host = next(node.host for node in city.nodes if any(node.hosted))
        host.seeds.append(city.nodes[-1].host.address)
        city.world.after(1.0, host.crash)
        city.world.after(2.0, host.start)

    found, ledger, city = watched(short(40, duration_s=8.0, nodes=10), act)
    node = next(node for node in city.nodes if node.run == 2)
    own = {camera.name for camera in city.load.cameras if camera.home == node.index}
    assert own <= set(node.hosted)
    assert found.ends["lost: its node is dead"] > 0
    last = max(name for name in ledger.ends if city.load.cameras[name[0]].home == node.index)  # type: ignore[index,type-var]
    assert ledger.ends[last] == "answered"


def test_what_is_sent_to_a_node_that_cannot_be_reached_is_given_up_and_it_is_left_alone() -> None:
    def act(city: City) -> None:
        (busiest,) = Counter(
            node.planner.planned(name) or node.id for node in city.nodes for name in node.hosted
        ).most_common(1)
        host = city.decider.at[busiest[0]].host
        city.world.after(1.0, city.world.network.silence, [host.name], "silence")

    found, ledger, _ = watched(short(50, duration_s=5.0, nodes=12), act)
    assert 0 < found.ends["lost: no answer"] < 0.05 * found.arrivals
    assert found.ends.total() == found.arrivals == len(ledger.ends)
    assert found.epoch_dsr(2) > 0.7


def test_a_node_that_stands_still_answers_nobody_and_goes_on_where_it_was() -> None:
    def act(city: City) -> None:
        host = next(node.host for node in city.nodes if any(node.hosted))
        city.world.after(1.0, host.hold, 0.4)

    found, ledger, _ = watched(short(40, duration_s=3.0, nodes=10), act)
    assert found.ends["lost: its node stands still"] > 0
    assert found.ends.total() == len(ledger.ends)
    assert "lost: its node is dead" not in found.ends


def test_a_city_is_written_so_that_it_reads_the_same() -> None:
    assert parse(tomllib.loads(text(S1))) == S1


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("rate_hz", "rate_herz", r"\[city\] cameras: unknown key 'rate_herz'"),
        ("epoch_s = 2.0", "", r"\[city\]: 'epoch_s' is missing"),
        ("[city.bursts]", "[city.burst]", "did you mean 'bursts'"),
        ("share = 0.60", "share = 0.50", "tier share: the shares add up to 0.9"),
        ("reply_ms = 1.5", "reply_ms = -1.5", "ways reply_ms = -1.5: must not be negative"),
        ('"quiet.ours" = 0.25', '"quite.ours" = 0.25', "no trace 'quite.ours'"),
        ("queue = 64", "queue = true", "queue = True: must be a whole number"),
        ('provider = "cuda"', 'provider = "gpu"', "profile gpu: no provider 'gpu'"),
        (", vit = 75.0", "", "profile npu: no service time of 'vit'"),
    ],
)
def test_a_scenario_that_makes_no_sense_is_refused_with_the_reason(
    tmp_path: Path, old: str, new: str, reason: str
) -> None:
    given = (SCENARIOS / "city.toml").read_text()
    assert old in given
    path = tmp_path / "city.toml"
    path.write_text(given.replace(old, new, 1))
    with pytest.raises(ValueError, match=reason):
        load(path)


def test_a_scenario_without_a_city_is_no_load() -> None:
    scenario: Any = replace(S1, city=None)
    with pytest.raises(ValueError, match="is no city"):
        Load(scenario, 1)
