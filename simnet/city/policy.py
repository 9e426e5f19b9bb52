"""Which of the product's mechanisms are on in a city; what it is compared with.

Owns the words for it. Never decides anything.
"""

from dataclasses import dataclass

from simnet.city.load import Camera

FULL = 1.0
"""What a frame takes that finds nothing to reuse, in full passes."""


@dataclass(frozen=True)
class Policy:
    """Which mechanisms are on; all of them is the product."""

    cache: str = "delta"
    """``delta``, ``output`` (the ladder's rungs without a pass), ``none``."""
    coordinated: bool = True
    """Plan, tiers, shedding, bounce; else two random choices and first come, first served."""
    affinity: bool = True
    """Nodes know what each kind takes where; else each task is taken to cost the same anywhere."""
    corrected: bool = True
    """Views learn from own sends and from replies."""
    listed: bool = False
    """Without coordination: draw among those that are good at the kind, not among all."""
    knows_reuse: bool = True
    """A centre of batches knows where an earlier frame can be reused."""
    centre: str = ""
    """``fresh``: the same decisions on fresh views; ``best``: the best of all nodes on fresh views;
    ``batch``: all frames of a while at once, by the scheduler given. A centre sees everything, and
    nobody gossips."""

    @property
    def plans(self) -> bool:
        """Whether its decisions look at a plan."""
        return self.coordinated or self.listed

    def share(self, camera: Camera, number: int) -> float:
        """Return what a frame takes where the one before was run, in full passes."""
        place = (camera.offset + number) % len(camera.trace.cost)
        rung = camera.trace.rungs[place]
        if self.cache == "none" or rung == "f":
            return FULL
        if self.cache == "output" and rung == "d":
            return FULL
        return camera.trace.cost[place]


OURS = Policy()
NAIVE = Policy("output", coordinated=False, affinity=False, corrected=False)
FAIR = Policy("output", coordinated=False, listed=True)
