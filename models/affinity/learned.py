"""One learned model in a file: what it says about itself, and its forests.

Owns the file's format; never trains. Invariant: a model that was loaded has the digest that its
file promises, so no damaged byte reaches LightGBM's C library.

The file: a line with the format and the SHA-256 of all that follows, a line of JSON (`About`),
the latency forest and then the energy forest in LightGBM's text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isnan, log
from pathlib import Path

from models.affinity.features import COLUMNS, Features, Vocabulary
from models.affinity.forest import Forest
from models.wire import ModelError

FORMAT = b"edge-node-affinity-1"
MOST_BYTES = 16 << 20
STAGES = ("residual", "direct")
RESIDUAL_ROWS = 200  # below, the prior alone
DIRECT_ROWS = 1_000  # below, the residual over the prior


@dataclass(frozen=True)
class About:
    """Describe a learned model.

    `stage` is "residual" (over the log of the prior) or "direct". `edges` are the nine inner
    deciles of the log residuals on `held_out` rows, `error` the mean of their absolute values.
    `newest_s` is the wall time of the newest row learned from. An energy forest of 0 bytes is
    none.
    """

    stage: str
    rows: int
    held_out: int
    newest_s: float
    error: float
    edges: list[float]
    combinations: list[list[str]]
    nodes: list[str]
    latency_bytes: int
    energy_bytes: int


class Learned:
    """Predict the logs of milliseconds and joules. Used by one thread at a time."""

    def __init__(self, about: About, latency: Forest, energy: Forest | None) -> None:
        self.about = about
        self._latency, self._energy = latency, energy
        self._residual = about.stage == "residual"
        self._vocabulary = Vocabulary(
            [(kind, variant, where) for kind, variant, where in about.combinations], about.nodes
        )

    def log_ms(self, features: Sequence[Features]) -> list[float]:
        """Return the log of each service time; the prior's where the model never saw the like.

        Raises ModelError.
        """
        values = self._vocabulary.encode(features)
        logs = self._latency.predict(values)
        if self._residual:
            logs = [value + log(one.prior_ms) for value, one in zip(logs, features, strict=True)]
        for index, kind in enumerate(values[::COLUMNS]):
            if kind != kind:  # NaN
                logs[index] = log(features[index].prior_ms)
        return logs

    def log_j(self, features: Sequence[Features]) -> list[float | None]:
        """Return the log of each energy, None where the model cannot say. Raises ModelError."""
        if self._energy is None:
            return [None] * len(features)
        values = self._vocabulary.encode(features)
        logs = self._energy.predict(values)
        kinds = values[::COLUMNS]
        return [None if isnan(kind) else value for kind, value in zip(kinds, logs, strict=True)]


def pack(about: About, latency: bytes, energy: bytes) -> bytes:
    """Return the bytes of a model's file."""
    rest = json.dumps(asdict(about), sort_keys=True).encode() + b"\n" + latency + energy
    return FORMAT + b" " + hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest


def load(path: Path) -> Learned:
    """Read a model's file. Raises ModelError naming it and what is wrong with it. O(bytes)."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ModelError(f"is larger than {MOST_BYTES} bytes")
        return _unpack(data)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def _unpack(data: bytes) -> Learned:
    head, _, rest = data.partition(b"\n")
    if head != FORMAT + b" " + hashlib.sha256(rest).hexdigest().encode():
        raise ModelError("is damaged or of another format: its digest does not match")
    line, _, forests = rest.partition(b"\n")
    try:
        about = About(**json.loads(line))
        sizes_fit = len(forests) == about.latency_bytes + about.energy_bytes
        sorted_edges = len(about.edges) == 9 and sorted(about.edges) == about.edges
        if about.stage not in STAGES or not sizes_fit or not sorted_edges or about.held_out < 1:
            raise ModelError("contradicts itself")
        latency = Forest(forests[: about.latency_bytes], COLUMNS)
        energy = forests[about.latency_bytes :]
        return Learned(about, latency, Forest(energy, COLUMNS) if energy else None)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"has an unusable description ({error!r})") from None
