"""Time as a value, and the hybrid logical clock.

Owns: `Instant` (what the host says the time is) and the 48+16-bit hybrid timestamp.
Never: reads a clock; every call is told `now`. Decides whose clocks to believe: the caller does.
Invariant: whatever the own wall clock does, `tick` returns ever greater timestamps and `horizon`
never falls; nobody else's timestamp moves this clock more than 5 s beyond its own time. Only what
was a hint of the fleet's is given up again when the fleet says otherwise, and is never durable.

Source: Kulkarni et al., Logical Physical Clocks (2014).
"""

from math import inf
from typing import NamedTuple

FUTURE_MS = 5_000
DAWN_MS = 1_577_836_800_000
"""The beginning of 2020: a wall clock that shows less has not been set."""
_MOST_MS = 1 << 47  # the year 6429: nothing shows more, so that all timestamps fit 64 bits
_LOGICAL_BITS = 16
_LOGICAL_MASK = (1 << _LOGICAL_BITS) - 1


class Instant(NamedTuple):
    """Carry one reading of both clocks: monotonic seconds and wall-clock milliseconds."""

    mono_s: float
    wall_ms: int


class HybridClock:
    """Issue timestamps: 48 bits of wall-clock milliseconds, 16 bits of counter."""

    __slots__ = ("_fleet_lead_ms", "_last", "_lead_ms", "_sure")

    def __init__(self, high_water: int = 0) -> None:
        self._last = high_water if high_water <= _latest(_MOST_MS) else 0
        self._sure = self._last  # what it would be had there been no hint
        self._lead_ms = -inf
        self._fleet_lead_ms = -inf

    @property
    def high_water(self) -> int:
        """Return the greatest timestamp issued or observed by the own clock, to be kept durably."""
        return self._sure

    def tick(self, now: Instant, after: int = 0) -> int:
        """Issue a timestamp greater than every earlier one, every observed one and `after`."""
        least = min(now.wall_ms, _MOST_MS) << _LOGICAL_BITS
        read = after if after <= _latest(self._steady_ms(now)) else 0
        self._sure = max(least, self._sure + 1, read + 1)
        self._last = max(
            self._sure, self._fleet_ms(now) << _LOGICAL_BITS, self._last + 1, after + 1
        )
        return self._last

    def hint(self, wall_ms: int | None, now: Instant) -> None:
        """Take what the fleet's wall clocks show, for a node whose own may be far behind.

        The greater of this and the own clock is the time; mono carries both on. Where it is over
        5 s less than the hint before, or None, that one and what came of it count no more.
        """
        lead_ms = -inf
        if wall_ms is not None and wall_ms <= _MOST_MS:
            lead_ms = wall_ms - now.mono_s * 1000
        if lead_ms < self._fleet_lead_ms - FUTURE_MS:
            self._last = self._sure
        else:
            lead_ms = max(lead_ms, self._fleet_lead_ms)
        self._fleet_lead_ms = lead_ms

    def observe(self, timestamp: int, now: Instant) -> None:
        """Let later ticks exceed `timestamp`, unless it is more than 5 s in the future."""
        own_ms = self._steady_ms(now)
        if self._sure < timestamp <= _latest(own_ms):
            self._sure = timestamp
        if self._last < timestamp <= _latest(max(own_ms, self._fleet_ms(now))):
            self._last = timestamp

    def horizon(self, now: Instant) -> int:
        """Return the greatest timestamp that does not count as future."""
        return max(_latest(max(self._steady_ms(now), self._fleet_ms(now))), self._last)

    def _fleet_ms(self, now: Instant) -> int:
        hinted_ms = self._fleet_lead_ms + now.mono_s * 1000
        return min(round(hinted_ms), _MOST_MS) if hinted_ms > 0 else 0

    def _steady_ms(self, now: Instant) -> int:
        """Return wall time that has never been set back: the furthest reading, carried on by mono.

        A wall clock set back must not hide what has been shown, nor what others write meanwhile.
        """
        mono_ms = now.mono_s * 1000
        self._lead_ms = max(self._lead_ms, now.wall_ms - mono_ms)
        return min(round(mono_ms + self._lead_ms), _MOST_MS)


def _latest(wall_ms: int) -> int:
    return (wall_ms + FUTURE_MS) << _LOGICAL_BITS | _LOGICAL_MASK
