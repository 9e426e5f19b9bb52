"""Models that begin alike compute what they have in common once, and answer as they do alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.accelerators import AcceleratorSpec
from models.delta.family import Family, merge
from models.delta.fuse import fuse
from models.delta.graph import analyse, at_size
from models.delta.graphexec import GraphProgram, GraphState
from models.delta.layers import Analysis
from models.delta.native import NativeProgram, State, library
from models.delta.onnxfile import Model, write_model
from models.delta.plan import Plan, compile_plan
from models.delta.suffix import stacked, suffix_model
from models.runtime import open_session
from models.wire import ModelError
from tests.delta_nets import TOLERANCE, Floats, Net, changed, masks, random_net

CPU = AcceleratorSpec("cpu0", "cpu")
ZOO = Path("models/zoo")
SIZE = (48, 80)
EXECUTORS: dict[str, Callable[[Plan], NativeProgram | GraphProgram]] = {
    "native": NativeProgram,
    "graph": lambda plan: GraphProgram(plan, CPU),
}


def executor(name: str, plan: Plan) -> NativeProgram | GraphProgram:
    if name == "native" and library() is None:
        pytest.skip("the native kernels were not built: no C compiler when installed")
    return EXECUTORS[name](plan)


def backbone(net: Net) -> tuple[str, str]:
    """Add the layers in common; return the maps at strides 4 and 8, before an activation."""
    x = net.add("Relu", net.conv("image", 12, 4, 4, (0, 0, 0, 0)))
    x = net.add("Add", net.add("Relu", net.conv(x, 12)), x)
    fine = net.add("Relu", net.conv(x, 16, 1))
    return fine, net.conv(fine, 24, 3, 2)


def detector() -> Model:
    """Two levels, each flattened as detectors do; reads the coarse map after its activation."""
    net = Net(5)
    fine, coarse = backbone(net)
    levels = []
    for x in (fine, net.add("Relu", coarse)):
        boxes = net.conv(net.add("Relu", net.conv(x, 16, 1)), 5, 1)
        shape = net.constant([1, 5, -1], np.int64)
        levels.append(net.add("Reshape", net.add("Sigmoid", boxes), shape))
    return net.model(net.add("Concat", *levels, axis=2))


def classifier(seed: int = 5) -> Model:
    """Ends in a global pool and a dense layer; reads the coarse map before the activation too."""
    net = Net(seed)
    _, coarse = backbone(net)
    x = net.add("Add", net.conv(net.add("Relu", coarse), 24), coarse)
    pooled = net.add("Flatten", net.add("GlobalAveragePool", x), axis=1)
    weight = net.constant(net.rng.normal(0, 0.2, (24, 7)))
    return net.model(net.add("Softmax", net.add("Gemm", pooled, weight), axis=1))


def read(*models: Model, size: tuple[int, int] = SIZE) -> dict[str, tuple[Model, Analysis]]:
    """Return models by letter as `merge` takes them."""
    local = [at_size(write_model(model), *size) for model in models]
    return {chr(ord("a") + i): (each, analyse(each)) for i, each in enumerate(local)}


class Answers:
    """Compares what a family's members answer with what their own files do."""

    def __init__(self, family: Family, members: Mapping[str, tuple[Model, Analysis]]) -> None:
        self._members = members
        self._entrances = {name: each.entrances for name, each in family.members.items()}
        self._endings = {
            name: open_session(write_model(each.suffix), CPU)
            for name, each in family.members.items()
        }
        self._own = {name: open_session(write_model(m), CPU) for name, (m, _) in members.items()}

    def worst_error(
        self, program: NativeProgram | GraphProgram, state: State | GraphState, pixels: Floats
    ) -> float:
        """Return the largest difference over all outputs, as a share of each one's scale."""
        planes, worst = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]), 0.0
        for name, (model, analysis) in self._members.items():
            taken = self._entrances[name]
            rows = {held: program.rows(state, held) for held in taken.values()}  # type: ignore[arg-type]
            outputs = [value.name for value in model.outputs]
            got = self._endings[name].run(outputs, stacked(rows, taken))
            wanted = self._own[name].run(outputs, {analysis.input_name: planes})
            for mine, theirs in zip(got, wanted, strict=True):
                assert mine.shape == theirs.shape
                scale = np.abs(theirs).max() + 1e-9
                worst = max(worst, float(np.abs(mine - theirs).max() / scale))
        return worst


def check_exactness(members: Mapping[str, tuple[Model, Analysis]], name: str, seed: int) -> None:
    """Run full, then under every kind of mask; all outputs equal each member's own."""
    family = merge(members)
    program, answers = executor(name, compile_plan(family.analysis)), Answers(family, members)
    shape = next(iter(members.values()))[1].shapes["image"]
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(0, 255, (shape.height, shape.width, 3)).astype(np.float32)
    state = program.new_state()
    program.run(state, pixels)  # type: ignore[arg-type]
    assert answers.worst_error(program, state, pixels) <= TOLERANCE
    for mask in masks((shape.height, shape.width), seed):
        pixels = changed(pixels, mask, rng)
        program.run(state, pixels, mask)  # type: ignore[arg-type]
        assert answers.worst_error(program, state, pixels) <= TOLERANCE


@pytest.mark.parametrize("name", EXECUTORS)
def test_a_detector_and_a_classifier_answer_as_they_do_alone(name: str) -> None:
    check_exactness(read(detector(), classifier()), name, 1)


@pytest.mark.parametrize("name", EXECUTORS)
@pytest.mark.parametrize("seed", range(6))
def test_random_networks_with_other_ends_do_too(seed: int, name: str) -> None:
    """Each is cut short at a random node: what one fuses, another reads."""
    model, rng = random_net(seed), np.random.default_rng(seed)
    inner = [node.outputs[0] for node in model.nodes[len(model.nodes) // 2 :]]
    ends = [inner[int(at)] for at in rng.integers(0, len(inner), 2)]
    cut = [replace(model, outputs=(replace(model.outputs[0], name=end),)) for end in ends]
    check_exactness(read(model, *cut, size=(37, 42)), name, seed)


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_in_common_is_computed_once(order: int) -> None:
    members = dict(list(read(detector(), classifier()).items())[::order])
    family = merge(members)
    plan = compile_plan(family.analysis)
    own = {name: each.own_macs for name, each in family.members.items()}
    assert plan.macs == family.shared_macs + sum(own.values())
    alone = {name: analysis.local_macs for name, (_, analysis) in members.items()}
    assert {name: each.macs for name, each in family.members.items()} == alone
    assert family.saved_macs == family.shared_macs == sum(alone.values()) - plan.macs
    convolutions = [one for one in family.analysis.layers if one.kind == "conv"]
    assert len([one for one in convolutions if one.output in family.shared]) == 4
    assert len(convolutions) == 4 + 4 + 1
    outputs = [layer.output for layer in family.analysis.layers]
    assert len(set(outputs)) == len(outputs)


def test_a_run_does_the_work_in_common_once() -> None:
    members = read(detector(), classifier())
    family = merge(members)
    alone = {name: sparse_work(fuse(own)) for name, (_, own) in members.items()}
    together = sparse_work(family.analysis)
    once = sum(together[name] for name in family.shared if name in together)
    assert once > 0
    saved = sum(sum(work.values()) for work in alone.values()) - sum(together.values())
    assert saved == pytest.approx(once)


def sparse_work(analysis: Analysis) -> dict[str, float]:
    """Return the multiply-accumulates that a small change causes, by map."""
    plan = compile_plan(analysis)
    program = executor("native", plan)
    assert isinstance(program, NativeProgram)
    state, pixels = program.new_state(), np.full((*SIZE, 3), 90, np.float32)
    assert program.run(state, pixels).work == 1
    mask = np.zeros(SIZE, np.uint8)
    mask[20:28, 30:42] = 1
    pixels[mask > 0] = 200
    done = program.run(state, pixels, mask)
    layers = [step.layer for step in plan.steps]
    work = {
        layer.output: layer.macs * float(dirty) / plan.shapes[layer.output].positions
        for layer, dirty in zip(layers, done.dirty, strict=True)
    }
    assert sum(work.values()) == pytest.approx(done.work * plan.macs)
    return work


def test_one_weight_bit_ends_what_is_in_common() -> None:
    model = detector()
    heavy = [node for node in model.nodes if node.kind == "Conv"]
    weight = model.constants[heavy[2].inputs[1]].copy()
    weight.view(np.uint32).flat[0] ^= 1
    other = replace(model, constants={**model.constants, heavy[2].inputs[1]: weight})
    family = merge(read(model, other))
    shared = [one for one in family.analysis.layers if one.output in family.shared]
    assert [one.kind for one in shared] == ["conv", "conv"]
    assert merge(read(model, model)).shared_macs > family.shared_macs > 0
    assert family.members["a"].own_macs == family.members["b"].own_macs > 0


def test_attributes_that_differ_are_not_in_common() -> None:
    """Every one of these nets has the same weights; only the second layer tells them apart."""

    def pooled(**attributes: int | tuple[int, ...]) -> Model:
        net = Net(3)
        x = net.conv("image", 8)
        how = {"kernel_shape": (2, 2), "strides": (2, 2), **attributes}
        return net.model(net.conv(net.add("MaxPool", x, **how), 4, 1))

    plain = pooled()
    for other in (pooled(ceil_mode=1), pooled(pads=(1, 1, 0, 0)), pooled(strides=(1, 1))):
        family = merge(read(plain, other, size=(33, 41)))
        assert [name.partition(":")[2] for name in family.shared] == ["conv0"]


def test_fusing_early_costs_sharing_but_no_exactness() -> None:
    members = read(detector(), classifier())
    fused = {name: (model, fuse(analysis)) for name, (model, analysis) in members.items()}
    assert merge(fused).shared_macs < merge(members).shared_macs
    check_exactness(fused, "graph", 2)


def test_the_same_file_twice_is_in_common_as_a_whole() -> None:
    model = at_size((ZOO / "person-detector-small.onnx").read_bytes(), 96, 160)
    family = merge({"day": (model, analyse(model)), "night": (model, analyse(model))})
    assert [each.own_macs for each in family.members.values()] == [0, 0]
    assert set(family.shared) == {layer.output for layer in family.analysis.layers}
    assert compile_plan(family.analysis).macs == compile_plan(fuse(analyse(model))).macs


def test_models_with_nothing_in_common_are_refused() -> None:
    files = [ZOO / f"person-detector-{size}.onnx" for size in ("small", "large")]
    models = {path.stem: at_size(path.read_bytes(), 96, 160) for path in files}
    with pytest.raises(ModelError, match="'person-detector-small' has no layer in common with"):
        merge({name: (model, analyse(model)) for name, model in models.items()})


def test_a_third_that_has_nothing_in_common_is_named() -> None:
    with pytest.raises(ModelError, match="'c' has no layer in common with 'a', 'b'"):
        merge(read(detector(), classifier(), classifier(seed=6)))


def test_one_member_or_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        merge(read(detector()))
    small, large = read(detector()), read(detector(), size=(96, 160))
    with pytest.raises(ModelError, match="48 x 80 x 3 and 'b' of 96 x 160 x 3"):
        merge({"a": small["a"], "b": large["a"]})


@pytest.mark.parametrize("name", EXECUTORS)
def test_one_file_with_two_heads_needs_no_family(name: str) -> None:
    net = Net(9)
    fine, coarse = backbone(net)
    boxes = net.add("Sigmoid", net.conv(net.add("Relu", coarse), 5, 1))
    label = net.add("GlobalAveragePool", net.conv(fine, 6))
    model, analysis = read(net.model(boxes, label))["a"]
    plan = compile_plan(fuse(analysis))
    program = executor(name, plan)
    ending, taken = suffix_model(model, fuse(analysis))
    suffix, whole = (open_session(write_model(each), CPU) for each in (ending, model))
    rng = np.random.default_rng(4)
    pixels = rng.uniform(0, 255, (*SIZE, 3)).astype(np.float32)
    state = program.new_state()
    for mask in (None, *masks(SIZE, 4)):
        pixels = pixels if mask is None else changed(pixels, mask, rng)
        program.run(state, pixels, mask)  # type: ignore[arg-type]
        rows = {held: program.rows(state, held) for held in taken.values()}  # type: ignore[arg-type]
        got = suffix.run([boxes, label], stacked(rows, taken))
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        for mine, theirs in zip(got, whole.run([boxes, label], {"image": planes}), strict=True):
            assert np.abs(mine - theirs).max() <= TOLERANCE * np.abs(theirs).max()
