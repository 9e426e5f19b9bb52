"""A frame of the city, its legs between nodes, and the work that it is to an accelerator.

Owns their shapes. Never moves one. Invariant: a frame ends once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_node.placement.budget import Budget
from edge_node.placement.view import Option
from simnet.city.load import Arrival, Camera

if TYPE_CHECKING:
    from simnet.city.node import Node


@dataclass(slots=True, eq=False)
class Frame:
    """A frame from its arrival to its end; times in the world's seconds."""

    arrival: Arrival
    camera: Camera
    home: Node
    """Who runs its camera, and wants the answer."""
    at_s: float
    budget: Budget
    option: Option | None = None
    """What was decided for it."""
    hops: int = 0
    way_s: float = 0.0
    """What the network took of its time so far."""
    reason: str = ""
    """Why it ended."""

    @property
    def deadline_s(self) -> float:
        """Return when its answer is late."""
        return self.at_s + self.camera.deadline_s

    @property
    def name(self) -> tuple[int, int]:
        """Return what tells it from all others: its camera's number and its own."""
        return self.arrival.camera, self.arrival.number


@dataclass(slots=True, eq=False)
class Leg:
    """A forward from one node to another; ``account`` is what the source has, ``given`` of it."""

    frame: Frame
    source: Node
    target: Node
    option: Option
    account: Budget
    given: Budget
    sent_s: float
    run: int
    """Which of the source's runs; an answer to an earlier one finds nobody."""
    before: Leg | None
    """Of a frame that is passed on: the one that it came by."""
    run_ms: float
    is_over: bool = False


@dataclass(slots=True, eq=False)
class Work:
    """A frame as one node has to run it; ``leg`` is None for the home's own."""

    frame: Frame
    leg: Leg | None
    came_s: float
    wait_ms: float = 0.0
    took_ms: float = 0.0
    share: float = 1.0
    """In full passes."""
