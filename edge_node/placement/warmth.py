"""Where an agent's earlier frames can be reused, and what that saves.

Owns one small record an agent, of those that were answered lately. Never looks at a clock. A place
that answered an agent's previous frame a moment ago is warm for it: the next one costs less there.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

WARM_S = 3.0
"""How long after a frame a place counts as warm for the agent's next one."""

REUSES = 0.8
"""Mean work of the frames of an agent below which it gains by staying where it is."""

FACTOR_GAIN = 0.05
"""Weight of the newest frame in an agent's mean work."""

KEPT = 1_024


@dataclass(slots=True)
class _Agent:
    place: Hashable
    answered_s: float
    factor: float = 1.0


class Warmth:
    """What is known of the agents that were answered last."""

    def __init__(self) -> None:
        self._agents: OrderedDict[str, _Agent] = OrderedDict()

    def factor(self, agent: str) -> float:
        """Return the mean work of an agent's frames in full passes, 1 if nothing is known."""
        known = self._agents.get(agent)
        return known.factor if known is not None else 1.0

    def reuses(self, agent: str) -> bool:
        """Tell whether an agent's frames gain by going where its earlier ones went."""
        return self.factor(agent) < REUSES

    def is_warm(self, agent: str, place: Hashable, now_s: float) -> bool:
        """Tell whether a place may reuse what it computed for an agent's earlier frames."""
        known = self._agents.get(agent)
        return known is not None and known.place == place and now_s - known.answered_s < WARM_S

    def share(self, agent: str, place: Hashable, now_s: float) -> float:
        """Return what an agent's next frame is likely to take at a place, in full passes."""
        return self.factor(agent) if self.is_warm(agent, place, now_s) else 1.0

    def answered(self, agent: str, place: Hashable, work: float, now_s: float) -> None:
        """Take a frame that was answered somewhere with so much work, in full passes.

        Only frames of a warm place tell what reuse saves: were those counted that had just moved,
        an overload that moves frames would seem to make them dearer, and so feed itself.
        """
        was_warm = self.is_warm(agent, place, now_s)
        known = self._agents.setdefault(agent, _Agent(place, now_s))
        if was_warm:
            known.factor += FACTOR_GAIN * (min(1.0, work) - known.factor)
        known.place, known.answered_s = place, now_s
        self._agents.move_to_end(agent)
        if len(self._agents) > KEPT:
            self._agents.popitem(last=False)
