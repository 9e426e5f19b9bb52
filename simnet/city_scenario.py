"""A city's scenario, read from its TOML file.

Owns the file's shape. Never draws anything. Invariant: a key that is unknown or missing, and a
number that makes no sense, is refused with its name, so that a typing error cannot change a run.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from math import isclose
from pathlib import Path
from typing import Any, TypeVar

SCENARIOS = Path(__file__).parent / "scenarios"

Section = TypeVar("Section")


@dataclass(frozen=True)
class Time:
    """How long a run is, in virtual seconds."""

    duration_s: float
    warmup_s: float
    drain_s: float


@dataclass(frozen=True)
class Fleet:
    """The machines."""

    nodes: int
    zone_nodes: int
    speed_spread: float
    queue: int
    idle_service_ms: float

    @property
    def zones(self) -> int:
        return max(1, self.nodes // self.zone_nodes)


@dataclass(frozen=True)
class Profile:
    """An emulated type of accelerator."""

    name: str
    share: float
    active_w: float
    service_ms: Mapping[str, float]


@dataclass(frozen=True)
class Cameras:
    """The demand."""

    count: int
    rate_hz: float
    jitter: float
    cost_spread: float
    noise: float
    mix: Mapping[str, float]


@dataclass(frozen=True)
class Tier:
    """A share of the cameras and what they ask for."""

    share: float
    deadline_ms: float


@dataclass(frozen=True)
class Bursts:
    """How the rates of a zone change."""

    busy: float
    calm: float
    busy_s: float
    calm_s: float
    first_s: float


@dataclass(frozen=True)
class Throttle:
    """How the speed of a node wanders."""

    every_s: float
    keep: float
    shock: float
    chance: float
    least: float
    most: float


@dataclass(frozen=True)
class Network:
    """What the ways cost."""

    zone_ms: float
    fleet_ms: float
    spread: float
    reply_ms: float


@dataclass(frozen=True)
class Gossip:
    """How old reports are."""

    period_ms: float
    fan_out: int
    detect_ms: float


@dataclass(frozen=True)
class Epoch:
    """When plans are made, and from what."""

    period_s: float
    publish_s: float


@dataclass(frozen=True)
class Forward:
    """How long an answer is waited for."""

    timeout_ms: float


@dataclass(frozen=True)
class Reuse:
    """What an earlier frame saves."""

    keep_s: float
    traces: str
    mix: Mapping[str, float]


@dataclass(frozen=True)
class Trace:
    """What the ladder took for the frames of one clip, in full passes, and by which rung."""

    cost: tuple[float, ...]
    rungs: str
    """One letter a frame: s(ame) and g(ate) reuse the output, d(elta), f(ull)."""


@dataclass(frozen=True)
class Scenario:
    """A whole file."""

    name: str
    seeds: tuple[int, ...]
    time: Time
    fleet: Fleet
    profiles: tuple[Profile, ...]
    cameras: Cameras
    tiers: tuple[Tier, ...]
    bursts: Bursts
    throttle: Throttle
    network: Network
    gossip: Gossip
    epoch: Epoch
    forward: Forward
    reuse: Reuse
    traces: Mapping[str, Trace]


def load(path: Path) -> Scenario:
    """Read a scenario and the traces beside it. Raises ValueError naming what is wrong."""
    found = tomllib.loads(path.read_text())
    tables = {"profiles": ("profile", Profile), "tiers": ("tier", Tier)}
    given: dict[str, Any] = {}
    for field in fields(Scenario):
        if field.name == "traces":
            continue
        key, kind = tables.get(field.name, (field.name, field.type))
        if key not in found:
            raise ValueError(f"{path.name}: [{key}] is missing")
        value = found.pop(key)
        if field.name in tables:
            given[field.name] = tuple(_section(one, kind, f"[[{key}]]") for one in value)
        else:
            given[field.name] = _section(value, kind, f"[{key}]") if is_dataclass(kind) else value
    if found:
        raise ValueError(f"{path.name}: unknown key {min(found)!r}")
    given["seeds"] = tuple(given["seeds"])
    reuse: Reuse = given["reuse"]
    scenario = Scenario(traces=_traces(path.parent / reuse.traces), **given)
    _check(scenario)
    return scenario


def _section(found: Any, kind: Any, where: str) -> Any:
    names = {field.name for field in fields(kind)}
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    for name in sorted(set(found) - names):
        raise ValueError(f"{where}: unknown key {name!r}")
    for name in sorted(needed - set(found)):
        raise ValueError(f"{where}: {name!r} is missing")
    for name, value in found.items():
        if isinstance(value, int | float) and value < 0:
            raise ValueError(f"{where}: {name} must not be negative")
    return kind(**found)


def _traces(path: Path) -> dict[str, Trace]:
    return {
        name: Trace(
            tuple(hundredth / 100 for hundredth in one["cost"]),
            one["rungs"],
        )
        for name, one in json.loads(path.read_text()).items()
    }


def _check(scenario: Scenario) -> None:
    shares = {
        "[cameras] mix": scenario.cameras.mix.values(),
        "[reuse] mix": scenario.reuse.mix.values(),
        "[[profile]] share": [one.share for one in scenario.profiles],
        "[[tier]] share": [one.share for one in scenario.tiers],
    }
    for where, values in shares.items():
        if not isclose(sum(values), 1.0, abs_tol=1e-6):
            raise ValueError(f"{where}: the shares add up to {sum(values):g}, not 1")
    if len(scenario.tiers) != 3:
        raise ValueError("[[tier]]: there must be three")
    for name in scenario.reuse.mix:
        if name not in scenario.traces:
            raise ValueError(f"[reuse] mix: no trace {name!r} in {scenario.reuse.traces}")
    for profile in scenario.profiles:
        for kind in scenario.cameras.mix:
            if kind not in profile.service_ms:
                raise ValueError(f"[[profile]] {profile.name}: no service time of {kind!r}")
