"""What this device draws, from its own counters where it has any.

Owns the reading of counters under sysfs; never estimates where a counter answers, and always says
which source it used. Invariant: a reading is never negative, and a counter that is missing, may not
be read or talks nonsense falls to the declared table instead of raising.

Sources, best first: `ina` (the INA3221 sensors of a Jetson, instantaneous watts, integrated here),
`rapl` (energy counters of the processor's packages; usually only root may read them), `declared`
(a table of watts by accelerator type: an assumption, to be replaced in the configuration).
Counters measure the whole device, so a task is charged what the device drew while it ran.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType

SYSFS = Path("/sys")
DECLARED_W: Mapping[str, float] = MappingProxyType({"cpu": 15.0, "openvino": 15.0, "cuda": 60.0})
UNKNOWN_W = 15.0
SHORTEST_S = 0.05  # between readings of counters that are renewed once a millisecond
MOST_W = 2_000.0  # of one device: above, a counter is broken or was reset
# The rail that feeds all others; where a board names none, its rails are added.
_INPUT_RAILS = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0")


@dataclass(frozen=True)
class _Rail:
    """Name the files whose product, scaled, is what one rail draws."""

    label: str
    files: tuple[Path, ...]
    scale: float

    def watts(self) -> float:
        return self.scale * prod(_number(path) for path in self.files)


@dataclass(frozen=True)
class _Package:
    """Name one package's counter of microjoules and where it wraps."""

    energy_uj: Path
    range_uj: float


class Meter:
    """Measure what the device draws. Used by one thread at a time."""

    def __init__(
        self,
        accelerator: str = "cpu",
        *,
        declared: Mapping[str, float] = DECLARED_W,
        sysfs: Path = SYSFS,
    ) -> None:
        """Find the best source for an accelerator type; never raises."""
        self._declared_w = declared.get(accelerator, UNKNOWN_W)
        self._rails = _readable_rails(sysfs)
        self._packages = [] if self._rails else _readable_packages(sysfs)
        self.source = "ina" if self._rails else "rapl" if self._packages else "declared"
        self.watts = self._declared_w
        self._last_s: float | None = None
        self._last_uj: list[float] = []

    def advance(self, now_s: float, busy_s: float) -> float:
        """Return the joules since the last call (0 at the first) and renew `watts`.

        `now_s` is monotonic, `busy_s` the time in between that the accelerator worked: the
        declared table counts only that, a counter everything. A few small reads.
        """
        spent_s = 0.0 if self._last_s is None else max(0.0, now_s - self._last_s)
        self._last_s = now_s
        try:
            if self._rails:
                return self._advance_rails(spent_s)
            if self._packages:
                return self._advance_packages(spent_s)
        except (OSError, ValueError):
            self.source, self._rails, self._packages = "declared", [], []
        self.watts = self._declared_w
        return self._declared_w * min(max(0.0, busy_s), spent_s)

    def task_j(self, service_ms: float) -> float:
        """Return what a task of this service time draws at the present watts, in joules."""
        return self.watts * service_ms / 1e3

    def _advance_rails(self, spent_s: float) -> float:
        before_w, self.watts = self.watts, _checked(sum(rail.watts() for rail in self._rails))
        return (before_w + self.watts) / 2 * spent_s

    def _advance_packages(self, spent_s: float) -> float:
        now_uj = [_number(package.energy_uj) for package in self._packages]
        last_uj, self._last_uj = self._last_uj or now_uj, now_uj
        joules = 0.0
        for package, last, now in zip(self._packages, last_uj, now_uj, strict=True):
            joules += (now - last + (package.range_uj if now < last else 0.0)) / 1e6
        if spent_s >= SHORTEST_S:
            self.watts = _checked(joules / spent_s)
        return joules


def _readable_rails(sysfs: Path) -> list[_Rail]:
    """Return the rails to add up, [] if there are none or one cannot be read."""
    rails = []
    try:
        for folder in sorted((sysfs / "class" / "hwmon").glob("hwmon*")):
            if _text(folder / "name").startswith("ina3221"):
                rails += _hwmon_rails(folder)
        for folder in sorted((sysfs / "bus/i2c/drivers/ina3221x").glob("*/iio:device*")):
            rails += [  # in milliwatts
                _Rail(_text(name), (folder / f"in_power{name.name[-1]}_input",), 1e-3)
                for name in sorted(folder.glob("rail_name_*"))
            ]
        feeding = [rail for rail in rails if rail.label in _INPUT_RAILS]
        chosen = feeding[:1] or rails
        _checked(sum(rail.watts() for rail in chosen))
    except (OSError, ValueError):
        return []
    return chosen


def _hwmon_rails(folder: Path) -> list[_Rail]:
    """Return the channels in use of one sensor; in7 and the like are sums, without a current."""
    return [  # in millivolts and milliamperes
        _Rail(_text(label), (folder / f"in{channel}_input", current), 1e-6)
        for label in sorted(folder.glob("in[1-3]_label"))
        if (current := folder / f"curr{(channel := label.name[2])}_input").exists()
        and _text(label) not in ("", "NC")
    ]


def _readable_packages(sysfs: Path) -> list[_Package]:
    """Return the packages' counters, [] if there are none or one may not be read."""
    packages = []
    try:
        for folder in sorted((sysfs / "class" / "powercap").glob("intel-rapl:*")):
            # intel-rapl:0 is a package; intel-rapl:0:1 a part of it, already counted; psys is all.
            if folder.name.count(":") == 1 and _text(folder / "name").startswith("package"):
                _number(folder / "energy_uj")
                most = _number(folder / "max_energy_range_uj")
                packages.append(_Package(folder / "energy_uj", most))
    except (OSError, ValueError):
        return []
    return packages


def _checked(watts: float) -> float:
    if not 0 <= watts <= MOST_W:
        raise ValueError(f"{watts} W is no draw of a device")
    return watts


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii", errors="replace").strip()


def _number(path: Path) -> float:
    value = float(_text(path))
    if not 0 <= value < float("inf"):
        raise ValueError(f"{path}: {value}")
    return value
