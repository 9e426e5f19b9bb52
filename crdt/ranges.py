"""Sums over ranges of node ids, by which two replicas find where they differ.

Owns: the names of ranges (scopes), and a 16-way tree of sums over them.
Never: knows what is summed; replicas sum log digests, rosters something of their own.
Invariant: a sum depends on what was added in all, not on the order; equal sums at a scope mean
equal members (as far as 128 bits can tell), so only ranges that differ are looked into.

A scope is an int: a leading 1 bit, then the first hex digits of the ids it covers. 1 is every id,
0x1a those that begin with a, 0x1a3f those that begin with a3f; there are no deeper ones.
"""

from crdt.causal import NodeId

MAX_DEPTH = 3
FAN_OUT = 16
EVERYTHING = 1
_ID_BITS = 128
_SUM_MOD = 1 << 128
_BEGIN_BYTES = 2  # all scopes show in the first bytes of an id
_NOTHING = (0, 0)


def depth_of(scope: int) -> int:
    """Return how many digits a scope fixes, 0 to 3. Raises ValueError if it is no scope."""
    depth, rest = divmod(scope.bit_length() - 1, 4)
    if scope < 1 or rest or depth > MAX_DEPTH:
        raise ValueError(f"{scope} is not a scope")
    return depth


def scope_of(node_id: NodeId, depth: int) -> int:
    """Return the scope of a depth that an id belongs to."""
    return 1 << 4 * depth | _begin(node_id) >> 4 * (2 * _BEGIN_BYTES - depth)


def in_scope(node_id: NodeId, scope: int) -> bool:
    """Say whether a scope covers an id. Raises ValueError if it is no scope."""
    return scope_of(node_id, depth_of(scope)) == scope


def child_scopes(scope: int) -> range:
    """Return the 16 scopes within a scope. Raises ValueError if it has none."""
    if depth_of(scope) == MAX_DEPTH:
        raise ValueError(f"{scope:#x} is a deepest scope")
    return range(scope << 4, (scope << 4) + FAN_OUT)


def bounds(scope: int) -> tuple[NodeId, NodeId]:
    """Return the lowest and highest id of a scope. Raises ValueError if it is no scope."""
    depth = depth_of(scope)
    free = _ID_BITS - 4 * depth
    low = (scope ^ 1 << 4 * depth) << free
    return low.to_bytes(16, "big"), (low | (1 << free) - 1).to_bytes(16, "big")


class RangeTree:
    """Keep, for every scope, the sum of its members' numbers and how many members it has."""

    __slots__ = ("_nodes",)

    def __init__(self) -> None:
        self._nodes: dict[int, tuple[int, int]] = {}  # scope -> (sum, members); no empty ones

    def change(self, node_id: NodeId, delta: int, *, count: int = 0) -> None:
        """Add to an id's number (modulo 2^128), and to the members at its place. O(depth)."""
        scope = 1 << 4 * MAX_DEPTH | _begin(node_id) >> 4 * (2 * _BEGIN_BYTES - MAX_DEPTH)
        nodes = self._nodes
        while scope:
            total, members = nodes.get(scope, _NOTHING)
            changed = ((total + delta) % _SUM_MOD, members + count)
            if changed == _NOTHING:
                nodes.pop(scope, None)
            else:
                nodes[scope] = changed
            scope >>= 4

    def count(self, scope: int) -> int:
        """Return how many members a scope has."""
        return self._nodes.get(scope, _NOTHING)[1]

    def sum_of(self, scope: int) -> bytes:
        """Return the 16-byte sum of a scope."""
        return self._nodes.get(scope, _NOTHING)[0].to_bytes(16, "big")

    def sums(self, scope: int) -> tuple[bytes, ...]:
        """Return the first 8 bytes of the sums of the 16 scopes within one, in order.

        Raises ValueError if the scope has none within.
        """
        return tuple([self.sum_of(child)[:8] for child in child_scopes(scope)])


def _begin(node_id: NodeId) -> int:
    return int.from_bytes(node_id[:_BEGIN_BYTES], "big")
