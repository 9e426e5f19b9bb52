"""Choose variant and effort together, so that the answer is in time and others are not held up.

Owns what one accelerator has shown of its alternatives' service times, and the price of being
late. It never reads a clock, and knows nothing of what the alternatives compute: each is a key, a
quality and a predicted time. Invariant: only completions change what it believes; the same
completions in the same order give the same choices.

The score of an alternative with quality q, predicted service time m, and probability p that the
wait w and its service time exceed the budget B:

    q (1 - p) - lambda p - mu (m / m_max) (w / (w + 0.3 B) + b)

The last term is the price of congestion: who takes long while others wait pays for their wait.
Service times are taken as log-normal, p by the logistic approximation of it.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from edge_node.placement.budget import BudgetSpent

# Tuned on other frames and seeds than are scored, from the middle of the plateau that
# python -m tests.bench.budget tune
# finds for the packaged detectors (qualities close together, so a high price). Another site may
# want another price.
PRICE = 3.2  # mu
IDLE_PRICE = 0.02  # b, the share of it that counts while nobody waits; at most 0.1

LATE_COST, LATE_COST_STEP = (0.3, 6.0), 0.05  # lambda, by dual ascent towards
TARGET = 0.01  # of the answers late
LOGISTIC = 1.702  # makes the logistic function the normal distribution's to .01
COLD_FACTOR = 2.0  # on priors, until completions say better
COLD_VARIANCE = 0.25
LEAST_VARIANCE = 1e-4
MEAN_WEIGHT, VARIANCE_WEIGHT = 0.08, 0.05  # of the newest completion, once there were many
MOST_ESTIMATES = 4_096  # agents and nodes come and go


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way to do a task: ``service_ms`` is what is predicted of it where nothing is known."""

    key: Hashable
    quality: float
    service_ms: float

    def __post_init__(self) -> None:
        if not 0 < self.service_ms < math.inf:
            raise ValueError(f"{self.key}: a service time of {self.service_ms} ms")


class Choice(NamedTuple):
    """What to do, the probability that it is late, its score, and why it and not another."""

    option: Alternative
    p_late: float
    score: float
    reason: str


class Estimate:
    """Hold the log-mean and log-variance of one alternative's service time."""

    __slots__ = ("count", "log_ms", "mean_ms", "steepness", "variance")

    def __init__(self, log_ms: float) -> None:
        self.count = 0
        self.variance = COLD_VARIANCE
        self._fit(log_ms)

    def learn(self, log_ms: float) -> None:
        self.count += 1
        weight = 1 / (self.count + 1)  # the prior counts as one completion
        error = log_ms - self.log_ms
        change = max(VARIANCE_WEIGHT, weight) * (error * error - self.variance)
        self.variance = max(LEAST_VARIANCE, self.variance + change)
        self._fit(self.log_ms + max(MEAN_WEIGHT, weight) * error)

    def _fit(self, log_ms: float) -> None:
        self.log_ms, self.mean_ms = log_ms, math.exp(log_ms)
        self.steepness = LOGISTIC / math.sqrt(self.variance)


class Controller:
    """Decide for one accelerator, and learn from what becomes of it."""

    def __init__(
        self, *, price: float = PRICE, idle_price: float = IDLE_PRICE, target: float = TARGET
    ) -> None:
        """Start cold. Raises ValueError for what is out of range."""
        if not (price >= 0 and 0 <= idle_price <= 0.1 and 0 < target < 1):
            raise ValueError(
                f"price {price} must be at least 0, idle_price {idle_price} in 0..0.1, "
                f"target {target} in 0..1"
            )
        self.late_cost = 1.0  # lambda
        self._price, self._idle_price, self._target = price, idle_price, target
        self._estimates: dict[Hashable, Estimate] = {}
        self._log_ratio = math.log(COLD_FACTOR)  # of times here to those predicted
        self._ratios = 0

    def choose(self, budget_ms: float, wait_ms: float, options: Sequence[Alternative]) -> Choice:
        """Return what to do with a task that has ``budget_ms`` left and waits for ``wait_ms``.

        Of equal scores the first wins. O(options).

        Raises:
            BudgetSpent: there is no budget.
            ValueError: there are no options.
        """
        if not budget_ms > 0:
            raise BudgetSpent(f"no time left: the budget is {budget_ms:.3g} ms")
        if not options:
            raise ValueError("there is nothing to choose from")
        estimates = [self._estimate(option) for option in options]
        longest_ms = max([estimate.mean_ms for estimate in estimates])
        congestion = wait_ms / (wait_ms + 0.3 * budget_ms) + self._idle_price
        price = self._price * congestion / longest_ms
        rest_ms = budget_ms - wait_ms
        log_rest = math.log(rest_ms) if rest_ms > 0 else -math.inf
        late_cost, best_score, best_quality = self.late_cost, -math.inf, -math.inf
        for option, estimate in zip(options, estimates, strict=True):
            x = estimate.steepness * (log_rest - estimate.log_ms)
            p = 1 / (1 + math.exp(x if x < 500 else 500))
            quality = option.quality
            score = quality - (quality + late_cost) * p - price * estimate.mean_ms
            if score > best_score:
                chosen, best_p, best_score, mean_ms = option, p, score, estimate.mean_ms
            if quality > best_quality:
                best_quality, better_p, better_ms = quality, p, estimate.mean_ms
        if chosen.quality == best_quality:
            reason = "the best quality"
        elif best_p > 0.5:
            reason = "nothing is likely to be in time: the least harm"
        elif (best_quality + late_cost) * (better_p - best_p) > price * (better_ms - mean_ms):
            reason = "better would risk to be late"
        else:
            reason = "better would hold up others"
        return Choice(chosen, best_p, best_score, reason)

    def observe(self, option: Alternative, service_ms: float | None, met: bool) -> None:
        """Learn from an end: the time that a chosen option took, None if it was not run."""
        low, high = LATE_COST
        step = LATE_COST_STEP * ((not met) - self._target)
        self.late_cost = min(high, max(low, self.late_cost + step))
        if service_ms is None or not service_ms > 0:
            return
        log_ms = math.log(service_ms)
        estimate = self._estimates.pop(option.key, None) or self._estimate(option)
        self._estimates[option.key] = estimate
        if len(self._estimates) > MOST_ESTIMATES:
            del self._estimates[next(iter(self._estimates))]  # whose tasks ended longest ago
        estimate.learn(log_ms)
        self._ratios += 1
        weight = max(MEAN_WEIGHT, 1 / (self._ratios + 1))
        self._log_ratio += weight * (log_ms - math.log(option.service_ms) - self._log_ratio)

    def service_ms(self, option: Alternative) -> float:
        """Return what is predicted of an option now: its completions, else others' scale its own.

        A prior is doubled until anything has been completed here.
        """
        return self._estimate(option).mean_ms

    def _estimate(self, option: Alternative) -> Estimate:
        found = self._estimates.get(option.key)
        return found or Estimate(math.log(option.service_ms) + self._log_ratio)
