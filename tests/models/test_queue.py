"""The deadline queue: order, bounds, fairness, what is shed and why."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.queue import FLOOR, TAKEN_MEMORY_S, DeadlineQueue, Task
from models.wire import Shed


def task(agent: str, deadline_s: float, run_s: float = 0.0, tier: int = 2) -> Task[str]:
    return Task(agent, deadline_s, tier, run_s, run_s, 0.0, f"{agent}@{deadline_s}")


def test_earliest_deadline_leaves_first() -> None:
    queue: DeadlineQueue[str] = DeadlineQueue(8)
    for deadline_s in (5.0, 2.0, 9.0, 3.0):
        queue.push(task("a", deadline_s), 0.0)
    order = []
    while (popped := queue.pop(0.0)[0]) is not None:
        order.append(popped.deadline_s)
    assert order == [2.0, 3.0, 5.0, 9.0]


def test_the_more_critical_tier_leaves_first_and_within_it_the_earliest() -> None:
    queue: DeadlineQueue[str] = DeadlineQueue(8)
    for agent, deadline_s, tier in (("c", 1.0, 3), ("b", 2.0, 2), ("a", 9.0, 1), ("d", 8.0, 1)):
        queue.push(task(agent, deadline_s, tier=tier), 0.0)
    order = []
    while (popped := queue.pop(0.0)[0]) is not None:
        order.append(popped.agent)
    assert order == ["d", "a", "b", "c"]


def test_waits_count_what_is_before_a_task_of_each_tier() -> None:
    queue: DeadlineQueue[str] = DeadlineQueue(8)
    for run_s, tier in ((0.1, 1), (0.2, 2), (0.4, 3)):
        queue.push(task("a", 9.0, run_s, tier), 0.0)
    assert queue.waits_s() == pytest.approx((0.1, 0.3, 0.7))
    queue.pop(0.0)
    left = 1.0 - 0.1 / TAKEN_MEMORY_S  # of the time, if as much of tier 1 goes on coming
    assert queue.waits_s() == pytest.approx((0.0, 0.2 / left, 0.6 / left))


def test_what_is_late_leaves_at_once_although_its_tier_has_no_turn() -> None:
    queue: DeadlineQueue[str] = DeadlineQueue(8)
    queue.push(task("humble", 1.0, 0.1, tier=3), 0.0)
    queue.push(task("critical", 9.0, 0.1, tier=1), 0.0)
    popped, shed = queue.pop(2.0)
    assert popped is not None
    assert (popped.agent, [one.agent for one in shed]) == ("critical", ["humble"])


def served(arrivals: list[tuple[float, Task[str]]], until_s: float) -> Counter[str]:
    """Serve tasks one at a time as they come; return how many of each agent ran in time."""
    queue: DeadlineQueue[str] = DeadlineQueue(32)
    done: Counter[str] = Counter()
    now_s, coming = 0.0, sorted(arrivals, key=lambda one: one[0])
    while now_s < until_s:
        while coming and coming[0][0] <= now_s:
            at_s, one = coming.pop(0)
            try:
                queue.push(one, at_s)
            except Shed:
                pass
        next_one = queue.pop(now_s)[0]
        if next_one is not None:
            now_s += next_one.cost_s
            done[next_one.agent] += 1
        else:
            now_s = coming[0][0] if coming else until_s
    return done


def stream(
    agent: str, period_s: float, allowed_s: float, run_s: float, tier: int, until_s: float
) -> list[tuple[float, Task[str]]]:
    count = int(until_s / period_s)
    return [
        (index * period_s, task(agent, index * period_s + allowed_s, run_s, tier))
        for index in range(count)
    ]


def test_tier_three_never_starves_and_critical_work_hardly_notices() -> None:
    critical = stream("critical", 0.01, 0.1, 0.012, 1, 20.0)  # 120 % by itself
    humble = stream("humble", 0.05, 0.5, 0.01, 3, 20.0)
    done = served(critical + humble, 20.0)
    share = done["humble"] * 0.01 / 20.0
    assert FLOOR / (1 + FLOOR) * 0.9 <= share <= FLOOR * 1.1
    assert done["critical"] * 0.012 / 20.0 > 0.88
    alone = served(stream("humble", 0.05, 0.5, 0.01, 3, 20.0), 20.0)
    assert alone["humble"] == len(humble)


def test_a_single_camera_of_tier_three_with_a_short_deadline_is_served_too() -> None:
    # Its frames never wait for long enough to be owed one by themselves.
    critical = stream("critical", 0.04, 0.2, 0.05, 1, 60.0)  # 125 % by itself
    humble = stream("humble", 0.2, 0.2, 0.05, 3, 60.0)
    done = served(critical + humble, 60.0)
    waited = 60.0 * (0.2 - 0.05) / 0.2
    assert done["humble"] * 0.05 > 0.5 * FLOOR * waited
    assert done["critical"] * 0.05 > 0.88 * 60.0


def test_a_camera_that_floods_does_not_take_from_those_within_their_share() -> None:
    flood = stream("flood", 0.005, 0.1, 0.01, 2, 20.0)  # twice what there is, and more urgent
    quiet = stream("quiet", 0.1, 0.3, 0.01, 2, 20.0)
    other = stream("other", 0.05, 0.3, 0.01, 2, 20.0)
    done = served(flood + quiet + other, 20.0)
    assert done["quiet"] == len(quiet)
    assert done["other"] == len(other)
    assert done["flood"] > 0.6 * (20.0 / 0.01 - len(quiet) - len(other))


def test_what_cannot_be_in_time_is_shed_at_dequeue_and_counted() -> None:
    queue: DeadlineQueue[str] = DeadlineQueue(8)
    queue.push(task("a", 1.0, run_s=0.5), 0.0)
    queue.push(task("a", 2.0, run_s=0.5), 0.0)
    queue.push(task("a", 3.0, run_s=0.5), 0.0)
    popped, shed = queue.pop(1.6)
    assert [t.deadline_s for t in shed] == [1.0, 2.0]
    assert popped is not None
    assert popped.deadline_s == 3.0
    assert queue.shed == {"deadline": 2}


def test_a_past_deadline_is_refused_at_once() -> None:
    queue: DeadlineQueue[str] = DeadlineQueue(8)
    with pytest.raises(Shed, match="deadline"):
        queue.push(task("a", 1.0), 1.0)
    assert len(queue) == 0


def test_a_flooding_agent_gives_way_to_the_others() -> None:
    queue: DeadlineQueue[str] = DeadlineQueue(10)
    for index in range(10):
        queue.push(task("flood", 10.0 + index), 0.0)
    gone = queue.push(task("quiet", 30.0), 0.0)
    assert [t.payload for t in gone] == ["flood@19.0"]  # its last one, not its most urgent
    with pytest.raises(Shed, match="queue full"):
        queue.push(task("flood", 11.0), 0.0)
    assert queue.held_by("quiet") == 1
    assert queue.shed == {"queue full": 2}


def test_more_agents_than_places_is_first_come_first_served() -> None:
    queue: DeadlineQueue[str] = DeadlineQueue(2)
    queue.push(task("a", 1.0), 0.0)
    queue.push(task("b", 1.0), 0.0)
    with pytest.raises(Shed, match="queue full"):
        queue.push(task("c", 1.0), 0.0)


def test_removing_takes_out_and_keeps_the_order() -> None:
    queue: DeadlineQueue[str] = DeadlineQueue(8)
    for agent, deadline_s in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        queue.push(task(agent, deadline_s), 0.0)
    assert len(queue.remove(lambda t: t.agent == "a")) == 2
    left = queue.pop(0.0)[0]
    assert left is not None
    assert left.agent == "b"
    assert len(queue) == 0


STEP = st.tuples(
    st.sampled_from("abcd"),
    st.floats(0.1, 5.0),
    st.floats(0.0, 1.0),
    st.integers(1, 3),
    st.booleans(),
)


@given(st.integers(1, 6), st.lists(STEP, max_size=80))
def test_every_task_leaves_exactly_once_and_bounds_hold(
    capacity: int, steps: list[tuple[str, float, float, int, bool]]
) -> None:
    queue: DeadlineQueue[str] = DeadlineQueue(capacity)
    entered: list[Task[str]] = []
    left: list[Task[str]] = []
    reasons: set[str] = set()
    now_s = 0.0
    for agent, slack_s, run_s, tier, pop in steps:
        one = task(agent, now_s + slack_s, run_s, tier)
        try:
            left += queue.push(one, now_s)
            entered.append(one)
        except Shed as shed:
            agents = {t.agent for t in entered if t not in left} | {agent}
            # Only who has its share already, or comes when nobody exceeds it, is refused.
            reasons.add(shed.reason)
            assert len(queue) == capacity
            share = max(1, capacity // len(agents))
            assert queue.held_by(agent) >= share or len(agents) > capacity
        assert len(queue) <= capacity
        if pop:
            now_s += 0.3
            popped, shed_tasks = queue.pop(now_s)
            left += shed_tasks
            if popped is not None:
                assert now_s + popped.run_s <= popped.deadline_s
                left.append(popped)
    while (popped := queue.pop(now_s))[0] is not None or popped[1]:
        left += popped[1] + ([popped[0]] if popped[0] else [])
    assert reasons <= {"queue full"}
    assert len(left) == len(entered)
    assert {id(t) for t in left} == {id(t) for t in entered}
    assert queue.waits_s() == (0, 0, 0)
