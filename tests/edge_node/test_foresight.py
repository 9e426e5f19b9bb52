"""What a task would take: what peers make up, disks and counters that do not do their part."""

import asyncio
import math
import shutil
from functools import partial
from pathlib import Path

import pytest

from edge_node import foresight
from edge_node.decisions import Record
from edge_node.fleet.load import LEAST_MS, MAX_MS, times_of
from edge_node.foresight import Foresight
from edge_node.placement.choose import Decision
from edge_node.placement.view import Option
from edge_node.workers import Inference
from models.affinity.learned import RESIDUAL_ROWS
from models.energy import Meter
from models.manifest import load_manifest
from tests.models.test_energy import rapl

SMALL = load_manifest().variants["small"]
PEER = b"p" * 16


def opened(folder: Path) -> Foresight:
    made = Foresight(folder, lambda node: "cpu", lambda digest: SMALL, lambda: math.nan)
    made.open("cpu")
    return made


def answered(place: Option, service_ms: float = 20.0, outcome: str = "answered") -> Record:
    record = Record("door", 1, SMALL.digest, (SMALL.digest, "full"), 2, 200.0, 0)
    record.decision, record.prior_ms = Decision(place, "plan", (place,)), place.service_ms
    record.attempt(place.node).outcome = outcome
    record.answered(Inference([], SMALL.digest, "small", "full", service_ms, 0.0, [0.0] * 3), 0.02)
    return record


@pytest.mark.parametrize("wait_ms", [0.0, MAX_MS])
@pytest.mark.parametrize("service_ms", [5e-324, 1e-300, LEAST_MS, MAX_MS])
def test_any_times_of_a_peer_give_a_prediction(
    tmp_path: Path, wait_ms: float, service_ms: float
) -> None:
    made = opened(tmp_path)
    option = Option(PEER, wait_ms, service_ms)
    assert 0 < made.foreseen(option, (SMALL.digest, "full")).service_ms < math.inf
    for _ in range(10):
        made.ended(answered(option))
    assert 0 < made.foreseen(option, (SMALL.digest, "full")).service_ms < math.inf
    made.close()
    assert made.state()["trouble"] == []


def test_a_report_cannot_say_that_a_task_takes_no_time() -> None:
    told = {"a": 0, "b": 5e-324, "c": 3.0, "d": -1.0, "e": math.nan, "f": math.inf, "g": "1"}
    assert times_of(told) == {"a": LEAST_MS, "b": LEAST_MS, "c": 3.0}


def test_without_a_folder_the_word_of_the_nodes_counts(tmp_path: Path) -> None:
    (tmp_path / "affinity").write_text("in the way")
    made = opened(tmp_path / "affinity")
    option = Option(PEER, 0.0, 10.0)
    for _ in range(30):
        made.ended(answered(option))
    assert made.foreseen(option, (SMALL.digest, "full")).service_ms > 15.0
    assert "cannot be stored" in made.state()["trouble"][0]
    made.close()


def test_what_a_peer_passed_on_teaches_nothing_of_it(tmp_path: Path) -> None:
    made = opened(tmp_path)
    option = Option(PEER, 0.0, 10.0)
    for _ in range(30):
        made.ended(answered(option, outcome="passed on"))
    assert made.state()["rows"] == 0
    made.close()


def test_energy_is_that_of_the_counters_where_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "sys"
    rapl(root, 0)
    monkeypatch.setattr(foresight, "Meter", partial(Meter, sysfs=root))
    made = opened(tmp_path / "affinity")
    made.measure(0.0)
    rapl(root, 80_000_000)
    made.measure(2.0)
    here = Option(None, 0.0, 10.0)
    made.ended(answered(here, service_ms=50.0))
    assert made.state()["joules"] == pytest.approx(40.0 * 0.05)
    assert made.state()["energy"] == "rapl"
    made.measure(4.0)  # the counter stood still
    made.ended(answered(here))
    assert made.state()["rows"] == 2
    shutil.rmtree(root)
    made.measure(6.0)
    assert made.state()["energy"] == "declared"
    made.close()


def test_a_training_that_cannot_begin_does_not_end_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foresight, "CHECK_S", 0.0)
    folder = tmp_path / "affinity"
    made = opened(folder)
    for number in range(RESIDUAL_ROWS):
        made.ended(answered(Option(PEER, 0.0, 10.0 + number % 7)))
    assert made._traces is not None
    assert made._affinity is not None
    assert made._traces.flush()
    assert made._affinity.wants_training()
    shutil.rmtree(folder)

    async def keep() -> None:
        task = asyncio.create_task(made.keep_trained())
        for _ in range(100):
            await asyncio.sleep(0)
        assert not task.done()
        task.cancel()

    asyncio.run(keep())
    made.close()
