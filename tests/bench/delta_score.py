"""Agreement of a method's boxes with the full pass on the same frame.

Owns matching, F1 and the noise floor; never times anything. Boxes pair up greedily, best IoU
first, each at most once, when they are of one class and overlap with an IoU of at least .5.
Invariant: a list compared with itself agrees with F1 1, and lenient F1 is never below strict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from models.images import Canvas
from models.wire import Box

SCORE_THRESHOLD = 0.3
WEAK_SCORE = 0.4
MATCH_IOU = 0.5
MOST_ASKED = 0.98
NOISE_SIGMA = 1.0
ENOUGH_BOXES = 200


class Agreement(NamedTuple):
    """Counts over some frames; `weak` boxes found no partner and score at most .4."""

    matched: int = 0
    full: int = 0
    given: int = 0
    weak: int = 0

    def plus(self, other: Agreement) -> Agreement:
        """Return the counts of both."""
        return Agreement(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def f1(self) -> float:
        """Return strict F1; 1 where there is nothing to find and nothing was found."""
        boxes = self.full + self.given
        return 2 * self.matched / boxes if boxes else 1.0

    @property
    def lenient(self) -> float:
        """Return F1 with unmatched weak boxes of either side ignored."""
        boxes = self.full + self.given - self.weak
        return 2 * self.matched / boxes if boxes else 1.0


def agreement(full: Sequence[Box], given: Sequence[Box]) -> Agreement:
    """Compare two lists of boxes of one frame. O(full x given)."""
    one = [box for box in full if box[4] > SCORE_THRESHOLD]
    other = [box for box in given if box[4] > SCORE_THRESHOLD]
    if one is other or one == other:
        return Agreement(len(one), len(one), len(other), 0)
    pairs = _pairs(one, other)
    left = [box for i, box in enumerate(one) if i not in pairs]
    taken = set(pairs.values())
    left += [box for i, box in enumerate(other) if i not in taken]
    weak = sum(box[4] <= WEAK_SCORE for box in left)
    return Agreement(len(pairs), len(one), len(other), weak)


def _pairs(one: list[Box], other: list[Box]) -> dict[int, int]:
    """Return which box of `one` is matched with which of `other`, by index."""
    if not one or not other:
        return {}
    a, b = np.array(one)[:, None], np.array(other)[None]
    sides = np.minimum(a[..., 2:4], b[..., 2:4]) - np.maximum(a[..., :2], b[..., :2])
    shared = sides.clip(0).prod(-1)
    areas = [(boxes[..., 2:4] - boxes[..., :2]).prod(-1) for boxes in (a, b)]
    iou = shared / np.maximum(areas[0] + areas[1] - shared, 1e-12)
    iou[a[..., 5] != b[..., 5]] = 0
    pairs: dict[int, int] = {}
    while iou.max() >= MATCH_IOU:
        i, j = np.unravel_index(int(iou.argmax()), iou.shape)
        pairs[int(i)] = int(j)
        iou[i], iou[:, j] = 0, 0
    return pairs


def noise_agreement(
    full: Callable[[Canvas], list[Box]],
    frame: Canvas,
    boxes: list[Box],
    rng: np.random.Generator,
) -> Agreement:
    """Compare the full pass on a frame + N(0, 1), rounded, with `boxes`, its answer without."""
    noise = rng.standard_normal(frame.pixels.shape, np.float32) * NOISE_SIGMA
    pixels = np.clip(np.rint(frame.pixels + noise), 0, 255).astype(np.uint8)
    return agreement(boxes, full(Canvas(pixels, frame.width, frame.height)))


def bar(floor: Agreement) -> float:
    """Return the F1 that is asked for, given the noise floor."""
    return min(MOST_ASKED, floor.f1)
