"""Choose where one frame runs.

Owns one pure function. It never does IO and never takes the best of a stale view (that herds):
it compares two peers drawn at random and takes the better one.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from edge_node.placement.view import Option

SAFETY = 0.8
"""Share of the budget that a prediction may fill: predictions err, and a miss costs the frame."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a frame goes (``option.node`` None: here), and why, in words for people."""

    option: Option
    reason: str


def choose(
    budget_ms: float,
    here: Option,
    peers: Sequence[Option],
    rng: random.Random,
    *,
    forward: bool = True,
) -> Decision:
    """Return where a frame with ``budget_ms`` left should run.

    Here, if that will be in time; else the better of two random peers, if that one will be; else
    here again, where the queue sheds what can no longer make it. O(1).
    """
    limit_ms = SAFETY * budget_ms
    if here.finish_ms <= limit_ms:
        return Decision(here, "in time here")
    if not forward:
        return Decision(here, "late here, forwarding is off")
    if not peers:
        return Decision(here, "late here, no peer runs this model")
    drawn = rng.sample(peers, min(2, len(peers)))
    best = min(drawn, key=lambda option: option.finish_ms)
    if best.finish_ms <= limit_ms:
        return Decision(best, "late here, in time there")
    return Decision(here, "late everywhere asked")
