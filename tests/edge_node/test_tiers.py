"""The tier of an agent: the pure rule, its laws, and what the replica makes of it."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt import encode_value
from crdt.values import MAX_VALUE_BYTES
from edge_node.placement.tiers import (
    AT_REST,
    BAND,
    BOUNDARY,
    FALL_EPOCHS,
    HISTORY,
    MAX_REASON_CHARS,
    MISS_WEIGHT,
    TIGHT_MS,
    TIGHT_WEIGHT,
    Change,
    Signals,
    TierState,
    evaluate,
    from_record,
)

QUIET = Signals(2, safety=False, deadline_ms=500.0, seen=0.0, missed=0.0)
BUSY = replace(QUIET, seen=1.0)

shares = st.one_of(st.none(), st.floats(0, 1))
criticalities = st.integers(1, 3)
epochs = st.lists(
    st.builds(
        Signals,
        declared=st.just(2),
        safety=st.booleans(),
        deadline_ms=st.floats(10, 60_000),
        seen=shares,
        missed=shares,
    ),
    max_size=40,
)


def run(signals: list[Signals], state: TierState | None = None) -> list[TierState]:
    states = []
    for number, one in enumerate(signals):
        state = evaluate(state, one, 1_000 * number)
        states.append(state)
    return states


def tiers(signals: list[Signals]) -> list[int]:
    return [state.tier for state in run(signals)]


@pytest.mark.parametrize(
    ("declared", "quiet", "at_stake"),
    [(1, 2, 1), (2, 3, 2), (3, 3, 2)],
)
def test_live_signals_move_a_tier_by_one_and_none_into_tier_1(
    declared: int, quiet: int, at_stake: int
) -> None:
    nothing = replace(QUIET, declared=declared)
    assert tiers([nothing] * (FALL_EPOCHS + 2))[-1] == quiet
    missed = replace(BUSY, declared=declared, deadline_ms=100.0, missed=1.0)
    assert tiers([missed] * 5)[-1] == at_stake


def test_a_tier_rises_after_one_epoch_and_falls_after_three() -> None:
    fallen = run([QUIET] * FALL_EPOCHS)
    assert [state.tier for state in fallen] == [2, 2, 3]
    assert run([BUSY], fallen[-1])[0].tier == 2
    assert tiers([QUIET, QUIET, BUSY, QUIET, QUIET, BUSY]) == [2] * 6


def test_a_tight_deadline_keeps_a_quiet_camera_where_it_was_declared() -> None:
    assert set(tiers([replace(QUIET, deadline_ms=100.0)] * 20)) == {2}


def test_misses_raise_nobody_who_sees_nothing() -> None:
    alike = [replace(QUIET, missed=missed) for missed in (0.0, 1.0)]
    assert tiers([alike[0]] * 9) == tiers([alike[1]] * 9)


def test_a_safety_camera_is_tier_1_whatever_it_sees() -> None:
    states = run([replace(QUIET, declared=3, safety=True)] * 9)
    assert {state.tier for state in states} == {1}
    assert states[-1].reason == "safety camera"


def test_an_epoch_without_an_answer_says_nothing() -> None:
    state = run([BUSY])[0]
    silent = replace(QUIET, seen=None, missed=1.0)
    assert run([silent] * 9, state)[-1] == state


def test_who_takes_an_agent_over_goes_on_from_its_tier() -> None:
    fallen = run([QUIET] * FALL_EPOCHS)[-1]
    state = from_record(fallen.record(), QUIET.declared)
    silent = replace(QUIET, seen=None)
    assert [one.tier for one in run([silent, QUIET, QUIET], state)] == [3, 3, 3]
    assert run([BUSY], state)[0].tier == 2


def test_a_new_declaration_counts_at_once() -> None:
    state = run([BUSY])[0]
    states = run([replace(BUSY, declared=1)], state)
    assert (states[0].tier, states[0].reason) == (1, "declared")


@given(epochs)
def test_the_same_signals_give_the_same_tiers(signals: list[Signals]) -> None:
    assert run(signals) == run(signals)


@given(epochs, criticalities, criticalities)
def test_the_more_critical_never_has_the_lower_tier(
    signals: list[Signals], one: int, other: int
) -> None:
    above, below = sorted((one, other))
    first = tiers([replace(s, declared=above) for s in signals])
    second = tiers([replace(s, declared=below) for s in signals])
    assert all(a <= b for a, b in zip(first, second, strict=True))


@given(epochs, criticalities)
def test_a_tier_is_at_most_one_from_the_declared(signals: list[Signals], declared: int) -> None:
    plain = [replace(s, declared=declared, safety=False) for s in signals]
    assert all(abs(tier - declared) <= 1 for tier in tiers(plain))


@given(
    st.lists(st.floats(-0.99, 0.99), min_size=1, max_size=80),
    st.sampled_from([(-1, 500.0), (1, 500.0), (1, 100.0)]),
    st.integers(-1, 1),
)
def test_noise_within_the_band_changes_a_tier_at_most_once(
    noise: list[float], where: tuple[int, float], shift: int
) -> None:
    """A push of a boundary plus noise: the share of answers with a box that gives it."""
    side, deadline_ms = where
    seen = [AT_REST + side * BOUNDARY + BAND * one for one in noise]
    if side > 0:  # misses have to add to the scene
        tight = TIGHT_WEIGHT if deadline_ms == TIGHT_MS else 0.0
        seen = [(share - tight) / (1.0 + MISS_WEIGHT) for share in seen]
    missed = 1.0 if side > 0 else 0.0
    assert all(0.0 <= share <= 1.0 for share in seen)
    state = TierState(3, "", 0, shift=shift, level=-shift * BOUNDARY)
    signals = [Signals(3, False, deadline_ms, share, missed) for share in seen]
    shifts = [shift, *(one.shift for one in run(signals, state))]
    assert sum(a != b for a, b in itertools.pairwise(shifts)) <= 1


@given(epochs)
def test_whatever_comes_a_tier_falls_at_most_once_in_three_epochs(signals: list[Signals]) -> None:
    plain = [replace(s, safety=False) for s in signals]
    seen = [2, *tiers(plain)]
    falls = [at for at in range(1, len(seen)) if seen[at] > seen[at - 1]]
    assert all(b - a >= FALL_EPOCHS for a, b in itertools.pairwise(falls))


@given(epochs)
def test_the_history_holds_the_newest_changes_and_travels(signals: list[Signals]) -> None:
    states = run(signals)
    seen = [2, *(state.tier for state in states)] if signals and not signals[0].safety else None
    for state in states:
        assert len(state.history) <= HISTORY
        assert not state.history or state.history[-1] == Change(
            state.since_ms, state.tier, state.reason
        )
        travelled = from_record(state.record(), 2)
        assert travelled is not None
        assert (travelled.tier, travelled.history) == (state.tier, state.history)
    if seen is not None:
        changes = sum(a != b for a, b in itertools.pairwise(seen))
        assert len(states[-1].history) == min(changes, HISTORY)


def test_the_longest_record_fits_into_a_value() -> None:
    change = Change((1 << 53) - 1, 3, "x" * MAX_REASON_CHARS)
    state = TierState(3, change.reason, change.at_ms, (change,) * HISTORY)
    assert len(encode_value(state.record())) <= MAX_VALUE_BYTES  # type: ignore[arg-type]
    reasons = {
        state.reason
        for share in (0.0, 0.004, 0.3, 1.0)
        for declared in (1, 2, 3)
        for state in run([Signals(declared, False, 400.0, share, 1.0)] * 9)
    }
    assert len(reasons) > 2
    assert max(map(len, reasons)) <= MAX_REASON_CHARS


@pytest.mark.parametrize(
    "record",
    [
        None,
        [],
        {},
        {"tier": 4, "reason": "", "since_ms": 1, "history": []},
        {"tier": True, "reason": "", "since_ms": 1, "history": []},
        {"tier": 2, "reason": 5, "since_ms": 1, "history": []},
        {"tier": 2, "reason": "x" * (MAX_REASON_CHARS + 1), "since_ms": 1, "history": []},
        {"tier": 2, "reason": "", "since_ms": -1, "history": []},
        {"tier": 2, "reason": "", "since_ms": 1, "history": None},
        {"tier": 2, "reason": "", "since_ms": 1, "history": [[1, 2]]},
    ],
)
def test_a_malformed_record_of_a_peer_counts_for_nothing(record: object) -> None:
    assert from_record(record, 2) is None
