"""The footage that differential inference is measured on: three real clips and a drawn crowd.

Owns decoding, scaling and the split of each camera's frames into a calibration part (the first
40 %) and a scored part; never runs a detector on what it yields. Invariants: a frame is yielded
once per pass and in order, no frame of the calibration part is scored, nothing is looped, and
the crowd of a seed is always the same. Only calibration parts are held in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from models.accelerators import AcceleratorSpec
from models.images import Canvas, Pixels, Scaler, canvas
from models.manifest import load_manifest
from models.sessions import open_warm
from models.wire import Box

CALIBRATION_SHARE = 0.4
PAD_VALUE = 114
MULTIPLE = 32
WALKERS = tuple(f"videos/pose2sim_multiperson/cam0{number}.mp4" for number in range(1, 5))
CROWD_SIZE = (384, 640)
CROWD_FRAMES, CROWD_FPS, CROWD_PEOPLE = 300, 15, 18
LEAVES_PX_PER_FRAME = 2
CELL = 4
DIRTY_GREY_LEVELS = 4.0  # sensor noise alone moves a cell by 1.7

Timed = tuple[float, Canvas]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shot:
    """Hold one camera's uninterrupted frames; `boxes` are the full pass's, frame by frame."""

    camera: str
    times_s: list[float]
    frames: list[Canvas]
    boxes: list[list[Box]]


@dataclass(frozen=True)
class Camera:
    """Name a fixed camera and how to read its `count` frames again from the start."""

    name: str
    count: int
    read: Callable[[], Iterator[Timed]]

    @property
    def calibration_count(self) -> int:
        return int(self.count * CALIBRATION_SHARE)

    def calibration(self) -> Iterator[Timed]:
        """Yield the first 40 % as (seconds, canvas)."""
        return itertools.islice(self.read(), self.calibration_count)

    def scored(self) -> Iterator[Timed]:
        """Yield the rest."""
        return itertools.islice(self.read(), self.calibration_count, None)


@dataclass(frozen=True)
class Clip:
    """Name a clip, its cameras and the models that it is measured with."""

    name: str
    cameras: tuple[Camera, ...]
    persons_only: bool = True


def clip_named(name: str, assets: Path) -> Clip | list[str]:
    """Open a clip, or return the files it misses."""
    files = {
        "quiet": ("videos/one-by-one-person-detection.mp4",),
        "walkers": WALKERS,
        "highway": ("videos/bgs_video02.avi",),
        "crowd": WALKERS,
    }[name]
    paths = [assets / file for file in files]
    if missing := [str(path) for path in paths if not path.is_file()]:
        return missing
    if name == "crowd":
        return Clip(name, (Camera("crowd", CROWD_FRAMES, lambda: crowd(paths)),))
    width = 320 if name == "highway" else 640
    return Clip(name, tuple(_camera(path, width) for path in paths), name != "highway")


def _camera(path: Path, width: int) -> Camera:
    with av.open(str(path), "r") as container:
        count = container.streams.video[0].frames
    return Camera(path.stem, count, lambda: decoded(path, width))


def decoded(path: Path, width: int) -> Iterator[Timed]:
    """Yield every frame of a file as (media seconds, canvas at this width)."""
    scaler = Scaler()
    with av.open(str(path), "r") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        fps = float(stream.average_rate or 25)  # the stamps of some files are out of order
        for index, frame in enumerate(container.decode(video=0)):
            height = round(frame.height * width / frame.width)
            pixels = scaler.to_bgr(frame, width, height)
            size = -(-height // MULTIPLE) * MULTIPLE, -(-width // MULTIPLE) * MULTIPLE
            yield (
                index / fps,
                canvas(pixels, max(width, height), size, PAD_VALUE, scaler),
            )


def dirty_share(first: Pixels, second: Pixels) -> float:
    """Return the share of 4-px cells whose mean |difference| exceeds four grey levels."""
    change = np.abs(first.astype(np.int16) - second)
    height, width = change.shape[:2]
    cells = change.reshape(height // CELL, CELL, width // CELL, CELL * 3).mean(axis=(1, 3))
    return float((cells > DIRTY_GREY_LEVELS).mean())


# The crowd: people cut out of the walkers' footage cross a textured square under moving leaves.


@dataclass
class Walker:
    """Hold one cut-out that plays forwards and backwards while it crosses the scene."""

    views: list[tuple[Floats, Floats]]
    x: float
    y: float
    speed: float
    phase: int

    def draw(self, scene: Floats, index: int) -> None:
        """Blend the cut-out into float32[h, w, 3] where it overlaps the scene."""
        period = 2 * len(self.views) - 2
        step = (index + self.phase) % period
        pixels, alpha = self.views[min(step, period - step)]
        high, wide = alpha.shape[:2]
        left = round(self.x + self.speed * index)
        top = round(self.y + 3 * np.sin(index / 3 + self.phase))
        x0, x1 = max(0, left), min(scene.shape[1], left + wide)
        y0, y1 = max(0, top), min(scene.shape[0], top + high)
        if x0 >= x1 or y0 >= y1:
            return
        part = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        region = scene[y0:y1, x0:x1]
        region += (pixels[part] - region) * alpha[part]

    def gone(self, index: int, width: int) -> bool:
        """Return whether it has left the scene on the side it walks to."""
        at = self.x + self.speed * index
        return at > width if self.speed > 0 else at < -self.views[0][1].shape[1]


def crowd(paths: list[Path], seed: int = 4) -> Iterator[Timed]:
    """Yield `CROWD_FRAMES` frames of a busy square, drawn from the walkers' footage.

    O(people x pixels) per frame.
    """
    rng = np.random.default_rng(seed)
    tracks = [track for path in paths for track in cut_outs(path)]
    height, width = CROWD_SIZE
    ground = texture(CROWD_SIZE, rng, (2, 8, 32))
    leaves = texture((height, width + LEAVES_PX_PER_FRAME * CROWD_FRAMES), rng, (2, 6))
    people = [_enter(tracks, rng, 0, anywhere=True) for _ in range(CROWD_PEOPLE)]
    depth = np.arange(height, dtype=np.float32)[:, None, None] / height
    shade: Floats = np.clip((0.4 - depth) * 10, 0, 1)
    for index in range(CROWD_FRAMES):
        drift = LEAVES_PX_PER_FRAME * index
        scene: Floats = ground + (leaves[:, drift : drift + width] - ground) * shade
        for place, person in enumerate(people):
            if person.gone(index, width):
                person = people[place] = _enter(tracks, rng, index, anywhere=False)
            person.draw(scene, index)
        scene += 1.5 * rng.standard_normal(scene.shape, np.float32)
        pixels = np.clip(np.rint(scene), 0, 255).astype(np.uint8)
        yield index / CROWD_FPS, Canvas(pixels, width, height)


def texture(size: tuple[int, int], rng: np.random.Generator, scales_px: tuple[int, ...]) -> Floats:
    """Return float32[h, w, 3] of random greys, tinted, at several scales, mean about 120."""
    total = np.full((*size, 3), 120, np.float32)
    for scale in scales_px:
        coarse = rng.normal(0, 14, (-(-size[0] // scale), -(-size[1] // scale), 1))
        coarse = coarse + rng.normal(0, 4, (*coarse.shape[:2], 3))
        fine = coarse.repeat(scale, axis=0).repeat(scale, axis=1)
        total += fine[: size[0], : size[1]].astype(np.float32)
    return total


def cut_outs(path: Path) -> list[list[Pixels]]:
    """Return, per person that our detector finds at the start, the same window frame by frame."""
    model = load_manifest().variants["small"]
    session = open_warm(model, AcceleratorSpec("cpu0", "cpu"))
    scaler = Scaler()
    windows: list[tuple[slice, slice]] = []
    tracks: list[list[Pixels]] = []
    for index, (_, frame) in enumerate(decoded(path, 320)):
        image = frame.pixels[: frame.height, : frame.width]
        if not index:
            found = [box for box in session.run(session.canvas(image, scaler)) if box[4] > 0.6]
            windows = [_window(box, frame) for box in found]
            tracks = [[] for _ in windows]
        if index % 2 == 0:
            for track, window in zip(tracks, windows, strict=True):
                track.append(image[window].copy())
    return tracks


def _window(box: Box, frame: Canvas) -> tuple[slice, slice]:
    """Return the box in pixels, an eighth wider and a sixteenth higher on each side."""
    wide, high = (box[2] - box[0]) / 8, (box[3] - box[1]) / 16
    rows = max(0.0, box[1] - high) * frame.height, min(1.0, box[3] + high) * frame.height
    columns = max(0.0, box[0] - wide) * frame.width, min(1.0, box[2] + wide) * frame.width
    return slice(*map(int, rows)), slice(*map(int, columns))


def _enter(
    tracks: list[list[Pixels]], rng: np.random.Generator, index: int, *, anywhere: bool
) -> Walker:
    """Return a new person, lower in the picture the taller; at an edge unless `anywhere`."""
    track = tracks[rng.integers(len(tracks))]
    tall = rng.uniform(110, 230)
    scale = tall / track[0].shape[0]
    high, wide = round(tall), max(1, round(track[0].shape[1] * scale))
    speed = float(rng.choice([-1, 1]) * rng.uniform(3.0, 8.0))
    x = rng.uniform(-wide, CROWD_SIZE[1]) if anywhere else (-wide if speed > 0 else CROWD_SIZE[1])
    y = CROWD_SIZE[0] - high - rng.uniform(0, 230 - tall + 60)
    scaler, flip = Scaler(), int(rng.choice([-1, 1]))
    alpha = _feathered(high, wide)
    views = [
        (scaler.resize(view, wide, high)[:, ::flip].astype(np.float32), alpha) for view in track
    ]
    return Walker(views, x - speed * index, max(0.0, y), speed, int(rng.integers(2 * len(views))))


def _feathered(high: int, wide: int) -> Floats:
    """Return float32[high, wide, 1] that falls from one inside to zero along a rounded border."""
    y = np.abs(np.linspace(-1, 1, high, dtype=np.float32))[:, None]
    x = np.abs(np.linspace(-1, 1, wide, dtype=np.float32))[None]
    alpha: Floats = np.clip((1 - (x**4 + y**4)) * 6, 0, 1)[..., None].astype(np.float32)
    return alpha
