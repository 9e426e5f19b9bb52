"""Answer an image-level question about a crop from what was answered for one like it.

Owns features with their answers, what is subtracted from the features before they are compared,
and the evidence that reuse is safe; never runs a model and never reads a clock. Invariant: it
answers only while, of recent checks against the model's own answers, so many agreed at that
similarity and above that the lower confidence bound reaches the target; before that it only
learns. What is older than the TTL, or beyond the bytes allowed, is never answered.

Features of one network all point much the same way, so that the cosine of two different crops is
.9 and more. What is compared is therefore what is left after their mean is subtracted. A crop
that is the mean itself has no direction left, so a camera that shows one thing all day wants the
mean of all cameras: one instance may serve a camera or a model, as its caller chooses.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from models.evidence import Doubles, wilson

Floats = npt.NDArray[np.float32]
Answer = TypeVar("Answer")

FIRST_MEAN = 32  # features before a mean is believed
MEAN_STEP = 512  # later the mean is taken over after so many
MEAN_MEMORY = 2048  # features that the running mean looks back on
DEGREES = 45  # similarities are binned by whole degrees of angle; wider ones never count
CHECKS_KEPT = 3000  # counted over all: what a camera once was is forgotten
AUDITS = 50  # the latest; until there are so many since the last breach, it is on probation
AUDITS_ON_PROBATION = 5  # times as many
CHECKS_TO_RELAX = 500
ENTRY_BYTES = 32  # what an entry takes beside its feature and its answer


@dataclass(frozen=True)
class SimilarPolicy:
    """What reuse must reach, and what it may keep.

    `z` is the normal quantile of the confidence (1.2816 is 90 %, one-sided); `ttl_s` seconds
    since an answer was computed; `size_bytes` bounds features and answers together.
    """

    target: float = 0.98
    z: float = 1.2816
    least_checks: int = 200
    audit_share: float = 0.02
    ttl_s: float = 30.0
    entries: int = 2048
    size_bytes: int = 8 << 20

    def __post_init__(self) -> None:
        if not 0 < self.target < 1 or not 0 <= self.audit_share <= 1 or self.z <= 0:
            raise ValueError("target and audit_share are shares of 1, z is above 0")
        if self.ttl_s <= 0 or self.entries < 1 or self.least_checks < 1:
            raise ValueError("ttl_s, entries and least_checks are above 0")


@dataclass(frozen=True)
class Similar(Generic[Answer]):
    """An answer to reuse. With `is_audit` the caller runs the model, reports and stores."""

    answer: Answer
    similarity: float
    is_audit: bool


def pooled(rows: Floats) -> Floats:
    """Return float32[2 * channels]: mean and maximum of rows float32[positions, channels].

    Raises ValueError for no rows.
    """
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"rows of shape {list(rows.shape)} cannot be pooled")
    return np.concatenate([rows.mean(axis=0), rows.max(axis=0)]).astype(np.float32)


class SimilarityLimit:
    """How similar is similar enough, learnt from checks; starts off.

    Angles in whole degrees: limit `n` means an angle below n degrees, 0 is off. Of each degree
    the latest `least_checks` count, so that frequent similarities do not crowd out rare ones.
    """

    def __init__(self, policy: SimilarPolicy) -> None:
        self._policy = policy
        self._checks = [deque[tuple[int, bool]]() for _ in range(DEGREES)]
        self._total = np.zeros(DEGREES, np.int64)
        self._agreed = np.zeros(DEGREES, np.int64)
        self._count = 0
        self._audits: deque[bool] = deque(maxlen=AUDITS)
        self._ceiling = DEGREES
        self._to_relax = 0
        self.degrees = 0
        self.breaches = 0

    @property
    def is_tightened(self) -> bool:
        """Return whether an audit has narrowed it for now."""
        return self._to_relax > 0

    @property
    def is_on_probation(self) -> bool:
        """Return whether audits are still too few to trust it."""
        return len(self._audits) < AUDITS

    def check(self, similarity: float, agreed: bool) -> None:
        """Note whether the answers of two crops so similar were equal. O(degrees)."""
        self._note(angle(similarity), agreed)
        if self.is_tightened:
            self._to_relax -= 1
            if not self._to_relax:
                self._ceiling = DEGREES
        self.degrees = min(self._ceiling, self._widest())

    def _note(self, degree: int, agreed: bool) -> None:
        """Count a check and drop the checks that it makes too many or too old."""
        self._count += 1
        if degree < DEGREES:
            self._checks[degree].append((self._count, agreed))
            self._total[degree] += 1
            self._agreed[degree] += agreed
        for each, checks in enumerate(self._checks):
            oldest = self._count - CHECKS_KEPT
            while checks and (len(checks) > self._policy.least_checks or checks[0][0] <= oldest):
                _, dropped = checks.popleft()
                self._total[each] -= 1
                self._agreed[each] -= dropped

    def audit(self, agreed: bool) -> None:
        """Note whether a reused answer was right: breach, tighten, second breach, off."""
        self._audits.append(agreed)
        wrong = len(self._audits) - sum(self._audits)
        _, high = wilson(sum(self._audits), len(self._audits), self._policy.z)
        if wrong < 2 or high >= self._policy.target:
            return
        self.breaches += 1
        self._audits.clear()
        self._ceiling = 0 if self.is_tightened else self.degrees // 2
        if self._ceiling:
            self._to_relax = CHECKS_TO_RELAX
        else:
            self._forget()
        self.degrees = min(self._ceiling, self.degrees)

    def _forget(self) -> None:
        """Start anew: off until new evidence suffices."""
        for checks in self._checks:
            checks.clear()
        self._total[:] = self._agreed[:] = 0
        self._ceiling, self._to_relax, self.degrees = DEGREES, 0, 0

    def _widest(self) -> int:
        """Return the widest angle whose checks, with all narrower ones, reach the target."""
        total, agreed = self._total, self._agreed
        low, _ = wilson(np.cumsum(agreed), np.cumsum(total), self._policy.z)
        enough = (total > 0) & (np.cumsum(total) >= self._policy.least_checks)
        # Many sure ones must not pay for a degree that is itself shown to be wrong.
        _, high = wilson(agreed, total, self._policy.z)
        wrong = (total - agreed >= 2) & (high < self._policy.target)
        good = enough & (low >= self._policy.target) & (np.cumsum(wrong) == 0)
        return int(np.flatnonzero(good).max(initial=-1)) + 1


def angle(similarity: float) -> int:
    """Return the whole degrees between two vectors of a cosine."""
    return int(np.degrees(np.arccos(min(1.0, max(-1.0, similarity)))))


class _Mean:
    """The mean to subtract, believed after `FIRST_MEAN` features and then taken over in steps."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._running: Doubles = np.zeros(width)
        self._count = 0
        self._due = FIRST_MEAN
        self.used: Floats | None = None

    def observe(self, feature: Floats) -> Floats | None:
        """Take in a feature; return by how much the mean in use has moved, or None."""
        self._count += 1
        self._running += (feature - self._running) / min(self._count, MEAN_MEMORY)
        if self._count < self._due:
            return None
        self._due += min(self._due, MEAN_STEP)
        before = self.used
        self.used = self._running.astype(np.float32)
        return None if before is None else self.used - before


class _Table(Generic[Answer]):
    """Centred features and their answers, in slots of fixed number."""

    def __init__(self, width: int, policy: SimilarPolicy) -> None:
        self._each_bytes = 4 * width + ENTRY_BYTES
        self._limit_bytes = policy.size_bytes
        slots = min(policy.entries, policy.size_bytes // self._each_bytes)
        if slots < 1:
            raise ValueError(f"{policy.size_bytes} bytes hold no feature of {width} numbers")
        self._rows: Floats = np.zeros((slots, width), np.float32)
        self._norms: Floats = np.zeros(slots, np.float32)
        self._stored_s: Doubles = np.full(slots, -np.inf)  # -inf: the slot is free
        self._used = np.zeros(slots, np.int64)
        self._sizes = np.zeros(slots, np.int64)
        self._answers: list[Answer | None] = [None] * slots
        self._uses = 0
        self.size_bytes = 0

    def __len__(self) -> int:
        return int(np.isfinite(self._stored_s).sum())

    def nearest(self, centred: Floats, least_s: float) -> tuple[int, float]:
        """Return (slot, cosine) of the nearest stored since a time; (-1, -1) if none.

        O(slots x width).
        """
        fitting = self._stored_s >= least_s
        norm = float(np.linalg.norm(centred))
        if not norm or not fitting.any():
            return -1, -1.0
        scale = np.where(fitting & (self._norms > 0), self._norms, np.inf)
        cosines = np.where(fitting, self._rows @ centred / (norm * scale), -1.0)
        slot = int(cosines.argmax())
        return slot, min(1.0, float(cosines[slot]))

    def answer(self, slot: int) -> Answer:
        """Return a stored answer."""
        return self._answers[slot]  # type: ignore[return-value]  # a slot found holds one

    def touch(self, slot: int) -> None:
        """Note that an entry was of use."""
        self._uses += 1
        self._used[slot] = self._uses

    def put(self, centred: Floats, answer: Answer, size_bytes: int, now_s: float) -> None:
        """Store an entry in place of the least recently used; not at all when far too large."""
        size_bytes += self._each_bytes
        if size_bytes > self._limit_bytes:
            return
        while len(self) == len(self._rows) or self.size_bytes + size_bytes > self._limit_bytes:
            taken = np.isfinite(self._stored_s)
            self._drop(int(np.where(taken, self._used, np.iinfo(np.int64).max).argmin()))
        slot = int(self._stored_s.argmin())
        self._rows[slot], self._norms[slot] = centred, np.linalg.norm(centred)
        self._stored_s[slot], self._answers[slot] = now_s, answer
        self._sizes[slot] = size_bytes
        self.size_bytes += size_bytes
        self.touch(slot)

    def expire(self, least_s: float) -> None:
        """Drop what was stored before a time."""
        for slot in np.flatnonzero(np.isfinite(self._stored_s) & (self._stored_s < least_s)):
            self._drop(int(slot))

    def move(self, step: Floats) -> None:
        """Follow the mean: all features were centred where it was before."""
        self._rows -= step
        self._norms = np.linalg.norm(self._rows, axis=1).astype(np.float32)

    def _drop(self, slot: int) -> None:
        self.size_bytes -= int(self._sizes[slot])
        self._stored_s[slot], self._answers[slot] = -np.inf, None


class SimilarAnswers(Generic[Answer]):
    """Answers of one model, by digest, and what reuse of them is worth. Not for concurrent use.

    For each crop: `observe`, then `lookup`; without an answer (or for an audit) run the model and
    `store`. Deterministic given `rng`. `same` says whether two answers count as equal. `now_s` is
    any clock that never runs backwards.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        policy: SimilarPolicy | None = None,
        same: Callable[[Answer, Answer], bool] = operator.eq,
    ) -> None:
        self._rng = rng
        self._policy = policy or SimilarPolicy()
        self._same = same
        self._limit = SimilarityLimit(self._policy)
        self._mean: _Mean | None = None
        self._table: _Table[Answer] | None = None
        self.hits = self.misses = self.audits = 0

    @property
    def limit(self) -> float | None:
        """Return the least similarity that is answered, None while off."""
        return float(np.cos(np.radians(self._limit.degrees))) if self._limit.degrees else None

    @property
    def breaches(self) -> int:
        """Return how often audits have found the target missed."""
        return self._limit.breaches

    @property
    def size_bytes(self) -> int:
        """Return the bytes of the entries."""
        return self._table.size_bytes if self._table else 0

    def __len__(self) -> int:
        return len(self._table) if self._table else 0

    def observe(self, feature: Floats) -> None:
        """Let a crop's feature float32[d] count for the mean. O(d), seldom O(entries x d).

        Raises ValueError for another length, or values that are not finite.
        """
        self._checked(feature)
        if self._mean is None or self._table is None:
            self._table = _Table(len(feature), self._policy)
            self._mean = _Mean(len(feature))
        step = self._mean.observe(feature)
        if step is not None:
            self._table.move(step)

    def lookup(self, feature: Floats, now_s: float) -> Similar[Answer] | None:
        """Return the answer of the nearest crop if it is near enough. O(entries x d).

        Raises ValueError as `observe` does.
        """
        self._checked(feature)
        if self._table is None or not self._limit.degrees:
            self.misses += 1
            return None
        centred = self._centred(feature)
        assert centred is not None, "a limit is learnt from centred features"
        slot, similarity = self._table.nearest(centred, now_s - self._policy.ttl_s)
        if slot < 0 or angle(similarity) >= self._limit.degrees:
            self.misses += 1
            return None
        self._table.touch(slot)
        self.hits += 1
        share = self._policy.audit_share
        if self._limit.is_on_probation:
            share = min(1.0, AUDITS_ON_PROBATION * share)
        is_audit = bool(self._rng.random() < share)
        return Similar(self._table.answer(slot), similarity, is_audit)

    def store(self, feature: Floats, answer: Answer, now_s: float, size_bytes: int = 64) -> None:
        """Keep what the model answered, after a check against the nearest. O(entries x d).

        Raises ValueError as `observe` does.
        """
        self._checked(feature)
        centred = self._centred(feature)
        if self._table is None or centred is None:
            return
        self._table.expire(now_s - self._policy.ttl_s)
        slot, similarity = self._table.nearest(centred, now_s - self._policy.ttl_s)
        if slot >= 0:
            self._limit.check(similarity, self._same(self._table.answer(slot), answer))
        self._table.put(centred, answer, size_bytes, now_s)

    def audit(self, agreed: bool) -> None:
        """Report whether the answer of a lookup marked `is_audit` was the model's own."""
        self.audits += 1
        self._limit.audit(agreed)

    def _checked(self, feature: Floats) -> None:
        width = len(feature) if self._mean is None else self._mean.width
        if feature.shape != (width,) or not width:
            raise ValueError(f"a feature of shape {list(feature.shape)}, not [{width}]")
        if not np.isfinite(feature).all():
            raise ValueError("the feature has values that are not finite")

    def _centred(self, feature: Floats) -> Floats | None:
        """Return a feature less the mean, None before there is one."""
        used = self._mean.used if self._mean else None
        return None if used is None else (feature - used).astype(np.float32)
