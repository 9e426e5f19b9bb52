"""What strangers may cost: token buckets, and memories that forget.

Owns nothing but counts and marks; never knows what they stand for. Invariant: memory is bounded,
whatever comes.
"""

from math import inf

from crdt.clock import Instant

_BUCKETS_LIMIT = 1024


class Rates:
    """Token buckets by key; the least recently used of too many are forgotten."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = max(1.0, burst)
        self._buckets: dict[bytes | str, tuple[float, float]] = {}

    def take(self, key: bytes | str, now: Instant, tokens_wanted: float = 1.0) -> bool:
        """Spend tokens of a key's bucket; tell whether there were so many."""
        tokens, filled_s = self._buckets.pop(key, (self._burst, now.mono_s))
        gained = max(0.0, now.mono_s - filled_s) * self._per_s
        tokens = min(self._burst, tokens + gained)
        granted = tokens >= tokens_wanted
        self._buckets[key] = (tokens - tokens_wanted if granted else tokens, now.mono_s)
        if len(self._buckets) > _BUCKETS_LIMIT:
            del self._buckets[next(iter(self._buckets))]
        return granted


class Bucket:
    """One token bucket, which what cannot wait may overdraw by as much as it holds."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._tokens = burst
        self._filled_s = -inf

    def level(self, now: Instant) -> float:
        """Return how full it is: from -1, overdrawn, to 1."""
        if now.mono_s > self._filled_s:
            gained = (now.mono_s - self._filled_s) * self._per_s
            self._tokens = min(self._burst, self._tokens + gained)
            self._filled_s = now.mono_s
        return self._tokens / self._burst

    def spend(self, tokens: float) -> None:
        """Take tokens, whether there are so many or not."""
        self._tokens = max(-self._burst, self._tokens - tokens)

    def wait_s(self, level: float) -> float:
        """Return how long it takes from now to reach a level."""
        return max(0.0, level * self._burst - self._tokens) / self._per_s


class Recent:
    """Remember at least the last `least` items that were added, and at most twice as many."""

    def __init__(self, least: int) -> None:
        self._least = least
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()

    def __contains__(self, item: bytes) -> bool:
        return item in self._young or item in self._old

    def add(self, item: bytes) -> None:
        """Remember an item."""
        self._young.add(item)
        if len(self._young) >= self._least:
            self._old, self._young = self._young, set()
