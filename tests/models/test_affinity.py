"""The affinity model from observing to a promoted model, and what it does without one."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.accelerators import worker_environment
from models.affinity.affinity import CURRENT_NAME, SHADOW_NAME, Affinity
from models.affinity.features import COLUMNS, Features
from models.affinity.forest import Forest
from models.affinity.learned import FORMAT, About, load, pack
from models.affinity.traces import Trace, Traces
from models.wire import ModelError

SPEED = {("here", "cpu"): 1.0, ("here", "cuda"): 0.2, ("there", "cpu"): 1.6, ("there", "cuda"): 0.3}


def candidate(rng: random.Random) -> Features:
    node, accelerator = rng.choice(list(SPEED))
    variant = rng.choice(["small", "large"])
    return Features("detector", variant, rng.choice([1.0, 0.5]), rng.choice([320, 640, 960]), 1,
                    rng.randrange(4), rng.choice([math.nan, 45.0, 80.0]), node, accelerator,
                    10.0 if variant == "small" else 20.0)  # fmt: skip


def truth_ms(one: Features) -> float:
    pixels = (one.resolution * one.effort / 640) ** 2
    return one.prior_ms * pixels * SPEED[one.node, one.accelerator] * (1 + 0.2 * one.queue)


def rows(count: int, seed: int = 1, slower: float = 1.0) -> list[Trace]:
    rng, made = random.Random(seed), []
    for number in range(count):
        one = candidate(rng)
        spent_ms = truth_ms(one) * slower * rng.lognormvariate(0, 0.1)
        made.append(Trace(1e9 + number, one, spent_ms, 0.02 * spent_ms))
    return made


def observe(affinity: Affinity, made: list[Trace]) -> None:
    for one in made:
        affinity.observe(one.features, one.actual_ms, one.energy_j, now_s=one.made_s)


def table(path: Path, made: list[Trace]) -> Path:
    traces = Traces(path)
    for one in made:
        traces.append(one)
    traces.close()
    return path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], env=worker_environment(), text=True,
                          capture_output=True, check=False)  # fmt: skip


def train(folder: Path, made: list[Trace]) -> subprocess.CompletedProcess[str]:
    path = table(folder / "training.db", made)
    return run("-m", "models.affinity.training", "--traces", str(path), "--out", str(folder))


@cache
def trained(folder: Path, count: int, slower: float = 1.0) -> bytes:
    """Return the file of a model of so many rows."""
    folder = folder / f"{count}-{slower}"
    folder.mkdir(parents=True)
    done = train(folder, rows(count, slower=slower))
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout)["path"]).read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("affinity")


@pytest.fixture(scope="module")
def direct(folder: Path) -> bytes:
    return trained(folder, 2_000)


def ready(path: Path, model: bytes) -> Affinity:
    (path / CURRENT_NAME).write_bytes(model)
    affinity = Affinity(path)
    assert affinity.trouble == ""
    return affinity


def offered(made: bytes, path: Path) -> Path:
    path.write_bytes(made)
    return path


LIGHTGBM_PREDICTS = """
import json, sys, lightgbm
rows = json.loads(sys.stdin.read())
data = open(sys.argv[1], "rb").read().split(b"\\n", 2)
about = json.loads(data[1])
text = data[2][: about["latency_bytes"]].decode()
print(json.dumps(list(lightgbm.Booster(model_str=text).predict(rows, num_threads=1))))
"""


def test_scores_are_exactly_lightgbms_own(tmp_path: Path, direct: bytes) -> None:
    model = offered(direct, tmp_path / "m")
    rng = random.Random(4)
    choices = [*range(-2, 6), math.nan, 0.5, 1e300]
    asked = [[rng.choice([*choices, rng.uniform(0, 1000)]) for _ in range(COLUMNS)]
             for _ in range(500)]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", LIGHTGBM_PREDICTS, str(model)], text=True,
                          input=json.dumps(asked), capture_output=True, check=True)  # fmt: skip
    line, forests = direct.split(b"\n", 2)[1:]
    forest = Forest(forests[: json.loads(line)["latency_bytes"]], COLUMNS)
    assert forest.predict([number for row in asked for number in row]) == json.loads(done.stdout)
    assert forest.predict([]) == []


def test_the_same_rows_give_the_same_bytes(tmp_path: Path, direct: bytes) -> None:
    assert trained(tmp_path, 2_000) == direct


def test_the_daemons_process_stays_small_alone_and_able_to_fork(
    tmp_path: Path, direct: bytes
) -> None:
    (tmp_path / CURRENT_NAME).write_bytes(direct)
    done = run("-c", f"""
import os, sys
from pathlib import Path
from models.affinity.affinity import Affinity
from models.affinity.features import Features
affinity = Affinity(Path({str(tmp_path)!r}))
one = Features("detector", "small", 1.0, 640, 1, 0, 50.0, "here", "cpu", 10.0)
before = affinity.predict_ms([one] * 9)
assert affinity.state(0.0)["stage"] == "direct"
assert not {{"numpy", "lightgbm", "scipy", "asyncio"}} & set(sys.modules), sys.modules
assert len(os.listdir("/proc/self/task")) == 1
child = os.fork()
if child == 0:
    os._exit(0 if affinity.predict_ms([one] * 9) == before else 1)
assert os.waitpid(child, 0)[1] == 0
""")  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_cold_start_ladder(tmp_path: Path, folder: Path) -> None:
    few = train(tmp_path, rows(199))
    assert few.returncode == 1
    assert "199 traces are too few; 200 are needed" in few.stderr
    asked = [candidate(random.Random(seed)) for seed in range(300)]

    def error(affinity: Affinity) -> float:
        return sum(
            abs(math.log(predicted / truth_ms(one)))
            for predicted, one in zip(affinity.predict_ms(asked), asked, strict=True)
        ) / len(asked)

    prior = Affinity(tmp_path)
    assert prior.predict_ms(asked) == pytest.approx([one.prior_ms for one in asked])
    errors = [error(prior)]
    for count, stage in ((200, "residual"), (999, "residual"), (1_000, "direct")):
        affinity = ready(tmp_path, trained(folder, count))
        assert affinity.state(0.0)["stage"] == stage
        errors.append(error(affinity))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.15


def test_training_is_wanted_at_each_step_of_the_ladder_and_then_now_and_again(
    tmp_path: Path,
) -> None:
    traces = Traces(tmp_path / "traces.db")
    affinity = Affinity(tmp_path, traces=traces)
    wanted = []
    for number, one in enumerate(rows(3_700, seed=2)):
        observe(affinity, [one])
        if number % 100 == 99 and traces.flush() and affinity.wants_training():
            wanted.append((number + 1, affinity.state(0.0)["stage"]))
            out = tmp_path / "out"
            out.mkdir(exist_ok=True)
            done = subprocess.run(affinity.begin_training(out), env=worker_environment(),
                                  capture_output=True, check=True)  # fmt: skip
            assert affinity.adopt(Path(json.loads(done.stdout)["path"]))
            assert not affinity.wants_training()
    traces.close()
    assert wanted[:2] == [(200, "prior"), (1_000, "residual")]
    assert [stage for _, stage in wanted[2:]] == ["direct"] * len(wanted[2:])
    assert len(wanted) == 4
    assert affinity.state(0.0)["rows"] == 3_700


def test_a_promoted_model_survives_a_restart(tmp_path: Path, direct: bytes) -> None:
    affinity = Affinity(tmp_path)
    assert affinity.adopt(offered(direct, tmp_path / "new"))
    assert affinity.state(0.0)["stage"] == "prior"
    observe(affinity, rows(40, seed=3))
    again = Affinity(tmp_path)  # in the middle of the contest
    observe(again, rows(120, seed=3))
    state = again.state(1e9 + 4_000)
    assert (state["stage"], state["model_rows"], state["shadow_error"]) == ("direct", 2_000, None)
    assert state["model_age_s"] == 2_001
    assert (tmp_path / CURRENT_NAME).read_bytes() == direct
    assert not (tmp_path / SHADOW_NAME).exists()
    assert Affinity(tmp_path).state(0.0)["stage"] == "direct"


def test_a_worse_model_is_never_promoted(tmp_path: Path, direct: bytes, folder: Path) -> None:
    affinity = ready(tmp_path, direct)
    assert affinity.adopt(offered(trained(folder, 200), tmp_path / "new"))
    observe(affinity, rows(450, seed=3))
    assert affinity.state(0.0)["model_rows"] == 2_000
    assert not (tmp_path / SHADOW_NAME).exists()
    assert (tmp_path / CURRENT_NAME).read_bytes() == direct


def test_a_model_that_the_prior_beats_is_dropped(tmp_path: Path, direct: bytes) -> None:
    affinity = ready(tmp_path, direct)
    made = [one._replace(actual_ms=one.features.prior_ms) for one in rows(250, seed=3)]
    observe(affinity, made)
    assert affinity.state(0.0)["stage"] == "prior"
    assert Affinity(tmp_path).state(0.0)["stage"] == "prior"


def test_a_file_that_cannot_be_removed_costs_no_answer(tmp_path: Path, direct: bytes) -> None:
    affinity = ready(tmp_path, direct)
    (tmp_path / CURRENT_NAME).unlink()
    (tmp_path / CURRENT_NAME).mkdir()  # what only a disk in trouble refuses otherwise
    observe(affinity, [one._replace(actual_ms=one.features.prior_ms) for one in rows(250, seed=3)])
    assert affinity.state(0.0)["stage"] == "prior"
    assert "cannot be removed" in affinity.trouble


def test_a_slowdown_is_corrected_and_raises_the_alarm(tmp_path: Path, direct: bytes) -> None:
    affinity = ready(tmp_path, direct)
    observe(affinity, rows(400, seed=5))
    assert not affinity.drifting
    one = Features("detector", "small", 1.0, 640, 1, 0, 45.0, "here", "cpu", 10.0)
    before = affinity.predict_ms([one])[0]
    observe(affinity, rows(400, seed=6, slower=2.0))
    assert affinity.predict_ms([one])[0] == pytest.approx(2 * before, rel=0.15)
    state = affinity.state(0.0)
    assert (affinity.drifting, state["drifting"]) == (True, True)
    assert state["bias"]["here/cpu"] == pytest.approx(math.log(2), abs=0.15)


def test_what_the_model_never_saw_is_priced_by_the_prior(tmp_path: Path, direct: bytes) -> None:
    affinity = ready(tmp_path, direct)
    known = Features("detector", "small", 1.0, 640, 1, 0, 45.0, "here", "cpu", 10.0)
    asked = [known._replace(kind="segmenter", prior_ms=33.0), known,
             known._replace(accelerator="openvino", prior_ms=44.0)]  # fmt: skip
    strange, usual, other = affinity.predict_ms(asked)
    assert (strange, other) == (pytest.approx(33.0), pytest.approx(44.0))
    assert usual == pytest.approx(10.0, rel=0.3)
    (new_node,) = affinity.predict_ms([known._replace(node="yonder")])
    assert 1.0 < new_node < 30.0


def test_energy_by_the_model_else_by_the_declared_watts(tmp_path: Path, direct: bytes) -> None:
    one = Features("detector", "small", 1.0, 640, 1, 0, 45.0, "here", "cpu", 10.0)
    prior = Affinity(tmp_path, watts={"cpu": 20.0})
    assert prior.predict_j([one]) == pytest.approx([20.0 * 0.010])
    assert prior.state(0.0)["energy"] == "declared"
    learned = ready(tmp_path, direct)
    assert learned.predict_j([one]) == pytest.approx([0.02 * 10.0], rel=0.3)
    strange = one._replace(kind="segmenter")
    assert learned.predict_j([strange, one])[0] == pytest.approx(15.0 * 0.010)


@pytest.mark.parametrize("number", [0.0, -1.0, math.nan, math.inf])
def test_a_cost_that_cannot_be_is_refused(tmp_path: Path, number: float) -> None:
    affinity = Affinity(tmp_path)
    one = rows(1)[0].features
    with pytest.raises(ValueError, match="cannot have cost"):
        affinity.observe(one, number, now_s=1.0)
    with pytest.raises(ValueError, match="cannot have cost"):
        affinity.observe(one, 5.0, number, now_s=1.0)
    assert affinity.state(1.0)["bias"] == {}


@given(st.data())
def test_no_damage_reaches_the_library(folder: Path, data: st.DataObject) -> None:
    model = trained(folder, 200)
    path = folder / "damaged"
    if data.draw(st.booleans()):
        damaged = model[: data.draw(st.integers(0, len(model) - 1))]
    else:
        place = data.draw(st.integers(0, len(model) - 1))
        flipped = model[place] ^ data.draw(st.integers(1, 255))
        damaged = model[:place] + bytes([flipped]) + model[place + 1 :]
    with pytest.raises(ModelError, match=r"damaged|digest"):
        load(offered(damaged, path))


ABOUT = About("direct", 10, 2, 0.0, 0.1, [0.0] * 9, [["k", "v", "a"]], ["n"], 4, 0)


@pytest.mark.parametrize(
    "model",
    [
        pack(ABOUT, b"oops", b""),
        pack(ABOUT, b"too long", b""),
        FORMAT + b" ",
        b"",
    ],
)
def test_a_bad_model_keeps_the_old_one(tmp_path: Path, direct: bytes, model: bytes) -> None:
    affinity = ready(tmp_path, direct)
    asked = [candidate(random.Random(seed)) for seed in range(20)]
    before = affinity.predict_ms(asked)
    assert not affinity.adopt(offered(model, tmp_path / "new"))
    assert not affinity.adopt(tmp_path / "absent")
    assert "absent" in affinity.state(0.0)["trouble"][0]
    assert affinity.predict_ms(asked) == before
    (tmp_path / CURRENT_NAME).write_bytes(model)
    restarted = Affinity(tmp_path)
    assert restarted.trouble
    assert restarted.predict_ms(asked) == pytest.approx([one.prior_ms for one in asked])


def test_a_forest_of_other_columns_is_refused(direct: bytes) -> None:
    line, forests = direct.split(b"\n", 2)[1:]
    with pytest.raises(ModelError, match="not 11"):
        Forest(forests[: json.loads(line)["latency_bytes"]], 11)


def test_without_the_library_the_prior_answers(tmp_path: Path, direct: bytes) -> None:
    (tmp_path / CURRENT_NAME).write_bytes(direct)
    done = run("-c", f"""
import sys
sys.modules["lightgbm"] = None  # as if it were not installed
from pathlib import Path
from models.affinity.affinity import Affinity
from models.affinity.features import Features
affinity = Affinity(Path({str(tmp_path)!r}))
one = Features("detector", "small", 1.0, 640, 1, 0, 50.0, "here", "cpu", 10.0)
for now_s in range(40):
    affinity.observe(one, 30.0, now_s=now_s)
print(affinity.predict_ms([one])[0], affinity.state(0.0)["trouble"][0])
""")  # fmt: skip
    predicted, trouble = done.stdout.split(" ", 1)
    assert float(predicted) == pytest.approx(30.0, rel=0.2)
    assert "install lightgbm" in trouble
