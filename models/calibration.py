"""Choose by which setting a camera's frames are reused, on frames with known full answers.

Owns the trials of one camera and model while they run; never decides when to calibrate. Invariant:
a setting is chosen only if the lower confidence bound of its agreement with the full passes
reaches the target, and only if it is faster than full passes; else the verdict is "off".

All settings are tried side by side on the same frames, because only then do their speeds and
agreements compare: gates alone need no more than a reference image each, those with sparse passes
behind them a camera's activations each, as many as memory allows. What is shown to be too
inexact or too slow leaves early. The target is the smaller of `TARGET` and the noise floor: the
full pass's agreement with itself when a grey level of noise is added. A model whose answers to
the very same frame differ is switched off, because then the floor means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from models.evidence import Evidence
from models.images import Pixels
from models.ladder import LEAST_TARGET, Ladder
from models.track import CostModel, Setting, Track
from models.wire import Box, ModelError

TARGET = 0.98
Z = 1.0
GATES = (0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.045, 0.05, 0.055, 0.06, 0.075, 0.09)
SPARSE = (  # (gate, level), most often useful first
    (0.04, 1.0),
    (0.06, 2.0),
    (0.02, 0.75),
    (0.05, 1.5),
    (0.09, 2.0),
    (0.0, 0.75),
    (0.03, 1.5),
    (0.01, 1.0),
    (0.06, 1.0),
    (0.04, 0.75),
)
ENOUGH_BOXES = 1000.0
LEAST_PASSES = 64  # references to judge by what errs, or as many as the strictest trial needed
LEAST_FRAMES = 128  # a crowd that stands still for a moment is no evidence
MOST_FRAMES = 1500
MOST_S = 280.0  # of footage: the verdict is there within five minutes
FLOOR_FRAMES = 4  # every so many get a noisy copy
REPEAT_FRAMES = 16  # every so many, the first too, are answered twice
LEAST_DOMAIN = 0.25  # share of changed cells: less is no change of character
LEAST_GAIN = 0.97  # of the full pass's time: what saves less is not worth having
STATES_BYTES = 144 << 20
GIVE_UP_FRAMES, GIVE_UP_BOXES, GIVE_UP_Z = 24, 200.0, 2.0


@dataclass(frozen=True)
class Verdict:
    """What a calibration found: a setting, or None for "off", and why."""

    setting: Setting | None
    reason: str
    target: float
    share: float  # of cells changed, typically, between two passes of the strictest trial


@dataclass(eq=False)
class Trial:
    """One setting tried beside the full passes."""

    track: Track
    evidence: Evidence = field(default_factory=Evidence)
    spent_s: float = 0.0
    passes: int = 0
    shares: list[float] = field(default_factory=list)
    held: float = 0.0  # the largest share of changed cells over which an answer was given again

    @property
    def setting(self) -> Setting:
        return self.track.setting

    def step(self, pixels: Pixels, full: list[Box], costs: CostModel) -> None:
        """Answer a frame under the setting; a full pass costs what it costs and says `full`.

        Raises ModelError when a pass of the differential model fails.
        """
        track = self.track
        started_s = costs.clock()
        change = track.compare(pixels)
        if self.setting.level is not None or track.holds(change):
            rung = track.step(pixels, change)
        else:
            track.reference, track.boxes, rung = pixels, full, "full"
            self.spent_s += costs.full_s
        self.spent_s += costs.clock() - started_s
        if rung in ("sparse", "full"):
            self.passes += 1
            if change is not None:
                self.shares.append(change.share)
        elif change is not None:
            self.held = max(self.held, change.share)
        self.evidence.add(full, track.boxes, joined=rung in ("gate", "same"))

    def is_sure(self, target: float, passes: int) -> bool:
        """Return whether it agrees to a target for sure; one that erred, over so many passes."""
        has_erred = self.evidence.agreement < 1
        return self.evidence.bounds(Z)[0] >= target and (not has_erred or self.passes >= passes)

    def cost_s(self) -> float:
        """Return the mean seconds a frame."""
        return self.spent_s / max(1, self.evidence.frames)


class Calibration:
    """Find the fastest setting that agrees well enough. Not for concurrent use."""

    def __init__(
        self,
        ladder: Ladder,
        *,
        states_bytes: int = STATES_BYTES,
        seed: int = 0,
    ) -> None:
        """Prepare the trials; those with sparse passes as `states_bytes` of activations allow."""
        self._ladder = ladder
        self._random = np.random.default_rng(seed)
        self._floor = Evidence()
        self._repeats = Evidence()
        self._full_s = 0.0  # of full passes, summed over the frames
        settings = [Setting(gate) for gate in GATES]
        if (differential := ladder.differential) is not None:
            room = states_bytes // max(1, differential.state_bytes)
            settings += [Setting(*one) for one in SPARSE[: max(1, room)]]
        self._trials = [Trial(ladder.track(setting)) for setting in settings]
        self.trials = tuple(self._trials)
        self._frames = 0
        self._began_s = 0.0

    @property
    def size_bytes(self) -> int:
        """Return the bytes of the trials' references and activations; shared images count once."""
        tracks = [trial.track for trial in tuple(self._trials)]
        images = {id(one.reference): one.image_bytes for one in tracks}
        return sum(images.values()) + sum(one.state_bytes for one in tracks)

    @property
    def target(self) -> float:
        """Return what agreement has to reach: the noise floor where that is lower."""
        return min(TARGET, max(LEAST_TARGET, self._floor.agreement))

    def observe(self, pixels: Pixels, full: list[Box], now_s: float) -> Verdict | None:
        """Learn from a frame and the answer of its full pass; return the verdict once known.

        A trial whose pass fails is ended. Raises ModelError when a full pass fails.
        """
        if self._frames == 0:
            self._began_s = now_s
        if self._frames % REPEAT_FRAMES == 0:
            self._repeats.add(full, self._ladder.runner.full(pixels))
            if self._repeats.agreement < TARGET:
                reason = "off: the model answers the same frame differently: nothing can be reused"
                return Verdict(None, reason, TARGET, 0.0)
        self._frames += 1
        if self._frames % FLOOR_FRAMES == 0:
            self._floor.add(full, self._ladder.runner.full(self._noisy(pixels)))
        self._full_s += self._ladder.costs.full_s
        self._try(pixels, full)
        if self._frames % GIVE_UP_FRAMES == 0:
            self._give_up()
        boxes = self._trials[0].evidence.boxes
        is_enough = boxes >= ENOUGH_BOXES and self._frames >= LEAST_FRAMES
        is_late = self._frames >= MOST_FRAMES or now_s - self._began_s >= MOST_S
        return self.conclude() if is_enough or is_late else None

    def _try(self, pixels: Pixels, full: list[Box]) -> None:
        for trial in tuple(self._trials):
            try:
                trial.step(pixels, full, self._ladder.costs)
            except ModelError:
                self._trials.remove(trial)
                trial.track.drop()

    def cut(self) -> None:
        """Say that the next frame does not follow the last one: all references are dropped."""
        for trial in self._trials:
            trial.track.drop()

    def conclude(self) -> Verdict:
        """Return the verdict on what has been seen so far."""
        full_s, target, strict = self._full_s / max(1, self._frames), self.target, self._trials[0]
        passes = min(LEAST_PASSES, strict.passes)
        good = [trial for trial in self._trials if trial.is_sure(target, passes)]
        best = min(good, key=Trial.cost_s, default=None)
        share = float(np.median(strict.shares)) if strict.shares else 0.0
        if best is None:
            boxes = strict.evidence.boxes
            reason = f"off: no setting agrees to {target:.3f} for sure over {boxes:.0f} boxes"
            return Verdict(None, reason, target, share)
        if best.cost_s() > LEAST_GAIN * full_s:
            return Verdict(None, "off: reuse is no faster than full passes here", target, share)
        seen = 2 * float(np.quantile(best.shares, 0.98)) if best.shares else 0.0
        # A wider gate than was ever needed here has not been tried out.
        gate = min(best.setting.gate, best.held)
        setting = Setting(gate, best.setting.level, max(LEAST_DOMAIN, seen))
        speed = full_s / max(1e-9, best.cost_s())
        reason = (
            f"agrees to {best.evidence.agreement:.3f} (for sure to {best.evidence.bounds(Z)[0]:.3f}"
            f", wanted {target:.3f}) at {speed:.1f} x the speed of full passes"
        )
        return Verdict(setting, reason, target, share)

    def _noisy(self, pixels: Pixels) -> Pixels:
        noisy = pixels + self._random.standard_normal(pixels.shape, np.float32)
        rounded: Pixels = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        return rounded

    def _give_up(self) -> None:
        """End the trials that are surely too inexact, and sparse ones slower than full passes."""
        target, full_s = self.target, self._full_s / self._frames
        strict, *rest = self._trials
        self._trials = [strict]
        for trial in rest:
            slow = trial.setting.level is not None and trial.cost_s() > full_s
            # One unlucky reference spoils many frames: a few boxes are no proof.
            known = trial.evidence.boxes >= GIVE_UP_BOXES
            if slow or (known and trial.evidence.bounds(GIVE_UP_Z)[1] < target):
                trial.track.drop()
            else:
                self._trials.append(trial)
