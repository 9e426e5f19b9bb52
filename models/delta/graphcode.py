"""Write a plan as one ONNX graph of stock operators that updates its maps in place.

Owns the rewriting only; never runs the graph. Invariant: with no thresholds the maps after a run
equal those of a full pass up to the order of sums.

Every map that is read beside its own dirty set is a graph input float32[rows, channels] and a
graph output at the same address: ScatterND then writes only the dirty rows. Positions are rows of
the map with the plan's ring of zeros around it, so a window is its first row plus constant
offsets. Dirty sets are float masks, widened by MaxPool, listed by NonZero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.delta.layers import Activation, Layer
from models.delta.onnxfile import Array, Attribute, Model, Node, Value
from models.delta.plan import Plan, Ring, Step, reach

FLOAT, OPSET, IR_VERSION = 1, 18, 9
MASK, AFTER = "mask", "|new"


@dataclass(frozen=True)
class Lines:
    """How a map's positions are numbered as rows: a ring of zeros lies around them."""

    height: int
    width: int
    ring: Ring

    @property
    def pitch(self) -> int:
        return self.width + self.ring[1] + self.ring[3]

    @property
    def count(self) -> int:
        return self.pitch * (self.height + self.ring[0] + self.ring[2])

    def numbers(self) -> npt.NDArray[np.int64]:
        """Return the row of each position, int64[height * width]."""
        y, x = np.mgrid[: self.height, : self.width]
        rows = (y + self.ring[0]) * self.pitch + x + self.ring[1]
        found: npt.NDArray[np.int64] = rows.ravel().astype(np.int64)
        return found


class _Graph:
    """Collects nodes and constants; equal constants and repeated questions are made once."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = {}
        self._known: dict[tuple[object, ...], str] = {}

    def constant(self, value: npt.ArrayLike, kind: type[np.generic]) -> str:
        array = np.asarray(value, kind)
        key = ("constant", array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            name = f"c{len(self.constants)}"
            self.constants[name], self._known[key] = array, name
        return self._known[key]

    def add(self, kind: str, *inputs: str, **attributes: Attribute) -> str:
        key = (kind, inputs, *sorted(attributes.items()))
        if key not in self._known:
            name = f"t{len(self.nodes)}"
            self.nodes.append(Node(kind, inputs, (name,), dict(attributes), name))
            self._known[key] = name
        return self._known[key]

    def named(self, kind: str, output: str, *inputs: str) -> str:
        self.nodes.append(Node(kind, inputs, (output,), {}, output))
        return output


class Compiler:
    """Translates a plan step by step."""

    def __init__(self, plan: Plan, thresholds: Mapping[str, float] | None) -> None:
        self.plan = plan
        self.graph = _Graph()
        self.thresholds = thresholds
        self.masks = {plan.input_name: MASK}
        self.rows: dict[str, tuple[str, str]] = {}  # map -> (mask, its rows) just computed
        self.covers: dict[str, set[str]] = {}  # mask -> masks that are set in no other place
        self.members: dict[str, tuple[str, ...]] = {}
        self.kept = _kept(plan)
        self.current = {name: name for name in self.kept}  # after being updated: name + AFTER

    def lines(self, name: str) -> Lines:
        """Return how a map's positions are numbered."""
        shape = self.plan.shapes[name]
        return Lines(
            shape.height, shape.width, self.plan.buffers[self.plan.places[name].buffer].ring
        )

    def index(self, mask: str) -> str:
        """Return the dirty positions of a mask, int64[n]."""
        flat = self.graph.add("Reshape", mask, self.graph.constant([-1], np.int64))
        where = self.graph.add("NonZero", flat)
        return self.graph.add("Reshape", where, self.graph.constant([-1], np.int64))

    def numbers(self, name: str, mask: str) -> str:
        """Return the rows of a map at the dirty positions of a mask, int64[n]."""
        lines = self.lines(name)
        if lines.ring == (0, 0, 0, 0):
            return self.index(mask)
        table = self.graph.constant(lines.numbers(), np.int64)
        return self.graph.add("Gather", table, self.index(mask), axis=0)

    def at(self, name: str, mask: str) -> str:
        """Return a map's values at the dirty positions of a mask, float32[n, channels]."""
        if name in self.rows and self.rows[name][0] == mask:
            return self.rows[name][1]
        if name in self.members:
            parts = [self.at(member, mask) for member in self.members[name]]
            return self.graph.add("Concat", *parts, axis=1)
        return self.graph.add("Gather", self.current[name], self.numbers(name, mask), axis=0)

    def windows(self, layer: Layer, name: str, mask: str) -> str:
        """Return the values under each dirty window, float32[n, taps, channels]."""
        if name in self.members:
            parts = [self.windows(layer, member, mask) for member in self.members[name]]
            return self.graph.add("Concat", *parts, axis=2)
        source = self.lines(name)
        out = self.plan.shapes[layer.output]
        y, x = (axis.ravel() for axis in np.mgrid[: out.height, : out.width])
        u, v = (axis.ravel() for axis in np.mgrid[: layer.kernel[0], : layer.kernel[1]])
        top = y * layer.strides[0] - layer.pads[0]
        left = x * layer.strides[1] - layer.pads[1]
        if layer.kind == "max":  # positions outside repeat one inside: they cannot win
            rows = np.clip(top[:, None] + u * layer.dilations[0], 0, source.height - 1)
            columns = np.clip(left[:, None] + v * layer.dilations[1], 0, source.width - 1)
            table = (rows + source.ring[0]) * source.pitch + columns + source.ring[1]
            where = self.graph.add(
                "Gather", self.graph.constant(table, np.int64), self.index(mask), axis=0
            )
        else:
            corner = (top + source.ring[0]) * source.pitch + left + source.ring[1]
            offsets = u * layer.dilations[0] * source.pitch + v * layer.dilations[1]
            first = self.graph.add(
                "Gather", self.graph.constant(corner[:, None], np.int64), self.index(mask), axis=0
            )
            where = self.graph.add("Add", first, self.graph.constant(offsets[None], np.int64))
        return self.graph.add("Gather", self.current[name], where, axis=0)

    def spread(self, layer: Layer, beside: tuple[str, ...]) -> str:
        """Return the mask of what a layer must compute again; `beside`: residuals of its chain."""
        masks = [self.masks[name] for name in (*layer.reads, *beside)]
        if layer.kind == "pick":
            rows = self.graph.constant(np.maximum(layer.tables[0], 0), np.int64)
            columns = self.graph.constant(np.maximum(layer.tables[1], 0), np.int64)
            lines = self.graph.add("Gather", masks[0], rows, axis=2)
            masks[0] = self.graph.add("Gather", lines, columns, axis=3)
            inside = (layer.tables[0] >= 0)[:, None] & (layer.tables[1] >= 0)[None]
            if not inside.all():
                keep = self.graph.constant(inside[None, None], np.float32)
                masks[0] = self.graph.add("Mul", masks[0], keep)
        elif not layer.is_pointwise:
            masks[0] = self.graph.add(
                "MaxPool",
                masks[0],
                # Without holes: providers want pads smaller than the kernel, and holes are rare.
                kernel_shape=tuple((layer.kernel[i] - 1) * layer.dilations[i] + 1 for i in (0, 1)),
                strides=layer.strides,
                pads=(*layer.pads[:2], *reach(layer, self.plan.shapes)[2:]),
            )
            centred = all(
                layer.pads[axis] == layer.pads[axis + 2]
                and 2 * layer.pads[axis] == (layer.kernel[axis] - 1) * layer.dilations[axis]
                for axis in (0, 1)
            )
            if layer.strides == (1, 1) and centred:
                source = self.masks[layer.inputs[0]]
                self.covers[masks[0]] = {source} | self.covers.get(source, set())
        return self.joined(masks)

    def joined(self, masks: list[str]) -> str:
        """Return a mask of what is set in any; a mask that another one covers costs nothing."""
        unique = list(dict.fromkeys(masks))
        unique = [
            mask
            for mask in unique
            if not any(mask in self.covers.get(other, set()) for other in unique)
        ]
        if len(unique) == 1:
            return unique[0]
        mask = self.graph.add("Max", *unique)
        self.covers[mask] = set(unique).union(*(self.covers.get(one, set()) for one in unique))
        return mask

    def computed(self, layer: Layer, mask: str) -> str:
        """Return a layer's output rows at a mask's positions, before any residual."""
        add, constant = self.graph.add, self.graph.constant
        name, kind = layer.inputs[0], layer.kind
        if kind == "conv":
            if layer.is_pointwise and layer.pads == (0, 0, 0, 0):
                rows = self.at(name, mask)
            else:
                width = layer.matrix.shape[0]
                rows = add(
                    "Reshape",
                    self.windows(layer, name, mask),
                    constant([-1, width], np.int64),
                )
            return add(
                "Gemm",
                rows,
                constant(layer.matrix, np.float32),
                constant(layer.shift, np.float32),
            )
        if kind == "depthwise":
            taps = add(
                "Mul", self.windows(layer, name, mask), constant(layer.matrix[None], np.float32)
            )
            total = add("ReduceSum", taps, constant([1], np.int64), keepdims=0)
            return add("Add", total, constant(layer.shift, np.float32))
        if kind == "max":
            axes = constant([1], np.int64)
            return add("ReduceMax", self.windows(layer, name, mask), axes, keepdims=0)
        if kind == "pick":
            return self.picked(layer, name, mask)
        rows = self.at(name, mask)
        if kind == "select":
            assert layer.channels is not None, "a selection has channels"
            return add("Gather", rows, constant(layer.channels, np.int64), axis=1)
        if kind in ("add", "multiply"):
            other = self.at(layer.inputs[1], mask)
            return add("Add" if kind == "add" else "Mul", rows, other)
        if kind == "affine":
            scaled = add("Mul", rows, constant(layer.matrix, np.float32))
            return add("Add", scaled, constant(layer.shift, np.float32))
        return rows

    def picked(self, layer: Layer, name: str, mask: str) -> str:
        """Return what a pick takes from a map at a mask's positions, float32[n, channels]."""
        if name in self.members:
            parts = [self.picked(layer, member, mask) for member in self.members[name]]
            return self.graph.add("Concat", *parts, axis=1)
        lines = self.lines(name)
        rows, columns = layer.tables[0][:, None], layer.tables[1][None]
        table = (rows + lines.ring[0]) * lines.pitch + columns + lines.ring[1]
        inside = (rows >= 0) & (columns >= 0)
        where = self.graph.add(
            "Gather",
            self.graph.constant(np.where(inside, table, 0).ravel(), np.int64),
            self.index(mask),
            axis=0,
        )
        found = self.graph.add("Gather", self.current[name], where, axis=0)
        if inside.all():
            return found
        keep = self.graph.constant(inside.reshape(-1, 1), np.float32)
        return self.graph.add(
            "Mul", found, self.graph.add("Gather", keep, self.index(mask), axis=0)
        )

    def activated(self, rows: str, activation: Activation) -> str:
        add, kind = self.graph.add, activation.kind
        low, high = (self.graph.constant(v, np.float32) for v in (activation.low, activation.high))
        if kind == "none":
            return rows
        if kind in ("relu", "sigmoid", "tanh"):
            return add({"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"}[kind], rows)
        if kind == "silu":
            return add("Mul", rows, add("Sigmoid", rows))
        if kind == "clip":
            return add("Clip", rows, low, high)
        if kind == "leaky":
            return add("LeakyRelu", rows, alpha=activation.low)
        gate = add("HardSigmoid", rows, alpha=activation.low, beta=activation.high)
        return gate if kind == "hard_sigmoid" else add("Mul", rows, gate)

    def pruned(self, name: str, rows: str, mask: str) -> tuple[str, str]:
        """Return (rows, mask) without the rows that did not change by more than the threshold."""
        assert self.thresholds is not None, "pruning needs thresholds"
        add, constant = self.graph.add, self.graph.constant
        old = add("Gather", self.current[name], self.numbers(name, mask), axis=0)
        axes = constant([1], np.int64)
        distance = add("ReduceMax", add("Abs", add("Sub", rows, old)), axes, keepdims=0)
        limit = constant(self.thresholds.get(name, 0.0), np.float32)
        keep = add("Not", add("LessOrEqual", distance, limit))  # not a number: changed
        kept = add("Compress", self.index(mask), keep, axis=0)
        ones = add("Expand", constant(1.0, np.float32), add("Shape", kept))
        shape = self.plan.shapes[name]
        nothing = constant(np.zeros(shape.positions), np.float32)
        flat = add("ScatterElements", nothing, kept, ones, axis=0)
        dims = constant([1, 1, shape.height, shape.width], np.int64)
        return add("Compress", rows, keep, axis=0), add("Reshape", flat, dims)

    def chain(self, steps: tuple[Step, ...]) -> None:
        """Add steps that hand their rows on; all run at the dirty set of the first."""
        beside = tuple(step.layer.residual for step in steps[1:] if step.layer.residual)
        mask = ""
        for step in steps:
            self.step(step.layer, step.prunes, mask, beside)
            mask = self.rows[step.layer.output][0] if step.chained else ""

    def step(self, layer: Layer, prunes: bool, chain: str, beside: tuple[str, ...]) -> None:
        """Add one step to the graph."""
        if layer.kind == "concat":
            self.members[layer.output] = layer.inputs
            self.masks[layer.output] = self.joined([self.masks[name] for name in layer.inputs])
            return
        mask = chain or self.spread(layer, beside)
        rows = self.activated(self.computed(layer, mask), layer.activation)
        if layer.residual:
            rows = self.graph.add("Add", rows, self.at(layer.residual, mask))
            rows = self.activated(rows, layer.after)
        name = layer.output
        if prunes and self.thresholds is not None and name in self.kept:
            rows, mask = self.pruned(name, rows, mask)
        self.masks[name], self.rows[name] = mask, (mask, rows)
        if name in self.kept:
            where = self.graph.add(
                "Unsqueeze", self.numbers(name, mask), self.graph.constant([1], np.int64)
            )
            self.current[name] = self.graph.named("ScatterND", name + AFTER, name, where, rows)


def _kept(plan: Plan) -> list[str]:
    """Return the maps that need a state: all but the image, concatenations and chained rows."""
    chained = {step.layer.output for step in plan.steps if step.chained}
    joined = {step.layer.output for step in plan.steps if step.layer.kind == "concat"}
    read = Counter(name for step in plan.steps for name in step.layer.reads)
    wanted = read + Counter(plan.frontier.values())
    outputs = [step.layer.output for step in plan.steps if wanted[step.layer.output]]
    return [plan.input_name] + [
        name for name in outputs if name not in chained and name not in joined
    ]


def compile_graph(plan: Plan, thresholds: Mapping[str, float] | None = None) -> Model:
    """Return the plan as an ONNX graph; with `thresholds` (possibly empty) it prunes. O(layers)."""
    compiler = Compiler(plan, thresholds)
    for steps in plan.chains():
        compiler.chain(steps)
    image = plan.shapes[plan.input_name]
    inputs = [Value(MASK, FLOAT, (1, 1, image.height, image.width))]
    outputs = []
    for name in compiler.kept:
        shape = (compiler.lines(name).count, plan.shapes[name].channels)
        inputs.append(Value(name, FLOAT, shape))
        if name != plan.input_name:
            outputs.append(Value(name + AFTER, FLOAT, shape))
    return Model(
        tuple(compiler.graph.nodes),
        compiler.graph.constants,
        tuple(inputs),
        tuple(outputs),
        (),
        {"": OPSET},
        IR_VERSION,
    )
