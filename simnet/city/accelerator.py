"""An emulated accelerator: how fast it is, what it believes of that, and what waits for it.

Owns its queue, which is the product's own, and its speed. Never moves time. Invariant: a frame is
in at most one queue or run of it at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import exp, log
from typing import TYPE_CHECKING, Protocol

from edge_node.placement.view import Waits
from models.queue import DeadlineQueue, Task
from simnet.city.load import Site

if TYPE_CHECKING:
    from simnet.city.frame import Work

BIAS_GAIN = 0.15
"""Weight of the newest full pass in what an accelerator knows of its own speed."""

WorkTask = Task["Work"]


class Queue(Protocol):
    """What an accelerator needs of a queue."""

    def push(self, task: WorkTask, now_s: float) -> list[WorkTask]: ...
    def pop(self, now_s: float) -> tuple[WorkTask | None, list[WorkTask]]: ...
    def waits_s(self) -> tuple[float, float, float]: ...
    def __len__(self) -> int: ...


class FirstCome:
    """The baselines' queue: first come, first served, nothing is ever given up."""

    def __init__(self) -> None:
        self._tasks: deque[WorkTask] = deque()
        self._waiting_s = 0.0

    def __len__(self) -> int:
        return len(self._tasks)

    def push(self, task: WorkTask, now_s: float) -> list[WorkTask]:
        """Queue a task."""
        self._tasks.append(task)
        self._waiting_s += task.cost_s
        return []

    def pop(self, now_s: float) -> tuple[WorkTask | None, list[WorkTask]]:
        """Return the oldest task."""
        if not self._tasks:
            self._waiting_s = 0.0
            return None, []
        task = self._tasks.popleft()
        self._waiting_s -= task.cost_s
        return task, []

    def waits_s(self) -> tuple[float, float, float]:
        """Return the time that all queued tasks take, three times."""
        return self._waiting_s, self._waiting_s, self._waiting_s


class Accelerator:
    """One node's; what `edge_node.fleet.load` reports of a worker, and the pool of just this."""

    loaded: frozenset[str] = frozenset()

    def __init__(
        self,
        site: Site,
        queue: Queue,
        service_ms: dict[str, float],
        now_s: Callable[[], float],
    ) -> None:
        """Prepare; ``service_ms`` is what it believes a full pass takes, by kind."""
        self.site = site
        self.queue = queue
        self.service_ms = service_ms
        self.throttle = 1.0
        self.running: Work | None = None
        self.free_s = 0.0
        """When it should be free, as predicted."""
        self._bias = 0.0  # logarithm of its true slowness against its profile, as learnt
        self._now_s = now_s

    @property
    def living(self) -> Sequence[Accelerator]:
        """Return the node's accelerators: this one."""
        return (self,)

    @property
    def queue_length(self) -> int:
        """Return how many tasks wait."""
        return len(self.queue)

    @property
    def waits_ms(self) -> Waits:
        """Return the predicted waits of new tasks."""
        run_ms = 0.0
        if self.running is not None:
            run_ms = max(0.0, self.free_s - self._now_s()) * 1e3
        first, second, third = self.queue.waits_s()
        return run_ms + 1e3 * first, run_ms + 1e3 * second, run_ms + 1e3 * third

    def true_ms(self, kind: str) -> float:
        """Return what a full pass takes now, before a camera's and a frame's own factors."""
        return self.site.profile.service_ms[kind] * self.site.speed * self.throttle

    def learn(self, kind: str, took_ms: float) -> None:
        """Take how long a full pass took."""
        table = self.site.profile.service_ms
        self._bias += BIAS_GAIN * (log(took_ms / table[kind]) - self._bias)
        scale = exp(self._bias)
        self.service_ms = {one: scale * time_ms for one, time_ms in table.items()}


def queue_of(capacity: int, *, tiered: bool) -> Queue:
    """Return the product's queue, or the baselines'."""
    return DeadlineQueue["Work"](capacity) if tiered else FirstCome()
