"""Choose where one frame runs.

Owns two pure functions and no state. Never does IO, and never takes the best of a whole stale view
(all nodes would take the same, and it would be the best no longer): the place that the epoch's plan
names is taken while it will do; otherwise this node, and only then the better of two drawn at
random, from near first.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from edge_node.placement.view import Option

COMFORT = 0.65
"""Share of the budget within which the planned place is taken without a look at others."""

SAFETY = 0.8
"""Share of the budget that a prediction may fill: predictions err, and a miss costs the frame.

If nobody is within it the planned place keeps the task: there it can reuse what earlier ones
computed, and elsewhere it would cost more and be late as well."""

DRAWN = 2

Scope = Literal["plan", "here", "zone", "fleet"]
"""How far a decision looked: the planned place, this node, its zone, the whole fleet."""


@dataclass(frozen=True, slots=True)
class Reach:
    """The nodes that do one kind of task well, as seen from one node, best first, itself left out.

    ``fleet`` holds those outside the zone.
    """

    zone: tuple[bytes, ...] = ()
    fleet: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a task goes (None: nobody does this kind of task), and what it was compared with."""

    option: Option | None
    scope: Scope
    considered: tuple[Option, ...]


Ask = Callable[[bytes], Option | None]


def choose(
    budget_ms: float,
    here: Option | None,
    planned: bytes | None,
    reach: Reach,
    ask: Ask,
    rng: random.Random,
) -> Decision:
    """Return where a task with ``budget_ms`` left should run. O(1).

    Args:
        here: this node; None if it does not do this kind of task, or if the plan neither names it
            nor wants its type to serve the kind.
        planned: the peer that the plan names, None for this node.
        ask: what is known of a peer; None if nothing that counts.
    """
    first = here if planned is None else ask(planned)
    if first is not None and first.finish_ms <= COMFORT * budget_ms:
        return Decision(first, "plan", (first,))
    considered = [first] if first is not None else []
    if here is not None and here is not first:
        considered.append(here)
    best = min(considered, key=_finish, default=None)
    scope: Scope = "plan" if best is first else "here"
    wider: tuple[tuple[Scope, Sequence[bytes]], ...] = (
        ("zone", reach.zone),
        ("fleet", reach.fleet),
    )
    for further, nodes in wider:
        if best is not None and best.finish_ms <= SAFETY * budget_ms:
            break
        for option in _draw(nodes, ask, rng):
            considered.append(option)
            if best is None or option.finish_ms < best.finish_ms:
                best, scope = option, further
    if first is not None and best is not None and best.finish_ms > SAFETY * budget_ms:
        best, scope = first, "plan"
    return Decision(best, scope, tuple(considered))


def bounce(
    remaining_ms: float, ahead_ms: float, reach: Reach, ask: Ask, rng: random.Random
) -> Option | None:
    """Return where a receiver should pass a task on that it cannot answer in time, or None.

    Args:
        remaining_ms: what is left of the task's budget.
        ahead_ms: predicted time until its answer here.
    """
    if ahead_ms <= remaining_ms:
        return None
    drawn = [*_draw(reach.zone, ask, rng), *_draw(reach.fleet, ask, rng)]
    best = min(drawn, key=_finish, default=None)
    return best if best is not None and best.finish_ms < min(ahead_ms, remaining_ms) else None


def _draw(nodes: Sequence[bytes], ask: Ask, rng: random.Random) -> list[Option]:
    """Return what is known of a few nodes drawn at random, with repetition."""
    count = len(nodes)
    drawn = (ask(nodes[int(rng.random() * count)]) for _ in range(DRAWN)) if count else ()
    return [option for option in drawn if option is not None]


def _finish(option: Option) -> float:
    return option.finish_ms
