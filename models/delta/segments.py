"""Choose which maps a camera's state need not hold, and order the steps accordingly.

Owns the choice only; never holds activations. A map that is not held is computed again in every
frame wherever its readers need it, into memory that all cameras share, so its readers run together
with what computes it: in one *segment*. Invariants: segments are runs of neighbouring steps whose
dirty sets depend on earlier segments alone; what leaves the local layers is always held.

The price of not holding a map is the ring around the dirty positions that windows read: it is
estimated for one box of changed pixels, by intervals.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil

from models.delta.layers import Layer, MapShape

Box = tuple[int, int, int, int]  # top, bottom, left, right; the ends not in it
Shapes = Mapping[str, MapShape]
CHANNEL_COST = 20  # multiply-accumulates that storing and activating a value is worth
BOX_SHARE = (6, 10)  # of the image's height and width: about a person
_NOWHERE: Box = (1 << 30, -1, 1 << 30, -1)


@dataclass(frozen=True, eq=False)
class Unit:
    """Layers that run tile by tile: only the last one's output lies in memory."""

    layers: tuple[Layer, ...]

    @property
    def output(self) -> str:
        return self.layers[-1].output

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the maps it reads from memory."""
        later = [layer.residual for layer in self.layers[1:] if layer.residual]
        return (*self.layers[0].reads, *later)


def choose(
    units: list[Unit],
    shapes: Shapes,
    candidates: Mapping[str, tuple[frozenset[str], int]],
    surplus_bytes: int,
) -> tuple[frozenset[str], list[list[Unit]]]:
    """Return the maps that no state holds, and the units by segment, in order of execution.

    `candidates`: maps and bytes of each buffer that may go; they go, those of least extra work per
    byte first, until the surplus is gone or nothing is left. O(candidates * units).
    """
    chosen: frozenset[str] = frozenset()
    segments = [[unit] for unit in units]
    if surplus_bytes <= 0:
        return chosen, segments
    price = work = _work(units, shapes, chosen)
    queue = [(0.0, -size, name) for name, (_, size) in candidates.items()]
    heapq.heapify(queue)
    while queue and surplus_bytes > 0:
        _, size, name = heapq.heappop(queue)
        more = chosen | candidates[name][0]
        ordered = segmented(units, more, [candidates[one][0] for one in candidates])
        if ordered is None:
            continue
        price = (_work(units, shapes, more) - work) / -size
        if queue and (price, size, name) > queue[0]:  # the price has risen since it was estimated
            heapq.heappush(queue, (price, size, name))
            continue
        chosen, segments = more, ordered
        work, surplus_bytes = work + price * -size, surplus_bytes + size
    return chosen, segments


def segmented(
    units: list[Unit], volatile: frozenset[str], buffers: Iterable[frozenset[str]]
) -> list[list[Unit]] | None:
    """Return the units by segment in order of execution, or None where segments need each other."""
    makers = {unit.output: index for index, unit in enumerate(units)}
    group = list(range(len(units)))

    def root(index: int) -> int:
        while group[index] != index:
            index = group[index]
        return index

    for index, unit in enumerate(units):
        for name in unit.reads:
            if name in volatile:
                group[root(index)] = root(makers[name])
    for names in buffers:
        if names <= volatile:
            first, *others = (root(makers[name]) for name in sorted(names))
            for other in others:
                group[root(other)] = root(first)
    members: dict[int, list[int]] = {}
    for index in range(len(units)):
        members.setdefault(root(index), []).append(index)
    waits = {
        each: {root(makers[name]) for i in inside for name in units[i].reads if name in makers}
        - {each}
        for each, inside in members.items()
    }
    found: list[list[Unit]] = []
    while waits:
        ready = [each for each, before in waits.items() if not before]
        if not ready:
            return None
        first = min(ready, key=lambda each: members[each][-1])
        found.append([units[index] for index in members[first]])
        del waits[first]
        for before in waits.values():
            before.discard(first)
    return found


def _work(units: list[Unit], shapes: Shapes, volatile: frozenset[str]) -> float:
    """Return the multiply-accumulates that a box of changed pixels causes."""
    image = units[0].layers[0].inputs[0]
    y, x = shapes[image].height, shapes[image].width
    high, wide = y // (2 * BOX_SHARE[0]), x // (2 * BOX_SHARE[1])
    dirty = {image: (y // 2 - high, y // 2 + high, x // 2 - wide, x // 2 + wide)}
    total = 0.0
    computed: dict[str, Box] = {}
    for unit in units:
        shape = shapes[unit.output]
        dirty[unit.output] = computed[unit.output] = _forward(unit, shapes, dirty)
        if unit.output not in volatile:  # what is held is pruned: change stays about where it was
            dirty[unit.output] = _meet(
                computed[unit.output], _scaled(dirty[image], shapes[image], shape)
            )
    wanted = {name: _NOWHERE if name in volatile else box for name, box in computed.items()}
    for unit in reversed(units):
        box, shape = wanted[unit.output], shapes[unit.output]
        share = max(0, box[1] - box[0]) * max(0, box[3] - box[2]) / shape.positions
        total += share * sum(
            layer.macs + CHANNEL_COST * shapes[layer.output].channels * shape.positions
            for layer in unit.layers
            if layer.kind != "concat"
        )
        for index, name in enumerate(unit.reads):
            if name in volatile:
                read = box if index else _backward(unit.layers[0], shapes[name], box)
                wanted[name] = _union(wanted[name], read)
    return total


def _scaled(box: Box, image: MapShape, shape: MapShape) -> Box:
    down, across = image.height / shape.height, image.width / shape.width
    return (
        int(box[0] / down),
        ceil(box[1] / down),
        int(box[2] / across),
        ceil(box[3] / across),
    )


def _meet(one: Box, other: Box) -> Box:
    return (
        max(one[0], other[0]),
        min(one[1], other[1]),
        max(one[2], other[2]),
        min(one[3], other[3]),
    )


def _union(one: Box, other: Box) -> Box:
    return (
        min(one[0], other[0]),
        max(one[1], other[1]),
        min(one[2], other[2]),
        max(one[3], other[3]),
    )


def _forward(unit: Unit, shapes: Shapes, dirty: Mapping[str, Box]) -> Box:
    """Return the positions of a unit's output whose windows touch what is dirty."""
    first, shape = unit.layers[0], shapes[unit.output]
    found = _NOWHERE
    for index, name in enumerate(unit.reads):
        if index or first.is_pointwise:
            found = _union(found, dirty[name])
            continue
        sides: list[int] = []
        for axis, size in enumerate((shape.height, shape.width)):
            low, high = dirty[name][2 * axis : 2 * axis + 2]
            if first.kind == "pick":
                where = [i for i, at in enumerate(first.tables[axis]) if low <= at < high]
                sides += (where[0], where[-1] + 1) if where else (0, 0)
                continue
            step, pad = first.strides[axis], first.pads[axis]
            reach = (first.kernel[axis] - 1) * first.dilations[axis]
            sides += (
                max(0, -((reach - low - pad) // step)),
                min(size, (high - 1 + pad) // step + 1),
            )
        found = _union(found, (sides[0], sides[1], sides[2], sides[3]))
    return found


def _backward(first: Layer, shape: MapShape, box: Box) -> Box:
    """Return the positions that the windows of a box read."""
    if first.is_pointwise or box[1] <= box[0]:
        return box
    sides: list[int] = []
    for axis, size in enumerate((shape.height, shape.width)):
        low, high = box[2 * axis : 2 * axis + 2]
        if first.kind == "pick":
            where = [int(at) for at in first.tables[axis][low:high] if at >= 0] or [0]
            sides += (min(where), max(where) + 1)
            continue
        step, pad = first.strides[axis], first.pads[axis]
        reach = (first.kernel[axis] - 1) * first.dilations[axis]
        sides += (max(0, low * step - pad), min(size, (high - 1) * step - pad + reach + 1))
    return sides[0], sides[1], sides[2], sides[3]
