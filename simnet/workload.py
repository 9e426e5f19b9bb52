"""What the nodes of a scenario write, when, and what they read of it.

Owns the drawing of the writes, and their way into a store and out of it; never decides when a store
commits. Invariant: who writes what when depends on the scenario and the seed alone, so that a
world, a cluster and every process of it draw the same.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from crdt.clock import Instant
from crdt.codec import Value
from crdt.store import Store
from gossip.events import Event, KeysChanged, StateChanged
from simnet.faults import names_of
from simnet.link import Name
from simnet.scenario import Scenario

PREFIX = "sim/"
FLOOD_S = 0.05
"""How often a flood writes."""
_FLOODED_KEYS = 20
_PAD = "x" * 80

Stage = Callable[..., object]
"""Calls a write of the store with the arguments that follow."""


class Write(NamedTuple):
    """One write: of a node's own record, a fleet register, or a set's element."""

    at_s: float
    """From the beginning of the run, after the settling."""
    name: Name
    """Who writes, if it runs then."""
    kind: str
    """``owner``, ``fleet``, ``add`` or ``remove``."""
    key: str
    number: int
    """Counts all writes from 1; of a remove: that of the add that it takes back."""

    def put(
        self, store: Store, stage: Stage, now: Instant, removing: Callable[[str, int], object]
    ) -> None:
        """Stage it; ``removing`` hears of a key and an element before it is taken back."""
        if self.kind == "owner":
            stage(store.set_owner, self.key, value(self.number))
        elif self.kind == "fleet":
            stage(store.set_fleet, self.key, value(self.number), now)
        elif self.kind == "add":
            stage(store.add, self.key, self.number)
        elif self.number in store.elements(self.key):
            removing(self.key, self.number)
            stage(store.remove, self.key, self.number)


class Reading(NamedTuple):
    """What one node reads."""

    owners: dict[tuple[bytes, str], int]
    """(origin, key) -> number."""
    registers: dict[str, tuple[int, bytes, int]]
    """key -> (timestamp, origin, number)."""
    elements: dict[str, frozenset[int]]
    horizon: int
    """The timestamp up to which it shows registers."""


def workload(scenario: Scenario, seed: int) -> list[Write]:
    """Return the writes in order. A removed element was added once, and is removed once."""
    given = scenario.writes
    rng = random.Random(f"{seed} workload")
    names = names_of(scenario.nodes)
    added: list[tuple[str, int]] = []
    writes: list[Write] = []
    for number in range(1, int(given.per_s * scenario.time.duration_s) + 1):
        at_s = (number - 1 + rng.random()) / given.per_s
        name, kind = rng.choice(names), rng.choice(given.kinds)
        key = f"{PREFIX}{kind}/{rng.randrange(given.keys)}"
        place = rng.random()
        if kind == "remove":
            if not added:
                continue
            key, number = added.pop(int(place * len(added)))
        elif kind == "add":
            added.append((key, number))
        writes.append(Write(at_s, name, kind, key, number))
    return sorted(writes)


def value(number: int) -> Value:
    """Return a record or register that says when it was written, of a usual size."""
    return [number, _PAD]


def number_of(found: Value) -> int:
    """Return the number in a value, 0 for one that is none of these."""
    if isinstance(found, list) and found and isinstance(found[0], int):
        return found[0]
    return 0


def counts_up(key: str) -> bool:
    """Tell whether a record is the workload's own, whose numbers only grow."""
    return key.startswith(f"{PREFIX}owner")


def flood(store: Store, stage: Stage, per_s: float, now_s: float) -> None:
    """Stage what a flood writes in ``FLOOD_S``; numbers grow with time, from flood to flood too."""
    for index in range(max(1, round(per_s * FLOOD_S))):
        number = int(now_s * 1000) * 1000 + index + 1
        stage(store.set_owner, f"{PREFIX}flood/{index % _FLOODED_KEYS}", value(number))


def told(store: Store, event: Event) -> Iterator[tuple[Any, ...]]:
    """Yield what an event says: a method of :class:`simnet.checkers.Checkers`, its arguments."""
    if isinstance(event, StateChanged):
        for change in event.changes:
            if change.kind == "owner" and counts_up(change.key):
                number = number_of(store.owner(change.origin, change.key))
                yield "read_record", change.origin, change.key, number
            elif change.kind == "set" and change.key.startswith(PREFIX):
                yield "read_set", change.key, _numbers(store, change.key)
    elif not isinstance(event, KeysChanged):
        yield "event", type(event).__name__, event.node_id


def read(store: Store, now: Instant) -> Reading:
    """Return what a node reads under the workload's keys. O(entries)."""
    registers = {}
    for key, found in store.fleet_items(PREFIX, now):
        entry = store.fleet_entry(key, now)
        assert entry is not None
        registers[key] = entry[1], entry[2], number_of(found)
    owners = {
        (origin, key): number
        for origin, key, found in store.owners(PREFIX)
        if (number := number_of(found))
    }
    elements = {key: frozenset(_numbers(store, key)) for key in store.set_keys(PREFIX)}
    return Reading(owners, registers, elements, store.clock.horizon(now))


def _numbers(store: Store, key: str) -> list[int]:
    return [one for one in store.elements(key) if isinstance(one, int)]
