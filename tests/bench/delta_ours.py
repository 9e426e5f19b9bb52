"""The product's own ladder as a method of `make bench-delta`.

Owns one ladder per network and what it did since the last `restart`; never chooses a setting and
never leaves out a cost: conversion, mask, audits and what the ladder does after a reply all fall
into `answer`. Invariant: the ladder calibrates itself, on the calibration part alone, as it would
on a live camera; time never runs backwards for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from models.accelerators import AcceleratorSpec
from models.calibration import Calibration
from models.delta.differential import Differential, Refused
from models.delta.layers import Floats
from models.delta.mask import ChangeMask
from models.images import Canvas, Pixels
from models.ladder import Ladder
from models.track import CostModel
from models.wire import Box, Rung
from tests.bench.delta_clips import Shot
from tests.bench.delta_methods import Network

CPU = AcceleratorSpec("cpu0", "cpu")
STATES_BYTES = 400_000_000  # of the trials with activations: all of them at 640 x 1152 too
CUT_S = 1.0  # between two cameras


class CanvasRunner:
    """The network's full pass and decoding for canvases that hold images of one size."""

    def __init__(self, network: Network, width: int, height: int) -> None:
        self._network, self._width, self._height = network, width, height

    def full(self, pixels: Pixels) -> list[Box]:
        """Return the full pass's boxes."""
        return self._network.full(self._canvas(pixels))

    def decode(self, outputs: list[Floats], pixels: Pixels) -> list[Box]:
        """Return the boxes in a model's outputs."""
        return self._network.decode(self._network.scored(outputs[0][0]), self._canvas(pixels))

    def _canvas(self, pixels: Pixels) -> Canvas:
        return Canvas(pixels, self._width, self._height)


class Ours:
    """The reuse ladder with its calibration, its audits and the sparse executor."""

    name = "ours"

    def __init__(self, network: Network) -> None:
        self._network = network
        self._clock_s, self._offset_s = 0.0, 0.0
        self.calibration: Calibration | None = None
        self.verdict_frames, self.verdict_s, self.has_verdict = 0, 0.0, False
        self.masked = 0  # frames that the mask looked at since the last restart
        self._is_masked = False
        self.rung: Rung = "full"  # of the last frame
        self.ladder: Ladder

    def open(self, frame: Canvas) -> None:
        """Start with a fresh ladder for canvases like this one. O(weights)."""
        size = frame.pixels.shape[0], frame.pixels.shape[1]
        runner, refusal = CanvasRunner(self._network, frame.width, frame.height), ""
        differential: Differential | None = None
        try:
            data = Path(self._network.model.path).read_bytes()
            differential = Differential(data, size, CPU)
        except Refused as error:
            refusal = str(error)

        def calibrate(ladder: Ladder) -> Calibration:
            self.calibration = Calibration(ladder, states_bytes=STATES_BYTES)
            return self.calibration

        self.ladder = Ladder(
            runner,
            differential,
            CostModel(),
            size,
            image=(frame.width, frame.height),
            refusal=refusal,
            calibrate=calibrate,
        )
        self._count_masks(self.ladder.mask)

    def _count_masks(self, mask: ChangeMask) -> None:
        """Notice on which frames two images are compared, for whatever purpose."""
        compare = mask._compare

        def counted(pixels: Pixels, reference: Pixels) -> tuple[int, int]:
            self._is_masked = True
            return compare(pixels, reference)

        mask._compare = counted  # type: ignore[method-assign]

    def calibrate(self, shots: Sequence[Shot], target: float) -> None:
        """Show the ladder the calibration part; it measures its target itself."""
        del target
        self.open(shots[0].frames[0])
        for shot in shots:
            self.cut(shot.camera)
            for at_s, frame in zip(shot.times_s, shot.frames, strict=True):
                self.answer(frame, at_s)
                self.has_verdict |= self.ladder.mode in ("calibrated", "off")
                if not self.has_verdict:
                    self.verdict_frames, self.verdict_s = self.verdict_frames + 1, self._clock_s
        self.ladder.conclude()  # of little footage: a camera would wait for more
        self.restart()

    def restart(self) -> None:
        """Count from here."""
        self.masked = 0
        self._stats, self._saved = Counter(self.ladder.stats), self.ladder.work_saved

    def cut(self, camera: str) -> None:
        """Forget the references: the next frame is of another camera."""
        self._offset_s = self._clock_s + CUT_S
        if self.ladder.mode == "calibrating" and self.calibration is not None:
            self.calibration.cut()
        else:
            self.ladder.let_go()

    def answer(self, frame: Canvas, at_s: float) -> list[Box]:
        """Return the boxes of the next frame, having done what the ladder does after replies."""
        self._clock_s = now_s = self._offset_s + at_s
        self._is_masked = False
        boxes = self._answered(frame, now_s)
        self.masked += self._is_masked
        return boxes

    def _answered(self, frame: Canvas, now_s: float) -> list[Box]:
        if (reused := self.ladder.look(frame.pixels, now_s)) is not None:
            boxes, self.rung = reused
            return boxes
        outcome = self.ladder.serve(frame.pixels, now_s)
        self.rung = outcome.rung
        if outcome.afterwards is not None:
            outcome.afterwards()
        return outcome.boxes

    def since(self, *names: str) -> int:
        """Return how often these were counted since the last restart."""
        return sum(self.ladder.stats[name] - self._stats[name] for name in names)

    @property
    def frames(self) -> int:
        return self.since("same", "gate", "sparse", "full")

    @property
    def hit_ratio(self) -> float:
        """Return the share of frames that were answered without running anything."""
        return self.since("same", "gate") / max(1, self.frames)

    @property
    def work_saved(self) -> float:
        """Return the share of multiply-accumulates not done."""
        return (self.ladder.work_saved - self._saved) / max(1, self.frames)

    def note(self) -> str:
        """Return the setting, the rungs' shares, the audits and the ladder's own words."""
        ladder = self.ladder
        if ladder.mode == "off":
            return ladder.reason
        level = ladder.setting.level
        rungs = ", ".join(
            f"{rung} {self.since(rung) / max(1, self.frames):.0%}"
            for rung in ("same", "gate", "sparse", "full")
            if self.since(rung)
        )
        sparse = f"level {level:g}" if level is not None else "no sparse passes"
        audits = f"{self.since('audits')} audits, {self.since('breaches')} breaches"
        parts = [f"{ladder.mode}: gate {ladder.setting.gate:.3g}, {sparse}", rungs, audits]
        return "; ".join(part for part in (*parts, ladder.reason) if part)
