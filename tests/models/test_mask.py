"""The change mask sees what changed beyond noise, adds up slow drift, and knows a moved camera."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.delta import library
from models.delta.mask import MOST, Change, ChangeMask, copy_cells
from models.images import Pixels
from tests.clips import noisy, picture

SIZES = [(96, 160), (97, 161), (3, 5), (1, 1), (4, 1), (64, 4), (33, 250)]
LEVEL = 8.0


@pytest.fixture(params=["native", "numpy"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with the C kernels and without."""
    if request.param == "numpy":
        monkeypatch.setattr(library, "library", lambda: None)
    elif library.library() is None:
        pytest.skip("the native kernels were not built")
    return str(request.param)


def textured(size: tuple[int, int], seed: int = 0, channels: int = 3) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (*size, channels), np.uint8)


def plainly(pixels: Pixels, reference: Pixels, limit: float, cell: int) -> np.ndarray:
    """Return the mask cell by cell: the mean |difference| over a whole cell, zero beyond it."""
    height, width, channels = pixels.shape
    distance = np.abs(pixels.astype(int) - reference.astype(int)).sum(axis=2)
    rows, columns = -(-height // cell), -(-width // cell)
    found = np.zeros((rows, columns), np.uint8)
    for row in range(rows):
        for column in range(columns):
            part = distance[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
            found[row, column] = part.sum() / (cell * cell * channels) > limit
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cell", [4, 8])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_cell_counts_exactly_when_its_mean_difference_exceeds_the_limit(
    kernels: str, size: tuple[int, int], cell: int, channels: int
) -> None:
    rng = np.random.default_rng(1)
    reference = textured(size, channels=channels)
    step = rng.integers(-24, 25, reference.shape) * (rng.random((*size, 1)) < 0.6)
    pixels = np.clip(reference + step, 0, 255).astype(np.uint8)
    mask = ChangeMask(*size, channels, cell)
    for level in (0.0, 4.0, LEVEL):
        change = mask.compare(pixels, reference, level)
        expected = plainly(pixels, reference, level, cell)
        assert (change.cells == expected).all()
        assert change.share == expected.mean()
    assert expected.any() or min(size) < 8, "the test must see some change"


@given(st.integers(1, 40), st.integers(1, 70), st.integers(0, 1000), st.sampled_from([4, 8]))
def test_both_implementations_agree(height: int, width: int, seed: int, cell: int) -> None:
    if library.library() is None:
        pytest.skip("the native kernels were not built")
    rng = np.random.default_rng(seed)
    reference = textured((height, width), seed)
    pixels = np.where(
        rng.random(reference.shape) < 0.3, textured((height, width), seed + 1), reference
    )
    masks = ChangeMask(height, width, cell_px=cell), ChangeMask(height, width, cell_px=cell)
    kept = library.library
    copies = reference.copy(), reference.copy()
    changes: list[Change] = []
    for mask, copied, found in zip(masks, copies, (kept, lambda: None), strict=True):
        library.library = found
        try:
            mask.learn_noise(pixels, reference)
            changes += [mask.compare(pixels, reference, 3.0), mask.around(10.0, 1.0)]
            copy_cells(copied, pixels, changes[-2], cell)
        finally:
            library.library = kept
    assert masks[0].noise == masks[1].noise
    assert (copies[0] == copies[1]).all()
    for one, other in zip(changes[:2], changes[2:], strict=True):
        assert (one.cells == other.cells).all()
        assert (one.share, one.kind) == (other.share, other.kind)


def test_the_same_bytes_are_the_same_and_one_grey_level_is_not(kernels: str) -> None:
    scene = picture(160, 96)
    mask = ChangeMask(96, 160)
    assert mask.compare(scene.copy(), scene, LEVEL).kind == "same"
    other = scene.copy()
    other[95, 159, 2] ^= 1
    change = mask.compare(other, scene, LEVEL)
    assert (change.kind, change.share) == ("local", 0)


def test_copied_cells_bring_the_reference_up_to_the_frame(kernels: str) -> None:
    reference, pixels = textured((37, 50)), textured((37, 50), 1)
    mask = ChangeMask(37, 50)
    change = mask.compare(pixels, reference, 85.0)
    assert 0 < change.share < 1
    copy_cells(reference, pixels, change, 4)
    after = mask.compare(pixels, reference, 85.0)
    assert after.share == 0
    where = change.cells.repeat(4, axis=0).repeat(4, axis=1)[:37, :50] > 0
    assert (reference[where] == pixels[where]).all()
    assert (reference[~where] == textured((37, 50))[~where]).all()


def test_a_switched_light_is_brightness_a_moved_camera_a_scene(kernels: str) -> None:
    scene = picture(320, 192, seed=3)
    mask = ChangeMask(192, 320)
    brighter = np.clip(scene.astype(int) + 25, 0, 255).astype(np.uint8)
    darker = (scene * 0.7).astype(np.uint8)
    assert mask.compare(brighter, scene, LEVEL).kind == "brightness"
    assert mask.compare(darker, scene, LEVEL).kind == "brightness"
    assert mask.compare(np.roll(scene, 12, axis=1), scene, LEVEL).kind == "scene"
    assert mask.compare(picture(320, 192, seed=4), scene, LEVEL).kind == "scene"


def test_what_moves_in_part_of_the_picture_is_local_however_bright(kernels: str) -> None:
    scene = picture(320, 192)
    lamp = scene.copy()
    lamp[:96] = 255
    change = ChangeMask(192, 320).compare(lamp, scene, LEVEL)
    assert change.kind == "local"
    assert 0.4 < change.share <= MOST


@pytest.mark.parametrize("sigma", [0.5, 2.0, 6.0])
def test_noise_is_learned_and_is_no_change(kernels: str, sigma: float) -> None:
    rng, scene, mask = np.random.default_rng(2), picture(320, 192), ChangeMask(192, 320)
    frames = [noisy(scene, sigma, rng) for _ in range(6)]
    for last, pixels in itertools.pairwise(frames):
        mask.learn_noise(pixels, last)
    # Of two frames: sigma * 2 / sqrt(pi), and what rounding to bytes adds.
    assert mask.noise == pytest.approx(sigma * 2 / np.pi**0.5, rel=0.25, abs=0.3)
    assert mask.compare(frames[-1], frames[0], 3.0).share < 0.002
    person = frames[-1].copy()
    person[80:112, 100:112] += 40
    change = mask.compare(person, frames[0], LEVEL)
    assert change.cells[20:28, 25:28].mean() > 0.9
    assert change.share == pytest.approx(24 / change.cells.size, abs=0.003)


def test_motion_does_not_raise_the_noise(kernels: str) -> None:
    rng, scene, mask = np.random.default_rng(2), picture(320, 192), ChangeMask(192, 320)
    quiet = ChangeMask(192, 320)
    last = noisy(scene, 2.0, rng)
    for index in range(16):
        pixels = noisy(scene, 2.0, rng)
        quiet.learn_noise(pixels, last)
        if index % 2:  # half of the time something crosses most of the picture
            pixels[:, 10 * index : 10 * index + 150] = (
                255 - pixels[:, 10 * index : 10 * index + 150]
            )
        mask.learn_noise(pixels, last)
        last = noisy(scene, 2.0, rng)
    assert mask.noise < 1.1 * quiet.noise


def test_motion_everywhere_does_not_pass_for_noise() -> None:
    """Else a crowd that stays would end up unseen."""
    rng, mask = np.random.default_rng(0), ChangeMask(96, 160)
    frames = [textured((96, 160), seed) // 2 for seed in range(40)]
    for last, pixels in itertools.pairwise(frames):
        mask.learn_noise(pixels, last)
    assert mask.compare(frames[0], frames[1], LEVEL).share > 0.9
    person = noisy(frames[0], 2.0, rng)
    person[40:60, 40:60] += 60
    assert mask.compare(person, frames[0], LEVEL).share > 0


def test_noise_of_another_node_is_taken_until_there_is_ones_own() -> None:
    scene, mask = picture(160, 96), ChangeMask(96, 160)
    mask.assume_noise(5.0)
    assert mask.noise == 5.0
    mask.learn_noise(scene, scene)
    mask.assume_noise(9.0)
    assert mask.noise < 9.0


def test_slow_drift_adds_up_against_the_reference(kernels: str) -> None:
    scene, mask = picture(160, 96).astype(np.float32), ChangeMask(96, 160)
    reference = last = scene.astype(np.uint8)
    seen = None
    for index in range(60):
        scene[20:60, 40:80] += 0.5
        pixels = scene.astype(np.uint8)
        assert mask.compare(pixels, last, LEVEL).share == 0, "no step is seen by itself"
        if seen is None and mask.compare(pixels, reference, LEVEL).share:
            seen = index
        last = pixels
    assert seen is not None
    assert 15 <= seen <= 18


def test_near_a_change_finer_ones_count_far_from_it_they_do_not(kernels: str) -> None:
    scene = picture(320, 192)
    pixels = scene.copy()
    pixels[64:80, 64:80] += 60  # a person
    pixels[64:80, 84:92] += 4  # its shadow
    pixels[160:170, 240:260] += 4  # the codec
    mask = ChangeMask(192, 320)
    coarse = mask.compare(pixels, scene, LEVEL)
    fine = mask.around(LEVEL, 1.0)
    assert coarse.cells.sum() == 16
    assert (fine.cells[coarse.cells > 0] == 1).all()
    assert fine.cells[16:20, 21:23].all()
    assert not fine.cells[40:, 60:].any()
    assert fine.share == fine.cells.mean()


def test_around_works_at_every_odd_size(kernels: str) -> None:
    for size in SIZES:
        reference = textured(size)
        pixels = reference.copy()
        pixels[-1, -1] ^= 0xFF
        mask = ChangeMask(*size)
        change = mask.compare(pixels, reference, 0.0)
        assert change.cells[-1, -1] == 1
        assert (mask.around(0.0, 0.0).cells == change.cells).all()


def test_what_cannot_be_compared_is_refused(kernels: str) -> None:
    with pytest.raises(ValueError, match="0 x 96 pixels has no area"):
        ChangeMask(96, 0)
    with pytest.raises(ValueError, match="no area"):
        ChangeMask(0, 96)
    with pytest.raises(ValueError, match="cells of 5 pixels"):
        ChangeMask(96, 96, cell_px=5)
    with pytest.raises(ValueError, match="5 channels"):
        ChangeMask(96, 96, 5)
    mask = ChangeMask(96, 160)
    scene = picture(160, 96)
    for wrong in (picture(320, 192), scene[:1], scene[:, :1], scene[..., :1]):
        with pytest.raises(ValueError, match="a frame of"):
            mask.compare(wrong, scene, LEVEL)
        with pytest.raises(ValueError, match="a frame of"):
            mask.compare(scene, wrong, LEVEL)
        with pytest.raises(ValueError, match="a frame of"):
            mask.learn_noise(wrong, wrong)
