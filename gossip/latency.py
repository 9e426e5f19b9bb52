"""How long an answer takes: what the path needs at least, and what comes on top of that.

A path hardly changes, but how busy hosts are does, and a link that is rarely used knows only how it
once was. So each link keeps its least time, and what came on top lately there and, node-wide,
anywhere: the longer a link was not used, the more the latter counts.

Hosts that are busy now and then answer very late now and then. To send again too early costs one
datagram, too late costs everybody's patience: so a single late answer counts only for so much.

Owns the estimates of one link; never a timer. Invariant: one measurement is enough to estimate.
"""

from dataclasses import dataclass, field
from math import inf

_GAIN, _VAR_GAIN = 0.125, 0.25  # RFC 6298, section 2
_LEAST_GAIN = 1 / 64  # by which a path that has become longer is believed
_VARIATIONS = 2  # half of the RFC's, for that reason
_CLIP_S = 0.02  # a sample counts for twice the bound, or for this, at most
_SETTLE_S, _UNSETTLED_S = 5.0, 0.1  # a first impression counts for so long, and so much
_FRESH_S = 3.0  # half-life of what a link says of its peer's host


@dataclass(slots=True)
class Excess:
    """What comes on top, smoothed, and its variation."""

    mean_s: float = 0.0
    var_s: float = 0.0

    def sample(self, excess_s: float) -> None:
        """Take a measurement."""
        excess_s = min(excess_s, max(_CLIP_S, 2 * self.bound_s))
        self.var_s += _VAR_GAIN * (abs(excess_s - self.mean_s) - self.var_s)
        self.mean_s += _GAIN * (excess_s - self.mean_s)

    @property
    def bound_s(self) -> float:
        """Return what is seldom exceeded."""
        return self.mean_s + _VARIATIONS * self.var_s


@dataclass(slots=True)
class Latency:
    """The time from a question to its answer on one link."""

    usual: Excess  # of all links together
    own: Excess = field(default_factory=Excess)
    least_s: float | None = None
    sampled_s: float = 0.0
    settles_s: float | None = None  # until then peers that meet at once hold each other up

    def sample(self, time_s: float, now_s: float) -> None:
        """Take a measurement made at `now_s`."""
        self.sampled_s = now_s
        settled = self.settles_s is not None and now_s >= self.settles_s
        if self.least_s is None or settled:
            self.least_s, self.own = time_s, Excess(0.0, time_s / 2)
            self.settles_s = inf if settled else now_s + _SETTLE_S
            return
        if time_s < self.least_s:
            self.least_s = time_s
        else:
            self.least_s += _LEAST_GAIN * (time_s - self.least_s)
        excess_s = time_s - self.least_s
        self.own.sample(excess_s)
        self.usual.sample(excess_s)

    @property
    def mean_s(self) -> float | None:
        """Return what it takes on average, None before the first measurement."""
        return None if self.least_s is None else self.least_s + self.own.mean_s

    def bound_s(self, now_s: float) -> float | None:
        """Return what is seldom exceeded, None before the first measurement."""
        if self.least_s is None:
            return None
        fresh: float = 0.5 ** ((now_s - self.sampled_s) / _FRESH_S)
        bound_s = self.least_s + fresh * self.own.bound_s + (1 - fresh) * self.usual.bound_s
        return bound_s if self.settles_s == inf else min(bound_s, _UNSETTLED_S)
