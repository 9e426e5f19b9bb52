"""Choose scale and threshold of one variant, and write the model.

Owns the choice and the manifest entry. Invariant: everything that decides is looked at on
training cameras; held-out frames and the unseen camera are never read here.

Plain validation frames nearly saturate, because they show the cameras trained on. So scale and
threshold come from fits of the same recipe that left training cameras out: from the whole of those
cameras and from the validation slice of the other clips. The model itself is the fit that left
nothing out; its score head's bias is moved so that a score of .3 is that threshold.

    python models/zoo/choose.py --assets DIR --cache CACHE --runs RUNS --variant small
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

if __package__ in (None, ""):  # run as a file: the package's root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.zoo.evaluate import (
    MANIFEST,
    NMS_IOU,
    SCALES_PX,
    SCORE_THRESHOLD,
    TEACHER_LONG_SIDE_PX,
    ZOO,
    Detector,
    agreement,
    replace_file,
    student,
    teacher,
    total,
)
from models.zoo.footage import CLIPS, MULTIPLE_PX, PAD_VALUE, Floats, Part, frames
from models.zoo.network import ARCHITECTURES, Network, deployed_bytes, load_checkpoint

THRESHOLDS = np.arange(0.2, 0.7, 0.0125)
KEEP_ABOVE = 0.05  # detections below this could never be chosen as the threshold
AROUND = 9  # thresholds averaged over, .1 from first to last


@dataclass(frozen=True)
class Run:
    """One finished fit on disk; `without` names the cameras it never saw, if any."""

    path: Path
    variant: str
    seed: int
    steps: int
    without: Sequence[str]

    def network(self) -> Network:
        """Read the averaged weights back."""
        network = Network(ARCHITECTURES[self.variant])
        load_checkpoint(network, self.path.read_bytes())
        network.parts.eval()
        return network

    def detector(self) -> Detector:
        """Open the run's network with every detection that could matter kept."""
        return student(
            deployed_bytes(self.network()), ARCHITECTURES[self.variant].heads, KEEP_ABOVE
        )


def finished(folder: Path, variant: str) -> list[Run]:
    """Read which fits of a variant are in `folder`."""
    found = []
    for path in sorted(folder.glob(f"{variant}-*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        found.append(Run(path.with_suffix(".pt"), **facts))
    return found


Evidence = dict[int, list[tuple[Floats, Floats]]]  # scale -> (detections, labels) per frame


class Witness:
    """Collects what runs detect on training footage they did not train on."""

    def __init__(self, assets: Path) -> None:
        self.assets = assets
        self.teacher = teacher(assets)
        self.labels: dict[tuple[str, int], Floats] = {}

    def hear(self, run: Run) -> Evidence:
        """Return the run's detections on the validation slice and all of left-out cameras."""
        detector = run.detector()
        found: Evidence = {scale: [] for scale in SCALES_PX}
        for clip in CLIPS:
            if clip.unseen:
                continue
            parts: frozenset[Part] = frozenset({"validation"})
            if clip.name in run.without:
                parts |= {"train"}
            for frame in frames(self.assets, clip, parts):
                key = (clip.name, frame.index)
                if key not in self.labels:
                    self.labels[key] = self.teacher.detect_at(frame, TEACHER_LONG_SIDE_PX)
                for scale, pairs in found.items():
                    pairs.append((detector.detect_at(frame, scale), self.labels[key]))
        return found


def f1_at(pairs: Sequence[tuple[Floats, Floats]], threshold: float) -> float:
    """Return the pooled F1 of some frames at one threshold."""
    return total(agreement(found, labels, threshold) for found, labels in pairs).f1


def operating_point(evidence: Sequence[Evidence]) -> tuple[int, float, dict[int, float]]:
    """Return (scale, threshold, F1 per scale) that agree best over all runs, pooled.

    A point counts as the mean F1 of the thresholds around it: the next seed's scores, and the next
    place's, lie a little higher or lower, and a peak that narrow would not be met again.
    """
    best: dict[int, float] = {}
    peak: dict[int, float] = {}
    for scale in SCALES_PX:
        pairs = [pair for each in evidence for pair in each[scale]]
        scores = [f1_at(pairs, threshold) for threshold in THRESHOLDS]
        around = np.convolve(scores, np.full(AROUND, 1 / AROUND), "valid")
        best[scale] = round(float(around.max()), 4)
        peak[scale] = float(THRESHOLDS[int(around.argmax()) + AROUND // 2])
    scale = max(best, key=lambda scale: best[scale])
    return scale, round(peak[scale], 4), best


def choose(assets: Path, folder: Path, variant: str) -> None:
    """Pick scale and threshold without held-out frames; write model and manifest entry."""
    runs, witness = finished(folder, variant), Witness(assets)
    (final,) = (run for run in runs if not run.without)
    partial = [run for run in runs if run.without]
    scale, threshold, per_scale = operating_point([witness.hear(run) for run in partial])
    print(f"{variant}: F1 by scale {per_scale}; threshold {threshold} at {scale}")
    training = {
        "seed": final.seed,
        "steps": final.steps,
        "left_out_cameras": sorted("+".join(run.without) for run in partial),
        "selection_f1": per_scale[scale],
        "threshold_before_shift": threshold,
        "teacher": "yolox_nano at 832 px",
    }
    shift = _logit(SCORE_THRESHOLD) - _logit(threshold)
    publish(variant, deployed_bytes(final.network(), shift), scale, training)


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def publish(variant: str, model: bytes, long_side_px: int, training: dict[str, Any]) -> None:
    """Replace one variant's file and manifest entry, each atomically."""
    file = f"person-detector-{variant}.onnx"
    entry = {
        "variant": variant,
        "version": "1",
        "file": file,
        "sha256": hashlib.sha256(model).hexdigest(),
        "size_bytes": len(model),
        "input": {
            "name": "images",
            "layout": "nchw",
            "color": "bgr",
            "range": [0, 255],
            "pad_value": PAD_VALUE,
            "multiple": MULTIPLE_PX,
            "long_side": long_side_px,
        },
        "strides": list(ARCHITECTURES[variant].heads),
        "score_threshold": SCORE_THRESHOLD,
        "nms_iou": NMS_IOU,
        "agreement_f1": training["selection_f1"],  # until `evaluate.py --record`
        "training": training,
    }
    manifest: dict[str, Any] = {"name": "person-detector", "task": "detect"}
    manifest |= {"classes": ["person"], "variants": []}
    if MANIFEST.exists():
        manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    kept = {each["variant"]: each for each in manifest["variants"]} | {variant: entry}
    manifest["variants"] = [kept[name] for name in ARCHITECTURES if name in kept]
    replace_file(ZOO / file, model)
    replace_file(MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())


def main() -> None:
    """Choose for one variant and publish it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assets", type=Path, required=True, help="models/ and videos/")
    parser.add_argument("--runs", type=Path, required=True, help="folder of trained weights")
    parser.add_argument("--variant", choices=list(ARCHITECTURES), required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    choose(arguments.assets, arguments.runs, arguments.variant)


if __name__ == "__main__":
    main()
