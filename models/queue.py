"""The bounded queue of one accelerator: by tier, then earliest deadline first, fair between agents.

Owns the order in which work runs and the choice of what is given up; never runs anything and
never reads a clock (callers pass `now_s`, CLOCK_MONOTONIC seconds). Invariants: at most
`capacity` tasks wait; while the queue is full no agent holds more than its share of it because
others were refused; tier 3 gets at least `FLOOR` of the time that more critical tasks take while
it waits; within a tier an agent that was served more than its share while others waited comes
after them; every task leaves exactly once, either popped or shed with a counted reason.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from models.wire import Shed

Payload = TypeVar("Payload")

FLOOR = 0.1
"""Least part of the others' time that tier 3 gets while it waits."""

TAKEN_MEMORY_S = 2.0
MOST_TAKEN = 0.8
"""Of the time, that the more critical tiers are expected to go on taking at the most."""

AHEAD_S = 0.1
"""How much more than its share an agent may have been served before it comes after the others."""


@dataclass(eq=False)
class Task(Generic[Payload]):
    """Describe one piece of waiting work.

    `run_s` is the predicted time until its answer once it starts, `cost_s` the predicted time
    until the next task can start (longer than `run_s` on a paced accelerator).
    """

    agent: str
    deadline_s: float
    tier: int
    run_s: float
    cost_s: float
    arrived_s: float
    payload: Payload
    waiting: bool = field(default=True, repr=False)


class _Lane(Generic[Payload]):
    """The waiting tasks of one tier.

    Each agent's account of the time it was served is compared with the virtual time, which goes
    forward by an equal share for each agent that waits (fair queueing; Demers, Keshav, Shenker
    1989). An agent that comes back starts there: what it left unused is not saved up.
    """

    def __init__(self) -> None:
        self.waiting_s = 0.0
        self.length = 0
        self._heaps: dict[str, list[tuple[float, int, Task[Payload]]]] = {}
        self._virtual_s = 0.0
        self._served_s: dict[str, float] = {}

    def tasks(self) -> Iterator[Task[Payload]]:
        """Return what waits, in no order."""
        for heap in self._heaps.values():
            yield from (entry[2] for entry in heap if entry[2].waiting)

    def add(self, task: Task[Payload], order: int) -> None:
        heapq.heappush(self._heaps.setdefault(task.agent, []), (task.deadline_s, order, task))
        self.waiting_s += task.cost_s
        self.length += 1

    def late(self, now_s: float) -> list[Task[Payload]]:
        """Return the most urgent tasks of each agent that can no longer make it. O(agents)."""
        late: list[Task[Payload]] = []
        for agent in [*self._heaps]:
            heap = self._heaps[agent]
            while heap:
                task = heap[0][2]
                if task.waiting and now_s + task.run_s <= task.deadline_s:
                    break
                heapq.heappop(heap)
                if task.waiting:
                    late.append(task)
            if not heap:
                del self._heaps[agent]
        return late

    def head(self) -> Task[Payload] | None:
        """Return what should run next, when `late` has just been asked; it stays. O(agents)."""
        best: tuple[bool, float, int, Task[Payload]] | None = None
        for agent, heap in self._heaps.items():
            is_ahead = self._served_s.get(agent, 0.0) > self._virtual_s + AHEAD_S
            if best is None or (is_ahead, *heap[0]) < best:
                best = (is_ahead, *heap[0])
        return best[3] if best is not None else None

    def serve(self, task: Task[Payload]) -> None:
        """Charge a task that `head` returned to its agent."""
        began_s = max(self._virtual_s, self._served_s.get(task.agent, 0.0))
        self._served_s[task.agent] = began_s + task.cost_s
        self._virtual_s += task.cost_s / max(1, len(self._heaps))
        if len(self._served_s) > 2 * len(self._heaps) + 16:
            behind_s = self._virtual_s
            self._served_s = {a: at_s for a, at_s in self._served_s.items() if at_s > behind_s}

    def leave(self, task: Task[Payload]) -> None:
        """Take a task out, served or not."""
        task.waiting = False
        self.length -= 1
        # Sums of floats keep a rest, which an empty lane must not have.
        self.waiting_s = max(0.0, self.waiting_s - task.cost_s) if self.length else 0.0
        if not self.length:
            self._heaps.clear()
            self._served_s.clear()


class DeadlineQueue(Generic[Payload]):
    """Order waiting tasks and decide what is shed."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a queue's capacity must be at least 1, not {capacity}")
        self.capacity = capacity
        self.shed: Counter[str] = Counter()
        self._lanes: tuple[_Lane[Payload], ...] = (_Lane(), _Lane(), _Lane())
        self._held: Counter[str] = Counter()
        self._order = 0
        self._owed_s = 0.0  # to tier 3
        self._taken = [0.0] * len(self._lanes)  # share of the time that each tier took lately,
        self._taken_s = 0.0  # as of then

    def __len__(self) -> int:
        return sum(lane.length for lane in self._lanes)

    def waits_s(self) -> tuple[float, float, float]:
        """Return the predicted wait of a new task of tier 1, 2, 3.

        That is what waits before it, and what of the more critical tiers is likely to come
        meanwhile: as much as came lately (Kleinrock's conservation for a priority queue).
        """
        first, second, third = (lane.waiting_s for lane in self._lanes)
        before = [0.0, self._taken[0], self._taken[0] + self._taken[1]]
        left_of = [1.0 - min(MOST_TAKEN, share) for share in before]
        return first, (first + second) / left_of[1], (first + second + third) / left_of[2]

    def held_by(self, agent: str) -> int:
        """Return how many tasks of an agent wait."""
        return self._held[agent]

    def push(self, task: Task[Payload], now_s: float) -> list[Task[Payload]]:
        """Queue a task; return the tasks of others that gave way to it ("queue full").

        Raises Shed("deadline") when the deadline has passed, Shed("queue full") when the queue
        is full and the agent already has its share; the queue is unchanged then. O(log n), O(n)
        when the queue is full.
        """
        if task.deadline_s <= now_s:
            self.shed["deadline"] += 1
            raise Shed("deadline")
        victims: list[Task[Payload]] = []
        if len(self) >= self.capacity:
            victim = self._victim_for(task)
            if victim is None:
                self.shed["queue full"] += 1
                raise Shed("queue full")
            self._leave(victim)
            self.shed["queue full"] += 1
            victims.append(victim)
        self._order += 1
        self._lanes[task.tier - 1].add(task, self._order)
        self._held[task.agent] += 1
        return victims

    def pop(self, now_s: float) -> tuple[Task[Payload] | None, list[Task[Payload]]]:
        """Return the next task to run and those shed on the way ("deadline").

        A task that, started now, would finish after its deadline is shed, of whatever tier it is.
        O(agents + k log n).
        """
        shed = [task for lane in self._lanes for task in lane.late(now_s)]
        for late in shed:
            self._leave(late)
        self.shed["deadline"] += len(shed)
        task = self._next()
        if task is not None:
            self._lanes[task.tier - 1].serve(task)
            if task.tier == len(self._lanes):
                self._owed_s = max(0.0, self._owed_s - task.cost_s)
            elif self._lanes[-1].length:
                self._owed_s += FLOOR * task.cost_s
            self._take(task, now_s)
            self._leave(task)
        return task, shed

    def _take(self, task: Task[Payload], now_s: float) -> None:
        """Note whose tier takes the time; the past fades."""
        fading = math.exp(min(0.0, self._taken_s - now_s) / TAKEN_MEMORY_S)
        self._taken = [share * fading for share in self._taken]
        self._taken[task.tier - 1] += task.cost_s / TAKEN_MEMORY_S
        self._taken_s = now_s

    def remove(self, unwanted: Callable[[Task[Payload]], bool]) -> list[Task[Payload]]:
        """Take out and return the tasks for which `unwanted` holds; the caller counts. O(n)."""
        removed = [task for lane in self._lanes for task in lane.tasks() if unwanted(task)]
        for task in removed:
            self._leave(task)
        return removed

    def _next(self) -> Task[Payload] | None:
        """Return what should run next; it stays."""
        first, second, third = self._lanes
        last = third.head() if self._owed_s > 0.0 else None
        if last is not None and self._owed_s >= last.cost_s:
            return last
        return first.head() or second.head() or third.head()

    def _leave(self, task: Task[Payload]) -> None:
        self._lanes[task.tier - 1].leave(task)
        self._held[task.agent] -= 1
        if not self._held[task.agent]:
            del self._held[task.agent]

    def _victim_for(self, task: Task[Payload]) -> Task[Payload] | None:
        """Choose whose task gives way: the greatest holder's last one, if it exceeds its share."""
        agents = len(self._held) + (0 if self._held[task.agent] else 1)
        share = max(1, self.capacity // max(1, agents))
        if self._held[task.agent] >= share:
            return None
        greatest = max(self._held.values())
        if greatest <= share:  # more agents than places: first come, first served
            return None
        crowd = [
            waiting
            for lane in self._lanes
            for waiting in lane.tasks()
            if self._held[waiting.agent] == greatest
        ]
        return max(crowd, key=lambda one: (one.tier, one.deadline_s))
