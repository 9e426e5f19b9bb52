"""The description of one candidate (a task somewhere), and how a learned model numbers its names.

Owns the order of the columns that models are trained on and scored with; never reads a file.
Invariant: a name has the same number in the training and in the scoring of one model, because the
model carries the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

COLUMNS = 10

_NAN = float("nan")

Combination = tuple[str, str, str]  # kind, variant, accelerator


class Features(NamedTuple):
    """Describe one candidate: a task of a kind, run somewhere in some state.

    `kind` is the model's name or digest; `effort` the part of the frame's long side that is run,
    0 < effort <= 1; `resolution` that long side in pixels; `queue` how many tasks are there
    before it; `temperature_c` may be NaN where there is no sensor; `accelerator` the execution
    provider; `prior_ms` the declared service time, > 0.
    """

    kind: str
    variant: str
    effort: float
    resolution: int
    batch: int
    queue: int
    temperature_c: float
    node: str
    accelerator: str
    prior_ms: float


class Vocabulary:
    """Number the names that a model was trained on: nodes in the order given."""

    def __init__(self, combinations: Sequence[Combination], nodes: Sequence[str]) -> None:
        self.combinations, self.nodes = combinations, nodes
        kinds, variants, accelerators = (
            {name: number for number, name in enumerate(sorted(set(names)))}
            for names in (zip(*self.combinations, strict=True) if combinations else ((), (), ()))
        )
        # One look-up for three names: scoring is counted in microseconds.
        self.codes = {
            (kind, variant, accelerator): (
                float(kinds[kind]),
                float(variants[variant]),
                float(accelerators[accelerator]),
            )
            for kind, variant, accelerator in self.combinations
        }
        self.node_codes = {name: float(number) for number, name in enumerate(self.nodes)}

    def encode(self, features: Iterable[Features]) -> list[float]:
        """Return the columns of each, one after the other; NaN for names not seen (together)."""
        code, node, unknown = self.codes.get, self.node_codes.get, (_NAN, _NAN, _NAN)
        values: list[float] = []
        for one in features:  # unpacking beats naming its fields, one list many tuples
            kind, variant, effort, resolution, batch, queue, temperature_c, where, name, prior = one
            a, b, c = code((kind, variant, name), unknown)
            values += (
                a, b, effort, resolution, batch, queue, temperature_c, node(where, _NAN), c, prior
            )  # fmt: skip
        return values
