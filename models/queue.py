"""The bounded queue of one accelerator: earliest deadline first, fair between agents.

Owns the order in which work runs and the choice of what is given up; never runs anything and
never reads a clock (callers pass `now_s`, CLOCK_MONOTONIC seconds). Invariants: at most
`capacity` tasks wait; while the queue is full no agent holds more than its share of it because
others were refused; every task leaves exactly once, either popped or shed with a counted reason.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from models.wire import Shed

Payload = TypeVar("Payload")


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


class DeadlineQueue(Generic[Payload]):
    """Order waiting tasks by deadline and decide what is shed."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a queue's capacity must be at least 1, not {capacity}")
        self.capacity = capacity
        self.shed: Counter[str] = Counter()
        self._heap: list[tuple[float, int, int, Task[Payload]]] = []
        self._held: Counter[str] = Counter()
        self._length = 0
        self._order = 0

    def __len__(self) -> int:
        return self._length

    def waiting_s(self) -> float:
        """Return the predicted time that everything queued takes. O(n), n <= capacity."""
        return sum(task.cost_s for task in self._tasks())

    def held_by(self, agent: str) -> int:
        """Return how many tasks of an agent wait."""
        return self._held[agent]

    def push(self, task: Task[Payload], now_s: float) -> list[Task[Payload]]:
        """Queue a task; return the tasks of others that gave way to it ("queue full").

        Raises Shed("deadline") when the deadline has passed, Shed("queue full") when the queue
        is full and the agent already has its share; the queue is unchanged then. O(n).
        """
        if task.deadline_s <= now_s:
            self.shed["deadline"] += 1
            raise Shed("deadline")
        victims: list[Task[Payload]] = []
        if self._length >= self.capacity:
            victim = self._victim_for(task)
            if victim is None:
                self.shed["queue full"] += 1
                raise Shed("queue full")
            self._leave(victim)
            self.shed["queue full"] += 1
            victims.append(victim)
        self._order += 1
        heapq.heappush(self._heap, (task.deadline_s, task.tier, self._order, task))
        self._held[task.agent] += 1
        self._length += 1
        return victims

    def pop(self, now_s: float) -> tuple[Task[Payload] | None, list[Task[Payload]]]:
        """Return the next task to run and those shed on the way ("deadline").

        A task that, started now, would finish after its deadline is shed. O(k log n).
        """
        shed: list[Task[Payload]] = []
        while self._heap:
            task = heapq.heappop(self._heap)[3]
            if not task.waiting:
                continue
            self._leave(task)
            if now_s + task.run_s <= task.deadline_s:
                return task, shed
            self.shed["deadline"] += 1
            shed.append(task)
        return None, shed

    def remove(self, unwanted: Callable[[Task[Payload]], bool]) -> list[Task[Payload]]:
        """Take out and return the tasks for which `unwanted` holds; the caller counts. O(n)."""
        removed = [task for task in self._tasks() if unwanted(task)]
        for task in removed:
            self._leave(task)
        return removed

    def _tasks(self) -> list[Task[Payload]]:
        return [entry[3] for entry in self._heap if entry[3].waiting]

    def _leave(self, task: Task[Payload]) -> None:
        task.waiting = False
        self._length -= 1
        self._held[task.agent] -= 1
        if not self._held[task.agent]:
            del self._held[task.agent]
        if len(self._heap) > 4 * self.capacity:
            self._heap = [entry for entry in self._heap if entry[3].waiting]
            heapq.heapify(self._heap)

    def _victim_for(self, task: Task[Payload]) -> Task[Payload] | None:
        """Choose whose task gives way: the greatest holder's last one, if it exceeds its share."""
        agents = len(self._held) + (0 if self._held[task.agent] else 1)
        share = max(1, self.capacity // max(1, agents))
        if self._held[task.agent] >= share:
            return None
        greatest = max(self._held.values())
        if greatest <= share:  # more agents than places: first come, first served
            return None
        crowd = [t for t in self._tasks() if self._held[t.agent] == greatest]
        return max(crowd, key=lambda t: (t.tier, t.deadline_s))
