"""The only place where the daemon's shell reads both clocks at once."""

import time

from crdt import Instant


def now() -> Instant:
    """Return the time now, as the replica and the protocol want it."""
    return Instant(time.monotonic(), int(time.time() * 1000))
