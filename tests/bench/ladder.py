"""What the reuse ladder costs and saves: `python -m tests.bench.ladder`.

Thread-CPU times of one run on one thread, so ratios hold where times do not. With
EDGE_NODE_ASSETS set it also replays footage and compares every reused answer with a full pass.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from models.accelerators import AcceleratorSpec
from models.cache import OutputCache
from models.images import Pixels, Scaler, fitted
from models.manifest import load_manifest
from models.sessions import Session, open_warm
from models.wire import Box
from tests.bench.report import Figure, report
from tests.clips import noisy, picture

CLIPS = {
    "quiet": "videos/one-by-one-person-detection.mp4",
    "highway": "videos/bgs_video02.avi",
    "walkers": "videos/pose2sim_multiperson/cam01.mp4",
}
MAX_FRAMES = 400


def cpu_ms(work: Callable[[int], object], runs: int = 60) -> float:
    """Return the median thread-CPU milliseconds of `work(i)`."""
    times = []
    for index in range(runs):
        started = time.thread_time()
        work(index)
        times.append((time.thread_time() - started) * 1000)
    return statistics.median(times)


def costs(session: Session) -> list[Figure]:
    """Measure the check of a frame that holds and of one that does not, against a full pass."""
    scaler, rng = Scaler(), np.random.default_rng(1)
    still = picture(640, 368)
    frames = [session.canvas(noisy(still, 2.0, rng), scaler) for _ in range(16)]
    cache = OutputCache()
    for canvas in frames:
        view = cache.observe("a", canvas)
    cache.store("a", "d", view, [], 0.0)
    reused = sum(
        cache.lookup("a", "d", cache.observe("a", frames[i % 15]), 1.0) is not None
        for i in range(60)
    )

    def check(index: int) -> None:
        cache.lookup("a", "d", cache.observe("a", frames[index % 15]), 1.0)

    full_ms = cpu_ms(lambda i: session.run(frames[i % 15]))
    check_ms = cpu_ms(check)
    prefix, size = f"ladder.{session.model.variant}", frames[0].pixels.shape[:2]
    note = f"{size[0]} x {size[1]}, one thread, one run"
    return [
        Figure(f"{prefix}.full_ms", full_ms, note=note),
        Figure(f"{prefix}.check_ms", check_ms, note=note),
        Figure(f"{prefix}.check_share", check_ms / full_ms, "<=", 0.25, "check / full pass"),
        Figure(f"{prefix}.noise_reused", reused / 60, ">=", 1.0, "still scene, noise sigma 2"),
    ]


def footage(session: Session, name: str, path: Path) -> list[Figure]:
    """Replay a clip at 10 fps of media time with and without the ladder."""
    cache, scaler = OutputCache(), Scaler()
    matched = boxes_full = boxes_ladder = reused = count = 0
    for now_s, pixels in frames_of(path, scaler):
        view = cache.observe("a", session.canvas(pixels, scaler))
        full = session.run(view.canvas)
        found = cache.lookup("a", "d", view, now_s)
        given = full if found is None else found[0].boxes
        if found is None:
            cache.store("a", "d", view, full, now_s)
        reused, count = reused + (found is not None), count + 1
        matched += matches(full, given)
        boxes_full, boxes_ladder = boxes_full + len(full), boxes_ladder + len(given)
    agreement = 2 * matched / (boxes_full + boxes_ladder) if boxes_full + boxes_ladder else 1.0
    enough = "" if boxes_full >= 200 else f"not enough: {boxes_full} boxes"
    prefix = f"ladder.{session.model.variant}.{name}"
    return [
        Figure(f"{prefix}.reused", reused / count, note=f"of {count} frames"),
        Figure(f"{prefix}.f1", agreement, ">=", 0.98 if not enough else None, enough),
    ]


def frames_of(path: Path, scaler: Scaler) -> list[tuple[float, Pixels]]:
    """Return (media seconds, frame at long side 640) at 10 fps."""
    frames: list[tuple[float, Pixels]] = []
    with av.open(str(path), "r") as container:
        for frame in container.decode(video=0):
            at_s = float(frame.time or 0)
            if frames and at_s < frames[-1][0] + 0.099:
                continue
            width, height = fitted(frame.width, frame.height, 640, enlarge=False)
            frames.append((at_s, scaler.to_bgr(frame, width, height)))
            if len(frames) >= MAX_FRAMES:
                break
    return frames


def matches(first: list[Box], second: list[Box]) -> int:
    """Return how many boxes pair up at IoU >= .5, greedily."""
    free, paired = list(second), 0
    for box in first:
        best = max(free, key=lambda other: iou(box, other), default=None)
        if best is not None and iou(box, best) >= 0.5:
            free.remove(best)
            paired += 1
    return paired


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes."""
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = wide * high
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union else 0.0


def main() -> None:
    """Print the table and write `.bench/ladder.json`."""
    rows: list[Figure] = []
    assets = os.environ.get("EDGE_NODE_ASSETS", "")
    for model in load_manifest().variants.values():
        session = open_warm(model, AcceleratorSpec("cpu0", "cpu"))
        rows += costs(session)
        for name, file in CLIPS.items():
            if (path := Path(assets) / file).is_file():
                rows += footage(session, name, path)
    report("ladder", rows)
    if not assets:
        print("footage not measured: EDGE_NODE_ASSETS names no folder")


if __name__ == "__main__":
    main()
