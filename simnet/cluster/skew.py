"""A node's clocks, which may be wrong.

Owns how far they are off; never tells anybody. Invariant: the monotonic one never goes back.
"""

import time

from crdt import Instant


class Skew:
    """Read both clocks, the wall clock ahead by an offset, both too fast by a rate."""

    def __init__(self) -> None:
        self._rate = 1.0
        self._base_s = self._mono_base_s = time.monotonic()
        self._ahead_s = time.time() - self._base_s  # of the wall clock before the other one

    def turn(self, offset_s: float, drift_ppm: float, begins: bool) -> None:
        """Begin to be wrong, or set the wall clock right again; what mono gained it keeps."""
        true_s = time.monotonic()
        self._mono_base_s += (true_s - self._base_s) * self._rate
        self._base_s, self._rate = true_s, 1 + drift_ppm / 1e6
        if begins:
            self._ahead_s += offset_s
        else:
            self._ahead_s = time.time() - self._mono_base_s

    def now(self) -> Instant:
        """Return the time as this node's clocks show it."""
        mono_s = self._mono_base_s + (time.monotonic() - self._base_s) * self._rate
        return Instant(mono_s, int((mono_s + self._ahead_s) * 1000))
