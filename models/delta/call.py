"""One ONNX node being translated: what is known of its inputs, and the layers it becomes.

Owns the bookkeeping of views and new layers; never knows an operator. Invariant: a node that
raised `Refused` has added nothing that anybody reads.

Values are tracked as `View`s, a map and the channels of it in some arrangement, so that channel
slices, splits and shuffles (reshape, transpose, gather on the axes before height and width) cost
nothing until a layer needs them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from models.delta.layers import Layer, MapShape
from models.delta.onnxfile import Array, Node

Grid = npt.NDArray[np.int32]


class Refused(Exception):
    """An operator cannot be run differentially; the text says why."""


class Global(Refused):
    """An operator mixes all positions; `shape` is its output's, for the cost of what follows."""

    def __init__(self, reason: str, shape: MapShape | None) -> None:
        super().__init__(reason)
        self.shape = shape


@dataclass(frozen=True, eq=False)
class View:
    """Channels `lead` (int32 of any shape) of a map, followed by its height and width."""

    name: str
    lead: Grid
    height: int
    width: int

    @staticmethod
    def whole(name: str, shape: MapShape) -> View:
        """Return the view of a map as ONNX sees it, [1, channels, height, width]."""
        lead = np.arange(shape.channels, dtype=np.int32)[None]
        return View(name, lead, shape.height, shape.width)

    @property
    def dims(self) -> tuple[int, ...]:
        return (*self.lead.shape, self.height, self.width)

    @property
    def shape(self) -> MapShape:
        return MapShape(self.height, self.width, self.lead.size)

    def arranged(self, lead: Grid) -> View:
        return View(self.name, lead, self.height, self.width)


@dataclass
class Call:
    """One node with what is known of its inputs; collects the layers it becomes."""

    node: Node
    views: dict[str, View]
    constants: dict[str, Array]
    shapes: dict[str, MapShape]
    layers: list[Layer] = field(default_factory=list)
    new_shapes: dict[str, MapShape] = field(default_factory=dict)

    @property
    def output(self) -> str:
        return self.node.outputs[0]

    def view(self, index: int) -> View:
        """Return an input as a view. Raises Refused when it is a constant or missing."""
        name = self.node.inputs[index] if index < len(self.node.inputs) else ""
        if name not in self.views:
            raise Refused("its input is no activation")
        return self.views[name]

    def constant(self, index: int) -> Array | None:
        """Return an optional constant input. Raises Refused when it is computed at run time."""
        name = self.node.inputs[index] if index < len(self.node.inputs) else ""
        if not name:
            return None
        if name not in self.constants:
            raise Refused(f"its input {name!r} is computed at run time")
        return self.constants[name]

    def numbers(self, index: int, attribute: str) -> tuple[int, ...] | None:
        """Return integers given as an input (newer operator sets) or as an attribute (older)."""
        given = self.constant(index)
        if given is not None:
            return tuple(int(v) for v in np.ravel(given).tolist())
        return self.node.integers(attribute) if attribute in self.node.attributes else None

    def map(self, index: int) -> str:
        """Return the name of a map that holds exactly this input; copies channels if needed."""
        view = self.view(index)
        if view.lead.ndim != 2 or view.lead.shape[0] != 1:
            raise Refused(f"its input of shape {view.dims} is no [1, channels, height, width]")
        source = self.new_shapes.get(view.name) or self.shapes[view.name]
        wanted = np.ascontiguousarray(view.lead[0])
        if len(wanted) == source.channels and (wanted == np.arange(source.channels)).all():
            return view.name
        name = f"{self.node.inputs[index]}|channels"
        shape = MapShape(view.height, view.width, len(wanted))
        if name not in self.shapes and name not in self.new_shapes:
            self.emit(Layer("select", (view.name,), name, channels=wanted), shape)
        return name

    def emit(self, layer: Layer, shape: MapShape) -> dict[str, View]:
        """Add a layer and return the view of its output."""
        if shape.height < 1 or shape.width < 1:
            raise Refused("its output has no positions at this input size")
        self.layers.append(layer)
        self.new_shapes[layer.output] = shape
        return {layer.output: View.whole(layer.output, shape)}
