"""What differential inference costs and gains per model and executor, by dirty fraction.

Thread-CPU time, one thread; ONNX Runtime's full pass of the whole model and the executors take
turns of three passes each (one after the other, as a camera's frames come), and the least is
taken, so that what else the machine does hits all alike. Only ratios mean something. The
executors' times include the suffix; "ideal" is the full pass divided by the share of
multiply-accumulates that the dirty pixels cause. Change masks are blobs of fresh noise, by cells of
4 pixels; frames are 8-bit (ONNX Runtime gets planes of floats for nothing); nothing is pruned by a
threshold. Takes about a minute; models named as arguments are measured alone.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from models.accelerators import AcceleratorSpec
from models.delta.differential import Differential
from models.delta.plan import Plan, work_left
from models.runtime import open_session
from models.wire import ModelError
from tests.bench.report import Figure, report

CPU = AcceleratorSpec("cpu0", "cpu")
FRACTIONS = (0.014, 0.035, 0.10, 0.25, 0.50)
DENSE_TARGET, IDEAL_TARGET = 0.95, 0.75
STATE_MB = 24
IDEAL_MODELS = ("small", "large", "yolox")
CELL_PX = 4
ZOO = Path("models/zoo")
MODELS = {
    "small": (ZOO / "person-detector-small.onnx", (384, 640)),
    "large": (ZOO / "person-detector-large.onnx", (384, 640)),
    "yolox": (Path("models/yolox_nano_dyn.onnx"), (384, 640)),
    "yunet": (Path("models/face_detection_yunet_2026may.onnx"), (384, 640)),
    "rfb": (Path("models/version-RFB-320_without_postprocessing.onnx"), (240, 320)),
}
Frame = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.uint8]


def path_of(label: str, assets: Path) -> Path:
    """Return where a model lies."""
    path = MODELS[label][0]
    return path if path.parent == ZOO else assets / path


def blobs(size: tuple[int, int], fraction: float, rng: np.random.Generator) -> Mask:
    """Return uint8[h / 4, w / 4]: cells of ellipses of people's size, about a fraction of them."""
    size = size[0] // CELL_PX, size[1] // CELL_PX
    mask = np.zeros(size, np.uint8)
    y, x = np.mgrid[: size[0], : size[1]]
    while mask.mean() < fraction:
        widest = max(1, int(np.sqrt(fraction * mask.size / 3.14)))
        radius = min(int(rng.integers(2, 10)), widest)
        high = max(1.0, radius * rng.uniform(0.8, 1.6))
        centre = rng.integers(0, size[0]), rng.integers(0, size[1])
        mask |= (((y - centre[0]) / high) ** 2 + ((x - centre[1]) / radius) ** 2 <= 1).astype("u1")
    return mask


def by_pixel(cells: Mask) -> Mask:
    """Return uint8[h, w] of uint8[h / 4, w / 4]."""
    return cells.repeat(CELL_PX, axis=0).repeat(CELL_PX, axis=1)


def least_ms(runs: dict[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    """Return each run's least thread-CPU milliseconds; they take turns."""
    best: dict[str, float] = {name: float("inf") for name in runs}
    for round_ in range(rounds):
        for name, run in runs.items():
            for turn in range(3 * round_, 3 * round_ + 3):
                started_s = time.thread_time()
                run(turn)
                best[name] = min(best[name], (time.thread_time() - started_s) * 1e3)
    return best


@dataclass
class Bench:
    """One model with the executors there are for it and the reference."""

    plan: Plan
    runs: dict[str, Callable[[Frame, Mask | None], object]]
    full: Callable[[npt.NDArray[np.float32]], object]


def opened(path: Path, size: tuple[int, int]) -> Bench:
    """Compile a model for both executors, as the product does."""
    data = path.read_bytes()
    reference = open_session(data, CPU)
    name = reference.get_inputs()[0].name
    runs: dict[str, Callable[[Frame, Mask | None], object]] = {}
    for executor in ("native", "graph"):
        try:
            program = Differential(data, size, CPU, executor=executor)
        except ModelError as error:
            print(f"{executor}: {error}")
            continue
        runs[executor] = partial(program.run, program.new_state())
    return Bench(program.plan, runs, lambda planes: reference.run(None, {name: planes}))


def as_planes(frame: Frame) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(frame.transpose(2, 0, 1)[None].astype(np.float32))


def speeds(
    bench: Bench, frames: list[Frame], mask: Mask, rounds: int, names: list[str]
) -> dict[str, float]:
    """Return each executor's speed-up over the full pass when `mask` changes every time."""
    mixed = np.where(by_pixel(mask)[..., None] > 0, frames[1], frames[0])
    planes = as_planes(frames[0])
    turns: dict[str, Callable[[int], object]] = {"full": lambda _: bench.full(planes)}
    for name in names:
        bench.runs[name](frames[0], None)
        turns[name] = lambda turn, name=name: bench.runs[name](  # type: ignore[misc]
            (mixed, frames[0])[turn % 2], mask
        )
    spent = least_ms(turns, rounds)
    return {name: spent["full"] / spent[name] for name in names}


def breakeven(bench: Bench, frames: list[Frame], name: str) -> float:
    """Return the dirty fraction at which an executor is as fast as the full pass (bisection)."""
    low, high = 0.0, 1.0
    size = frames[0].shape[0], frames[0].shape[1]
    for turn in range(5):
        middle = (low + high) / 2
        mask = blobs(size, middle, np.random.default_rng(turn))
        if speeds(bench, frames, mask, 2, [name])[name] >= 1:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def measure(label: str, path: Path, size: tuple[int, int]) -> list[Figure]:
    """Print one model's table and return its figures."""
    rng = np.random.default_rng(0)
    bench = opened(path, size)
    names = list(bench.runs)
    frames = [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(2)]
    planes = as_planes(frames[0])
    turns: dict[str, Callable[[int], object]] = {"full": lambda _: bench.full(planes)}
    if "native" in names:
        turns["native"] = lambda _: bench.runs["native"](frames[0], None)
    spent = least_ms(turns, 12)
    state_mb, scratch_mb = bench.plan.state_bytes / 1e6, bench.plan.scratch_bytes / 1e6
    print(
        f"{label} {size[0]}x{size[1]}: {bench.plan.macs / 1e6:.0f} M multiply-accumulates, "
        f"{state_mb:.1f} MB per camera + {scratch_mb:.1f} MB shared, "
        f"full pass {spent['full']:.2f} ms"
    )
    limit = STATE_MB if label == "yolox" else None
    note = f"and {scratch_mb:.1f} MB shared by all cameras"
    figures = [Figure(f"{label}: MB of state per camera", round(state_mb, 2), "<=", limit, note)]
    if "native" in names:
        ratio = spent["full"] / spent["native"]
        note = f"full {spent['full']:.2f} ms, native {spent['native']:.2f} ms"
        title = f"{label}: dense native pass against ONNX Runtime, speed"
        figures.append(Figure(title, round(ratio, 3), ">=", DENSE_TARGET, note))
    print("| dirty | ideal | native | of ideal | graph |\n|---|---|---|---|---|")
    for fraction in FRACTIONS:
        mask = blobs(size, fraction, rng)
        ideal = 1 / work_left(bench.plan, by_pixel(mask) > 0)
        got = speeds(bench, frames, mask, 4, names)
        native = got.get("native", float("nan"))
        print(
            f"| {mask.mean():.1%} | {ideal:.2f} | {native:.2f} | {native / ideal:.0%} "
            f"| {got['graph']:.2f} |"
        )
        for name in names:
            title = f"{label}: {name}, {fraction:.1%} dirty, part of the ideal speed reached"
            target = IDEAL_TARGET if name == "native" and label in IDEAL_MODELS else None
            note = f"{got[name]:.2f} x, ideal {ideal:.2f} x"
            share = round(got[name] / ideal, 3)
            figures += [Figure(title, share, ">=", target, note)]
    for name in names:
        at = breakeven(bench, frames, name)
        figures += [Figure(f"{label}: {name}, break-even dirty fraction", round(at, 3))]
    return figures


def main() -> int:
    """Measure the models named, or all that are there."""
    assets = Path(os.environ.get("EDGE_NODE_ASSETS", ""))
    onnxruntime.set_default_logger_severity(4)
    figures: list[Figure] = []
    for label in sys.argv[1:] or MODELS:
        path = path_of(label, assets)
        if not path.is_file():
            print(f"skipped {label}: EDGE_NODE_ASSETS names no folder with {path.name}")
            continue
        figures += measure(label, path, MODELS[label][1])
    report("delta_breakeven", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
