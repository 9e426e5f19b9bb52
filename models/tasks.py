"""What a task makes of pixels and of a model's output: preprocess, decode, suppress.

Owns the numbers between canvas and boxes for task `detect`; never runs a model. Invariant:
boxes are (x0, y0, x1, y1, score, class index) with 0 <= x0 <= x1 <= 1 relative to the image,
best score first, no two of a class overlapping by more than the model's `nms_iou`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from models.images import Canvas, Pixels
from models.wire import Box

Floats = npt.NDArray[np.float32]

MAX_CANDIDATES = 300


def preprocess(pixels: Pixels) -> Floats:
    """Return a canvas uint8[h, w, 3] as float32[1, 3, h, w], 0..255, same channel order."""
    planes: Floats = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], dtype=np.float32)
    return planes


def cell_count(height: int, width: int, strides: Sequence[int]) -> int:
    """Return how many cells a detector with these strides has at a canvas size."""
    return sum((height // stride) * (width // stride) for stride in strides)


@lru_cache(maxsize=32)
def _grid(height: int, width: int, strides: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Return cell positions float32[cells, 2] (x, y) and strides float32[cells, 1]."""
    positions, scales = [], []
    for stride in strides:
        rows, columns = height // stride, width // stride
        y, x = np.mgrid[:rows, :columns]
        positions.append(np.stack([x.ravel(), y.ravel()], axis=1))
        scales.append(np.full((rows * columns, 1), stride))
    return np.concatenate(positions).astype(np.float32), np.concatenate(scales).astype(np.float32)


def decode_detections(
    output: Floats,
    canvas: Canvas,
    strides: tuple[int, ...],
    score_threshold: float,
    nms_iou: float,
) -> list[Box]:
    """Return the boxes of one image's output float32[cells, 4 + classes].

    Columns are x offset, y offset, log w, log h in units of the stride, then one score per
    class. Cells that are not finite are ignored. O(cells + kept^2).
    """
    scores_all = output[:, 4:]
    classes = scores_all.argmax(axis=1)
    scores = scores_all[np.arange(len(output)), classes]
    chosen = np.flatnonzero(scores > score_threshold)
    if len(chosen) > MAX_CANDIDATES:
        order = np.argsort(-scores[chosen], kind="stable")
        chosen = chosen[order[:MAX_CANDIDATES]]
    cells = output[chosen]
    finite = np.isfinite(cells).all(axis=1)
    chosen, cells = chosen[finite], cells[finite]
    if not len(chosen):
        return []
    positions, scales = _grid(*canvas.pixels.shape[:2], strides)
    centre = (cells[:, :2] + positions[chosen]) * scales[chosen]
    half = np.exp(np.clip(cells[:, 2:4], -10, 10)) * scales[chosen] / 2
    size = np.array([canvas.width, canvas.height], np.float32)
    edges = np.concatenate([centre - half, centre + half], axis=1) / np.tile(size, 2)
    corners: Floats = np.clip(edges, 0, 1).astype(np.float32)
    kept = suppress(corners, scores[chosen], classes[chosen], nms_iou)
    return [
        [*map(float, corners[i]), float(scores[chosen[i]]), int(classes[chosen[i]])] for i in kept
    ]


def suppress(
    corners: Floats, scores: Floats, classes: npt.NDArray[np.intp], iou_limit: float
) -> list[int]:
    """Return indices that survive greedy non-maximum suppression per class, best first. O(n^2)."""
    area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order):
        best, rest = int(order[0]), order[1:]
        kept.append(best)
        low = np.maximum(corners[best, :2], corners[rest, :2])
        high = np.minimum(corners[best, 2:], corners[rest, 2:])
        overlap = np.prod(np.clip(high - low, 0, None), axis=1)
        union = area[best] + area[rest] - overlap
        same = (overlap > iou_limit * union) & (classes[rest] == classes[best])
        order = rest[~same]
    return kept
