"""The native executor's states: warm and cold, thresholds, broken input, masks by block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.delta.native import NativeProgram, library
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
def test_nobody_writes_into_the_ring(seed: int) -> None:
    """The zeros around a map are read as padding: they stay zeros."""
    size = (37, 41)
    plan = compiled(write_model(random_net(seed)), size)[2]
    program = NativeProgram(plan)
    state = program.new_state()
    rng = np.random.default_rng(seed)
    program.run(state, rng.uniform(-1, 1, (*size, 3)).astype(np.float32))
    for buffer in plan.buffers.values():
        whole = state.floats[buffer.offset : buffer.offset + buffer.floats]
        lines = whole.reshape(-1, buffer.pitch, buffer.channels).copy()
        top, left = buffer.ring[:2]
        lines[top : top + buffer.height, left : left + buffer.width] = 0
        assert not lines.any()


def test_an_unknown_variant_is_refused(plan: Plan) -> None:
    with pytest.raises(ModelError, match="no native kernels 'abacus'"):
        NativeProgram(plan, "abacus")
