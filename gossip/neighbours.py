"""Neighbours: with which members this node wants a link, and which share its zone.

In a small fleet that is everybody. In a large one it is the zone (who shares so many leading bits
of the id that at most `direct_members` are left; 32 to 64 where 64 are allowed), and two members
of every other range that the tree passes news to (crdt.ranges).

Owns no state but the size of the zone; never calls anybody. Invariant: two members that agree
on who is live agree on whether they share a zone.
"""

import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from crdt.ranges import EVERYTHING, MAX_DEPTH, bounds, child_scopes, scope_of
from gossip.broadcast import Links
from gossip.config import GossipConfig
from gossip.members import Member, Members

_PER_RANGE = 2  # links into each range elsewhere: one may fail
_ID_BITS = 128
_SCOPE_BITS = 4 * MAX_DEPTH


class Neighbours:
    """Who is near by id, and who is missing."""

    def __init__(self, config: GossipConfig, members: Members, links: Links) -> None:
        self._config = config
        self._members = members
        self._links = links
        self._me = int.from_bytes(members.node_id, "big")
        self._bits, self._bits_for = 0, -1  # of the zone, when the members had changed so often

    @property
    def all(self) -> bool:
        """Tell whether the fleet is so small that everybody is a neighbour."""
        return self._known(EVERYTHING, EVERYTHING) <= self._config.direct_members

    def within(self, scope: int) -> list[Member]:
        """Return the live members in a scope, by id; O(log live + found)."""
        return self._members.between(*bounds(scope))

    def zone(self) -> list[Member]:
        """Return the live members of the own zone."""
        if self.all:
            return self._members.live()
        return self._members.between(*self._around(self._zone_bits()))

    def near(self, node_id: bytes) -> bool:
        """Tell whether an id belongs to the own zone."""
        return self._shared_bits(node_id) >= self._zone_bits()

    def leaf(self) -> int:
        """Return the largest own scope below the root that is not divided further."""
        count = self._members.tree.count
        for depth in range(1, MAX_DEPTH):
            scope = scope_of(self._members.node_id, depth)
            if count(scope) <= self._config.leaf_members:
                return scope
        return scope_of(self._members.node_id, MAX_DEPTH)

    def wants(self, node_id: bytes) -> bool:
        """Tell whether a link to a member is wanted. O(links)."""
        if self.near(node_id):
            return True
        depth = self._shared_bits(node_id) // 4 + 1  # where its range parts from the own
        low, high = bounds(scope_of(node_id, depth))
        return sum(low <= link.node_id <= high for link in self._links) < _PER_RANGE

    def missing(self, rng: random.Random) -> Iterator[Member]:
        """Yield members with whom a link is wanted and not there. O(live) at worst."""
        bits = self._zone_bits()
        yield from self._strangers(*self._around(bits))
        linked = sorted(link.node_id for link in self._links)
        for scope in self._ranges_elsewhere():
            low, high = bounds(scope)
            lacking = _PER_RANGE - (bisect_right(linked, high) - bisect_left(linked, low))
            if lacking > 0:
                there = self._strangers(low, high)
                yield from rng.sample(there, min(lacking, len(there)))

    def _strangers(self, low: bytes, high: bytes) -> list[Member]:
        """Return who has no link, of the live and of those only heard of."""
        heard = [self._members.get(one) for one in self._heard(low, high)]
        there = self._members.between(low, high) + [one for one in heard if one is not None]
        return [member for member in there if self._links.get(member.node_id) is None]

    def _around(self, bits: int) -> tuple[bytes, bytes]:
        """Return the lowest and the highest id that share leading bits with the own."""
        shift = _ID_BITS - bits
        low = self._me >> shift << shift
        return low.to_bytes(16, "big"), (low | (1 << shift) - 1).to_bytes(16, "big")

    def _ranges_elsewhere(self) -> Iterator[int]:
        """Yield the ranges beside the own at every depth that the zone does not cover."""
        zone_bits = self._zone_bits()
        for depth in range(1, MAX_DEPTH + 1):
            if 4 * (depth - 1) >= zone_bits:
                return
            for scope in child_scopes(scope_of(self._members.node_id, depth - 1)):
                if self._shared_bits(bounds(scope)[0]) < min(zone_bits, 4 * depth):
                    yield scope

    def _zone_bits(self) -> int:
        """Return how many leading bits of the id the zone's members share."""
        if self._bits_for != self._members.changes:
            self._bits, self._bits_for = self._measured_bits(), self._members.changes
        return self._bits

    def _measured_bits(self) -> int:
        for bits in range(_SCOPE_BITS):
            depth = -(-bits // 4)
            spread = 1 << 4 * depth - bits  # ranges of that depth that make up the zone
            first = (scope_of(self._members.node_id, depth) // spread) * spread
            if self._known(first, first + spread - 1) <= self._config.direct_members:
                return bits
        return _SCOPE_BITS

    def _known(self, first: int, last: int) -> int:
        """Return how many members adjacent scopes have, with those only heard of."""
        count = self._members.tree.count
        known = sum(count(scope) for scope in range(first, last + 1))
        return known + len(self._heard(bounds(first)[0], bounds(last)[1]))

    def _heard(self, low: bytes, high: bytes) -> list[bytes]:
        return [one for one in self._members.heard if low <= one <= high]

    def _shared_bits(self, node_id: bytes) -> int:
        return _ID_BITS - (int.from_bytes(node_id, "big") ^ self._me).bit_length()
