"""What one node gives another of a camera's reuse state, and how it is checked on arrival.

Owns the bytes of an entry; never trusts them. Invariant: bytes of another agent, another model
digest, another format or with anything out of range decode to None.

An entry holds the reference image (8 bit, zstandard, lossless), the answer to it, and what
calibration found. Activations do not travel: they are a function of the reference image, and
computing them again costs one pass, less than their transfer.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import msgpack
import numpy as np
import zstandard

from models.images import Pixels
from models.wire import Box

FORMAT = 2
CHECK_BYTES = 16
MAX_SIDE_PX = 4096
MAX_BOXES = 1000
MAX_CLASS = 1 << 16
SAMPLE_ROWS = 8


@dataclass(frozen=True, eq=False)
class Entry:
    """One camera's reference for one model: `pixels` uint8[h, w, 3], the image in its top left."""

    pixels: Pixels
    width: int
    height: int
    boxes: list[Box]
    age_s: float  # of the last full pass
    noise: float  # grey levels
    calibrated: tuple[float, float | None, float, float] | None  # gate, level, domain, target


def encode(agent: str, digest: str, entry: Entry) -> bytes:
    """Return the bytes of an entry, about half the size of its image. O(pixels)."""
    shifted = np.diff(entry.pixels, axis=1, prepend=np.uint8(0))
    data: bytes = msgpack.packb(
        {
            "format": FORMAT,
            "agent": agent,
            "digest": digest,
            "age_s": entry.age_s,
            "noise": entry.noise,
            "size": [entry.width, entry.height],
            "canvas": list(entry.pixels.shape[:2]),
            "boxes": entry.boxes,
            "calibrated": entry.calibrated,
            "pixels": zstandard.compress(shifted.tobytes(), 1),
        }
    )
    return checked(data)


def checked(data: bytes) -> bytes:
    """Return bytes with what `decode` knows them intact by in front. O(bytes)."""
    return hashlib.blake2b(data, digest_size=CHECK_BYTES).digest() + data


def predicted_bytes(pixels: Pixels) -> int:
    """Return about how long `encode` makes an entry with this image. O(pixels / 8)."""
    some = np.diff(pixels[::SAMPLE_ROWS], axis=1, prepend=np.uint8(0))
    return len(zstandard.compress(some.tobytes(), 1)) * len(pixels) // max(1, len(some))


def decode(agent: str, digest: str, data: bytes) -> Entry | None:
    """Return the entry in bytes of another node, or None when anything about them is wrong."""
    try:
        body = data[CHECK_BYTES:]
        if data != checked(body):
            return None
        record = msgpack.unpackb(body)
        if (record["format"], record["agent"], record["digest"]) != (FORMAT, agent, digest):
            return None
        (width, height), (rows, columns) = record["size"], record["canvas"]
        if not (0 < width <= columns <= MAX_SIDE_PX and 0 < height <= rows <= MAX_SIDE_PX):
            return None
        entry = Entry(
            _image(record["pixels"], rows, columns),
            width,
            height,
            [[*map(float, box[:5]), int(box[5])] for box in record["boxes"]],
            float(record["age_s"]),
            float(record["noise"]),
            _calibrated(record["calibrated"]),
        )
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        OverflowError,
        msgpack.UnpackException,
        zstandard.ZstdError,
    ):
        return None
    return entry if _is_sane(entry) else None


def _image(packed: bytes, rows: int, columns: int) -> Pixels:
    size_bytes = rows * columns * 3
    if zstandard.frame_content_size(packed) != size_bytes:
        raise ValueError("the image has another size")
    shifted = np.frombuffer(zstandard.decompress(packed), np.uint8).reshape(rows, columns, 3)
    pixels: Pixels = np.cumsum(shifted, axis=1, dtype=np.uint8)
    return pixels


def _calibrated(record: object) -> tuple[float, float | None, float, float] | None:
    if record is None:
        return None
    if not isinstance(record, list):
        raise TypeError("calibration is no list")
    gate, level, domain, target = record
    return float(gate), None if level is None else float(level), float(domain), float(target)


def _is_sane(entry: Entry) -> bool:
    boxes_fit = len(entry.boxes) <= MAX_BOXES and all(
        len(box) == 6 and all(0 <= v <= 1 for v in box[:5]) and 0 <= box[5] < MAX_CLASS
        for box in entry.boxes
    )
    gate, level, domain, target = entry.calibrated or (0.0, None, 0.0, 0.0)
    return (
        boxes_fit
        and 0 <= entry.age_s < math.inf
        and 0 <= entry.noise <= 255
        and 0 <= gate < 0.5
        and 0 <= (level or 0.0) <= 16
        and 0 <= domain < math.inf
        and 0 <= target <= 1
    )
