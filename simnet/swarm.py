"""Scenarios that no person would think of: each seed draws its own fleet and its own mix of faults.

Owns the drawing; never runs anything. Invariant: a seed alone gives the scenario. Every kind of
fault is left out by half of the seeds or more, since what one fault does can hide what another
would (Groce and others, "Swarm Testing", ISSTA 2012).
"""

import random
from collections.abc import Callable
from typing import Any

from gossip.config import GossipConfig
from simnet.faults import (
    Clock,
    Crash,
    Cut,
    Fault,
    Flood,
    Full,
    Join,
    Leave,
    Link,
    Partition,
    Pause,
    Poison,
    Silence,
    Slow,
    Upgrade,
)
from simnet.link import Conditions
from simnet.scenario import Scenario, Time, Writes

NAME = "swarm"
DURATION_S = 12.0
_CHANCE = 0.3
"""Of each kind of fault."""


def draw(seed: int) -> Scenario:
    """Return a seed's scenario: 25 to 60 nodes, 12 virtual seconds of faults."""
    rng = random.Random(f"swarm {seed}")
    nodes = rng.randint(25, 60)
    found: list[Fault] = []
    for make in _MAKERS:
        if rng.random() < _CHANCE:
            found.extend(make(rng) for _ in range(rng.choice((1, 1, 2))))
    joins = any(isinstance(fault, Join) for fault in found)
    gossip = _gossip(rng)
    # who was away while somebody died may have to find out by itself, probing one after the other
    heal_s = 30.0 + nodes * gossip.probe_interval_s
    return Scenario(
        name=NAME,
        nodes=nodes,
        time=Time(duration_s=DURATION_S, settle_s=rng.choice((3.0, 8.0)), heal_s=heal_s),
        zones=rng.randint(1, 5),
        start="cold" if joins else rng.choice(("cold", "warm")),
        cryptography="real" if rng.random() < 0.1 else "stand-in",
        gossip=gossip,
        network=_network(rng),
        writes=Writes(per_s=rng.choice((0.5, 2.0, 8.0)), keys=rng.choice((1, 3, 12))),
        faults=tuple(sorted(found, key=lambda fault: fault.at_s)),
    )


def _gossip(rng: random.Random) -> GossipConfig:
    """Return settings under which small fleets do what large ones do, half of the time."""
    if rng.random() < 0.5:
        return GossipConfig()
    return GossipConfig(
        probe_interval_s=rng.choice((0.5, 1.0)),
        probe_timeout_s=0.3,
        direct_members=rng.choice((6, 20, 64)),
        leaf_members=rng.choice((4, 16, 32)),
        links_kept=rng.choice((16, 256, 256, 256)),
        link_idle_s=rng.choice((3.0, 60.0)),
        write_burst=rng.choice((16, 64)),
        dead_members=rng.choice((64, 256)),
    )


def _network(rng: random.Random) -> Conditions:
    """Return a network: clean, or bad in a few ways."""
    if rng.random() < 0.3:
        return Conditions()
    return Conditions(
        loss=rng.choice((0.0, 0.02, 0.1, 0.25)),
        delay_s=rng.choice((0.001, 0.01, 0.04)),
        jitter_s=rng.choice((0.0005, 0.01)),
        tail=rng.choice(("uniform", "exponential")),
        duplicate=rng.choice((0.0, 0.0, 0.1)),
        reorder=rng.choice((0.0, 0.0, 0.1)),
        corrupt=rng.choice((0.0, 0.0, 0.02)),
    )


def _when(rng: random.Random, lasting_s: tuple[float, ...]) -> dict[str, Any]:
    spread_s = rng.choice((0.0, 0.0, 5.0))
    return {
        "at_s": round(rng.uniform(0.0, 6.0), 1),
        "lasting_s": rng.choice(lasting_s),
        "spread_s": spread_s,
    }


def _some(rng: random.Random) -> float | int:
    return rng.choice((1, 2, 0.1, 0.25, 0.5))


def _crash(rng: random.Random) -> Fault:
    disk = rng.choice(("whole", "torn", "tail", "lost"))
    nodes: float | int = rng.choice((1, 3, 0.15, 0.4, 0.9)) if disk in ("whole", "torn") else 3
    return Crash(nodes=nodes, disk=disk, **_when(rng, (0.5, 3.0, 15.0)))


def _for_good(rng: random.Random) -> Fault:
    return Crash(at_s=round(rng.uniform(0.0, 8.0), 1), nodes=rng.choice((1, 0.15)))


def _flap(rng: random.Random) -> Fault:
    kind = rng.choice((Silence, Crash, Pause))
    return kind(
        at_s=round(rng.uniform(0.0, 1.0), 1),
        nodes=rng.choice((1, 2)),
        lasting_s=rng.choice((0.7, 2.0)),
        every_s=rng.choice((2.5, 3.3)),
        times=4,
    )


def _partition(rng: random.Random) -> Fault:
    when = _when(rng, (2.0, 6.0, 20.0))
    when["spread_s"] = 0.0
    shares = rng.choice(((0.5, 0.5), (0.9, 0.1), (0.4, 0.3, 0.3)))
    return Partition(shares=shares, **when)


def _link(rng: random.Random) -> Fault:
    bad = rng.choice(
        (
            {"loss": 0.5},
            {"delay_s": 0.3, "jitter_s": 0.2},
            {"bytes_per_s": 20_000.0},
            {"corrupt": 0.3, "duplicate": 0.3},
            {"reorder": 0.5, "reorder_s": 0.2},
        )
    )
    return Link(nodes=_some(rng), **bad, **_when(rng, (3.0, 15.0)))  # type: ignore[arg-type]


def _clock(rng: random.Random) -> Fault:
    offset_s = rng.choice((-3600.0, -30.0, 30.0, 3600.0, 1e8))
    drift_ppm = rng.choice((0.0, 100.0, 5000.0))
    return Clock(
        nodes=_some(rng), offset_s=offset_s, drift_ppm=drift_ppm, **_when(rng, (5.0, 20.0))
    )


_MAKERS: tuple[Callable[[random.Random], Fault], ...] = (
    _crash,
    _for_good,
    _flap,
    _partition,
    _link,
    _clock,
    lambda rng: Leave(nodes=_some(rng), **_when(rng, (1.0, 10.0))),
    lambda rng: Join(nodes=rng.choice((1, 5, 0.5)), at_s=rng.choice((0.0, 6.0)), spread_s=5.0),
    lambda rng: Pause(nodes=_some(rng), **_when(rng, (0.3, 2.0, 12.0))),
    lambda rng: Slow(nodes=_some(rng), each_s=rng.choice((0.002, 0.02)), **_when(rng, (15.0,))),
    lambda rng: Full(nodes=_some(rng), **_when(rng, (3.0, 15.0))),
    lambda rng: Silence(nodes=_some(rng), **_when(rng, (1.0, 8.0, 20.0))),
    lambda rng: Cut(nodes=_some(rng), towards=_some(rng), **_when(rng, (5.0, 15.0))),
    lambda rng: Upgrade(nodes=1.0, at_s=2.0, spread_s=8.0),
    lambda rng: Poison(nodes=2, at_s=5.0),
    lambda rng: Flood(nodes=_some(rng), per_s=rng.choice((50.0, 200.0)), **_when(rng, (2.0, 5.0))),
)
