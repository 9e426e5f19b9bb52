"""Small real clips and models for tests: encoded by PyAV, assembled byte by byte."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from models.images import Pixels
from models.wire import ModelFile

CODECS = {".mp4": ("libx264", "yuv420p"), ".avi": ("mpeg4", "yuv420p"), ".mkv": ("ffv1", "bgr0")}


def picture(width: int = 320, height: int = 192, seed: int = 0) -> Pixels:
    """Return a smooth scene: random colours every 16 pixels, blended in between."""
    shape = (height // 16 + 2, width // 16 + 2, 3)
    coarse = np.random.default_rng(seed).integers(40, 210, shape).astype(np.float32)
    rows, columns = np.arange(height) / 16, np.arange(width) / 16
    upper, left = rows.astype(int), columns.astype(int)
    down, right = (rows % 1)[:, None, None], (columns % 1)[:, None]
    across = coarse[:, left] * (1 - right) + coarse[:, left + 1] * right
    return (across[upper] * (1 - down) + across[upper + 1] * down).astype(np.uint8)


def noisy(pixels: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """Return an image with Gaussian noise."""
    mixed: Pixels = np.clip(pixels + rng.normal(0, sigma, pixels.shape), 0, 255).astype(np.uint8)
    return mixed


def marked(index: int, width: int = 320, height: int = 192) -> Pixels:
    """Return a frame whose grey level tells its index (8 levels apart, 24 frames)."""
    return np.full((height, width, 3), 40 + 8 * (index % 24), np.uint8)


def mark_of(pixels: Pixels) -> int:
    """Return the index that `marked` put into a frame."""
    return round((float(pixels.mean()) - 40) / 8)


def write_clip(path: Path, frames: list[Pixels], fps: int) -> Path:
    """Encode frames of equal size; the suffix names the codec."""
    codec, pixel_format = CODECS[path.suffix]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        if codec == "libx264":
            stream.options = {"preset": "ultrafast", "crf": "10", "bf": "2"}
        else:
            stream.bit_rate = 8_000_000
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="bgr24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _data(field: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _tensor(name: str, values: np.ndarray[Any, Any], kind: int) -> bytes:
    dims = b"".join(_number(1, side) for side in values.shape)
    return dims + _number(2, kind) + _data(8, name) + _data(9, values.tobytes())


def _ints(name: str, values: list[int]) -> bytes:
    return _data(1, name) + b"".join(_number(8, v) for v in values) + _number(20, 7)


def _node(kind: str, inputs: list[str], output: str, *attributes: bytes) -> bytes:
    parts = [_data(1, name) for name in inputs] + [_data(2, output), _data(4, kind)]
    return b"".join(parts + [_data(5, attribute) for attribute in attributes])


def _value(name: str, shape: list[int | str]) -> bytes:
    dims = b"".join(
        _data(1, _number(1, side) if isinstance(side, int) else _data(2, side)) for side in shape
    )
    return _data(1, name) + _data(2, _data(1, _number(1, 1) + _data(2, dims)))


def tiny_detector(shape: list[int | str], *, columns: int = 5, fill: float = 0.0) -> bytes:
    """Return an ONNX file: mean colour per 16 x 16 cell -> `columns` numbers per cell."""
    weights = np.zeros((columns, 3, 1, 1), np.float32)
    bias = np.full(columns, fill, np.float32)
    window = (_ints("kernel_shape", [16, 16]), _ints("strides", [16, 16]))
    nodes = [
        _node("AveragePool", ["images"], "p", *window),
        _node("Conv", ["p", "w", "b"], "c"),
        _node("Reshape", ["c", "s"], "r"),
        _node("Transpose", ["r"], "output", _ints("perm", [0, 2, 1])),
    ]
    graph = b"".join(_data(1, node) for node in nodes) + _data(2, "tiny")
    graph += _data(5, _tensor("w", weights, 1)) + _data(5, _tensor("b", bias, 1))
    graph += _data(5, _tensor("s", np.array([1, columns, -1], np.int64), 7))
    graph += _data(11, _value("images", shape)) + _data(12, _value("output", ["n", "k", columns]))
    return _number(1, 8) + _data(8, _data(1, "") + _number(2, 13)) + _data(7, graph)


def model_file(path: Path, data: bytes, **changes: Any) -> ModelFile:
    """Write a model and return it as a release would name it; `changes` go into its input."""
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    shape = {
        "name": "images",
        "layout": "nchw",
        "color": "bgr",
        "range": [0, 255],
        "pad_value": 114,
        "multiple": 32,
        "long_side": 320,
    }
    spec = {
        "variant": "tiny",
        "version": "1",
        "file": path.name,
        "sha256": digest,
        "size_bytes": len(data),
        "input": shape | changes,
        "strides": [16],
        "score_threshold": 0.3,
        "nms_iou": 0.5,
    }
    return ModelFile("tiny-detector", "tiny", "1", str(path), digest, spec)
