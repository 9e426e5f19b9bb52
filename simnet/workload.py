"""What the nodes of a scenario write, and when.

Owns the drawing of the writes; never writes anything. Invariant: who writes what when depends on
the scenario and the seed alone, so that a world, a cluster and every process of it draw the same.
"""

import random
from typing import NamedTuple

from crdt.codec import Value
from simnet.faults import names_of
from simnet.link import Name
from simnet.scenario import Scenario

PREFIX = "sim/"
_PAD = "x" * 80


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
