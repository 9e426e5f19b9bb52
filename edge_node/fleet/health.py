"""Whether this node should keep its agents: it drains, or it is too hot.

Owns both states and the reading of the kernel's thermal zones. Never moves an agent: it says what
the node publishes, and every node draws its conclusions. Invariant: a node without readable thermal
zones is never hot; between hot and cool enough nothing changes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HOT_EPOCHS = 3
COOL_EPOCHS = 10
COOL_BELOW_C = 5.0
"""How far below its limit every zone has to stay before the node is cool again."""

PLAUSIBLE_C = (-40.0, 150.0)
"""Sensors that are not there read as extremes."""

THROTTLING = ("passive", "hot")
"""Trip points at which the kernel slows the device down, or warns."""


@dataclass(frozen=True, slots=True)
class Zone:
    """One thermal zone as it reads now; ``limit_c`` is None for one without a trip point."""

    name: str
    temperature_c: float
    limit_c: float | None


class Health:
    """This node's two reasons to give its agents away."""

    def __init__(self) -> None:
        self.draining = False
        """An operator wants the node empty."""
        self.hot = False
        self.temperature = ""
        """Whether it is hot, and the zone that is nearest to its limit or furthest above it."""
        self.hottest_c = math.nan
        """Of all zones; not a number where there is none."""
        self._hot_epochs = 0
        self._cool_epochs = 0

    @property
    def leaving(self) -> bool:
        """Whether the node gives its agents away and takes no work of others."""
        return self.draining or self.hot

    def restore(self, record: object) -> None:
        """Go on draining if this node's own record ``node`` says that it does."""
        self.draining = isinstance(record, dict) and record.get("draining") is True

    def felt(self, zones: Iterable[Zone], hot_c: float) -> bool:
        """Take one epoch's temperatures; return whether :attr:`hot` changed.

        ``hot_c`` is the limit of zones that have no trip point.
        """
        over = {zone: zone.temperature_c - (zone.limit_c or hot_c) for zone in zones}
        self.hottest_c = max((zone.temperature_c for zone in over), default=math.nan)
        worst = max(over, key=lambda zone: over[zone], default=None)
        margin_c = over[worst] if worst is not None else -COOL_BELOW_C
        self._hot_epochs = self._hot_epochs + 1 if margin_c >= 0.0 else 0
        self._cool_epochs = self._cool_epochs + 1 if margin_c <= -COOL_BELOW_C else 0
        before = self.hot
        if self._hot_epochs >= HOT_EPOCHS:
            self.hot = True
        elif self._cool_epochs >= COOL_EPOCHS:
            self.hot = False
        self.temperature = "too hot" if self.hot else "cool enough"
        if worst is not None:
            limit_c = worst.limit_c or hot_c
            self.temperature += f" ({worst.name} at {worst.temperature_c:.0f} of {limit_c:.0f} °C)"
        return self.hot != before


def read_zones(root: Path | None) -> list[Zone]:
    """Read the thermal zones under ``root`` (sysfs' ``class/thermal``); none without a root.

    Blocks for as long as the sensors' drivers do. Zones that cannot be read are left out.
    """
    folders = sorted(root.glob("thermal_zone*")) if root is not None else []
    return [zone for folder in folders if (zone := _zone(folder)) is not None]


def _zone(folder: Path) -> Zone | None:
    temperature_c = _celsius(folder / "temp")
    if temperature_c is None:
        return None
    limits_c = [
        limit_c
        for kind in folder.glob("trip_point_*_type")
        if _text(kind) in THROTTLING
        and (limit_c := _celsius(kind.with_name(kind.name.replace("_type", "_temp")))) is not None
        and limit_c > 0.0
    ]
    name = _text(folder / "type") or folder.name
    return Zone(name, temperature_c, min(limits_c, default=None))


def _celsius(path: Path) -> float | None:
    """Return what a file of sysfs says in millidegrees, None if it says nothing plausible."""
    try:
        celsius = int(_text(path)) / 1e3
    except ValueError:
        return None
    return celsius if PLAUSIBLE_C[0] <= celsius <= PLAUSIBLE_C[1] else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
