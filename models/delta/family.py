"""Run the first layers that several models have in common once, and each one's own after them.

Owns the union of the members' layers and who needs which of them; never executes anything and
never looks beyond equality: layers are shared when their operation, attributes, weights (bit for
bit) and inputs are the same, down to the image. Invariant: every member's suffix reads maps that
hold what the member's own layers would have given.

Members are merged before layers are fused, because what may be fused depends on all readers: an
activation that one member reads behind a convolution must stay apart if another reads before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from models.delta.fuse import fuse
from models.delta.layers import Analysis, Layer, MapShape
from models.delta.onnxfile import Model
from models.delta.suffix import suffix_model
from models.wire import ModelError


@dataclass(frozen=True, eq=False)
class Member:
    """One model of a family: what it makes of the family's maps.

    `suffix` is a model over rows and `entrances` names the map that each of its inputs takes, as
    `suffix_model` returns them. `own_macs` is what only this member needs, `macs` all it needs.
    """

    frontier: dict[str, str]
    suffix: Model
    entrances: dict[str, str]
    own_macs: int
    macs: int


@dataclass(frozen=True, eq=False)
class Family:
    """Several models as one analysis, fused and ready for `compile_plan`: one state per camera.

    `shared` names the maps that at least two members need, in the order they are made.
    """

    analysis: Analysis
    members: dict[str, Member]
    shared: tuple[str, ...]
    shared_macs: int

    @property
    def saved_macs(self) -> int:
        """Return the multiply-accumulates of full passes that the members' own plans add."""
        return sum(member.macs for member in self.members.values()) - self.analysis.local_macs


def merge(members: Mapping[str, tuple[Model, Analysis]]) -> Family:
    """Return models that begin alike as one. O(layers + weights).

    Each comes as `at_size` made it, with what `analyse` found in it, not fused. They must be fed
    the same pixels in the same way (channel order, mean, scale): that is no part of a model.
    Raises ValueError for fewer than two, ModelError for different input sizes, or when a member
    has no layer with weights in common with another.
    """
    if len(members) < 2:
        raise ValueError("a family has at least two members")
    _same_input(members)
    union = _Union()
    frontiers = {
        name: union.add(f"{index}:", analysis)
        for index, (name, (_, analysis)) in enumerate(members.items())
    }
    analyses = [analysis for _, analysis in members.values()]
    ends = (each.items() for each in frontiers.values())
    whole = fuse(
        Analysis(
            union.input_name,
            union.shapes,
            tuple(union.layers),
            {f"{index}:{value}": held for index, end in enumerate(ends) for value, held in end},
            tuple(refusal for analysis in analyses for refusal in analysis.refusals),
            sum(analysis.suffix_macs for analysis in analyses),
        )
    )
    needs = {name: _needed(whole.layers, each.values()) for name, each in frontiers.items()}
    shared = _shared(whole, needs)
    made = {
        name: _member(
            model,
            replace(whole, frontier=frontiers[name], suffix_nodes=analysis.suffix_nodes),
            needs[name],
            shared,
        )
        for name, (model, analysis) in members.items()
    }
    order = tuple(layer.output for layer in whole.layers if layer.output in shared)
    return Family(whole, made, order, _macs(whole.layers, shared))


def _same_input(members: Mapping[str, tuple[Model, Analysis]]) -> None:
    sizes = {name: each.shapes[each.input_name] for name, (_, each) in members.items()}
    (first, size), *others = sizes.items()
    for name, other in others:
        if other != size:
            raise ModelError(
                f"{first!r} takes images of {_text(size)} and {name!r} of {_text(other)}: "
                "only models of one input size share layers"
            )


def _text(shape: MapShape) -> str:
    return f"{shape.height} x {shape.width} x {shape.channels}"


class _Union:
    """Collects the layers of all members, equal ones once, under names of its own."""

    def __init__(self) -> None:
        self.input_name = ""
        self.shapes: dict[str, MapShape] = {}
        self.layers: list[Layer] = []
        self._known: dict[Hashable, str] = {}

    def add(self, prefix: str, analysis: Analysis) -> dict[str, str]:
        """Take in a member's layers; return its frontier in the union's names."""
        if not self.input_name:
            self.input_name = prefix + analysis.input_name
            self.shapes[self.input_name] = analysis.shapes[analysis.input_name]
        names = {analysis.input_name: self.input_name}
        for layer in analysis.layers:
            renamed = replace(
                layer,
                inputs=tuple(names[name] for name in layer.inputs),
                output=prefix + layer.output,
                residual=names[layer.residual] if layer.residual else "",
            )
            shape = analysis.shapes[layer.output]
            key = _identity(renamed, shape)
            if key not in self._known:
                self._known[key] = renamed.output
                self.layers.append(renamed)
                self.shapes[renamed.output] = shape
            names[layer.output] = self._known[key]
        return {value: names[held] for value, held in analysis.frontier.items()}


def _identity(layer: Layer, shape: MapShape) -> Hashable:
    """Return what two layers must have in common to be one."""
    arrays = (layer.weight, layer.bias, layer.rows, layer.columns, layer.channels)
    return (
        (layer.kind, layer.inputs, layer.residual, layer.activation, layer.after),
        (layer.kernel, layer.strides, layer.pads, layer.dilations),
        shape,  # the other attributes do not tell how a pooling rounds its size
        tuple(_digest(array) for array in arrays),
    )


def _digest(array: npt.NDArray[np.generic] | None) -> Hashable:
    if array is None:
        return None
    return array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()


def _needed(layers: tuple[Layer, ...], wanted: Iterable[str]) -> set[str]:
    """Return the maps that contribute to the wanted ones. O(layers)."""
    needed = set(wanted)
    for layer in reversed(layers):
        if layer.output in needed:
            needed.update(layer.reads)
    return needed


def _shared(whole: Analysis, needs: dict[str, set[str]]) -> set[str]:
    """Return the maps that several members need. Raises ModelError when a member has no part."""
    found: set[str] = set()
    for name, needed in needs.items():
        others = set().union(*(each for other, each in needs.items() if other != name))
        common = needed & others
        if not _macs(whole.layers, common):
            names = ", ".join(repr(other) for other in needs if other != name)
            raise ModelError(
                f"{name!r} has no layer in common with {names} from the image on: nothing would "
                "be computed once, run it apart"
            )
        found |= common
    return found


def _macs(layers: tuple[Layer, ...], names: set[str]) -> int:
    return sum(layer.macs for layer in layers if layer.output in names)


def _member(model: Model, analysis: Analysis, needed: set[str], shared: set[str]) -> Member:
    suffix, entrances = suffix_model(model, analysis)
    layers = analysis.layers
    return Member(
        analysis.frontier,
        suffix,
        entrances,
        _macs(layers, needed - shared),
        _macs(layers, needed),
    )
