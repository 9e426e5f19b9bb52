"""The clips: which frames train, validate or are held out, and how they become pixels.

Owns the split and the resizing that training and evaluation share; knows no network. Invariant:
no frame of the `unseen` or `held` parts is ever returned for training or validation.

Splits by position in the clip: of the training cameras the first 68 % train, the next 12 %
validate (and train the final weights, once recipe, scale and threshold are chosen), and the
last 20 % are held out; one camera is unseen from first to last frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Part = Literal["train", "validation", "held", "unseen"]

UNIT_LONG_SIDE_PX = 640  # labels are stored in pixels of frames of this size
PAD_VALUE = 114
MULTIPLE_PX = 32
VALIDATION_FROM = 0.68
HELD_FROM = 0.80


@dataclass(frozen=True)
class Clip:
    """One camera's recording; `step` keeps every nth frame, since neighbours are alike."""

    name: str
    file: str
    step: int
    unseen: bool = False

    def part(self, index: int, count: int) -> Part:
        """Return the split that frame `index` of `count` belongs to."""
        if self.unseen:
            return "unseen"
        if index >= HELD_FROM * count:
            return "held"
        return "validation" if index >= VALIDATION_FROM * count else "train"


INDOOR = "indoor"
CLIPS = (
    Clip(INDOOR, "one-by-one-person-detection.mp4", step=2),
    Clip("cam01", "pose2sim_multiperson/cam01.mp4", step=1),
    Clip("cam02", "pose2sim_multiperson/cam02.mp4", step=1),
    Clip("cam03", "pose2sim_multiperson/cam03.mp4", step=1),
    Clip("cam04", "pose2sim_multiperson/cam04.mp4", step=1, unseen=True),
)


@dataclass(frozen=True)
class Frame:
    """One decoded frame, resized on demand from the decoder's own picture."""

    clip: str
    index: int
    part: Part
    picture: Any  # av.VideoFrame

    def pixels(self, long_side_px: int) -> Pixels:
        """Return uint8[h, w, 3] BGR whose longer side is `long_side_px`."""
        height, width = self.picture.height, self.picture.width
        ratio = long_side_px / max(height, width)
        image = self.picture.reformat(
            width=round(width * ratio),
            height=round(height * ratio),
            format="bgr24",
            interpolation="AREA" if ratio < 1 else "BILINEAR",
        )
        return np.ascontiguousarray(image.to_ndarray())


def frames(assets: Path, clip: Clip, parts: frozenset[Part], every: int = 1) -> Iterator[Frame]:
    """Yield the clip's frames of the given parts, every `clip.step * every`th of the clip.

    Raises FileNotFoundError when the clip is not under `assets`/videos.
    """
    path = assets / "videos" / clip.file
    if not path.is_file():
        raise FileNotFoundError(path)
    with av.open(str(path)) as container:
        count = container.streams.video[0].frames
        for index, picture in enumerate(container.decode(video=0)):
            part = clip.part(index, count)
            if part in parts and index % (clip.step * every) == 0:
                yield Frame(clip.name, index, part, picture)


def network_input(image: Pixels) -> Floats:
    """Return float32[1, 3, h, w]: the image at the top left, padded to multiples of 32."""
    height, width = image.shape[:2]
    padded_height = -(-height // MULTIPLE_PX) * MULTIPLE_PX
    padded_width = -(-width // MULTIPLE_PX) * MULTIPLE_PX
    canvas = np.full((padded_height, padded_width, 3), PAD_VALUE, np.float32)
    canvas[:height, :width] = image
    return np.ascontiguousarray(canvas.transpose(2, 0, 1)[None])
