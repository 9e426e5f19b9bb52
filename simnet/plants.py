"""Deliberate defects, one or more for each checker: what proves that it can fail.

Owns the defects; each replaces one method of the product while a run lasts. Invariant: after it
the product is what it was.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any, NamedTuple

from crdt.entries import RemoveEntry
from crdt.log import Batch
from crdt.replica import Replica
from edge_node.fleet.database import Saved
from edge_node.placement.budget import Budget
from gossip.antientropy import Comparison
from gossip.limits import Bucket
from gossip.link import Link
from gossip.suspicion import _Doubt
from models.queue import DeadlineQueue
from simnet import disk

Wrap = Callable[[Any], Any]
"""Makes the defective method of the sound one."""


class Plant(NamedTuple):
    """A defect."""

    what: str
    invariant: str
    """The checker that must find it."""
    scenario: str
    """Where it shows."""
    owner: Any
    name: str
    wrap: Wrap


def _unrepaired(sound: Any) -> Any:
    return lambda self, link, *, same, first, now: None


def _forgetful(sound: Any) -> Any:
    def add(self: Saved, batch: Batch, high_water: int) -> None:
        sound(self, batch, high_water)
        if batch.sequence % 3 == 0:
            self.batches = {one: raw for one, raw in self.batches.items() if one != batch.version}

    return add


def _deaf_to_removes(sound: Any) -> Any:
    def update(self: Replica, put: Batch | None, drop: list[Batch], origin: bytes, now: Any) -> Any:
        if put is not None and origin != self.origin:
            kept = tuple(one for one in put.entries if not isinstance(one, RemoveEntry))
            put = put._replace(entries=kept)
        return sound(self, put, drop, origin, now)

    return update


def _numbered_alike(sound: Any) -> Any:
    return lambda last, wall_s, salt: sound(last, 0.0, 0)


def _hasty(sound: Any) -> Any:
    def weigh(self: Any) -> None:
        self.end_s = self.due_s = self.begun_s
        self.call_s = inf

    return weigh


def _spendthrift(sound: Any) -> Any:
    return lambda self, now: 1.0


def _boundless(sound: Any) -> Any:
    return lambda self, priority: False


def _growing(sound: Any) -> Any:
    def push(self: Any, task: Any, now_s: float) -> Any:
        self.capacity += 1
        return sound(self, task, now_s)

    return push


def _timeless(sound: Any) -> Any:
    return lambda self, now_s, *args: sound(self, now_s, *args) + 1000.0


def _swallowing(sound: Any) -> Any:
    return lambda self, now_s: (sound(self, now_s)[0], [])


def _choking(sound: Any) -> Any:
    def merge(self: Replica, raw: bytes, *args: Any) -> Any:
        if b"app/poison" in raw:
            raise KeyError("poison")
        return sound(self, raw, *args)

    return merge


PLANTS: dict[str, Plant] = {
    "no-repair": Plant(
        "replicas that differ are not compared",
        "convergence",
        "smoke",
        Comparison,
        "observe",
        _unrepaired,
    ),
    "forgetful-journal": Plant(
        "every third batch is acknowledged and not stored",
        "lost-write",
        "churn",
        Saved,
        "add",
        _forgetful,
    ),
    "deaf-to-removes": Plant(
        "others' removes do nothing",
        "resurrection",
        "smoke",
        Replica,
        "_update",
        _deaf_to_removes,
    ),
    "same-epoch": Plant(
        "epochs are counted up from nothing, without clock or chance",
        "sequence-reuse",
        "power-cut",
        disk,
        "next_epoch",
        _numbered_alike,
    ),
    "hasty": Plant(
        "who is suspected is dead at once",
        "false-death",
        "radio",
        _Doubt,
        "weigh",
        _hasty,
    ),
    "spendthrift": Plant(
        "the egress always has tokens",
        "budgets",
        "overload",
        Bucket,
        "level",
        _spendthrift,
    ),
    "timeless": Plant(
        "a frame is sent on with a second more than it has",
        "budgets",
        "crossing",
        Budget,
        "for_wire",
        _timeless,
    ),
    "swallowed-frames": Plant(
        "a queue forgets what it gives up",
        "frames",
        "crossing",
        DeadlineQueue,
        "pop",
        _swallowing,
    ),
    "boundless": Plant(
        "a link's queues take everything",
        "queues",
        "overload",
        Link,
        "full",
        _boundless,
    ),
    "growing-queue": Plant(
        "an accelerator's queue grows with what it is given",
        "queues",
        "crossing",
        DeadlineQueue,
        "push",
        _growing,
    ),
    "choking": Plant(
        "a batch that holds an odd key is not survived",
        "sound",
        "poison",
        Replica,
        "merge",
        _choking,
    ),
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Have a defect while this lasts. Raises ValueError for one that is not known."""
    if name not in PLANTS:
        raise ValueError(f"no plant {name!r}; there are: {', '.join(PLANTS)}")
    plant = PLANTS[name]
    sound = vars(plant.owner)[plant.name]
    setattr(plant.owner, plant.name, plant.wrap(sound))
    try:
        yield
    finally:
        setattr(plant.owner, plant.name, sound)
