"""Find the cells of a frame that differ from the camera's reference image.

Owns the comparison of raw 8-bit frames and what a camera's noise is; never decides what to do
about a change. Invariant: a cell counts as changed exactly when its mean |difference| to the
reference exceeds the limit, so slow drift adds up against the reference instead of passing
unseen.

A frame in which most cells changed is told apart: `brightness` when nearly all of the change has
one sign (light switched, exposure), else `scene` (the camera moved, the feed was switched).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from models.delta import library
from models.images import Pixels

Cells = npt.NDArray[np.uint8]
Sums = npt.NDArray[np.uint16]
Region = tuple[int, int, int, int]  # in cells: top, left, bottom, right
Kind = Literal["same", "local", "brightness", "scene"]

MOST = 0.6  # a change of more than this share of the cells is none of a part
ONE_SIGN = 0.8
NOISE_GAIN = 1.2
NOISE_STEP = 7
NOISE_MEASUREMENTS = 16
MOST_NOISE = 8.0  # grey levels: more is motion nearly everywhere, and must not pass for noise
CELL_SIDES_PX = (4, 8)
MOST_SUM = 65_535
NEAR = 4  # cells


@dataclass(frozen=True, eq=False)
class Change:
    """What changed: `cells` uint8[rows, columns] of 0 and 1, `share` of them set, 0..1."""

    cells: Cells
    share: float
    kind: Kind


class ChangeMask:
    """Compare frames of one size with a reference. Not for concurrent use."""

    def __init__(self, height: int, width: int, channels: int = 3, cell_px: int = 4) -> None:
        """Prepare for frames uint8[height, width, channels]; `cell_px` is 4 or 8."""
        if cell_px not in CELL_SIDES_PX:
            raise ValueError(f"cells of {cell_px} pixels are not supported: 4 or 8")
        if height < 1 or width < 1:
            raise ValueError(f"a frame of {width} x {height} pixels has no area")
        self.cell_px = cell_px
        if not 0 < channels <= library.MASK_CHANNELS:
            raise ValueError(f"pixels of {channels} channels are not supported")
        self._shape = (height, width, channels)
        rows, columns = -(-height // cell_px), -(-width // cell_px)
        self._sums: Sums = np.zeros((rows, columns), np.uint16)
        self._values = cell_px * cell_px * channels
        self._noise: deque[float] = deque(maxlen=NOISE_MEASUREMENTS)

    @property
    def noise(self) -> float:
        """Return the camera's noise as mean |difference| of consecutive frames, grey levels.

        The lower quartile of the last measurements: motion only ever raises one.
        """
        if not self._noise:
            return 0.0
        return min(MOST_NOISE, sorted(self._noise)[len(self._noise) // 4])

    def assume_noise(self, noise: float) -> None:
        """Take over what another node measured, until there are measurements of our own."""
        if not self._noise:
            self._noise.append(noise)

    def learn_noise(self, pixels: Pixels, last: Pixels) -> None:
        """Measure the noise between two consecutive frames. O(pixels)."""
        self._compare(pixels, last)
        some = self._sums.ravel()[::NOISE_STEP]  # enough for a median, at a fraction of the cost
        self._noise.append(float(np.partition(some, some.size // 2)[some.size // 2]) / self._values)

    def compare(self, pixels: Pixels, reference: Pixels, level: float) -> Change:
        """Return what differs by more than `level` grey levels beyond the noise. O(pixels)."""
        total, signed = self._compare(pixels, reference)
        if total == 0:
            return Change(np.zeros(self._sums.shape, np.uint8), 0.0, "same")
        cells = self._above(level)
        share = float(np.count_nonzero(cells) / cells.size)
        kind: Kind = "local"
        if share > MOST:
            kind = "brightness" if abs(signed) > ONE_SIGN * total else "scene"
        return Change(cells, share, kind)

    def around(self, seed: float, level: float, regions: Sequence[Region] = ()) -> Change:
        """Return what differed by more than a level in or near cells that did by more than `seed`.

        In `regions` also what differed by more than noise.

        In the last comparison. Near is within `NEAR` to twice as many cells: what moves casts
        shadows and has soft edges, while far from it such differences are the codec's. O(cells).
        """
        rows, columns = self._sums.shape
        high, wide = -(-rows // NEAR), -(-columns // NEAR)
        room = np.zeros((high * NEAR, wide * NEAR), np.uint8)
        room[:rows, :columns] = self._above(seed)
        blocks = np.zeros((high + 2, wide + 2), np.uint8)
        blocks[1:-1, 1:-1] = room.reshape(high, NEAR, wide, NEAR).max(axis=(1, 3))
        tall = blocks[:-2] | blocks[1:-1] | blocks[2:]
        near = tall[:, :-2] | tall[:, 1:-1] | tall[:, 2:]
        cells = self._above(level)
        cells &= near.repeat(NEAR, axis=0).repeat(NEAR, axis=1)[:rows, :columns]
        if regions:
            noticed = self._above(0.0)
            for top, left, bottom, right in regions:
                cells[top:bottom, left:right] = noticed[top:bottom, left:right]
        return Change(cells, float(np.count_nonzero(cells) / cells.size), "local")

    def _above(self, level: float) -> Cells:
        limit = int((level + NOISE_GAIN * self.noise) * self._values)
        return (self._sums > np.uint16(min(limit, MOST_SUM))).view(np.uint8)

    def _compare(self, pixels: Pixels, reference: Pixels) -> tuple[int, int]:
        """Fill the sums per cell; return the sum of |difference| and of the difference.

        Raises ValueError for images of another size.
        """
        for image in (pixels, reference):
            if image.shape != self._shape:
                raise ValueError(f"a frame of {list(image.shape)}, not {list(self._shape)}")
        if library.library() is not None:
            return library.block_sums(pixels, reference, self.cell_px, self._sums)
        side = self.cell_px
        difference = pixels.astype(np.int16) - reference
        signed = int(difference.sum(dtype=np.int64))
        np.abs(difference, out=difference)
        lines = np.add.reduceat(difference, np.arange(0, pixels.shape[0], side), axis=0)
        cells = np.add.reduceat(lines, np.arange(0, pixels.shape[1], side), axis=1, dtype=np.int32)
        self._sums[:] = cells.sum(axis=2)
        return int(self._sums.sum(dtype=np.int64)), signed


def copy_cells(reference: Pixels, pixels: Pixels, change: Change, cell_px: int) -> None:
    """Bring a reference up to a frame where it changed. O(changed pixels)."""
    if library.library() is not None:
        library.copy_cells(reference, pixels, change.cells, cell_px)
        return
    where = change.cells.repeat(cell_px, axis=0).repeat(cell_px, axis=1).astype(np.bool_)
    where = where[: pixels.shape[0], : pixels.shape[1]]
    reference[where] = pixels[where]
