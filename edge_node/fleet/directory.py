"""Who is in the fleet: where members are, what they are called, and who is revoked.

Owns nothing: it reads the replica and gossip's table. Invariant: who is revoked has no address.
"""

from collections import Counter

from crdt import Store
from edge_node import clock
from gossip import Address, GossipNode

REVOKED = "revoked/"
_HERE = ("alive", "suspect")


class Directory:
    """The members as this node sees them."""

    def __init__(self, store: Store, gossip: GossipNode) -> None:
        self._store = store
        self._gossip = gossip
        self._names: dict[bytes, str] = {}
        self._generation = -1

    def living(self) -> list[bytes]:
        """Return the ids of the live members, this node included."""
        return [one.node_id for one in self._gossip.members() if one.state in ("self", *_HERE)]

    def address_of(self, node: bytes) -> Address | None:
        """Return where a living member listens (UDP and TCP), None if there is no such member."""
        if is_revoked(self._store, node):
            return None
        for member in self._gossip.members():
            if member.node_id == node and member.state in _HERE:
                return member.address
        return None

    def name_of(self, node: bytes) -> str:
        """Return a node's published name, with the beginning of its id where two have one name.

        O(records) after a change of the replica, O(1) until the next: results name their node.
        """
        if self._generation != self._store.generation:
            self._generation, self._names = self._store.generation, self._read_names()
        return self._names.get(node) or node.hex()[:8]

    def _read_names(self) -> dict[bytes, str]:
        names = {
            origin: name
            for origin, key, record in self._store.owners("node")
            if key == "node" and (name := _name(record)) is not None
        }
        counts = Counter(names.values())
        return {
            node: name if counts[name] == 1 else f"{name}-{node.hex()[:4]}"
            for node, name in names.items()
        }


def is_revoked(store: Store, node: bytes) -> bool:
    """Tell whether the fleet has revoked a node."""
    return store.fleet(REVOKED + node.hex(), clock.now()) is not None


def _name(record: object) -> str | None:
    name = record.get("name") if isinstance(record, dict) else None
    return name if isinstance(name, str) and name else None
