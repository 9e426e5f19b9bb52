"""Who is in the fleet: where members are, what they are and are called, and who is revoked.

Owns nothing: it reads the replica and gossip's table. Invariant: who is revoked has no address.
"""

from collections.abc import Iterable

from crdt import Store
from edge_node import clock
from edge_node.fleet.published import Capacity, Published
from gossip import Address, GossipNode

REVOKED = "revoked/"
_HERE = ("alive", "suspect")


class Directory:
    """The members as this node sees them."""

    def __init__(self, store: Store, gossip: GossipNode) -> None:
        self._store = store
        self._gossip = gossip
        self._published = Published(store)

    def living(self) -> list[bytes]:
        """Return the ids of the live members, this node included. O(members)."""
        return self._gossip.present()

    def capacities(self, nodes: Iterable[bytes]) -> dict[bytes, Capacity]:
        """Return what those of the ``nodes`` published of their capacity that have. O(nodes)."""
        return self._published.capacities(nodes)

    def address_of(self, node: bytes) -> Address | None:
        """Return where a living member listens (UDP and TCP), None if there is no such member."""
        if is_revoked(self._store, node):
            return None
        member = self._gossip.member(node)
        return member.address if member is not None and member.state in _HERE else None

    def name_of(self, node: bytes) -> str:
        """Return a node's published name, with the beginning of its id where two have one name.

        O(changes) after some of the replica, O(1) until the next: results name their node.
        """
        return self._published.name_of(node) or node.hex()[:8]


def is_revoked(store: Store, node: bytes) -> bool:
    """Tell whether the fleet has revoked a node."""
    return store.fleet(REVOKED + node.hex(), clock.now()) is not None
