"""One loaded model on one accelerator: opened, checked, warmed, run.

Owns ONNX Runtime sessions and the check that a file is what its release says and fits its
input; never decides when to run. Invariant: a `Session` that exists has run once on its
accelerator and gave finite output of the promised shape.
"""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime

from models.accelerators import AcceleratorSpec
from models.delta.differential import Differential
from models.images import Canvas, Pixels, Scaler, canvas, fitted
from models.runtime import open_session
from models.tasks import Floats, cell_count, decode_detections, preprocess
from models.wire import EFFORTS, Box, Effort, ModelError, ModelFile

WARM_RUNS = 5
MAX_SIZES = 4  # canvas sizes kept compiled


class Session:
    """Run one model file on one accelerator. Not for concurrent use."""

    def __init__(self, model: ModelFile, accelerator: AcceleratorSpec) -> None:
        """Read, verify, open and warm a model.

        Raises ModelError that names the file, what is wrong and what to do.
        """
        for effort in EFFORTS:
            model.quality(effort)  # raises for what nobody could decide by
        self.model = model
        shape = model.spec["input"]
        self.long_side: int = shape["long_side"]
        self.multiple: int = shape["multiple"]
        self.pad_value: int = shape["pad_value"]
        self.strides: tuple[int, ...] = tuple(model.spec["strides"])
        self._accelerator = accelerator
        self._session = open_named(model, accelerator)
        self._differentials: dict[tuple[int, int], Differential | ModelError] = {}
        self._compiling = threading.Lock()
        self._input = self._check_input(shape["name"])
        fixed = self._session.get_inputs()[0].shape[2:]
        self.fixed: tuple[int | None, int | None] = (
            fixed[0] if isinstance(fixed[0], int) else None,
            fixed[1] if isinstance(fixed[1], int) else None,
        )
        self.warm_s: dict[Effort, float] = {effort: self._warm(effort) for effort in EFFORTS}

    @property
    def runs_here(self) -> bool:
        """Return whether passes run in the calling thread."""
        return self._accelerator.provider == "cpu"

    def differential(self, size: tuple[int, int]) -> Differential:
        """Return the model prepared for differential passes at a canvas size (height, width).

        Compiled once a size, the newest few are kept. Raises ModelError with the reason why it
        cannot be run differentially. O(weights) the first time.
        """
        with self._compiling:
            found = self._differentials.pop(size, None)
            if found is None:
                try:
                    found = Differential(verified(self.model), size, self._accelerator)
                except ModelError as error:
                    found = error
                except Exception as error:  # noqa: BLE001 - full passes do without
                    found = ModelError(f"its layers cannot be analysed ({error!r})")
            self._differentials[size] = found
            while len(self._differentials) > MAX_SIZES:
                del self._differentials[next(iter(self._differentials))]
        if isinstance(found, ModelError):
            raise ModelError(str(found))
        return found

    def check_fits(self, width: int, height: int) -> tuple[int, int]:
        """Return the canvas (height, width) for frames of a size.

        Raises ModelError when the model's input is fixed at something smaller.
        """
        width, height = fitted(width, height, self.long_side, enlarge=True)
        need = [-(-side // self.multiple) * self.multiple for side in (height, width)]
        for index, fixed in enumerate(self.fixed):
            if fixed is not None and need[index] > fixed:
                raise ModelError(
                    f"{self._label()} takes {self._size_text()} pixels (height x width), but "
                    f"frames scaled to its long side {self.long_side} need {need[0]} x {need[1]}; "
                    "use a model with a dynamic input or lower long_side in its manifest"
                )
            if fixed is not None:
                need[index] = fixed
        return need[0], need[1]

    def canvas(self, pixels: Pixels, scaler: Scaler) -> Canvas:
        """Return the canvas of a frame uint8[h, w, 3].

        Raises ModelError when the model's input is fixed at something smaller. O(pixels).
        """
        size = self.check_fits(pixels.shape[1], pixels.shape[0])
        return canvas(pixels, self.long_side, size, self.pad_value, scaler)

    def halved(self, canvas: Canvas) -> Canvas:
        """Return a canvas at half effort: means of 2 x 2 pixels, padded to what the model takes.

        O(pixels).
        """
        rows, columns = (side // 2 for side in canvas.pixels.shape[:2])
        pixels = canvas.pixels[: 2 * rows, : 2 * columns]
        upper, lower = pixels[::2], pixels[1::2]
        means = (upper & lower) + ((upper ^ lower) >> 1)  # rounded down, and stays in 8 bits
        size = [
            fixed or -(-side // self.multiple) * self.multiple
            for fixed, side in zip(self.fixed, (rows, columns), strict=True)
        ]
        padded = np.full((*size, 3), self.pad_value, np.uint8)
        for channel in range(3):  # one by one: numpy is slow on runs of three
            left, right = means[:, ::2, channel], means[:, 1::2, channel]
            padded[:rows, :columns, channel] = (left | right) - ((left ^ right) >> 1)  # up
        return Canvas(padded, max(1, canvas.width // 2), max(1, canvas.height // 2))

    def run(self, canvas: Canvas) -> list[Box]:
        """Return the boxes of one canvas, relative to the image on it.

        Raises ModelError when the accelerator fails or its output is not finite.
        """
        return self.decode([self._forward(preprocess(canvas.pixels))], canvas)

    def decode(self, outputs: list[Floats], canvas: Canvas) -> list[Box]:
        """Return the boxes in the model's outputs for one canvas.

        Raises ModelError when they are not of the promised shape or not finite.
        """
        output, (height, width) = outputs[0], canvas.pixels.shape[:2]
        cells = cell_count(height, width, self.strides)
        if output.ndim != 3 or output.shape[:2] != (1, cells) or output.shape[2] < 5:
            raise ModelError(
                f"{self._label()} gives output {list(output.shape)} for a {height} x {width} "
                f"input; task detect with strides {list(self.strides)} needs "
                f"[1, {cells}, 4 + classes]: correct its manifest"
            )
        if not np.isfinite(output).all():
            raise ModelError(f"{self._label()} gives values that are not finite: do not use it")
        spec = self.model.spec
        return decode_detections(
            output[0], canvas, self.strides, spec["score_threshold"], spec["nms_iou"]
        )

    def _forward(self, planes: Floats) -> Floats:
        try:
            output: Floats = self._session.run(None, {self._input: planes})[0]
        except Exception as error:  # noqa: BLE001 - ONNX Runtime raises its own unexported classes
            text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise ModelError(f"{self._label()} failed: {text}") from None
        return output

    def _check_input(self, name: str) -> str:
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].name != name:
            found = ", ".join(i.name for i in inputs)
            raise ModelError(f"{self._label()} has the inputs {found}; its manifest says {name!r}")
        node = inputs[0]
        if node.type != "tensor(float)":
            raise ModelError(f"{self._label()} takes {node.type}; task detect gives tensor(float)")
        if len(node.shape) != 4 or (isinstance(node.shape[1], int) and node.shape[1] != 3):
            raise ModelError(
                f"{self._label()} takes the shape {node.shape}; cameras give [1, 3, height, width]"
            )
        if isinstance(node.shape[0], int) and node.shape[0] != 1:
            raise ModelError(f"{self._label()} takes batches of {node.shape[0]}; cameras give 1")
        return name

    def _warm(self, effort: Effort) -> float:
        """Run on grey; return the wall time of the fastest of a few runs, in seconds.

        A single one that was interrupted would make the accelerator look too slow to be asked.
        """
        height = self.fixed[0] or -(-self.long_side * 9 // 16 // self.multiple) * self.multiple
        width = self.fixed[1] or -(-self.long_side // self.multiple) * self.multiple
        grey = Canvas(np.full((height, width, 3), self.pad_value, np.uint8), width, height)
        times_s = []
        for _ in range(1 + WARM_RUNS):
            started_s = time.perf_counter()
            self.run(self.halved(grey) if effort == "half" else grey)
            times_s.append(time.perf_counter() - started_s)
        return min(times_s[1:])

    def _label(self) -> str:
        return f"model {self.model.name}/{self.model.variant} ({self.model.path})"

    def _size_text(self) -> str:
        return " x ".join("any" if side is None else str(side) for side in self.fixed)


def verified(model: ModelFile) -> bytes:
    """Return a model file's bytes. Raises ModelError naming it unless they have its digest."""
    label = f"model {model.name}/{model.variant}: {model.path}"
    try:
        data = Path(model.path).read_bytes()
    except OSError as error:
        raise ModelError(f"{label}: cannot be read ({error.strerror}); fetch it again") from None
    found = hashlib.sha256(data).hexdigest()
    if found != model.digest:
        raise ModelError(
            f"{label}: sha256 is {found}, the release says {model.digest}; "
            "the file is damaged or of another version: fetch it again"
        )
    return data


def open_named(model: ModelFile, accelerator: AcceleratorSpec) -> onnxruntime.InferenceSession:
    """Open a model file after checking its digest. Raises ModelError naming it."""
    data = verified(model)
    try:
        return open_session(data, accelerator)
    except ModelError as error:
        raise ModelError(f"model {model.name}/{model.variant}: {model.path}: {error}") from None


def open_warm(model: ModelFile, accelerator: AcceleratorSpec) -> Session:
    """Return a warmed session; any damage in the manifest's numbers is a ModelError too."""
    try:
        return Session(model, accelerator)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"model {model.name}/{model.variant}: its manifest entry is unusable ({error!r})"
        ) from None
