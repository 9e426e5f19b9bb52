"""How dear our detectors are next to their teacher, and how well they agree with it.

Times are thread-CPU medians of one run, the three networks taking turns on the same input, so
that what else the machine does hits all alike; only the ratios mean something. Needs the folder
EDGE_NODE_ASSETS for the teacher and the footage; takes about a minute.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from models.zoo.evaluate import (
    SCALES_PX,
    TEACHER_FILE,
    Detector,
    lines,
    measure,
    open_session,
    pooled,
    shipped,
    unlike_training,
)
from tests.bench.report import Figure, report

SIZES = ((384, 640), (192, 320))
ROUNDS = 40
WARM_UP_ROUNDS = 5
COST_TARGET = 0.45
F1_TARGETS = {"small": 0.85, "large": 0.90}
UNSEEN_TARGET = 0.80
TARGET_POOL = "indoor clip and unseen camera"


def medians_ms(sessions: dict[str, Any], size: tuple[int, int]) -> dict[str, float]:
    """Return each session's median thread-CPU milliseconds on one image of this size."""
    image = np.random.default_rng(0).uniform(0, 255, (1, 3, *size)).astype(np.float32)
    spent_ms: dict[str, list[float]] = {name: [] for name in sessions}
    for round_ in range(WARM_UP_ROUNDS + ROUNDS):
        for name, session in sessions.items():
            feed = {session.get_inputs()[0].name: image}
            started_s = time.thread_time()
            session.run(None, feed)
            if round_ >= WARM_UP_ROUNDS:
                spent_ms[name].append((time.thread_time() - started_s) * 1e3)
    return {name: statistics.median(times) for name, times in spent_ms.items()}


def cost(assets: Path, detectors: dict[str, Detector]) -> list[Figure]:
    """Print and return what one full pass costs relative to the teacher."""
    sessions = {"yolox_nano": open_session(assets / TEACHER_FILE)}
    sessions |= {name: detector.session for name, detector in detectors.items()}
    figures = []
    print("| input | network | ms | of YOLOX-nano |\n|---|---|---|---|")
    for height, width in SIZES:
        times_ms = medians_ms(sessions, (height, width))
        for name, spent_ms in times_ms.items():
            ratio = spent_ms / times_ms["yolox_nano"]
            print(f"| {height}x{width} | {name} | {spent_ms:.2f} | {ratio:.3f} |")
            if name != "yolox_nano":
                title = f"{name}: full pass / YOLOX-nano, {height}x{width}"
                note = f"thread-CPU medians of {ROUNDS} interleaved passes, one thread"
                target = COST_TARGET if name == "large" else None
                figures.append(Figure(title, round(ratio, 4), "<=", target, note))
    return figures


def quality(assets: Path, detectors: dict[str, Detector], own: dict[str, int]) -> list[Figure]:
    """Print and return the agreement with the teacher on held-out footage."""
    scales = {name: sorted({own[name], 320, 448, 640} & {*SCALES_PX}) for name in detectors}
    table = measure(assets, detectors, scales)
    print("\n".join(lines(table)))
    rows = table | {TARGET_POOL: pooled(table, unlike_training(table))}
    rows["all held-out footage"] = pooled(table, table)
    figures = []
    for name in detectors:
        for split, row in rows.items():
            got = row[name, own[name]]
            note = (
                f"{got.frames} frames, {got.expected} boxes of the teacher at a score above .3, "
                f"precision {got.precision:.3f}, recall {got.recall:.3f}, {own[name]} px"
            )
            target = F1_TARGETS[name] if split == TARGET_POOL else None
            target = UNSEEN_TARGET if split.startswith("unseen") else target
            figures.append(Figure(f"{name}: F1, {split}", round(got.f1, 4), ">=", target, note))
    return figures


def main() -> int:
    """Run both parts and write the figures."""
    folder = os.environ.get("EDGE_NODE_ASSETS", "")
    if not Path(folder, TEACHER_FILE).is_file():
        print("skipped: EDGE_NODE_ASSETS names no folder with the teacher and the footage")
        return 0
    detectors, own = shipped()
    report("detector", [*cost(Path(folder), detectors), *quality(Path(folder), detectors, own)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
