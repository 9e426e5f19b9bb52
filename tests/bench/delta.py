"""What differential inference gains on footage, and how true it stays: `make bench-delta`.

Our ladder and four rivals answer every frame of a clip in one loop with the full pass, each timed
in thread-CPU time on one thread, the order turning by one from frame to frame so that what else
the machine does hits all alike. Rivals that either run the full pass or repeat the last boxes are
charged their own check, and this frame's full pass when they would run it. A method is calibrated
on the first 40 % of each camera's frames and scored on the rest, state cold at each cut. Speed is
the full pass's mean time over the method's, everything included. The bar is min(.98, noise
floor), the floor being the full pass on frame + N(0, 1) against the full pass on the frame, on
every second frame; in calibration the same is measured on the calibration part. The best rival is
the fastest that reaches the bar as calibrated; in hindsight, at any of its settings. Our detector's
rows are those of its large variant (`ours`); those of the small one stand beside them. Needs the
folder EDGE_NODE_ASSETS; takes about ten minutes.

Arguments name rows and parts: `make bench-delta ARGS="quiet.yolox walkers exact"`. With `traces`
alone it records what each frame cost the ladder, for simulated fleets, and measures nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from models.images import Canvas
from models.manifest import load_manifest
from models.wire import Box, ModelFile, Rung
from tests.bench.delta_clips import Clip, Shot, clip_named, dirty_share
from tests.bench.delta_methods import Method, Network
from tests.bench.delta_ours import Ours
from tests.bench.delta_parts import change, exactness, executors
from tests.bench.delta_rivals import Rival, Skipper, rivals
from tests.bench.delta_score import ENOUGH_BOXES, Agreement, agreement, bar, noise_agreement
from tests.bench.report import Figure, report

YOLOX = "models/yolox_nano_dyn.onnx"
TRACES = Path("simnet/scenarios/delta_traces.json")
RUNG_LETTERS: dict[Rung, str] = {"same": "s", "gate": "g", "sparse": "d", "full": "f"}
VARIANTS = {"ours": "large", "small": "small"}
FLOOR_EVERY = 2
LEAST_DIRTY = 0.40
LEAST_OF_IDEAL = 0.75
MOST_MASKED = 0.05  # of the frames, while off
MOST_VERDICT_S = 300.0
# Row -> least speed-up; None is measured and asked for nothing.
ROWS: dict[str, float | None] = {
    "quiet.ours": 8.0,
    "quiet.small": None,
    "quiet.yolox": 5.0,
    "walkers.ours": 2.5,
    "walkers.small": None,
    "walkers.yolox": 1.5,
    "highway.yolox": 1.15,
    "crowd.ours": 0.97,
    "crowd.small": None,
    "crowd.yolox": 0.97,
}
# Figures of this report that are not rows of footage: name on the command line -> function.
PARTS: dict[str, Callable[[Path], list[Figure]]] = {
    "exact": exactness,
    "executors": executors,
    "change": change,
}


@dataclass
class Tally:
    """What one method did on the scored frames."""

    spent_s: float = 0.0
    agreed: Agreement = field(default_factory=Agreement)

    def add(self, full: list[Box], given: list[Box], spent_s: float) -> None:
        """Count one frame."""
        self.agreed = self.agreed.plus(agreement(full, given))
        self.spent_s += spent_s


@dataclass
class Run:
    """One row's measurement: the full pass, each method by its label, the noise floor."""

    full: Tally = field(default_factory=Tally)
    mine: Tally = field(default_factory=Tally)
    rivals: dict[str, Tally] = field(default_factory=dict)
    floor: Agreement = field(default_factory=Agreement)
    dirty: float = 0.0
    frames: int = 0
    served: list[tuple[Rung, float]] = field(default_factory=list)  # by our ladder: seconds

    @property
    def bar(self) -> float:
        """Return the F1 that is asked for."""
        return bar(self.floor)

    @property
    def short(self) -> str:
        """Return why nothing is asked of this row, or nothing."""
        boxes = self.full.agreed.full
        return "" if boxes >= ENOUGH_BOXES else f"not enough: {boxes} boxes"

    def speed(self, tally: Tally) -> float:
        """Return how many times faster than the full pass a method was."""
        return self.full.spent_s / tally.spent_s

    def best(self, labels: Iterable[str]) -> tuple[str, float]:
        """Return the fastest of these rivals that reaches the bar; the full pass is one."""
        able = [
            (label, self.speed(self.rivals[label]))
            for label in labels
            if self.rivals[label].agreed.f1 >= self.bar
        ]
        return max([*able, ("full pass always", 1.0)], key=lambda one: one[1])


def network_of(model: str, clip: Clip, assets: Path) -> Network:
    """Open a model as its rows use it. Raises ModelError."""
    yolox = model == "yolox"
    file = yolox_file(assets / YOLOX) if yolox else load_manifest().variants[VARIANTS[model]]
    return Network(file, objectness=yolox, persons_only=clip.persons_only)


def yolox_file(path: Path) -> ModelFile:
    """Return the stock detector as a manifest would name it."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    shape = {"name": "images", "pad_value": 114, "multiple": 32, "long_side": 640}
    spec = {"input": shape, "strides": [8, 16, 32], "score_threshold": 0.3, "nms_iou": 0.45}
    return ModelFile("yolox", "nano", "1", str(path), digest, spec)


def calibrated(clip: Clip, network: Network, methods: list[Method]) -> None:
    """Calibrate every method on the first part of all the clip's cameras."""
    shots, floor, rng = [], Agreement(), np.random.default_rng(1)
    for camera in clip.cameras:
        shot = Shot(camera.name, [], [], [])
        for index, (at_s, frame) in enumerate(camera.calibration()):
            boxes = network.full(frame)
            shot.times_s.append(at_s)
            shot.frames.append(frame)
            shot.boxes.append(boxes)
            if index % FLOOR_EVERY == 0:
                floor = floor.plus(noise_agreement(network.full, frame, boxes, rng))
        shots.append(shot)
    for method in methods:
        method.calibrate(shots, bar(floor))


def scored(clip: Clip, network: Network, mine: Ours, running: list[Rival[Any]]) -> Run:
    """Answer the rest of the frames with the full pass, our method and the rivals."""
    rng, run, changed = np.random.default_rng(2), Run(), []
    run.rivals = {rival.label: Tally() for rival in running}
    for camera in clip.cameras:
        last: Canvas | None = None
        mine.cut(camera.name)
        for rival in running:
            rival.cut(camera.name)
        for index, (at_s, frame) in enumerate(camera.scored()):
            boxes = _answered(run, network, mine, running, (frame, at_s))
            if index % FLOOR_EVERY == 0:
                run.floor = run.floor.plus(noise_agreement(network.full, frame, boxes, rng))
            if last is not None:
                changed.append(dirty_share(last.pixels, frame.pixels))
            last, run.frames = frame, run.frames + 1
    run.dirty = float(np.mean(changed))
    return run


def _answered(
    run: Run,
    network: Network,
    mine: Ours,
    running: list[Rival[Any]],
    now: tuple[Canvas, float],
) -> list[Box]:
    """Add one frame to the tallies, those that run the network taking turns at being first."""
    frame, at_s = now
    works: list[tuple[Tally, Callable[[], list[Box]]]] = [(run.full, partial(network.full, frame))]
    works += [
        (run.rivals[rival.label], partial(rival.answer, frame, at_s))
        for rival in running
        if not isinstance(rival, Skipper)
    ]
    works.append((run.mine, partial(mine.answer, frame, at_s)))
    took: dict[int, tuple[list[Box], float]] = {}
    for place in range(len(works)):
        index = (place + run.frames) % len(works)
        started_s = time.thread_time()
        given = works[index][1]()
        took[index] = given, time.thread_time() - started_s
    boxes, full_s = took[0]
    run.served.append((mine.rung, took[len(works) - 1][1]))
    for index, (tally, _) in enumerate(works):
        tally.add(boxes, *took[index])
    for rival in running:
        if isinstance(rival, Skipper):
            run.rivals[rival.label].add(boxes, *rival.replayed(frame, rival.setting, boxes, full_s))
    return boxes


def row(name: str, assets: Path) -> list[Figure]:
    """Measure one row; nothing when the footage or the model is missing."""
    clip_name, model = name.split(".")
    clip = clip_named(clip_name, assets)
    if isinstance(clip, list):
        print(f"skipped {name}: there is no {', '.join(clip)}")
        return []
    if model == "yolox" and not (assets / YOLOX).is_file():
        print(f"skipped {name}: there is no {assets / YOLOX}")
        return []
    started_s = time.monotonic()
    network = network_of(model, clip, assets)
    mine, others = Ours(network), rivals(network)
    calibrated(clip, network, [*others, mine])
    run = scored(clip, network, mine, [one for rival in others for one in entrants(rival)])
    figures = own_figures(name, run, mine, others) + reuse_figures(name, run, mine)
    figures += full_figures(name, run, others)
    figures += [rival_figure(name, run, rival) for rival in others]
    print(f"{name}: {run.frames} frames, {time.monotonic() - started_s:.0f} s", file=sys.stderr)
    return figures


def entrants(rival: Rival[Any]) -> list[Rival[Any]]:
    """Return a rival at the settings to run: all where replaying is cheap, else up to two.

    The others are there for the comparison in hindsight: a rival shall not drop out because its
    calibration was a hair too bold.
    """
    if isinstance(rival, Skipper):
        return [rival.at(setting) for setting in rival.settings]
    if not rival.reuses:
        return []
    first = rival.settings.index(rival.setting)
    return [rival.at(setting) for setting in rival.settings[first : first + 2]]


def own_figures(name: str, run: Run, mine: Ours, others: Sequence[Rival[Any]]) -> list[Figure]:
    """Return what is asked of our row; nothing is asked where there are too few boxes."""
    agreed, speed = run.mine.agreed, run.speed(run.mine)
    asked = None if run.short else ROWS[name]
    # Where nothing pays the best rival is the full pass, and the row allows for our mask.
    even = min(1.0, asked) if asked else None
    least_f1 = None if run.short else run.bar
    label, best = run.best(rival.label for rival in others if rival.reuses)
    hindsight, harder = run.best(run.rivals)
    model = name.split(".")[1]
    note = f"variant {VARIANTS[model]}; {mine.note()}" if model in VARIANTS else mine.note()
    return [
        Figure(name, speed, ">=", asked, f"{run.short}; {note}" if run.short else note),
        Figure(f"{name}.f1", agreed.f1, ">=", least_f1, run.short),
        Figure(f"{name}.f1_lenient", agreed.lenient),
        Figure(f"{name}.vs_best_rival", speed / best, ">=", even, f"against {label}"),
        Figure(f"{name}.vs_hindsight", speed / harder, note=f"against {hindsight}"),
    ]


def reuse_figures(name: str, run: Run, mine: Ours) -> list[Figure]:
    """Return how much of the work our row left out, and how much of that its speed shows."""
    ideal = 1 / (1 - min(0.9999, mine.work_saved))
    asked = ROWS[name] is not None and not run.short and ideal > 1
    part = LEAST_OF_IDEAL if asked else None
    masked = MOST_MASKED if mine.ladder.mode == "off" else None
    allowed = f"of {ideal:.2f} x, which the work not done would allow"
    looked = f"share of frames that the mask looked at; {mine.ladder.mode}"
    ended = "" if mine.has_verdict else "; there the calibration part ended"
    footage = f"of footage, {mine.verdict_frames} frames{ended}"
    return [
        Figure(f"{name}.work_saved", mine.work_saved, note="share of multiply-accumulates"),
        Figure(f"{name}.hit_ratio", mine.hit_ratio, note="share of frames answered by no pass"),
        Figure(f"{name}.of_ideal", run.speed(run.mine) / ideal, ">=", part, allowed),
        Figure(f"{name}.masked", mine.masked / run.frames, "<=", masked, looked),
        Figure(f"{name}.verdict_s", mine.verdict_s, "<=", MOST_VERDICT_S, footage),
    ]


def full_figures(name: str, run: Run, others: Sequence[Rival[Any]]) -> list[Figure]:
    """Return the row's conditions: what the full pass finds and costs, and the best rival."""
    noise = f"full pass under noise against itself, lenient {run.floor.lenient:.3f}"
    boxes = run.short or f"of the full pass, {run.frames} frames"
    dirty = "mean share of 4-px cells that change between frames"
    least = LEAST_DIRTY if name.startswith("crowd.") else None
    label, best = run.best(rival.label for rival in others if rival.reuses)
    hindsight, harder = run.best(run.rivals)
    chosen_then = f"{hindsight}, its setting chosen on the scored frames"
    return [
        Figure(f"{name}.floor", run.floor.f1, note=noise),
        Figure(f"{name}.boxes", run.full.agreed.full, note=boxes),
        Figure(f"{name}.full_ms", run.full.spent_s / run.frames * 1e3, note="thread-CPU, mean"),
        Figure(f"{name}.dirty", run.dirty, ">=" if least else "", least, dirty),
        Figure(f"{name}.best_rival", best, note=label),
        Figure(f"{name}.best_rival_in_hindsight", harder, note=chosen_then),
    ]


def rival_figure(name: str, run: Run, rival: Rival[Any]) -> Figure:
    """Return a rival's speed as calibrated, and in the note what hindsight would have chosen."""
    labels = [label for label in run.rivals if label.startswith(rival.name)]
    hindsight, best = run.best(labels)
    then = f"in hindsight {hindsight.removeprefix(rival.name).strip()}: {best:.2f}"
    figure = f"{name}.rival: {rival.name}"
    if not rival.reuses:
        return Figure(figure, 1.0, note=f"{rival.note()}; {then}")
    tally = run.rivals[rival.label]
    misses = "" if tally.agreed.f1 >= run.bar else " (misses the bar)"
    f1 = f"F1 {tally.agreed.f1:.3f}{misses}, lenient {tally.agreed.lenient:.3f}"
    return Figure(figure, run.speed(tally), note=f"{f1}; {rival.note()}; {then}")


def chosen(names: list[str]) -> list[str]:
    """Return the rows and parts that the arguments name; all of them without arguments."""
    known = [*ROWS, *PARTS]
    unknown = [name for name in names if not any(_named(one, name) for one in known)]
    if unknown:
        sys.exit(f"no row {unknown[0]!r}; there are {', '.join(known)}")
    return [one for one in known if not names or any(_named(one, name) for name in names)]


def _named(row_name: str, argument: str) -> bool:
    return argument in (row_name, row_name.split(".")[0])


def traces(assets: Path) -> None:
    """Write what each scored frame cost our ladder, in hundredths of the mean full pass.

    The mask and all else that the ladder does is in the cost; a camera's first frame is left out.
    """
    lines = []
    for name in (name for name in ROWS if not name.endswith(".small")):
        clip_name, model = name.split(".")
        clip = clip_named(clip_name, assets)
        if isinstance(clip, list):
            sys.exit(f"no traces without {', '.join(clip)}")
        network = network_of(model, clip, assets)
        mine = Ours(network)
        calibrated(clip, network, [mine])
        run = scored(clip, network, mine, [])
        full_s = run.full.spent_s / run.frames
        counts = [camera.count - camera.calibration_count for camera in clip.cameras]
        firsts = {sum(counts[:place]) for place in range(len(counts))}
        frames = [one for index, one in enumerate(run.served) if index not in firsts]
        cost = [max(1, round(100 * spent_s / full_s)) for _, spent_s in frames]
        trace = {
            "full_ms": round(full_s * 1e3, 1),
            "rungs": "".join(RUNG_LETTERS[rung] for rung, _ in frames),
            "cost": cost,
        }
        lines.append(f" {json.dumps(name)}: {json.dumps(trace, separators=(',', ':'))}")
        print(f"{name}: {len(cost)} frames at {sum(cost) / len(cost):.0f} %; {mine.note()}")
    TRACES.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> int:
    """Print the table and write `.bench/delta.json`."""
    assets = Path(os.environ.get("EDGE_NODE_ASSETS", ""))
    if sys.argv[1:] == ["traces"]:
        traces(assets)
        return 0
    figures: list[Figure] = []
    for name in chosen(sys.argv[1:]):
        figures += PARTS[name](assets) if name in PARTS else row(name, assets)
    if figures:
        report("delta", figures)
    return 0


if __name__ == "__main__":
    # One thread: NumPy's matrix products read this when NumPy is loaded.
    if "OPENBLAS_NUM_THREADS" not in os.environ:
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "tests.bench.delta", *sys.argv[1:]])
    sys.exit(main())
