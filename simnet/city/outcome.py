"""What became of the frames of a run.

Owns the counts. Invariant: each frame is counted once, under one reason.
"""

from collections import Counter
from math import inf

from simnet.city.frame import Frame
from simnet.city.scenario import TIERS, CityScenario
from simnet.outcome import Frames

ANSWERED, LATE = "answered", "late"


class Outcome:
    """Counts of one run; all but ``ends``, ``arrivals`` and epochs leave the warm-up out."""

    def __init__(self, city: CityScenario) -> None:
        self._city = city
        self.arrivals = 0
        self.ends: Counter[str] = Counter()
        self.demand: Counter[int] = Counter()
        self.met: Counter[int] = Counter()
        """Frames by tier, and those of them that were answered in time."""
        self.epoch_demand: Counter[int] = Counter()
        self.epoch_met: Counter[int] = Counter()
        """The same by the epoch in which they came, the warm-up included."""
        self.latencies_ms: list[float] = []
        """Of every frame; infinite for those that were not answered."""
        self.scopes: Counter[str] = Counter()
        """How far decisions looked; the warm-up included."""
        self.bounced = 0
        self.runs = 0
        self.hits = 0
        self.energy_j = 0.0
        self.moves = 0
        self.plans = 0
        self.trace_hash = ""
        self._tiers: list[Counter[str]] = [Counter() for _ in range(TIERS)]
        self._answers_ms: list[list[float]] = [[] for _ in range(TIERS)]

    def came(self, frame: Frame) -> None:
        """Count a frame that came."""
        self.arrivals += 1
        self.epoch_demand[int(frame.arrival.at_s / self._city.epoch_s)] += 1
        if frame.arrival.at_s >= self._city.warmup_s:
            self.demand[frame.camera.tier] += 1

    def ended(self, frame: Frame, now_s: float) -> None:
        """Count a frame's end."""
        reason, tier = frame.reason, frame.camera.tier
        latency_ms = (now_s - frame.at_s) * 1e3 if reason in (ANSWERED, LATE) else inf
        self.ends[reason] += 1
        self._tiers[tier - 1][reason] += 1
        if latency_ms < inf:
            self._answers_ms[tier - 1].append(latency_ms)
        is_met = reason == ANSWERED
        if is_met:
            self.epoch_met[int(frame.arrival.at_s / self._city.epoch_s)] += 1
        if frame.arrival.at_s >= self._city.warmup_s:
            self.met[tier] += is_met
            self.latencies_ms.append(latency_ms)

    def ran(self, energy_j: float, *, hit: bool) -> None:
        """Count work on an accelerator."""
        self.runs += 1
        self.hits += hit
        self.energy_j += energy_j

    @property
    def dsr(self) -> float:
        """Return the share of the demand that was answered in time."""
        return self.met.total() / max(1, self.demand.total())

    def tier_dsr(self, tier: int) -> float:
        """Return the same for one tier."""
        return self.met[tier] / max(1, self.demand[tier])

    def epoch_dsr(self, number: int) -> float:
        """Return the same for the frames of one epoch."""
        return self.epoch_met[number] / max(1, self.epoch_demand[number])

    def latency_ms(self, share: float) -> float:
        """Return a percentile over the whole demand, unanswered frames as infinitely late."""
        return _percentile(self.latencies_ms, share)

    @property
    def energy_per_met_j(self) -> float:
        """Return the energy per frame that was answered in time."""
        return self.energy_j / max(1, self.met.total())

    def frames(self) -> tuple[Frames, ...]:
        """Return all frames by tier, the warm-up included."""
        return tuple(
            Frames(
                tier,
                ends.total(),
                dict(sorted(ends.items())),
                *(_percentile(times, share) if times else -1.0 for share in (0.5, 0.9, 0.99)),
            )
            for tier, (ends, times) in enumerate(zip(self._tiers, self._answers_ms, strict=True), 1)
        )


def _percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
