"""A rival for `make bench-placement`: one scheduler that places every frame of the fleet.

Owns a joint assignment of all frames of the last 20 ms, which sees every queue as it is now, knows
what each kind takes where and (if the policy says so) who can reuse what, and places by queue, tier
and deadline; the nodes run the product's queue and cache. What its decision takes is measured, and
as one machine makes them all, a frame waits for it. Never runs in the product.
"""

import math
import time
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from simnet.city.city import City
from simnet.city.frame import Frame

WEIGHTS = (4.0, 2.0, 1.0)
LATE, LATE_MS = 0.85, 400.0
"""A frame that would use more than this part of its time costs so much more."""

SLOTS = 2.0
"""Places per frame over all nodes."""


def schedule(frames: Sequence[Frame], city: City) -> tuple[Sequence[int], float]:
    """Assign frames to nodes at the least total cost; return node indices and seconds taken."""
    begun_s = time.thread_time()
    now_s, nodes, decider = city.world.now_s, city.nodes, city.decider
    waits = np.array([node.accelerator.waits_ms for node in nodes])
    waits += np.array([node.coming_ms for node in nodes])[:, None]
    waits[[node.index for node in nodes if not node.up]] = 1e9
    kinds = sorted({frame.camera.kind for frame in frames})
    table = {
        kind: np.array([node.accelerator.service_ms[kind] for node in nodes]) for kind in kinds
    }
    ways = [[city.load.way_ms(frame.home.index, node.index) for node in nodes] for frame in frames]
    service = np.stack([table[frame.camera.kind] for frame in frames])
    for row, frame in enumerate(frames):
        last = decider.last.get(frame.arrival.camera)
        if last is not None and city.policy.knows_reuse:
            service[row, last[0].index] = decider.run_ms(frame, last[0], now_s)
    tiers = np.array([frame.camera.tier - 1 for frame in frames])
    left_ms = np.array([(frame.deadline_s - now_s) * 1e3 for frame in frames])[:, None]
    weight = np.array(WEIGHTS)[tiers][:, None]
    begin = waits.T[tiers] + np.array(ways)
    slots = max(2, math.ceil(SLOTS * len(frames) / len(nodes)))
    costs = []
    for slot in range(slots):
        finish = begin + service * (slot + 1)
        costs.append(weight * (finish + np.where(finish > LATE * left_ms, LATE_MS, 0.0)))
    rows, columns = linear_sum_assignment(np.concatenate(costs, axis=1))
    targets = [0] * len(frames)
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        targets[row] = column % len(nodes)
    return targets, time.thread_time() - begun_s
