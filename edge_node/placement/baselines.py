"""Ways to place a task that know less: what the real one is measured against.

Owns two pure functions behind ``[placement] policy``; nothing else uses them.
"""

import random
from collections.abc import Sequence

from edge_node.placement.choose import DRAWN, Ask, Decision
from edge_node.placement.view import Option


def round_robin(count: int, here: Option | None, peers: Sequence[bytes], ask: Ask) -> Decision:
    """Return the next of this node and its peers in turn; ``count`` is that of the task."""
    places = [here, *(ask(node) for node in peers)]
    known = [place for place in places if place is not None]
    chosen = known[count % len(known)] if known else None
    return Decision(chosen, "fleet", tuple(known))


def blind(here: Option | None, peers: Sequence[bytes], ask: Ask, rng: random.Random) -> Decision:
    """Return the shortest queue of this node and two drawn from all, whatever the task.

    No difference is made between nodes but for their queues.
    """
    drawn = [ask(peers[int(rng.random() * len(peers))]) for _ in range(DRAWN)] if peers else []
    known = tuple(place for place in (here, *drawn) if place is not None)
    return Decision(min(known, key=lambda place: place.wait_ms, default=None), "fleet", known)
