"""Maps that no state holds: chosen within a budget, computed again, shared by cameras."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.delta.native import NativeProgram, library
from models.delta.onnxfile import Attribute, Model, write_model
from models.delta.plan import Plan
from tests.delta_nets import Net, random_net
from tests.models.test_delta_exact import ZOO, compiled

SMALL = (ZOO / "person-detector-small.onnx").read_bytes()
EVERYTHING = 1 << 40
native = pytest.mark.skipif(library() is None, reason="the native kernels were not built")


def planned(seed: int, budget_bytes: int) -> Plan:
    return compiled(write_model(random_net(seed)), (37, 41), budget_bytes)[2]


def bytes_held(plan: Plan) -> int:
    return sum(4 * buffer.floats for buffer in plan.buffers.values() if not buffer.is_shared)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("budget_bytes", [0, EVERYTHING])
def test_steps_come_after_what_they_read_and_segments_keep_together(
    seed: int, budget_bytes: int
) -> None:
    plan = planned(seed, budget_bytes)
    made = {plan.input_name}
    for step in plan.steps:
        assert set(step.layer.reads) <= made
        made.add(step.layer.output)
    numbers = [step.segment for step in plan.steps]
    assert numbers == sorted(numbers)
    shared = {name for name, place in plan.places.items() if plan.buffers[place.buffer].is_shared}
    segment_of = {step.layer.output: step.segment for step in plan.steps}
    for step in plan.steps:
        for name in shared & set(step.layer.reads) - {plan.input_name}:
            assert segment_of[name] == step.segment, "its readers run in the same segment"
        assert not (step.prunes and step.layer.output in shared), "there is nothing to compare with"
    assert not shared & set(plan.frontier.values())


@pytest.mark.parametrize("seed", range(8))
def test_a_budget_is_kept_where_possible_and_not_undercut_needlessly(seed: int) -> None:
    most, least = (bytes_held(planned(seed, budget)) for budget in (EVERYTHING, 0))
    assert least <= most
    middle = planned(seed, (most + least) // 2)
    assert bytes_held(middle) <= (most + least) // 2
    whole = planned(seed, EVERYTHING)
    assert [name for name, one in whole.buffers.items() if one.is_shared] == [whole.input_name]


def test_the_reference_model_fits_its_memory(assets: Path) -> None:
    data = (assets / "models/yolox_nano_dyn.onnx").read_bytes()
    plan = compiled(data, (384, 640))[2]
    assert plan.state_bytes <= 24_000_000
    assert plan.scratch_bytes <= 24_000_000


@native
@pytest.mark.parametrize("seed", range(8))
def test_cameras_that_share_a_program_do_not_disturb_each_other(seed: int) -> None:
    plan = planned(seed, 0)
    program, alone = NativeProgram(plan), NativeProgram(plan)
    rng = np.random.default_rng(seed)
    frames = rng.uniform(-1, 1, (2, 37, 41, 3)).astype(np.float32)
    states, fresh = [program.new_state(), program.new_state()], alone.new_state()
    for state, frame in zip(states, frames, strict=True):
        program.run(state, frame)
    for _ in range(3):
        for state, frame in zip(states, frames, strict=True):
            top, left = rng.integers(0, 30, 2)
            mask = np.zeros((37, 41), np.uint8)
            mask[top : top + 5, left : left + 7] = 1
            frame[mask > 0] = rng.uniform(-1, 1, 3)
            program.run(state, frame, mask)
            alone.run(fresh, frame)
            assert (state.floats == fresh.floats).all()


def image_beside() -> Model:
    """Return a network that reads the image by windows, by position and beside a convolution."""
    net = Net()
    wide = net.conv("image", 3, 3)
    scale = (net.constant([]), net.constant([1, 1, 2, 2]))
    how: dict[str, Attribute] = {
        "mode": b"nearest",
        "coordinate_transformation_mode": b"asymmetric",
        "nearest_mode": b"floor",
    }
    twice = net.add("Resize", "image", *scale, **how)
    return net.model(net.conv(net.add("Add", wide, "image"), 5, 1), net.conv(twice, 4, 3, 2))


@native
@pytest.mark.parametrize("block", [2, 4, 8])
@pytest.mark.parametrize("budget_bytes", [0, EVERYTHING])
@pytest.mark.parametrize("seed", range(-1, 6))
def test_cells_of_any_size_are_as_exact_as_pixels(seed: int, budget_bytes: int, block: int) -> None:
    size = (37, 42)
    data = write_model(image_beside() if seed < 0 else random_net(seed))
    program = NativeProgram(compiled(data, size, budget_bytes)[2])
    rng = np.random.default_rng(block)
    pixels = rng.integers(0, 256, (*size, 3), np.uint8)
    state, fresh = program.new_state(), program.new_state()
    program.run(state, pixels, mean=100, scale=0.02)
    for _ in range(4):
        cells = (rng.random((-(-size[0] // block), -(-size[1] // block))) < 0.05).astype(np.uint8)
        cells[-1, -1] = 1
        mask = cells.repeat(block, 0).repeat(block, 1)[: size[0], : size[1], None]
        pixels = np.where(mask > 0, rng.integers(0, 256, pixels.shape, np.uint8), pixels)
        program.run(state, pixels, 255 * cells, block=block, mean=100, scale=0.02)
        program.run(fresh, pixels, mean=100, scale=0.02)
        assert (state.floats == fresh.floats).all()


@native
def test_a_tuned_program_gives_the_same_and_what_is_not_held_is_not_read() -> None:
    size = (96, 160)
    plan = compiled(SMALL, size, 0)[2]
    program, plain = NativeProgram(plan), NativeProgram(plan)
    program.tune()
    assert ((program.dense_above > 0) & (program.dense_above <= 1)).all()
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (2, *size, 3), np.uint8)
    mask = np.zeros((24, 40), np.uint8)
    mask[3:20, 5:38] = 1
    second = np.where(mask.repeat(4, 0).repeat(4, 1)[..., None] > 0, second, first)
    one, other = program.new_state(), plain.new_state()
    program.run(one, first)
    program.run(one, second, mask, block=4)
    plain.run(other, second)
    assert (one.floats == other.floats).all()
    with pytest.raises(ValueError, match="no state holds"):
        program.rows(one, "s8.0.relu")
