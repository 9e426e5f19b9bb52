"""Half effort: a smaller canvas, a dense pass, its own cost; the ladder's state stays as it was."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from functools import cache as once
from pathlib import Path

import numpy as np
import pytest

from models.accelerators import AcceleratorSpec
from models.engine import Answer, Engine, Job, View
from models.images import Canvas, Scaler
from models.manifest import load_manifest
from models.sessions import Session, open_warm
from models.tasks import cell_count
from models.wire import EFFORTS, Effort, Inference, ModelError, ModelFile
from tests.clips import model_file, noisy, picture, tiny_detector

CPU = AcceleratorSpec("cpu0", "cpu")
SMALL, LARGE = (load_manifest().variants[name] for name in ("small", "large"))
PATIENCE_S = 20.0


@once
def session() -> Session:
    return open_warm(SMALL, CPU)


@pytest.fixture
def engine() -> Iterator[Engine]:
    one = Engine(CPU, on_cache_change=lambda holding: None, on_load_change=lambda: None)
    one.start()
    one.load(SMALL)
    yield one
    one.stop()


def look(engine: Engine, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> View:
    return engine.look("a", SMALL.digest, pixels, Scaler())


def ask(engine: Engine, view: View | None, effort: Effort, digest: str = SMALL.digest) -> Inference:
    replies: queue.Queue[Answer] = queue.Queue()
    job = Job("a", digest, picture(), view, time.monotonic(), replies.put, effort)
    engine.submit(job, deadline_s=1e12, tier=2)
    answer = replies.get(timeout=PATIENCE_S)
    assert isinstance(answer, Inference)
    return answer


@pytest.mark.parametrize(("width", "height"), [(640, 368), (362, 640), (320, 240), (321, 33)])
def test_a_halved_canvas_shows_the_same_and_fits_the_model(width: int, height: int) -> None:
    full = session().canvas(picture(width, height), Scaler())
    half = session().halved(full)
    rows, columns = half.pixels.shape[:2]
    assert not rows % SMALL.spec["input"]["multiple"]
    assert not columns % SMALL.spec["input"]["multiple"]
    assert rows * columns < 0.6 * full.pixels.shape[0] * full.pixels.shape[1]
    assert (half.width, half.height) == (full.width // 2, full.height // 2)
    shown = half.pixels[: half.height, : half.width].astype(int)
    means = Scaler().resize(full.pixels[: 2 * half.height, : 2 * half.width], *shown.shape[1::-1])
    assert np.abs(shown - means).mean() < 1
    assert (half.pixels[full.pixels.shape[0] // 2 :] == SMALL.spec["input"]["pad_value"]).all()
    assert session().run(half) == session().run(half)


def test_halving_is_exact_on_blocks() -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    canvas = Canvas(blocks.repeat(2, axis=0).repeat(2, axis=1), 128, 64)
    assert np.array_equal(session().halved(canvas).pixels, blocks)


def test_a_fixed_input_is_padded(tmp_path: Path) -> None:
    model = model_file(tmp_path / "f.onnx", tiny_detector([1, 3, 224, 320]))
    one = open_warm(model, CPU)
    half = one.halved(one.canvas(picture(640, 368), Scaler()))
    assert half.pixels.shape == (224, 320, 3)
    assert (half.width, half.height) == (160, 92)
    assert one.run(half) == []


def test_both_efforts_find_a_person_where_it_is() -> None:
    """The same output planted at either size decodes to the same place."""
    full = Canvas(np.zeros((192, 320, 3), np.uint8), 320, 180)
    half = session().halved(full)
    found = []
    for canvas, cell, size in ((full, 240 + 2 * 10 + 4, 2.0), (half, 2 * 10 + 4, 2.0)):
        output = np.zeros((1, cell_count(*canvas.pixels.shape[:2], (16, 32)), 5), np.float32)
        output[0, cell] = [0.5, 0.5, np.log(size), np.log(size), 0.9]
        found.append(session().decode([output], canvas))
    # Stride 32 at full is stride 16 at half.
    assert np.allclose(found[0], found[1], atol=1e-6)
    assert len(found[0]) == 1


def test_half_costs_less_and_is_estimated_by_itself(engine: Engine) -> None:
    costs_s = engine.load(LARGE)
    assert set(costs_s) == set(EFFORTS)
    assert 0 < costs_s["half"] < costs_s["full"]
    full_s = engine.cost_s(LARGE.digest, "full")
    for _ in range(3):
        answer = ask(engine, None, "half", LARGE.digest)
        assert (answer.effort, answer.rung, answer.variant) == ("half", "full", "large")
    assert engine.cost_s(LARGE.digest, "full") == full_s
    assert engine.cost_s(LARGE.digest, "half") != costs_s["half"]
    engine.unload(LARGE.digest)
    assert engine.cost_s(LARGE.digest, "half") == 0


def test_half_leaves_the_ladder_alone_and_takes_what_it_has(engine: Engine) -> None:
    rng = np.random.default_rng(1)
    view = look(engine, picture())
    assert ask(engine, view, "half").effort == "half"
    assert view.found is None  # a half answer is nobody else's
    assert engine.cache.counts()["full"] == 0
    full = ask(engine, view, "full")
    assert (full.effort, full.rung) == ("full", "full")
    # An answer at full effort is there: half effort is no reason for a worse one.
    again = ask(engine, view, "half")
    assert (again.effort, again.rung, again.boxes) == ("full", "same", full.boxes)
    still = look(engine, noisy(picture(), 1.0, rng))
    while still.found is None:  # noise is learned first
        ask(engine, still, "full")
        still = look(engine, noisy(picture(), 1.0, rng))
    assert ask(engine, still, "half").effort == "full"


def test_half_does_not_count_as_the_pass_that_others_wait_for(engine: Engine) -> None:
    view = look(engine, picture(seed=4))
    ask(engine, view, "half")
    assert not view.is_asked
    ask(engine, view, "full")
    assert view.is_asked


def test_quality_is_what_the_release_says_or_the_default() -> None:
    for model in (SMALL, LARGE):
        assert 0.5 < model.quality("half") < model.quality("full") < 1
        assert model.quality("full") == model.spec["agreement_f1"]
    bare = ModelFile("x", "y", "1", "p", "d", {})
    assert (bare.quality("full"), bare.quality("half")) == (1.0, 0.9)
    partly = ModelFile("x", "y", "1", "p", "d", {"quality": {"half": 0.5}})
    assert (partly.quality("full"), partly.quality("half")) == (1.0, 0.5)


@pytest.mark.parametrize(
    "quality", [0.9, [0.9], {"half": "good"}, {"half": 1.5}, {"half": True}, {"quarter": 0.4}]
)
def test_a_quality_that_makes_no_sense_is_refused_at_load(quality: object) -> None:
    wrong = ModelFile("x", "y", "1", SMALL.path, SMALL.digest, SMALL.spec | {"quality": quality})
    with pytest.raises(ModelError, match="quality is"):
        open_warm(wrong, CPU)
