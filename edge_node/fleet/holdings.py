"""The index of reuse state: which node holds that of which camera and model.

Owns this node's elements of the fleet sets ``cache/AGENT/DIGEST``; never fetches anything.
Invariant: at most one element of each set is this node's.
"""

from collections.abc import Callable

from crdt import Store
from edge_node import clock
from edge_node.placement.fetch import Holder
from edge_node.workers import CacheHolding
from models.wire import SHORT

CACHE = "cache/"


class Holdings:
    """What this node announces of its cache, and what the others do."""

    def __init__(self, node_id: bytes, store: Store, stage: Callable[..., bool]) -> None:
        """Prepare; ``stage`` makes a write of the store and says whether it was taken."""
        self._node_id = node_id
        self._store = store
        self._stage = stage
        self._announced: dict[str, Holder] = {}

    def take(self, holding: CacheHolding) -> None:
        """Stage what a worker says of its cache."""
        key = _key(holding.agent, holding.digest)
        if (former := self._announced.pop(key, None)) is not None:
            self._stage(self._store.remove, key, former.element())
        if holding.held:
            holder = self._announced[key] = Holder(
                self._node_id,
                holding.signature,
                holding.size_bytes,
                holding.calibrated,
                clock.now().wall_ms,
            )
            self._stage(self._store.add, key, holder.element())

    def withdraw_former(self) -> None:
        """Stage the removal of what a former run of this node announced. O(keys)."""
        for key in self._store.set_keys(CACHE):
            current = self._announced.get(key)
            for element in self._store.elements(key):
                owner = element[0] if isinstance(element, list) and element else element
                if owner == self._node_id and (not current or element != current.element()):
                    self._stage(self._store.remove, key, element)

    def of(self, agent: str, digest: str) -> list[Holder]:
        """Return who holds the state of an agent under a model; this node may be among them."""
        found = map(Holder.from_element, self._store.elements(_key(agent, digest)))
        return [holder for holder in found if holder is not None]


def _key(agent: str, digest: str) -> str:
    return f"{CACHE}{agent}/{digest[:SHORT]}"
