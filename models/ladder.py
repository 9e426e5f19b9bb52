"""The reuse ladder of one camera and one model: same bytes, gate, sparse pass, full pass.

Owns the reference image and answer, the camera's activations, and the setting by which rungs are
taken; never decodes pixels nor reads a wall clock (`now_s` is CLOCK_MONOTONIC). Invariants: an
answer is reused only for the same canvas geometry, at most `TTL_S` after the last full pass, and
only if no more cells changed against the reference than the setting allows; the reference is what
the held answer and the activations were computed from, cell by cell, so that slow drift adds up
against it; whatever lies outside of what calibration has seen gets a full pass.

Before a camera is calibrated only the strict setting applies: an answer is reused when not one
cell changed by more than noise. Calibration then picks a setting, or "off"; audits watch it:
about every hundredth frame gets a full pass whatever the rung said, which is compared with what
the rung would have answered and which refreshes the reference. A breach tightens the setting,
then switches it off; a scene that has changed its character is calibrated again.
"""

from __future__ import annotations

import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from models.delta.differential import Differential
from models.delta.mask import Change, ChangeMask
from models.entries import Entry
from models.evidence import Evidence
from models.images import Pixels
from models.track import CELL_PX, STRICT, CostModel, Runner, Setting, Track
from models.wire import Box, Rung

if TYPE_CHECKING:
    from models.calibration import Calibration, Verdict

TTL_S = 30.0
AUDIT_FRAMES = (70, 130)  # 1 % of the frames
NOISE_FRAMES = 8  # of so many one is compared with the one before
PROBE_FRAMES = 32  # while off the mask runs on one frame of so many
STRANGE_SHARE = 0.5  # of the last passes beyond the calibrated domain: calibrate again
STRANGE_WINDOW = 32
BREACH_Z = 3.0  # one frame's boxes stand or fall together
STRICT_TARGET = 0.98
LEAST_TARGET = 0.8  # whatever the noise floor, or another node, says
CLEAN_AUDITS = 16  # without a breach: earlier ones are forgiven
AUDIT_BLOCKS = 4  # of audits count, so that a good past does not outweigh the present
CALM_PROBES = 4  # in a row, while off: calibrate again
OFF_FRAMES = 1 << 14  # off without calming down: calibrate again, each time after twice as many

RUNGS = ("full", "sparse", "gate", "same")
STATS = ("frames", *RUNGS, "full: brightness", "full: scene", "audits", "breaches")
Mode = Literal["strict", "calibrating", "calibrated", "off"]


@dataclass(frozen=True)
class Outcome:
    """What a ladder answered: boxes, the rung, and work that may be done after the reply."""

    boxes: list[Box]
    rung: Rung
    afterwards: Callable[[], None] | None = None


class Ladder:
    """Answer the frames of one camera with one model.

    All methods are thread-safe, but `look` belongs to one thread, that of the camera, and passes
    (`serve` and what is done afterwards) to one thread for all ladders that share a differential
    model. Frames must not be written after they were handed over: they become references.
    """

    def __init__(
        self,
        runner: Runner,
        differential: Differential | None,
        costs: CostModel,
        size: tuple[int, int],
        *,
        image: tuple[int, int] | None = None,
        refusal: str = "",
        seed: int = 0,
        calibrate: Callable[[Ladder], Calibration | None] = lambda ladder: None,
    ) -> None:
        """Start strict; `calibrate` is asked for a calibration whenever one is due.

        `size` (height, width) of the canvases, `image` (width, height) of what is on them if that
        is less; `refusal` says why there is no `differential`.
        Raises ValueError for a size without area.
        """
        self.runner, self.differential, self.costs = runner, differential, costs
        self.refusal = refusal
        self.stats = Counter(dict.fromkeys(STATS, 0))  # whole, so that others may iterate over it
        self.mode: Mode = "strict"
        self.reason = "not calibrated yet"
        self.audited = Evidence(AUDIT_BLOCKS)
        self.target = STRICT_TARGET
        self.work_saved = 0.0  # full passes' worth of multiply-accumulates
        self._size = size
        self._image = image or (size[1], size[0])
        self.mask = ChangeMask(*size, cell_px=CELL_PX)
        self._track = self.track(STRICT)
        self._calibrate = calibrate
        self._calibration: Calibration | None = None
        self._random = random.Random(seed)
        self._audit_at = self._random.randint(*AUDIT_FRAMES)  # of stats["frames"]
        self._breaches = 0
        self._strange: deque[bool] = deque(maxlen=STRANGE_WINDOW)
        self._full_s = 0.0  # when the last full pass was
        self._last: Pixels | None = None
        self._seen: tuple[Pixels, Change | None] | None = None  # the last comparison of `look`
        self._last_s: float | None = None  # when the last frame came
        self._interval_s = 0.0
        self._saved_s: float | None = None  # a frame
        self._off_share = 0.0
        self._calm = 0  # probes in a row
        self._offs = 0  # in a row
        self._retry_at = 0  # of stats["frames"], while off
        self._lock = threading.Lock()

    def track(self, setting: Setting) -> Track:
        """Return a track of its own for this camera's frames."""
        parts = self.runner, self.differential, self.costs
        return Track(setting, *parts, self.mask, self._image)

    @property
    def setting(self) -> Setting:
        return self._track.setting

    @property
    def size_bytes(self) -> int:
        """Return the bytes held for this camera, a running calibration's included."""
        calibration = self._calibration
        return self._track.size_bytes + (calibration.size_bytes if calibration is not None else 0)

    @property
    def reference(self) -> Pixels | None:
        """Return the canvas that the held answer belongs to; sparse passes write into it.

        None while off: no answer belongs to what is compared with then.
        """
        return self._track.reference if self.mode != "off" else None

    @property
    def is_warm(self) -> bool:
        """Return whether there is a reference."""
        return self.reference is not None

    def idle_s(self, now_s: float) -> float:
        """Return the time since the last frame."""
        return now_s - self._last_s if self._last_s is not None else 0.0

    def saving(self, now_s: float) -> float | None:
        """Predict the seconds saved a second by what is held; None while unknown."""
        if self._saved_s is None or not self._interval_s:
            return None
        return self._saved_s / max(self._interval_s, self.idle_s(now_s))

    def let_go(self) -> bool:
        """Drop reference and activations, not the calibration; False while a pass is under way."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._track.drop()
            self._seen = None
            if self._calibration is not None:
                self._calibration, self.mode = None, "strict"
            return True
        finally:
            self._lock.release()

    def expire(self, now_s: float) -> None:
        """Drop what is past its time; a calibration too, whose frames have ceased to come."""
        if self._is_old(now_s):
            self.let_go()

    def entry(self, now_s: float, size: tuple[int, int]) -> Entry | None:
        """Return what another node can go on with; None without a valid reference.

        `size` (width, height) of the image on the canvas.
        """
        with self._lock:
            reference, setting = self.reference, self.setting
            if reference is None or self._is_old(now_s):
                return None
            calibrated = (setting.gate, setting.level, setting.domain, self.target)
            return Entry(
                reference.copy(),
                *size,
                self._track.boxes,
                now_s - self._full_s,
                self.mask.noise,
                calibrated if self.mode == "calibrated" else None,
            )

    def adopt(self, entry: Entry, now_s: float) -> bool:
        """Go on with what another node found; False when none of it is news or of use.

        A valid reference of our own stays: it is newer.
        """
        with self._lock:
            own = self._track
            is_valid = self.is_warm and not self._is_old(now_s)
            learns = self.mode == "strict" and not self._breaches
            if self.mode in ("off", "calibrating") or entry.age_s >= TTL_S:
                return False
            if is_valid and not (learns and entry.calibrated):
                return False
            self._seen = None
            if learns and entry.calibrated is not None:
                gate, level, domain, target = entry.calibrated
                if self.differential is None:
                    level = None
                self.target = max(LEAST_TARGET, target)
                self.mode, self.reason = "calibrated", "found by another node"
                self._track = self.track(Setting(gate, level, domain))
            self.mask.assume_noise(entry.noise)
            if is_valid:
                self._track.reference, self._track.boxes = own.reference, own.boxes
            else:
                self._track.drop()  # activations belong to the reference that they came from
                self._track.reference, self._track.boxes = entry.pixels, entry.boxes
                self._full_s = now_s - entry.age_s
            return True

    def record(self, now_s: float) -> dict[str, Any]:
        """Return what is known of this camera, for people."""
        frames = sum(self.stats[rung] for rung in RUNGS)
        return {
            "mode": self.mode,
            "reason": self.reason,
            "gate": self.setting.gate,
            "level": self.setting.level,
            "executor": self.differential.executor if self.differential else "",
            "refusal": self.refusal,
            "target": self.target,
            "audits": self.audited.frames,
            "agreement": self.audited.agreement,
            "breaches": self.stats["breaches"],
            "rungs": {rung: self.stats[rung] for rung in RUNGS},
            "work_saved": self.work_saved / frames if frames else 0.0,
            "size_bytes": self.size_bytes,
            "age_s": now_s - self._full_s if self.is_warm else None,
        }

    def look(self, pixels: Pixels, now_s: float) -> tuple[list[Box], Rung] | None:
        """Return the answer that a new frame may reuse, or None: it has to be served.

        Call once per frame, in order. Never waits for a pass under way. Raises ValueError for a
        canvas of another size. O(pixels).
        """
        self._check_size(pixels)
        self.stats["frames"] += 1
        self._note_time(now_s)
        turn = self.stats["frames"] % NOISE_FRAMES
        last, self._last = self._last, pixels if turn == 0 else None
        if not self._lock.acquire(blocking=False):
            return None
        try:
            self._seen = None
            if last is not None and self.mode != "off":
                self.mask.learn_noise(pixels, last)
            if self.mode in ("off", "calibrating") or self._is_audit or self._is_old(now_s):
                return None
            change = self._track.compare(pixels)
            if change is None or not self._track.holds(change):
                self._seen = (pixels, change)
                return None
            return self._reused(change)
        finally:
            self._lock.release()

    def serve(self, pixels: Pixels, now_s: float) -> Outcome:
        """Answer a frame, by a pass where needed.

        Raises ModelError (the next frame gets a full pass then), ValueError for a canvas of
        another size. O(a full pass).
        """
        self._check_size(pixels)
        with self._lock:
            return self._serve(pixels, now_s)

    def _serve(self, pixels: Pixels, now_s: float) -> Outcome:
        if self.mode == "off":
            return self._unaided(pixels)
        if self.mode == "calibrating":
            return self._calibrated(pixels, now_s)
        seen, self._seen = self._seen, None
        if self._is_old(now_s):
            change = None
        elif seen is not None and seen[0] is pixels:
            change = seen[1]  # nothing was compared or computed since
        else:
            change = self._track.compare(pixels)
        if self._is_audit and change is not None:
            return self._audit(pixels, change, now_s)
        if change is not None and self._track.holds(change):
            return Outcome(*self._reused(change))
        if change is not None and self.mode == "calibrated":
            self._strange.append(change.share > self.setting.domain)
        rung = self._track.step(pixels, change)
        boxes = self._track.boxes  # before a calibration drops them
        self._count(rung, now_s, cold=change is None)
        if change is not None and change.kind in ("brightness", "scene"):
            self.stats[f"full: {change.kind}"] += 1
        self._reconsider()
        return Outcome(boxes, rung)

    def _reused(self, change: Change) -> tuple[list[Box], Rung]:
        rung: Rung = "same" if change.kind == "same" else "gate"
        self._count(rung, 0.0)
        return self._track.boxes, rung

    def _count(self, rung: Rung, now_s: float, *, cold: bool = False) -> None:
        """Count a frame; one that found no reference says nothing about what a reference saves."""
        self.stats[rung] += 1
        saved = 1 - {"full": 1.0, "sparse": self._track.work}.get(rung, 0.0)
        self.work_saved += saved
        if self.mode != "calibrating" and not cold:
            saved_s, old_s = saved * self.costs.full_s, self._saved_s
            self._saved_s = saved_s if old_s is None else 0.95 * old_s + 0.05 * saved_s
        if rung == "full":
            self._full_s = now_s

    def _note_time(self, now_s: float) -> None:
        if self._last_s is not None:
            weight = 0.1 if self._interval_s else 1.0
            self._interval_s += weight * (now_s - self._last_s - self._interval_s)
        self._last_s = now_s

    def _is_old(self, now_s: float) -> bool:
        return not 0 <= now_s - self._full_s < TTL_S

    @property
    def _is_audit(self) -> bool:
        return self.stats["frames"] >= self._audit_at

    def _check_size(self, pixels: Pixels) -> None:
        if pixels.shape[:2] != self._size:
            size = " x ".join(str(side) for side in pixels.shape[:2])
            raise ValueError(f"a canvas of {size} came to a ladder for {self._size}")

    # Calibration, audits, and what follows from them.

    def _reconsider(self) -> None:
        """Start a calibration where one is due."""
        strange = sum(self._strange) > STRANGE_SHARE * STRANGE_WINDOW
        if self.mode == "strict" or strange:
            calibration = self._calibrate(self)
            if calibration is not None:
                first = "audits found reuse wrong" if self._breaches else "first frames"
                self._begin(calibration, "the scene has changed" if strange else first)

    def _begin(self, calibration: Calibration, reason: str) -> None:
        self._calibration = calibration
        self.mode, self.reason = "calibrating", reason
        self._strange.clear()
        self._track = self.track(STRICT)

    def _calibrated(self, pixels: Pixels, now_s: float) -> Outcome:
        """Answer by a full pass and let the calibration learn from it after the reply."""
        calibration = self._calibration
        assert calibration is not None, "the mode says so"
        started_s = self.costs.clock()
        boxes = self.runner.full(pixels)
        self.costs.learn_full(self.costs.clock() - started_s)
        self._count("full", now_s)

        def learn() -> None:
            with self._lock:
                if calibration is not self._calibration:
                    return
                verdict = calibration.observe(pixels, boxes, now_s)
                if verdict is not None:
                    self._adopt(verdict)

        return Outcome(boxes, "full", learn)

    def conclude(self) -> None:
        """End a running calibration now, with the verdict on what it has seen so far."""
        with self._lock:
            if self._calibration is not None:
                self._adopt(self._calibration.conclude())

    def _adopt(self, verdict: Verdict) -> None:
        self._calibration = None
        self.audited = Evidence(AUDIT_BLOCKS)
        self.reason, self.target = verdict.reason, verdict.target
        self._off_share = verdict.share
        if verdict.setting is None:
            self._switch_off()
        else:
            self.mode, self._offs = "calibrated", 0
            self._track = self.track(verdict.setting)

    def _switch_off(self) -> None:
        """Answer by full passes until the scene calms down, or for long enough to try again."""
        self.mode, self._calm = "off", 0
        self._track = self.track(Setting())  # as the strictest trial measures change
        self._retry_at = self.stats["frames"] + (OFF_FRAMES << min(self._offs, 6))
        self._offs += 1

    def _audit(self, pixels: Pixels, change: Change, now_s: float) -> Outcome:
        """Take a full pass and compare with it what the setting would have answered."""
        self._audit_at = self.stats["frames"] + self._random.randint(*AUDIT_FRAMES)
        rung = self._track.step(pixels, change)
        given = self._track.boxes
        if rung != "full":
            self._track.refresh(pixels)
        boxes = self._track.boxes  # before a breach drops them
        self._count("full", now_s)
        # The target is for all frames, so those that got a full pass anyway count too.
        self.audited.add(boxes, given)
        self.stats["audits"] += 1
        if self.audited.bounds(BREACH_Z)[1] < self.target:
            self._tighten()
        elif self.audited.frames >= CLEAN_AUDITS:
            self._breaches = 0
        return Outcome(boxes, "full")

    def _tighten(self) -> None:
        """Go one step back after a breach: half the gate, then strict, then off."""
        self._breaches += 1
        self.stats["breaches"] += 1
        agreement = f"audits agree to {self.audited.agreement:.3f}, not {self.target:.3f}"
        self.audited = Evidence(AUDIT_BLOCKS)
        self._strange.clear()
        if self._breaches == 1:
            level = self.setting.level
            setting = replace(
                self.setting, gate=self.setting.gate / 2, level=level / 2 if level else level
            )
            self.reason = f"tightened: {agreement}"
            self._track = self.track(setting)
        elif self._breaches == 2:
            self.mode, self.reason = "strict", f"strict: {agreement}"
            self._track = self.track(STRICT)
        else:
            self.reason = f"off: {agreement}"
            self._switch_off()

    def _unaided(self, pixels: Pixels) -> Outcome:
        """Answer by a full pass alone; look at one frame of many whether the scene calms down."""
        turn = self.stats["full"] % PROBE_FRAMES
        if turn == 0:
            self._track.reference = pixels
        elif turn == 1 and (change := self._track.compare(pixels)) is not None:
            self._calm = self._calm + 1 if change.share < self._off_share / 2 else 0
            is_calm = self._calm >= CALM_PROBES
            if is_calm or self.stats["frames"] >= self._retry_at:
                calibration = self._calibrate(self)
                if calibration is not None:
                    calm = "the scene has calmed down"
                    self._begin(calibration, calm if is_calm else "off for long: tried again")
        boxes = self.runner.full(pixels)
        self.stats["full"] += 1
        return Outcome(boxes, "full")
