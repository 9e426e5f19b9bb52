"""Choose, for each task, which loaded variant answers it and at which effort.

Owns this node's controller and the account of what became of its choices. Never decides where a
task runs: it is told the place. Invariant: the model that the fleet desires answers at full effort
wherever that is in time, unless it is asked to spare those who wait (mode ``price``).
"""

from collections.abc import Callable, Mapping

from edge_node.decisions import Record, Way
from edge_node.placement.controller import Alternative, Controller
from edge_node.placement.view import Option
from edge_node.workers import Effort
from models.wire import SHORT

SAFETY = 0.8
"""Share of the budget that a prediction may fill: predictions err, and a miss costs the frame."""


class Adaptation:
    """Decides for the tasks of this node; :meth:`ended` is what it learns from."""

    def __init__(self, quality: Callable[[str, Effort], float]) -> None:
        """Prepare; ``quality`` tells that of a digest at an effort, 0..1."""
        self.mode = "late"
        """One of ``[model] adapt``."""
        self._quality = quality
        # Where nobody waits nothing is saved by doing worse.
        self._controller = Controller(idle_price=0.0)

    def choose(self, record: Record, place: Option, costs_ms: Mapping[Way, float]) -> Way:
        """Return how a task is done at a place; notes in the record why.

        Args:
            costs_ms: what each way is predicted to take there, in ms.
        """
        desired: Way = (record.digest, "full")
        known = {way: cost_ms for way, cost_ms in costs_ms.items() if cost_ms > 0}
        in_time = place.finish_ms <= SAFETY * record.budget_ms
        if self.mode == "off" or (self.mode == "late" and in_time):
            return desired
        if desired not in known or len(known) < 2 or record.budget_ms <= 0:
            return desired
        best = self._quality(*desired)
        ways = {
            Alternative((record.agent, place.node, way), quality, cost_ms): way
            for way, cost_ms in known.items()
            if (quality := self._quality(*way)) <= best
        }
        options = sorted(ways, key=lambda one: -one.quality)
        choice = self._controller.choose(record.budget_ms, place.before_ms, options)
        record.alternative, record.why_effort = choice.option, choice.reason
        return ways[choice.option]

    def ended(self, record: Record) -> None:
        """Learn from the end of a task."""
        if record.alternative is None:
            return
        inference = record.inference
        if inference is None:
            self._controller.observe(record.alternative, None, met=False)
            return
        as_chosen = (inference.digest, inference.effort) == record.way
        met = record.latency_ms is not None and record.latency_ms <= record.budget_ms
        service_ms = inference.service_ms if as_chosen else None
        self._controller.observe(record.alternative, service_ms, met)


def costs_there(own_ms: Mapping[Way, float], service_ms: Mapping[str, float]) -> dict[Way, float]:
    """Return what each way takes at a peer, whose efforts are taken to differ as this node's do.

    Args:
        own_ms: what each takes here.
        service_ms: what a full pass takes there, by kind.
    """
    costs_ms = {}
    for (digest, effort), cost_ms in own_ms.items():
        there_ms = service_ms.get(digest[:SHORT])
        if there_ms is not None and (full_ms := own_ms[digest, "full"]) > 0:
            costs_ms[digest, effort] = there_ms * cost_ms / full_ms
    return costs_ms
