"""Calibration picks what is fast and surely right, else "off"; nothing tempts it to do worse."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from models import calibration as calibrations
from models.accelerators import AcceleratorSpec
from models.calibration import (
    ENOUGH_BOXES,
    GATES,
    LEAST_FRAMES,
    MOST_S,
    SPARSE,
    TARGET,
    Calibration,
    Verdict,
)
from models.delta.differential import Differential
from models.delta.layers import Floats
from models.evidence import Evidence
from models.images import Canvas, Pixels, Scaler
from models.ladder import LEAST_TARGET, Ladder
from models.manifest import load_manifest
from models.sessions import open_warm
from models.track import CostModel, Setting
from models.wire import Box
from tests.clips import noisy, picture
from tests.models.test_differential import CPU, SMALL, overflowing
from tests.models.test_ladder import (
    FULL_S,
    SIZE,
    STILL,
    Camera,
    Clock,
    Eager,
    Eye,
    Fickle,
    busy,
    painted,
)

CELLS = STILL.size // 48


def live(runner: Eye, differential: Differential | None = None) -> Ladder:
    """Return a ladder that calibrates itself."""
    return Ladder(
        runner,
        differential,
        Eager(runner.clock) if differential else CostModel(runner.clock),
        SIZE,
        calibrate=Calibration,
    )


@dataclass
class Run:
    """A camera with a ladder that calibrates itself, and how its answers agree with the truth."""

    runner: Eye
    fps: float = 10.0
    differential: Differential | None = None
    agreed: Evidence = field(default_factory=Evidence)

    def __post_init__(self) -> None:
        self.ladder = live(self.runner, self.differential)
        self.camera = Camera(self.ladder, self.fps)
        self.began_s = self.camera.now_s

    @property
    def has_verdict(self) -> bool:
        return self.ladder.mode in ("calibrated", "off")

    def show(self, pixels: Pixels) -> None:
        boxes, _ = self.camera.show(pixels)
        self.agreed.add(self.runner.seen(pixels), boxes)


def flickering(index: int, object_at: int | None) -> Pixels:
    """Return a frame with a lamp that flickers (8 cells) and perhaps an object."""
    scene = STILL.copy()
    if index % 2:
        scene[:8, 140:156] = 250
    return scene if object_at is None else painted(scene, (60, object_at))


def crowded(rng: np.random.Generator) -> Pixels:
    """Return a frame in which everything is new: the ground, and eight objects' places."""
    ground = (rng.integers(40, 210, (24, 40, 3)).repeat(4, axis=0).repeat(4, axis=1)).astype(
        np.uint8
    )
    return painted(ground, *[(int(rng.integers(0, 80)), 20 * index) for index in range(8)])


def test_a_still_scene_is_reused_and_surely_right() -> None:
    rng, run = np.random.default_rng(0), Run(Eye())
    frames = 0
    while not run.has_verdict:
        run.show(noisy(painted(STILL, (40, 80)), 1.0, rng))
        frames += 1
    assert run.ladder.mode == "calibrated", run.ladder.reason
    assert ENOUGH_BOXES <= frames <= ENOUGH_BOXES + 10
    assert "x the speed of full passes" in run.ladder.reason
    before = run.ladder.stats["full"]
    for _ in range(300):
        run.show(noisy(painted(STILL, (40, 80)), 1.0, rng))
    assert run.ladder.stats["full"] - before <= 8, "audits and the first frame"
    assert run.agreed.agreement == 1


def test_many_boxes_in_a_moment_are_not_enough() -> None:
    run, frames = Run(Eye()), 0
    crowd = painted(STILL, *[(40, 16 * index) for index in range(10)])
    while not run.has_verdict:
        run.show(crowd)
        frames += 1
    assert LEAST_FRAMES <= frames <= LEAST_FRAMES + 2


def test_a_gate_is_no_wider_than_what_was_tried_out() -> None:
    run, index = Run(Eye()), 0
    while not run.has_verdict:
        run.show(flickering(index, 80))
        index += 1
    assert run.ladder.mode == "calibrated", run.ladder.reason
    assert run.ladder.setting.gate == pytest.approx(8 / CELLS)
    assert max(GATES) > 5 * run.ladder.setting.gate


def test_the_gate_lies_between_what_does_not_matter_and_what_does() -> None:
    """A lamp flickers all the time; an object jumps now and then, and only that changes answers."""
    run, index = Run(Eye()), 0

    def frame() -> Pixels:
        return flickering(index, 20 + 24 * (index // 5 % 3))

    while not run.has_verdict:
        run.show(frame())
        index += 1
    assert run.ladder.mode == "calibrated", run.ladder.reason
    assert 8 / CELLS <= run.ladder.setting.gate < 24 / CELLS
    for _ in range(600):
        run.show(frame())
        index += 1
    assert run.agreed.agreement == 1
    assert run.ladder.stats["gate"] + run.ladder.stats["same"] > 400


def test_where_everything_changes_the_verdict_is_off_in_time() -> None:
    rng = np.random.default_rng(0)
    run = Run(Eye(), fps=2)
    while not run.has_verdict:
        run.show(busy(rng) // 2 if run.camera.now_s % 60 < 58 else crowded(rng))
    assert (run.ladder.mode, "no faster" in run.ladder.reason) == ("off", True)
    assert run.camera.now_s - run.began_s <= MOST_S + 2 <= 300


def test_a_processor_that_slows_down_does_not_make_reuse_look_fast() -> None:
    class Slowing(Eye):
        def full(self, pixels: Pixels) -> list[Box]:
            # The verdict falls after 128 frames, 40 of which took a second pass.
            self.clock.now_s += FULL_S * (self.passes > 155)
            return super().full(pixels)

    rng, run = np.random.default_rng(0), Run(Slowing())
    while not run.has_verdict:
        run.show(crowded(rng))
    assert run.ladder.costs.full_s > 1.3 * FULL_S
    assert run.ladder.mode == "off"


def test_too_little_to_see_is_no_evidence() -> None:
    run = Run(Eye(), fps=0.5)
    while not run.has_verdict:
        run.show(STILL)
    assert run.ladder.mode == "off"
    assert "no setting agrees to 0.980 for sure over 0 boxes" in run.ladder.reason
    busy_run = Run(Eye(), fps=5)
    while not busy_run.has_verdict:
        busy_run.show(STILL)
    assert busy_run.ladder.mode == "calibrated", "1400 empty frames are"


def test_a_model_that_is_not_deterministic_is_switched_off() -> None:
    runner = Fickle()
    runner.is_fickle = True
    run = Run(runner)
    for _ in range(3):
        run.camera.show(STILL)
    assert run.ladder.mode == "off"
    assert "answers the same frame differently" in run.ladder.reason


def test_not_even_when_it_is_so_only_now_and_then() -> None:
    class Moody(Eye):
        def seen(self, pixels: Pixels) -> list[Box]:
            return [] if self.passes % 23 == 0 else super().seen(pixels)

    run = Run(Moody())
    while not run.has_verdict:
        run.camera.show(painted(STILL, (40, 80)))
    assert "answers the same frame differently" in run.ladder.reason


@pytest.mark.parametrize("period", [1, 3, 20])
def test_answers_that_hang_on_what_the_mask_does_not_see_are_not_reused(period: int) -> None:
    """One bit of one pixel says where the object is; the model always sees it."""

    class Sharp(Eye):
        def seen(self, pixels: Pixels) -> list[Box]:
            left = 0.5 * (int(pixels[0, 0, 0]) & 1)
            return [[left, 0.1, left + 0.3, 0.6, 0.9, 0]]

    run = Run(Sharp())
    frame = STILL.copy()
    for index in range(1600):
        frame = frame.copy()
        frame[0, 0, 0] = 100 + (index // period) % 2
        run.show(frame)
    assert run.ladder.mode == "off"
    assert "no setting agrees" in run.ladder.reason
    assert run.ladder.target >= LEAST_TARGET
    assert run.agreed.agreement >= TARGET


def test_the_target_is_the_noise_floor_where_that_is_lower() -> None:
    """A tenth of this model's boxes come and go with a grey level of noise."""

    class Borderline(Eye):
        def seen(self, pixels: Pixels) -> list[Box]:
            sure: list[Box] = [[0.1 * n, 0.1, 0.1 * n + 0.05, 0.3, 0.9, 0] for n in range(9)]
            value = int(pixels[40:56, 40:56].sum(dtype=np.int64))
            return sure + ([[0.5, 0.5, 0.7, 0.9, 0.31, 0]] if value % 4 < 2 else [])

    runner = Borderline()
    ladder = live(runner)
    calibration = Calibration(ladder)
    for index in range(200):
        ladder.costs.learn_full(FULL_S)
        assert index < LEAST_FRAMES or calibration.target < TARGET
        if calibration.observe(STILL, runner.full(STILL), 0.1 * index):
            break
    assert 0.9 < calibration.target < TARGET


def test_a_change_of_character_is_answered_in_full_and_calibrated_again() -> None:
    """Quiet, then a crowd, then quiet: never a wrong answer, and the rungs follow."""
    rng, run = np.random.default_rng(0), Run(Eye(), fps=30)
    modes: list[str] = []

    def quiet(index: int) -> Pixels:
        return flickering(index, 20 + 24 * (index // 30 % 4))

    def crowd(index: int) -> Pixels:
        return crowded(rng)

    for scene, frames in ((quiet, 1400), (crowd, 700), (quiet, 1700)):
        for index in range(frames):
            run.show(scene(index))
        modes.append(run.ladder.mode)
    assert modes == ["calibrated", "off", "calibrated"]
    assert run.agreed.agreement == 1
    assert run.ladder.stats["breaches"] == 0


# --- sparse trials ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def differential() -> Differential:
    return Differential(SMALL, SIZE, CPU)


def calibration_of(differential: Differential | None, **more: int) -> tuple[Calibration, Ladder]:
    ladder = live(Eye(Clock()), differential)
    ladder.costs.learn_full(FULL_S)
    return Calibration(ladder, **more), ladder


def test_sparse_trials_fit_the_memory_given_and_all_is_counted(differential: Differential) -> None:
    state_bytes = differential.state_bytes
    for room, expected in ((0, 1), (2 * state_bytes, 2), (100 * state_bytes, len(SPARSE))):
        calibration, _ = calibration_of(differential, states_bytes=room)
        sparse = [trial for trial in calibration.trials if trial.setting.level is not None]
        assert len(sparse) == expected
        assert calibration.size_bytes == 0
        calibration.observe(STILL, [], 0.0)
        # All gates share one image, each sparse trial has its own and a state.
        wanted = STILL.nbytes + expected * (STILL.nbytes + state_bytes)
        assert calibration.size_bytes == wanted
    without, _ = calibration_of(None)
    assert {trial.setting.level for trial in without.trials} == {None}


def test_a_cut_drops_the_references(differential: Differential) -> None:
    calibration, _ = calibration_of(differential)
    for _ in range(3):
        calibration.observe(STILL, [], 0.0)
    passes = [trial.passes for trial in calibration.trials]
    calibration.cut()
    calibration.observe(STILL, [], 0.1)
    assert [trial.passes for trial in calibration.trials] == [one + 1 for one in passes]


def test_a_trial_whose_pass_fails_is_ended_and_the_others_go_on() -> None:
    model = Differential(overflowing(), SIZE, CPU)
    calibration, ladder = calibration_of(model)
    flash = painted(STILL, (40, 80))
    flash[:40, :70] = 255  # beyond every gate
    verdict, index = None, 0
    while verdict is None:
        frame = flash if index in (50, 51) else painted(STILL, (40, 80))
        verdict = calibration.observe(frame, ladder.runner.full(frame), 0.1 * index)
        index += 1
    assert verdict.setting is not None, verdict.reason
    assert verdict.setting.level is None


def test_where_something_always_moves_a_sparse_setting_is_found(differential: Differential) -> None:
    """Sparse passes take no time on this clock: what is asserted is that they are chosen."""
    run, index = Run(Eye(), differential=differential), 0

    def frame() -> Pixels:
        return painted(STILL, (40, 8 * index % 140))

    while not run.has_verdict:
        run.show(frame())
        index += 1
    assert run.ladder.mode == "calibrated", run.ladder.reason
    assert run.ladder.setting.level is not None
    for _ in range(200):
        run.show(frame())
        index += 1
    assert run.ladder.stats["sparse"] > 150
    assert run.agreed.agreement == 1


def test_without_any_frame_the_verdict_is_off() -> None:
    calibration, _ = calibration_of(None)
    verdict = calibration.conclude()
    assert isinstance(verdict, Verdict)
    assert verdict.setting is None


# --- footage ------------------------------------------------------------------------------------


def footage(path: Path, frames: int) -> list[Pixels]:
    """Return frames of a clip at 320 x 192."""
    import av

    scaler, found = Scaler(), []
    with av.open(str(path), "r") as container:
        container.streams.video[0].codec_context.thread_count = 1
        for frame in container.decode(video=0):
            found.append(scaler.to_bgr(frame, 320, 192))
            if len(found) == frames:
                break
    return found


def test_on_footage_of_a_quiet_room_reuse_is_found_and_right(
    assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = assets / "videos" / "one-by-one-person-detection.mp4"
    if not clip.is_file():
        pytest.skip(f"{clip} is missing")
    monkeypatch.setattr(calibrations, "ENOUGH_BOXES", 250.0)
    frames = footage(clip, 900)
    size = (192, 320)
    session = open_warm(load_manifest().variants["small"], AcceleratorSpec("cpu0", "cpu"))

    class Real:
        def full(self, pixels: Pixels) -> list[Box]:
            return session.run(Canvas(pixels, size[1], size[0]))

        def decode(self, outputs: list[Floats], pixels: Pixels) -> list[Box]:
            return session.decode(outputs, Canvas(pixels, size[1], size[0]))

    runner = Real()
    ladder = Ladder(
        runner,
        Differential(SMALL, size, CPU),
        CostModel(),
        size,
        calibrate=Calibration,
    )
    camera, agreed, scored = Camera(ladder), Evidence(), 0
    for frame in frames:
        is_scored = ladder.mode == "calibrated"
        boxes, _ = camera.show(frame)
        if is_scored:
            agreed.add(runner.full(frame), boxes)
            scored += 1
    assert scored >= 100, ladder.reason
    assert agreed.boxes > 50
    assert agreed.agreement >= 0.9, ladder.reason
    reused = sum(ladder.stats[rung] for rung in ("same", "gate", "sparse"))
    assert reused > 0.1 * scored
    assert ladder.setting != Setting()


def test_the_scenes_of_these_tests_are_what_they_say() -> None:
    """Else nothing above would mean what it seems to."""
    run = Run(Eye())
    change = run.ladder.mask.compare(flickering(1, 80), flickering(0, 80), 8.0)
    assert change.cells.sum() == 8
    moved = run.ladder.mask.compare(flickering(0, 44), flickering(0, 20), 8.0)
    assert moved.cells.sum() == 24
    assert Eye().seen(flickering(0, 20)) != Eye().seen(flickering(0, 44))
    assert (
        len(Eye().seen(noisy(painted(picture(160, 96), (40, 80)), 1.0, np.random.default_rng())))
        == 1
    )
