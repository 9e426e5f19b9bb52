"""Generated scenes: a camera's stand-in where no footage can be had.

Owns the picture of an invented room that stands empty for long spells and is crossed from
time to time by one or two drawn walkers (or, on request, is never empty). Never reads a clock,
a file or global randomness, and is never passed off as footage: whoever shows it says
"generated".

Invariant: a frame is a pure function of (seed, size, index, fps), and no two frames of a scene
carry the same noise (see `_NOISE_STEPS`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]
Colour = tuple[float, float, float]
Point = tuple[float, float]

SPELL_S = 24.0
"""Time is cut into spells of this length; each begins empty and may hold one visit."""
EMPTY_S = 7.0
"""Each spell is empty for at least this long."""
BUSY_SEED = 1_000_000
"""Scenes with this seed or a greater one are busy: somebody is always there."""

_VISIT_CHANCE = 0.75
_BUSY_VISITS = 8  # per spell: a new walker every three seconds, each in view for four to seven
_NOISE_SIGMA = 2.0
_HALF_NOISE_LIMIT = 6  # each of the two noise layers is clipped to this, in grey levels
# Two noise layers slide over their pools in steps that are coprime to the pools' (prime) numbers
# of offsets, so the pair of offsets recurs only after their product, some 10^11 frames.
_NOISE_OFFSETS = (262_147, 262_151)
_NOISE_STEPS = (101_027, 74_093)
_DARKEST, _BRIGHTEST = 2 * _HALF_NOISE_LIMIT + 4, 255 - 2 * _HALF_NOISE_LIMIT - 4


@dataclass(frozen=True)
class Walker:
    """One drawn person of a visit: where and when, how large, in what clothes (BGR)."""

    enter_s: float
    speed: float  # body heights per second; negative walks to the left
    height: float  # fraction of the frame's height
    ground: float  # where the feet are, as a fraction of the frame's height
    gait: float  # phase offset, radians
    skin: Colour
    shirt: Colour
    trousers: Colour
    hair: Colour


class Scene:
    """Draw the frames of one generated scene.

    `width` and `height` are in pixels, at least 64 each; raises ValueError otherwise. Costs a few
    megabytes and some 50 ms to set up; a frame then takes below 2 ms at the default size.
    """

    def __init__(self, seed: int, width: int = 640, height: int = 368) -> None:
        if width < 64 or height < 64:
            raise ValueError(f"a scene needs at least 64 x 64 pixels, not {width} x {height}")
        self.seed, self.width, self.height = seed, width, height
        rng = np.random.default_rng([seed & 0xFFFFFFFF, 0])
        self._background = _room(rng, width, height)
        size = width * height * 3
        # int8 noise seen as uint8: adding modulo 256 is a plain signed addition as long as the
        # picture keeps clear of both ends, and it is several times cheaper than clipping.
        self._noise = [_noise_pool(rng, size + offsets) for offsets in _NOISE_OFFSETS]
        self._start = rng.integers(0, min(_NOISE_OFFSETS), 2)

    def frame(self, index: int, fps: float) -> Image:
        """Draw frame `index` (>= 0) of a camera of `fps` frames/s: uint8[h, w, 3], BGR.

        Raises ValueError for a negative index or a rate that is not positive.
        """
        if index < 0 or not fps > 0:
            raise ValueError(f"no frame {index} at {fps} frames/s")
        now_s = index / fps
        image = self._background.copy()
        spell = int(now_s // SPELL_S)
        # Those who entered late in a busy spell are still there in the next.
        earlier = self.walkers(spell - 1) if self.seed >= BUSY_SEED and spell > 0 else []
        for walker in sorted(earlier + self.walkers(spell), key=lambda walker: walker.ground):
            self._draw(image, walker, now_s)
        flat = image.reshape(-1)
        for layer, pool in enumerate(self._noise):
            offset = int(self._start[layer]) + index * _NOISE_STEPS[layer]
            offset %= _NOISE_OFFSETS[layer]
            flat += pool[offset : offset + flat.size]
        return image

    def walkers(self, spell: int) -> list[Walker]:
        """List who enters the room during spell number `spell` (often nobody), far ones first."""
        rng = np.random.default_rng([self.seed & 0xFFFFFFFF, 1, spell])
        start_s = spell * SPELL_S
        if self.seed >= BUSY_SEED:
            gap_s = SPELL_S / _BUSY_VISITS
            enter_s = [start_s + (i + rng.uniform(0, 0.7)) * gap_s for i in range(_BUSY_VISITS)]
        elif rng.random() > _VISIT_CHANCE:
            return []
        else:
            enter_s = [start_s + rng.uniform(EMPTY_S, SPELL_S - 14.0)]
            if rng.random() < 0.4:
                enter_s.append(enter_s[0] + rng.uniform(0.8, 2.5))
        return sorted((_walker(rng, when_s) for when_s in enter_s), key=lambda w: w.ground)

    def _draw(self, image: Image, walker: Walker, now_s: float) -> None:
        tall = walker.height * self.height
        travel = (now_s - walker.enter_s) * abs(walker.speed) * tall - 0.4 * tall
        if not -0.4 * tall < travel < self.width + 0.4 * tall:
            return
        facing = 1.0 if walker.speed > 0 else -1.0
        x = travel if facing > 0 else self.width - travel
        # One stride (two steps) covers 0.84 of the body's height.
        phase = walker.gait + math.tau * travel / (0.84 * tall)
        feet = walker.ground * self.height
        _shadow(image, (x, feet), tall)
        # Work on the walker's own rectangle, so that the cost follows its size.
        left, right = max(0, int(x - 0.42 * tall)), min(self.width, int(x + 0.42 * tall) + 1)
        top, bottom = max(0, int(feet - 1.04 * tall)), min(self.height, int(feet + 0.03 * tall) + 1)
        if left < right and top < bottom:
            view = image[top:bottom, left:right]
            _person(view, (x - left, feet - top), tall, phase, facing, walker)


def _walker(rng: np.random.Generator, enter_s: float) -> Walker:
    depth = rng.uniform(0.0, 1.0)  # 0 at the back of the room
    return Walker(
        enter_s=enter_s,
        speed=float(rng.uniform(0.62, 0.85) * rng.choice([-1, 1])),
        height=0.52 + 0.22 * depth,
        ground=0.86 + 0.1 * depth,
        gait=rng.uniform(0.0, math.tau),
        skin=_pick(rng, [(140, 172, 215), (95, 130, 180), (62, 88, 130)]),
        shirt=_pick(rng, [(60, 60, 170), (150, 95, 45), (70, 130, 70), (190, 190, 195)]),
        trousers=_pick(rng, [(85, 55, 40), (50, 50, 55), (90, 110, 125)]),
        hair=_pick(rng, [(30, 35, 45), (45, 75, 115), (110, 115, 120)]),
    )


def _pick(rng: np.random.Generator, colours: list[Colour]) -> Colour:
    return colours[int(rng.integers(len(colours)))]


def _noise_pool(rng: np.random.Generator, size: int) -> Image:
    # Two layers add up, so each carries half of the variance.
    layer = rng.standard_normal(size, dtype=np.float32) * (_NOISE_SIGMA / math.sqrt(2))
    rounded = np.rint(layer).clip(-_HALF_NOISE_LIMIT, _HALF_NOISE_LIMIT)
    pool: Image = rounded.astype(np.int8).view(np.uint8)
    return pool


def _cloud(rng: np.random.Generator, width: int, height: int, cell: int) -> Plane:
    """Smooth noise in about -1..1: float32[height, width], features `cell` pixels wide."""
    grid = rng.uniform(-1, 1, (height // cell + 2, width // cell + 2)).astype(np.float32)
    y, x = np.arange(height) / cell, np.arange(width) / cell
    row, column = y.astype(int), x.astype(int)
    fy, fx = (y - row).astype(np.float32)[:, None], (x - column).astype(np.float32)[None, :]
    upper = grid[row][:, column] * (1 - fx) + grid[row][:, column + 1] * fx
    lower = grid[row + 1][:, column] * (1 - fx) + grid[row + 1][:, column + 1] * fx
    return np.asarray(upper * (1 - fy) + lower * fy, dtype=np.float32)


def _room(rng: np.random.Generator, width: int, height: int) -> Image:
    """Paint the fixed background: a wall with a window, a door and a picture, and a floor."""
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(0, 1, width, dtype=np.float32)[None, :]
    horizon = float(rng.uniform(0.56, 0.64))
    room = np.empty((height, width, 3), dtype=np.float32)
    wall = np.array([rng.uniform(150, 175), rng.uniform(160, 180), rng.uniform(165, 190)])
    room[:] = wall * (0.82 + 0.25 * y)[:, :, None]
    flip = bool(rng.random() < 0.5)

    def block(x0: float, x1: float, y0: float, y1: float, colour: Colour) -> None:
        if flip:
            x0, x1 = 1 - x1, 1 - x0
        rows = slice(int(y0 * height), int(y1 * height))
        room[rows, int(x0 * width) : int(x1 * width)] = colour

    door = float(rng.uniform(0.68, 0.78))
    block(door - 0.012, door + 0.152, 0.14, horizon, (120, 132, 140))  # its frame
    block(door, door + 0.14, 0.16, horizon, (62, 88, 118))
    block(door + 0.015, door + 0.02, 0.38, 0.4, (190, 200, 205))
    glass = float(rng.uniform(0.08, 0.2))
    block(glass - 0.012, glass + 0.232, 0.1, 0.46, (205, 208, 210))
    for pane in range(2):
        block(glass + 0.115 * pane, glass + 0.105 + 0.115 * pane, 0.12, 0.44, (222, 205, 180))
    poster = _pick(rng, [(110, 70, 60), (60, 95, 140), (80, 110, 70)])
    block(0.47, 0.57, 0.17, 0.36, (45, 45, 48))
    block(0.478, 0.562, 0.185, 0.345, poster)
    block(0.0, 1.0, horizon - 0.025, horizon, (105, 112, 118))  # skirting board
    # Floor boards run to a vanishing point above the horizon and darken with distance.
    floor = (y > horizon)[:, 0]
    depth = (y[floor] - horizon) / (1 - horizon)
    boards = ((x - 0.5) / (0.35 + 0.65 * depth) * 14) % 1.0
    shade = (0.72 + 0.28 * depth) * np.where(boards < 0.05, 0.72, 1.0)
    room[floor] = np.array([82, 112, 142], dtype=np.float32) * shade[:, :, None]
    texture = 5 * _cloud(rng, width, height, 46) + 3.5 * _cloud(rng, width, height, 9)
    texture += 2.5 * _cloud(rng, width, height, 3)
    light = 1.06 - 0.22 * (x - 0.35) ** 2 - 0.12 * (y - 0.4) ** 2
    room = (room + texture[:, :, None]) * light[:, :, None]
    return room.clip(_DARKEST, _BRIGHTEST).astype(np.uint8)


def _shadow(image: Image, at: Point, tall: float) -> None:
    """Darken the floor below a walker, softly."""
    x, y = at
    reach, depth = 0.24 * tall, 0.035 * tall
    left, right = max(0, int(x - reach)), min(image.shape[1], int(x + reach) + 1)
    top, bottom = max(0, int(y - depth)), min(image.shape[0], int(y + depth) + 1)
    if left >= right or top >= bottom:
        return
    u = (np.arange(left, right, dtype=np.float32)[None, :] - x) / reach
    v = (np.arange(top, bottom, dtype=np.float32)[:, None] - y) / depth
    dark = 1 - 0.45 * (1 - u * u - v * v).clip(0, 1)
    part = image[top:bottom, left:right]
    part[:] = (part * dark[:, :, None]).clip(_DARKEST, _BRIGHTEST)


def _limb(view: Image, a: Point, b: Point, radii: tuple[float, float], colour: Colour) -> None:
    """Paint a tapered, rounded, shaded cylinder from `a` to `b` into `view`, edges smoothed."""
    height, width = view.shape[:2]
    wide = max(radii) + 1
    left, right = max(0, int(min(a[0], b[0]) - wide)), min(width, int(max(a[0], b[0]) + wide) + 2)
    top, bottom = max(0, int(min(a[1], b[1]) - wide)), min(height, int(max(a[1], b[1]) + wide) + 2)
    if left >= right or top >= bottom:
        return
    x = np.arange(left, right, dtype=np.float32)[None, :] - a[0]
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - a[1]
    dx, dy = b[0] - a[0], b[1] - a[1]
    along = ((x * dx + y * dy) / max(dx * dx + dy * dy, 1e-6)).clip(0, 1)
    off_x, off_y = x - along * dx, y - along * dy
    radius = radii[0] + (radii[1] - radii[0]) * along
    distance = np.sqrt(off_x * off_x + off_y * off_y)
    cover = (radius - distance + 0.5).clip(0, 1)[:, :, None]
    # Light comes from the upper left; the edge that faces away is darker.
    shade = 1 - 0.28 * (distance / radius).clip(0, 1) ** 2 - 0.14 * (off_x + off_y) / radius
    paint = np.asarray(colour, dtype=np.float32) * shade[:, :, None]
    part = view[top:bottom, left:right]
    part[:] = (part + cover * (paint.clip(_DARKEST, _BRIGHTEST) - part)).astype(np.uint8)


def _person(
    view: Image, at: Point, tall: float, phase: float, facing: float, walker: Walker
) -> None:
    """Draw one walker in profile, feet at `at`, `tall` pixels high, in gait phase `phase`."""
    x, feet = at
    bob = 0.012 * tall * math.cos(2 * phase)

    def swing(joint: Point, angle: float, length: float) -> Point:
        return joint[0] + facing * math.sin(angle) * length, joint[1] + math.cos(angle) * length

    hip = (x, feet - 0.5 * tall + bob)
    neck = (x + facing * 0.025 * tall, feet - 0.82 * tall + bob)
    shoulder = (neck[0], neck[1] + 0.045 * tall)
    dim = (0.72, 1.0)  # the far limbs are in the body's shadow

    def leg(angle_phase: float, light: float) -> None:
        thigh = 0.46 * math.sin(angle_phase)
        bend = 0.12 + 0.75 * max(0.0, math.cos(angle_phase - 0.35))
        knee = swing(hip, thigh, 0.25 * tall)
        ankle = swing(knee, thigh - bend, 0.235 * tall)
        toe = swing(ankle, thigh - bend + 1.35, 0.085 * tall)
        cloth = _lit(walker.trousers, light)
        _limb(view, ankle, toe, (0.026 * tall, 0.02 * tall), _lit((45, 42, 40), light))
        _limb(view, knee, ankle, (0.044 * tall, 0.03 * tall), cloth)
        _limb(view, hip, knee, (0.062 * tall, 0.046 * tall), cloth)

    def arm(angle_phase: float, light: float) -> None:
        upper = 0.5 * math.sin(angle_phase)
        elbow = swing(shoulder, upper, 0.165 * tall)
        hand = swing(elbow, upper + 0.35, 0.15 * tall)
        _limb(view, elbow, hand, (0.03 * tall, 0.022 * tall), _lit(walker.skin, light))
        _limb(view, shoulder, elbow, (0.042 * tall, 0.033 * tall), _lit(walker.shirt, light))

    arm(phase, dim[0])
    leg(phase + math.pi, dim[0])
    leg(phase, dim[1])
    _limb(view, (hip[0], hip[1] - 0.02 * tall), shoulder, (0.07 * tall, 0.082 * tall), walker.shirt)
    head = (neck[0] + facing * 0.012 * tall, neck[1] - 0.095 * tall)
    _limb(view, neck, (neck[0], neck[1] - 0.04 * tall), (0.033 * tall, 0.03 * tall), walker.skin)
    back = (head[0] - facing * 0.014 * tall, head[1] - 0.012 * tall)
    _limb(view, (back[0], back[1] + 0.02 * tall), back, (0.05 * tall, 0.06 * tall), walker.hair)
    face = (head[0] + facing * 0.018 * tall, head[1] + 0.014 * tall)
    _limb(view, face, (face[0], face[1] + 0.03 * tall), (0.046 * tall, 0.038 * tall), walker.skin)
    arm(phase + math.pi, dim[1])


def _lit(colour: Colour, light: float) -> Colour:
    return colour[0] * light, colour[1] * light, colour[2] * light
