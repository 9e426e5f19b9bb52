"""Translate the ONNX operators that only move values: slices, resizes, reshapes, joins.

Owns their meaning; never computes. Invariant: what would move positions into another axis is
refused.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from models.delta.call import Call, Refused, View
from models.delta.layers import Integers, Layer, MapShape


def _pick(call: Call, rows: Integers, columns: Integers) -> dict[str, View]:
    shape = MapShape(len(rows), len(columns), call.view(0).lead.size)
    layer = Layer("pick", (call.map(0),), call.output, rows=rows, columns=columns)
    return call.emit(layer, shape)


def _resize(call: Call) -> dict[str, View]:
    node, view = call.node, call.view(0)
    scales = call.constant(1 if node.kind == "Upsample" or len(node.inputs) == 2 else 2)
    sizes = call.constant(3)
    if node.text("mode", "nearest") != "nearest":
        raise Refused(f"it interpolates ({node.text('mode', '')}): there is no kernel for that")
    if sizes is not None and sizes.size == 4:
        out = [int(v) for v in sizes.ravel()[2:]]
        ratios = [out[0] / view.height, out[1] / view.width]
    elif scales is not None and scales.size == 4:
        ratios = [float(v) for v in scales.ravel()[2:]]
        out = [int(view.height * ratios[0]), int(view.width * ratios[1])]
        if not np.allclose(scales.ravel()[:2], 1):
            raise Refused("it resizes channels")
    else:
        raise Refused("it does not say its size for four axes")
    default = "asymmetric" if node.kind == "Upsample" else "half_pixel"
    where = node.text("coordinate_transformation_mode", default)
    how = "floor" if node.kind == "Upsample" else node.text("nearest_mode", "round_prefer_floor")
    rows = _nearest(out[0], ratios[0], view.height, where, how)
    columns = _nearest(out[1], ratios[1], view.width, where, how)
    return _pick(call, rows, columns)


def _nearest(count: int, ratio: float, size: int, where: str, how: str) -> Integers:
    """Return the source index of each output index, ONNX's definition of Resize."""
    at = np.arange(count, dtype=np.float64)
    if where == "asymmetric":
        source = at / ratio
    elif where in ("half_pixel", "pytorch_half_pixel"):
        source = (at + 0.5) / ratio - 0.5
    elif where == "align_corners" and count > 1:
        source = at * (size - 1) / (count - 1)
    else:
        raise Refused(f"its coordinate transformation {where!r} is not supported")
    rounding: dict[str, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    }
    if how not in rounding:
        raise Refused(f"its rounding {how!r} is not supported")
    found: Integers = np.clip(rounding[how](source), 0, size - 1).astype(np.int32)
    return found


def _slice(call: Call) -> dict[str, View]:
    view = call.view(0)
    starts, ends = call.numbers(1, "starts"), call.numbers(2, "ends")
    axes, steps = call.numbers(3, "axes"), call.numbers(4, "steps")
    if starts is None or ends is None:
        raise Refused("it does not say from where to where")
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = (1,) * len(starts) if steps is None else steps
    dims = view.dims
    index: list[npt.NDArray[np.intp]] = [np.arange(size) for size in dims]
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            raise Refused("it runs backwards")
        index[axis] = index[axis][slice(start, end, step)]
    return _taken(call, view, index)


def _taken(call: Call, view: View, index: list[npt.NDArray[np.intp]]) -> dict[str, View]:
    """Return a view (channels only) or a pick (positions) of indices along every axis."""
    lead = view.lead[np.ix_(*index[:-2])]
    rows, columns = (each.astype(np.int32) for each in index[-2:])
    arranged = view.arranged(lead)
    if len(rows) == view.height and len(columns) == view.width:
        return {call.output: arranged}
    inner = Call(call.node, {**call.views, call.node.inputs[0]: arranged}, {}, call.shapes)
    inner.layers, inner.new_shapes = call.layers, call.new_shapes
    return _pick(inner, rows, columns)


def _pad(call: Call) -> dict[str, View]:
    view = call.view(0)
    pads, value = call.numbers(1, "pads"), call.constant(2)
    if call.node.text("mode", "constant") != "constant" or len(call.node.inputs) > 3:
        raise Refused("it does not pad with a constant on all axes")
    fill = call.node.number("value", 0.0) if value is None else float(value.ravel()[0])
    if pads is None or len(pads) != 8 or fill or any(pads[i] for i in (0, 1, 4, 5)):
        raise Refused("it pads channels, or with something but zero")
    if min(pads) < 0:
        raise Refused("its padding is negative")
    rows, columns = (
        np.concatenate([np.full(low, -1), np.arange(size), np.full(high, -1)]).astype(np.int32)
        for low, size, high in (
            (pads[2], view.height, pads[6]),
            (pads[3], view.width, pads[7]),
        )
    )
    return _pick(call, rows, columns)


def _concat(call: Call) -> dict[str, View]:
    views = [call.view(index) for index in range(len(call.node.inputs))]
    if call.node.integer("axis", 1) not in (1, -3) or any(v.lead.ndim != 2 for v in views):
        raise Refused("it joins along another axis than channels")
    if len({(v.height, v.width) for v in views}) > 1:
        raise Refused("it joins activations of different sizes")
    shape = MapShape(views[0].height, views[0].width, sum(v.lead.size for v in views))
    layer = Layer("concat", tuple(call.map(i) for i in range(len(views))), call.output)
    return call.emit(layer, shape)


def _split(call: Call) -> dict[str, View]:
    view = call.view(0)
    axis = call.node.integer("axis", 0) % len(view.dims)
    if axis >= view.lead.ndim:
        raise Refused("it splits positions")
    count = len(call.node.outputs)
    sizes = call.numbers(1, "split")
    if sizes is None:
        each = -(-view.lead.shape[axis] // count)
        sizes = tuple(min(each, view.lead.shape[axis] - i * each) for i in range(count))
    edges = np.cumsum(sizes)[:-1]
    parts = np.split(view.lead, edges, axis=axis)
    return {name: view.arranged(part) for name, part in zip(call.node.outputs, parts, strict=True)}


def _reshape(call: Call) -> dict[str, View]:
    view, wanted = call.view(0), call.numbers(1, "shape")
    if wanted is None:
        raise Refused("it does not say its shape")
    dims = [view.dims[i] if size == 0 else size for i, size in enumerate(wanted)]
    total = int(np.prod(view.dims))
    known = int(np.prod([size for size in dims if size != -1]))
    dims = [total // max(1, known) if size == -1 else size for size in dims]
    if tuple(dims[-2:]) != (view.height, view.width) or int(np.prod(dims)) != total:
        raise Refused("it moves positions into another axis")
    return {call.output: view.arranged(view.lead.reshape(dims[:-2]))}


def _transpose(call: Call) -> dict[str, View]:
    view = call.view(0)
    perm = call.node.integers("perm")
    last = len(view.dims)
    if len(perm) != last or perm[-2:] != (last - 2, last - 1):
        raise Refused("it moves positions into another axis")
    return {call.output: view.arranged(view.lead.transpose(perm[:-2]))}


def _gather(call: Call) -> dict[str, View]:
    view, index = call.view(0), call.constant(1)
    axis = call.node.integer("axis", 0) % len(view.dims)
    if index is None or axis >= view.lead.ndim:
        raise Refused("it gathers positions")
    return {call.output: view.arranged(np.take(view.lead, index.astype(np.intp), axis=axis))}


def _identity(call: Call) -> dict[str, View]:
    return {call.output: call.view(0)}


MOVES: dict[str, Callable[[Call], dict[str, View]]] = {
    "Resize": _resize,
    "Upsample": _resize,
    "Slice": _slice,
    "Pad": _pad,
    "Concat": _concat,
    "Split": _split,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Gather": _gather,
    "Identity": _identity,
    "Dropout": _identity,
}
