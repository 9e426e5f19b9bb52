"""Choose where one frame runs.

Owns one pure function. It never does IO and never takes the best of a stale view (that herds):
it compares two peers drawn at random and takes the better one.
"""

import random
from collections.abc import Sequence

from edge_node.placement.view import Option

SAFETY = 0.8
"""Share of the budget that a prediction may fill: predictions err, and a miss costs the frame."""


def choose(
    budget_ms: float,
    here: Option,
    peers: Sequence[Option],
    rng: random.Random,
    *,
    forward: bool = True,
) -> Option:
    """Return where a frame with ``budget_ms`` left should run.

    Here, if that will be in time; else the better of two random peers, if that one will be; else
    here again, where the queue sheds what can no longer make it. O(1).
    """
    limit_ms = SAFETY * budget_ms
    if here.finish_ms <= limit_ms or not forward or not peers:
        return here
    drawn = rng.sample(peers, min(2, len(peers)))
    best = min(drawn, key=lambda option: option.finish_ms)
    return best if best.finish_ms <= limit_ms else here
