"""What became of the frames of a run.

Owns the counts. Invariant: each frame is counted once, under one reason.
"""

from collections import Counter
from math import inf

from simnet.city_node import Frame
from simnet.city_scenario import Scenario


class Outcome:
    """Counts of one run; all but ``ends`` and ``arrivals`` leave the warm-up out."""

    def __init__(self, scenario: Scenario) -> None:
        self._warmup_s = scenario.time.warmup_s
        self._epoch_s = scenario.epoch.period_s
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

    def arrived(self, frame: Frame) -> None:
        """Count a frame that came."""
        self.arrivals += 1
        self.epoch_demand[int(frame.arrival.at_s / self._epoch_s)] += 1
        if frame.arrival.at_s >= self._warmup_s:
            self.demand[frame.camera.tier] += 1

    def ended(self, frame: Frame, reason: str, at_s: float) -> None:
        """Count a frame's end."""
        in_time = reason == "answered" and at_s <= frame.deadline_s
        self.ends["late" if reason == "answered" and not in_time else reason] += 1
        if in_time:
            self.epoch_met[int(frame.arrival.at_s / self._epoch_s)] += 1
        if frame.arrival.at_s >= self._warmup_s:
            self.met[frame.camera.tier] += in_time
            latency_ms = (at_s - frame.arrival.at_s) * 1e3
            self.latencies_ms.append(latency_ms if reason == "answered" else inf)

    def ran(self, now_s: float, energy_j: float, *, hit: bool) -> None:
        """Count work on an accelerator."""
        if now_s >= self._warmup_s:
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
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def energy_per_met_j(self) -> float:
        """Return the energy per frame that was answered in time."""
        return self.energy_j / max(1, self.met.total())
