"""Spreading news: straight to all in a small fleet, along a tree of id ranges in a large one.

Whoever sends news to a *scope* (a range of ids, crdt.ranges) either tells all in it, or makes one
member of each of its 16 child ranges responsible for that range (El-Ansary et al. 2003, "Efficient
broadcast in structured peer-to-peer networks"). Nobody has to agree with anybody on a tree: a
member that the sender does not know is missed, and found by announcements and repair.

Owns who is told what, and what waits for a link; never when (broadcast does), nor what a message
means. Invariant: nothing goes back to where it came from.
"""

import random
from collections.abc import Callable
from math import inf

from crdt.clock import Instant
from crdt.log import Batch
from crdt.ranges import MAX_DEPTH, child_scopes, depth_of, scope_of
from crdt.store import Store
from gossip.announcements import Announcements
from gossip.broadcast import STATE, Link, Links
from gossip.codec import encode_message
from gossip.config import GossipConfig
from gossip.events import Address
from gossip.members import ALIVE, Member, Members
from gossip.messages import Message, Payload
from gossip.neighbours import Neighbours

ALL = 1  # the scope of the whole fleet
_WAITING_PEERS, _WAITING_ITEMS, _WAITING_S = 64, 16, 5.0
_LOOK_S, LOOK_CALLS = 3.0, 16
_SOON_S = 0.02, 0.2  # after hearing of somebody; by then the rest of a roster has come, mostly
_RANDOM_HEADS = 0.125  # so that a near one that drops everything is not chosen for ever
_NEAR, _NEAR_S = 2.0, 0.001  # so many times as far as the nearest, and this on top

_Item = tuple[bytes, int, bool]  # encoded message, priority, whether it is patient


class Spread:
    """Tell the members in a scope."""

    def __init__(
        self,
        config: GossipConfig,
        rng: random.Random,
        store: Store,
        members: Members,
        links: Links,
        call: Callable[[Address, Instant], None],
        call_claimed: Callable[[Address, Instant], None],
        silent: Callable[[bytes], None],
        count: Callable[[str], None],
    ) -> None:
        self._config = config
        self._rng = rng
        self._members = members
        self._links = links
        self._call = call
        self._call_claimed = call_claimed
        self._silent = silent  # told of a live member that was called in vain
        self._called: set[bytes] = set()  # at the last look
        self.neighbours = Neighbours(config, members, links)
        self.announcements = Announcements(
            config, rng, store, members, links, self.neighbours, count
        )
        self._ranks = sorted(
            (priority, tuple(prefix for prefix, other in config.priorities if other == priority))
            for priority in {priority for _, priority in config.priorities}
        )
        self._waiting: dict[bytes, tuple[float, dict[bytes, _Item]]] = {}
        self._look_s = 0.0
        self._hurried = False  # whether that look wants the timer
        self._more = False  # whether more are missing than were called
        self._settled: tuple[bytes, int] | None = None  # who was live, and which links, ...
        # ... when no neighbour was missing

    def send(
        self,
        make: Callable[[int], Message],
        key: bytes,
        manner: Callable[[bytes], tuple[int, bool]],
        scope: int,
        now: Instant,
        but: tuple[bytes, ...] = (),
    ) -> list[bytes]:
        """Queue `make(what the receiver shall cover)` for the live members in `scope`, not `but`.

        `manner` tells the priority for a receiver, and whether it is patient (`Links.offer`).
        Return whom it goes to. O(members in scope), O(log n) of them in a large fleet.
        """
        if scope == 0:
            return []
        targets = self._members.live() if scope == ALL else self.neighbours.within(scope)
        targets = [one for one in targets if one.node_id not in but]
        encoded: dict[int, bytes] = {}
        told: list[bytes] = []
        for member, rest in self._cover(scope, targets):
            if rest not in encoded:
                encoded[rest] = encode_message(make(rest))
            self._offer(member, key, (encoded[rest], *manner(member.node_id)), now)
            told.append(member.node_id)
        return told

    def batch(
        self, batch: Batch, public_key: bytes, scope: int, now: Instant, source: bytes = b""
    ) -> None:
        """Send a batch, new here, to the scope, and announce it to some in a large fleet."""
        large = not self.neighbours.all
        if scope == 0 and not large:
            return
        rank = self._rank(batch), False
        told = self.send(
            lambda rest: Payload(batch.raw, public_key, rest),
            batch.raw,
            lambda _: rank,
            scope,
            now,
            (source, batch.origin),
        )
        if large:
            self.announcements.took(batch, frozenset((source, batch.origin, *told)), now)

    def met(self, node_id: bytes, now: Instant) -> None:
        """Take note of a new claim: its subject is called soon, if a link is wanted.

        Not at once: who is new hears of everybody one by one, and takes the fleet for a small one,
        in which all are linked.
        """
        if self._links.get(node_id) is None and self.neighbours.wants(node_id):
            self._settled = None
            self._hurry(now)

    def deadline(self) -> float:
        """Return when missing neighbours are to be called, in mono seconds."""
        return self._look_s if self._hurried else inf

    def on_link(self, link: Link, now: Instant) -> None:
        """Send what waited for this link."""
        if self._more:  # the next are called when the ones before have answered
            self._hurry(now)
        until_s, items = self._waiting.pop(link.node_id, (0.0, {}))
        if now.mono_s < until_s:
            for key, (data, priority, patient) in items.items():
                self._links.offer(link, key, data, priority, patient=patient)

    def tick(self, now: Instant) -> None:
        """Now and then call neighbours that are missing."""
        if now.mono_s >= self._look_s:  # mostly whoever wakes this node: that needs no deadline
            waited = not self._hurried
            self._look_s, self._hurried = now.mono_s + _LOOK_S, False
            self._call_missing(now, waited)

    def _hurry(self, now: Instant) -> None:
        if not self._hurried:
            self._hurried = True
            self._look_s = min(self._look_s, now.mono_s + self._rng.uniform(*_SOON_S))

    def _call_missing(self, now: Instant, waited: bool) -> None:
        seen = self._members.digest(), self._links.changes
        if seen == self._settled:
            return
        missing = list(self.neighbours.missing(self._rng))
        self._settled = None if missing else seen
        self._more = len(missing) > LOOK_CALLS
        called = self._rng.sample(missing, min(LOOK_CALLS, len(missing)))
        for member in called:
            (self._call if member.live else self._call_claimed)(member.address, now)
            if waited and member.live and member.node_id in self._called:
                self._silent(member.node_id)
        self._called = {member.node_id for member in called}

    def _rank(self, batch: Batch) -> int:
        """Return the priority of a batch's most urgent entry."""
        for priority, prefixes in self._ranks:
            if any(entry.key.startswith(prefixes) for entry in batch.entries):
                return priority
        return STATE

    def _cover(self, scope: int, targets: list[Member]) -> list[tuple[Member, int]]:
        """Return who among the targets is told, and the scope that each shall cover."""
        depth = depth_of(scope)
        few = self.neighbours.all if depth == 0 else len(targets) <= self._config.leaf_members
        if few or depth == MAX_DEPTH:
            return [(member, 0) for member in targets]
        groups: dict[int, list[Member]] = {child: [] for child in child_scopes(scope)}
        for member in targets:
            groups[scope_of(member.node_id, depth + 1)].append(member)
        mine = scope_of(self._members.node_id, depth + 1)
        covered: list[tuple[Member, int]] = []
        for child, group in groups.items():
            if child == mine:
                covered += self._cover(child, group)
            elif group:
                covered.append((self._head(group), child if len(group) > 1 else 0))
        return covered

    def _head(self, group: list[Member]) -> Member:
        """Choose who covers a range: alive, with a link that works, mostly a near one."""
        linked: list[tuple[Member, Link]] = [
            (member, link)
            for member in group
            if (link := self._links.get(member.node_id)) is not None
        ]
        if not linked:
            return self._rng.choice(group)
        sound = [one for one in linked if one[0].state == ALIVE and one[1].misses < 2]
        linked = sound or linked
        if self._rng.random() < _RANDOM_HEADS:
            return self._rng.choice(linked)[0]
        times_s = [inf if link.rtt_s is None else link.rtt_s for _, link in linked]
        far_s = min(times_s) * _NEAR + _NEAR_S
        # one of the near: were it the nearest, a fleet in one place would choose the same for all
        near = [one for one, time_s in zip(linked, times_s, strict=True) if time_s <= far_s]
        return self._rng.choice(near)[0]

    def _offer(self, member: Member, key: bytes, item: _Item, now: Instant) -> None:
        link = self._links.get(member.node_id)
        if link is not None:
            data, priority, patient = item
            self._links.offer(link, key, data, priority, patient=patient)
            return
        self._call(member.address, now)
        until_s, items = self._waiting.pop(member.node_id, (0.0, {}))
        if now.mono_s >= until_s:
            items = {}
        items[key] = item
        while len(items) > _WAITING_ITEMS:
            del items[next(iter(items))]
        self._waiting[member.node_id] = (now.mono_s + _WAITING_S, items)
        while len(self._waiting) > _WAITING_PEERS:
            del self._waiting[next(iter(self._waiting))]
