"""Pixels in and out: JPEG, scaling, and the canvas that a model sees.

Owns the conversion between encoded images, frames (uint8[h, w, 3] BGR) and canvases; never
runs a model. Invariant: a canvas holds the scaled image at its top left, the rest is padding,
and its sides are multiples of what the model asks for.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.codec import CodecContext
from av.video.frame import PictureType
from av.video.reformatter import Interpolation, VideoReformatter

Pixels = npt.NDArray[np.uint8]

# Of 2 (best) .. 31. A 640 x 368 frame takes 25-50 KB; coarser steps of brightness between two
# frames would look like change to the ladder of the node that receives them.
JPEG_QUANTISER = 2
MAX_SIDE_PX = 8192


@dataclass(frozen=True)
class Canvas:
    """Hold what a model sees: `pixels` uint8[H, W, 3], the image in its first `height`, `width`."""

    pixels: Pixels
    width: int
    height: int


def fitted(width: int, height: int, long_side: int, *, enlarge: bool) -> tuple[int, int]:
    """Return (width, height) scaled so that the longer side is `long_side`, at least 1 x 1."""
    if width < 1 or height < 1:
        raise ValueError(f"an image of {width} x {height} pixels has no area")
    scale = long_side / max(width, height)
    if scale > 1 and not enlarge:
        return width, height
    return max(1, round(width * scale)), max(1, round(height * scale))


class Scaler:
    """Scale images by area averaging; keeps its filter tables, so use one per thread."""

    def __init__(self) -> None:
        self._reformatter: Any = VideoReformatter()

    def to_bgr(self, frame: av.VideoFrame, width: int, height: int) -> Pixels:
        """Return a decoded frame as uint8[height, width, 3] BGR. O(pixels)."""
        scaled = self._reformatter.reformat(
            frame, width, height, "bgr24", interpolation=Interpolation.AREA
        )
        pixels: Pixels = scaled.to_ndarray()
        return pixels

    def resize(self, pixels: Pixels, width: int, height: int) -> Pixels:
        """Return an image at another size; the same array if it has that size. O(pixels)."""
        if pixels.shape[:2] == (height, width):
            return pixels
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="bgr24")
        return self.to_bgr(frame, width, height)


def canvas(
    pixels: Pixels, long_side: int, size: tuple[int, int], pad_value: int, scaler: Scaler
) -> Canvas:
    """Scale an image to `long_side` and pad it to `size` (height, width). O(pixels)."""
    height, width = pixels.shape[:2]
    width, height = fitted(width, height, long_side, enlarge=True)
    scaled = scaler.resize(pixels, width, height)
    if size == (height, width):
        return Canvas(scaled, width, height)
    padded = np.full((*size, 3), pad_value, np.uint8)
    padded[:height, :width] = scaled
    return Canvas(padded, width, height)


def encode_jpeg(pixels: Pixels, quantiser: int = JPEG_QUANTISER) -> bytes:
    """Return an image as a baseline JPEG. O(pixels)."""
    height, width = pixels.shape[:2]
    context: Any = CodecContext.create("mjpeg", "w")
    context.width, context.height = width, height
    context.pix_fmt, context.time_base = "yuvj420p", Fraction(1, 25)
    context.qmin = context.qmax = quantiser
    context.thread_count = 1
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="bgr24")
    frame = frame.reformat(format="yuvj420p")
    frame.pict_type = PictureType.NONE
    packets = [*context.encode(frame), *context.encode(None)]
    return b"".join(bytes(packet) for packet in packets)


def decode_jpeg(data: bytes, scaler: Scaler) -> Pixels:
    """Return an encoded image (JPEG, PNG or WebP) as uint8[h, w, 3] BGR.

    Raises ValueError when it cannot be decoded or exceeds `MAX_SIDE_PX`. O(pixels).
    """
    try:
        with av.open(io.BytesIO(data), "r") as container:
            if not container.streams.video:
                raise ValueError("the image cannot be decoded: it holds no picture")
            context = container.streams.video[0].codec_context
            context.thread_count = 1
            # Without this half an image is shown with the rest grey.
            context.options = {"err_detect": "explode"}
            if max(context.width, context.height) > MAX_SIDE_PX:
                raise ValueError(f"the image is larger than {MAX_SIDE_PX} pixels")
            for frame in container.decode(video=0):
                if max(frame.width, frame.height) > MAX_SIDE_PX:
                    raise ValueError(f"the image is larger than {MAX_SIDE_PX} pixels")
                return scaler.to_bgr(frame, frame.width, frame.height)
    except av.error.FFmpegError as error:
        raise ValueError(f"the image cannot be decoded: {error.strerror}") from None
    raise ValueError("the image cannot be decoded: it holds no picture")
