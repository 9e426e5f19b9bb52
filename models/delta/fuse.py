"""Join layers that are cheaper as one, without changing what is computed.

Owns rewriting of the layer list; never changes a map that the frontier names. Invariant: each
rewrite is an identity in exact arithmetic (sums may be rounded in another order).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from models.delta.layers import NOTHING, Activation, Analysis, Floats, Integers, Layer, MapShape

CONVOLUTIONS = ("conv", "depthwise")


def fuse(analysis: Analysis) -> Analysis:
    """Return the same analysis with fewer, larger layers. O(layers)."""
    kept = set(analysis.frontier.values())
    layers = list(analysis.layers)
    for rewrite in (_swish, _focus, _affine, _activation, _residual, _activation, _pyramid):
        layers = _alive(rewrite(layers, kept, analysis.shapes), kept)
    return replace(analysis, layers=tuple(layers))


def _alive(layers: Iterable[Layer], kept: set[str]) -> list[Layer]:
    """Return the layers whose output somebody needs, in order."""
    needed, found = set(kept), []
    for layer in reversed(list(layers)):
        if layer.output in needed:
            needed.update(layer.reads)
            found.append(layer)
    return found[::-1]


def _uses(layers: Iterable[Layer], kept: set[str]) -> Counter[str]:
    """Return how often each map is read; the frontier reads once."""
    return Counter(name for layer in layers for name in layer.reads) + Counter(kept)


def _swish(layers: list[Layer], kept: set[str], _: dict[str, MapShape]) -> list[Layer]:
    """Join x * sigmoid(x) and x * hard_sigmoid(x)."""
    made = {layer.output: layer for layer in layers}
    names: dict[str, Callable[[Activation], Activation]] = {
        "sigmoid": lambda _: Activation("silu"),
        "hard_sigmoid": lambda gate: Activation("hard_swish", gate.low, gate.high),
    }
    found = []
    for layer in layers:
        if layer.kind == "multiply":
            for x, gated in (layer.inputs, layer.inputs[::-1]):
                gate = made.get(gated)
                if gate and gate.kind == "activate" and gate.inputs == (x,):
                    join = names.get(gate.activation.kind)
                    if join:
                        activation = join(gate.activation)
                        layer = Layer("activate", (x,), layer.output, activation=activation)
                        break
        found.append(layer)
    return found


def _focus(layers: list[Layer], kept: set[str], shapes: dict[str, MapShape]) -> list[Layer]:
    """Join a convolution over interleaved picks (YOLO's focus) into one of larger stride."""
    made = {layer.output: layer for layer in layers}
    return [_unfocused(layer, made, shapes) or layer for layer in layers]


def _unfocused(layer: Layer, made: dict[str, Layer], shapes: dict[str, MapShape]) -> Layer | None:
    if layer.kind != "conv" or layer.dilations != (1, 1):
        return None
    joined = made.get(layer.inputs[0])
    if joined is None or joined.kind != "concat":
        return None
    picks = [_composed(name, made) for name in joined.inputs]
    sources = {pick[0] for pick in picks if pick}
    if len(sources) != 1 or any(pick is None for pick in picks):
        return None
    source = sources.pop()
    size, small = shapes[source], shapes[joined.output]
    step = size.height // small.height
    if step < 2 or (size.height, size.width) != (small.height * step, small.width * step):
        return None
    height, width = layer.kernel
    wide: Floats = np.zeros(
        (height * step, width * step, size.channels, layer.matrix.shape[1]), np.float32
    )
    taps = layer.matrix.reshape(height, width, len(picks), size.channels, -1)
    for index, pick in enumerate(picks):
        assert pick is not None, "checked above"
        _, rows, columns = pick
        y, x = int(rows[0]), int(columns[0])
        even = np.arange(len(rows)) * step + y, np.arange(len(columns)) * step + x
        if y < 0 or x < 0 or (rows != even[0]).any() or (columns != even[1]).any():
            return None
        if y >= step or x >= step:
            return None
        wide[y::step, x::step] += taps[:, :, index]
    top, left, bottom, right = (pad * step for pad in layer.pads)
    return replace(
        layer,
        inputs=(source,),
        kernel=(height * step, width * step),
        strides=(layer.strides[0] * step, layer.strides[1] * step),
        pads=(top, left, bottom, right),
        weight=np.ascontiguousarray(wide.reshape(-1, wide.shape[3])),
    )


def _composed(name: str, made: dict[str, Layer]) -> tuple[str, Integers, Integers] | None:
    """Return (source, rows, columns) of a chain of picks."""
    rows = columns = None
    while (layer := made.get(name)) is not None and layer.kind == "pick":
        own = layer.tables
        if rows is None or columns is None:
            rows, columns = own
        elif min(own[0].min(), own[1].min()) < 0:
            return None
        else:
            rows, columns = own[0][rows], own[1][columns]
        name = layer.inputs[0]
    return None if rows is None or columns is None else (name, rows, columns)


def _affine(layers: list[Layer], kept: set[str], _: dict[str, MapShape]) -> list[Layer]:
    """Fold a per-channel scale and shift into the convolution before it."""
    uses = _uses(layers, kept)
    place: dict[str, int] = {}
    found: list[Layer] = []
    for layer in layers:
        before = place.get(layer.inputs[0])
        if layer.kind == "affine" and before is not None and uses[layer.inputs[0]] == 1:
            one = found[before]
            if one.kind in CONVOLUTIONS and one.activation == NOTHING and not one.residual:
                weight = one.matrix * layer.matrix
                bias = one.shift * layer.matrix + layer.shift
                found[before] = replace(one, weight=weight, bias=bias, output=layer.output)
                place[layer.output] = before
                continue
        place[layer.output] = len(found)
        found.append(layer)
    return found


def _activation(layers: list[Layer], kept: set[str], _: dict[str, MapShape]) -> list[Layer]:
    """Let the layer before apply the activation, where nobody else reads what it gave."""
    uses = _uses(layers, kept)
    place: dict[str, int] = {}
    found: list[Layer] = []
    able = (*CONVOLUTIONS, "add", "multiply", "affine")
    for layer in layers:
        before = place.get(layer.inputs[0])
        if layer.kind == "activate" and before is not None and uses[layer.inputs[0]] == 1:
            one = found[before]
            if one.kind in able and one.after == NOTHING:
                if one.residual:
                    joined = replace(one, after=layer.activation, output=layer.output)
                elif one.activation == NOTHING:
                    joined = replace(one, activation=layer.activation, output=layer.output)
                else:
                    joined = None
                if joined is not None:
                    found[before] = joined
                    place[layer.output] = before
                    continue
        place[layer.output] = len(found)
        found.append(layer)
    return found


def _residual(layers: list[Layer], kept: set[str], _: dict[str, MapShape]) -> list[Layer]:
    """Let the later of two added convolutions add the other."""
    uses = _uses(layers, kept)
    place: dict[str, int] = {}
    found: list[Layer] = []
    for layer in layers:
        if layer.kind == "add" and layer.inputs[0] != layer.inputs[1]:
            # The one made later can read the other; model inputs come before everything.
            later, other = sorted(layer.inputs, key=lambda name: -place.get(name, -1))
            before = place.get(later)
            if before is not None and uses[later] == 1:
                one = found[before]
                if one.kind in CONVOLUTIONS and not one.residual:
                    found[before] = replace(
                        one, residual=other, output=layer.output, after=layer.activation
                    )
                    place[layer.output] = before
                    continue
        place[layer.output] = len(found)
        found.append(layer)
    return found


def _pyramid(layers: list[Layer], kept: set[str], _: dict[str, MapShape]) -> list[Layer]:
    """Take a large maximum over a smaller one of the same map (spatial pyramid pooling)."""
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        if _is_centred_maximum(layer):
            groups.setdefault(layer.inputs[0], []).append(layer)
    found: list[Layer] = []
    for layer in layers:
        if not _is_centred_maximum(layer):
            found.append(layer)
            continue
        before = None  # all of a group go where the first one was: they read the same map
        for each in sorted(groups.pop(layer.inputs[0], []), key=lambda one: one.kernel[0]):
            if before is not None and each.kernel[0] > before.kernel[0]:
                side = each.kernel[0] - before.kernel[0] + 1
                found.append(
                    replace(
                        each,
                        inputs=(before.output,),
                        kernel=(side, side),
                        pads=(side // 2,) * 4,
                    )
                )
            else:
                found.append(each)
            before = each
    return found


def _is_centred_maximum(layer: Layer) -> bool:
    side = layer.kernel[0]
    return (
        layer.kind == "max"
        and side % 2 == 1
        and layer.kernel == (side, side)
        and layer.pads == (side // 2,) * 4
        and layer.strides == layer.dilations == (1, 1)
    )
