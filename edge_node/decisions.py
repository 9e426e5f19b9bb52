"""What this node decided lately, and what came of it: the memory behind ``edge-node why``.

Owns a bounded ring of records, one a frame, of its own cameras and of peers' frames that it took.
Never decides anything. Invariant: a record is found by (agent, frame) until so many newer ones
have come.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edge_node.placement.budget import BudgetSpent
from edge_node.placement.choose import Decision
from edge_node.placement.controller import Alternative
from edge_node.placement.view import Option
from edge_node.workers import Effort, Inference, Shed

KEPT = 2_048

Way = tuple[str, Effort]
"""Digest of a model, and the effort at which it runs."""


@dataclass(slots=True)
class Attempt:
    """One place where a task was tried; ``node`` None is this one."""

    node: bytes | None
    outcome: str = "under way"
    spent_ms: float = 0.0


@dataclass(slots=True)
class Record:
    """One task: what was known, what was decided, and what happened."""

    agent: str
    frame: int
    digest: str
    """The model that is desired."""
    way: Way
    """The digest and effort that are asked for."""
    tier: int
    budget_ms: float
    wall_ms: int
    sender: bytes | None = None
    """The peer whose frame it is; None: this node's own camera."""
    decision: Decision | None = None
    """None: nothing had to be decided, because the earlier answer holds."""
    prior_ms: float = 0.0
    """What the place that was chosen makes believe that this takes."""
    alternative: Alternative | None = None
    """What the controller chose, None where there was no choice."""
    why_effort: str = ""
    attempts: list[Attempt] = field(default_factory=list)
    outcome: str = "under way"
    latency_ms: float | None = None
    inference: Inference | None = None

    def answered(self, inference: Inference, spent_s: float) -> None:
        """Note the answer, and how long it took from the decision on."""
        self.inference, self.outcome, self.latency_ms = inference, "answered", spent_s * 1e3

    def attempt(self, node: bytes | None) -> Attempt:
        """Note that the task is tried somewhere."""
        attempt = Attempt(node)
        self.attempts.append(attempt)
        return attempt


class Decisions:
    """The newest records."""

    def __init__(self) -> None:
        self._records: OrderedDict[tuple[str, int], Record] = OrderedDict()

    def add(self, record: Record) -> Record:
        """Keep a record, let go of the oldest, and return it."""
        self._records[record.agent, record.frame] = record
        self._records.move_to_end((record.agent, record.frame))
        if len(self._records) > KEPT:
            self._records.popitem(last=False)
        return record

    def find(self, agent: str, frame: int | None) -> Record | None:
        """Return the record of a frame, or an agent's newest (O(n)); None if there is none."""
        if frame is not None:
            return self._records.get((agent, frame))
        return next((one for one in reversed(self._records.values()) if one.agent == agent), None)


def ended(error: Exception) -> str:
    """Say how a task ended that was not answered."""
    if isinstance(error, Shed):
        return f"shed: {error.reason}"
    if isinstance(error, BudgetSpent):
        return f"shed: {error}"
    return str(error.args[0]) if isinstance(error, KeyError) else f"model failed: {error}"


def explain(record: Record, name: Callable[[bytes | None], str]) -> dict[str, Any]:
    """Return a record as plain data; ``name`` tells a node's, None being this one."""
    decision, inference = record.decision, record.inference
    return {
        "agent": record.agent,
        "frame": record.frame,
        "digest": record.digest,
        "tier": record.tier,
        "budget_ms": round(record.budget_ms, 1),
        "decided_ms": record.wall_ms,
        "of": name(record.sender),
        "scope": decision.scope if decision else None,
        "chosen": name(decision.option.node) if decision and decision.option else None,
        "candidates": [_option(one, name) for one in decision.considered] if decision else [],
        "asked": {"digest": record.way[0], "effort": record.way[1]},
        "why_effort": record.why_effort,
        "attempts": [
            {"node": name(one.node), "outcome": one.outcome, "spent_ms": round(one.spent_ms, 1)}
            for one in record.attempts
        ],
        "outcome": record.outcome,
        "latency_ms": None if record.latency_ms is None else round(record.latency_ms, 1),
        "variant": inference.variant if inference else None,
        "effort": inference.effort if inference else None,
        "rung": inference.rung if inference else None,
        "wait_ms": round(inference.wait_ms, 1) if inference else None,
        "service_ms": round(inference.service_ms, 1) if inference else None,
    }


def _option(option: Option, name: Callable[[bytes | None], str]) -> dict[str, Any]:
    return {
        "node": name(option.node),
        "wait_ms": round(option.wait_ms, 1),
        "service_ms": round(option.service_ms, 1),
        "network_ms": round(option.network_ms, 1),
        "late_ms": round(option.late_ms, 1),
        "finish_ms": round(option.finish_ms, 1),
    }
