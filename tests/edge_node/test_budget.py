"""Budgets: what is split, spent and sent never comes to more than was granted."""

import copy
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edge_node.placement.budget import (
    FORWARD_MAX_MS,
    FORWARD_MIN_MS,
    MAX_MS,
    Budget,
    BudgetSpent,
    patience_ms,
)

EPSILON_MS = 1e-5  # seconds and milliseconds meet in floating point


def test_time_passes_and_what_is_split_off_is_gone() -> None:
    whole = Budget(100, now_s=5.0)
    assert whole.remaining_ms(5.0) == pytest.approx(100)
    assert whole.remaining_ms(5.04) == pytest.approx(60)
    part = whole.split(5.04, ms=20)
    assert (part.remaining_ms(5.04), whole.remaining_ms(5.04)) == pytest.approx((20, 40))
    assert part.remaining_ms(5.05) == pytest.approx(10)
    whole.rejoin(part, 5.05)
    assert part.remaining_ms(5.05) == 0
    assert whole.remaining_ms(5.05) == pytest.approx(50)
    assert whole.remaining_ms(6.0) == 0


def test_a_retry_draws_on_what_the_first_attempt_left() -> None:
    whole = Budget(100, now_s=0.0)
    attempt = whole.split(0.0, share=0.6)
    assert attempt.for_wire(0.01) == pytest.approx(50)
    assert attempt.remaining_ms(0.01) == 0
    # It stays silent: what was sent stays spent.
    whole.rejoin(attempt, 0.03)
    assert whole.remaining_ms(0.03) == pytest.approx(40)
    again = whole.split(0.03, share=1)
    assert whole.remaining_ms(0.03) == 0
    sent_ms = again.for_wire(0.03)
    # The next one says no after 10 ms: what the way took is gone, the rest is not.
    there = Budget.from_wire(sent_ms, now_s=900.0)
    assert there.remaining_ms(900.0) == pytest.approx(sent_ms)
    again.refused(0.04)
    whole.rejoin(again, 0.04)
    assert whole.remaining_ms(0.04) == pytest.approx(30)
    again.refused(0.04)
    assert again.remaining_ms(0.04) == 0


def test_what_the_way_is_likely_to_take_is_not_sent() -> None:
    whole = Budget(100, now_s=0.0)
    sent_ms = whole.for_wire(0.0, way_ms=30.0)
    assert sent_ms == pytest.approx(70)  # else the receiver's clock would make it 30 ms longer
    assert whole.remaining_ms(0.0) == 0
    whole.refused(0.02)
    assert whole.remaining_ms(0.02) == pytest.approx(80)
    assert Budget(100, now_s=0.0).for_wire(0.0, way_ms=1e6) == pytest.approx(50)


def test_patience_grows_with_what_was_predicted() -> None:
    assert patience_ms(10.0, 100.0) == FORWARD_MIN_MS
    assert patience_ms(1_000.0, 100.0) == 2_000.0
    assert patience_ms(1e9, 100.0) == FORWARD_MAX_MS
    assert patience_ms(1e9, 30_000.0) == 30_000.0


def test_what_is_consumed_in_advance_does_not_come_back() -> None:
    whole = Budget(100, now_s=0.0)
    whole.consume(30, now_s=0.05)
    assert whole.remaining_ms(0.05) == pytest.approx(20)
    with pytest.raises(BudgetSpent, match="25 ms asked of the 20 ms left"):
        whole.consume(25, now_s=0.05)
    with pytest.raises(BudgetSpent, match="25 ms asked of the 20 ms left"):
        whole.split(0.05, ms=25)
    assert whole.remaining_ms(0.05) == pytest.approx(20)


@pytest.mark.parametrize("ms", [0, 0.0, -3.5, -math.inf])
def test_a_zero_or_past_budget_is_refused_with_the_reason(ms: float) -> None:
    with pytest.raises(BudgetSpent, match="the deadline passed"):
        Budget.from_wire(ms, now_s=1.0)


@pytest.mark.parametrize("ms", [math.nan, math.inf, MAX_MS * 2, True, "5", None])
def test_what_is_no_budget_is_refused(ms: object) -> None:
    with pytest.raises(ValueError) as caught:
        Budget.from_wire(ms, now_s=1.0)  # type: ignore[arg-type]
    assert not isinstance(caught.value, BudgetSpent)


def test_a_spent_budget_says_why() -> None:
    late = Budget(10, now_s=0.0)
    with pytest.raises(BudgetSpent, match="passed 40 ms ago"):
        late.split(0.05, share=0.5)
    empty = Budget(10, now_s=0.0)
    empty.for_wire(0.0)
    with pytest.raises(BudgetSpent, match="split off, consumed or sent"):
        empty.for_wire(0.001)


@pytest.mark.parametrize(
    "wrong", [{}, {"ms": 1.0, "share": 0.5}, {"share": 0.0}, {"share": 1.5}, {"ms": -1.0}]
)
def test_a_split_that_makes_no_sense_changes_nothing(wrong: dict[str, float]) -> None:
    whole = Budget(100, now_s=0.0)
    with pytest.raises(ValueError):
        whole.split(0.0, **wrong)
    with pytest.raises(ValueError):
        whole.consume(-1.0, 0.0)
    with pytest.raises(ValueError, match="own child"):
        whole.rejoin(Budget(5, now_s=0.0), 0.0)
    assert whole.remaining_ms(0.0) == 100


def test_it_cannot_be_copied() -> None:
    whole = Budget(100, now_s=0.0)
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="not copied"):
            attempt(whole)  # type: ignore[operator]


@given(st.floats(0.001, MAX_MS), st.floats(0, 1e6), st.lists(st.floats(0.001, 1.0), max_size=8))
def test_children_and_rest_come_to_the_whole(ms: float, now_s: float, shares: list[float]) -> None:
    whole = Budget(ms, now_s)
    granted_ms = whole.remaining_ms(now_s)
    children = []
    for share in shares:
        if whole.remaining_ms(now_s) == 0:
            break
        children.append(whole.split(now_s, share=share))
    total_ms = whole.remaining_ms(now_s) + sum(child.remaining_ms(now_s) for child in children)
    assert total_ms == pytest.approx(granted_ms, rel=1e-6, abs=EPSILON_MS)
    for child in children:
        whole.rejoin(child, now_s)
    assert whole.remaining_ms(now_s) == pytest.approx(granted_ms, rel=1e-6, abs=EPSILON_MS)


class Spending(RuleBasedStateMachine):
    """Whatever is done in whatever order, the sum of all budgets and of what is spent falls."""

    granted = 200.0

    @initialize()
    def grant(self) -> None:
        self.now_s = 0.0
        self.budgets = [Budget(self.granted, 0.0)]
        self.parents: list[int] = [-1]
        self.sent: dict[int, float] = {}
        self.consumed_ms = 0.0
        self.most_ms = self.granted

    def pick(self, number: int) -> int:
        return number % len(self.budgets)

    @rule(ms=st.floats(0, 40))
    def time_passes(self, ms: float) -> None:
        self.now_s += ms / 1e3

    @rule(number=st.integers(0, 30), share=st.floats(0.01, 1.0))
    def split(self, number: int, share: float) -> None:
        index = self.pick(number)
        try:
            self.budgets.append(self.budgets[index].split(self.now_s, share=share))
        except BudgetSpent:
            assert share * self.budgets[index].remaining_ms(self.now_s) == 0
        else:
            self.parents.append(index)

    @rule(number=st.integers(0, 30), ms=st.floats(0, 80))
    def consume(self, number: int, ms: float) -> None:
        budget = self.budgets[self.pick(number)]
        left_ms = budget.remaining_ms(self.now_s)
        try:
            budget.consume(ms, self.now_s)
        except BudgetSpent:
            assert ms > left_ms or left_ms == 0
            assert budget.remaining_ms(self.now_s) == left_ms
        else:
            self.consumed_ms += ms

    @rule(number=st.integers(0, 30))
    def rejoin(self, number: int) -> None:
        index = self.pick(number)
        if self.parents[index] >= 0:
            self.budgets[self.parents[index]].rejoin(self.budgets[index], self.now_s)

    @rule(number=st.integers(0, 30))
    def send(self, number: int) -> None:
        index = self.pick(number)
        try:
            sent_ms = self.budgets[index].for_wire(self.now_s)
        except BudgetSpent:
            assert self.budgets[index].remaining_ms(self.now_s) == 0
        else:  # what went before is not to be had back: it stays spent
            self.consumed_ms += self.sent.get(index, 0.0)
            self.sent[index] = sent_ms

    @rule(number=st.integers(0, 30))
    def refuse(self, number: int) -> None:
        index = self.pick(number)
        self.budgets[index].refused(self.now_s)
        self.sent.pop(index, None)

    @invariant()
    def nothing_is_spent_twice(self) -> None:
        left_ms = sum(budget.remaining_ms(self.now_s) for budget in self.budgets)
        total_ms = left_ms + sum(self.sent.values()) + self.consumed_ms
        assert total_ms <= self.granted + EPSILON_MS
        until_deadline_ms = max(0.0, self.granted - self.now_s * 1e3)
        assert all(
            budget.remaining_ms(self.now_s) <= until_deadline_ms + EPSILON_MS
            for budget in self.budgets
        )


TestSpending = Spending.TestCase
