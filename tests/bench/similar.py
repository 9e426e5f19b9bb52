"""How often a person's crop is answered from a similar one, and how often rightly, on footage.

The question is which of the people in a quiet clip a crop shows; the truth is the track, by
overlap from frame to frame. The feature is a map that the detector has computed anyway, pooled
within the box. Calibration happens on the first 40 % of the frames, only the rest is scored.
Needs the folder EDGE_NODE_ASSETS; takes about half a minute.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from models.accelerators import AcceleratorSpec
from models.delta.fuse import fuse
from models.delta.graph import analyse, at_size
from models.delta.native import NativeProgram, library
from models.delta.plan import Plan, compile_plan
from models.evidence import overlap
from models.images import Scaler
from models.manifest import load_manifest
from models.sessions import open_warm
from models.similar import Floats, SimilarAnswers, SimilarPolicy, pooled
from models.wire import Box
from tests.bench.delta_clips import CALIBRATION_SHARE, decoded
from tests.bench.report import Figure, report

CLIP = "videos/one-by-one-person-detection.mp4"
TTL_S = 8.0
SEEDS = 5
SAME_TRACK_IOU = 0.3
LOST_FRAMES = 10
STRIDE = 16


@dataclass(frozen=True)
class Crop:
    """One person in one frame."""

    now_s: float
    track: int
    feature: Floats


@dataclass
class Tracks:
    """Gives boxes the number of the box before that they overlap most."""

    last: dict[int, tuple[Box, int]] = field(default_factory=dict)
    count: int = 0

    def name(self, boxes: list[Box], frame: int) -> list[int]:
        """Return a track per box."""
        free = {t: box for t, (box, seen) in self.last.items() if frame - seen <= LOST_FRAMES}
        names = []
        for box in boxes:
            best = max(free, key=lambda track: overlap(free[track], box), default=-1)
            if best < 0 or overlap(free[best], box) < SAME_TRACK_IOU:
                best, self.count = self.count, self.count + 1
            free.pop(best, None)
            self.last[best] = (box, frame)
            names.append(best)
        return names


def inside(rows: Floats, box: Box, scale: tuple[float, float]) -> Floats:
    """Return the pooled positions of a map float32[h, w, channels] under a box."""
    height, width, channels = rows.shape
    top = min(height - 1, int(box[1] * scale[0]))
    left = min(width - 1, int(box[0] * scale[1]))
    bottom = max(top + 1, math.ceil(box[3] * scale[0]))
    right = max(left + 1, math.ceil(box[2] * scale[1]))
    return pooled(rows[top:bottom, left:right].reshape(-1, channels))


def deepest(plan: Plan) -> str:
    """Return the last map of the most channels at the stride of the fine head."""
    at = [name for name in plan.places if plan.depth(name) == STRIDE]
    most = max(plan.shapes[name].channels for name in at)
    return [name for name in at if plan.shapes[name].channels == most][-1]


def crops(path: Path) -> Iterator[tuple[float, Crop]]:
    """Yield (share of the clip, crop) in order."""
    model = load_manifest().variants["small"]
    session = open_warm(model, AcceleratorSpec("cpu0", "cpu"))
    scaler, tracks, program, state = Scaler(), Tracks(), None, None
    frames = list(decoded(path, 640))
    for index, (now_s, frame) in enumerate(frames):
        canvas = session.canvas(frame.pixels[: frame.height, : frame.width], scaler)
        boxes = session.run(canvas)
        if program is None or state is None:
            analysis = analyse(at_size(Path(model.path).read_bytes(), *canvas.pixels.shape[:2]))
            program = NativeProgram(compile_plan(fuse(analysis)))
            state, name = program.new_state(), deepest(program.plan)
        if not boxes:
            continue
        program.run(state, canvas.pixels)
        shape = program.plan.shapes[name]
        rows = program.rows(state, name).reshape(shape.height, shape.width, -1)
        scale = canvas.height / STRIDE, canvas.width / STRIDE
        for box, track in zip(boxes, tracks.name(boxes, index), strict=True):
            yield index / len(frames), Crop(now_s, track, inside(rows, box, scale))


@dataclass
class Score:
    """What became of the crops after calibration."""

    crops: int = 0
    hits: int = 0
    agreed: int = 0
    spent_s: float = 0.0


def played(found: list[tuple[float, Crop]], seed: int) -> tuple[Score, SimilarAnswers[int]]:
    """Look all crops up in order; the "model" is the track."""
    answers = SimilarAnswers[int](np.random.default_rng(seed), SimilarPolicy(ttl_s=TTL_S))
    score = Score()
    for share, crop in found:
        answers.observe(crop.feature)
        started_s = time.thread_time()
        similar = answers.lookup(crop.feature, crop.now_s)
        spent_s = time.thread_time() - started_s
        if similar and similar.is_audit:
            answers.audit(similar.answer == crop.track)
        if share >= CALIBRATION_SHARE:
            score.crops += 1
            score.spent_s += spent_s
            if similar and not similar.is_audit:
                score.hits += 1
                score.agreed += similar.answer == crop.track
        if similar is None or similar.is_audit:
            answers.store(crop.feature, crop.track, crop.now_s)
    return score, answers


def raw_agreement(found: list[tuple[float, Crop]]) -> float:
    """Return how many pairs in the literature's range of raw cosine are of one track."""
    features = np.stack([crop.feature for _, crop in found])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    tracks = np.array([crop.track for _, crop in found])
    cosines = unit @ unit.T
    within = (cosines >= 0.85) & (cosines <= 0.95)
    return float((tracks[:, None] == tracks[None])[within].mean())


def main() -> int:
    """Run the clip once, score several seeds, write the figures."""
    path = Path(os.environ.get("EDGE_NODE_ASSETS", ""), CLIP)
    if not path.is_file() or library() is None:
        print("skipped: EDGE_NODE_ASSETS names no footage, or there are no native kernels")
        return 0
    found = list(crops(path))
    runs = [played(found, seed) for seed in range(SEEDS)]
    total, hits = sum(s.crops for s, _ in runs), sum(s.hits for s, _ in runs)
    agreed = sum(s.agreed for s, _ in runs) / max(1, hits)
    worst = min(s.agreed / max(1, s.hits) for s, _ in runs)
    lookup_us = 1e6 * sum(s.spent_s for s, _ in runs) / total
    note = f"{len(found)} crops of {len({crop.track for _, crop in found})} tracks, {SEEDS} seeds"
    target = SimilarPolicy().target
    report(
        "similar",
        [
            Figure("hit ratio, last 60 %", round(hits / total, 4), note=note),
            Figure("agreement of hits", round(agreed, 4), ">=", target, "audited hits apart"),
            Figure("agreement of hits, worst seed", round(worst, 4)),
            Figure("limit, mean", round(float(np.mean([a.limit or 1 for _, a in runs])), 4)),
            Figure("breaches", sum(a.breaches for _, a in runs)),
            Figure("pairs within raw cosine .85-.95 that agree", round(raw_agreement(found), 4)),
            Figure("lookup, us", round(lookup_us, 1), note="thread-CPU mean"),
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
