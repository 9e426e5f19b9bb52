"""The one inference thread of an accelerator: queue, ladder, session, pacing, prediction.

Owns the loaded sessions, the deadline queue, the output cache and the estimates of service
time; never touches sockets or cameras. Invariants: one model runs at a time; every submitted
job is answered exactly once, with an `Inference`, a `Shed` or a `ModelError`; with `share` < 1
the thread starts its next pass no earlier than (time used) / share after the last one started.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.accelerators import AcceleratorSpec
from models.cache import ReuseCache
from models.images import Canvas, Pixels, Scaler
from models.ladder import Ladder, Outcome
from models.queue import DeadlineQueue, Task
from models.sessions import Session, open_warm
from models.wire import (
    EFFORTS,
    Box,
    CacheHolding,
    Effort,
    Inference,
    ModelError,
    ModelFile,
    Rung,
    Shed,
)

EMA_WEIGHT = 0.2
# An estimate that sheds work shrinks a little, so that it cannot shed for ever unmeasured.
SHED_DECAY = 0.9
EXPIRY_PERIOD_S = 5.0
# While others wait, calibration learns from one frame of so many only.
LEARN_WHILE_BUSY = 8
# Calibration learns by many passes a frame: where passes take more of the time than this it does
# not begin, and what has begun learns from one frame of so many.
ROOM, LEARN_WITHOUT_ROOM = 0.7, 32
LOAD_MEMORY_S = 10.0
# It may take as long as so many passes before it is taken to hang.
LEARN_PASSES = 32
MOST_RATIOS = 1024

Answer = Inference | Shed | ModelError


@dataclass(eq=False)
class View:
    """One frame as one model sees it, for all agents of its camera.

    `ladder` is None where nothing is reused. `found` is its answer: the one that it may reuse,
    else the one of the first pass. `is_asked` once that pass waits for its turn: what is asked
    later costs nothing.
    """

    digest: str
    canvas: Canvas
    ladder: Ladder | None
    found: tuple[list[Box], Rung] | None
    is_asked: bool = False

    @property
    def image(self) -> Pixels:
        """Return what is on the canvas, without its padding."""
        return self.canvas.pixels[: self.canvas.height, : self.canvas.width]


@dataclass(eq=False)
class Job:
    """Describe one frame to be answered; `view` is None where no model has looked at it yet."""

    agent: str
    digest: str
    pixels: Pixels
    view: View | None
    arrived_s: float
    reply: Callable[[Answer], None]
    effort: Effort = "full"


@dataclass
class Estimate:
    """Hold moving averages of a model at an effort: time to the answer, and to the next start."""

    run_s: float
    cost_s: float

    def learn(self, run_s: float, cost_s: float) -> None:
        self.run_s += EMA_WEIGHT * (run_s - self.run_s)
        self.cost_s += EMA_WEIGHT * (cost_s - self.cost_s)


class Engine:
    """Answer jobs in order of their deadlines. Call `start` once; all methods are thread-safe."""

    def __init__(
        self,
        spec: AcceleratorSpec,
        *,
        on_cache_change: Callable[[CacheHolding], None],
        on_load_change: Callable[[], None],
    ) -> None:
        self.spec = spec
        self.cache = ReuseCache(
            limit_bytes=spec.cache_mb * 10**6, on_change=on_cache_change, has_room=self._has_room
        )
        self._load = 0.0  # share of the time taken by passes and their rest, as of
        self._load_at_s = time.monotonic()
        self._unlearned = 0
        self._on_load_change = on_load_change
        self._queue: DeadlineQueue[Job] = DeadlineQueue(spec.queue)
        self._wake = threading.Condition()
        self._sessions: dict[str, Session] = {}
        self._estimates: dict[tuple[str, Effort], Estimate] = {}
        # Of what a pass of an agent's frame costs to that of a dense one: less where it is sparse.
        self._ratios: dict[tuple[str, str, Effort], float] = {}
        self._running_since_s = 0.0  # 0 = idle
        self._passes = 1  # that what is running now counts as at most
        self._learn_s = 0.0  # moving average of what a calibration takes a frame
        self._busy_until_s = 0.0  # predicted while running, known while pausing
        self._stopping = False
        self._scaler = Scaler()

    def start(self) -> None:
        """Start the inference thread."""
        threading.Thread(target=self._run, name="inference", daemon=True).start()

    def stop(self) -> None:
        """Shed what waits ("draining") and let the thread end after its current pass."""
        with self._wake:
            self._stopping = True
            waiting = self._queue.remove(lambda task: True)
            self._wake.notify_all()
        for task in waiting:
            task.payload.reply(Shed("draining"))

    def load(self, model: ModelFile) -> dict[Effort, float]:
        """Open and warm a model in the calling thread; return its predicted costs in seconds.

        Raises ModelError; what was loaded before stays in use then.
        """
        session = open_warm(model, self.spec)
        with self._wake:
            self._sessions[model.digest] = session
            for effort, warm_s in session.warm_s.items():
                cost_s = max(warm_s, warm_s / self.spec.share)
                self._estimates.setdefault((model.digest, effort), Estimate(warm_s, cost_s))
        return {effort: self.cost_s(model.digest, effort) for effort in EFFORTS}

    def unload(self, digest: str) -> None:
        """Forget a model, its cache entries and its estimates; unknown digests are no error."""
        with self._wake:
            self._sessions.pop(digest, None)
            for effort in EFFORTS:
                self._estimates.pop((digest, effort), None)
        self.cache.forget(digest=digest)

    def session(self, digest: str) -> Session:
        """Return a loaded session; raises ModelError when there is none."""
        found = self._sessions.get(digest)
        if found is None:
            raise ModelError(f"no model with digest {digest[:16]} is loaded on {self.spec.name}")
        return found

    def loaded(self, digest: str) -> bool:
        """Return whether a model is loaded."""
        return digest in self._sessions

    def prepare(self, digest: str, width: int, height: int) -> None:
        """Compile what frames of a size need; seconds the first time, then nothing.

        No such model, or one that does not fit, is for `look` to report.
        """
        if not self.spec.cache_mb:
            return
        try:
            session = self.session(digest)
            session.differential(session.check_fits(width, height))
        except ModelError:
            pass

    def look(
        self,
        agent: str,
        digest: str,
        pixels: Pixels,
        scaler: Scaler,
        others: Sequence[str] = (),
    ) -> View:
        """Return a new frame as a model sees it. Once per frame and model, in order.

        It is that of the `others` too, who want the same frames answered by the same model.
        Raises ModelError when no such model is loaded or it does not fit. O(pixels).
        """
        session = self.session(digest)
        canvas = session.canvas(pixels, scaler)
        if not self.spec.cache_mb:
            return View(digest, canvas, None, None)
        ladder = self.cache.ladder(agent, session, canvas, others)
        return View(digest, canvas, ladder, ladder.look(canvas.pixels, time.monotonic()))

    def submit(self, job: Job, deadline_s: float, tier: int) -> None:
        """Queue a job, or answer it with the reason why not. O(queue)."""
        with self._wake:
            losers = self._push(job, deadline_s, tier)
            self._wake.notify()
        for loser, why in losers:
            loser.reply(why)
        if not any(loser is job for loser, _ in losers):
            self._on_load_change()

    def _push(self, job: Job, deadline_s: float, tier: int) -> list[tuple[Job, Answer]]:
        """Queue a job; return who goes unserved, and why: others, or the job itself."""
        key = (job.digest, job.effort)
        estimate = self._estimates.get(key)
        if self._stopping:
            return [(job, Shed("draining"))]
        if estimate is None:
            return [(job, ModelError(f"no model with digest {job.digest[:16]} is loaded"))]
        view = job.view if job.effort == "full" else None  # half is no pass that others wait for
        is_free = view is not None and view.is_asked
        ratio = 0.0 if is_free else self._ratios.get((job.agent, *key), 1.0)
        run_s, cost_s = ratio * estimate.run_s, ratio * estimate.cost_s
        task = Task(job.agent, deadline_s, tier, run_s, cost_s, job.arrived_s, job)
        try:
            victims = self._queue.push(task, time.monotonic())
        except Shed as shed:
            return [(job, shed)]
        if view is not None:
            view.is_asked = True
        return [(victim.payload, Shed("queue full")) for victim in victims]

    def answer(
        self, job: Job, boxes: list[Box], rung: Rung, started_s: float, effort: Effort = "full"
    ) -> None:
        """Answer a job with what is known already, at `effort`."""
        try:
            variant = self.session(job.digest).model.variant
        except ModelError as error:
            job.reply(error)
            return
        job.reply(
            Inference(
                boxes,
                job.digest,
                variant,
                rung,
                service_ms=(time.monotonic() - started_s) * 1000,
                wait_ms=max(0.0, started_s - job.arrived_s) * 1000,
                waits_ms=[wait_s * 1000 for wait_s in self.figures()[0]],
                effort=effort,
            )
        )

    def figures(self) -> tuple[list[float], int]:
        """Return the predicted waits of a new task of tier 1, 2, 3 in seconds, and the length."""
        with self._wake:
            rest_s = max(0.0, self._busy_until_s - time.monotonic())
            return [rest_s + wait_s for wait_s in self._queue.waits_s()], len(self._queue)

    def cost_s(self, digest: str, effort: Effort) -> float:
        """Return the moving average of what a dense pass costs, pacing included; 0 if unknown."""
        estimate = self._estimates.get((digest, effort))
        return estimate.cost_s if estimate else 0.0

    def running_s(self) -> float:
        """Return for how long the current pass has been running, 0 when none is.

        What a calibration learns from a frame consists of many: their mean, at the most of them.
        """
        since_s, passes = self._running_since_s, self._passes
        return (time.monotonic() - since_s) / passes if since_s else 0.0

    def _run(self) -> None:
        expired_s = time.monotonic()
        while True:
            with self._wake:
                if not len(self._queue) and not self._stopping:
                    self._wake.wait(timeout=EXPIRY_PERIOD_S)
                if self._stopping:
                    return
                task, late = self._queue.pop(time.monotonic())
                for loser in late:
                    self._doubt(loser)
                if task is not None:
                    self._running_since_s = time.monotonic()
                    self._busy_until_s = self._running_since_s + task.cost_s
            for loser in late:
                loser.payload.reply(Shed("deadline"))
            if task is not None:
                self._serve(task.payload)
            elif late:
                self._on_load_change()
            if time.monotonic() - expired_s >= EXPIRY_PERIOD_S:
                # Outside the lock: it reports through the socket and asks for our figures.
                expired_s = time.monotonic()
                self.cache.expire(expired_s)

    def _doubt(self, task: Task[Job]) -> None:
        estimate = self._estimates.get((task.payload.digest, task.payload.effort))
        if estimate is not None and time.monotonic() < task.deadline_s:
            estimate.run_s *= SHED_DECAY

    def _serve(self, job: Job) -> None:
        """Run one job and then rest as long as `share` asks for."""
        started_s, started_cpu_s = time.monotonic(), time.thread_time()
        outcome, effort = self._infer(job)
        wall_s = time.monotonic() - started_s
        cost_s = self._cost_s(started_s, started_cpu_s)
        self._note_load(started_s, cost_s)
        with self._wake:
            self._running_since_s = 0.0
            self._busy_until_s = started_s + cost_s
            estimate = self._estimates.get((job.digest, effort))
            if estimate and isinstance(outcome, Outcome):
                self._learn_ratio((job.agent, job.digest, effort), cost_s / estimate.cost_s)
                if outcome.rung == "full":
                    estimate.learn(wall_s, cost_s)
        if isinstance(outcome, ModelError):
            job.reply(outcome)
        else:
            self.answer(job, outcome.boxes, outcome.rung, started_s, effort)
            self._learn(outcome)
            self.cache.settle(time.monotonic())
        until_s = started_s + self._cost_s(started_s, started_cpu_s)
        with self._wake:
            self._busy_until_s = until_s
            while not self._stopping and (rest_s := until_s - time.monotonic()) > 0:
                self._wake.wait(timeout=rest_s)

    def _learn_ratio(self, key: tuple[str, str, Effort], ratio: float) -> None:
        known = self._ratios.pop(key, 1.0)
        self._ratios[key] = known + EMA_WEIGHT * (min(1.0, ratio) - known)
        while len(self._ratios) > MOST_RATIOS:
            del self._ratios[next(iter(self._ratios))]  # whose frames came longest ago

    def _note_load(self, now_s: float, cost_s: float) -> None:
        """Let the past fade and add a pass. With steady work this is the share it takes."""
        self._load *= math.exp((self._load_at_s - now_s) / LOAD_MEMORY_S)
        self._load += cost_s / LOAD_MEMORY_S
        self._load_at_s = now_s

    def _has_room(self) -> bool:
        """Return whether there is time for more than passes."""
        return self._load < ROOM

    def _cost_s(self, started_s: float, started_cpu_s: float) -> float:
        """Return how long what was begun then occupies this thread, its rest included."""
        wall_s = time.monotonic() - started_s
        # ONNX Runtime's CPU provider works in this very thread; others elsewhere.
        cpu_s = time.thread_time() - started_cpu_s
        used_s = cpu_s if self.spec.provider == "cpu" else wall_s
        return max(wall_s, used_s / self.spec.share)

    def _infer(self, job: Job) -> tuple[Outcome | ModelError, Effort]:
        """Climb the ladder for one job: the answer, or why there is none, and at which effort.

        At half effort the ladder only gives what it has: its state stays that of full passes.
        """
        try:
            session, view = self.session(job.digest), job.view
            if view is not None and view.found is not None:
                return Outcome(*view.found), "full"
            if view is None or job.effort == "half":  # a ladder might have to be compiled first
                canvas = view.canvas if view else session.canvas(job.pixels, self._scaler)
                canvas = session.halved(canvas) if job.effort == "half" else canvas
                return Outcome(session.run(canvas), "full"), job.effort
            if view.ladder is None:
                outcome = Outcome(session.run(view.canvas), "full")
            else:
                outcome = view.ladder.serve(view.canvas.pixels, time.monotonic())
            view.found = outcome.boxes, "same"
            return outcome, "full"
        except ModelError as error:
            return error, job.effort

    def _learn(self, outcome: Outcome) -> None:
        """Let a calibration learn from a pass, rarely while others wait."""
        if outcome.afterwards is None:
            return
        self._unlearned += 1
        began_s = time.monotonic()
        with self._wake:
            is_free = not len(self._queue) and self._has_room()
            most = LEARN_WHILE_BUSY if self._has_room() else LEARN_WITHOUT_ROOM
            if not is_free and self._unlearned < most:
                return
            self._passes, self._running_since_s = LEARN_PASSES, began_s
            self._busy_until_s = max(self._busy_until_s, began_s) + self._learn_s / self.spec.share
        self._unlearned = 0
        try:
            outcome.afterwards()
        except ModelError:
            self.cache.stats["calibration failed"] += 1
        with self._wake:
            self._running_since_s, self._passes = 0.0, 1
            self._learn_s += EMA_WEIGHT * (time.monotonic() - began_s - self._learn_s)
