"""What differential inference is compared with: four known ways not to run every frame.

Owns the four rivals; never scores or times the run that is reported. Each rival has one
parameter, chosen on the calibration part alone: the boldest setting whose agreement with the full
pass there reaches the target; if that is not cheaper than the full pass, it is off: the full pass
always. A rival that only decides between a full pass and the last boxes can be replayed at any
setting from the full pass's answers and times. Invariant: what a rival answers with is always some
full pass's boxes, or (crop delta) the decoded cells of cached outputs.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt

from models.images import Canvas, Pixels
from models.tasks import Floats
from models.wire import Box
from tests.bench.delta_clips import Shot
from tests.bench.delta_methods import Network
from tests.bench.delta_score import Agreement, agreement

ALIGN_PX = 32
TILE = 8
HALO_PX = 64
KEPT_HALO_PX = 32
LARGEST_CROP = 0.6
GREY_LEVELS = 15
THUMBNAIL = (48, 80)


Setting = TypeVar("Setting", int, float)


@dataclass
class Trial:
    """What one setting did on the calibration part: agreement and expected share of full cost."""

    agreed: Agreement
    cost: float


class Rival(ABC, Generic[Setting]):
    """A method of one parameter; `settings` come boldest, and so cheapest, first."""

    name: str
    settings: tuple[Setting, ...]

    def __init__(self, network: Network) -> None:
        self.network = network
        self.setting: Setting | None = None
        self._note = "not calibrated"

    def calibrate(self, shots: Sequence[Shot], target: float) -> None:
        """Choose the boldest setting that reaches the target. O(frames x settings)."""
        full_ms = least_ms(self.network.full, shots)
        self.setting, self._note = None, "off: full pass always"
        for setting in self.settings:
            trial = self.trial(shots, setting, full_ms, target)
            if trial is None or trial.agreed.f1 < target:
                continue
            if trial.cost < 1:
                self.setting = setting
                self._note = f"{setting:.6g}, F1 {trial.agreed.f1:.3f} when calibrated"
            break
        self.cut("")

    def note(self) -> str:
        """Return the setting and how it did in calibration."""
        return self._note

    @property
    def reuses(self) -> bool:
        """Return whether it does anything but full passes."""
        return self.setting is not None

    @property
    def label(self) -> str:
        """Return name and setting."""
        return f"{self.name} {self.setting:.6g}" if self.reuses else f"{self.name} off"

    def at(self, setting: Setting) -> Self:
        """Return the same rival at another setting, without state."""
        other = type(self)(self.network)
        other.setting = setting
        other.cut("")
        return other

    def answer(self, frame: Canvas, at_s: float) -> list[Box]:
        """Return the boxes of the next frame."""
        if self.setting is None:
            return self.network.full(frame)
        return self.reused(frame, self.setting)

    @abstractmethod
    def trial(
        self, shots: Sequence[Shot], setting: Setting, full_ms: float, target: float
    ) -> Trial | None:
        """Try a setting on recorded frames; None when it need not be tried to the end."""

    @abstractmethod
    def cut(self, camera: str) -> None:
        """Forget the state."""

    @abstractmethod
    def reused(self, frame: Canvas, setting: Setting) -> list[Box]:
        """Return the boxes of the next frame, reusing what the setting allows."""


class Skipper(Rival[Setting]):
    """A rival that either runs the full pass or repeats the last boxes."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._boxes: list[Box] | None = None

    def cut(self, camera: str) -> None:
        """Forget the last boxes and what they came from."""
        self._boxes = None

    def reused(self, frame: Canvas, setting: Setting) -> list[Box]:
        """Repeat the last boxes unless this frame must run."""
        if self.must_run(frame, setting) or self._boxes is None:
            self._boxes = self.network.full(frame)
        return self._boxes

    @abstractmethod
    def must_run(self, frame: Canvas, setting: Setting) -> bool:
        """Look at the next frame; return whether it needs a full pass."""

    def replayed(
        self, frame: Canvas, setting: Setting, boxes: list[Box], full_s: float
    ) -> tuple[list[Box], float]:
        """Return what `reused` would, and its thread-CPU seconds, without running the network.

        `boxes` and `full_s` are the full pass's answer to this frame and its time.
        """
        started_s = time.thread_time()
        fresh = self.must_run(frame, setting)
        spent_s = time.thread_time() - started_s
        if fresh or self._boxes is None:
            self._boxes, spent_s = boxes, spent_s + full_s
        return self._boxes, spent_s

    def trial(
        self, shots: Sequence[Shot], setting: Setting, full_ms: float, target: float
    ) -> Trial:
        """Replay the decisions on recorded frames."""
        agreed, count, spent_s = Agreement(), 0, 0.0
        for shot in shots:
            self.cut(shot.camera)
            for frame, boxes in zip(shot.frames, shot.boxes, strict=True):
                given, took_s = self.replayed(frame, setting, boxes, full_ms / 1e3)
                spent_s += took_s
                agreed, count = agreed.plus(agreement(boxes, given)), count + 1
        return Trial(agreed, spent_s * 1e3 / full_ms / count)


class EveryKth(Skipper[int]):
    """Run every k-th frame."""

    name = "every k-th frame"
    settings = (6, 4, 3, 2)

    def cut(self, camera: str) -> None:
        """Start counting again."""
        super().cut(camera)
        self._count = 0

    def must_run(self, frame: Canvas, setting: int) -> bool:
        """Count to k."""
        self._count += 1
        return self._count % setting == 1


class ThumbnailCache(Skipper[float]):
    """Repeat the last full pass's boxes while the thumbnail looks like that frame's."""

    name = "thumbnail cache"
    settings = tuple((1 - np.geomspace(2e-2, 5e-6, 21)).tolist())

    def cut(self, camera: str) -> None:
        """Forget the reference."""
        super().cut(camera)
        self._reference: Floats | None = None

    def must_run(self, frame: Canvas, setting: float) -> bool:
        """Compare with the frame of the last full pass; make this one that when it differs."""
        seen = thumbnail(frame.pixels)
        if self._reference is not None and float((seen * self._reference).sum()) > setting:
            return False
        self._reference = seen
        return True


class MotionGate(Skipper[float]):
    """Run only when enough colour values differ by more than 15 levels from the last frame."""

    name = "motion gate"
    settings = (*np.geomspace(0.05, 5e-5, 19).tolist(), 0.0)

    def cut(self, camera: str) -> None:
        """Forget the last frame."""
        super().cut(camera)
        self._last: Pixels | None = None

    def must_run(self, frame: Canvas, setting: float) -> bool:
        """Count the values that moved."""
        last, self._last = self._last, frame.pixels
        if last is None:
            return True
        moved = np.count_nonzero(difference(last, frame.pixels) > GREY_LEVELS)
        return bool(moved > setting * last.size)


class CropDelta(Rival[float]):
    """Run the network on the surroundings of what changed and paste its output cells.

    The crop is the bounding box of the changed tiles, 64 px larger on each side and aligned to
    32; its outer 32 px are computed but not pasted unless they lie at the image's border.
    """

    name = "crop delta"
    settings = (24.0, 16.0, 12.0, 8.0, 6.0, 5.0, 4.0, 3.5, 3.0, 2.5, 2.0, 1.5)

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.cut("")

    def cut(self, camera: str) -> None:
        """Forget the cached outputs and the frame that they belong to."""
        self._reference: Pixels | None = None
        self._cells = np.zeros((0, 5), np.float32)
        self._boxes: list[Box] = []

    def reused(self, frame: Canvas, setting: float) -> list[Box]:
        """Bring the cached outputs up to date where the frame changed, and decode them."""
        pixels = frame.pixels
        if self._reference is None or self._reference.shape != pixels.shape:
            return self._refresh(frame)
        found = changed_box(self._reference, pixels, setting)
        if found is None:
            return self._boxes
        crop = grown(found, HALO_PX, pixels.shape)
        if share(crop, pixels.shape) > LARGEST_CROP:
            return self._refresh(frame)
        top, bottom, left, right = crop
        fresh = self.network.cells(pixels[top:bottom, left:right])
        self._paste(fresh, crop, grown(found, KEPT_HALO_PX, pixels.shape), pixels.shape)
        top, bottom, left, right = found
        self._reference[top:bottom, left:right] = pixels[top:bottom, left:right]
        self._boxes = self.network.decode(self._cells, frame)
        return self._boxes

    def _refresh(self, frame: Canvas) -> list[Box]:
        self._reference = frame.pixels.copy()
        self._cells = self.network.cells(frame.pixels)
        self._boxes = self.network.decode(self._cells, frame)
        return self._boxes

    def _paste(self, fresh: Floats, crop: Sides, kept: Sides, shape: tuple[int, ...]) -> None:
        columns = fresh.shape[1]
        to, of = 0, 0
        for stride in self.network.strides:
            high, wide = shape[0] // stride, shape[1] // stride
            rows, across = (crop[1] - crop[0]) // stride, (crop[3] - crop[2]) // stride
            whole = self._cells[to : to + high * wide].reshape(high, wide, columns)
            part = fresh[of : of + rows * across].reshape(rows, across, columns)
            t, b, left, right = (side // stride for side in kept)
            y, x = crop[0] // stride, crop[2] // stride
            whole[t:b, left:right] = part[t - y : b - y, left - x : right - x]
            to, of = to + high * wide, of + rows * across

    def trial(
        self, shots: Sequence[Shot], setting: float, full_ms: float, target: float
    ) -> Trial | None:
        """Run it, unless the crops alone show that it cannot pay."""
        if self._expected_cost(shots, setting) > 1:
            return None
        agreed, count, spent_s = Agreement(), 0, 0.0
        left = sum(len(boxes) for shot in shots for boxes in shot.boxes)
        for shot in shots:
            self.cut(shot.camera)
            for frame, boxes in zip(shot.frames, shot.boxes, strict=True):
                started_s = time.thread_time()
                given = self.reused(frame, setting)
                spent_s += time.thread_time() - started_s
                agreed, count = agreed.plus(agreement(boxes, given)), count + 1
                left -= len(boxes)
                if agreed.plus(Agreement(left, left, left)).f1 < target:
                    return None
        return Trial(agreed, spent_s * 1e3 / full_ms / count)

    def _expected_cost(self, shots: Sequence[Shot], setting: float) -> float:
        """Return the mean share of the image that would run."""
        total, count = 0.0, 0
        for shot in shots:
            reference = shot.frames[0].pixels.copy()
            total, count = total + 1, count + 1
            for frame in shot.frames[1:]:
                pixels, count = frame.pixels, count + 1
                found = changed_box(reference, pixels, setting)
                if found is None:
                    continue
                part = share(grown(found, HALO_PX, pixels.shape), pixels.shape)
                if part > LARGEST_CROP:
                    found, part = (0, pixels.shape[0], 0, pixels.shape[1]), 1.0
                total += part
                top, bottom, left, right = found
                reference[top:bottom, left:right] = pixels[top:bottom, left:right]
        return total / count


Sides = tuple[int, int, int, int]


def grown(box: Sides, by_px: int, shape: tuple[int, ...]) -> Sides:
    """Return (top, bottom, left, right) grown on all sides and aligned, within the image."""
    top, bottom, left, right = box
    return (
        max(0, top - by_px) // ALIGN_PX * ALIGN_PX,
        min(shape[0], -(-(bottom + by_px) // ALIGN_PX) * ALIGN_PX),
        max(0, left - by_px) // ALIGN_PX * ALIGN_PX,
        min(shape[1], -(-(right + by_px) // ALIGN_PX) * ALIGN_PX),
    )


def share(box: Sides, shape: tuple[int, ...]) -> float:
    """Return the part of the image that a box covers."""
    return (box[1] - box[0]) * (box[3] - box[2]) / (shape[0] * shape[1])


def changed_box(old: Pixels, new: Pixels, threshold: float) -> Sides | None:
    """Return (top, bottom, left, right) of the 8-px tiles whose mean |difference| exceeds it."""
    height, width = new.shape[:2]
    change = difference(old, new).reshape(height // TILE, TILE, width * 3)
    rows = change.sum(axis=1, dtype=np.uint16)
    tiles = block_sums(rows, TILE * 3)
    changed = tiles > threshold * TILE * TILE * 3
    down, across = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    if not len(down):
        return None
    top, bottom = int(down[0]) * TILE, (int(down[-1]) + 1) * TILE
    return top, bottom, int(across[0]) * TILE, (int(across[-1]) + 1) * TILE


def block_sums(lines: npt.NDArray[np.uint16], wide: int) -> Floats:
    """Return the sums of `wide` neighbours along the last axis, float32[h, w / wide]."""
    blocks = lines.astype(np.float32).reshape(len(lines), -1, wide)
    sums: Floats = blocks @ np.ones(wide, np.float32)
    return sums


def difference(old: Pixels, new: Pixels) -> Pixels:
    """Return |new - old| of uint8 arrays of one shape."""
    high = np.maximum(old, new)
    np.subtract(high, np.minimum(old, new), out=high)
    return high


def thumbnail(pixels: Pixels) -> Floats:
    """Return 80 x 48 block means of grey, flat and of length one."""
    rows, columns = THUMBNAIL
    high, wide = pixels.shape[0] // rows, pixels.shape[1] // columns
    area = pixels[: rows * high, : columns * wide].reshape(rows, high, columns * wide * 3)
    lines = area.sum(axis=1, dtype=np.uint16)
    sums = block_sums(lines, wide * 3).ravel()
    flat: Floats = sums / np.sqrt((sums * sums).sum())
    return flat


def least_ms(work: Callable[[Canvas], object], shots: Sequence[Shot]) -> float:
    """Return the least thread-CPU milliseconds of `work` on the first frames."""
    times_ms = []
    for frame in shots[0].frames[:8]:
        started_s = time.thread_time()
        work(frame)
        times_ms.append((time.thread_time() - started_s) * 1e3)
    return min(times_ms)


def rivals(network: Network) -> list[Rival[Any]]:
    """Return the four, not calibrated yet."""
    return [ThumbnailCache(network), EveryKth(network), MotionGate(network), CropDelta(network)]
