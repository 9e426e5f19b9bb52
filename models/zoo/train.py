"""Train the person detectors: distil a teacher's boxes on fixed cameras into a small network.

Owns labels, loss and optimisation. Invariant: no held-out frame and no frame of the unseen
camera is ever read here.

    python models/zoo/train.py label --assets DIR --cache CACHE
    python models/zoo/train.py fit --cache CACHE --runs RUNS --variant small --seed 0
    python models/zoo/train.py fit --cache CACHE --runs RUNS --variant small --without cam01 cam02

`label` runs the teacher once; `fit` trains one seed for a fixed number of steps and writes its
weights. A fit `--without` cameras shows how the recipe does on cameras it never saw. Then
`choose.py` picks scale and threshold and writes the model; `evaluate.py` measures it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.nn import functional

if __package__ in (None, ""):  # run as a file: the package's root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.zoo.augment import Canvases, Labelled, Recipe
from models.zoo.evaluate import (
    SCORE_THRESHOLD,
    TEACHER_LONG_SIDE_PX,
    replace_file,
    teacher,
)
from models.zoo.footage import (
    CLIPS,
    UNIT_LONG_SIDE_PX,
    Floats,
    Part,
    Pixels,
    frames,
)
from models.zoo.network import (
    ARCHITECTURES,
    Network,
    save_checkpoint,
)

RECIPE = Recipe((288, 256), 14, single_scale=(0.36, 0.85), mosaic_scale=(0.22, 0.5))
PEAK_RATE = 4e-3
WARM_UP_STEPS = 60
WEIGHT_DECAY = 0.05
AVERAGE_DECAY = 0.998
FOCUS = 1.5  # exponent of the quality focal loss
DEFAULT_STEPS = 3000
SIZE_RANGES_PX = {16: (0.0, 110.0), 32: (80.0, math.inf)}  # longer side of a head's boxes


# ---- labels ----------------------------------------------------------------------------------


def label(assets: Path, cache: Path) -> None:
    """Write every train and validation frame at unit size with the teacher's boxes."""
    teach = teacher(assets)
    cache.mkdir(parents=True, exist_ok=True)
    for clip in CLIPS:
        if clip.unseen:
            continue
        found: list[tuple[str, Pixels, Floats]] = []
        for frame in frames(assets, clip, frozenset({"train", "validation"})):
            boxes = teach.detect_at(frame, TEACHER_LONG_SIDE_PX)
            found.append((frame.part, frame.pixels(UNIT_LONG_SIDE_PX), boxes))
        np.savez(
            cache / f"{clip.name}.npz",
            parts=np.array([part for part, _, _ in found]),
            images=np.stack([image for _, image, _ in found]),
            boxes=np.concatenate([boxes for _, _, boxes in found]),
            counts=np.array([len(boxes) for _, _, boxes in found]),
        )
        print(clip.name, len(found), "frames", flush=True)


def labelled(cache: Path, parts: Sequence[Part], without: Sequence[str] = ()) -> list[Labelled]:
    """Read the frames of some parts that `label` wrote."""
    found = []
    for clip in CLIPS:
        if clip.unseen or clip.name in without:
            continue
        with np.load(cache / f"{clip.name}.npz") as data:
            part_of, images, counts = data["parts"], data["images"], data["counts"]
            boxes = np.split(data["boxes"], counts.cumsum()[:-1])
        chosen = np.flatnonzero(np.isin(part_of, parts))
        found += [Labelled(clip.name, images[index], boxes[index]) for index in chosen]
    return found


# ---- loss ------------------------------------------------------------------------------------


def assigned(boxes: Floats, stride: int, height: int, width: int) -> tuple[Any, Any]:
    """Return (box index or -1, ignored) for each of height * width cells of one image.

    A cell is responsible for the smallest box near whose centre it lies, if the box has this
    stride's size. Cells inside a doubtful box are ignored.
    """
    count = height * width
    if not len(boxes):
        return np.full(count, -1), np.zeros(count, bool)
    rows, columns = np.mgrid[:height, :width]
    x, y = (columns.ravel() + 0.5) * stride, (rows.ravel() + 0.5) * stride
    left, top, right, bottom, score = (column[:, None] for column in boxes.T)
    side = np.maximum(bottom - top, right - left)
    inside = (x > left) & (x < right) & (y > top) & (y < bottom)
    near_x = np.abs(x - (left + right) / 2) < 1.5 * stride
    near_y = np.abs(y - (top + bottom) / 2) < np.maximum(1.5 * stride, 0.08 * side)
    low, high = SIZE_RANGES_PX[stride]
    sure = score > SCORE_THRESHOLD
    responsible = inside & near_x & near_y & sure & (side >= low) & (side < high)
    area = np.where(responsible, (right - left) * (bottom - top), np.inf)
    chosen = np.where(responsible.any(0), area.argmin(0), -1)
    ignored = (inside & ~sure).any(0) & (chosen < 0)
    return chosen, ignored


def generalised_iou(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (IoU, generalised IoU) of paired boxes [n, 4] (Rezatofighi et al., 2019)."""
    area = (one[:, 2:] - one[:, :2]).prod(1) + (other[:, 2:] - other[:, :2]).prod(1)
    low, high = torch.max(one[:, :2], other[:, :2]), torch.min(one[:, 2:], other[:, 2:])
    shared = (high - low).clamp(0).prod(1)
    outer_low, outer_high = torch.min(one[:, :2], other[:, :2]), torch.max(one[:, 2:], other[:, 2:])
    outer = (outer_high - outer_low).prod(1)
    union = area - shared
    iou = shared / (union + 1e-6)
    return iou, iou - (outer - union) / (outer + 1e-6)


def losses(
    maps: Sequence[torch.Tensor], strides: Sequence[int], boxes: Sequence[Floats]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (score loss, box loss) of a batch.

    Scores: quality focal loss (Li et al., 2020) towards IoU * (.5 + .5 * teacher's score).
    """
    score_loss, box_loss, positives = torch.zeros(()), torch.zeros(()), 0
    for stride, raw in zip(strides, maps, strict=True):
        _, _, height, width = raw.shape
        cells = raw.flatten(2).transpose(1, 2)
        pairs = [assigned(each, stride, height, width) for each in boxes]
        chosen = np.stack([pair[0] for pair in pairs])
        weight = torch.from_numpy(~np.stack([pair[1] for pair in pairs])).float()
        target = torch.zeros_like(weight)
        image, cell = np.nonzero(chosen >= 0)
        if len(image):
            wanted = np.stack(
                [boxes[int(i)][chosen[i, c]] for i, c in zip(image, cell, strict=True)]
            )
            aim = torch.from_numpy(wanted.astype(np.float32))
            grid = torch.from_numpy(np.stack([cell % width, cell // width], 1)).float()
            found = cells[image, cell]
            centre = (found[:, :2] + grid) * stride
            half = torch.exp(found[:, 2:4].clamp(-4, 5)) * stride / 2
            iou, generalised = generalised_iou(
                torch.cat([centre - half, centre + half], 1), aim[:, :4]
            )
            target[image, cell] = iou.detach().clamp(0.05, 1) * (0.5 + 0.5 * aim[:, 4])
            box_loss = box_loss + (1 - generalised).sum()
            positives += len(image)
        logit = cells[..., 4]
        focus = (logit.detach().sigmoid() - target).abs() ** FOCUS
        entropy = functional.binary_cross_entropy_with_logits(logit, target, reduction="none")
        score_loss = score_loss + (entropy * focus * weight).sum()
    return 1.5 * score_loss / max(1, positives), 2 * box_loss / max(1, positives)


# ---- one fit ---------------------------------------------------------------------------------


def fit(
    data: Sequence[Labelled], variant: str, seed: int, steps: int, report: Callable[[str], None]
) -> Network:
    """Train one network for `steps` steps and return the moving average of its weights."""
    torch.manual_seed(seed)
    canvases = Canvases(data, RECIPE, np.random.default_rng(seed))
    network = Network(ARCHITECTURES[variant])
    network.parts.train().to(memory_format=torch.channels_last)
    average = network.averaged_copy()
    parameters = list(network.parts.parameters())
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=PEAK_RATE,
    )
    strides, recent, started_s = network.architecture.heads, [], time.monotonic()
    for step in range(steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = PEAK_RATE * min(1, (step + 1) / WARM_UP_STEPS) * (0.01 + 0.99 * cosine)
        images, boxes = canvases.batch()
        with torch.autocast("cpu", torch.bfloat16):
            maps = network(torch.from_numpy(images))
        score_loss, box_loss = losses([each.float() for each in maps], strides, boxes)
        optimiser.zero_grad()
        torch.autograd.backward(score_loss + box_loss)
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimiser.step()
        average.follow(network, min(AVERAGE_DECAY, (1 + step) / (10 + step)))
        recent.append((score_loss.item(), box_loss.item()))
        if step in (9, 49) or step % 100 == 99:
            mean = np.mean(recent[-100:], 0).round(3)
            pace_ms = (time.monotonic() - started_s) / (step + 1) * 1e3
            report(
                f"{variant} seed {seed} step {step + 1}/{steps} loss {mean} {pace_ms:.0f} ms/step"
            )
    average.parts.eval()
    return average


# ---- command line ----


def _fit_and_save(arguments: argparse.Namespace) -> None:
    variant, seed, without = arguments.variant, arguments.seed, arguments.without
    parts: list[Part] = ["train"] if without else ["train", "validation"]
    data = labelled(arguments.cache, parts, without)
    network = fit(data, variant, seed, arguments.steps, lambda line: print(line, flush=True))
    arguments.runs.mkdir(parents=True, exist_ok=True)
    stem = f"{variant}-seed{seed}" + "".join(f"-without-{clip}" for clip in without)
    facts = {"variant": variant, "seed": seed, "steps": arguments.steps, "without": without}
    replace_file(arguments.runs / f"{stem}.pt", save_checkpoint(network))
    replace_file(arguments.runs / f"{stem}.json", json.dumps(facts).encode())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    labels, one = verbs.add_parser("label"), verbs.add_parser("fit")
    labels.add_argument("--assets", type=Path, required=True, help="models/ and videos/")
    for each in (labels, one):
        each.add_argument("--cache", type=Path, required=True, help="folder of labelled frames")
    one.add_argument("--runs", type=Path, required=True, help="folder for trained weights")
    one.add_argument("--variant", choices=list(ARCHITECTURES), required=True)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--steps", type=int, default=DEFAULT_STEPS)
    one.add_argument(
        "--without",
        nargs="*",
        default=[],
        help="leave these clips out, to see how it would do there",
    )
    return parser


def main() -> None:
    """Run one verb on one thread, so that the sums are always added in the same order."""
    arguments = _parser().parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if arguments.verb == "label":
        label(arguments.assets, arguments.cache)
    else:
        _fit_and_save(arguments)


if __name__ == "__main__":
    main()
