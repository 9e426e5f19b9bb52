"""Training canvases: crops of labelled frames, mosaics, pasted people, changed light.

Owns the random picture making; draws every number from the generator it is given, so one seed
gives one sequence of canvases. Geometry is in unit pixels (frames 640 px long); a scale of .5
is what a detector sees that runs at a longer side of 320 px.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from models.zoo.footage import INDOOR, PAD_VALUE, Floats, Pixels

SURE_SCORE = 0.6  # people pasted elsewhere must be ones the teacher is sure of
DOUBTFUL_SCORE = 0.2  # boxes cut or covered to this are neither person nor background
PASTED_SCORE = 0.9


@dataclass(frozen=True)
class Labelled:
    """One training frame: uint8[h, w, 3] at unit size, and the teacher's boxes [n, 5]."""

    clip: str
    image: Pixels
    boxes: Floats


@dataclass(frozen=True)
class CutOut:
    """A cut-out, of a person or not: uint8[h, w, 3] and its soft mask float32[h, w] in 0..1."""

    image: Pixels
    mask: Floats


@dataclass(frozen=True)
class Recipe:
    """What the canvases look like."""

    canvas_px: tuple[int, int]  # height, width
    batch: int
    single_scale: tuple[float, float]
    mosaic_scale: tuple[float, float]
    mosaic_share: float = 0.45
    paste_share: float = 0.65
    recolour_share: float = 0.45
    clutter_share: float = 0.65
    scramble_share: float = 0.2
    tilt: float = 0.2  # radians to either side: cameras do not hang straight


def _rounded_mask(height: int, width: int) -> Floats:
    across, down = np.arange(width) / width * 2 - 1, np.arange(height) / height * 2 - 1
    mask: Floats = ((across**4 + down[:, None] ** 6) < 1).astype(np.float32)
    return mask


def _moving_mask(patch: Pixels, background: Pixels) -> Floats | None:
    """Return where the patch differs from the empty scene, or None when hardly anywhere."""
    moved = np.abs(patch.astype(np.int16) - background).sum(2) > 60
    mask = cv2.morphologyEx(moved.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((11, 11), np.uint8))
    return mask.astype(np.float32) if mask.mean() >= 0.3 else None


def cut_people(frames: Sequence[Labelled]) -> list[CutOut]:
    """Cut out the people the teacher is sure of, indoors along what moves."""
    indoor = [frame for frame in frames if frame.clip == INDOOR]
    scene = [frame.image for frame in indoor if not len(frame.boxes)]
    scene = scene or [frame.image for frame in indoor]  # people move on, the median stays
    background = np.median(np.stack(scene[:: max(1, len(scene) // 40)]), 0).astype(np.int16)
    people = []
    for frame in frames:
        for x0, y0, x1, y1, score in frame.boxes:
            left, top, right, bottom = (int(side) for side in (x0, y0, x1, y1))
            patch = frame.image[top:bottom, left:right]
            cut_off = bottom >= frame.image.shape[0] - 2
            if score < SURE_SCORE or cut_off or min(patch.shape[:2]) < 28:
                continue
            mask: Floats | None = _rounded_mask(*patch.shape[:2])
            if frame.clip == INDOOR:
                mask = _moving_mask(patch, background[top:bottom, left:right])
            if mask is not None:
                soft = cv2.GaussianBlur(mask, (5, 5), 0).astype(np.float32)
                people.append(CutOut(patch.copy(), soft))
    return people


def cut_clutter(
    frames: Sequence[Labelled], rng: np.random.Generator, count: int = 900
) -> list[Pixels]:
    """Cut out pieces of the scenes where the teacher sees nobody at all."""
    pieces: list[Pixels] = []
    while len(pieces) < count:
        frame = frames[int(rng.integers(len(frames)))]
        height, width = (int(side) for side in rng.integers(40, 260, 2))
        frame_height, frame_width = frame.image.shape[:2]
        if height >= frame_height or width >= frame_width:
            continue
        top = int(rng.integers(frame_height - height))
        left = int(rng.integers(frame_width - width))
        piece = np.array([left, top, left + width, top + height], np.float32)
        low = np.maximum(frame.boxes[:, :2], piece[:2])
        high = np.minimum(frame.boxes[:, 2:4], piece[2:])
        if not (high > low).all(1).any():
            pieces.append(frame.image[top : top + height, left : left + width].copy())
    return pieces


class Canvases:
    """An endless source of training canvases over some labelled frames."""

    def __init__(
        self, frames: Sequence[Labelled], recipe: Recipe, rng: np.random.Generator
    ) -> None:
        self.recipe = recipe
        self.rng = rng
        indoor = [frame for frame in frames if frame.clip == INDOOR]
        self.cameras = [frame for frame in frames if frame.clip != INDOOR]
        self.peopled = [frame for frame in indoor if len(frame.boxes)]
        self.empty = [frame for frame in indoor if not len(frame.boxes)] or self.peopled
        self.people = cut_people(frames)
        self.clutter = cut_clutter(indoor, rng, 300) + cut_clutter(self.cameras, rng, 900)

    def batch(self) -> tuple[Floats, list[Floats]]:
        """Return images float32[batch, 3, h, w] and each one's boxes [n, 5]."""
        made = [self._canvas() for _ in range(self.recipe.batch)]
        images = np.stack([image.transpose(2, 0, 1) for image, _ in made])
        return np.ascontiguousarray(images), [boxes for _, boxes in made]

    def _between(self, low: float, high: float) -> float:
        """Draw log-uniformly: a scale of 2 is as likely as one of 1/2."""
        return math.exp(self.rng.uniform(math.log(low), math.log(high)))

    def _canvas(self) -> tuple[Floats, Floats]:
        height, width = self.recipe.canvas_px
        scrambled = self.rng.random() < self.recipe.scramble_share
        if scrambled:
            image, boxes = self._scrambled(height, width), np.empty((0, 5), np.float32)
        elif self.rng.random() < self.recipe.mosaic_share:
            image, boxes = self._mosaic(height, width)
        else:
            image, boxes = self._crop(height, width, self.recipe.single_scale)
        if self.rng.random() < self.recipe.clutter_share:
            for _ in range(self.rng.integers(1, 5)):
                boxes = self._paste(image, boxes, self._piece(), is_person=False)
        if scrambled or self.rng.random() < self.recipe.paste_share:
            for _ in range(self.rng.integers(1, 4)):
                person = self.people[self.rng.integers(len(self.people))]
                boxes = self._paste(image, boxes, person, is_person=True)
        return self._light(image), boxes

    def _pick(self) -> Labelled:
        draw = self.rng.random()
        pool = self.cameras if draw < 0.5 else self.peopled if draw < 0.8 else self.empty
        return pool[self.rng.integers(len(pool))]

    def _offset(self, room: float, extent: float, at: float | None) -> float:
        """Place an image `extent` long in `room`; mostly so that the point `at` is inside."""
        slack = room - extent
        low, high = min(slack, 0.0), max(slack, 0.0)
        if at is None or self.rng.random() >= 0.8:
            return float(self.rng.uniform(low, high))
        wanted = room * self.rng.uniform(0.25, 0.75) - at
        return float(min(max(wanted, low - 0.1 * room), high + 0.1 * room))

    def _crop(self, height: int, width: int, scales: tuple[float, float]) -> tuple[Pixels, Floats]:
        """Show part of one frame, scaled, stretched, tilted, sheared a little, perhaps mirrored."""
        frame = self._pick()
        scale, stretch = self._between(*scales), self._between(0.87, 1.15)
        angle = self.rng.uniform(-self.recipe.tilt, self.recipe.tilt)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        lean = np.array([[stretch, self.rng.uniform(-0.08, 0.08)], [0, 1 / stretch]])
        mirror = np.diag([self.rng.choice([-1.0, 1.0]), 1.0])
        warp = scale * mirror @ turn @ lean
        image, boxes = self._recoloured(frame.image, frame.boxes), frame.boxes.copy()
        shrink = 1.0
        if scale < 0.6 and self.rng.random() < 0.8:  # or thin lines would alias away
            shrink = 0.5
            smaller = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
            image = np.asarray(smaller, np.uint8)
        # A person fills an ellipse rather than a box, so the new box is the ellipse's.
        centre = (boxes[:, :2] + boxes[:, 2:4]) / 2 @ warp.T
        half = np.sqrt(((boxes[:, 2:4] - boxes[:, :2]) / 2) ** 2 @ (warp**2).T)
        frame_height, frame_width = frame.image.shape[:2]
        corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * (frame_width, frame_height) @ warp.T
        low, extent = corners.min(0), np.ptp(corners, 0)
        at = centre[self.rng.integers(len(centre))] - low if len(centre) else (None, None)
        left = self._offset(width, extent[0], at[0]) - low[0]
        top = self._offset(height, extent[1], at[1]) - low[1]
        boxes[:, :2], boxes[:, 2:4] = centre - half + (left, top), centre + half + (left, top)
        shown = cv2.warpAffine(
            image,
            np.column_stack([warp / shrink, (left, top)]),
            (width, height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(PAD_VALUE,) * 3,
        )
        return np.asarray(shown, np.uint8), _visible(boxes, height, width)

    def _mosaic(self, height: int, width: int) -> tuple[Pixels, Floats]:
        """Show two by two crops whose borders move."""
        image = np.empty((height, width, 3), np.uint8)
        middle = int(height * self.rng.uniform(0.35, 0.65))
        centre = int(width * self.rng.uniform(0.35, 0.65))
        found = []
        for top, bottom in ((0, middle), (middle, height)):
            for left, right in ((0, centre), (centre, width)):
                part, boxes = self._crop(bottom - top, right - left, self.recipe.mosaic_scale)
                image[top:bottom, left:right] = part
                found.append(boxes + np.array([left, top, left, top, 0], np.float32))
        return image, np.concatenate(found)

    def _recoloured(self, image: Pixels, boxes: Floats) -> Pixels:
        """Change the colours of people, so that clothes do not stand for persons."""
        if not len(boxes) or self.rng.random() >= self.recipe.recolour_share:
            return image
        image = image.copy()
        for x0, y0, x1, y1 in boxes[:, :4].astype(int):
            patch = image[max(y0, 0) : y1, max(x0, 0) : x1]
            if min(patch.shape[:2]) < 8:
                continue
            mask = np.float32(0.9) * _rounded_mask(*patch.shape[:2])[..., None]
            gain = self.rng.uniform(0.65, 1.4, 3) * self.rng.uniform(0.7, 1.3)
            shift = self.rng.uniform(-15, 15)
            changed = (patch * gain.astype(np.float32) + np.float32(shift)).clip(0, 255)
            patch[:] = (patch * (1 - mask) + changed * mask).astype(np.uint8)
        return image

    def _turned(self, piece: Pixels) -> Pixels:
        """Turn, mirror and swap the colours of a piece of scene, so that it is a new thing."""
        piece = np.rot90(piece, int(self.rng.integers(4)))
        if self.rng.random() < 0.5:
            piece = piece[:, ::-1]
        if self.rng.random() < 0.4:
            piece = piece[:, :, self.rng.permutation(3)]
        return np.ascontiguousarray(piece)

    def _piece(self) -> CutOut:
        """Draw a cut-out that is not a person, with edges just like those that are."""
        piece = self._turned(self.clutter[self.rng.integers(len(self.clutter))])
        draw = self.rng.random()
        if draw < 0.4:
            mask = _rounded_mask(*piece.shape[:2])
        elif draw < 0.7:
            mask = np.ones(piece.shape[:2], np.float32)
        else:  # in the outline of a person: the outline alone must not do
            outline = self.people[self.rng.integers(len(self.people))].mask
            piece = np.asarray(cv2.resize(piece, outline.shape[::-1]), np.uint8)
            return CutOut(piece, outline)
        return CutOut(piece, np.asarray(cv2.GaussianBlur(mask, (5, 5), 0), np.float32))

    def _scrambled(self, height: int, width: int) -> Pixels:
        """Tile turned pieces of scene into a place that does not exist."""
        image = np.empty((height, width, 3), np.uint8)
        rows, columns = (int(parts) for parts in self.rng.integers(1, 5, 2))
        edges_y = np.linspace(0, height, rows + 1).astype(int)
        edges_x = np.linspace(0, width, columns + 1).astype(int)
        for top, bottom in pairwise(edges_y):
            for left, right in pairwise(edges_x):
                piece = self._turned(self.clutter[self.rng.integers(len(self.clutter))])
                size = (int(right - left), int(bottom - top))
                image[top:bottom, left:right] = cv2.resize(piece, size)
        return image

    def _paste(self, image: Pixels, boxes: Floats, cut: CutOut, is_person: bool) -> Floats:
        """Paste one cut-out into `image` (in place); return the boxes after it."""
        canvas_height, canvas_width = image.shape[:2]
        tallest = 330 * self.recipe.single_scale[1]
        ratio = self._between(0.15 * tallest, tallest) / cut.image.shape[0]
        height, width = int(cut.image.shape[0] * ratio), int(cut.image.shape[1] * ratio)
        if width < 8 or width >= canvas_width - 4 or height >= canvas_height - 4:
            return boxes
        patch = cv2.resize(cut.image, (width, height), interpolation=cv2.INTER_AREA)
        mask = cv2.resize(cut.mask, (width, height))[..., None]
        if self.rng.random() < 0.5:
            patch, mask = patch[:, ::-1], mask[:, ::-1]
        left = int(self.rng.integers(0, canvas_width - width))
        top = int(self.rng.integers(0, canvas_height - height))
        pasted = np.array([left, top, left + width, top + height, PASTED_SCORE], np.float32)
        if len(boxes):
            low = np.maximum(boxes[:, :2], pasted[:2])
            shared = (np.minimum(boxes[:, 2:4], pasted[2:4]) - low).clip(0).prod(1)
            covered = shared / ((boxes[:, 2:4] - boxes[:, :2]).prod(1) + 1e-6)
            if (covered > 0.5).any() and self.rng.random() < 0.7:
                return boxes
            boxes = boxes.copy()
            doubtful = covered > 0.55
            boxes[doubtful, 4] = np.minimum(boxes[doubtful, 4], DOUBTFUL_SCORE)
            boxes = boxes[covered < 0.85]
        contrast, brightness = self.rng.uniform(0.6, 1.3), 100 * self.rng.uniform(0.5, 1.5)
        tinted = (patch.astype(np.float32) - 100) * contrast + brightness
        tinted = (tinted * self.rng.uniform(0.75, 1.25, 3)).clip(0, 255)
        target = image[top : top + height, left : left + width]
        target[:] = (target * (1 - mask) + tinted * mask).astype(np.uint8)
        return np.concatenate([boxes, pasted[None]]) if is_person else boxes

    def _light(self, image: Pixels) -> Floats:
        """Change contrast, brightness, tint and sharpness, and add sensor noise."""
        rng = self.rng
        out = image.astype(np.float32)
        if rng.random() < 0.8:
            out = (out - 110) * rng.uniform(0.6, 1.4) + 110 + rng.uniform(-35, 35)
            out *= rng.uniform(0.8, 1.2, 3).astype(np.float32)
        if rng.random() < 0.3:
            out = np.asarray(255 * (out.clip(0, 255) / 255) ** rng.uniform(0.6, 1.6), np.float32)
        if rng.random() < 0.12:
            out = np.repeat(out.mean(2, keepdims=True), 3, 2)
        if rng.random() < 0.15:
            out = np.asarray(cv2.GaussianBlur(out, (3, 3), 0), np.float32)
        if rng.random() < 0.3:
            out += rng.standard_normal(out.shape, dtype=np.float32) * rng.uniform(1, 7)
        return np.ascontiguousarray(out.clip(0, 255), np.float32)


def _visible(boxes: Floats, height: int, width: int) -> Floats:
    """Clip boxes to the canvas; drop what is gone, doubt what is mostly cut off."""
    area = (boxes[:, 2:4] - boxes[:, :2]).prod(1)
    boxes[:, [0, 2]] = boxes[:, [0, 2]].clip(0, width)
    boxes[:, [1, 3]] = boxes[:, [1, 3]].clip(0, height)
    left = (boxes[:, 2:4] - boxes[:, :2]).prod(1) / (area + 1e-6)
    cut = left < 0.4
    boxes[cut, 4] = np.minimum(boxes[cut, 4], DOUBTFUL_SCORE)
    kept: Floats = boxes[left > 0.1]
    return kept
