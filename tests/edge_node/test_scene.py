"""Generated scenes: pure, noisy for ever, mostly empty, crossed by something person-shaped."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_node.cameras.scene import _NOISE_OFFSETS, _NOISE_STEPS, BUSY_SEED, EMPTY_S, SPELL_S, Scene

FPS = 10.0
ROOT = Path(__file__).parents[2]


def _visit(scene: Scene) -> tuple[int, float]:
    """Return the number of the first spell with a visitor, and when that visitor enters."""
    for spell in range(100):
        walkers = scene.walkers(spell)
        if walkers:
            return spell, min(walker.enter_s for walker in walkers)
    raise AssertionError("a hundred spells and nobody came")


def test_a_frame_depends_on_nothing_but_its_arguments() -> None:
    first, second = Scene(11), Scene(11)
    _, enter_s = _visit(first)
    busy = int((enter_s + 2.5) * FPS)
    second.frame(3, FPS)  # another history must not matter
    for index in (busy, 0, 40):
        frame = first.frame(index, FPS)
        assert frame.dtype == np.uint8
        assert frame.shape == (368, 640, 3)
        assert np.array_equal(frame, second.frame(index, FPS))


def test_a_frame_is_the_same_in_another_process() -> None:
    program = (
        "import hashlib; from edge_node.cameras.scene import Scene;"
        "print(hashlib.sha256(Scene(5).frame(123, 10.0).tobytes()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": str(seed)}, check=True,
            capture_output=True, cwd=ROOT,
        ).stdout
        for seed in (1, 2)
    }  # fmt: skip
    assert len(digests) == 1


def test_seeds_are_different_places() -> None:
    difference = Scene(1).frame(0, FPS).astype(int) - Scene(2).frame(0, FPS).astype(int)
    assert np.abs(difference).mean() > 3


def test_the_empty_room_is_still_but_for_noise_of_two_grey_levels() -> None:
    scene = Scene(3)
    assert EMPTY_S * FPS > 60
    frames = [scene.frame(index, FPS).astype(np.int16) for index in range(0, 60, 6)]
    for before, after in itertools.pairwise(frames):
        step = after - before
        assert step.std() == pytest.approx(2.0 * np.sqrt(2), rel=0.1)
        assert abs(step.mean()) < 0.05
        assert np.abs(step).max() <= 24  # no wrap-around from black to white


def test_noise_never_repeats() -> None:
    scene = Scene(4, 64, 64)
    assert len({scene.frame(index, 1000.0).tobytes() for index in range(3000)}) == 3000
    # Steps coprime to the numbers of offsets, and those coprime to each other: by the Chinese
    # remainder theorem the pair of offsets first recurs after their product.
    (first, second), steps = _NOISE_OFFSETS, _NOISE_STEPS
    assert math.gcd(first, second) == math.gcd(first, steps[0]) == math.gcd(second, steps[1]) == 1
    assert first * second / FPS > 100 * 365 * 24 * 3600  # a century


def test_a_walker_crosses_and_leaves() -> None:
    scene = Scene(9)
    spell, enter_s = _visit(scene)
    walkers = scene.walkers(spell)
    empty = scene.frame(int(spell * SPELL_S * FPS), FPS).astype(int)
    centres = []
    for late_s in (2.0, 3.0):
        step = scene.frame(round((enter_s + late_s) * FPS), FPS).astype(int)
        moved = np.abs(step - empty).max(axis=2) > 40
        assert 1500 < moved.sum() < 60_000 * len(walkers)
        rows, columns = np.nonzero(moved)
        assert np.ptp(rows) > 0.4 * scene.height  # person-sized
        centres.append(columns.mean())
    if len(walkers) == 1:
        assert (centres[1] - centres[0]) * walkers[0].speed > 0  # and in the direction it faces
    gone = scene.frame(int(((spell + 1) * SPELL_S + 1) * FPS), FPS).astype(int)
    assert (np.abs(gone - empty).max(axis=2) > 40).sum() == 0


def test_limbs_move() -> None:
    scene = Scene(9)
    spell, enter_s = _visit(scene)
    walker = scene.walkers(spell)[0]
    pictures = []
    for late_s in (2.0, 2.3):
        frame = scene.frame(round((walker.enter_s + late_s) * FPS), FPS).astype(int)
        tall = walker.height * scene.height
        travel = late_s * abs(walker.speed) * tall - 0.4 * tall
        x = int(travel if walker.speed > 0 else scene.width - travel)
        feet = int(walker.ground * scene.height)
        pictures.append(frame[feet - int(0.5 * tall) : feet, x - 50 : x + 50])
    assert np.abs(pictures[0] - pictures[1]).max(axis=2).max() > 60
    assert enter_s <= walker.enter_s


def test_most_of_the_time_nobody_is_there() -> None:
    visits = [len(Scene(seed, 64, 64).walkers(spell)) for seed in range(20) for spell in range(10)]
    assert set(visits) == {0, 1, 2}
    for spell in range(50):
        for walker in Scene(6, 64, 64).walkers(spell):
            assert walker.enter_s >= spell * SPELL_S + EMPTY_S


def test_a_busy_scene_is_never_empty() -> None:
    scene = Scene(BUSY_SEED + 1)
    room = np.median([scene.frame(index, FPS) for index in range(0, 700, 35)], axis=0)
    for index in range(15, 700, 35):  # the first walker needs a moment to come in
        moved = np.abs(scene.frame(index, FPS) - room).max(axis=2) > 40
        assert moved.sum() > 800


@pytest.mark.parametrize(("width", "height"), [(63, 64), (64, 0)])
def test_too_small_a_scene_is_refused(width: int, height: int) -> None:
    with pytest.raises(ValueError, match="64 x 64"):
        Scene(0, width, height)


@pytest.mark.parametrize(("index", "fps"), [(-1, 10.0), (0, 0.0), (0, float("nan"))])
def test_impossible_frames_are_refused(index: int, fps: float) -> None:
    with pytest.raises(ValueError, match="no frame"):
        Scene(0, 64, 64).frame(index, fps)


def test_other_sizes_work() -> None:
    scene = Scene(2, 200, 120)
    _, enter_s = _visit(scene)
    for index in range(int(enter_s * FPS), int(enter_s * FPS) + 80):
        assert scene.frame(index, FPS).shape == (120, 200, 3)
