"""Choose where one frame runs.

Owns two pure functions and no state. Never does IO, and never takes the best of a whole stale view
(all nodes would take the same, and it would be the best no longer): the planned place is taken
while it will do; otherwise this node if it is much better, then the better of two drawn at random,
from near first. Where a task was moved to is where callers should plan its agent's next ones until
the next epoch: there is now what they can reuse.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from edge_node.placement.view import Option

COMFORT = 0.2
"""Share of the budget within which the planned place is taken without a look at others."""

ELSEWHERE = 0.3
"""Share of the budget within which another place must be, unless it is hardly slower than the
planned one would be if nobody waited there.

Whoever moves leaves behind what it could reuse, which costs the fleet a full pass and, where all
are busy, makes others late who then move as well."""

HARDLY = 1.5
GAIN = 0.5
"""Share of the planned place's time that another must be within, for the same reason."""

SAFETY = 0.8
"""Share of the budget that a prediction for another place may fill: predictions err."""

ROOM = 0.6
"""Share of the remaining budget within which the place must be to which a receiver passes on."""

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
    *,
    reuses: bool = True,
) -> Decision:
    """Return where a task with ``budget_ms`` left should run. O(1).

    Args:
        here: this node; None if it does not do this kind of task, or if the plan neither names it
            nor wants its type to serve the kind.
        planned: the peer that the plan names, or to which the agent's last task was moved since;
            None for this node.
        ask: what is known of a peer; None if nothing that counts.
        reuses: whether it gains from what the planned place computed for earlier ones; otherwise it
            has nothing to leave behind.
    """
    first = here if planned is None else ask(planned)
    if first is not None and first.finish_ms <= COMFORT * budget_ms:
        return Decision(first, "plan", (first,))
    considered = [] if first is None else [first]
    limit_ms = SAFETY * budget_ms
    if first is not None and reuses:
        limit_ms = _limit_ms(budget_ms, first)
    best = first
    found: Scope = "plan"
    for scope, options in _ever_wider(here, reach, ask, rng):
        for option in options:
            if option is first:
                continue
            considered.append(option)
            is_worth = first is None or option.finish_ms <= limit_ms
            if is_worth and (best is None or option.finish_ms < best.finish_ms):
                best, found = option, scope
        if best is not first and best is not None and best.finish_ms <= limit_ms:
            break
    return Decision(best, found, tuple(considered))


def _limit_ms(budget_ms: float, first: Option) -> float:
    """Return within which time another place must be, that a task should move there."""
    alone_ms = first.finish_ms - first.wait_ms
    much_ms = max(ELSEWHERE * budget_ms, HARDLY * alone_ms)
    return min(SAFETY * budget_ms, GAIN * first.finish_ms, much_ms)


def _ever_wider(
    here: Option | None, reach: Reach, ask: Ask, rng: random.Random
) -> Iterator[tuple[Scope, Sequence[Option]]]:
    """Yield this node, then some of the zone, then some from beyond it."""
    yield "here", () if here is None else (here,)
    yield "zone", _draw(reach.zone, ask, rng)
    yield "fleet", _draw(reach.fleet, ask, rng)


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
    limit_ms = min(ROOM * remaining_ms, GAIN * ahead_ms)
    return best if best is not None and best.finish_ms <= limit_ms else None


def _draw(nodes: Sequence[bytes], ask: Ask, rng: random.Random) -> list[Option]:
    """Return what is known of a few nodes drawn at random, with repetition."""
    count = len(nodes)
    drawn = (ask(nodes[int(rng.random() * count)]) for _ in range(DRAWN)) if count else ()
    return [option for option in drawn if option is not None]


def _finish(option: Option) -> float:
    return option.finish_ms
