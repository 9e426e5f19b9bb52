"""What is local is found, what is not is named: ONNX bytes, analysis, fusing, plans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.delta.fuse import fuse
from models.delta.graph import analyse, at_size
from models.delta.onnxfile import Model, Node, Value, read_model, write_model
from models.delta.plan import PlanTooLarge, compile_plan, dirty_masks, work_left
from models.wire import ModelError
from tests.delta_nets import Net, random_net

ZOO = Path("models/zoo")
SMALL = (ZOO / "person-detector-small.onnx").read_bytes()


def test_a_model_is_read_and_written_with_the_same_meaning() -> None:
    first = read_model(SMALL)
    second = read_model(write_model(first))
    assert [(n.kind, n.inputs, n.outputs) for n in first.nodes] == [
        (n.kind, n.inputs, n.outputs) for n in second.nodes
    ]
    assert first.inputs == second.inputs
    assert first.opsets == second.opsets
    for name, array in first.constants.items():
        assert array.dtype == second.constants[name].dtype
        assert (array == second.constants[name]).all()
    for mine, theirs in zip(first.nodes, second.nodes, strict=True):
        assert mine.attributes.keys() == theirs.attributes.keys()


@pytest.mark.parametrize("seed", range(4))
def test_broken_bytes_are_refused_never_believed(seed: int) -> None:
    data = write_model(random_net(seed))
    rng = np.random.default_rng(seed)
    for _ in range(60):
        broken = bytearray(data[: rng.integers(1, len(data))] if rng.random() < 0.5 else data)
        for at in rng.integers(0, min(400, len(broken)), 4):
            broken[at] ^= 1 << int(rng.integers(8))
        try:
            read_model(bytes(broken))
        except ModelError:
            continue  # any other exception fails the test


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, b"not a model at all", SMALL[:-7]])
def test_what_is_no_onnx_file_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError):
        read_model(data)


def squeeze_and_excitation() -> Model:
    net = Net()
    x = net.add("Relu", net.conv("image", 8, 3, 2))
    gate = net.add("GlobalAveragePool", x)
    gate = net.add("Sigmoid", net.conv(gate, 8, 1))
    x = net.add("Mul", x, gate)
    for _ in range(4):
        x = net.conv(x, 8, 3)
    return net.model(x)


def test_a_global_path_leaves_only_the_output_rungs() -> None:
    analysis = analyse(at_size(write_model(squeeze_and_excitation()), 64, 64))
    assert [refusal.kind for refusal in analysis.refusals] == ["GlobalAveragePool"]
    assert "whole image" in analysis.refusals[0].reason
    assert analysis.local_share < 0.5
    why = analysis.outputs_only()
    assert "GlobalAveragePool" in why
    assert "% of its work is local" in why


def test_a_late_global_layer_is_only_the_suffix() -> None:
    net = Net()
    x = net.conv(net.conv("image", 16, 3), 16, 3)
    pooled = net.add("GlobalAveragePool", x)
    analysis = analyse(at_size(write_model(net.model(pooled)), 32, 32))
    assert not analysis.outputs_only()
    assert len(analysis.suffix_nodes) == 1
    assert len(analysis.layers) == 2


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda n, x: n.add("Softmax", x, axis=1), "normalises"),
        (lambda n, x: n.add("ReduceMean", x, axes=(2, 3)), "whole image"),
        (lambda n, x: n.add("Transpose", x, perm=(0, 2, 3, 1)), "positions"),
        (lambda n, x: n.add("Erf", x), "no differential kernel"),
        (lambda n, x: n.add("InstanceNormalization", x, n.constant([1.0] * 6),
                            n.constant([0.0] * 6)), "statistics"),
        (lambda n, x: n.add("Add", x, n.constant(np.ones((1, 1, 16, 16)))), "between positions"),
        (lambda n, x: n.add("AveragePool", x, kernel_shape=(3, 3), pads=(1, 1, 1, 1)),
         "fewer positions"),
        (lambda n, x: n.add("ConvTranspose", x, n.constant(np.ones((6, 6, 2, 2))),
                            strides=(2, 2)), "transposed"),
        (lambda n, x: n.add("Resize", x, n.constant([]), n.constant([1, 1, 2, 2]),
                            mode=b"linear"), "interpolates"),
    ],
)  # fmt: skip
def test_each_refusal_names_its_reason(build: object, words: str) -> None:
    net = Net()
    x = net.conv("image", 6, 3)
    last = build(net, x)  # type: ignore[operator]
    analysis = analyse(at_size(write_model(net.model(last)), 16, 16))
    assert len(analysis.refusals) == 1
    assert words in str(analysis.refusals[0])
    assert last in str(analysis.refusals[0])
    assert [layer.kind for layer in analysis.layers] == ["conv"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: Model(m.nodes, m.constants, m.inputs * 2, m.outputs), "only one image"),
        (lambda m: Model(m.nodes, m.constants, (Value("image", 7, (1, 3, 8, 8)),), m.outputs),
         "no float32"),
        (lambda m: Model(m.nodes, m.constants, (Value("image", 1, (1, 64, 8, 8)),), m.outputs),
         "64 channels"),
        (lambda m: Model((*m.nodes, Node("Nonsense", (m.nodes[-1].outputs[0],), ("o",))),
                         m.constants, m.inputs, (Value("o", 1, None),)), "cannot be run"),
    ],
)  # fmt: skip
def test_a_model_unfit_as_a_whole_is_refused(change: object, words: str) -> None:
    net = Net()
    model = net.model(net.conv("image", 4, 3))
    with pytest.raises(ModelError, match=words):
        at_size(write_model(change(model)), 16, 16)  # type: ignore[operator]


def test_shape_arithmetic_is_folded_at_the_wanted_size() -> None:
    """What PyTorch writes for a view: shapes computed from the input's, at run time."""
    net = Net()
    x = net.conv("image", 4, 3)
    shape = net.add("Shape", x)
    batch = net.add("Slice", shape, *(net.constant([v], np.int64) for v in (0, 1, 0)))
    target = net.add("Concat", batch, net.constant([4, -1], np.int64), axis=0)
    flat = net.add("Reshape", x, target)
    analysis = analyse(at_size(write_model(net.model(flat)), 16, 24))
    assert [refusal.kind for refusal in analysis.refusals] == ["Reshape"]
    assert len(analysis.suffix_nodes) == 1


def test_our_detector_is_local_and_its_layers_are_joined() -> None:
    analysis = analyse(at_size(SMALL, 96, 160))
    assert not analysis.outputs_only()
    assert analysis.local_share == 1
    joined = fuse(analysis)
    assert not [layer for layer in joined.layers if layer.kind == "activate"]
    assert joined.local_macs == analysis.local_macs
    assert {refusal.kind for refusal in joined.refusals} == {"Reshape"}


def test_a_plan_too_large_is_refused() -> None:
    analysis = fuse(analyse(at_size(SMALL, 192, 320)))
    plan = compile_plan(analysis)
    assert 0 < plan.state_bytes < 64 << 20
    with pytest.raises(PlanTooLarge, match=r"192 x 320 pixels take 1\.\d MB, more than the 1\.0"):
        compile_plan(analysis, limit_bytes=1_000_000)


def test_dirty_sets_follow_the_receptive_field() -> None:
    plan = compile_plan(fuse(analyse(at_size(SMALL, 192, 320))))
    mask = np.zeros((192, 320), np.bool_)
    assert work_left(plan, mask) == 0
    mask[100, 100] = True
    one = work_left(plan, mask)
    assert 0 < one < 0.25
    sets = dirty_masks(plan, mask)
    assert sets["stem0.relu"].sum() == 1
    assert sets["stem0.relu"][25, 25]
    mask[:] = True
    assert work_left(plan, mask) == 1
