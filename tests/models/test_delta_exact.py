"""Sparse runs give what full runs give: both executors, real and random networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.accelerators import AcceleratorSpec
from models.delta.fuse import fuse
from models.delta.graph import analyse, at_size
from models.delta.graphexec import GraphProgram
from models.delta.layers import Analysis
from models.delta.native import NativeProgram, library
from models.delta.onnxfile import Model, write_model
from models.delta.plan import BUDGET_BYTES, Plan, compile_plan
from models.delta.suffix import stacked, suffix_model
from models.runtime import open_session
from tests.delta_nets import TOLERANCE, Reference, changed, masks, random_net, worst_error

CPU = AcceleratorSpec("cpu0", "cpu")
ZOO = Path("models/zoo")
MODELS = {
    "small": (ZOO / "person-detector-small.onnx", (96, 160)),
    "large": (ZOO / "person-detector-large.onnx", (96, 160)),
    "yolox": (Path("models/yolox_nano_dyn.onnx"), (160, 224)),
    "yunet": (Path("models/face_detection_yunet_2026may.onnx"), (160, 224)),
    "rfb": (Path("models/version-RFB-320_without_postprocessing.onnx"), (240, 320)),
    "fastest": (Path("models/FastestDet.onnx"), (352, 352)),
}
BUDGETS = {"native-tight": 0}  # bytes of state: as few maps as possible are held
EXECUTORS: dict[str, Callable[[Plan], NativeProgram | GraphProgram]] = {
    "native": NativeProgram,
    "native-tight": NativeProgram,
    "native-avx2": lambda plan: NativeProgram(plan, "avx2"),
    "native-plain": lambda plan: NativeProgram(plan, "plain"),
    "graph": lambda plan: GraphProgram(plan, CPU),
    "graph-pruned": lambda plan: GraphProgram(plan, CPU, {}),
}


def compiled(
    data: bytes, size: tuple[int, int], budget_bytes: int = BUDGET_BYTES
) -> tuple[Model, Analysis, Plan]:
    model = at_size(data, *size)
    analysis = fuse(analyse(model))
    return model, analysis, compile_plan(analysis, budget_bytes=budget_bytes)


def executor(name: str, plan: Plan) -> NativeProgram | GraphProgram:
    if name.startswith("native") and library() is None:
        pytest.skip("the native kernels were not built: no C compiler when installed")
    if name == "native-avx2":
        cpu = Path("/proc/cpuinfo")
        if not cpu.exists() or " avx2 " not in cpu.read_text():
            pytest.skip("this processor has no AVX2")
    return EXECUTORS[name](plan)


@pytest.mark.parametrize("name", EXECUTORS)
@pytest.mark.parametrize("label", MODELS)
def test_a_sparse_run_equals_a_full_one(
    label: str, name: str, request: pytest.FixtureRequest
) -> None:
    path, size = MODELS[label]
    if path.parent != ZOO:
        path = request.getfixturevalue("assets") / path
    budget_bytes = BUDGETS.get(name, BUDGET_BYTES)
    model, analysis, plan = compiled(path.read_bytes(), size, budget_bytes)
    program, reference = executor(name, plan), Reference(model, analysis)
    rng = np.random.default_rng(1)
    pixels = rng.uniform(0, 255, (*size, 3)).astype(np.float32)
    state = program.new_state()
    program.run(state, pixels)  # type: ignore[arg-type]
    assert worst_error(plan, program, state, reference.rows(pixels)) <= TOLERANCE
    for mask in masks(size):
        pixels = changed(pixels, mask, rng)
        program.run(state, pixels, mask)  # type: ignore[arg-type]
        assert worst_error(plan, program, state, reference.rows(pixels)) <= TOLERANCE


@pytest.mark.parametrize("label", MODELS)
def test_the_suffix_gives_the_models_own_outputs(
    label: str, request: pytest.FixtureRequest
) -> None:
    path, size = MODELS[label]
    if path.parent != ZOO:
        path = request.getfixturevalue("assets") / path
    data = path.read_bytes()
    model, analysis, plan = compiled(data, size)
    program = executor("graph" if library() is None else "native", plan)
    pixels = np.random.default_rng(2).uniform(0, 255, (*size, 3)).astype(np.float32)
    state = program.new_state()
    program.run(state, pixels)  # type: ignore[arg-type]
    ending, taken = suffix_model(model, analysis)
    rows = {held: program.rows(state, held) for held in taken.values()}  # type: ignore[arg-type]
    names = [value.name for value in model.outputs]
    got = open_session(write_model(ending), CPU).run(names, stacked(rows, taken))
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
    wanted = open_session(write_model(model), CPU).run(names, {analysis.input_name: planes})
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.shape == theirs.shape
        # Scores of a random image are tiny; their full scale is 1.
        assert np.abs(mine - theirs).max() <= TOLERANCE * max(1, np.abs(theirs).max())


@pytest.mark.parametrize("name", EXECUTORS)
@pytest.mark.parametrize("seed", range(12))
def test_random_networks_are_exact_too(seed: int, name: str) -> None:
    size = (33 + seed % 5, 46 - seed % 7)  # odd sizes: nothing divides
    budget_bytes = BUDGETS.get(name, BUDGET_BYTES)
    model, analysis, plan = compiled(write_model(random_net(seed)), size, budget_bytes)
    assert not analysis.suffix_nodes, "every layer of a random network is local"
    program, reference = executor(name, plan), Reference(model, analysis)
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(-1, 1, (*size, 3)).astype(np.float32)
    state = program.new_state()
    program.run(state, pixels)  # type: ignore[arg-type]
    assert worst_error(plan, program, state, reference.rows(pixels)) <= TOLERANCE
    for mask in masks(size, seed):
        fresh = rng.uniform(-1, 1, pixels.shape).astype(np.float32)
        pixels = np.where(mask[..., None] > 0, fresh, pixels)
        program.run(state, pixels, mask)  # type: ignore[arg-type]
        assert worst_error(plan, program, state, reference.rows(pixels)) <= TOLERANCE


@pytest.mark.parametrize("name", ["native", "native-tight", "graph"])
def test_a_change_left_out_of_the_mask_is_seen(name: str) -> None:
    """The exactness tests can fail: a stale pixel shows.

    A plan that holds next to nothing computes all that a changed window reads again, so that only
    what is forgotten further off is stale there.
    """
    path, size = MODELS["small"][0], (64, 480)
    model, analysis, plan = compiled(path.read_bytes(), size, BUDGETS.get(name, BUDGET_BYTES))
    program, reference = executor(name, plan), Reference(model, analysis)
    pixels = np.full((*size, 3), 90, np.float32)
    state = program.new_state()
    program.run(state, pixels)  # type: ignore[arg-type]
    pixels = pixels.copy()
    left = 400 if name == "native-tight" else 66
    pixels[40:60, 50:66] = pixels[40:60, left : left + 4] = 220
    mask = np.zeros(size, np.uint8)
    mask[40:60, 50:66] = 1  # four columns are forgotten
    program.run(state, pixels, mask)  # type: ignore[arg-type]
    assert worst_error(plan, program, state, reference.rows(pixels)) > 10 * TOLERANCE
