"""Find out what of an ONNX model is local and can be run differentially.

Owns the translation of ONNX operators into `Layer`s and the reasons for refusals; never decides
how layers are executed. Invariant: every node of the (simplified) model is either covered by the
layers or listed in `suffix_nodes`, and a value in doubt is in the suffix.

ONNX Runtime folds constants and batch norms for us (its "basic" level, stock operators only), at
the wanted input size; that removes shape arithmetic, so that what remains is static.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime

from models.delta import operators
from models.delta.call import Call, Global, Refused, View
from models.delta.layers import Analysis, Layer, MapShape, Refusal
from models.delta.onnxfile import Array, Model, Node, Value, read_model, write_model
from models.wire import ModelError

FLOAT = 1
LOG_FATAL_ONLY = 4


def at_size(data: bytes, height: int, width: int) -> Model:
    """Return the model relabelled for one image of a size, simplified by ONNX Runtime.

    Raises ModelError when the model has no single float image input or cannot take the size.
    """
    model = read_model(data)
    if len(model.inputs) != 1:
        names = ", ".join(value.name for value in model.inputs)
        raise ModelError(f"the model has the inputs {names}: only one image can be differential")
    image = model.inputs[0]
    if image.dtype != FLOAT or image.shape is None or len(image.shape) != 4:
        raise ModelError(f"input {image.name!r} is no float32[1, channels, height, width]")
    channels = image.shape[1] if isinstance(image.shape[1], int) else 3
    if not 1 <= channels <= 4:
        raise ModelError(f"input {image.name!r} has {channels} channels, no image has")
    relabelled = replace(
        model,
        inputs=(Value(image.name, FLOAT, (1, channels, height, width)),),
        outputs=tuple(Value(value.name, value.dtype, None) for value in model.outputs),
        values=(),
    )
    return replace(_simplified(relabelled, (height, width)), values=())


def _simplified(model: Model, size: tuple[int, int]) -> Model:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = LOG_FATAL_ONLY
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory(prefix="edge-node-") as folder:
        path = Path(folder, "simplified.onnx")
        options.optimized_model_filepath = str(path)
        try:
            session = onnxruntime.InferenceSession(
                write_model(model), options, providers=["CPUExecutionProvider"]
            )
            if any(not isinstance(side, int) for side in session.get_inputs()[0].shape):
                raise ModelError("the input's size stays unknown")
        except Exception as error:  # noqa: BLE001 - ONNX Runtime raises its own unexported classes
            text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise ModelError(f"cannot be run at {size[0]} x {size[1]} pixels: {text}") from None
        return read_model(path.read_bytes())


@dataclass
class _Found:
    """Collects layers while walking the nodes."""

    shapes: dict[str, MapShape]
    layers: list[Layer]
    constants: dict[str, Array]


def analyse(model: Model) -> Analysis:
    """Return what is local in a model made by `at_size`. O(nodes + weights).

    Never raises for what it does not know: that is a refusal and goes to the suffix.
    """
    image = model.inputs[0]
    assert image.shape is not None, "at_size fixes the input's shape"
    _, channels, height, width = (int(side) for side in image.shape if isinstance(side, int))
    found = _Found({image.name: MapShape(height, width, channels)}, [], dict(model.constants))
    views = {image.name: View.whole(image.name, found.shapes[image.name])}
    distant: dict[str, MapShape | None] = {}  # values outside: their shape where known, for costs
    refusals: list[Refusal] = []
    suffix: list[int] = []
    macs = 0
    for index, node in enumerate(model.nodes):
        if node.kind == "Constant" and isinstance(node.attributes.get("value"), np.ndarray):
            found.constants[node.outputs[0]] = node.attributes["value"]  # type: ignore[assignment]
            continue
        used = [name for name in node.inputs if name]
        if any(name in distant for name in used):
            suffix.append(index)
            macs += _distant(node, views, distant, found.constants)
            continue
        try:
            _translate(node, views, found)
        except Refused as refused:
            refusals.append(Refusal(node.name or node.outputs[0], node.kind, str(refused)))
            suffix.append(index)
            shape = refused.shape if isinstance(refused, Global) else None
            distant |= dict.fromkeys(node.outputs, shape)
    layers, frontier = _frontier(model, suffix, views, found)
    live = _live(layers, set(frontier.values()))
    return Analysis(image.name, found.shapes, live, frontier, tuple(refusals), macs, tuple(suffix))


def _translate(node: Node, views: dict[str, View], found: _Found) -> None:
    """Add the layers of one node. Raises Refused (nothing added)."""
    operator: Callable[[Call], dict[str, View]] | None
    operator = operators.TABLE.get(node.kind) if node.domain == "" else None
    if operator is None:
        reason = operators.REASONS.get(node.kind, "there is no differential kernel for it")
        raise Refused(reason)
    call = Call(node, views, found.constants, found.shapes)
    made = operator(call)
    found.layers += call.layers
    found.shapes |= call.new_shapes
    views |= made


def _distant(
    node: Node,
    views: dict[str, View],
    distant: dict[str, MapShape | None],
    constants: dict[str, Array],
) -> int:
    """Follow shapes through a node of the suffix as far as known; return its work."""
    known = [views[name].shape for name in node.inputs if name in views]
    known += [shape for name in node.inputs if (shape := distant.get(name)) is not None]
    largest = max(known, key=lambda shape: shape.positions, default=None)
    shape, macs = operators.outline(node, largest, constants)
    distant |= dict.fromkeys(node.outputs, shape)
    return macs


def _frontier(
    model: Model, suffix: list[int], views: dict[str, View], found: _Found
) -> tuple[list[Layer], dict[str, str]]:
    """Return all layers and, per local value that is read outside, the map that holds it."""
    wanted = [name for index in suffix for name in model.nodes[index].inputs if name in views]
    wanted += [value.name for value in model.outputs if value.name in views]
    layers, frontier = list(found.layers), {}
    for name in dict.fromkeys(wanted):
        call = Call(Node("Identity", (name,), ()), views, found.constants, found.shapes)
        frontier[name] = call.map(0)
        layers += call.layers
        found.shapes |= call.new_shapes
    return layers, frontier


def _live(layers: list[Layer], wanted: set[str]) -> tuple[Layer, ...]:
    """Return the layers that contribute to the wanted maps, in order."""
    kept: list[Layer] = []
    needed = set(wanted)
    for layer in reversed(layers):
        if layer.output in needed:
            kept.append(layer)
            needed.update(layer.reads)
    return tuple(reversed(kept))
