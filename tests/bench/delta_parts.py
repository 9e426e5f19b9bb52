"""The parts of `make bench-delta` that are not rows of footage.

Owns the exactness of both executors, their figures by model, and what happens when a quiet camera
meets a crowd; never scores speed on footage. Invariant: every figure that is an upper bound on an
error stands beside one that shows that the error would have been seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.delta.fuse import fuse
from models.delta.graph import analyse, at_size
from models.delta.graphexec import GraphProgram
from models.delta.native import NativeProgram
from models.delta.plan import Plan, compile_plan
from models.images import Canvas
from models.manifest import load_manifest
from models.wire import Box, ModelError
from tests.bench.delta_breakeven import CPU, MODELS, measure, path_of
from tests.bench.delta_clips import PAD_VALUE, Clip, Shot, Timed, clip_named
from tests.bench.delta_methods import Network
from tests.bench.delta_ours import Ours
from tests.bench.delta_score import Agreement, agreement, bar, noise_agreement
from tests.bench.report import Figure
from tests.delta_nets import TOLERANCE, Reference, masks, worst_error

MASK_SEEDS = (0, 1)
SEEN = 10 * TOLERANCE
WINDOW_FRAMES = 100
QUIET_FRAMES = 100  # before the crowd comes
FLOOR_EVERY = 4

Frame = npt.NDArray[np.uint8]
Program = NativeProgram | GraphProgram


def exactness(assets: Path) -> list[Figure]:
    """Compare sparse passes at threshold 0 with ONNX Runtime: borders, corners, dots, a block."""
    figures: list[Figure] = []
    for label, (_, size) in MODELS.items():
        path = path_of(label, assets)
        if not path.is_file():
            print(f"skipped exact {label}: there is no {path}")
            continue
        model = at_size(path.read_bytes(), *size)
        analysis = fuse(analyse(model))
        plan, reference = compile_plan(analysis), Reference(model, analysis)
        for executor, program in _programs(plan):
            worst, stale = _errors(plan, program, reference, size)
            name = f"exact.{label}: {executor}"
            count = f"{worst:.0e} over {6 * len(MASK_SEEDS)} masks, one upon the other"
            figures += [
                Figure(f"{name}, worst error of full scale", worst, "<=", TOLERANCE, count),
                Figure(f"{name}, with a change left out", stale, ">=", SEEN, "the check can fail"),
            ]
    return figures


def _programs(plan: Plan) -> Iterator[tuple[str, Program]]:
    try:
        yield "native", NativeProgram(plan)
    except ModelError as error:
        print(f"native: {error}")
    yield "graph", GraphProgram(plan, CPU)


def _errors(
    plan: Plan, program: Program, reference: Reference, size: tuple[int, int]
) -> tuple[float, float]:
    """Return the worst error over all masks, and the error after a block was kept secret."""
    rng, worst = np.random.default_rng(3), 0.0
    pixels: Frame = rng.integers(0, 256, (*size, 3), np.uint8)
    state = program.new_state()
    program.run(state, pixels)  # type: ignore[arg-type]

    def error() -> float:
        rows = reference.rows(pixels.astype(np.float32))
        return worst_error(plan, program, state, rows)

    for mask in (mask for seed in MASK_SEEDS for mask in masks(size, seed)):
        fresh = rng.integers(0, 256, pixels.shape, np.uint8)
        pixels = np.where(mask[..., None] > 0, fresh, pixels)
        program.run(state, pixels, mask)  # type: ignore[arg-type]
        worst = max(worst, error())
    pixels = pixels.copy()
    pixels[:16, :16] ^= 128
    pixels[-48:, -48:] ^= 128
    mask = np.zeros(size, np.uint8)
    mask[:16, :16] = 1
    program.run(state, pixels, mask)  # type: ignore[arg-type]
    return worst, error()


def executors(assets: Path) -> list[Figure]:
    """Measure both executors of every model: dense, by dirty fraction, break-even, memory."""
    figures: list[Figure] = []
    for label, (_, size) in MODELS.items():
        path = path_of(label, assets)
        if path.is_file():
            figures += measure(label, path, size)
        else:
            print(f"skipped executors of {label}: there is no {path}")
    return figures


def change(assets: Path) -> list[Figure]:
    """Calibrate on the quiet clip, then let the crowd come, as one camera sees it."""
    quiet, crowd = clip_named("quiet", assets), clip_named("crowd", assets)
    if isinstance(quiet, list) or isinstance(crowd, list):
        print("skipped change: there is no footage for it")
        return []
    network = Network(load_manifest().variants["large"], objectness=False, persons_only=True)
    mine, shot = Ours(network), Shot("quiet", [], [], [])
    for at_s, frame in quiet.cameras[0].calibration():
        shot.times_s.append(at_s)
        shot.frames.append(frame)
    mine.calibrate([shot], 0.0)
    before = f"before, {mine.ladder.mode}: {mine.ladder.reason}"
    agreed, floor, settled = _crowded(mine, network, _quiet_then_crowd(quiet, crowd))
    ends = range(WINDOW_FRAMES, len(agreed) + 1)
    worst = min((_pooled(agreed[end - WINDOW_FRAMES : end]).f1, end) for end in ends)
    frames = f"frames {worst[1] - WINDOW_FRAMES} to {worst[1]} after the change; {mine.note()}"
    return [
        Figure("change: F1 of the worst 100 frames in a row", worst[0], ">=", bar(floor), frames),
        Figure("change: F1 of the first 100 frames", _pooled(agreed[:WINDOW_FRAMES]).f1),
        Figure("change: frames until calibrating or off", settled, "<=", WINDOW_FRAMES, before),
    ]


def _quiet_then_crowd(quiet: Clip, crowd: Clip) -> Iterator[Timed]:
    """Yield the last quiet frames, then the crowd on the quiet clip's canvas, in one time."""
    at_s, frame = 0.0, None
    for at_s, frame in islice(quiet.cameras[0].scored(), QUIET_FRAMES):
        yield at_s, frame
    assert frame is not None, "the clip has frames"
    for later_s, busy in crowd.cameras[0].read():
        pixels = np.full_like(frame.pixels, PAD_VALUE)
        pixels[: frame.height, : frame.width] = busy.pixels[: frame.height, : frame.width]
        yield at_s + later_s + 1 / 15, Canvas(pixels, frame.width, frame.height)


def _crowded(
    mine: Ours, network: Network, frames: Iterator[Timed]
) -> tuple[list[Agreement], Agreement, int]:
    """Return the agreement frame by frame since the change, the floor there, and frames until
    the ladder had noticed."""
    rng, agreed, floor, noticed = np.random.default_rng(5), [], Agreement(), -1
    for index, (at_s, frame) in enumerate(frames):
        given: list[Box] = mine.answer(frame, at_s)
        if index < QUIET_FRAMES:
            continue
        boxes = network.full(frame)
        agreed.append(agreement(boxes, given))
        if index % FLOOR_EVERY == 0:
            floor = floor.plus(noise_agreement(network.full, frame, boxes, rng))
        if noticed < 0 and mine.ladder.mode in ("calibrating", "off"):
            noticed = len(agreed)
    return agreed, floor, noticed if noticed >= 0 else len(agreed) + 1


def _pooled(agreed: list[Agreement]) -> Agreement:
    total = Agreement()
    for one in agreed:
        total = total.plus(one)
    return total
