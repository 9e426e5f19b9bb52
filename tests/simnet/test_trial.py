"""Whole runs: the scenarios hold, every deliberate defect is found, and the same comes again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from simnet import plants, scenario, trial
from simnet.checkers import INVARIANTS
from simnet.faults import Crash, Partition
from simnet.outcome import Outcome
from simnet.scenario import Scenario, Time, Writes, load
from simnet.shrink import shrink

QUICK = ["smoke", "upgrade", "poison", "slow-tenth", "power-cut", "overload", "churn", "crossing"]
HUGE = [name for name in scenario.names() if name not in QUICK]
SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"


def hold(name: str, seed: int) -> Outcome:
    found = trial.run(load(name), seed)
    assert found.passed, found.violation
    return found


@pytest.mark.parametrize("name", QUICK)
def test_scenario_holds(name: str) -> None:
    hold(name, 1)


@pytest.mark.skipif(not SOAK, reason="takes minutes: make soak")
@pytest.mark.parametrize("name", HUGE)
def test_huge_scenario_holds(name: str) -> None:
    hold(name, 1)


@pytest.mark.skipif(not SOAK, reason="more seeds: make soak")
@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("seed", range(2, 12))
def test_scenario_holds_for_many_seeds(name: str, seed: int) -> None:
    hold(name, seed)


@pytest.mark.parametrize("plant", plants.PLANTS)
def test_every_deliberate_defect_is_found_and_comes_again(plant: str) -> None:
    planted = plants.PLANTS[plant]
    found = trial.run(load(planted.scenario), 1, plant=plant)
    assert found.violation is not None
    assert found.violation.invariant == planted.invariant
    assert found.violation.last, "what happened before it is told"
    again = trial.run(load(planted.scenario), 1, plant=plant)
    assert again.verdict == found.verdict


def test_every_checker_has_a_defect_that_it_finds() -> None:
    assert {plant.invariant for plant in plants.PLANTS.values()} == set(INVARIANTS)


def test_a_defect_is_gone_after_its_run() -> None:
    sound = {name: vars(one.owner)[one.name] for name, one in plants.PLANTS.items()}
    with plants.planted("no-repair"):
        assert vars(plants.PLANTS["no-repair"].owner)["observe"] is not sound["no-repair"]
    assert {name: vars(one.owner)[one.name] for name, one in plants.PLANTS.items()} == sound
    with pytest.raises(ValueError, match="no plant"), plants.planted("weed"):
        pass


def test_the_trace_depends_on_the_seed_and_on_nothing_else() -> None:
    code = "from simnet import runs; print(runs.run('upgrade', {seed}).trace_hash)"
    here = trial.run(load("upgrade"), 5).trace_hash
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(seed=5)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == here
    assert trial.run(load("upgrade"), 6).trace_hash != here


def test_an_outcome_tells_what_happened() -> None:
    found = hold("kill15", 1)
    assert found.nodes == 100
    (rounds,) = found.down_rounds[-1:]
    assert rounds <= 15
    assert len(found.episodes) == 1
    assert found.episodes[0].nodes == 15
    assert found.sights[-1].running == 85
    assert found.sights[-1].agreed == found.sights[-1].seen == 1.0
    assert found.spreads
    assert sum(found.bytes_by_kind.values()) == found.counts["out_bytes"]
    assert all(found.bytes_by_kind[kind] > 0 for kind in ("handshakes", "membership", "state"))
    assert found.loads["sent_bytes_per_s"].mean <= found.loads["sent_bytes_per_s"].most


def test_what_ended_runs_have_sent_is_counted() -> None:
    given = Scenario("ends", 4, Time(6.0), faults=(Crash(at_s=2.0, nodes=2, lasting_s=1.0),))
    found, sizes = trial.Trial(given, 1), list[int]()
    found.world.tap = lambda host, output: sizes.append(len(output.data))
    outcome = found.run()
    assert outcome.passed, outcome.violation
    assert outcome.counts["out_bytes"] == sum(sizes)
    assert outcome.counts["out_datagrams"] == len(sizes)


def test_a_failing_scenario_is_made_smaller() -> None:
    large = Scenario(
        "large",
        20,
        Time(20.0, heal_s=15.0),
        writes=Writes(per_s=4.0),
        faults=(
            Crash(at_s=2.0, nodes=2, lasting_s=3.0),
            Partition(at_s=6.0, lasting_s=8.0),
            Crash(at_s=12.0, nodes=1, lasting_s=2.0),
        ),
    )
    smaller, outcome = shrink(large, 1, plant="no-repair")
    assert outcome.violation is not None
    assert outcome.violation.invariant == "convergence"
    assert smaller.nodes < large.nodes
    assert len(smaller.faults) == 1
    assert trial.run(smaller, 1, plant="no-repair").verdict == outcome.verdict
    with pytest.raises(ValueError, match="does not fail"):
        shrink(scenario.load("smoke"), 1)


FOUND = sorted(Path(__file__).parent.glob("found/*.toml"))


@pytest.mark.parametrize("path", FOUND, ids=[path.stem for path in FOUND])
def test_what_the_simulator_has_found_once_stays_mended(path: Path) -> None:
    """Each file is a scenario that failed, made smaller, with the seed it failed with."""
    first = path.read_text().splitlines()[0]
    seed = int(first.rpartition("seed ")[2])
    outcome = trial.run(load(path), seed)
    assert outcome.passed, outcome.violation
