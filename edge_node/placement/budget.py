"""The time a request has left: an account that is split and spent, never copied.

Owns the arithmetic of deadlines. It never reads a clock (callers pass ``now_s``, monotonic
seconds) and never waits. Invariants: time that passes is gone from every budget alike; what a
child has, its parent has not; a budget, its children, what was consumed and what was sent never
come to more than was granted; a budget cannot be copied, pickled or brought back.
"""

import math
from typing import NoReturn, SupportsIndex

WAY_SHARE = 0.5
"""Of what is sent, at most, that is kept back for the way: what is known of it may be wrong."""

MAX_MS = 3_600_000.0
"""No request is given longer; a peer that says so errs."""


FORWARD_MIN_MS, FORWARD_MAX_MS = 600.0, 5_000.0
"""A forward is given at least this long, and no longer than this or than is left of its budget,
whatever a peer says of itself."""


def patience_ms(predicted_ms: float, left_ms: float) -> float:
    """Return how long an answer is waited for that was predicted to take so long.

    In proportion, so that slow peers are not written off.
    """
    return max(FORWARD_MIN_MS, min(2 * predicted_ms, max(FORWARD_MAX_MS, left_ms)))


class BudgetSpent(ValueError):
    """Say why there is no time left for what was asked."""


class Budget:
    """Hold the milliseconds until a deadline.

    >>> whole = Budget(100.0, now_s=0.0)
    >>> attempt = whole.split(0.0, ms=60.0)
    >>> whole.rejoin(attempt, now_s=0.02)
    >>> round(whole.remaining_ms(0.02))
    80
    """

    __slots__ = ("_deadline_s", "_left_ms", "_parent", "_sent_ms")

    def __init__(self, ms: float, now_s: float) -> None:
        """Grant ``ms`` from now on.

        Raises:
            BudgetSpent: it is zero or past.
            ValueError: it is not a number of milliseconds up to ``MAX_MS``.
        """
        if isinstance(ms, bool) or not isinstance(ms, int | float) or math.isnan(ms):
            raise ValueError(f"a budget is a number of milliseconds, not {ms!r}")
        if ms <= 0:
            ago = f" {-ms:.3g} ms ago" if ms else " just now"
            raise BudgetSpent(f"no time left: the deadline passed{ago}")
        if ms > MAX_MS:
            raise ValueError(f"a budget of {ms:g} ms exceeds {MAX_MS:g} ms")
        self._left_ms = float(ms)
        self._deadline_s = now_s + ms / 1e3
        self._parent: Budget | None = None
        self._sent_ms = 0.0

    @classmethod
    def from_wire(cls, ms: float, now_s: float) -> "Budget":
        """Take over what a peer sent with a request; raises as the constructor does."""
        return cls(ms, now_s)

    def remaining_ms(self, now_s: float) -> float:
        """Return what may still be spent, at least 0."""
        return max(0.0, min(self._left_ms, (self._deadline_s - now_s) * 1e3))

    def split(
        self, now_s: float, *, ms: float | None = None, share: float | None = None
    ) -> "Budget":
        """Return a child that has ``ms``, or ``share`` (0..1) of what is left; this one has not.

        Raises:
            BudgetSpent: that much is not left, or nothing is; nothing changed.
            ValueError: not exactly one of the two, or a share outside of 0..1; nothing changed.
        """
        if (ms is None) == (share is None):
            raise ValueError("a budget is split by either ms or share")
        left_ms = self.remaining_ms(now_s)
        if share is not None:
            if not 0 < share <= 1:
                raise ValueError(f"a share of a budget is in 0..1, not {share}")
            ms = share * left_ms
        assert ms is not None
        self._check(ms, now_s)
        child = Budget(ms, now_s)
        child._parent = self
        self._left_ms = left_ms - ms
        return child

    def consume(self, ms: float, now_s: float) -> None:
        """Spend time in advance that this clock has not shown yet (a way back, a reserve).

        Raises:
            BudgetSpent: that much is not left; nothing changed.
            ValueError: it is negative; nothing changed.
        """
        if not ms >= 0:
            raise ValueError(f"time is not given back by consuming {ms} ms; rejoin does that")
        self._check(ms, now_s)
        self._left_ms = self.remaining_ms(now_s) - ms

    def rejoin(self, child: "Budget", now_s: float) -> None:
        """Take back what a child has left; it has nothing afterwards.

        Raises:
            ValueError: it is no child of this one; nothing changed.
        """
        if child._parent is not self:
            raise ValueError("only a budget's own child can rejoin it")
        back_ms = child.remaining_ms(now_s)
        child._left_ms = 0.0
        self._left_ms = self.remaining_ms(now_s) + back_ms

    def for_wire(self, now_s: float, way_ms: float = 0.0) -> float:
        """Spend everything left; return it in milliseconds, to be sent with the request.

        The receiver's time begins when it has the request: ``way_ms``, what the way there and back
        is likely to take, is kept back, or the time would be longer than it was granted for.

        Raises:
            BudgetSpent: nothing is left.
        """
        left_ms = self.remaining_ms(now_s)
        self._check(left_ms, now_s)
        self._left_ms, self._sent_ms = 0.0, left_ms
        return left_ms - min(way_ms, WAY_SHARE * left_ms)

    def refused(self, now_s: float) -> None:
        """Take back what was sent, for a peer that said no; one that is silent may be at work.

        What the way took is gone. Once only: a second call finds nothing.
        """
        self._left_ms = self.remaining_ms(now_s) + self._sent_ms
        self._sent_ms = 0.0

    def _check(self, ms: float, now_s: float) -> None:
        """Raise BudgetSpent unless ``ms`` are left, and more than nothing."""
        left_ms = self.remaining_ms(now_s)
        if left_ms > 0 and ms <= left_ms:
            return
        if left_ms > 0:
            raise BudgetSpent(f"{ms:.3g} ms asked of the {left_ms:.3g} ms left")
        over_ms = (now_s - self._deadline_s) * 1e3
        if over_ms >= 0:
            raise BudgetSpent(f"no time left: the deadline passed {over_ms:.3g} ms ago")
        raise BudgetSpent("no time left: all of it was split off, consumed or sent")

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        # copy, deepcopy and pickle all come this way.
        raise TypeError("a budget is not copied: split it, or send for_wire()")
