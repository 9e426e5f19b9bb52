"""What the nodes publish of themselves: the owner record ``node`` of each.

Owns the shape of that record as others read it. Never decides anything with it. Invariant: what is
malformed in a peer's record counts for nothing.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from crdt import Store, Value
from edge_node.fleet.records import Records
from models.accelerators import PROVIDERS

KEY = "node"
MOST_PASSES_PER_S = 10_000.0


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a living node can take: full passes per second, whether it takes cameras over."""

    passes_per_s: float
    takeover: bool
    files: str
    """Folder under which it opens other nodes' files; empty: none."""
    draining: bool = False
    """An operator wants it empty."""
    hot: bool = False
    """It is too hot."""
    zone: str = ""
    """Its place, by the operator's choice."""
    providers: tuple[str, ...] = ()
    """Of its working accelerators."""

    @property
    def leaving(self) -> bool:
        """Whether it gives its agents away and takes no work of others."""
        return self.draining or self.hot


class Published:
    """The nodes' records, each read when it has changed: O(changes), then O(1) a node."""

    def __init__(self, store: Store) -> None:
        self._records = Records(store, KEY, self._take)
        self._names: dict[bytes, str] = {}
        self._bearers: Counter[str] = Counter()  # of each name
        self._capacities: dict[bytes, Capacity] = {}

    def name_of(self, node: bytes) -> str | None:
        """Return a node's name, with the beginning of its id where two have one; None if none."""
        self._records.look()
        name = self._names.get(node)
        if name is None or self._bearers[name] == 1:
            return name
        return f"{name}-{node.hex()[:4]}"

    def capacities(self, nodes: Iterable[bytes]) -> dict[bytes, Capacity]:
        """Return what those of the ``nodes`` published that have published anything."""
        self._records.look()
        known = self._capacities
        return {node: known[node] for node in nodes if node in known}

    def _take(self, node: bytes, key: str, record: Value) -> None:
        if key != KEY:
            return
        former, name = self._names.pop(node, None), _name(record)
        if former is not None:
            self._bearers[former] -= 1
            if not self._bearers[former]:
                del self._bearers[former]
        if name is not None:
            self._names[node] = name
            self._bearers[name] += 1
        if isinstance(record, dict):
            self._capacities[node] = _capacity(record)
        else:
            self._capacities.pop(node, None)


def _name(record: Value) -> str | None:
    name = record.get("name") if isinstance(record, dict) else None
    return name if isinstance(name, str) and name else None


def _capacity(record: Mapping[str, Value]) -> Capacity:
    passes_per_s, files = record.get("capacity"), record.get("files")
    zone = record.get("zone")
    return Capacity(
        passes_per_s=_clamped(passes_per_s),
        takeover=record.get("takeover") is True,
        files=files if isinstance(files, str) else "",
        draining=record.get("draining") is True,
        hot=record.get("hot") is True,
        zone=zone if isinstance(zone, str) else "",
        providers=_providers(record.get("accelerators")),
    )


def _providers(accelerators: Value) -> tuple[str, ...]:
    listed = accelerators if isinstance(accelerators, list) else ()
    named = (one.get("provider") for one in listed if isinstance(one, dict))
    # Each name makes a type of its own in every plan.
    return tuple(name if isinstance(name, str) and name in PROVIDERS else "other" for name in named)


def _clamped(value: Value) -> float:
    """Read a capacity; nobody has more than a thousand times what a small board has."""
    if not isinstance(value, int | float) or not value > 0:
        return 0.0
    return min(float(value), MOST_PASSES_PER_S)
