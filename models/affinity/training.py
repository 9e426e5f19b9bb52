"""Train the affinity model from a trace table, in a process of its own.

Owns nothing that outlives it but the file it writes; the daemon starts it and never imports it
(LightGBM's package costs 57 MB, and a process that used it must not fork). Invariant: the same
rows give the same bytes. Run as `python -m models.affinity.training --traces PATH --out DIR`; it
prints one line of JSON and exits 0, or says why not and exits 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from math import log
from pathlib import Path
from statistics import fmean
from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt

from models.affinity.features import COLUMNS, Combination, Vocabulary
from models.affinity.learned import DIRECT_ROWS, FORMAT, RESIDUAL_ROWS, About, pack
from models.affinity.traces import Trace, read_newest

Doubles = npt.NDArray[np.float64]

FILE_NAME = "trained.model"
MOST_TRAINED = 10_000
TREES = 40  # no worse than 60 at a lower rate, and 8 candidates are scored within 20 us
HELD_OUT_EVERY = 5
FEWEST_ROWS = 5  # of a kind, variant and accelerator together, for the model to price it
FADE_ROWS = 3_000.0  # a row counts half when as many newer ones have come
NICENESS = 10
_SETTINGS: dict[str, Any] = {
    "objective": "regression",
    "learning_rate": 0.15,
    "min_data_in_leaf": 10,
    "num_threads": 1,
    "seed": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
_LEAVES = {"residual": 7, "direct": 15}


def train(traces: Sequence[Trace]) -> tuple[About, bytes]:
    """Return a model of `traces` (oldest first): what it is and the bytes of its file.

    Raises ValueError when they are too few. O(rows x trees).
    """
    if len(traces) < RESIDUAL_ROWS:
        raise ValueError(f"{len(traces)} traces are too few; {RESIDUAL_ROWS} are needed")
    stage = "direct" if len(traces) >= DIRECT_ROWS else "residual"
    vocabulary = _vocabulary(traces)
    encoded = vocabulary.encode(trace.features for trace in traces)
    columns = np.array(encoded, np.float64).reshape(-1, COLUMNS)
    weights = 0.5 ** (np.arange(len(traces))[::-1] / FADE_ROWS)
    latencies = np.log([trace.actual_ms for trace in traces])
    if stage == "residual":
        latencies -= np.log([trace.features.prior_ms for trace in traces])
    # Rows that the model cannot be asked about would teach it nothing but noise.
    known = ~np.isnan(columns[:, 0])
    columns, weights, latencies = columns[known], weights[known], latencies[known]
    energies = np.array(
        [np.nan if trace.energy_j is None else np.log(trace.energy_j) for trace in traces]
    )[known]
    if len(columns) < RESIDUAL_ROWS:
        raise ValueError(f"{len(columns)} traces of known combinations are too few")
    residuals = _held_out(columns, latencies, weights, stage)
    latency = _forest(columns, latencies, weights, stage).encode()
    metered = ~np.isnan(energies)
    energy = b""
    if metered.sum() >= RESIDUAL_ROWS:
        energy = _forest(columns[metered], energies[metered], weights[metered], stage).encode()
    about = About(
        stage=stage,
        rows=len(columns),
        held_out=len(residuals),
        newest_s=max(trace.made_s for trace in traces),
        error=float(np.abs(residuals).mean()),
        edges=np.quantile(residuals, np.arange(1, 10) / 10).tolist(),
        combinations=[list(names) for names in vocabulary.combinations],
        nodes=list(vocabulary.nodes),
        latency_bytes=len(latency),
        energy_bytes=len(energy),
    )
    return about, pack(about, latency, energy)


def _vocabulary(traces: Sequence[Trace]) -> Vocabulary:
    """Return the names in `traces`; combinations with too few rows are left out.

    Nodes are ordered by how much slower than the prior they were: then one threshold splits them
    as well as LightGBM's own subsets of categories do, and is scored in half the time.
    """
    counts: Counter[Combination] = Counter()
    slowness: dict[str, list[float]] = {}
    for _, one, actual_ms, _ in traces:
        counts[one.kind, one.variant, one.accelerator] += 1
        slowness.setdefault(one.node, []).append(log(actual_ms / one.prior_ms))
    known = sorted(names for names, count in counts.items() if count >= FEWEST_ROWS)
    return Vocabulary(known, sorted(slowness, key=lambda node: (fmean(slowness[node]), node)))


def _held_out(columns: Doubles, targets: Doubles, weights: Doubles, stage: str) -> Doubles:
    """Return the residuals of every fifth row under a model of the others."""
    test = np.arange(len(columns)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    booster = _train(columns[~test], targets[~test], weights[~test], stage)
    residuals: Doubles = targets[test] - booster.predict(columns[test], num_threads=1)
    return residuals


def _forest(columns: Doubles, targets: Doubles, weights: Doubles, stage: str) -> str:
    text: str = _train(columns, targets, weights, stage).model_to_string()
    return text


def _train(columns: Doubles, targets: Doubles, weights: Doubles, stage: str) -> Any:
    data = lightgbm.Dataset(columns, targets, weight=weights)
    return lightgbm.train({**_SETTINGS, "num_leaves": _LEAVES[stage]}, data, TREES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train from a table and write the model beside whatever is there."""
    parser = argparse.ArgumentParser(prog="models.affinity.training")
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=MOST_TRAINED)
    options = parser.parse_args(arguments)
    os.nice(NICENESS)
    started_s = time.perf_counter()
    try:
        about, data = train(read_newest(options.traces, options.rows))
        path = options.out / FILE_NAME
        partial = path.with_suffix(".part")
        partial.write_bytes(data)
        partial.replace(path)
    except (ValueError, OSError, lightgbm.basic.LightGBMError) as error:
        sys.stderr.write(f"no model was trained: {error}\n")
        return 1
    digest = data[len(FORMAT) + 1 :].split(b"\n", 1)[0].decode()
    answer = {"path": str(path), "digest": digest, "stage": about.stage, "rows": about.rows,
              "error": about.error, "trained_s": time.perf_counter() - started_s}  # fmt: skip
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
