"""Time as a value, and the hybrid logical clock.

Owns: `Instant` (what the host says the time is) and the 48+16-bit hybrid timestamp.
Never: reads a clock; every call is told `now`.
Invariant: `tick` returns ever greater timestamps and `horizon` never falls, whatever the wall
clock does; nobody else's timestamp moves this clock more than 5 s beyond its own time.

Source: Kulkarni et al., Logical Physical Clocks (2014).
"""

from typing import NamedTuple

FUTURE_MS = 5_000
_LOGICAL_BITS = 16
_LOGICAL_MASK = (1 << _LOGICAL_BITS) - 1


class Instant(NamedTuple):
    """Carry one reading of both clocks: monotonic seconds and wall-clock milliseconds."""

    mono_s: float
    wall_ms: int


class HybridClock:
    """Issue timestamps: 48 bits of wall-clock milliseconds, 16 bits of counter."""

    __slots__ = ("_fleet_lead_ms", "_last", "_lead_ms")

    def __init__(self, high_water: int = 0) -> None:
        self._last = high_water
        self._lead_ms = float("-inf")
        self._fleet_lead_ms = float("-inf")

    @property
    def high_water(self) -> int:
        """Return the greatest timestamp issued or observed; the host keeps it durable."""
        return self._last

    def tick(self, now: Instant, after: int = 0) -> int:
        """Issue a timestamp greater than every earlier one, every observed one and `after`."""
        self._steady_ms(now)  # remember this reading, should the next be set back
        wall_ms = max(now.wall_ms, self._fleet_ms(now))
        self._last = max(wall_ms << _LOGICAL_BITS, self._last + 1, after + 1)
        return self._last

    def hint(self, wall_ms: int, now: Instant) -> None:
        """Take what the fleet's wall clocks show, for a node whose own may be far behind.

        The greater of this and the own clock is the time; mono carries both on.
        """
        self._fleet_lead_ms = wall_ms - now.mono_s * 1000
        self._lead_ms = max(self._lead_ms, self._fleet_lead_ms)

    def observe(self, timestamp: int, now: Instant) -> None:
        """Let later ticks exceed `timestamp`, unless it is more than 5 s in the future."""
        if self._last < timestamp <= _latest(self._steady_ms(now)):
            self._last = timestamp

    def horizon(self, now: Instant) -> int:
        """Return the greatest timestamp that does not count as future."""
        return _latest(max(self._steady_ms(now), self._last >> _LOGICAL_BITS))

    def _fleet_ms(self, now: Instant) -> int:
        hinted_ms = self._fleet_lead_ms + now.mono_s * 1000
        return round(hinted_ms) if hinted_ms > 0 else 0

    def _steady_ms(self, now: Instant) -> int:
        """Return wall time that has never been set back: the furthest reading, carried on by mono.

        A wall clock set back must not hide what has been shown, nor what others write meanwhile.
        """
        mono_ms = now.mono_s * 1000
        self._lead_ms = max(self._lead_ms, now.wall_ms - mono_ms)
        return round(mono_ms + self._lead_ms)


def _latest(wall_ms: int) -> int:
    return (wall_ms + FUTURE_MS) << _LOGICAL_BITS | _LOGICAL_MASK
