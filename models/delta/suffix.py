"""Turn the maps where the local layers end into the model's own outputs.

Owns the part of the ONNX graph that is not local and runs it as it is with ONNX Runtime; never
keeps state. Invariant: given the maps of a full pass, its outputs are those of the model.

Maps arrive as rows float32[positions, channels]. The common ways in which detectors flatten
their maps are written in that order again, so that ONNX Runtime finds nothing left to transpose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from models.delta.layers import Analysis, Floats, MapShape
from models.delta.onnxfile import Array, Model, Node, Value

FLOAT = 1
ROWS = "rows:"


def suffix_model(model: Model, analysis: Analysis) -> tuple[Model, dict[str, str]]:
    """Return the suffix as a model of its own, and which map each of its inputs takes. O(nodes).

    Inputs are float32[positions, channels]; outputs have the names and shapes of the model's.
    """
    names: dict[str, str] = {}  # local value -> input
    nodes: list[Node] = []
    constants: dict[str, Array] = {}
    for index, name in enumerate(analysis.frontier):
        names[name] = f"{ROWS}{index}"
    made = _Entrances(analysis, names, nodes, constants)
    for index in analysis.suffix_nodes:
        node = model.nodes[index]
        if not _reordered(node, made, model.constants):
            inputs = tuple(made.image(name) if name in names else name for name in node.inputs)
            nodes.append(replace(node, inputs=inputs))
    for name in [value.name for value in model.outputs if value.name in names]:
        image = made.image(name)
        nodes.append(Node("Identity", (image,), (name,)))
    used = {name for node in nodes for name in node.inputs}
    constants |= {name: array for name, array in model.constants.items() if name in used}
    entrances = []
    for name, entrance in names.items():
        shape = analysis.shapes[analysis.frontier[name]]
        entrances.append(Value(entrance, FLOAT, (shape.positions, shape.channels)))
    outputs = tuple(Value(value.name, value.dtype, None) for value in model.outputs)
    opsets = dict(model.opsets)
    built = Model(
        tuple(nodes), constants, tuple(entrances), outputs, (), opsets, max(model.ir_version, 4)
    )
    return built, {names[name]: held for name, held in analysis.frontier.items()}


class _Entrances:
    """Gives the suffix its maps in the shape each node asks for."""

    def __init__(
        self,
        analysis: Analysis,
        names: dict[str, str],
        nodes: list[Node],
        constants: dict[str, Array],
    ) -> None:
        self.names = names
        self._analysis = analysis
        self._nodes = nodes
        self._constants = constants
        self._images: dict[str, str] = {}

    def shape(self, name: str) -> MapShape:
        return self._analysis.shapes[self._analysis.frontier[name]]

    def reshaped(self, name: str, dims: tuple[int, ...], output: str) -> str:
        """Return a value's rows in other dimensions (the same order in memory)."""
        target = f"{output}|dims"
        self._constants[target] = np.array(dims, np.int64)
        self._nodes.append(Node("Reshape", (self.names[name], target), (output,)))
        return output

    def transposed(self, source: str, perm: tuple[int, ...], output: str) -> str:
        self._nodes.append(Node("Transpose", (source,), (output,), {"perm": perm}))
        return output

    def image(self, name: str) -> str:
        """Return a value as the model knew it, [1, channels, height, width]."""
        if name not in self._images:
            shape = self.shape(name)
            dims = (1, shape.height, shape.width, shape.channels)
            rows = self.reshaped(name, dims, f"{name}|nhwc")
            self._images[name] = self.transposed(rows, (0, 3, 1, 2), f"{name}|nchw")
        return self._images[name]


def _reordered(node: Node, made: _Entrances, constants: dict[str, Array]) -> bool:
    """Write a flattening of a map in the order of its rows; False where it is none."""
    name = node.inputs[0] if node.inputs else ""
    if name not in made.names or len(node.outputs) != 1:
        return False
    shape, output = made.shape(name), node.outputs[0]
    if node.kind == "Transpose" and node.integers("perm") == (0, 2, 3, 1):
        made.reshaped(name, (1, shape.height, shape.width, shape.channels), output)
        return True
    if node.kind == "Reshape" and len(node.inputs) > 1 and node.inputs[1] in constants:
        wanted = [int(v) for v in constants[node.inputs[1]].ravel()]
        if len(wanted) == 3 and _fits(wanted, (1, shape.channels, shape.positions)):
            rows = made.reshaped(name, (1, shape.positions, shape.channels), f"{output}|rows")
            made.transposed(rows, (0, 2, 1), output)
            return True
    return False


def _fits(wanted: list[int], dims: tuple[int, int, int]) -> bool:
    """Return whether a Reshape's target means exactly these dimensions."""
    if wanted.count(-1) > 1 or wanted[2] == 0:
        return False
    same: Callable[[int, int], bool] = lambda asked, got: asked in (got, -1, 0)  # noqa: E731
    return all(same(asked, got) for asked, got in zip(wanted, dims, strict=True))


def stacked(rows: dict[str, Floats], taken: dict[str, str]) -> dict[str, Floats]:
    """Return the suffix's inputs from the maps' rows, compact in memory."""
    return {entrance: np.ascontiguousarray(rows[held]) for entrance, held in taken.items()}
