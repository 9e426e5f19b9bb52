"""Who sees what in the demo, and how much of a core each node may use.

Owns the names, tiers, deadlines and shares. Never measures: the cost of a full pass is passed in.
Invariant: the first node's cameras ask for twice what its share allows, the others have room.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_node.cameras.scene import BUSY_SEED
from edge_node.demo.fleet import Camera, Plan

OVERLOADED, DOOMED, THIRD = "hall", "yard", "gate"
QUIET = "quiet"
QUIET_SEED = 1  # empty for nine seconds, then someone walks through, then empty again
MOST_FPS = 10.0
MACHINE_SHARE = 0.5  # what all cameras together may ask of the machine's cores
OVERLOAD = 2.0  # what the first node is offered over what it can do
ROOM = 5.0  # the two others can do this many times what their own cameras offer
LEAST_SHARE = 0.002


def generated_sources() -> list[str]:
    """Return four busy scenes that stand in for footage."""
    return [f"generated:{BUSY_SEED + index}" for index in range(1, 5)]


def plan(sources: Sequence[str], pass_s: float, cores: int) -> list[Plan]:
    """Lay out the fleet for four `sources` and the measured cost of one full pass, in seconds.

    A machine too slow for 10 frames/s from each of the five cameras gets fewer.
    """
    fps = min(MOST_FPS, max(1.0, MACHINE_SHARE * cores / (5 * pass_s) // 1))
    tiers = [(1, 200), (2, 250), (3, 300), (2, 250)]
    cameras = [
        Camera(f"cam{index:02}", source, source.startswith("generated:"), tier, deadline_ms, fps)
        for index, (source, (tier, deadline_ms)) in enumerate(zip(sources, tiers, strict=True), 1)
    ]
    quiet = Camera(QUIET, f"generated:{QUIET_SEED}", True, 3, 400, fps)
    own = tuple(cameras[:3])
    roomy = _share(ROOM * fps, pass_s)
    return [
        Plan(OVERLOADED, _share(len(own) * fps / OVERLOAD, pass_s), own, policy="local"),
        Plan(DOOMED, roomy, (cameras[3],)),
        Plan(THIRD, roomy, (quiet,)),
    ]


def _share(frames_per_s: float, pass_s: float) -> float:
    """Return the share of one core that allows so many full passes."""
    return round(min(1.0, max(LEAST_SHARE, frames_per_s * pass_s)), 5)
