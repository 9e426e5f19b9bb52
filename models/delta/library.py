"""Load the C kernels of `models/native` and declare their interface.

Owns the structures shared with C (`delta.h`) and the two calls that need no program: the change
mask's sums and the copy of changed cells; never holds a camera's data. Invariant: nothing is passed
to C before its size was checked.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.wire import ModelError

Bytes = npt.NDArray[np.uint8]
FOLDER = Path(__file__).parent.parent / "native"
MASK_CHANNELS, MASK_BLOCK = 4, 8  # at most, so that a cell's sum fits 16 bits


class CMap(ctypes.Structure):
    _fields_ = [("offset", ctypes.c_int64), ("mask", ctypes.c_int64)] + [
        (name, ctypes.c_int32)
        for name in ("pitch", "stride", "height", "width", "channels", "watched", "is_shared")
    ]


class CStep(ctypes.Structure):
    _fields_ = (
        [
            (name, ctypes.c_int32)
            for name in (
                *("kind", "source", "second", "residual", "target"),
                *("kernel_y", "kernel_x", "stride_y", "stride_x"),
                *("pad_y", "pad_x", "dilation_y", "dilation_x"),
                *("inputs", "outputs", "chained", "prunes", "activation", "after"),
                "segment",
            )
        ]
        + [(name, ctypes.c_float) for name in ("low", "high", "after_low", "after_high")]
        + [(name, ctypes.c_void_p) for name in ("weight", "bias", "rows", "columns", "picked")]
    )


class CFrame(ctypes.Structure):
    _fields_ = (
        ("bytes", ctypes.c_void_p),
        ("floats", ctypes.c_void_p),
        ("mean", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("changed", ctypes.c_void_p),
        ("block", ctypes.c_int32),
    )


_Totals = ctypes.c_int64 * 2


@cache
def library() -> ctypes.CDLL | None:
    """Return the C library, or None where it was not built."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = FOLDER / f"_delta{suffix}"
        if path.is_file():
            return _declared(ctypes.CDLL(str(path)))
    return None


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, integer = ctypes.c_void_p, ctypes.c_int32
    library.delta_create.restype = pointer
    library.delta_create.argtypes = [
        *(pointer, integer, pointer, integer, integer),
        *(ctypes.c_int64, pointer, ctypes.c_char_p),
    ]
    library.delta_free.restype = None
    library.delta_free.argtypes = [pointer]
    library.delta_variant.restype = ctypes.c_char_p
    library.delta_variant.argtypes = [pointer]
    library.delta_run.argtypes = [pointer] * 8
    library.delta_mask.argtypes = [*[pointer] * 2, *[integer] * 4, *[pointer] * 2]
    library.delta_copy_cells.argtypes = [*[pointer] * 3, *[integer] * 4]
    return library


def kernels() -> ctypes.CDLL:
    """Return the C library. Raises ModelError where it was not built."""
    found = library()
    if found is None:
        raise ModelError(
            "the native delta kernels were not built: install a C compiler, then edge-node"
        )
    return found


def block_sums(
    now: Bytes, reference: Bytes, block: int, sums: npt.NDArray[np.uint16]
) -> tuple[int, int]:
    """Sum |now - reference| over each `block` x `block` cell of pixels; return both totals.

    Images uint8[h, w, channels]; `sums` uint16[ceil(h / block), ceil(w / block)] is overwritten.
    Returns the sums over the image of |now - reference| and of now - reference. Raises ModelError
    where the kernels were not built, ValueError for other shapes, more than 4 channels or blocks
    beyond 8. O(pixels).
    """
    found = kernels()
    if now.ndim != 3 or now.shape != reference.shape or not now.size:
        raise ValueError(f"images of {list(now.shape)} and {list(reference.shape)} do not compare")
    height, width, channels = now.shape
    if not 0 < block <= MASK_BLOCK or channels > MASK_CHANNELS:
        raise ValueError(f"cells of {block} x {block} pixels of {channels} bytes are too large")
    _check(now, np.uint8, now.shape)
    _check(reference, np.uint8, now.shape)
    _check(sums, np.uint16, (-(-height // block), -(-width // block)))
    totals = _Totals()
    found.delta_mask(
        *(now.ctypes.data, reference.ctypes.data, height, width, channels, block),
        *(sums.ctypes.data, totals),
    )
    return totals[0], totals[1]


def copy_cells(reference: Bytes, now: Bytes, changed: Bytes, block: int) -> None:
    """Copy the pixels of `now` into `reference` wherever their cell's byte is set.

    Images uint8[h, w, channels]; `changed` uint8[ceil(h / block), ceil(w / block)]. Raises as
    `block_sums` does, but takes any block and number of channels. O(cells + copied).
    """
    found = kernels()
    if now.ndim != 3 or not now.size or block < 1:
        raise ValueError(f"an image of {list(now.shape)} has no cells of {block}")
    height, width, channels = now.shape
    _check(now, np.uint8, now.shape)
    _check(reference, np.uint8, now.shape)
    _check(changed, np.uint8, (-(-height // block), -(-width // block)))
    if not reference.flags.writeable:
        raise ValueError("the reference cannot be written")
    found.delta_copy_cells(
        *(reference.ctypes.data, now.ctypes.data, changed.ctypes.data),
        *(height, width, channels, block),
    )


def _check(array: npt.NDArray[np.generic], kind: type[np.generic], shape: tuple[int, ...]) -> None:
    if array.dtype != kind or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(
            f"{array.dtype}{list(array.shape)} is not a contiguous {kind.__name__}{list(shape)}"
        )
