"""Decide an agent's tier from what was declared and from what its host observes.

Owns one pure rule, evaluated once an epoch by the agent's host, and the shape in which the outcome
travels. Never looks at a clock or a replica. Invariants: a tier is at most one from the declared
criticality; tier 1 is reached only by those declared critical, so that a crowd in front of many
cameras cannot crowd them out; with equal signals the more critical never has the lower tier.

The signals add up to a push, positive towards tier 1. Its two boundaries are smooth: the nearer a
push is to one, the less of it an epoch takes over, and a band around each has to be crossed as a
whole. So noise narrower than the band changes a tier at most once; what is decisive counts at once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

FALL_EPOCHS = 3
"""A tier falls after so many evaluations in a row that want it lower; it rises after one."""

BOUNDARY = 0.5
"""Push at which an agent rises by a tier, and, negative, falls."""

BAND = 0.05
"""Half the width of the band around a boundary."""

BLEND_WIDTH = 0.25
LEAST_GAIN = 0.2
"""Share of a push at a boundary that an epoch takes over; at ``BLEND_WIDTH`` from it, all."""

HISTORY = 8
MAX_REASON_CHARS = 48
"""A record with its history has to fit into one value of the replica."""

AT_REST = 0.7
"""Share of answers that see something at which the scene pushes neither way."""

TIGHT_WEIGHT, TIGHT_MS, LAX_MS = 0.2, 100.0, 500.0
MISS_WEIGHT = 0.3

MIDDLE = 2
"""The tier of everyone where tiers are switched off."""


@dataclass(frozen=True, slots=True)
class Signals:
    """What is declared of an agent, and what its host observed of it in an epoch."""

    declared: int
    safety: bool
    deadline_ms: float
    seen: float | None = None
    """Share of its answers that hold a box, None if there was no answer."""
    missed: float | None = None
    """Share of its frames that were not answered in time, None if there was no frame."""


@dataclass(frozen=True, slots=True)
class Change:
    """A tier that an agent came to."""

    at_ms: int
    tier: int
    reason: str


@dataclass(frozen=True, slots=True)
class TierState:
    """One agent between two evaluations."""

    tier: int
    reason: str
    since_ms: int
    history: tuple[Change, ...] = ()
    """The newest changes, oldest first, the current one included; see :data:`HISTORY`."""
    shift: int = 0
    """Tiers below the declared one that its signals ask for: -1, 0 or 1."""
    level: float = 0.0
    """The push, blended."""
    falling: int = 0
    """Evaluations in a row that wanted it lower."""

    def record(self) -> dict[str, object]:
        """Return what :func:`from_record` reads."""
        return {
            "tier": self.tier,
            "reason": self.reason,
            "since_ms": self.since_ms,
            "history": [[one.at_ms, one.tier, one.reason] for one in self.history],
        }


def from_record(record: object, declared: int) -> TierState | None:
    """Read what a host published of an agent; None if it is nothing of this version."""
    if not isinstance(record, Mapping):
        return None
    rows = record.get("history")
    current = _change([record.get("since_ms"), record.get("tier"), record.get("reason")])
    history = tuple(map(_change, rows[-HISTORY:])) if isinstance(rows, list) else (None,)
    changes = tuple(change for change in history if change is not None)
    if current is None or len(changes) < len(history):
        return None
    shift = max(-1, min(1, current.tier - declared))
    level = -BOUNDARY * shift  # within the band of its shift, until there is a signal
    return TierState(current.tier, current.reason, current.at_ms, changes, shift, level)


def _change(row: object) -> Change | None:
    if not isinstance(row, list) or len(row) != 3:
        return None
    at_ms, tier, reason = row
    known = type(at_ms) is int and type(tier) is int and isinstance(reason, str)
    if not (known and 0 <= at_ms < 1 << 53 and 1 <= tier <= 3 and len(reason) <= MAX_REASON_CHARS):
        return None
    return Change(at_ms, tier, reason)


def evaluate(state: TierState | None, signals: Signals, now_ms: int) -> TierState:
    """Return the state after one epoch; ``state`` is None for an agent that was never evaluated.

    Only a change of the tier changes ``reason``, ``since_ms`` and ``history``.
    """
    if state is None:
        tier, reason = _tier(signals, 0), _reason(signals, 0)
        state = TierState(tier, reason, now_ms)
    if signals.seen is not None:
        state = _shifted(state, _push(signals))
    tier = _tier(signals, state.shift)
    if tier == state.tier:
        return state
    reason = _reason(signals, state.shift)
    history = (*state.history, Change(now_ms, tier, reason))[-HISTORY:]
    return replace(state, tier=tier, reason=reason, since_ms=now_ms, history=history)


def _shifted(state: TierState, push: float) -> TierState:
    """Take a push in: up at once, down when it lasts."""
    level, shift = _blended(state.level, push), state.shift
    wanted = _wanted(shift, level)
    falling = state.falling + 1 if wanted > shift else 0
    if wanted < shift or falling >= FALL_EPOCHS:
        shift, falling = wanted, 0
    return replace(state, level=level, shift=shift, falling=falling)


def _push(signals: Signals) -> float:
    """Return how far the signals push: the scene, a tight deadline, and misses of what is seen."""
    seen = signals.seen or 0.0
    span = math.log(LAX_MS / TIGHT_MS)
    tight = min(1.0, max(0.0, math.log(LAX_MS / signals.deadline_ms) / span))
    # A miss counts where something was to be seen: else whoever is behind would rise.
    return seen - AT_REST + TIGHT_WEIGHT * tight + MISS_WEIGHT * seen * (signals.missed or 0.0)


def _blended(level: float, push: float) -> float:
    near = min(1.0, abs(abs(push) - BOUNDARY) / BLEND_WIDTH)
    smooth = near * near * (3.0 - 2.0 * near)
    return level + (LEAST_GAIN + (1.0 - LEAST_GAIN) * smooth) * (push - level)


def _wanted(shift: int, level: float) -> int:
    """Return the shift for a level; the band around a boundary belongs to the current shift."""
    if level >= BOUNDARY + (-BAND if shift == -1 else BAND):
        return -1
    if level <= -BOUNDARY + (BAND if shift == 1 else -BAND):
        return 1
    return 0


def _tier(signals: Signals, shift: int) -> int:
    if signals.safety:
        return 1
    highest = 1 if signals.declared == 1 else 2
    return max(highest, min(3, signals.declared + shift))


def _reason(signals: Signals, shift: int) -> str:
    """Say in at most ``MAX_REASON_CHARS`` why the tier is what it is."""
    if signals.safety:
        return "safety camera"
    seen, missed = signals.seen or 0.0, signals.missed or 0.0
    match _tier(signals, shift) - signals.declared:
        case 1:
            return "nothing is seen" if seen < 0.01 else f"little is seen: {seen:.0%} of answers"
        case -1:
            return f"seen in {seen:.0%} of answers, {missed:.0%} missed"
    return "declared"
