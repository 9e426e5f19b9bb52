"""What the rows of `make bench-delta` have in common: the network and a way to answer frames.

Owns the full pass that everything is compared with, and the protocol by which our ladder and its
rivals run in one loop; never chooses or times anything. Invariant: every method that runs the
network runs it through the same conversion, session and decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from models.accelerators import AcceleratorSpec
from models.images import Canvas, Pixels
from models.sessions import open_named
from models.tasks import Floats, decode_detections, preprocess
from models.wire import Box, ModelFile
from tests.bench.delta_clips import Shot


class Network:
    """A detector as every method sees it; `full` is the full pass that all are compared with."""

    def __init__(self, model: ModelFile, *, objectness: bool, persons_only: bool) -> None:
        """Open a model file on the CPU with one thread. Raises ModelError."""
        self.model = model
        self.strides = tuple(model.spec["strides"])
        self._session = open_named(model, AcceleratorSpec("cpu0", "cpu"))
        self._objectness, self._persons_only = objectness, persons_only

    def full(self, frame: Canvas) -> list[Box]:
        """Return the boxes of a whole canvas: conversion, ONNX Runtime, decoding."""
        return self.decode(self.cells(frame.pixels), frame)

    def cells(self, pixels: Pixels) -> Floats:
        """Return float32[cells, 4 + classes] for uint8[h, w, 3], sides multiples of 32."""
        name = self.model.spec["input"]["name"]
        return self.scored(self._session.run(None, {name: preprocess(pixels)})[0][0])

    def scored(self, output: Floats) -> Floats:
        """Return an output float32[cells, columns] with objectness, if any, in the class scores."""
        if not self._objectness:
            return output
        classes = output[:, 5:6] if self._persons_only else output[:, 5:]
        return np.concatenate([output[:, :4], output[:, 4:5] * classes], axis=1)

    def decode(self, cells: Floats, frame: Canvas) -> list[Box]:
        """Return the boxes in `cells` as of this frame's geometry."""
        spec = self.model.spec
        return decode_detections(
            cells, frame, self.strides, spec["score_threshold"], spec["nms_iou"]
        )


class Method(Protocol):
    """A way to answer every frame of a camera; ours and the rivals run in one loop."""

    name: str

    def calibrate(self, shots: Sequence[Shot], target: float) -> None:
        """Choose what there is to choose, so that F1 on the `shots` reaches `target`."""

    def cut(self, camera: str) -> None:
        """Forget the state: the next frame is the first of this camera."""

    def answer(self, frame: Canvas, at_s: float) -> list[Box]:
        """Return the boxes of the next frame, `at_s` seconds of media time into the clip."""

    def note(self) -> str:
        """Return what was chosen, for the table."""
