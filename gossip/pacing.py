"""The write law: how much one node may make the whole fleet take in.

Every durable entry reaches every node. A node takes in B entries a second; all writers together
stay under B/3, so each of n live members writes at most B/(3 n) a second, beyond a burst. What is
staged meanwhile coalesces: of a key written many times only the newest value travels. What a commit
says again to make room counts, too, once it is known: it leaves a debt.

Owns the bucket; never what is written. Invariant: over any t seconds the entries written are at
most burst + t B/(3 n), beyond what the last commit said again.
"""

from crdt.clock import Instant
from gossip.config import GossipConfig

_SHARE = 3  # two thirds of what a node can take in are left for repair and bursts
_ROUNDING = 1e-6  # tokens that may be missing: what is ready at a time must be granted then


class WriteLaw:
    """A token bucket whose rate is this node's share."""

    def __init__(self, config: GossipConfig) -> None:
        self._config = config
        self._tokens = float(config.write_burst)
        self._filled_s: float | None = None

    def grant(self, entries: int, members: int, now: Instant) -> bool:
        """Let `entries` staged entries go if there are tokens for them; `members` share the rate.

        More than a burst's worth goes once the bucket is full, and leaves a debt.
        """
        self._fill(members, now)
        if self._tokens < min(entries, self._config.write_burst) - _ROUNDING:
            return False
        self._tokens -= entries
        return True

    def charge(self, entries: int) -> None:
        """Count what was written beyond what was granted, as a debt of one burst at most.

        Or a node that says its whole log again at its start would be dumb for a minute.
        """
        self._tokens = max(self._tokens - entries, min(self._tokens, -self._config.write_burst))

    def ready_s(self, entries: int, members: int, now: Instant) -> float:
        """Return when `grant` will say yes, in mono seconds; without debt at once for none."""
        self._fill(members, now)
        missing = min(entries, self._config.write_burst) - self._tokens
        return now.mono_s + max(0.0, missing) / self._rate(members)

    def _rate(self, members: int) -> float:
        return self._config.intake_entries_per_s / (_SHARE * max(1, members))

    def _fill(self, members: int, now: Instant) -> None:
        elapsed_s = 0.0 if self._filled_s is None else max(0.0, now.mono_s - self._filled_s)
        self._filled_s = now.mono_s
        gained = elapsed_s * self._rate(members)
        self._tokens = min(float(self._config.write_burst), self._tokens + gained)
