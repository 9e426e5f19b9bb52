"""A fleet that has known itself for long, without the handshakes and claims that led there.

Owns what its nodes share: each has a table of all members, and 10,000 tables of 10,000 would fit
no machine, so all look at one table and keep only what differs from it. Reaches into the private
parts of nodes, which nothing else outside gossip may do. Invariants: what one node learns later, no
other sees; links are those that handshakes would have made, keys and counters included.
"""

import random
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any, TypeVar, cast

from crdt.clock import Instant
from gossip.handshake import CONFIRM, Established, Handshake, _Body, _Opened
from gossip.members import ALIVE, Member, Members
from gossip.node import GossipNode
from gossip.spread import LOOK_CALLS

K = TypeVar("K")
V = TypeVar("V")


class Overlay(MutableMapping[K, V]):
    """A mapping that shares a base with others and keeps its changes to itself."""

    __slots__ = ("_base", "_changed", "_gone")

    def __init__(self, base: dict[K, V], gone: Iterable[K] = ()) -> None:
        self._base = base
        self._changed: dict[K, V] = {}
        self._gone = dict.fromkeys(gone)

    def __getitem__(self, key: K) -> V:
        if key in self._changed:
            return self._changed[key]
        if key in self._gone:
            raise KeyError(key)
        return self._base[key]

    def get(self, key: K, default: Any = None) -> Any:
        """Return a value or the default; quicker than what the base class offers."""
        if key in self._changed:
            return self._changed[key]
        return default if key in self._gone else self._base.get(key, default)

    def __setitem__(self, key: K, value: V) -> None:
        self._changed[key] = value
        self._gone.pop(key, None)

    def __delitem__(self, key: K) -> None:
        if key not in self:
            raise KeyError(key)
        self._changed.pop(key, None)
        if key in self._base:
            self._gone[key] = None

    def __contains__(self, key: object) -> bool:
        return key in self._changed or (key in self._base and key not in self._gone)

    def __iter__(self) -> Iterator[K]:
        yield from (key for key in self._base if key not in self._gone)
        yield from (key for key in self._changed if key not in self._base)

    def __len__(self) -> int:
        fresh = sum(key not in self._base for key in self._changed)
        return len(self._base) - len(self._gone) + fresh


def acquaint(tables: list[Members], now: Instant) -> None:
    """Have every node hold every other's claim, as if it had met them all; O(n) for each."""
    first, *others = tables
    for one in others:
        assert first.accept(one.own, now, met=True)
    own = first.own
    everybody = dict(first._table)
    everybody[first.node_id] = Member(first.node_id, own, ALIVE, now.mono_s)
    ranges = dict(first.tree._nodes)
    members = sorted(everybody.values(), key=lambda member: member.node_id)
    places = {member.node_id: place for place, member in enumerate(members)}
    for one in tables:
        one._table = cast(dict[bytes, Member], Overlay(everybody, [one.node_id]))
        one.tree._nodes = cast(dict[int, tuple[int, int]], Overlay(ranges))
        # the list of all but oneself, which would be built member by member otherwise
        place = places[one.node_id]
        one._live = members[:place] + members[place + 1 :]
        one.changes += 1


def connect(nodes: list[GossipNode], now: Instant, rng: random.Random, rtt_s: float) -> None:
    """Give every node the links that it wants, as if it had called its neighbours look by look.

    Nobody says anything: neither greetings nor pings. `rtt_s` is what the handshakes would have
    measured. O(links).
    """
    by_id = {node._members.node_id: node for node in nodes}
    lacking = nodes
    while lacking:
        calls = []
        for node in lacking:
            missing = list(node._spread.neighbours.missing(rng))
            called = rng.sample(missing, min(LOOK_CALLS, len(missing)))
            calls += [(node, by_id[member.node_id]) for member in called]
        for one, other in calls:
            if one._links.get(other._members.node_id) is None:
                _link(one, other, now, rtt_s)
        lacking = list({node._members.node_id: node for node, _ in calls}.values())


def _link(one: GossipNode, other: GossipNode, now: Instant, rtt_s: float) -> None:
    mine, theirs = _made(one, other, now, rtt_s), _made(other, one, now, rtt_s)
    mine.channel.remote, theirs.channel.remote = theirs.channel.local, mine.channel.local
    for node, made in ((one, mine), (other, theirs)):
        node._links.heard(node._links.open(made), now)
        node._probing._join_round(made.node_id)


def _made(node: GossipNode, peer: GossipNode, now: Instant, rtt_s: float) -> Established:
    """Return what a node makes of a handshake's last datagram from a peer."""
    here: Handshake = node._contact._handshake
    there: Handshake = peer._contact._handshake
    low, high = there._versions
    who = (there._identity.public_key, there._exchange.public, there._boot)
    body = _Body(CONFIRM, low, high, *who, b"", b"", here._boot, b"", 0)
    version = min(high, here._versions[1])
    opened = _Opened(body, peer._members.node_id, here.keys.current, version, b"", b"")
    own = peer._members.own
    return here._establish(opened, (own.host, own.port), now, None, now.mono_s - rtt_s)
