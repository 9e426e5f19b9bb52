"""Compile local layers into steps over row-major activations of known place and size.

Owns where each map lies, the order of steps, which steps share a tile, and how a set of dirty
positions grows from step to step; never holds activations. Invariants: a map that a step reads
where it was not computed in the same run is in the state; a convolution never reads outside its
buffer, because each buffer is surrounded by a ring of zeros as wide as its readers reach (nobody
writes there); concatenated maps are columns of one buffer.

A state holds one camera's activations, but neither the image nor the maps that `segments` chose
to compute again: those lie in scratch memory that all cameras of a program share. Steps marked
`chained` write no map: their rows live only in the tile that the next step (pointwise) reads.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from models.delta.layers import Analysis, Layer, MapShape
from models.delta.segments import Unit, choose
from models.wire import ModelError

LIMIT_BYTES = 256 << 20
BUDGET_BYTES = 24_000_000
MAX_SIDE = 16_384
ALIGN_FLOATS = 16
SLACK_FLOATS = 64  # vector loads may run over the last row

Mask = npt.NDArray[np.bool_]
Ring = tuple[int, int, int, int]


class PlanTooLarge(ModelError):
    """The activations of one camera would need more memory than allowed."""


@dataclass(frozen=True)
class Buffer:
    """Memory of one or more maps: rows of `width` floats, `ring` (top, left, bottom, right)."""

    height: int
    width: int
    channels: int
    ring: Ring = (0, 0, 0, 0)
    offset: int = 0  # floats, from the start of the state or of the scratch memory
    is_shared: bool = False  # in the scratch memory

    @property
    def pitch(self) -> int:
        """Return the positions of one line, ring included."""
        return self.width + self.ring[1] + self.ring[3]

    @property
    def floats(self) -> int:
        return self.pitch * (self.height + self.ring[0] + self.ring[2]) * self.channels


@dataclass(frozen=True)
class Place:
    """Where a map lies: in a buffer, from a column on."""

    buffer: str
    column: int


@dataclass(frozen=True, eq=False)
class Step:
    """One layer to execute.

    `chained`: its rows go to the next step's tile, not to a map. `prunes`: rows that come out
    unchanged are not dirty for the readers. `segment`: see `segments`.
    """

    layer: Layer
    chained: bool = False
    prunes: bool = False
    segment: int = 0


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything an executor needs but the activations."""

    input_name: str
    shapes: dict[str, MapShape]
    buffers: dict[str, Buffer]
    places: dict[str, Place]
    steps: tuple[Step, ...]
    frontier: dict[str, str]
    state_floats: int
    scratch_floats: int

    @property
    def state_bytes(self) -> int:
        """Return the bytes of one camera's state."""
        return 4 * self.state_floats

    @property
    def scratch_bytes(self) -> int:
        """Return the bytes of the maps that no state holds (shared by cameras)."""
        return 4 * self.scratch_floats

    @property
    def mask_bytes(self) -> int:
        """Return the bytes of dirty and needed sets (shared by cameras)."""
        return 2 * sum(self.shapes[name].positions for name in self.places)

    @property
    def macs(self) -> int:
        """Return the multiply-accumulates of a full pass."""
        return sum(step.layer.macs for step in self.steps)

    def chains(self) -> list[tuple[Step, ...]]:
        """Return the steps grouped so that each group runs tile by tile. O(steps)."""
        found: list[tuple[Step, ...]] = []
        waiting: tuple[Step, ...] = ()
        for step in self.steps:
            waiting = (*waiting, step)
            if not step.chained:
                found.append(waiting)
                waiting = ()
        return found

    def depth(self, name: str) -> int:
        """Return a map's stride: how many input pixels one of its positions stands for."""
        return max(1, round(self.shapes[self.input_name].height / self.shapes[name].height))


def compile_plan(
    analysis: Analysis, limit_bytes: int = LIMIT_BYTES, budget_bytes: int = BUDGET_BYTES
) -> Plan:
    """Return the plan of a (fused) analysis.

    Maps beyond the budget for one camera's state are computed again where they are needed, those
    that cost least first, as far as this is possible. Raises PlanTooLarge when the activations
    of one camera, held or not, exceed the limit. O(layers^2) beyond the budget, else O(layers).
    """
    image = analysis.shapes[analysis.input_name]
    if max(image.height, image.width) > MAX_SIDE:
        raise PlanTooLarge(f"images of {image.height} x {image.width} are beyond {MAX_SIDE}")
    layers = _with_copies(analysis)
    shapes = dict(analysis.shapes) | {
        layer.output: analysis.shapes[layer.inputs[0]]
        for layer in layers
        if layer.output not in analysis.shapes
    }
    places = _places(layers, analysis)
    frontier = set(analysis.frontier.values())
    units = _units(layers, frontier, places)
    held = {analysis.input_name} | {unit.output for unit in units}
    places = {name: place for name, place in places.items() if name in held}
    buffers = _buffers(layers, places, shapes)
    candidates = _candidates(analysis.input_name, frontier, places, buffers)
    surplus = 4 * sum(one.floats for one in buffers.values()) - budget_bytes
    surplus -= 4 * buffers[analysis.input_name].floats  # the image is never held
    volatile, segments = choose(units, shapes, candidates, surplus)
    shared = {places[name].buffer for name in volatile} | {analysis.input_name}
    buffers, floats, scratch = _laid_out(buffers, shared)
    whole = 4 * (floats + scratch)
    if whole > limit_bytes:
        raise PlanTooLarge(
            f"the activations of one camera at {image.height} x {image.width} pixels take "
            f"{whole / 1e6:.1f} MB, more than the {limit_bytes / 1e6:.1f} MB allowed"
        )
    steps = _steps(segments, volatile)
    found = dict(analysis.frontier)
    return Plan(analysis.input_name, shapes, buffers, places, steps, found, floats, scratch)


def _with_copies(analysis: Analysis) -> list[Layer]:
    """Return the layers with copies of what cannot lie in a concatenation's own buffer."""
    taken: set[str] = {analysis.input_name}
    found: list[Layer] = []
    for layer in analysis.layers:
        if layer.kind == "concat":
            members = []
            for index, name in enumerate(layer.inputs):
                if name in taken:
                    columns = np.arange(analysis.shapes[name].channels, dtype=np.int32)
                    copy = f"{layer.output}|{index}"
                    found.append(Layer("select", (name,), copy, channels=columns))
                    name = copy
                taken.add(name)
                members.append(name)
            layer = replace(layer, inputs=tuple(members))
        found.append(layer)
    return found


def _places(layers: list[Layer], analysis: Analysis) -> dict[str, Place]:
    """Return each map's place, following concatenations into concatenations."""
    inside: dict[str, Place] = {}
    for layer in layers:
        if layer.kind == "concat":
            column = 0
            for name in layer.inputs:
                inside[name] = Place(layer.output, column)
                source = name if name in analysis.shapes else name.rsplit("|", 1)[0]
                if name not in analysis.shapes:
                    copied = next(one for one in layers if one.output == name)
                    source = copied.inputs[0]
                column += analysis.shapes[source].channels
    places = {}
    for name in [analysis.input_name, *(layer.output for layer in layers)]:
        place = Place(name, 0)
        while place.buffer in inside:
            outer = inside[place.buffer]
            place = Place(outer.buffer, outer.column + place.column)
        places[name] = place
    return places


def _units(layers: list[Layer], frontier: set[str], places: dict[str, Place]) -> list[Unit]:
    """Return the layers, convolutions chained where one pointwise reader follows."""
    uses = Counter(name for layer in layers for name in layer.reads)
    reader = {name: layer for layer in layers for name in layer.reads}
    found: list[Unit] = []
    pending: dict[str, list[Layer]] = {}  # by output: chains that wait for their reader
    for layer in layers:
        chain = [*pending.pop(layer.inputs[0], []), layer]
        follower = reader.get(layer.output)
        if (
            follower is not None
            and uses[layer.output] == 1
            and layer.output not in frontier
            and places[layer.output].buffer == layer.output
            and _can_chain(layer, follower)
        ):
            pending[layer.output] = chain
        else:
            found.append(Unit(tuple(chain)))
    return found


def _steps(segments: list[list[Unit]], volatile: frozenset[str]) -> tuple[Step, ...]:
    """Return the steps in order; what they prune depends on who reads what is held."""
    layers = [layer for units in segments for unit in units for layer in unit.layers]
    passing = volatile | {
        layer.output
        for units in segments
        for unit in units
        for layer in unit.layers
        if layer is not unit.layers[-1] or layer.kind == "concat"
    }
    return tuple(
        Step(
            layer,
            layer is not unit.layers[-1],
            layer.output not in passing and _worth_pruning(layer, layers, passing),
            number,
        )
        for number, units in enumerate(segments)
        for unit in units
        for layer in unit.layers
    )


def _can_chain(layer: Layer, follower: Layer) -> bool:
    """Return whether the follower can read a layer's rows from the tile they were made in."""
    return (
        layer.kind in ("conv", "depthwise")
        and not layer.residual
        and follower.kind == "conv"
        and follower.is_pointwise
        and follower.pads == (0, 0, 0, 0)
        and follower.inputs == (layer.output,)
        and follower.residual != layer.output
    )


def _worth_pruning(layer: Layer, layers: list[Layer], passing: frozenset[str]) -> bool:
    """Return whether a reader widens the dirty set, so that an unchanged row saves work.

    `layers` in order; maps that are `passing` hand the set on.
    """
    names = {layer.output}
    for other in layers:
        if names & set(other.inputs) and not other.is_pointwise and other.kind != "pick":
            return True
        if other.output in passing and names & set(other.reads):
            names.add(other.output)
    return False


def _candidates(
    image: str, frontier: set[str], places: dict[str, Place], buffers: dict[str, Buffer]
) -> dict[str, tuple[frozenset[str], int]]:
    """Return the maps and bytes of each buffer that a state may do without."""
    inside: dict[str, set[str]] = {}
    for name, place in places.items():
        inside.setdefault(place.buffer, set()).add(name)
    return {
        buffer: (frozenset(names), 4 * buffers[buffer].floats)
        for buffer, names in inside.items()
        if buffer != image and not names & frontier
    }


def _buffers(
    layers: list[Layer], places: dict[str, Place], shapes: dict[str, MapShape]
) -> dict[str, Buffer]:
    """Return every buffer with its ring."""
    buffers = {
        place.buffer: Buffer(
            shapes[place.buffer].height, shapes[place.buffer].width, shapes[place.buffer].channels
        )
        for place in places.values()
    }
    for layer in layers:
        if layer.kind in ("conv", "depthwise") and layer.inputs[0] in places:
            name = places[layer.inputs[0]].buffer
            ring = zip(buffers[name].ring, reach(layer, shapes), strict=True)
            top, left, bottom, right = (max(pair) for pair in ring)
            buffers[name] = replace(buffers[name], ring=(top, left, bottom, right))
    return buffers


def _laid_out(buffers: dict[str, Buffer], shared: set[str]) -> tuple[dict[str, Buffer], int, int]:
    """Return the buffers with their offsets, and the floats of the state and of the scratch."""
    ends = [0, 0]
    found = {}
    for name, buffer in buffers.items():
        is_shared = name in shared
        found[name] = replace(buffer, offset=ends[is_shared], is_shared=is_shared)
        ends[is_shared] += -(-buffer.floats // ALIGN_FLOATS) * ALIGN_FLOATS
    return found, ends[0] + SLACK_FLOATS, ends[1] + SLACK_FLOATS


def reach(layer: Layer, shapes: dict[str, MapShape]) -> Ring:
    """Return how far a layer's windows reach beyond its input: top, left, bottom, right."""
    source = shapes[layer.inputs[0]]
    out = shapes[layer.output]
    beyond = []
    for size, count, axis in (
        (source.height, out.height, 0),
        (source.width, out.width, 1),
    ):
        last = (count - 1) * layer.strides[axis] - layer.pads[axis]
        last += (layer.kernel[axis] - 1) * layer.dilations[axis]
        beyond.append(max(0, last - (size - 1)))
    return (layer.pads[0], layer.pads[1], beyond[0], beyond[1])


def spread(layer: Layer, masks: dict[str, Mask], shape: MapShape) -> Mask:
    """Return bool[height, width]: what a layer must compute again, given dirty inputs. Exact."""
    dirty: Mask = np.zeros((shape.height, shape.width), np.bool_)
    for index, name in enumerate(layer.reads):
        mask = masks[name]
        if index or layer.is_pointwise:
            dirty |= mask
        elif layer.kind == "pick":
            rows, columns = layer.tables[0][:, None], layer.tables[1][None]
            dirty |= mask[rows, columns] & (rows >= 0) & (columns >= 0)
        else:
            dirty |= _dilated(layer, mask, shape)
    return dirty


def _dilated(layer: Layer, mask: Mask, shape: MapShape) -> Mask:
    (top, left, _, _), (step_y, step_x) = layer.pads, layer.strides
    height = (shape.height - 1) * step_y + (layer.kernel[0] - 1) * layer.dilations[0] + 1
    width = (shape.width - 1) * step_x + (layer.kernel[1] - 1) * layer.dilations[1] + 1
    room = np.zeros((max(height, mask.shape[0] + top), max(width, mask.shape[1] + left)), bool)
    room[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    dirty: Mask = np.zeros((shape.height, shape.width), np.bool_)
    for v in range(layer.kernel[0]):
        y = v * layer.dilations[0]
        lines = room[y : y + (shape.height - 1) * step_y + 1 : step_y]
        for u in range(layer.kernel[1]):
            x = u * layer.dilations[1]
            dirty |= lines[:, x : x + (shape.width - 1) * step_x + 1 : step_x]
    return dirty


def dirty_masks(plan: Plan, mask: Mask) -> dict[str, Mask]:
    """Return the dirty set of every map for bool[height, width] changed pixels, unpruned."""
    masks = {plan.input_name: mask}
    for steps in plan.chains():
        first, last = steps[0].layer, steps[-1].layer
        dirty = spread(first, masks, plan.shapes[last.output])
        for step in steps:
            if step.layer.residual:
                dirty = dirty | masks[step.layer.residual]
        masks |= dict.fromkeys((step.layer.output for step in steps), dirty)
    return masks


def work_left(plan: Plan, mask: Mask) -> float:
    """Return the share 0..1 of multiply-accumulates that changed pixels cause, unpruned."""
    masks = dirty_masks(plan, mask)
    done = sum(step.layer.macs * float(masks[step.layer.output].mean()) for step in plan.steps)
    return done / plan.macs if plan.macs else 1.0
