"""What makes a scenario a city: its cameras, its emulated accelerators, and what comes over them.

Owns the shape of the ``[city]`` block. Never draws anything. Invariant: shares add up to one, and
every kind of task has a service time everywhere, so that a typing error cannot change a run.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from math import isclose
from pathlib import Path

from models.accelerators import PROVIDERS

TRACES = Path(__file__).parent.parent / "scenarios" / "delta_traces.json"
TIERS = 3


@dataclass(frozen=True)
class Profile:
    """An emulated type of accelerator: watts above idle while busy, times of a full pass."""

    name: str
    provider: str
    """What its nodes say that it is."""
    share: float
    """Of the nodes."""
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
    """Share of each kind of task."""
    clips: Mapping[str, float]
    """Share of each recorded trace of what reuse saves."""


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
class Ways:
    """What the way of an image costs, and that of its answer."""

    zone_ms: float
    fleet_ms: float
    spread: float
    reply_ms: float


@dataclass(frozen=True)
class Trace:
    """What the ladder took for the frames of one clip, in full passes, and by which rung."""

    cost: tuple[float, ...]
    rungs: str
    """One letter a frame: s(ame) and g(ate) reuse the output, d(elta), f(ull)."""


@dataclass(frozen=True)
class CityScenario:
    """The whole block."""

    warmup_s: float
    """Frames before that do not count."""
    drain_s: float
    """What is not answered that long after the last frame came is lost."""
    epoch_s: float
    """Between two plans of a node."""
    queue: int
    """Places in an accelerator's queue."""
    speed_spread: float
    idle_service_ms: float
    """What a node that knows nothing of tasks takes each to cost."""
    profile: tuple[Profile, ...]
    cameras: Cameras
    tier: tuple[Tier, ...]
    bursts: Bursts
    throttle: Throttle
    ways: Ways

    def __post_init__(self) -> None:
        _refuse_negative(asdict(self), "")
        _refuse_shares("cameras mix", self.cameras.mix.values())
        _refuse_shares("cameras clips", self.cameras.clips.values())
        _refuse_shares("profile share", [one.share for one in self.profile])
        _refuse_shares("tier share", [one.share for one in self.tier])
        if len(self.tier) != TIERS:
            raise ValueError(f"tier: there must be {TIERS}")
        if not min(self.epoch_s, self.queue, self.cameras.count, self.cameras.rate_hz) > 0:
            raise ValueError("epoch_s, queue, cameras count and rate_hz must be above 0")
        for name in self.cameras.clips:
            if name not in traces():
                raise ValueError(f"cameras clips: there is no trace {name!r}")
        for profile in self.profile:
            if profile.provider not in PROVIDERS:
                raise ValueError(f"profile {profile.name}: no provider {profile.provider!r}")
            for kind in self.cameras.mix:
                if not profile.service_ms.get(kind, 0.0) > 0:
                    raise ValueError(f"profile {profile.name}: no service time of {kind!r}")


@cache
def traces() -> Mapping[str, Trace]:
    """Return the recorded traces by name."""
    return {
        name: Trace(tuple(hundredth / 100 for hundredth in one["cost"]), one["rungs"])
        for name, one in json.loads(TRACES.read_text()).items()
    }


def _refuse_negative(found: object, where: str) -> None:
    if isinstance(found, Mapping):
        for name, value in found.items():
            _refuse_negative(value, f"{where} {name}".strip())
    elif isinstance(found, tuple | list):
        for value in found:
            _refuse_negative(value, where)
    elif isinstance(found, int | float) and found < 0:
        raise ValueError(f"{where} = {found:g}: must not be negative")


def _refuse_shares(where: str, shares: Iterable[float]) -> None:
    total = sum(shares)
    if not isclose(total, 1.0, abs_tol=1e-6):
        raise ValueError(f"{where}: the shares add up to {total:g}, not 1")
