"""One emulated node of a city: its accelerator, its queue, what it believes.

Owns a node's state; never moves time nor decides where a frame goes. Invariant: a frame is in at
most one queue or accelerator.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import exp, log
from typing import Protocol

from edge_node.placement.choose import Reach
from edge_node.placement.epoch import Plan
from edge_node.placement.view import FleetView, Waits
from models.queue import DeadlineQueue, Task
from simnet.city_load import Arrival, Camera, Site

BIAS_GAIN = 0.15
"""Weight of the newest full pass in what a node knows of its own speed."""


@dataclass(slots=True, eq=False)
class Frame:
    """A frame on its way."""

    arrival: Arrival
    camera: Camera
    home: int
    deadline_s: float
    run_ms: float = 0.0
    """Predicted, where it is sent to."""
    predicted_ms: float = 0.0
    sent_s: float = 0.0
    patience_s: float = 0.0
    bounced: bool = False
    ended: bool = False


FrameTask = Task[Frame]


class Queue(Protocol):
    """What a node needs of a queue."""

    def push(self, task: FrameTask, now_s: float) -> list[FrameTask]: ...
    def pop(self, now_s: float) -> tuple[FrameTask | None, list[FrameTask]]: ...
    def remove(self, unwanted: Callable[[FrameTask], bool]) -> list[FrameTask]: ...
    def waits_s(self) -> tuple[float, float, float]: ...
    def __len__(self) -> int: ...


class FirstCome:
    """The baselines' queue: first come, first served, nothing is ever given up."""

    def __init__(self) -> None:
        self._tasks: deque[FrameTask] = deque()
        self._waiting_s = 0.0

    def __len__(self) -> int:
        return len(self._tasks)

    def push(self, task: FrameTask, now_s: float) -> list[FrameTask]:
        """Queue a task."""
        self._tasks.append(task)
        self._waiting_s += task.cost_s
        return []

    def pop(self, now_s: float) -> tuple[FrameTask | None, list[FrameTask]]:
        """Return the oldest task."""
        if not self._tasks:
            self._waiting_s = 0.0
            return None, []
        task = self._tasks.popleft()
        self._waiting_s -= task.cost_s
        return task, []

    def remove(self, unwanted: Callable[[FrameTask], bool]) -> list[FrameTask]:
        """Take out tasks."""
        removed = [task for task in self._tasks if unwanted(task)]
        self._tasks = deque(task for task in self._tasks if not unwanted(task))
        self._waiting_s = sum(task.cost_s for task in self._tasks)
        return removed

    def waits_s(self) -> tuple[float, float, float]:
        """Return the time that all queued tasks take, three times."""
        return self._waiting_s, self._waiting_s, self._waiting_s


@dataclass(slots=True)
class CameraState:
    """What is known of a camera in a run."""

    home: int
    interval_s: float
    """Mean time between its frames."""
    work: float
    """Mean work of frames that come to the node that answered the one before, in full passes."""
    seen_s: float = 0.0
    place: bytes | None = None
    """Where its frames go until there is a reason to look elsewhere."""
    last: "Node | None" = None
    last_s: float = 0.0


@dataclass(slots=True)
class Published:
    """What a node says of itself once an epoch: its service times and its cameras' demand."""

    at_s: float
    service_ms: dict[str, float]
    demand: dict[int, tuple[float, float, bytes | None]]
    """Camera -> frames per second, full passes' worth of work per frame, where they run."""


@dataclass(slots=True, eq=False)
class Node:
    """A node's state."""

    index: int
    site: Site
    queue: Queue
    service_ms: dict[str, float]
    """What it believes a full pass takes, by kind."""
    rng: random.Random
    view: FleetView = field(default_factory=FleetView)
    alive: bool = True
    throttle: float = 1.0
    running: Frame | None = None
    free_s: float = 0.0
    """When the accelerator should be free, as predicted."""
    bias: float = 0.0
    """Logarithm of its true slowness against its profile, as learnt."""
    coming_ms: float = 0.0
    """Work on its way here; only a centre knows."""
    plan: Plan | None = None
    heard: tuple[int, ...] = ()
    """Which publication of each node the plan was made from."""
    reaches: dict[str, Reach] = field(default_factory=dict)
    published: list[Published] = field(default_factory=list)

    def true_ms(self, kind: str) -> float:
        """Return what a full pass takes now, before a camera's and a frame's own factors."""
        return self.site.profile.service_ms[kind] * self.site.speed * self.throttle

    def learn(self, kind: str, took_ms: float) -> None:
        """Take how long a full pass took."""
        residual = log(took_ms / self.site.profile.service_ms[kind])
        self.bias += BIAS_GAIN * (residual - self.bias)
        scale = exp(self.bias)
        table = self.site.profile.service_ms
        self.service_ms = {one: scale * time_ms for one, time_ms in table.items()}

    def waits_ms(self, now_s: float) -> Waits:
        """Return the predicted waits of new tasks."""
        run_ms = max(0.0, self.free_s - now_s) * 1e3 if self.running is not None else 0.0
        first, second, third = self.queue.waits_s()
        return run_ms + 1e3 * first, run_ms + 1e3 * second, run_ms + 1e3 * third


def queue_of(capacity: int, *, tiered: bool) -> Queue:
    """Return the product's queue, or the baselines'."""
    return DeadlineQueue[Frame](capacity) if tiered else FirstCome()
