"""The small typed language between an ONNX file and a plan: maps, layers, refusals.

Owns the data types only; never reads a file nor runs anything. Invariant: a `Layer` is local, so
each output position depends on a fixed window of its inputs and on nothing else; windows are
read from `kernel`, `strides`, `pads` and `dilations`, or from the tables of a pick.

A map is one activation of one image, (height, width, channels), stored position after position
("rows": float32[height * width, channels]).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]
Pair = tuple[int, int]

Kind = Literal[
    "conv",  # weight float32[kh * kw * channels in, channels out], taps row-major
    "depthwise",  # weight float32[kh * kw, channels]
    "max",  # maximum over the window; positions outside do not take part
    "pick",  # out[y, x] = in[rows[y], columns[x]], -1 picks zeros: resize, slice, pad
    "concat",  # along channels
    "select",  # out[..., i] = in[..., channels[i]]
    "add",
    "multiply",
    "affine",  # in * weight[channels] + bias[channels]
    "activate",
]
ActivationKind = Literal[
    "none", "relu", "silu", "sigmoid", "clip", "leaky", "hard_sigmoid", "hard_swish", "tanh"
]


@dataclass(frozen=True)
class Activation:
    """A pointwise function: clip(low, high); leaky slope `low`; hard_*: clip(low * x + high)."""

    kind: ActivationKind = "none"
    low: float = 0.0
    high: float = 0.0


NOTHING = Activation()


@dataclass(frozen=True)
class MapShape:
    """Height, width and channels of a map."""

    height: int
    width: int
    channels: int

    @property
    def positions(self) -> int:
        return self.height * self.width

    @property
    def size_bytes(self) -> int:
        return 4 * self.positions * self.channels


@dataclass(frozen=True, eq=False)
class Layer:
    """One local operation; `residual` is added before or after the activation.

    With a residual the output is `after(activation(f(inputs)) + residual)`.
    `pads` are top, left, bottom, right. `macs` counts multiply-accumulates of a full pass.
    """

    kind: Kind
    inputs: tuple[str, ...]
    output: str
    kernel: Pair = (1, 1)
    strides: Pair = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: Pair = (1, 1)
    weight: Floats | None = None
    bias: Floats | None = None
    activation: Activation = NOTHING
    residual: str = ""
    after: Activation = NOTHING
    rows: Integers | None = None
    columns: Integers | None = None
    channels: Integers | None = None
    macs: int = 0

    @property
    def matrix(self) -> Floats:
        """Return the weights of a layer that must have some."""
        assert self.weight is not None, f"{self.kind} has weights"
        return self.weight

    @property
    def shift(self) -> Floats:
        """Return the bias of a layer that must have one."""
        assert self.bias is not None, f"{self.kind} has a bias"
        return self.bias

    @property
    def tables(self) -> tuple[Integers, Integers]:
        """Return the rows and columns of a pick."""
        assert self.rows is not None, "a pick has tables"
        assert self.columns is not None, "a pick has tables"
        return self.rows, self.columns

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the maps it reads."""
        return (*self.inputs, self.residual) if self.residual else self.inputs

    @property
    def is_pointwise(self) -> bool:
        """Return whether each position depends on the same position alone."""
        return self.kind != "pick" and self.kernel == self.strides == (1, 1)


@dataclass(frozen=True)
class Refusal:
    """Say why a node is not run differentially."""

    node: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kind} {self.node!r}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Analysis:
    """What is local in a model at one input size.

    `layers` in topological order; `frontier` maps a name in the ONNX graph to the local map that
    holds it, for every local value that the suffix reads or the model returns. `suffix_macs` is
    the known work outside `layers`. `suffix` says whether anything remains but copying.
    """

    input_name: str
    shapes: dict[str, MapShape]
    layers: tuple[Layer, ...]
    frontier: dict[str, str]
    refusals: tuple[Refusal, ...] = ()
    suffix_macs: int = 0
    suffix_nodes: tuple[int, ...] = field(default=())

    @property
    def local_macs(self) -> int:
        """Return the multiply-accumulates of a full pass that are local."""
        return sum(layer.macs for layer in self.layers)

    @property
    def local_share(self) -> float:
        """Return the local part of all known work, 0..1."""
        whole = self.local_macs + self.suffix_macs
        return self.local_macs / whole if whole else 0.0

    def outputs_only(self, least_share: float = 0.5) -> str:
        """Return why the whole model keeps only the output rungs, or "" if it does not."""
        if self.local_share >= least_share:
            return ""
        first = next(iter(self.refusals), None)
        because = f"; the first is {first}" if first else ""
        return (
            f"only {self.local_share:.0%} of its work is local, less than {least_share:.0%}: "
            f"a change anywhere reaches the rest{because}"
        )
