"""A scenario: a fleet, what it does, and what is done to it; read from a TOML file.

Owns the shape of the file and its checks. Never runs anything. Invariant: a scenario that exists
can be carried out.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from gossip.config import GossipConfig
from simnet import faults, sections
from simnet.city.scenario import CityScenario
from simnet.faults import Fault, Step
from simnet.link import Conditions

SCENARIOS = Path(__file__).parent / "scenarios"
MOST_NODES = 20_000


@dataclass(frozen=True)
class Time:
    """How long the parts of a run are, in virtual (world) or real (cluster) seconds."""

    duration_s: float
    """Faults and writes happen in it; by its end all faults that end have ended."""
    settle_s: float = 8.0
    """Before it: the fleet comes up, and nothing else happens."""
    heal_s: float = 60.0
    """After it: until when all nodes must hold the same and see each other."""


@dataclass(frozen=True)
class Writes:
    """What the nodes write meanwhile."""

    per_s: float = 2.0
    """By the whole fleet; each by a node drawn at random of those that run."""
    keys: int = 4
    """Different ones of each kind."""
    kinds: tuple[str, ...] = ("owner", "fleet", "add", "remove")


@dataclass(frozen=True)
class Scenario:
    """A whole file."""

    name: str
    nodes: int
    time: Time
    about: str = ""
    zones: int = 1
    start: str = "cold"
    """``cold``: all call the first three; ``warm``: all have known each other for long (world), or
    have called the first three and come to agree before the run begins (cluster)."""
    cryptography: str = "stand-in"
    """``stand-in`` (:mod:`simnet.standin`, world only) or ``real``."""
    gossip: GossipConfig = field(default_factory=GossipConfig)
    network: Conditions = field(default_factory=Conditions)
    writes: Writes = field(default_factory=Writes)
    faults: tuple[Fault, ...] = ()
    city: CityScenario | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= MOST_NODES:
            raise ValueError(f"nodes = {self.nodes}: must be from 1 to {MOST_NODES}")
        if not 1 <= self.zones <= self.nodes:
            raise ValueError(f"zones = {self.zones}: must be from 1 to {self.nodes}, the nodes")
        if self.start not in ("cold", "warm"):
            raise ValueError(f"start = {self.start!r}: must be 'cold' or 'warm'")
        if self.cryptography not in ("stand-in", "real"):
            raise ValueError(f"cryptography = {self.cryptography!r}: must be 'stand-in' or 'real'")
        if min(asdict(self.time).values()) < 0 or self.writes.per_s < 0 or self.writes.keys < 1:
            raise ValueError("times and rates must not be negative, and there is at least one key")
        for kind in self.writes.kinds:
            if kind not in ("owner", "fleet", "add", "remove"):
                raise ValueError(
                    f"[writes] kinds: {kind!r} is not one of owner, fleet, add, remove"
                )
        starting = self.nodes - len(faults.absent(self.plan(0)))
        if starting < 1:
            raise ValueError("[[fault]] join: at least one node must be there from the beginning")
        if starting < self.nodes and self.start == "warm":
            raise ValueError("start = 'warm': nodes that join are not known; use start = 'cold'")

    def plan(self, seed: int) -> list[Step]:
        """Draw who is hit when. Raises ValueError for what cannot be; see ``faults.plan``."""
        return faults.plan(self.faults, self.nodes, self.zones, self.time.duration_s, seed)

    def sized(self, nodes: int) -> "Scenario":
        """Return the same with another number of nodes."""
        return replace(self, nodes=nodes)

    @property
    def round_s(self) -> float:
        """Return how long one hop of gossip may take: network, and batching twice."""
        return self.network.delay_s + self.network.jitter_s + 2 * self.gossip.batching_s


def names() -> list[str]:
    """Return the names of the scenarios that come with the simulator."""
    return sorted(path.stem for path in SCENARIOS.glob("*.toml"))


def load(given: str | Path) -> Scenario:
    """Read a scenario by its name or from a file. Raises ValueError naming what is wrong."""
    path = Path(given)
    if path.suffix != ".toml":
        path = SCENARIOS / f"{given}.toml"
        if not path.exists():
            raise ValueError(f"no scenario {str(given)!r}; there are: {', '.join(names())}")
    try:
        return parse(tomllib.loads(path.read_text()))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise ValueError(f"{path.name}: {error}") from error


def parse(table: Mapping[str, Any]) -> Scenario:
    """Return a scenario from its tables. Raises ValueError naming what is wrong."""
    given = dict(table)
    kinds: list[Fault] = []
    for index, one in enumerate(given.pop("fault", [])):
        where = f"[[fault]] {index + 1}"
        rest = dict(one)
        kind = faults.KINDS.get(rest.pop("kind", ""))
        if kind is None:
            known = ", ".join(faults.KINDS)
            raise ValueError(f"{where}: kind = {one.get('kind')!r}: must be one of {known}")
        kinds.append(sections.read(kind, rest, f"{where} ({kind.kind})"))
    if "faults" in given:
        raise ValueError("unknown key 'faults'; did you mean [[fault]]?")
    if "city" in given:
        given["city"] = sections.read(CityScenario, given["city"], "[city]")
    return sections.read(Scenario, {**given, "faults": kinds}, "scenario")


def tables(scenario: Scenario) -> dict[str, Any]:
    """Return what ``parse`` makes the same scenario of; what has its default is left out."""
    found: dict[str, Any] = {}
    for one in fields(Scenario):
        value = getattr(scenario, one.name)
        if one.name == "faults":
            if value:
                found["fault"] = [{"kind": fault.kind, **_changed(fault)} for fault in value]
        elif hasattr(value, "__dataclass_fields__"):
            if changed := _changed(value):
                found[one.name] = changed
        elif value != one.default:
            found[one.name] = value
    return found


def text(scenario: Scenario) -> str:
    """Return a file that ``load`` reads as the same scenario."""
    plain, found = [], tables(scenario)
    blocks = []
    for name, value in found.items():
        if isinstance(value, dict):
            blocks.append((f"[{name}]", value))
        elif name == "fault":
            blocks += [("[[fault]]", one) for one in value]
        else:
            plain.append(f"{name} = {_toml(value)}\n")
    for head, table in blocks:
        plain.append(f"\n{head}\n")
        plain += [f"{key} = {_toml(value)}\n" for key, value in table.items()]
    return "".join(plain)


def _changed(section: Any) -> dict[str, Any]:
    """Return the fields of a section that do not have their default."""
    return {
        one.name: _plain(value)
        for one in fields(section)
        if (value := getattr(section, one.name)) != one.default and value is not None
    }


def _plain(value: Any) -> Any:
    """Return a value with tables for its sections and lists for its tuples."""
    if hasattr(value, "__dataclass_fields__"):
        return _changed(value)
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _toml(value: Any) -> str:
    """Return a value as TOML writes it on one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Mapping):
        pairs = (f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items())
        return f"{{ {', '.join(pairs)} }}"
    return json.dumps(value)
