"""The affinity model as the daemon uses it: predict, observe, learn, never be without an answer.

Owns the ladder from the declared prior to a learned model, the correction of each place by what it
did last, and the contest by which a newly trained model takes over; never trains, never reads the
clock and never decides where a task runs. Invariant: a prediction is always given: what is missing
or broken (library, file, disk) leaves the prior corrected by what was observed, and a bad new model
leaves the old one.

Not thread-safe: one thread predicts and observes. Regret cannot be seen where only one candidate
of a task runs, so models compete on the rolling error of their predictions for the same tasks; the
benchmark, which knows all candidates, shows the regret.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from math import exp, isfinite, log
from pathlib import Path
from typing import Any

from models.affinity.bias import Bias
from models.affinity.features import Features
from models.affinity.learned import DIRECT_ROWS, RESIDUAL_ROWS, Learned, load
from models.affinity.traces import Trace, Traces
from models.energy import DECLARED_W
from models.wire import ModelError

RETRAIN_ROWS = 1_000
RETRY_ROWS = 200
JUDGE_EVERY = 20
CONTEST_TASKS = 100
LONGEST_CONTEST_TASKS = 400
WINDOW = 200
PRIOR_LEAD = 0.95  # of the model's error: below, the prior takes over again
DRIFT_CHI = 15.0  # half of chi-square, 9 degrees of freedom: one window in 2,000 without drift
CURRENT_NAME = "current.model"
SHADOW_NAME = "shadow.model"


class _Contender:
    """One way to predict, with its own corrections and its own record."""

    def __init__(self, learned: Learned | None) -> None:
        self.learned, self.bias = learned, Bias()
        self.errors: deque[float] = deque(maxlen=WINDOW)

    def log_ms(self, features: Sequence[Features]) -> list[float]:
        if self.learned is not None:
            try:
                return self.learned.log_ms(features)
            except ModelError:
                self.learned = None  # never seen, but a prediction must be given
        return [log(one.prior_ms) for one in features]

    def observe(self, features: Features, log_ms: float, now_s: float) -> float:
        """Return the residual before correction."""
        residual = log_ms - self.log_ms((features,))[0]
        place = (features.node, features.accelerator)
        self.errors.append(abs(residual - self.bias.get(place)))
        self.bias.add(place, residual, now_s)
        return residual

    def error(self, tasks: int = WINDOW) -> float:
        """Return the mean absolute log residual of the newest tasks, 0 if there are none."""
        newest = list(self.errors)[-tasks:]
        return sum(newest) / len(newest) if newest else 0.0


class _Drift:
    """How far residuals have moved from those the model had on rows held out."""

    def __init__(self, edges: Sequence[float], held_out: int) -> None:
        self._edges = edges
        # What two samples of one distribution differ by; the fewer were held out the more.
        self._alarm_kl = DRIFT_CHI * (1 / WINDOW + 1 / held_out)
        self._newest: deque[int] = deque(maxlen=WINDOW)
        self._counts = [0] * (len(edges) + 1)

    def add(self, residual: float) -> None:
        if len(self._newest) == WINDOW:
            self._counts[self._newest[0]] -= 1
        bin_ = bisect_right(self._edges, residual)
        self._newest.append(bin_)
        self._counts[bin_] += 1

    @property
    def kl(self) -> float:
        """Return the divergence of the window from equal deciles, 0 until it is full."""
        if len(self._newest) < WINDOW:
            return 0.0
        bins = len(self._counts)
        shares = [(count + 1) / (WINDOW + bins) for count in self._counts]
        return sum(share * log(share * bins) for share in shares)

    @property
    def alarm(self) -> bool:
        return self.kl > self._alarm_kl


class Affinity:
    """Predict what a task would cost on each candidate, and learn from what it did cost."""

    def __init__(
        self,
        folder: Path,
        *,
        traces: Traces | None = None,
        watts: Mapping[str, float] = DECLARED_W,
        energy_source: str = "declared",
    ) -> None:
        """Take up the models in `folder`, if any; without `traces` nothing new is learned.

        `watts` maps an accelerator type to its draw while it works. Never raises for a bad file:
        `trouble` says what was wrong.
        """
        self.trouble = ""
        self._folder, self._traces = folder, traces
        self._watts, self._energy_source = watts, energy_source
        self._prior = _Contender(None)
        self._shadow: _Contender | None = None
        self._contest_tasks = self._tasks = 0
        current = self._take_up(CURRENT_NAME)
        self._use(_Contender(current) if current else self._prior)
        self._challenge(self._take_up(SHADOW_NAME))
        self._fresh_rows = max(0, self.rows - (current.about.rows if current else 0))

    @property
    def rows(self) -> int:
        """Return how many traces there are."""
        return self._traces.rows if self._traces else 0

    def predict_ms(self, features: Sequence[Features]) -> list[float]:
        """Return the service time of each candidate in ms. About 2 us a candidate."""
        bias = self._current.bias.values.get
        return [
            exp(value + bias((one[7], one[8]), 0.0))  # node, accelerator
            for value, one in zip(self._current.log_ms(features), features, strict=True)
        ]

    def predict_j(self, features: Sequence[Features]) -> list[float]:
        """Return the energy of each candidate in joules, by the declared watts where need be."""
        bias = self._energy_bias.get
        return [
            exp(value + bias((one.node, one.accelerator)))
            for value, one in zip(self._log_j(features), features, strict=True)
        ]

    def observe(
        self, features: Features, actual_ms: float, energy_j: float | None = None, *, now_s: float
    ) -> None:
        """Learn from one task that ran; `now_s` is wall time.

        Raises ValueError (nothing changed) for a time or an energy that is not positive.
        """
        for number in (actual_ms, features.prior_ms, 1.0 if energy_j is None else energy_j):
            if not (isfinite(number) and number > 0):
                raise ValueError(f"a task cannot have cost {number}")
        if self._traces:
            self._traces.append(Trace(now_s, features, actual_ms, energy_j))
            self._fresh_rows += 1
        log_ms, place = log(actual_ms), (features.node, features.accelerator)
        if energy_j is not None:
            self._energy_bias.add(place, log(energy_j) - self._log_j((features,))[0], now_s)
        residual = self._prior.observe(features, log_ms, now_s)
        if self._current is not self._prior:
            residual = self._current.observe(features, log_ms, now_s)
        if self._drift:
            self._drift.add(residual)
        self._judge(features, log_ms, now_s)

    @property
    def drifting(self) -> bool:
        """Say whether the residuals are no longer those the model was trained to."""
        return self._drift is not None and self._drift.alarm

    def wants_training(self) -> bool:
        """Say whether a new model should be trained now."""
        stored = self._traces.stored if self._traces else 0
        if self._shadow or stored < RESIDUAL_ROWS or self._fresh_rows < RETRY_ROWS:
            return False
        about = self._current.learned.about if self._current.learned else None
        outgrown = about is not None and about.stage == "residual" and stored >= DIRECT_ROWS
        return about is None or outgrown or self.drifting or self._fresh_rows >= RETRAIN_ROWS

    def begin_training(self, folder: Path) -> list[str]:
        """Return the command that trains a model into `folder`; it prints JSON with its `path`.

        Run it as a process of its own, then `adopt` that path. Raises ValueError without traces.
        """
        if self._traces is None:
            raise ValueError("without a trace table there is nothing to train from")
        self._fresh_rows = 0
        return [sys.executable, "-m", "models.affinity.training",
                "--traces", str(self._traces.path), "--out", str(folder)]  # fmt: skip

    def adopt(self, path: Path) -> bool:
        """Let a newly trained model compete with the one in use; say whether it can.

        A bad one changes nothing but `trouble`. The file is moved.
        """
        learned = self._load(path)
        if learned is not None:
            self._move(path, SHADOW_NAME)
            self._challenge(learned)
        return learned is not None

    def state(self, now_s: float) -> dict[str, Any]:
        """Return what `edge-node status` shows; `now_s` is wall time, as in `observe`."""
        about = self._current.learned.about if self._current.learned else None
        return {
            "rows": self.rows,
            "stage": about.stage if about else "prior",
            "model_rows": about.rows if about else 0,
            "model_age_s": max(0.0, now_s - about.newest_s) if about else None,
            "error": self._current.error(),
            "prior_error": self._prior.error(),
            "shadow_error": self._shadow.error() if self._shadow else None,
            "drift_kl": self._drift.kl if self._drift else 0.0,
            "drifting": self.drifting,
            "bias": {"/".join(place): value for place, value in self._current.bias.values.items()},
            "energy": self._energy_source,
            "traces_dropped": self._traces.dropped if self._traces else 0,
            "trouble": [text for text in (self.trouble, self._traces_trouble()) if text],
        }

    def _traces_trouble(self) -> str:
        return self._traces.trouble if self._traces else ""

    def _log_j(self, features: Sequence[Features]) -> list[float]:
        learned = self._current.learned
        known = learned.log_j(features) if learned else [None] * len(features)
        if None not in known:
            return [value for value in known if value is not None]
        return [
            log(self._watts.get(one.accelerator, 1.0) * spent_ms / 1e3) if value is None else value
            for value, one, spent_ms in zip(known, features, self.predict_ms(features), strict=True)
        ]

    def _judge(self, features: Features, log_ms: float, now_s: float) -> None:
        """Promote the shadow, drop it, or drop a model that the prior beats."""
        current, shadow = self._current, self._shadow
        self._tasks += 1
        if shadow is not None:
            shadow.observe(features, log_ms, now_s)
            self._contest_tasks += 1
        if self._tasks % JUDGE_EVERY:
            return
        if shadow is None:
            full = len(current.errors) == WINDOW
            if current.learned and full and self._prior.error() < PRIOR_LEAD * current.error():
                self._use(self._prior)
                self._drop(CURRENT_NAME)
            return
        if self._contest_tasks < CONTEST_TASKS:
            return
        tasks = min(self._contest_tasks, WINDOW)
        if shadow.error(tasks) < current.error(tasks):
            self._use(shadow)
            self._move(self._folder / SHADOW_NAME, CURRENT_NAME)
            self._shadow = None
        elif self._contest_tasks >= LONGEST_CONTEST_TASKS:
            self._shadow = None
            self._drop(SHADOW_NAME)

    def _use(self, contender: _Contender) -> None:
        learned = contender.learned
        self._current = contender
        self._drift = _Drift(learned.about.edges, learned.about.held_out) if learned else None
        self._energy_bias = Bias()

    def _challenge(self, learned: Learned | None) -> None:
        self._shadow, self._contest_tasks = _Contender(learned) if learned else None, 0

    def _take_up(self, name: str) -> Learned | None:
        path = self._folder / name
        return self._load(path) if path.exists() else None

    def _load(self, path: Path) -> Learned | None:
        try:
            return load(path)
        except ModelError as error:
            self.trouble = str(error)
            return None

    def _drop(self, name: str) -> None:
        try:
            (self._folder / name).unlink(missing_ok=True)
        except OSError as error:  # it is taken up at the next start, and judged again
            self.trouble = f"{self._folder / name}: cannot be removed ({error.strerror})"

    def _move(self, path: Path, name: str) -> None:
        try:
            path.replace(self._folder / name)
        except OSError as error:  # it is in use all the same, until the next start
            self.trouble = f"{path}: cannot become {name} ({error.strerror})"
