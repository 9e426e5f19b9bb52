"""The native executor's states: warm and cold, thresholds, broken input, masks by block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.delta.native import NativeProgram, block_sums, copy_cells, library
from models.delta.onnxfile import write_model
from models.delta.plan import Plan, work_left
from models.wire import ModelError
from tests.delta_nets import Net, changed, random_net
from tests.models.test_delta_exact import compiled

SIZE = (96, 160)

pytestmark = pytest.mark.skipif(library() is None, reason="the native kernels were not built")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compiled(Path("models/zoo/person-detector-small.onnx").read_bytes(), SIZE)[2]


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (*SIZE, 3)).astype(np.float32)


def block() -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[40:56, 48:80] = 1
    return mask


def test_a_cold_state_gets_a_full_pass_whatever_the_mask_says(plan: Plan) -> None:
    program = NativeProgram(plan)
    state, other = program.new_state(), program.new_state()
    assert program.run(state, picture(), np.zeros(SIZE, np.uint8)).work == 1
    program.run(other, picture())
    assert (state.floats == other.floats).all()
    assert state.size_bytes == plan.state_bytes


def test_sparse_is_bit_for_bit_what_full_is(plan: Plan) -> None:
    program = NativeProgram(plan)
    state, fresh = program.new_state(), program.new_state()
    program.run(state, picture())
    pixels = changed(picture(), block(), np.random.default_rng(3))
    done = program.run(state, pixels, block())
    program.run(fresh, pixels)
    assert (state.floats == fresh.floats).all()
    assert 0 < done.work <= work_left(plan, block() > 0) + 1e-6
    assert program.run(state, pixels, np.zeros(SIZE, np.uint8)).work == 0


def test_what_comes_out_unchanged_goes_no_further(plan: Plan) -> None:
    program = NativeProgram(plan)
    state = program.new_state()
    program.run(state, picture())
    again = program.run(state, picture(), block())
    assert again.dirty.max() > 0
    assert not again.changed.any()
    assert again.work < 0.5 * work_left(plan, block() > 0)


def test_a_threshold_holds_small_changes_back(plan: Plan) -> None:
    program = NativeProgram(plan)
    names = [step.layer.output for step in plan.steps if step.prunes]
    state = program.new_state()
    program.run(state, picture())
    pixels = picture()
    pixels[40:56, 48:80] += 1
    exact = program.run(state, pixels, block()).work
    program.set_thresholds(dict.fromkeys(names, 1e6))
    assert program.run(state, picture(), block()).work < 0.5 * exact
    program.set_thresholds({})
    program.run(state, picture())
    assert program.run(state, pixels, block()).work == exact
    with pytest.raises(ValueError, match="no threshold"):
        program.set_thresholds({"no such map": 0.1})
    with pytest.raises(ValueError, match="no threshold"):
        program.set_thresholds({names[0]: -1.0})


def test_not_a_number_is_refused_and_leaves_no_trace(plan: Plan) -> None:
    program = NativeProgram(plan)
    state, fresh = program.new_state(), program.new_state()
    program.run(state, picture())
    broken = picture()
    broken[50, 60, 1] = np.nan
    with pytest.raises(ModelError, match="not finite"):
        program.run(state, broken, block())
    assert not state.is_warm
    done = program.run(state, picture(), np.zeros(SIZE, np.uint8))
    assert done.work == 1, "after the failure everything is computed again"
    program.run(fresh, picture())
    assert (state.floats == fresh.floats).all()


def test_not_a_number_in_the_state_never_stays_unseen(plan: Plan) -> None:
    program = NativeProgram(plan)
    state = program.new_state()
    program.run(state, picture())
    name = "s8.0.relu"  # read by a 3 x 3 convolution: windows reach beyond what is dirty
    buffer = plan.buffers[plan.places[name].buffer]
    state.floats[buffer.offset : buffer.offset + buffer.floats] = np.nan
    with pytest.raises(ModelError, match="not finite"):
        program.run(state, changed(picture(), block(), np.random.default_rng(1)), block())
    program.run(state, picture())
    for name in plan.frontier.values():
        assert np.isfinite(program.rows(state, name)).all()


def test_frames_of_another_size_or_a_foreign_state_are_refused(plan: Plan) -> None:
    program = NativeProgram(plan)
    state = program.new_state()
    program.run(state, picture())
    before = state.floats.copy()
    with pytest.raises(ValueError, match="pixels are"):
        program.run(state, picture()[:-1])
    with pytest.raises(ValueError, match="are none"):
        program.run(state, picture(), np.zeros((8, 8), np.uint8), block=0)
    with pytest.raises(ValueError, match="the mask is"):
        program.run(state, picture(), np.zeros((8, 8), np.uint8))
    assert state.is_warm
    assert (state.floats == before).all()
    net = Net()
    other = NativeProgram(compiled(write_model(net.model(net.conv("image", 5, 3))), SIZE)[2])
    with pytest.raises(ValueError, match="another model"):
        other.run(state, picture())


def test_bytes_and_masks_by_block(plan: Plan) -> None:
    program = NativeProgram(plan)
    state, fresh = program.new_state(), program.new_state()
    pixels = picture().astype(np.uint8)
    program.run(state, pixels, mean=10, scale=0.5)
    program.run(fresh, (pixels.astype(np.float32) - 10) * np.float32(0.5))
    assert np.allclose(state.floats, fresh.floats, rtol=1e-6)
    pixels = pixels.copy()
    pixels[41:55, 50:79] = 255 - pixels[41:55, 50:79]
    cells = np.zeros((SIZE[0] // 4, SIZE[1] // 4), np.uint8)
    cells[10:14, 12:20] = 255
    program.run(state, pixels, cells, block=4, mean=10, scale=0.5)
    program.run(fresh, pixels, mean=10, scale=0.5)
    assert (state.floats == fresh.floats).all()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget_bytes", [0, 1 << 30])
def test_nobody_writes_into_the_ring(seed: int, budget_bytes: int) -> None:
    """The zeros around a map are read as padding: they stay zeros."""
    size = (37, 41)
    plan = compiled(write_model(random_net(seed)), size, budget_bytes)[2]
    program = NativeProgram(plan)
    state = program.new_state()
    rng = np.random.default_rng(seed)
    program.run(state, rng.uniform(-1, 1, (*size, 3)).astype(np.float32))
    for buffer in plan.buffers.values():
        floats = program.scratch if buffer.is_shared else state.floats
        whole = floats[buffer.offset : buffer.offset + buffer.floats]
        lines = whole.reshape(-1, buffer.pitch, buffer.channels).copy()
        top, left = buffer.ring[:2]
        lines[top : top + buffer.height, left : left + buffer.width] = 0
        assert not lines.any()


def test_an_unknown_variant_is_refused(plan: Plan) -> None:
    with pytest.raises(ModelError, match="no native kernels 'abacus'"):
        NativeProgram(plan, "abacus")


@pytest.mark.parametrize("block", [1, 4, 8])
@pytest.mark.parametrize(
    "shape", [(384, 640, 3), (37, 41, 3), (5, 3, 1), (17, 700, 4), (9, 1500, 3)]
)
def test_block_sums_are_those_of_numpy(shape: tuple[int, int, int], block: int) -> None:
    rng = np.random.default_rng(block)
    now, reference = rng.integers(0, 256, (2, *shape)).astype(np.uint8)
    now[:block, :block], reference[:block, :block] = 255, 0  # the largest sum there can be
    cells = (-(-shape[0] // block), -(-shape[1] // block))
    sums = np.full(cells, 7, np.uint16)
    totals = block_sums(now, reference, block, sums)
    signed = now.astype(int) - reference
    rows = np.add.reduceat(abs(signed).sum(2), np.arange(0, shape[0], block), axis=0)
    assert (sums == np.add.reduceat(rows, np.arange(0, shape[1], block), axis=1)).all()
    assert totals == (abs(signed).sum(), signed.sum())


@pytest.mark.parametrize("block", [1, 4, 8])
@pytest.mark.parametrize("shape", [(37, 41, 3), (5, 3, 1)])
def test_copied_cells_and_no_others_equal_the_frame(
    shape: tuple[int, int, int], block: int
) -> None:
    rng = np.random.default_rng(block)
    now, reference = rng.integers(0, 256, (2, *shape)).astype(np.uint8)
    cells = (-(-shape[0] // block), -(-shape[1] // block))
    mask = rng.integers(0, 2, cells).astype(np.uint8)
    mask[-1, -1] = 255
    pixels = np.repeat(np.repeat(mask, block, 0), block, 1)[: shape[0], : shape[1], None]
    wanted = np.where(pixels > 0, now, reference)
    copy_cells(reference, now, mask, block)
    assert (reference == wanted).all()


def test_images_that_do_not_fit_the_cells_are_refused() -> None:
    now, sums = np.zeros((8, 12, 3), np.uint8), np.zeros((2, 3), np.uint16)
    for other, block, into in [
        (now[:-1], 4, sums),
        (now, 8, sums),
        (now, 16, np.zeros((1, 1), np.uint16)),
        (np.asfortranarray(now), 4, sums),
        (now, 4, sums.astype(np.uint8)),
    ]:
        with pytest.raises(ValueError, match=r"is not|are too|do not"):
            block_sums(now, other, block, into)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is not a contiguous"):
        copy_cells(now.copy(), now, np.zeros((2, 2), np.uint8), 4)
