"""What came of one run: the verdict, and the figures of its report.

Owns the shape that world, cluster, sweeps and reports share; never measures anything. Invariant:
an outcome goes through JSON and comes back equal.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from simnet import sections


@dataclass(frozen=True)
class Violation:
    """An invariant that did not hold."""

    invariant: str
    """The checker's name."""
    at_s: float
    """From the beginning of the run; below 0 if it is not known."""
    what: str
    last: tuple[str, ...] = ()
    """What happened before, oldest first."""

    def __str__(self) -> str:
        at = f" at {self.at_s:.3f} s" if self.at_s >= 0 else ""
        return f"{self.invariant}{at}: {self.what}"


class Spread(NamedTuple):
    """How one write came to all nodes that ran meanwhile, in rounds (hops' time)."""

    at_s: float
    mean: float
    most: float
    """The slowest node's."""
    missed: int
    """Nodes that ran and were reachable, and had not got it when the next was written to it."""


class Sight(NamedTuple):
    """The fleet at one moment."""

    at_s: float
    running: int
    replicas: int
    """How many different ones there are."""
    agreed: float
    """Share of the running nodes that hold the commonest of them."""
    seen: float
    """Mean share of the running nodes that a running node sees alive."""


class Episode(NamedTuple):
    """A fault as it was carried out, for the timeline; ``end_s`` below 0 means for good."""

    at_s: float
    end_s: float
    kind: str
    nodes: int
    what: str


@dataclass(frozen=True)
class Frames:
    """What became of one tier's frames, and how long answers took (in ms; -1 where none came)."""

    tier: int
    arrived: int
    ends: Mapping[str, int]
    """By reason: ``answered`` (in time), ``late``, ``shed: ...``, ``lost: ...``."""
    p50_ms: float
    p90_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Load:
    """A figure over the nodes: the average one's, and the worst one's."""

    mean: float
    most: float
    who: str = ""

    @classmethod
    def over(cls, of_node: Mapping[str, float], each: float = 1.0) -> "Load":
        """Return the load of nodes, each one's figure divided by ``each``."""
        if not of_node:
            return cls(0.0, 0.0)
        who, most = max(of_node.items(), key=lambda item: item[1])
        return cls(sum(of_node.values()) / len(of_node) / each, most / each, who)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run of a scenario."""

    scenario: str
    seed: int
    host: str
    """``world`` (virtual time) or ``cluster`` (processes)."""
    nodes: int
    cryptography: str
    emulated: bool = False
    """Whether figures of accelerators come from declared profiles."""
    replay: str = ""
    """The command that does the same again."""
    trace_hash: str = ""
    """Of all datagrams and events, of a world."""
    violation: Violation | None = None
    ran_s: float = 0.0
    """Virtual (world) or real (cluster) seconds."""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    """Of the processor, all processes together."""
    memory_mib: float = 0.0
    """At the most; of a cluster the proportional set size of all."""
    round_s: float = 0.0
    heal_s: float = -1.0
    """From the end of the faults until all agreed; below 0 if they did not."""
    down_rounds: tuple[float, ...] = ()
    """Per crash: probe intervals until every other node that ran had noticed."""
    spreads: tuple[Spread, ...] = ()
    sights: tuple[Sight, ...] = ()
    episodes: tuple[Episode, ...] = ()
    frames: tuple[Frames, ...] = ()
    bytes_by_kind: Mapping[str, int] = field(default_factory=dict)
    """Of what all nodes sent, by kind of message."""
    loads: Mapping[str, Load] = field(default_factory=dict)
    """Over the nodes: ``sent_bytes_per_s``, ``datagrams_per_s``, and in a cluster ``cpu_share``,
    ``pss_mib``, ``beyond_shared_mib``."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """The nodes' counters, added up."""
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Tell whether every invariant held."""
        return self.violation is None

    @property
    def verdict(self) -> str:
        """Return what decides whether two runs came to the same: who failed how, and the trace."""
        failed = "passed" if self.violation is None else self.violation.invariant
        return f"{failed} {self.trace_hash}"


def to_json(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as JSON's own types."""
    table: dict[str, Any] = json.loads(json.dumps(asdict(outcome)))
    return table


def from_json(table: Mapping[str, Any]) -> Outcome:
    """Return the outcome that ``to_json`` gave this. Raises ValueError if it is none."""
    given = dict(table)
    try:
        for name, kind in (("spreads", Spread), ("sights", Sight), ("episodes", Episode)):
            given[name] = [kind(*one) for one in given.get(name, ())]
    except TypeError as error:
        raise ValueError(f"outcome: {error}") from error
    return sections.read(Outcome, given, "outcome")


def by_kind(counts: Mapping[str, int]) -> dict[str, int]:
    """Return what nodes sent by kind, from their counters; pings, acks and seals are the rest."""
    names = {
        "handshakes": "handshakes",
        "urgent": "membership",
        "prompt": "urgent state",
        "state": "state",
        "repair": "repair",
        "volatile": "load reports",
    }
    found = {name: counts.get(f"bytes_{kind}", 0) for kind, name in names.items()}
    found["pings, acks, seals"] = counts.get("out_bytes", 0) - sum(found.values())
    return found
