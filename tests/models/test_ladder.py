"""The ladder gives old answers only where its setting allows, audits itself, and steps back."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import ladder as ladders
from models.accelerators import AcceleratorSpec
from models.calibration import Calibration, Verdict
from models.delta.differential import Differential
from models.delta.layers import Floats
from models.entries import Entry
from models.evidence import matched
from models.images import Canvas, Pixels
from models.ladder import AUDIT_FRAMES, LEAST_TARGET, OFF_FRAMES, PROBE_FRAMES, TTL_S, Ladder
from models.manifest import load_manifest
from models.sessions import Session, open_warm
from models.track import CostModel, Setting
from models.wire import Box, ModelError, Rung
from tests.clips import noisy, picture
from tests.models.test_differential import CPU, SMALL, overflowing

SIZE = (96, 160)
STILL = picture(SIZE[1], SIZE[0])
FULL_S = 0.01
WIDE = Setting(gate=0.05)


def painted(scene: Pixels, *places: tuple[int, int]) -> Pixels:
    """Return a scene with an object, 16 x 12 pixels, at each (top, left)."""
    pixels = scene.copy()
    for top, left in places:
        pixels[top : top + 16, left : left + 12] = (255, 0, 255)
    return pixels


class Clock:
    """Time that passes only when a model works."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Eye:
    """A model that sees painted objects, one for each run of columns."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.passes = 0
        self.clock = clock or Clock()

    def full(self, pixels: Pixels) -> list[Box]:
        self.passes += 1
        self.clock.now_s += FULL_S
        return self.seen(pixels)

    def decode(self, outputs: list[Floats], pixels: Pixels) -> list[Box]:
        return self.seen(pixels)

    def seen(self, pixels: Pixels) -> list[Box]:
        is_object = (pixels[..., 0] > 225) & (pixels[..., 1] < 30) & (pixels[..., 2] > 225)
        edges = np.diff(is_object.any(axis=0).astype(int), prepend=0, append=0)
        found: list[Box] = []
        for left, right in zip(*(np.flatnonzero(edges == sign) for sign in (1, -1)), strict=True):
            rows = np.flatnonzero(is_object[:, left:right].any(axis=1))
            box = [left / SIZE[1], rows[0] / SIZE[0], right / SIZE[1], (rows[-1] + 1) / SIZE[0]]
            found.append([*map(float, box), 0.9, 0])
        return found


class Fickle(Eye):
    """Answers something else every time, once `is_fickle`."""

    is_fickle = False

    def seen(self, pixels: Pixels) -> list[Box]:
        turn = self.passes % 2 if self.is_fickle else 0
        return [[0.5 * turn, 0.1, 0.5 * turn + 0.3, 0.6, 0.9, 0]]


class Eager(CostModel):
    """Believes that sparse passes cost nothing, so that their choice needs no clock."""

    def sparse_s(self, level: float, share: float) -> float:
        return -1.0


class Decided:
    """A calibration whose verdict stands beforehand."""

    size_bytes = 0

    def __init__(self, verdict: Verdict) -> None:
        self._verdict = verdict

    def observe(self, pixels: Pixels, full: list[Box], now_s: float) -> Verdict:
        return self._verdict


def decided(setting: Setting | None, share: float = 0.0) -> Decided:
    return Decided(Verdict(setting, "decided", 0.98, share))


class Camera:
    """Shows frames to a ladder as the engine does, at so many frames a second."""

    def __init__(self, ladder: Ladder, fps: float = 10.0) -> None:
        self.ladder = ladder
        self.now_s = 1000.0
        self.step_s = 1 / fps

    def show(self, pixels: Pixels) -> tuple[list[Box], Rung]:
        self.now_s += self.step_s
        found = self.ladder.look(pixels, self.now_s)
        if found is not None:
            return found
        outcome = self.ladder.serve(pixels, self.now_s)
        if outcome.afterwards is not None:
            outcome.afterwards()
        return outcome.boxes, outcome.rung


def ladder_of(
    runner: Eye,
    *decisions: Decided,
    differential: Differential | None = None,
    costs: CostModel | None = None,
) -> Ladder:
    """Return a ladder that is handed these calibrations, one after the other, then none."""
    waiting = list(decisions)

    def calibrate(ladder: Ladder) -> Calibration | None:
        return waiting.pop(0) if waiting else None  # type: ignore[return-value]

    costs = costs or CostModel(runner.clock)
    return Ladder(runner, differential, costs, SIZE, calibrate=calibrate)


def settled(runner: Eye, setting: Setting, fps: float = 10.0, **more: object) -> Camera:
    """Return a camera on a still scene whose ladder has been calibrated to a setting."""
    camera = Camera(ladder_of(runner, decided(setting), **more), fps)  # type: ignore[arg-type]
    camera.show(STILL)
    camera.show(STILL)
    assert camera.ladder.mode == "calibrated"
    assert camera.ladder.setting == setting
    camera.show(STILL)
    return camera


@pytest.fixture(scope="module")
def differential() -> Differential:
    return Differential(SMALL, SIZE, CPU)


# --- before calibration ------------------------------------------------------------------------


def test_same_bytes_are_answered_without_a_pass() -> None:
    eye = Eye()
    camera = Camera(ladder_of(eye))
    frame = painted(STILL, (40, 80))
    boxes, rung = camera.show(frame)
    assert (rung, len(boxes)) == ("full", 1)
    assert camera.show(frame.copy()) == (boxes, "same")
    assert eye.passes == 1
    assert camera.ladder.work_saved == 1


def test_before_calibration_noise_is_reused_and_one_changed_cell_is_not() -> None:
    rng, eye = np.random.default_rng(0), Eye()
    camera = Camera(ladder_of(eye))
    for _ in range(40):  # the noise has to be learned first
        camera.show(noisy(STILL, 2.0, rng))
    assert camera.ladder.mode == "strict"
    rungs = [camera.show(noisy(STILL, 2.0, rng))[1] for _ in range(25)]
    assert rungs == ["gate"] * 25
    frame = noisy(STILL, 2.0, rng)
    frame[40:44, 80:84] = np.clip(frame[40:44, 80:84].astype(int) + 12, 0, 255)
    assert camera.show(frame)[1] == "full"


@given(st.lists(st.tuples(st.integers(0, 80), st.integers(0, 148)), max_size=30), st.integers(0, 9))
def test_before_calibration_every_answer_is_that_of_a_full_pass(
    places: list[tuple[int, int]], seed: int
) -> None:
    rng, eye = np.random.default_rng(seed), Eye()
    camera = Camera(ladder_of(eye))
    scene = STILL
    for place in places:
        if rng.random() < 0.5:
            scene = painted(STILL, place)
        assert camera.show(scene)[0] == Eye().seen(scene)


def test_the_time_to_live_forces_a_full_pass() -> None:
    camera = Camera(ladder_of(Eye()), fps=1)
    rungs = [camera.show(STILL)[1] for _ in range(66)]
    assert [index for index, rung in enumerate(rungs) if rung == "full"] == [0, 30, 60]
    assert TTL_S == 30
    camera.ladder.expire(camera.now_s + TTL_S)
    assert not camera.ladder.is_warm


def test_a_clock_that_jumps_back_reuses_nothing() -> None:
    camera = Camera(ladder_of(Eye()))
    camera.show(STILL)
    camera.now_s -= 100
    assert camera.show(STILL)[1] == "full"


def test_frames_of_another_size_are_refused_and_do_no_harm() -> None:
    camera = Camera(ladder_of(Eye()))
    frame = painted(STILL, (40, 80))
    boxes, _ = camera.show(frame)
    for wrong in (picture(320, 192), STILL[:64], np.swapaxes(STILL, 0, 1)):
        with pytest.raises(ValueError, match="came to a ladder for"):
            camera.ladder.look(wrong, camera.now_s)
        with pytest.raises(ValueError, match="came to a ladder for"):
            camera.ladder.serve(wrong, camera.now_s)
    assert camera.show(frame) == (boxes, "same")
    with pytest.raises(ValueError, match="no area"):
        Ladder(Eye(), None, CostModel(), (0, 160))


# --- one thread looks, another one serves -------------------------------------------------------


class Blocked(Eye):
    """Does not end its pass until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def full(self, pixels: Pixels) -> list[Box]:
        self.has_begun.set()
        assert self.may_end.wait(timeout=30)
        return super().full(pixels)


def under_way(camera: Camera, runner: Blocked) -> threading.Thread:
    """Begin a pass in another thread and return once it is under way."""
    thread = threading.Thread(target=camera.ladder.serve, args=(STILL, camera.now_s))
    thread.start()
    assert runner.has_begun.wait(timeout=30)
    return thread


def test_looking_never_waits_for_a_pass() -> None:
    runner = Blocked()
    camera = Camera(ladder_of(runner))
    thread = under_way(camera, runner)
    assert camera.ladder.look(STILL, camera.now_s) is None  # else this test would not end
    assert not camera.ladder.let_go()
    assert camera.ladder.size_bytes >= 0
    assert camera.ladder.record(camera.now_s)["mode"] == "strict"
    runner.may_end.set()
    thread.join()
    assert camera.ladder.look(STILL, camera.now_s) == ([], "same")


def test_frames_that_came_during_passes_count_towards_the_next_audit() -> None:
    runner = Blocked()
    camera = Camera(ladder_of(runner))
    thread = under_way(camera, runner)
    for _ in range(AUDIT_FRAMES[1]):
        assert camera.ladder.look(STILL, camera.now_s) is None
    runner.may_end.set()
    thread.join()
    assert camera.show(STILL)[1] == "full"
    assert camera.ladder.stats["audits"] == 1
    assert camera.show(STILL)[1] == "same"


# --- calibrated ---------------------------------------------------------------------------------


def test_a_calibration_learns_after_the_reply_and_no_answer_is_lost() -> None:
    frame = painted(STILL, (40, 80))
    ladder = ladder_of(Eye(), decided(WIDE))
    assert ladder.serve(frame, 1.0).boxes, "the answer with which it begins"
    assert (ladder.mode, ladder.reason) == ("calibrating", "first frames")
    assert ladder.look(frame, 1.1) is None
    outcome = ladder.serve(frame, 1.1)
    assert (len(outcome.boxes), outcome.rung, ladder.mode) == (1, "full", "calibrating")
    assert outcome.afterwards is not None
    outcome.afterwards()
    assert (ladder.mode, ladder.setting) == ("calibrated", WIDE)
    assert len(ladder.serve(frame, 1.2).boxes) == 1


def test_what_was_let_go_while_calibrating_is_strict_again() -> None:
    camera = settled(Eye(), WIDE)
    again = ladder_of(Eye(), decided(WIDE), decided(WIDE))
    again.serve(STILL, 1.0)
    outcome = again.serve(STILL, 1.1)
    assert again.let_go()
    assert (again.mode, again.setting.gate) == ("strict", 0)
    assert outcome.afterwards is not None
    outcome.afterwards()
    assert again.mode == "strict", "a calibration that was given up decides nothing"
    assert camera.ladder.let_go()
    assert (camera.ladder.mode, camera.ladder.is_warm) == ("calibrated", False)
    assert camera.show(STILL)[1] == "full"


def test_what_was_let_go_while_calibrating_again_is_strict_too() -> None:
    rng, narrow = np.random.default_rng(0), replace(WIDE, domain=0.25)
    camera = Camera(ladder_of(Eye(), decided(narrow), decided(None)))
    camera.show(STILL)
    camera.show(STILL)
    assert camera.ladder.setting == narrow
    camera.show(STILL)
    while camera.ladder.mode == "calibrated":
        camera.ladder.serve(busy(rng), camera.now_s)
        assert camera.ladder.stats["full"] < 100
    assert camera.ladder.let_go()
    assert (camera.ladder.mode, camera.ladder.setting.gate) == ("strict", 0)


def test_the_gate_holds_up_to_its_share_of_cells() -> None:
    camera = settled(Eye(), WIDE)
    cells = STILL.size // 48
    for count, rung in ((0.04, "gate"), (0.06, "full")):
        frame = STILL.copy()
        flat = np.zeros(cells, bool)
        flat[: int(count * cells)] = True
        frame[flat.reshape(24, 40).repeat(4, axis=0).repeat(4, axis=1)] ^= 128
        assert camera.show(frame)[1] == rung


def test_small_changes_add_up_against_the_reference() -> None:
    camera = settled(Eye(), WIDE)
    frame, seen = STILL.copy(), []
    for index in range(40):  # each step changes half a percent of the cells
        row, column = divmod(5 * index, 40)
        frame = frame.copy()
        frame[4 * row : 4 * row + 4, 4 * column : 4 * column + 20] ^= 128
        seen.append(camera.show(frame)[1])
    assert seen.index("full") == 9
    assert seen.count("full") == 4


def test_audits_are_about_one_frame_in_a_hundred_and_refresh() -> None:
    eye = Eye()
    camera = settled(eye, WIDE, fps=100)
    for index in range(6000):
        before_s = camera.ladder.record(camera.now_s)["age_s"]
        _, rung = camera.show(STILL)
        if rung == "full":
            assert camera.ladder.record(camera.now_s)["age_s"] == 0
            assert index == 0 or before_s <= 0.01 * AUDIT_FRAMES[1]
    stats = camera.ladder.stats
    assert 6000 / AUDIT_FRAMES[1] - 1 <= stats["audits"] <= 6000 / AUDIT_FRAMES[0]
    assert stats["full"] == eye.passes
    assert stats["breaches"] == 0
    assert camera.ladder.audited.agreement == 1
    assert camera.ladder.work_saved == stats["same"]


def test_a_breach_tightens_then_strict_then_off() -> None:
    runner = Fickle()
    setting = Setting(gate=0.04, level=None, domain=0.3)
    camera = settled(runner, setting, fps=100)
    runner.is_fickle = True
    states, breaches = [], 0
    for _ in range(9000):
        boxes, rung = camera.show(STILL)
        assert len(boxes) == 1, "never an answer that no pass gave"
        if rung == "full":
            assert boxes == runner.seen(STILL), "an audit answers what the pass said"
        if camera.ladder.stats["breaches"] > breaches:
            breaches += 1
            ladder = camera.ladder
            states.append((ladder.mode, ladder.setting.gate, ladder.reason.split(":")[0]))
    assert states == [("calibrated", 0.02, "tightened"), ("strict", 0, "strict"), ("off", 0, "off")]
    assert "audits agree to 0." in camera.ladder.reason


def test_a_breach_is_noticed_within_a_few_audits_however_good_the_past(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ladders, "AUDIT_FRAMES", (1, 1))
    runner = Fickle()
    camera = settled(runner, WIDE, fps=100)
    for _ in range(1500):
        camera.show(STILL)
    assert camera.ladder.stats["audits"] > 1000
    assert camera.ladder.stats["breaches"] == 0
    runner.is_fickle = True
    audits = camera.ladder.stats["audits"]
    while not camera.ladder.stats["breaches"]:
        camera.show(STILL)
        assert camera.ladder.stats["audits"] - audits <= 8


def test_clean_audits_forgive_a_breach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladders, "AUDIT_FRAMES", (1, 1))
    runner = Fickle()
    camera = settled(runner, WIDE, fps=100)
    for _ in range(3):
        runner.is_fickle = True
        breaches = camera.ladder.stats["breaches"]
        while camera.ladder.stats["breaches"] == breaches:
            camera.show(STILL)
        runner.is_fickle = False
        for _ in range(40):
            camera.show(STILL)
    assert camera.ladder.mode == "calibrated"
    assert camera.ladder.setting.gate == WIDE.gate / 8


def test_after_audits_found_it_wrong_a_strict_camera_is_calibrated_again() -> None:
    runner = Fickle()
    decisions = [decided(WIDE), decided(Setting(gate=0.01))]
    camera = Camera(ladder_of(runner, *decisions), fps=100)
    runner.is_fickle = True
    reasons = set()
    for index in range(4000):
        camera.show(STILL if index % 300 else painted(STILL, (40, 80)))
        reasons.add(camera.ladder.reason)
    assert "audits found reuse wrong" in reasons
    assert camera.ladder.mode == "off", "a third breach without clean audits in between"


# --- sparse passes ------------------------------------------------------------------------------


def test_local_changes_within_the_domain_get_a_sparse_pass(differential: Differential) -> None:
    camera = settled(
        Eye(), Setting(0.002, 1.0, 0.25), differential=differential, costs=Eager(Clock())
    )
    rungs = []
    for index in range(60):
        frame = painted(STILL, (40, 2 * index))
        boxes, rung = camera.show(frame)
        rungs.append(rung)
        assert boxes == Eye().seen(frame)
    assert rungs.count("sparse") >= 50
    assert rungs.count("full") >= 2, "a full pass every so often: what is a little stale adds up"
    assert 0 < camera.ladder.work_saved < 60


def test_a_change_beyond_the_domain_gets_a_full_pass_at_once_and_a_new_calibration(
    differential: Differential,
) -> None:
    decisions = [decided(Setting(0.01, 1.0, 0.25)), decided(WIDE)]
    ladder = ladder_of(Eye(), *decisions, differential=differential, costs=Eager(Clock()))
    camera, rng = Camera(ladder), np.random.default_rng(0)
    for _ in range(3):
        camera.show(STILL)
    frame = STILL.copy()
    frame[:40] = rng.integers(0, 256, (40, 160, 3))  # 42 % of the cells
    assert camera.show(frame)[1] == "full"
    assert ladder.mode == "calibrated", "one such frame is no other character"
    for index in range(20):
        frame[:40] = rng.integers(0, 256, (40, 160, 3))
        assert camera.show(frame.copy())[1] == "full", index
    assert ladder.setting == WIDE, "calibrated again"
    assert ladder.stats["sparse"] == 0


def test_a_switched_light_and_a_moved_camera_get_full_passes(differential: Differential) -> None:
    camera = settled(
        Eye(), Setting(0.05, 1.0, 1.0), differential=differential, costs=Eager(Clock())
    )
    moved = picture(SIZE[1], SIZE[0], seed=8)
    assert camera.show(moved)[1] == "full"
    assert camera.show((moved * 0.6).astype(np.uint8))[1] == "full"
    assert camera.ladder.stats["full: brightness"] == 1
    assert camera.ladder.stats["full: scene"] == 1


def test_a_pass_that_fails_says_so_and_the_next_one_is_full() -> None:
    """White windows overflow the network of this camera's sparse passes."""
    model = Differential(overflowing(), SIZE, CPU)
    camera = settled(Eye(), Setting(0.0, 1.0, 0.5), differential=model, costs=Eager(Clock()))
    flash = painted(STILL, (40, 80))
    flash[60:64, 20:24] = 255
    with pytest.raises(ModelError, match="not finite"):
        camera.show(flash)
    assert not camera.ladder.is_warm
    with pytest.raises(ModelError, match="not finite"):
        camera.show(flash)  # no answer from a reference that no answer belongs to
    frame = painted(STILL, (20, 20))
    assert camera.show(frame) == (Eye().seen(frame), "full")
    assert camera.show(painted(STILL, (24, 20)))[1] == "sparse"


def test_a_full_pass_that_fails_leaves_no_reference() -> None:
    class Broken(Eye):
        def full(self, pixels: Pixels) -> list[Box]:
            if pixels[0, 0, 0] == 255:
                raise ModelError("broken")
            return super().full(pixels)

    camera = settled(Broken(), WIDE)
    bad = (255 - STILL).copy()
    bad[0, 0, 0] = 255
    for _ in range(2):
        with pytest.raises(ModelError, match="broken"):
            camera.show(bad)
    assert camera.show(STILL)[1] == "full"


def opened(size: tuple[int, int]) -> tuple[Session, Callable[[Pixels], Canvas]]:
    """Return our detector, believing the weakest boxes too, and what makes its canvases."""
    model = load_manifest().variants["small"]
    spec = copy.deepcopy(model.spec) | {"score_threshold": 0.01}
    session = open_warm(replace(model, spec=spec), AcceleratorSpec("cpu0", "cpu"))
    return session, lambda pixels: Canvas(pixels, size[1], size[0])


def test_our_detector_answers_sparsely_what_it_answers_in_full(differential: Differential) -> None:
    session, canvas = opened(SIZE)

    class Real(Eye):
        def full(self, pixels: Pixels) -> list[Box]:
            return session.run(canvas(pixels))

        def decode(self, outputs: list[Floats], pixels: Pixels) -> list[Box]:
            return session.decode(outputs, canvas(pixels))

    camera = settled(
        Real(), Setting(0.0, 0.0, 0.4), differential=differential, costs=Eager(Clock())
    )
    rng, frame, total, rungs = np.random.default_rng(1), STILL, 0, []
    for _ in range(60):
        top, left = 4 * rng.integers(0, 18), 4 * rng.integers(0, 34)
        frame = frame.copy()
        frame[top : top + 24, left : left + 24] = rng.integers(0, 256, (24, 24, 3))
        boxes, rung = camera.show(frame)
        rungs.append(rung)
        full = session.run(canvas(frame))
        assert len(boxes) == len(full)
        assert matched(boxes, full) == len(full)
        total += len(full)
    assert rungs.count("sparse") > 45
    assert total > 100, "the detector must see something in it"


# --- off ----------------------------------------------------------------------------------------


def watched(ladder: Ladder) -> list[int]:
    """Return a list that grows by one whenever the mask is run."""
    runs: list[int] = []
    compare = ladder.mask._compare

    def counted(pixels: Pixels, reference: Pixels) -> tuple[int, int]:
        runs.append(1)
        return compare(pixels, reference)

    ladder.mask._compare = counted  # type: ignore[method-assign]
    return runs


def busy(rng: np.random.Generator) -> Pixels:
    return rng.integers(0, 256, (*SIZE, 3), np.uint8)


def test_off_costs_next_to_nothing_and_ends_when_the_scene_calms() -> None:
    rng, eye = np.random.default_rng(0), Eye()
    camera = Camera(ladder_of(eye, decided(None, share=0.9), decided(WIDE)))
    for _ in range(2):
        camera.show(busy(rng))
    ladder = camera.ladder
    assert (ladder.mode, ladder.reason) == ("off", "decided")
    runs, passes = watched(ladder), eye.passes
    for _ in range(640):
        frame = busy(rng)
        assert ladder.look(frame, camera.now_s) is None
        assert camera.show(frame)[1] == "full"
    assert ladder.mode == "off"
    assert 0 < len(runs) <= 0.05 * 640
    assert eye.passes - passes == 640
    shown = 0
    while ladder.mode == "off":
        camera.show(noisy(STILL, 2.0, rng))
        shown += 1
        assert shown <= 6 * PROBE_FRAMES
    assert ladder.reason == "the scene has calmed down"
    camera.show(STILL)
    assert ladder.setting == WIDE


def test_calm_is_measured_as_it_was_when_calibrating() -> None:
    """A flicker of five grey levels counted for nothing then."""
    camera = Camera(ladder_of(Eye(), decided(None, share=0.9), decided(WIDE)))
    for index in range(6 * PROBE_FRAMES):
        camera.show(STILL + np.uint8(5 * (index % 2)))
    assert camera.ladder.mode == "calibrated"


def test_one_calm_moment_is_not_enough() -> None:
    rng = np.random.default_rng(0)
    camera = Camera(ladder_of(Eye(), decided(None, share=0.9), decided(WIDE)))
    for index in range(1000):
        camera.show(STILL if index % 300 < 3 * PROBE_FRAMES else busy(rng))
    assert camera.ladder.mode == "off"


def test_off_in_a_still_scene_is_tried_again_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is nothing that could calm down: too little was seen, or audits failed."""
    assert OFF_FRAMES > 10 * PROBE_FRAMES
    monkeypatch.setattr(ladders, "OFF_FRAMES", 100)
    camera = Camera(ladder_of(Eye(), *[decided(None)] * 4))
    begun = []
    for index in range(1000):
        was = camera.ladder.mode
        camera.show(STILL)
        if camera.ladder.mode == "calibrating" != was:
            begun.append(index)
    gaps = np.diff(begun)
    assert len(gaps) == 3
    for gap, wanted in zip(gaps, (100, 200, 400), strict=True):
        assert wanted <= gap <= wanted + 2 * PROBE_FRAMES


# --- what other nodes give ----------------------------------------------------------------------

OTHER = picture(SIZE[1], SIZE[0], seed=8)
IMAGE = (SIZE[1], SIZE[0])


def found(setting: Setting | None = None, target: float = 0.98) -> Entry:
    """Return another node's entry: a picture with an object."""
    calibrated = (setting.gate, setting.level, setting.domain, target) if setting else None
    pixels = painted(OTHER, (40, 80))
    return Entry(pixels, *IMAGE, Eye().seen(pixels), 1.0, 0.0, calibrated)


def test_what_is_compared_with_while_off_is_no_reference_for_anyone() -> None:
    camera = Camera(ladder_of(Eye(), decided(None)))
    for _ in range(2 * PROBE_FRAMES):
        camera.show(painted(STILL, (40, 80)))
        assert camera.ladder.mode in ("strict", "calibrating", "off")
        entry = camera.ladder.entry(camera.now_s, IMAGE)
        assert entry is None or entry.boxes, "an object that no answer tells of"
    assert camera.ladder.mode == "off"
    assert not camera.ladder.is_warm
    assert not camera.ladder.adopt(found(WIDE), camera.now_s)


def test_activations_of_an_older_reference_do_not_meet_an_adopted_one(
    differential: Differential,
) -> None:
    camera = settled(
        Eye(), Setting(0.002, 1.0, 0.25), differential=differential, costs=Eager(Clock())
    )
    assert camera.show(painted(STILL, (40, 80)))[1] == "sparse"
    camera.now_s += TTL_S
    assert camera.ladder.adopt(found(), camera.now_s)
    frame = painted(OTHER, (40, 80), (40, 20))
    assert camera.show(frame) == (Eye().seen(frame), "full")


def test_what_was_seen_before_an_adoption_says_nothing_after_it() -> None:
    ladder = ladder_of(Eye())
    ladder.serve(STILL, 10.0)
    touched = painted(STILL, (40, 80))
    assert ladder.look(touched, 9.9 + TTL_S) is None
    assert ladder.adopt(found(WIDE), 10.1 + TTL_S)
    outcome = ladder.serve(touched, 10.1 + TTL_S)
    assert outcome.rung == "full"


def test_another_node_cannot_talk_the_audits_down() -> None:
    ladder = ladder_of(Eye())
    assert ladder.adopt(found(WIDE, target=0.0), 10.0)
    assert ladder.target == LEAST_TARGET


def test_a_calibration_without_frames_ends_and_makes_room_for_others() -> None:
    ladder = ladder_of(Eye(), decided(WIDE))
    ladder.serve(STILL, 10.0)
    ladder.expire(9.9 + TTL_S)
    assert ladder.mode == "calibrating"
    assert not ladder.adopt(found(WIDE), 11.0), "what it finds itself is better"
    ladder.expire(10.0 + TTL_S)
    assert (ladder.mode, ladder.size_bytes) == ("strict", 0)


# --- costs --------------------------------------------------------------------------------------


def test_unmeasured_sparse_passes_are_tried_and_slow_ones_left() -> None:
    costs = CostModel()
    costs.learn_dense(1.0)
    assert costs.sparse_s(1.0, 0.1) < costs.dense_s
    costs.learn_sparse(1.0, 0.1, 3.0)
    assert costs.sparse_s(1.0, 0.1) == 3.0
    assert costs.sparse_s(1.0, 0.5) == 3.0, "a larger change is not believed cheaper"
    assert costs.sparse_s(1.0, 0.001) < 1
    assert costs.sparse_s(2.0, 0.1) < 1, "each level is measured by itself"


def tries(costs: CostModel, share: float, cost_s: float, frames: int) -> int:
    """Return how many of so many frames a track would give a sparse pass of this cost."""
    count = 0
    for _ in range(frames):
        if costs.sparse_s(1.0, share) < costs.dense_s:
            costs.learn_sparse(1.0, share, cost_s)
            count += 1
        else:
            costs.forget(1.0, share)
    return count


@pytest.mark.parametrize("slow", [1.2, 1.5, 3.0])
def test_trying_slow_passes_again_costs_little(slow: float) -> None:
    costs = CostModel()
    costs.learn_dense(1.0)
    wasted = tries(costs, 0.1, slow, 2000) * (slow - 1)
    assert wasted < 0.04 * 2000


@pytest.mark.parametrize("outlier_share", [0.1, 0.05])
def test_one_slow_measurement_does_not_lock_a_rung_out(outlier_share: float) -> None:
    """Not even where it is a smaller bin's that stands in for this one."""
    costs = CostModel()
    costs.learn_dense(1.0)
    costs.learn_sparse(1.0, outlier_share, 20.0)
    assert tries(costs, 0.1, 0.3, 1000) > 300


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(1e-6, 10)), max_size=40), st.floats(0, 1))
def test_predictions_stay_within_what_was_measured(
    passes: list[tuple[float, float]], share: float
) -> None:
    costs = CostModel()
    costs.learn_dense(1.0)
    for each, spent_s in passes:
        costs.learn_sparse(1.0, each, spent_s)
    known = [spent_s for _, spent_s in passes] + [0.5]
    assert min(known) * 0.999 <= costs.sparse_s(1.0, share) <= max(known) * 1.001
