"""What is shared: one camera by its agents, one entry by its nodes; and what is told of it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache as once

import numpy as np
import pytest

from models.accelerators import AcceleratorSpec
from models.cache import MOVED_BITS, RETELL_S, ReuseCache
from models.delta.differential import Differential
from models.engine import Answer, Engine, Job, View
from models.entries import Entry
from models.images import Pixels, Scaler
from models.ladder import TTL_S, Ladder, Outcome
from models.manifest import load_manifest
from models.scene import distance, signature
from models.sessions import Session, open_warm
from models.streams import Camera, Frames
from models.wire import CacheHolding, CameraSpec, CameraState, FrameReady, Inference
from tests.clips import noisy, picture

CPU = AcceleratorSpec("cpu0", "cpu")
SMALL, LARGE = (load_manifest().variants[name] for name in ("small", "large"))
SPEC = CameraSpec("a", "somewhere", fps=10)
PATIENCE_S = 20.0
FRAMES = 12


@once
def session() -> Session:
    return open_warm(SMALL, CPU)


class Bench:
    """An engine, cameras whose frames are given one by one, and what comes of them."""

    def __init__(self) -> None:
        self.told: list[CacheHolding] = []
        self.states: list[CameraState] = []
        self.frames: queue.Queue[FrameReady] = queue.Queue()
        self.shown: queue.Queue[Pixels | None] = queue.Queue()
        self.kept: dict[str, Frames] = {}
        self.decoders = 0
        self.engine = Engine(CPU, on_cache_change=self.told.append, on_load_change=lambda: None)
        self.engine.start()

    def _source(
        self, spec: CameraSpec, stop: threading.Event, on_state: Callable[[str, str], None]
    ) -> Iterator[tuple[float, Pixels]]:
        self.decoders += 1
        on_state("running", "")
        while (pixels := self.shown.get(timeout=PATIENCE_S)) is not None:
            yield 0.0, pixels
        on_state("ended", "")

    def camera(self, spec: CameraSpec = SPEC) -> Camera:
        return Camera(spec, self.engine, self._source, self.frames.put, self.states.append)

    def join(self, camera: Camera, agent: str, digest: str = SMALL.digest) -> None:
        camera.join(agent, digest, self.kept.setdefault(agent, Frames()))

    def show(self, pixels: Pixels, agents: int) -> list[FrameReady]:
        self.shown.put(pixels)
        return [self.frames.get(timeout=PATIENCE_S) for _ in range(agents)]

    def view(self, frame: FrameReady) -> View:
        found = self.kept[frame.agent].get(frame.frame).view
        assert found is not None
        return found

    def answers(self, frames: list[FrameReady]) -> list[Inference]:
        """Ask for all at once, as the agents do; return the answers in the frames' order."""
        found: list[queue.Queue[Answer]] = [queue.Queue() for _ in frames]
        for frame, reply in zip(frames, found, strict=True):
            kept = self.kept[frame.agent].get(frame.frame)
            assert kept.view is not None
            job = Job(frame.agent, kept.view.digest, kept.pixels, kept.view, float(0), reply.put)
            self.engine.submit(job, deadline_s=1e12, tier=2)
        answers = [one.get(timeout=PATIENCE_S) for one in found]
        assert all(isinstance(one, Inference) for one in answers)
        return [one for one in answers if isinstance(one, Inference)]

    def ladder(self, agent: str) -> Ladder:
        session = self.engine.session(SMALL.digest)
        return self.engine.cache.ladder(agent, session, session.canvas(picture(), Scaler()))

    def passes(self) -> int:
        counts = self.engine.cache.counts()
        return counts["full"] + counts["sparse"]


@pytest.fixture
def bench() -> Iterator[Bench]:
    one = Bench()
    one.engine.load(SMALL)
    yield one
    one.shown.put(None)
    one.engine.stop()


def test_two_agents_of_one_camera_cost_one_pass_a_frame(bench: Bench) -> None:
    camera = bench.camera()
    bench.join(camera, "a")
    bench.join(camera, "b")
    for index in range(FRAMES):
        frames = bench.show(picture(seed=index), 2)
        assert {frame.agent for frame in frames} == {"a", "b"}
        first, second = bench.answers(frames)
        assert (first.rung, second.rung) == ("full", "same")
        assert first.boxes == second.boxes
    assert bench.passes() == FRAMES
    held = {(one.agent, one.held) for one in bench.told}
    assert held == {("a", True), ("b", True)}  # each may move on its own
    bench.ladder("a").mode = "off"  # then nothing of earlier frames helps
    assert [one.rung for one in bench.answers(bench.show(picture(), 2))] == ["full", "same"]
    assert bench.passes() == FRAMES + 1
    assert bench.decoders == 1
    assert bench.ladder("a") is bench.ladder("b")
    assert bench.engine.cache.size_bytes == bench.ladder("a").size_bytes
    assert {one.agent for one in bench.told if not one.held} == {"a", "b"}, "nor does anyone else"


def test_an_answer_that_may_be_reused_is_for_all(bench: Bench) -> None:
    camera = bench.camera()
    bench.join(camera, "a")
    bench.join(camera, "b")
    bench.answers(bench.show(picture(), 2))
    frames = bench.show(picture(), 2)
    assert all(frame.reusable for frame in frames)
    assert {id(bench.view(frame)) for frame in frames} == {id(bench.view(frames[0]))}
    assert bench.engine.cache.counts()["same"] == 1


def test_what_waits_for_the_same_pass_adds_nothing_to_the_backlog(bench: Bench) -> None:
    idle = Engine(CPU, on_cache_change=lambda holding: None, on_load_change=lambda: None)
    idle.load(SMALL)  # never started: what is queued stays
    view = idle.look("a", SMALL.digest, picture(), Scaler(), ["b"])
    backlogs_s = []
    for agent in ("a", "b"):
        job = Job(agent, SMALL.digest, picture(), view, 0.0, lambda answer: None)
        idle.submit(job, 1e12, 2)
        backlogs_s.append(idle.figures()[0])
    assert backlogs_s[0] == backlogs_s[1] > [0, 0, 0]


def test_one_agent_leaves_and_the_other_goes_on(bench: Bench) -> None:
    camera = bench.camera()
    bench.join(camera, "a")
    bench.join(camera, "b")
    bench.answers(bench.show(picture(), 2))
    shared = bench.ladder("b")
    camera.leave("a")
    bench.engine.cache.part("a")
    assert camera.serves(replace(SPEC, agent="c"))
    (frame,) = bench.show(picture(), 1)
    assert (frame.agent, frame.reusable) == ("b", True)
    assert bench.ladder("b") is shared
    assert bench.ladder("a") is not shared
    assert [(one.agent, one.held) for one in bench.told if not one.held] == [("a", False)]
    camera.leave("b")
    assert not camera.serves(SPEC)


def test_a_frame_of_who_has_left_is_answered_and_leaves_nothing(bench: Bench) -> None:
    camera = bench.camera()
    bench.join(camera, "a")
    frames = bench.show(picture(), 1)
    camera.leave("a")
    bench.engine.cache.forget(agent="a")
    assert [one.rung for one in bench.answers(frames)] == ["full"]
    assert bench.engine.cache.records(0.0) == []


def test_a_frame_that_no_model_has_looked_at_gets_a_full_pass(bench: Bench) -> None:
    reply: queue.Queue[Answer] = queue.Queue()
    for _ in range(2):
        job = Job("a", SMALL.digest, picture(), None, 0.0, reply.put)
        bench.engine.submit(job, deadline_s=1e12, tier=2)
        answer = reply.get(timeout=PATIENCE_S)
        assert isinstance(answer, Inference)
        assert answer.rung == "full"
    assert bench.engine.cache.records(0.0) == [], "nor is anything compiled for it"


def test_a_camera_whose_model_is_being_compiled_can_be_joined_and_left(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun, may_end = threading.Event(), threading.Event()
    in_time: list[bool] = []
    session = bench.engine.session(SMALL.digest)
    compiled = session.differential

    def slowly(size: tuple[int, int]) -> Differential:
        has_begun.set()
        in_time.append(may_end.wait(timeout=PATIENCE_S))
        return compiled(size)

    monkeypatch.setattr(session, "differential", slowly)
    camera = bench.camera()
    bench.join(camera, "a")
    bench.shown.put(picture())
    assert has_begun.wait(timeout=PATIENCE_S)
    bench.join(camera, "b")
    camera.leave("a")
    may_end.set()
    assert bench.frames.get(timeout=PATIENCE_S).agent == "b"
    assert in_time[0], "else they waited for the compilation"


def test_what_a_calibration_learns_counts_towards_the_backlog_and_can_hang() -> None:
    idle = Engine(CPU, on_cache_change=lambda holding: None, on_load_change=lambda: None)
    seen: list[tuple[float, float]] = []

    def learn() -> None:
        seen.append((idle.figures()[0][2], idle.running_s()))
        session().run(session().canvas(picture(), Scaler()))
        seen.append((idle.figures()[0][2], idle.running_s()))

    for _ in range(2):
        idle._learn(Outcome([], "full", learn))
    (unknown_s, _), (_, first_s), (known_s, _), (_, again_s) = seen
    assert unknown_s == 0 < known_s
    assert min(first_s, again_s) > 0
    assert idle.running_s() == 0


def test_a_late_agent_hears_how_the_camera_is(bench: Bench) -> None:
    camera = bench.camera()
    bench.join(camera, "a")
    bench.show(picture(), 1)
    bench.join(camera, "b")
    assert bench.states == [CameraState("a", "running", ""), CameraState("b", "running", "")]
    assert len(bench.show(picture(), 2)) == 2
    assert bench.decoders == 1


def test_different_models_share_the_decoder_only(bench: Bench) -> None:
    bench.engine.load(LARGE)
    camera = bench.camera()
    bench.join(camera, "a", SMALL.digest)
    bench.join(camera, "b", LARGE.digest)
    answers = bench.answers(bench.show(picture(), 2))
    assert [one.rung for one in answers] == ["full", "full"]
    assert {one.digest for one in answers} == {SMALL.digest, LARGE.digest}
    assert bench.passes() == 2
    assert bench.decoders == 1
    camera.use("b", SMALL.digest)
    answers = bench.answers(bench.show(picture(seed=1), 2))
    assert [one.rung for one in answers] == ["full", "same"]


@pytest.mark.parametrize("change", [{"fps": 5}, {"long_side": 320}, {"source": "elsewhere"}])
def test_cameras_that_differ_are_not_shared(bench: Bench, change: dict[str, object]) -> None:
    camera = bench.camera()
    bench.join(camera, "a")
    assert camera.serves(replace(SPEC, agent="b"))
    assert not camera.serves(replace(SPEC, agent="b", **change))  # type: ignore[arg-type]


def shown(held: ReuseCache, pixels: Pixels, now_s: float) -> None:
    canvas = session().canvas(pixels, Scaler())
    held.ladder("a", session(), canvas).serve(canvas.pixels, now_s)
    held.settle(now_s)


def test_an_entry_is_announced_with_its_scene_and_size() -> None:
    told: list[CacheHolding] = []
    held = ReuseCache(on_change=told.append)
    shown(held, picture(seed=1), 1.0)
    (holding,) = told
    assert distance(holding.signature, signature(picture(seed=1))) <= MOVED_BITS
    data = held.export("a", SMALL.digest, 1.0)
    assert data is not None
    assert 0.7 < holding.size_bytes / len(data) < 1.5


def test_a_scene_is_told_again_only_when_it_is_another_and_not_at_once() -> None:
    told: list[CacheHolding] = []
    held = ReuseCache(on_change=told.append)
    rng = np.random.default_rng(1)
    for second in range(int(RETELL_S) - 1):
        shown(held, picture(seed=second), 1.0 + second)
    assert len(told) == 1
    shown(held, noisy(picture(seed=0), 3.0, rng), 1.0 + RETELL_S)
    assert len(told) == 1  # what it shows by then is what was told
    shown(held, picture(seed=5), 2.0 + RETELL_S)
    assert len(told) == 1  # and that was a moment ago
    shown(held, picture(seed=5), 2.0 + 2 * RETELL_S)
    assert [one.held for one in told] == [True, True]
    assert distance(told[0].signature, told[1].signature) > MOVED_BITS


def test_a_calibration_that_comes_late_is_taken_beside_a_reference_of_our_own() -> None:
    canvas = session().canvas(picture(), Scaler())
    ladder = ReuseCache().ladder("a", session(), canvas)
    mine = ladder.serve(canvas.pixels, 10.0).boxes
    theirs = Entry(
        session().canvas(picture(seed=1), Scaler()).pixels,
        canvas.width, canvas.height, [[0.1, 0.1, 0.2, 0.2, 0.9, 0]], 1.0, 1.5,
        (0.02, None, 0.5, 0.97),
    )  # fmt: skip
    assert not ladder.adopt(replace(theirs, age_s=TTL_S), 11.0)
    assert not ladder.adopt(replace(theirs, calibrated=None), 11.0)
    assert ladder.adopt(theirs, 11.0)
    assert (ladder.mode, ladder.setting.gate, ladder.mask.noise) == ("calibrated", 0.02, 1.5)
    assert ladder.look(canvas.pixels, 12.0) == (mine, "same")
    assert not ladder.adopt(theirs, 12.0)  # no news any more
