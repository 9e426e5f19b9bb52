"""A model at one size: sparse passes equal full ones, what is broken leaves no trace."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from models.accelerators import AcceleratorSpec
from models.delta.differential import CameraState, Differential, Refused
from models.delta.layers import Floats
from models.delta.library import library
from models.delta.onnxfile import Model, write_model
from models.images import Pixels
from models.wire import ModelError
from tests.clips import picture, tiny_detector
from tests.delta_nets import TOLERANCE, Net, random_net

CPU = AcceleratorSpec("cpu0", "cpu")
SMALL = Path("models/zoo/person-detector-small.onnx").read_bytes()
SIZE = (96, 160)
CELLS = (24, 40)


@pytest.fixture(params=["native", "graph"])
def executor(request: pytest.FixtureRequest) -> str:
    """Run a test on both executors."""
    if request.param == "native" and library() is None:
        pytest.skip("the native kernels were not built")
    return str(request.param)


def differential(data: bytes, executor: str = "", size: tuple[int, int] = SIZE) -> Differential:
    return Differential(data, size, CPU, executor=executor)


def noise(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> Pixels:
    return rng.integers(0, 256, (*size, 3), np.uint8)


def whole(data: bytes, pixels: Pixels) -> list[Floats]:
    """Return what ONNX Runtime makes of the model file itself."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"])
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], dtype=np.float32)
    outputs: list[Floats] = session.run(None, {session.get_inputs()[0].name: planes})
    return outputs


def error(found: list[Floats], expected: list[Floats]) -> float:
    """Return the largest difference as a share of each output's scale."""
    assert [one.shape for one in found] == [one.shape for one in expected]
    return max(
        float(np.abs(one - two).max() / (np.abs(two).max() + 1e-9))
        for one, two in zip(found, expected, strict=True)
    )


def change(pixels: Pixels, rng: np.random.Generator) -> np.ndarray:
    """Write a random patch, often at an edge; return the cells it touches."""
    cells = np.zeros(CELLS, np.uint8)
    row, column = rng.integers(-2, CELLS[0]), rng.integers(-2, CELLS[1])
    rows = slice(max(0, row), row + rng.integers(3, 8))
    columns = slice(max(0, column), column + rng.integers(3, 8))
    cells[rows, columns] = 1
    where = cells.repeat(4, axis=0).repeat(4, axis=1) > 0
    pixels[where] = noise(rng)[where]
    return cells


MODELS = {
    "small": SMALL,
    "random 1": write_model(random_net(1)),
    "random 7": write_model(random_net(7)),
}


@pytest.mark.parametrize("name", MODELS)
def test_many_sparse_passes_at_level_0_equal_the_full_pass(name: str, executor: str) -> None:
    rng, data = np.random.default_rng(4), MODELS[name]
    model = differential(data, executor)
    state, pixels = model.new_state(), noise(rng)
    outputs, work = model.run(state, pixels)
    assert work == 1
    assert error(outputs, whole(data, pixels)) <= TOLERANCE
    saved = 0.0
    for _ in range(25):
        outputs, work = model.run(state, pixels, change(pixels, rng))
        saved += 1 - work
    assert error(outputs, whole(data, pixels)) <= TOLERANCE
    if name == "small":
        assert saved > 5, "much of the work was not done"


def test_a_change_left_out_of_the_mask_is_noticed(executor: str) -> None:
    """The test above can fail: what the mask does not name stays as it was."""
    rng = np.random.default_rng(5)
    model, pixels = differential(SMALL, executor), noise(rng)
    state = model.new_state()
    model.run(state, pixels)
    cells = change(pixels, rng)
    hidden = np.zeros_like(cells)
    outputs, _ = model.run(state, pixels, hidden)
    assert error(outputs, whole(SMALL, pixels)) > 100 * TOLERANCE
    outputs, _ = model.run(state, pixels, cells)
    assert error(outputs, whole(SMALL, pixels)) <= TOLERANCE


def test_levels_prune_from_the_first_camera_on(executor: str) -> None:
    """Thresholds are shares of what an image gave: there must be some before a pass is pruned."""
    scene = picture(SIZE[1], SIZE[0], seed=1)
    later = scene.copy()
    later[40:56, 60:90] ^= 3  # too little to matter
    cells = np.zeros(CELLS, np.uint8)
    cells[10:14, 15:23] = 1
    errors = {}
    for level in (0.0, 4.0):
        model = differential(SMALL, executor)
        state = model.new_state(level)
        model.run(state, scene)
        outputs, _ = model.run(state, later, cells)
        errors[level] = error(outputs, whole(SMALL, later))
    assert errors[0.0] <= TOLERANCE < errors[4.0] < 0.3


def test_levels_of_cameras_that_take_turns_do_not_mix(executor: str) -> None:
    rng = np.random.default_rng(6)
    model = differential(SMALL, executor)
    exact, coarse = model.new_state(), model.new_state(8.0)
    pixels = noise(rng)
    model.run(coarse, pixels)
    model.run(exact, pixels)
    for _ in range(6):
        cells = change(pixels, rng)
        model.run(coarse, pixels, cells)
        outputs, _ = model.run(exact, pixels, cells)
        assert error(outputs, whole(SMALL, pixels)) <= TOLERANCE


def test_a_frame_of_another_size_midway_is_refused_and_does_no_harm(executor: str) -> None:
    rng = np.random.default_rng(7)
    model, pixels = differential(SMALL, executor), noise(rng)
    state = model.new_state()
    model.run(state, pixels)
    for wrong in (noise(rng, (192, 320)), noise(rng, (160, 96)), pixels[..., :1]):
        with pytest.raises(ValueError, match="pixels are"):
            model.run(state, wrong, np.ones(CELLS, np.uint8))
    with pytest.raises(ValueError, match="mask"):
        model.run(state, pixels, np.ones((3, 3), np.uint8))
    outputs, _ = model.run(state, pixels, change(pixels, rng))
    assert error(outputs, whole(SMALL, pixels)) <= TOLERANCE


def overflowing() -> bytes:
    """Return a network that overflows where a window is white, and is finite elsewhere."""
    net = Net()
    x = net.conv("image", 4, 3)
    weight, bias = net.nodes[-1].inputs[1:]
    net.constants[weight] = np.ones((4, 3, 3, 3), np.float32)
    net.constants[bias] = np.full(4, -6500, np.float32)  # of 27 * 255
    x = net.conv(net.add("Relu", x), 3, 1)
    net.constants[net.nodes[-1].inputs[1]] = np.full((3, 4, 1, 1), 1e38, np.float32)
    return write_model(net.model(x))


def test_not_a_number_makes_the_state_cold_and_says_so(executor: str) -> None:
    model = differential(overflowing(), executor)
    state, dark = model.new_state(), np.zeros((*SIZE, 3), np.uint8)
    outputs, _ = model.run(state, dark)
    assert state.is_warm
    flash = dark.copy()
    flash[8:12, 8:12] = 255
    cells = np.zeros(CELLS, np.uint8)
    cells[2, 2] = 1
    with pytest.raises(ModelError, match="not finite: the state is dropped"):
        model.run(state, flash, cells)
    assert not state.is_warm
    again, work = model.run(state, dark, np.zeros(CELLS, np.uint8))
    assert work == 1, "the next pass is full whatever the mask says"
    assert state.is_warm
    assert error(again, outputs) == 0
    with pytest.raises(ModelError, match="not finite"):
        model.run(model.new_state(1.0), flash)


def test_a_state_of_another_model_or_size_is_refused(executor: str) -> None:
    one, other = differential(SMALL, executor), differential(SMALL, executor)
    state = one.new_state()
    scene = picture(SIZE[1], SIZE[0])
    one.run(state, scene)
    with pytest.raises(ValueError, match="another model or another image size"):
        other.run(state, scene)
    assert isinstance(state, CameraState)
    assert one.run(state, scene, np.zeros(CELLS, np.uint8))[1] == 0


def squeezed() -> Model:
    """Return a network of which all but the stem hangs on an average over the image."""
    net = Net()
    x = net.conv("image", 8, 3, 2)
    x = net.add("Mul", x, net.add("Sigmoid", net.conv(net.add("GlobalAveragePool", x), 8, 1)))
    for _ in range(4):
        x = net.conv(x, 8, 3)
    return net.model(x)


def test_a_model_with_global_operations_is_refused_with_the_reason() -> None:
    with pytest.raises(Refused, match=r"% of its work is local.*GlobalAveragePool.*whole image"):
        differential(write_model(squeezed()))


def test_a_model_without_weights_to_speak_of_is_exact_too() -> None:
    """The detector of other tests: pooling, one convolution, no layer with a 3 x 3 window."""
    data = tiny_detector([1, 3, *SIZE], fill=0.5)
    model, scene = differential(data), picture(SIZE[1], SIZE[0])
    assert error(model.run(model.new_state(1.0), scene)[0], whole(data, scene)) <= TOLERANCE


def test_a_plan_too_large_is_refused_with_both_figures() -> None:
    with pytest.raises(Refused, match=r"96 x 160 pixels take \d\.\d MB, more than the 0\.1 MB"):
        Differential(SMALL, SIZE, CPU, limit_bytes=100_000)
    with pytest.raises(Refused, match="beyond"):
        Differential(SMALL, (32, 32_768), CPU)


@pytest.mark.parametrize("size", [(0, 160), (96, 0), (-32, 160)])
def test_images_without_area_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no area"):
        Differential(SMALL, size, CPU)


@pytest.mark.parametrize("data", [b"", b"no model", SMALL[: len(SMALL) // 2]])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError):
        differential(data)


def test_a_state_says_what_it_takes_and_the_budget_holds(executor: str) -> None:
    model = differential(SMALL, executor)
    state = model.new_state(1.0)
    model.run(state, picture(SIZE[1], SIZE[0]))
    assert state.size_bytes == model.state_bytes
    if executor == "native":
        assert model.state_bytes < 24_000_000 * SIZE[0] * SIZE[1] / (384 * 640)


def test_without_a_compiler_the_graph_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[Differential.__module__]
    monkeypatch.setattr(module, "library", lambda: None)
    assert differential(SMALL).executor == "graph"
