"""Agreement of the trained detectors with their teacher, from the ONNX files alone.

Owns running a detector on a frame (decode, suppression) and counting agreement; needs
onnxruntime, numpy and PyAV, never torch. A detection agrees when it scores above .3, overlaps a
teacher's box (score above .3) with an IoU of at least .5, and that box is not taken by a better
scored detection. The teacher is YOLOX-nano on the frame resized to a longer side of 832 px.

Run `python models/zoo/evaluate.py --assets DIR` for the table in MODEL_CARD.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

if __package__ in (None, ""):  # run as a file: the package's root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.zoo.footage import (
    CLIPS,
    INDOOR,
    UNIT_LONG_SIDE_PX,
    Floats,
    Frame,
    Part,
    Pixels,
    frames,
    network_input,
)

ZOO = Path(__file__).resolve().parent
MANIFEST = ZOO / "person-detector.json"
TEACHER_FILE = "models/yolox_nano_dyn.onnx"
TEACHER_LONG_SIDE_PX = 832
TEACHER_STRIDES = (8, 16, 32)
TEACHER_NMS_IOU = 0.45
TEACHER_FLOOR = 0.1  # boxes from here to the threshold are neither person nor background
SCORE_THRESHOLD = 0.3
NMS_IOU = 0.5
MATCH_IOU = 0.5
SCALES_PX = (256, 320, 384, 448, 512, 640)


def overlaps(one: Floats, other: Floats) -> Floats:
    """Return the IoU float32[n, m] of boxes [n, >=4] and [m, >=4] (corners)."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:4], other[None, :, 2:4])
    shared = (high - low).clip(0).prod(-1)
    area = (one[:, 2:4] - one[:, :2]).prod(-1)[:, None]
    other_area = (other[:, 2:4] - other[:, :2]).prod(-1)[None]
    result: Floats = (shared / (area + other_area - shared + 1e-9)).astype(np.float32)
    return result


def suppressed(boxes: Floats, iou: float) -> Floats:
    """Return the boxes [n, 5] that no better scored one overlaps by `iou` or more."""
    boxes = boxes[np.argsort(-boxes[:, 4], kind="stable")]
    kept = []
    while len(boxes):
        kept.append(boxes[0])
        boxes = boxes[1:][overlaps(boxes[:1], boxes[1:])[0] < iou]
    return np.array(kept, np.float32).reshape(-1, 5)


def boxes_of(
    cells: Floats, size_px: tuple[int, int], strides: Sequence[int], floor: float
) -> Floats:
    """Turn cells float32[cells, 5] into boxes [n, 5] (corners in input pixels, score > floor)."""
    height, width = size_px
    grids, scale = [], []
    for stride in strides:
        rows, columns = np.mgrid[: height // stride, : width // stride]
        grids.append(np.stack([columns, rows], -1).reshape(-1, 2))
        scale.append(np.full((len(grids[-1]), 1), stride))
    wanted = cells[:, 4] > floor
    grid, stride_of = np.concatenate(grids)[wanted], np.concatenate(scale)[wanted]
    centre = (cells[wanted, :2] + grid) * stride_of
    half = np.exp(cells[wanted, 2:4]) * stride_of / 2
    found = np.concatenate([centre - half, centre + half, cells[wanted, 4:5]], 1)
    return found.astype(np.float32)


def open_session(source: Path | bytes) -> Any:
    """Open a one-thread CPU session on a model file or its bytes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    model = source if isinstance(source, bytes) else str(source)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Detector:
    """A session with what is needed to read its output; `teacher` outputs have 85 columns."""

    session: Any
    strides: tuple[int, ...]
    nms_iou: float
    floor: float

    def detect(self, image: Pixels) -> Floats:
        """Return boxes [n, 5] (corners in `image` pixels, clipped to it, and score)."""
        tensor = network_input(image)
        cells = self.session.run(None, {self.session.get_inputs()[0].name: tensor})[0][0]
        if cells.shape[1] > 5:  # objectness and class scores; class 0 is person
            cells = np.concatenate([cells[:, :4], cells[:, 4:5] * cells[:, 5:6]], 1)
        boxes = boxes_of(cells, (tensor.shape[2], tensor.shape[3]), self.strides, self.floor)
        boxes = suppressed(boxes, self.nms_iou)
        boxes[:, [0, 2]] = boxes[:, [0, 2]].clip(0, image.shape[1])
        boxes[:, [1, 3]] = boxes[:, [1, 3]].clip(0, image.shape[0])
        return boxes

    def detect_at(self, frame: Frame, long_side_px: int) -> Floats:
        """Detect on the frame at this size; boxes come back in unit (640 px) pixels."""
        boxes = self.detect(frame.pixels(long_side_px))
        boxes[:, :4] *= UNIT_LONG_SIDE_PX / long_side_px
        return boxes


def teacher(assets: Path) -> Detector:
    """Open the teacher."""
    session = open_session(assets / TEACHER_FILE)
    return Detector(session, TEACHER_STRIDES, TEACHER_NMS_IOU, TEACHER_FLOOR)


def student(
    source: Path | bytes, strides: Sequence[int], floor: float = SCORE_THRESHOLD
) -> Detector:
    """Open one of our detectors, from its file or bytes."""
    return Detector(open_session(source), tuple(strides), NMS_IOU, floor)


class Agreement(NamedTuple):
    """Counts over some frames, and the ratios they make."""

    agreeing: int = 0
    detected: int = 0
    expected: int = 0
    frames: int = 0

    def plus(self, other: Agreement) -> Agreement:
        return Agreement(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def precision(self) -> float:
        return self.agreeing / max(1, self.detected)

    @property
    def recall(self) -> float:
        return self.agreeing / max(1, self.expected)

    @property
    def f1(self) -> float:
        return 2 * self.agreeing / max(1, self.detected + self.expected)


def agreement(found: Floats, labels: Floats, threshold: float = SCORE_THRESHOLD) -> Agreement:
    """Match one frame's detections greedily, best first, with the teacher's boxes."""
    found = found[found[:, 4] > threshold]
    labels = labels[labels[:, 4] > SCORE_THRESHOLD]
    free = overlaps(found, labels)
    agreeing = 0
    for row in np.argsort(-found[:, 4], kind="stable"):
        if not len(labels):
            break
        best = int(free[row].argmax())
        if free[row, best] >= MATCH_IOU:
            agreeing += 1
            free[:, best] = -1
    return Agreement(agreeing, len(found), len(labels), 1)


def total(parts: Iterable[Agreement]) -> Agreement:
    """Add up counts."""
    result = Agreement()
    for part in parts:
        result = result.plus(part)
    return result


def split_name(clip: str, part: Part) -> str:
    """Return the line of the table this frame counts for."""
    if part == "unseen":
        return f"unseen camera {clip}"
    place = "indoor clip" if clip == INDOOR else "seen cameras"
    return f"{place}, {'last fifth' if part == 'held' else part}"


Table = dict[str, dict[tuple[str, int], Agreement]]


def measure(
    assets: Path,
    detectors: dict[str, Detector],
    scales_px: Mapping[str, Sequence[int]],
    parts: frozenset[Part] = frozenset({"held", "unseen"}),
    every: int = 1,
    on_frame: Callable[[Frame], None] | None = None,
) -> Table:
    """Return split -> (detector, scale) -> agreement over the footage of the given parts."""
    teach = teacher(assets)
    table: Table = {}
    for clip in CLIPS:
        for frame in frames(assets, clip, parts, every):
            labels = teach.detect_at(frame, TEACHER_LONG_SIDE_PX)
            row = table.setdefault(split_name(clip.name, frame.part), {})
            for name, detector in detectors.items():
                for scale in scales_px[name]:
                    got = agreement(detector.detect_at(frame, scale), labels)
                    row[name, scale] = row.get((name, scale), Agreement()).plus(got)
            if on_frame is not None:
                on_frame(frame)
    return table


def pooled(table: Table, splits: Iterable[str]) -> dict[tuple[str, int], Agreement]:
    """Add the rows named by `splits` into one."""
    rows = [table[split] for split in splits if split in table]
    return {key: total(row[key] for row in rows) for key in (rows[0] if rows else ())}


def unlike_training(table: Table) -> list[str]:
    """Return the splits without the seen cameras', which nearly repeat training frames."""
    return [split for split in table if not split.startswith("seen cameras")]


def lines(table: Table) -> list[str]:
    """Format the table, two pooled rows last, as Markdown lines."""
    rows = [
        *table.items(),
        ("indoor clip and unseen camera, pooled", pooled(table, unlike_training(table))),
        ("all of these, pooled", pooled(table, table)),
    ]
    text = [
        "| footage | variant | long side px | F1 | precision | recall | agreeing / ours / all |",
        "|---|---|---|---|---|---|---|",
    ]
    for split, row in rows:
        for (name, scale), got in row.items():
            counts = f"{got.agreeing} / {got.detected} / {got.expected}"
            text.append(
                f"| {split} ({got.frames} frames) | {name} | {scale} | {got.f1:.3f} "
                f"| {got.precision:.3f} | {got.recall:.3f} | {counts} |"
            )
    return text


def shipped() -> tuple[dict[str, Detector], dict[str, int]]:
    """Open the variants of the manifest; return them and each one's own scale."""
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    detectors, scales = {}, {}
    for entry in manifest["variants"]:
        detectors[entry["variant"]] = student(ZOO / entry["file"], entry["strides"])
        scales[entry["variant"]] = int(entry["input"]["long_side"])
    return detectors, scales


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old or the new one, never half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def record(table: Table, scales_px: dict[str, int]) -> None:
    """Write each variant's pooled F1 at its own scale into the manifest."""
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    everything = pooled(table, table)
    for entry in manifest["variants"]:
        key = (entry["variant"], scales_px[entry["variant"]])
        entry["agreement_f1"] = round(everything[key].f1, 4)
    replace_file(MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())


def main() -> None:
    """Print the agreement table of the shipped weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, required=True, help="folder with models/, videos/")
    parser.add_argument(
        "--scales", type=int, nargs="*", help="longer sides in px; default: its own"
    )
    parser.add_argument("--every", type=int, default=1, help="use every nth frame")
    parser.add_argument(
        "--parts", nargs="*", default=["held", "unseen"], help="train, validation, held, unseen"
    )
    parser.add_argument("--teacher", action="store_true", help="a line for the teacher itself too")
    parser.add_argument("--record", action="store_true", help="write F1 into the manifest")
    arguments = parser.parse_args()
    detectors, own = shipped()
    scales = {name: arguments.scales or [own[name]] for name in detectors}
    if arguments.teacher:  # how far its own labels move with the size of the input
        detectors["yolox_nano"] = teacher(arguments.assets)
        scales["yolox_nano"] = arguments.scales or list(SCALES_PX)
    parts: frozenset[Part] = frozenset(arguments.parts)
    table = measure(arguments.assets, detectors, scales, parts, arguments.every)
    print("\n".join(lines(table)))
    if arguments.record:
        record(table, own)


if __name__ == "__main__":
    main()
