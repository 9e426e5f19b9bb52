"""Translate single ONNX operators into local layers, or say why they are not local.

Owns the meaning of each supported operator; never looks beyond one node. Invariant: an operator
that is not understood in every attribute is refused, never approximated.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from models.delta.arrange import MOVES
from models.delta.call import Call, Global, Refused, View
from models.delta.layers import Activation, Floats, Layer, MapShape, Pair
from models.delta.onnxfile import Array, Node


def _pair(values: tuple[int, ...]) -> Pair:
    if len(values) != 2:
        raise Refused(f"it works on {len(values)} axes, images have two")
    return values[0], values[1]


def _window(call: Call, kernel: Pair) -> tuple[Pair, Pair, tuple[int, int, int, int], Pair]:
    """Return (strides, dilations, pads, output height and width) of a convolution or pooling."""
    node, view = call.node, call.view(0)
    strides = _pair(node.integers("strides", (1, 1)))
    dilations = _pair(node.integers("dilations", (1, 1)))
    reach = [dilations[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    size = (view.height, view.width)
    auto = node.text("auto_pad", "NOTSET")
    pads = node.integers("pads", (0, 0, 0, 0))
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        whole = [
            max(0, (-(-size[i] // strides[i]) - 1) * strides[i] + reach[i] - size[i])
            for i in (0, 1)
        ]
        small, large = [w // 2 for w in whole], [w - w // 2 for w in whole]
        pads = (*small, *large) if auto == "SAME_UPPER" else (*large, *small)
    elif auto == "VALID":
        pads = (0, 0, 0, 0)
    top, left, bottom, right = pads
    if min(pads) < 0:
        raise Refused("its padding is negative")
    ceil = node.integer("ceil_mode", 0)
    out = []
    for i, around in enumerate((top + bottom, left + right)):
        room = size[i] + around - reach[i]
        count = room // strides[i] + 1
        if ceil and room % strides[i]:
            count += (count * strides[i]) < size[i] + (top, left)[i]
        out.append(count)
    return strides, dilations, (top, left, bottom, right), (out[0], out[1])


def _conv(call: Call) -> dict[str, View]:
    weight, bias = call.constant(1), call.constant(2)
    view = call.view(0)
    if weight is None or weight.ndim != 4 or weight.dtype != np.float32:
        raise Refused("its weights are no float32 constant of two spatial axes")
    groups = call.node.integer("group", 1)
    outputs, per_group, height, width = weight.shape
    kernel = (height, width)
    source = call.map(0)
    if groups * per_group != view.lead.size:
        raise Refused("its weights do not fit its input")
    strides, dilations, pads, size = _window(call, kernel)
    shape = MapShape(*size, outputs)
    shift: Floats = np.zeros(outputs, np.float32)
    if bias is not None:
        shift = bias.astype(np.float32)
    is_depthwise = groups == view.lead.size == outputs and groups > 1
    if groups > 1 and not is_depthwise:
        weight = _ungrouped(weight, groups)
    taps: Floats = weight.astype(np.float32)
    if is_depthwise:
        matrix = taps[:, 0].reshape(outputs, -1).T
    else:
        matrix = taps.transpose(2, 3, 1, 0).reshape(-1, outputs)
    layer = Layer(
        "depthwise" if is_depthwise else "conv",
        (source,),
        call.output,
        kernel,
        strides,
        pads,
        dilations,
        np.ascontiguousarray(matrix),
        shift,
        macs=shape.positions * outputs * per_group * height * width,
    )
    return call.emit(layer, shape)


def _ungrouped(weight: Array, groups: int) -> Array:
    """Return grouped weights as block-diagonal full ones. Raises Refused when far too sparse."""
    outputs, per_group, height, width = weight.shape
    if groups > 8:
        raise Refused(f"it has {groups} groups: more than 8 would waste too much as a full one")
    full = np.zeros((outputs, per_group * groups, height, width), np.float32)
    each = outputs // groups
    for group in range(groups):
        rows = slice(group * each, (group + 1) * each)
        full[rows, group * per_group : (group + 1) * per_group] = weight[rows]
    return full


def _max_pool(call: Call) -> dict[str, View]:
    if len(call.node.outputs) > 1 or call.node.integer("storage_order", 0):
        raise Refused("it also returns positions")
    kernel = _pair(call.node.integers("kernel_shape"))
    strides, dilations, pads, size = _window(call, kernel)
    shape = MapShape(*size, call.view(0).lead.size)
    layer = Layer("max", (call.map(0),), call.output, kernel, strides, pads, dilations)
    return call.emit(layer, shape)


def _average_pool(call: Call) -> dict[str, View]:
    kernel = _pair(call.node.integers("kernel_shape"))
    strides, dilations, pads, size = _window(call, kernel)
    if (any(pads) and not call.node.integer("count_include_pad", 0)) or (
        call.node.integer("ceil_mode", 0)
    ):
        raise Refused("its average counts fewer positions at the border")
    shape = MapShape(*size, call.view(0).lead.size)
    count = kernel[0] * kernel[1]
    weight = np.full((count, shape.channels), 1 / count, np.float32)
    bias = np.zeros(shape.channels, np.float32)
    macs = shape.positions * shape.channels * count
    layer = Layer(
        "depthwise",
        (call.map(0),),
        call.output,
        kernel,
        strides,
        pads,
        dilations,
        weight,
        bias,
        macs=macs,
    )
    return call.emit(layer, shape)


def _activation(node: Node, call: Call) -> Activation:
    if node.kind == "Clip":
        low, high = call.constant(1), call.constant(2)
        least = node.number("min", -np.inf) if low is None else float(low)
        most = node.number("max", np.inf) if high is None else float(high)
        return Activation("clip", least, most)
    if node.kind == "LeakyRelu":
        return Activation("leaky", node.number("alpha", 0.01))
    if node.kind == "HardSigmoid":
        return Activation("hard_sigmoid", node.number("alpha", 0.2), node.number("beta", 0.5))
    if node.kind == "HardSwish":
        return Activation("hard_swish", 1 / 6, 0.5)
    simple: dict[str, Activation] = {
        "Relu": Activation("relu"),
        "Sigmoid": Activation("sigmoid"),
        "Tanh": Activation("tanh"),
    }
    return simple[node.kind]


def _activate(call: Call) -> dict[str, View]:
    activation = _activation(call.node, call)
    layer = Layer("activate", (call.map(0),), call.output, activation=activation)
    return call.emit(layer, call.view(0).shape)


def _prelu(call: Call) -> dict[str, View]:
    slope = call.constant(1)
    if slope is None or len(values := np.unique(slope)) != 1:
        raise Refused("its slope differs between channels")
    layer = Layer(
        "activate", (call.map(0),), call.output, activation=Activation("leaky", float(values[0]))
    )
    return call.emit(layer, call.view(0).shape)


def _binary(call: Call) -> dict[str, View]:
    names = call.node.inputs
    if names[0] in call.views and names[1] in call.views:
        first, second = call.view(0), call.view(1)
        if first.dims != second.dims or call.node.kind not in ("Add", "Mul"):
            raise Refused(f"it joins activations of shapes {first.dims} and {second.dims}")
        kind = "add" if call.node.kind == "Add" else "multiply"
        layer = Layer(kind, (call.map(0), call.map(1)), call.output)  # type: ignore[arg-type]
        return call.emit(layer, first.shape)
    index = 0 if names[0] in call.views else 1
    view, constant = call.view(index), call.constant(1 - index)
    assert constant is not None, "a binary operator has two inputs"
    channels = view.lead.size
    padded = constant.reshape((1,) * (4 - constant.ndim) + constant.shape)
    if constant.ndim > 4 or padded.shape[2:] != (1, 1) or padded.shape[1] not in (1, channels):
        raise Refused("its constant differs between positions")
    values: Floats = np.broadcast_to(padded.ravel(), channels).astype(np.float32)
    one, zero = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    weight, bias = one, zero
    if call.node.kind == "Add":
        bias = values
    elif call.node.kind == "Mul":
        weight = values
    elif call.node.kind == "Sub":
        weight, bias = (one, -values) if index == 0 else (-one, values)
    elif index == 0:
        weight = (1 / values).astype(np.float32)
    else:
        raise Refused("it divides a constant by an activation")
    layer = Layer("affine", (call.map(index),), call.output, weight=weight, bias=bias)
    return call.emit(layer, view.shape)


def _batch_norm(call: Call) -> dict[str, View]:
    parts = [call.constant(index) for index in range(1, 5)]
    if any(part is None for part in parts) or len(call.node.outputs) > 1:
        raise Refused("it is in training mode")
    gain, shift, mean, variance = (np.asarray(part, np.float64) for part in parts)
    scale = gain / np.sqrt(variance + call.node.number("epsilon", 1e-5))
    layer = Layer(
        "affine",
        (call.map(0),),
        call.output,
        weight=scale.astype(np.float32),
        bias=(shift - mean * scale).astype(np.float32),
    )
    return call.emit(layer, call.view(0).shape)


def _global_pool(call: Call) -> dict[str, View]:
    shape = MapShape(1, 1, call.view(0).lead.size)
    raise Global("it pools over the whole image (squeeze-and-excitation or a classifier)", shape)


TABLE: dict[str, Callable[[Call], dict[str, View]]] = {
    "Conv": _conv,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "PRelu": _prelu,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
}
TABLE |= MOVES
TABLE |= dict.fromkeys(("Add", "Sub", "Mul", "Div"), _binary)
TABLE |= dict.fromkeys(
    ("Relu", "Sigmoid", "Tanh", "Clip", "LeakyRelu", "HardSigmoid", "HardSwish"), _activate
)

REASONS = {
    "ReduceMean": "it averages over the whole image (squeeze-and-excitation or a classifier)",
    "ReduceMax": "it takes a maximum over the whole image",
    "MatMul": "it mixes all positions (attention or a dense layer)",
    "Gemm": "it mixes all positions (a dense layer)",
    "Softmax": "it normalises over an axis: there is no differential kernel for it",
    "InstanceNormalization": "its statistics are those of the whole image",
    "LayerNormalization": "its statistics span an axis of its own: no differential kernel",
    "Flatten": "it moves positions into another axis",
    "NonMaxSuppression": "it compares all positions",
    "TopK": "it compares all positions",
    "If": "what it does is decided at run time",
    "Loop": "what it does is decided at run time",
    "QLinearConv": "it is quantized: only float32 activations have kernels",
    "ConvInteger": "it is quantized: only float32 activations have kernels",
    "QuantizeLinear": "it is quantized: only float32 activations have kernels",
    "ConvTranspose": "there is no differential kernel for transposed convolutions",
}


def outline(
    node: Node, source: MapShape | None, constants: dict[str, Array]
) -> tuple[MapShape | None, int]:
    """Return (output shape, multiply-accumulates) of a node in the suffix, as far as known."""
    if source is None:
        return None, 0
    weight = constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
    if node.kind in ("MatMul", "Gemm") and weight is not None and weight.ndim == 2:
        rows = max(1, source.positions * source.channels // max(weight.shape))
        return None, int(rows * weight.size)
    if node.kind == "Conv" and weight is not None and weight.ndim == 4:
        steps = node.integers("strides", (1, 1))
        height, width = -(-source.height // steps[0]), -(-source.width // steps[1])
        return MapShape(height, width, weight.shape[0]), int(height * width * weight.size)
    if node.kind in ("MaxPool", "AveragePool"):
        steps = node.integers("strides", (1, 1))
        size = -(-source.height // steps[0]), -(-source.width // steps[1])
        return MapShape(*size, source.channels), 0
    if node.kind in ("GlobalAveragePool", "ReduceMean"):
        return MapShape(1, 1, source.channels), 0
    return source, 0
