"""The same verdicts whoever runs the seeds, whatever befalls the workers."""

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from simnet.outcome import Outcome
from simnet.sweep import sweep
from tests.simnet.sweeping import deadly, small

ROOT = Path(__file__).parents[2]
SEEDS = 6


def survived(folder: Path) -> functools.partial[Outcome]:
    """The task that has had its deaths."""
    for seed in (1, 4):
        (folder / str(seed)).touch()
    return functools.partial(small, folder)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Each seed's verdict in this process."""
    task = survived(tmp_path_factory.mktemp("here"))
    return {one.seed: one.verdict for one in sweep(task, range(SEEDS), workers=1)}


def by_another(python: str, engine: str, folder: Path) -> dict[int, str]:
    """Each seed's verdict in a sweep whose workers are killed on the way."""
    command = [python, "-m", "tests.simnet.sweeping", engine, str(folder), str(SEEDS)]
    told = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False
    )
    assert told.returncode == 0, told.stderr[-2000:]
    assert sorted(path.name for path in folder.iterdir()) == ["1", "4"]
    pairs = [json.loads(line) for line in told.stdout.splitlines()]
    assert len(pairs) == SEEDS, "a seed must be told once"
    return dict(pairs)


def test_a_task_that_raises_is_a_failed_seed_with_its_traceback(tmp_path: Path) -> None:
    (outcome,) = sweep(survived(tmp_path), [3], workers=1)
    assert outcome.violation is not None
    assert outcome.violation.invariant == "exception"
    assert outcome.violation.what == "KeyError: 'three'"
    assert any("in small" in line for line in outcome.violation.last)


def test_processes_whose_workers_are_killed_give_the_same_verdicts(
    expected: dict[int, str], tmp_path: Path
) -> None:
    assert by_another(sys.executable, "processes", tmp_path) == expected


def test_a_seed_that_always_kills_its_worker_fails_and_the_others_go_on(
    expected: dict[int, str],
) -> None:
    outcomes = {one.seed: one for one in sweep(deadly, range(4), workers=2)}
    lost = outcomes.pop(2).violation
    assert lost is not None
    assert (lost.invariant, "died 3 times" in lost.what) == ("worker", True)
    assert "SIGKILL" in lost.what
    assert sorted(outcomes) == [0, 1, 3]
    assert outcomes[0].verdict == expected[0]


def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    survived(tmp_path)
    command = [sys.executable, "-m", "tests.simnet.sweeping", "processes", str(tmp_path)]
    sweeper = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert sweeper.stdout is not None
    try:
        for _ in range(3):
            assert sweeper.stdout.readline()
        os.killpg(sweeper.pid, signal.SIGINT)  # as a terminal does: to all of them
        # Every process of the sweep holds these pipes: they end when the last one has.
        _, errors = sweeper.communicate(timeout=60)
    finally:
        if sweeper.poll() is None:
            os.killpg(sweeper.pid, signal.SIGKILL)
            sweeper.communicate()
    assert sweeper.returncode == -signal.SIGINT
    assert errors.count("KeyboardInterrupt") == 1, "the workers say nothing"


def test_a_sweep_that_is_left_early_ends_its_workers() -> None:
    outcomes = sweep(deadly, iter(lambda: 0, 1), workers=2)
    next(outcomes)
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = {int(pid) for pid in children.read_text().split()}
    outcomes.close()  # type: ignore[attr-defined]
    after = {int(pid) for pid in children.read_text().split()}
    assert len(before - after) == 2


def test_what_cannot_be_swept_is_refused() -> None:
    with pytest.raises(ValueError, match="processes, ray"):
        sweep(deadly, [1], engine="threads")
    with pytest.raises(ValueError, match="at least 1"):
        sweep(deadly, [1], workers=0)
    with pytest.raises(ValueError, match="only the engine 'ray'"):
        sweep(deadly, [1], address="somewhere")


def test_without_ray_the_extra_is_named() -> None:
    code = """
import sys
sys.modules["ray"] = None
from simnet.sweep import sweep
try:
    sweep(len, [1], engine="ray")
except ValueError as error:
    print(error)
"""
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "pip install edge-node[sweep], or leave --engine away" in told.stdout


def test_ray_gives_the_same_verdicts_with_workers_killed(
    expected: dict[int, str], tmp_path: Path
) -> None:
    python = os.environ.get("EDGE_NODE_SWEEP_PYTHON") or str(ROOT / ".venv-sweep/bin/python")
    if not Path(python).exists():
        pytest.skip(
            "EDGE_NODE_SWEEP_PYTHON names no interpreter with the packages of locks/sweep.txt"
        )
    assert by_another(python, "ray", tmp_path) == expected
