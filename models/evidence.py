"""How sure we may be that reused answers agree with full passes.

Owns the measure of agreement between two answers and the confidence bounds on it; never runs a
model. Invariant: the lower bound never exceeds what was observed, nor the upper bound falls below
it; without evidence they are 0 and 1.

Agreement is F1: twice the matched boxes over all boxes (IoU >= .5, same class, greedily by IoU).
Frames of one scene resemble each other, and all that are answered from one reference are right or
wrong together. So the bounds (Wilson, 1927) count blocks of frames: the number of boxes is divided
by how much more blocks vary than independent boxes would, and a block counts as `BLOCK_BOXES` at
most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.wire import Box

Doubles = npt.NDArray[np.float64]

IOU_MATCH = 0.5
BLOCK_FRAMES = 8
MOST_FRAMES = 32  # of a block answered from one reference
BLOCK_BOXES = 16.0
EMPTY_WEIGHT = 0.1  # of a frame on which both answers say "nothing", in boxes


def overlap(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes, 0..1."""
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = wide * high
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 else 0.0


def matched(first: Sequence[Box], second: Sequence[Box]) -> int:
    """Return how many boxes pair up, best overlap first. O(n * m), equal answers O(n)."""
    if first == second:  # boxes without area, which overlap nothing, too
        return len(first)
    pairs = sorted(
        (
            (overlap(a, b), i, j)
            for i, a in enumerate(first)
            for j, b in enumerate(second)
            if a[5] == b[5]
        ),
        reverse=True,
    )
    free_first, free_second, count = set(range(len(first))), set(range(len(second))), 0
    for score, i, j in pairs:
        if score < IOU_MATCH:
            break
        if i in free_first and j in free_second:
            free_first.remove(i)
            free_second.remove(j)
            count += 1
    return count


def wilson(agreed: npt.ArrayLike, total: npt.ArrayLike, z: float) -> tuple[Doubles, Doubles]:
    """Return the lower and upper bound of shares, `z` deviations out; 0 and 1 where total is 0.

    Source: Wilson (1927), the score interval.
    """
    known = np.asarray(total, np.float64) > 0
    count = np.where(known, total, 1.0)
    share = np.clip(np.asarray(agreed, np.float64) / count, 0, 1)
    centre = share + z * z / (2 * count)
    half = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    whole = 1 + z * z / count
    # Rounding must not put the share outside of its bounds.
    low = np.where(known, np.clip((centre - half) / whole, 0, share), 0.0)
    high = np.where(known, np.clip((centre + half) / whole, share, 1), 1.0)
    return low, high


class Evidence:
    """Agreement gathered frame by frame, in blocks of `BLOCK_FRAMES` to `MOST_FRAMES` frames."""

    def __init__(self, most_blocks: int | None = None) -> None:
        """Start without evidence; beyond `most_blocks` the oldest block is forgotten."""
        self.frames = 0  # forgotten ones too
        self._block_frames = 0  # of the newest block
        # [twice matched, all boxes, frames without any]
        self._blocks: deque[list[float]] = deque(maxlen=most_blocks)

    def add(self, full: Sequence[Box], given: Sequence[Box], *, joined: bool = False) -> float:
        """Count one frame; return its agreement, 0..1.

        `joined`: it was answered from the same reference as the one before, and so belongs to
        the same block.
        """
        both = 2 * matched(full, given)
        total = len(full) + len(given)
        most = MOST_FRAMES if joined else BLOCK_FRAMES
        if self._block_frames >= most or not self._blocks:
            self._blocks.append([0.0, 0.0, 0.0])
            self._block_frames = 0
        self._block_frames += 1
        self._blocks[-1][0] += both
        self._blocks[-1][1] += total
        self._blocks[-1][2] += total == 0
        self.frames += 1
        return both / total if total else 1.0

    @property
    def boxes(self) -> float:
        """Return the boxes seen, averaged over the two answers."""
        return sum(block[1] for block in self._blocks) / 2

    @property
    def agreement(self) -> float:
        """Return F1, 1 when there were no boxes."""
        total = sum(block[1] for block in self._blocks)
        return sum(block[0] for block in self._blocks) / total if total else 1.0

    def bounds(self, z: float) -> tuple[float, float]:
        """Return the lower and upper confidence bound of F1, `z` deviations out. O(blocks)."""
        empty = sum(block[2] for block in self._blocks)
        worth = sum(min(BLOCK_BOXES, block[1] / 2) for block in self._blocks)
        count = min(worth, self.boxes / self._design()) + EMPTY_WEIGHT * empty
        low, high = wilson(self.agreement * count, count, z)
        return float(low), float(high)

    def _design(self) -> float:
        """Return how many times more F1 varies between blocks than between boxes, at least 1."""
        share, boxes = self.agreement, self.boxes
        filled = [block for block in self._blocks if block[1]]
        if len(filled) < 2 or not 0 < share < 1:
            return 1.0
        spread = sum(((both - share * total) / 2) ** 2 for both, total, _ in filled)
        spread *= len(filled) / (len(filled) - 1)
        return max(1.0, spread / (boxes * share * (1 - share)))
