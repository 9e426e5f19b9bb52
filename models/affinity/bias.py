"""The correction of predictions by what was last observed at each place.

Owns one running mean of log residuals a place; never predicts. Invariant: a place is corrected only
by as much as its residuals exceed their own noise (a core that is shared scatters them by half),
and one that is no longer observed slowly ceases to be, so that what seemed too slow to be asked is
tried again.
"""

from __future__ import annotations

from dataclasses import dataclass

Place = tuple[str, str]  # node, accelerator

WEIGHT = 0.15  # of the newest residual in the mean
SPREAD_WEIGHT = 0.05
FIRST_VARIANCE = 0.05
FIRST = 2.0  # observations that the assumption "no bias" is worth
CLIP = 1.5  # of a log residual from the mean: one stalled task says little
DEVIATIONS = 1.25  # of the mean that count as noise: more and a real change waits longer
HALF_LIFE_S = 120.0
IDLE_S = 10.0  # without an observation before a correction begins to fade
NEGLIGIBLE = 0.005


@dataclass
class _Residuals:
    """Hold the EWMA of one place's residuals, their variance, and when the last one came."""

    seen_s: float
    count: int = 0
    mean: float = 0.0
    variance: float = FIRST_VARIANCE

    def add(self, residual: float, now_s: float) -> None:
        step = min(CLIP, max(-CLIP, residual - self.mean))
        self.mean += max(WEIGHT, 1 / (self.count + FIRST)) * step
        self.variance += SPREAD_WEIGHT * (step * step - self.variance)
        self.count, self.seen_s = self.count + 1, now_s

    def is_idle(self, now_s: float) -> bool:
        return not 0 <= now_s - self.seen_s <= IDLE_S

    def correction(self) -> float:
        """Return the mean, shrunk by its own noise (James and Stein's positive part)."""
        noise = DEVIATIONS**2 * self.variance * WEIGHT / (2 - WEIGHT)
        square = self.mean * self.mean
        return self.mean * (1 - noise / square) if square > noise else 0.0


class Bias:
    """Hold the correction of each place, in logs."""

    def __init__(self) -> None:
        self.values: dict[Place, float] = {}
        self._residuals: dict[Place, _Residuals] = {}
        self._faded_s = 0.0

    def get(self, place: Place) -> float:
        """Return a place's correction, 0 if nothing is known."""
        return self.values.get(place, 0.0)

    def add(self, place: Place, residual: float, now_s: float) -> None:
        """Learn from one residual at a time in seconds of any clock. O(places) once a second."""
        residuals = self._residuals.get(place)
        if residuals is None:
            residuals = self._residuals[place] = _Residuals(now_s)
        residuals.add(residual, now_s)
        self.values[place] = residuals.correction()
        if not self._faded_s <= now_s < self._faded_s + 1:  # also after the clock was set back
            self._fade(now_s)

    def _fade(self, now_s: float) -> None:
        factor = 0.5 ** (min(max(0.0, now_s - self._faded_s), HALF_LIFE_S) / HALF_LIFE_S)
        self._faded_s = now_s
        for place in [p for p, one in self._residuals.items() if one.is_idle(now_s)]:
            one = self._residuals[place]
            one.mean *= factor
            self.values[place] = one.correction()
            if abs(one.mean) < NEGLIGIBLE:  # nodes that left must not stay for ever
                del self.values[place], self._residuals[place]
