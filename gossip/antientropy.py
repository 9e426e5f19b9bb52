"""Repair: make two replicas, or two rosters, equal when their summaries say that they are not.

The summary of everything is the root of a 16-way tree of sums over ranges of ids (crdt.ranges).
Two nodes that differ descend it: each message names the sums of one range's 16 parts, and the
answer goes on where they differ, until few enough are left to name them one by one on a page. So
d differences among N cost O(d log N) bytes.

Owns the decision to repair and the pages that compare; never the replica (crdt.store) nor the
table of members. Invariants: batches and claims travel verbatim, so whoever repairs vouches for
nothing; nobody descends with more than one peer at a time, nor answers one without limit.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from crdt.clock import Instant
from crdt.codec import DecodeError
from crdt.ranges import EVERYTHING, MAX_DEPTH, RangeTree, bounds, child_scopes, depth_of
from crdt.store import Store
from gossip.broadcast import REPAIR, Link, Links
from gossip.codec import encode_message
from gossip.config import GossipConfig
from gossip.limits import Rates
from gossip.members import DOWN, Members
from gossip.messages import (
    PAGE_ENTRIES,
    Announce,
    Evidence,
    Knowledge,
    Message,
    Payload,
    Roster,
    Suspect,
    Tree,
)

Entry = tuple[Any, ...]  # begins with an id
_PATIENCE = 2  # pings in a row that must differ: news in flight differs, too
_TURN_INTERVALS = 4  # the longest that one peer has our attention
_ANSWERS_PER_S, _ANSWERS_BURST = 64.0, 512.0  # trees and pages sent to one peer on its word
_GREETED = 4096
_YOUNG_INTERVALS = 5  # after its start, in which a node has a comparison with everybody it meets
_STRIDE = 13  # batches further on, where a log with gaps is begun to be sent


class Side(Protocol):
    """What is compared: the replica, or the roster."""

    name: str  # of its counter

    @property
    def tree(self) -> RangeTree:
        """Return the sums."""

    def entries(self, low: bytes, high: bytes) -> list[Entry]:
        """Return what is held from `low` to `high`, by id."""

    def sums_message(self, scope: int) -> Message:
        """Return the sums of a scope's parts."""

    def page(self, low: bytes, high: bytes, entries: Sequence[Entry], *, reply: bool) -> Message:
        """Return a page."""

    def supply(self, link: Link, mine: Entry, other: Entry | None) -> bool:
        """Send what a peer with this entry lacks; tell whether I lack something, too."""

    def dispute(self, link: Link, mine: Entry) -> None:
        """Say what I think of an id of which a peer may have the same entry, or an older one."""

    def useless(self, other: Entry) -> bool:
        """Tell whether I do not want what a peer holds of an id of which I hold nothing."""


class Replica:
    """The batches of all origins."""

    name = "repairs"

    def __init__(self, store: Store, links: Links, count: Callable[[str], None]) -> None:
        self._store = store
        self._links = links
        self._count = count
        self._turn = 0

    @property
    def tree(self) -> RangeTree:
        """Return the sums of the logs' digests."""
        return self._store.tree

    def entries(self, low: bytes, high: bytes) -> list[Entry]:
        """Return (origin, epoch, sequence, digest) of the origins from `low` to `high`."""
        return sorted(
            (origin, *known) for origin, known in self._store.knowledge(low, high).items()
        )

    def sums_message(self, scope: int) -> Tree:
        """Return the sums of a scope's parts."""
        return Tree(False, scope, self.tree.sums(scope))

    def page(self, low: bytes, high: bytes, entries: Sequence[Entry], *, reply: bool) -> Knowledge:
        """Return a page."""
        return Knowledge(low, high, reply, tuple(entries))

    def supply(self, link: Link, mine: Entry, other: Entry | None) -> bool:
        """Send the batches that the peer lacks, or the proof of their author's fork.

        With equal versions somebody has gaps: both send all that lives.
        """
        origin, version = mine[0], mine[1:3]
        key = self._store.key_of(origin) or b""
        proof = self._store.evidence(origin)
        for raw in proof:
            self._links.offer(link, b"E" + raw, encode_message(Evidence(raw, key)), REPAIR)
        if proof:
            return False
        gaps = other is not None and other[1:3] == version
        after = (0, 0) if other is None or gaps else other[1:3]
        batches = self._store.live_batches(origin, after)
        if gaps and batches:  # begin elsewhere each time: a queue may not take all of them
            self._turn = (self._turn + _STRIDE) % len(batches)
            batches = batches[self._turn :] + batches[: self._turn]
        for raw in batches:
            self._count("repair_batches")
            data = encode_message(Payload(raw, key if other is None else b"", 0))
            if not self._links.offer(link, raw, data, REPAIR):
                break
        return other is not None and other[1:3] >= version

    def dispute(self, link: Link, mine: Entry) -> None:
        """Say nothing: what is the same is the same."""

    def useless(self, other: Entry) -> bool:
        """Tell whether the origin's log of that epoch is retired."""
        return bool(other[1] <= self._store.retired(other[0]))


class Census:
    """The claims of all members."""

    name = "roster_repairs"

    def __init__(self, members: Members, links: Links) -> None:
        self._members = members
        self._links = links

    @property
    def tree(self) -> RangeTree:
        """Return the sums of the live members' marks."""
        return self._members.tree

    def entries(self, low: bytes, high: bytes) -> list[Entry]:
        """Return (id, incarnation, left) of the claims held from `low` to `high`."""
        return list(self._members.roster(low, high))

    def sums_message(self, scope: int) -> Tree:
        """Return the sums of a scope's parts."""
        return Tree(True, scope, self.tree.sums(scope))

    def page(self, low: bytes, high: bytes, entries: Sequence[Entry], *, reply: bool) -> Roster:
        """Return a page."""
        return Roster(low, high, reply, tuple(entries))

    def supply(self, link: Link, mine: Entry, other: Entry | None) -> bool:
        """Send a newer claim, but of the dead a doubt, and none of the gone to who forgot them."""
        if other is not None and other[1:] > mine[1:]:
            return True
        member = self._members.get(mine[0])
        present = member is None or member.live  # None: this node
        if present or (mine[2] and other is not None):
            claim = self._members.claim_of(mine[0])
            assert claim is not None
            self._links.offer(link, b"M" + mine[0], encode_message(Announce(claim, 0)), REPAIR)
        elif other is not None:
            self.dispute(link, mine)
        return False

    def dispute(self, link: Link, mine: Entry) -> None:
        """Say that a member is dead: who restarts meanwhile gets its claim, and not the rumour."""
        member = self._members.get(mine[0])
        if member is not None and member.state == DOWN:
            rumour = Suspect(mine[0], mine[1], self._members.node_id, 0)
            data, patient = encode_message(rumour), mine[0] != link.node_id
            self._links.offer(link, b"M" + mine[0], data, REPAIR, patient=patient)

    def useless(self, other: Entry) -> bool:
        """Tell whether it is the claim of somebody who left."""
        return bool(other[2])


class Comparison:
    """Compare one side with one peer at a time."""

    def __init__(
        self, config: GossipConfig, side: Side, links: Links, count: Callable[[str], None]
    ) -> None:
        self._config = config
        self._side = side
        self._links = links
        self._count = count
        self._differs = 0
        self._answers = Rates(_ANSWERS_PER_S, _ANSWERS_BURST)
        self._peer = b""  # one at a time: a newcomer would get all from everybody
        self._quiet_s = self._end_s = 0.0

    def observe(self, link: Link, *, same: bool, first: bool, now: Instant) -> None:
        """Judge a summary; begin to compare when they kept differing."""
        self._differs = 0 if same else self._differs + 1
        if same or not (first or self._differs >= _PATIENCE):
            return
        if self._free(now) and self.attend(link, now):
            self._count(self._side.name)
            self._descend(link, [EVERYTHING])

    def attend(self, link: Link, now: Instant) -> bool:
        """Turn to a peer, or stay with it; tell whether that can be."""
        if self._free(now):
            over_s = now.mono_s - self._end_s
            if link.node_id == self._peer and 0 <= over_s < self._config.probe_interval_s:
                return False  # it has had its turn; now the others
            self._peer = link.node_id
            self._end_s = now.mono_s + _TURN_INTERVALS * self._config.probe_interval_s
        if self._peer != link.node_id:
            return False
        self._quiet_s = now.mono_s + self._config.probe_interval_s / 2
        return True

    def heard(self, link: Link, now: Instant) -> None:
        """Stay with a peer that is sending what I lacked."""
        if link.node_id == self._peer and not self._free(now):
            self.attend(link, now)

    def on_tree(self, link: Link, message: Tree, now: Instant) -> None:
        """Go on where the sums differ. Raises DecodeError for a scope without parts."""
        if message.scope == 0 or depth_of(message.scope) == MAX_DEPTH:
            raise DecodeError("a scope without parts")
        if not self.attend(link, now):
            self._count("repairs_declined")
            return
        mine = self._side.tree.sums(message.scope)
        children = child_scopes(message.scope)
        differing = [
            child
            for child, one, other in zip(children, mine, message.sums, strict=True)
            if one != other
        ]
        self._descend(link, differing, now)

    def on_page(
        self,
        link: Link,
        low: bytes,
        high: bytes,
        entries: Sequence[Entry],
        reply: bool,
        now: Instant,
    ) -> None:
        """Send what the page's sender lacks, and what I hold myself where I lack something."""
        held = {entry[0]: entry for entry in self._side.entries(low, high)}
        if not self._answers.take(link.node_id, now, 1 + len(held) // PAGE_ENTRIES):
            self._count("repairs_declined")
            return
        theirs = {entry[0]: entry for entry in entries if low <= entry[0] <= high}
        lacking: list[bytes] = []
        for node_id, mine in held.items():
            if link.full(REPAIR):
                return
            other = theirs.pop(node_id, None)
            if other == mine:
                self._side.dispute(link, mine)
            elif self._side.supply(link, mine, other):
                lacking.append(node_id)
        lacking += [other[0] for other in theirs.values() if not self._side.useless(other)]
        if not lacking or reply:
            return
        if not self.attend(link, now):
            self._count("repairs_declined")
        elif 2 * len(lacking) > len(held):
            self._send_pages(link, low, high, list(held.values()), now, reply=True)
        else:
            for node_id in lacking:
                one = [held[node_id]] if node_id in held else []
                self._send_pages(link, node_id, node_id, one, now, reply=True)

    def _free(self, now: Instant) -> bool:
        return now.mono_s >= min(self._quiet_s, self._end_s)

    def _descend(self, link: Link, scopes: Sequence[int], now: Instant | None = None) -> None:
        """Send a page for each run of ranges with few ids, sums for each that has many."""
        run: list[int] = []
        run_count = 0
        for scope in scopes:
            count = self._side.tree.count(scope)
            few = count <= PAGE_ENTRIES or depth_of(scope) == MAX_DEPTH
            joins = few and run and run[-1] + 1 == scope and run_count + count <= PAGE_ENTRIES
            if run and not joins:
                self._send_run(link, run, now)
                run, run_count = [], 0
            if few:
                run.append(scope)
                run_count += count
            else:
                self._send(link, b"T%x" % scope, self._side.sums_message(scope), now)
        if run:
            self._send_run(link, run, now)

    def _send_run(self, link: Link, run: list[int], now: Instant | None) -> None:
        low, high = bounds(run[0])[0], bounds(run[-1])[1]
        entries = self._side.entries(low, high)
        self._send_pages(link, low, high, entries, now, reply=False)
        for mine in entries:
            self._side.dispute(link, mine)

    def _send_pages(
        self,
        link: Link,
        low: bytes,
        high: bytes,
        entries: list[Entry],
        now: Instant | None,
        *,
        reply: bool,
    ) -> None:
        mark = b"k" if reply else b"K"
        for first, last, part in _pages(entries, low, high):
            page = self._side.page(first, last, part, reply=reply)
            self._send(link, mark + first, page, now)

    def _send(self, link: Link, key: bytes, message: Message, now: Instant | None) -> None:
        """Queue a message; `now` where it answers one of the peer's."""
        if now is not None and not self._answers.take(link.node_id, now):
            self._count("repairs_declined")
            return
        key = self._side.name.encode() + key
        self._links.offer(link, key, encode_message(message), REPAIR)


class Repair:
    """Compare replicas and rosters with the peers."""

    def __init__(
        self,
        config: GossipConfig,
        store: Store,
        members: Members,
        links: Links,
        count: Callable[[str], None],
        now: Instant,
    ) -> None:
        self._store = store
        self._members = members
        self._young_s = now.mono_s + _YOUNG_INTERVALS * config.probe_interval_s
        self._state = Comparison(config, Replica(store, links, count), links, count)
        self._roster = Comparison(config, Census(members, links), links, count)
        self.agreed = False
        """Whether a live peer's replica was equal to ours at some time."""
        self.acquainted = False
        """Whether a peer knew the same members at some time."""
        self._greeted: dict[bytes, None] = {}

    def agrees(self, link: Link, fingerprint: bytes) -> bool:
        """Say whether a peer's replica equals ours."""
        same = fingerprint == self._store.fingerprint()
        if same and not self.agreed:
            member = self._members.get(link.node_id)
            self.agreed = member is not None and member.live
        return same

    def observe(self, link: Link, fingerprint: bytes, roster: bytes, now: Instant) -> None:
        """Judge the summaries in an ack; begin a repair when they kept differing."""
        first = link.boot not in self._greeted
        if first:
            self._greeted[link.boot] = None
            if len(self._greeted) > _GREETED:
                del self._greeted[next(iter(self._greeted))]
        same = self.agrees(link, fingerprint) or bool(self._store.evidence(link.node_id))
        # who is new begins at once; those who are not would all begin with it
        first = first and now.mono_s < self._young_s
        self._state.observe(link, same=same, first=first, now=now)
        same = roster == self._members.digest()
        self._roster.observe(link, same=same, first=first, now=now)
        self.acquainted = self.acquainted or same

    def on_knowledge(self, link: Link, page: Knowledge, now: Instant) -> None:
        """Send the batches that the page's sender lacks, and ask for those that I lack."""
        self._state.on_page(link, page.low, page.high, page.entries, page.reply, now)

    def on_roster(self, link: Link, page: Roster, now: Instant) -> None:
        """Send the claims that the page's sender lacks, and ask for those that I lack."""
        self._roster.on_page(link, page.low, page.high, page.entries, page.reply, now)

    def on_news(self, link: Link, origin: bytes, now: Instant) -> None:
        """Note a batch that was new; of another's it is what a repair brings, most likely."""
        if origin != link.node_id:
            self._state.heard(link, now)

    def on_tree(self, link: Link, message: Tree, now: Instant) -> None:
        """Go on where the sums differ. Raises DecodeError for a scope without parts."""
        (self._roster if message.roster else self._state).on_tree(link, message, now)


def _pages(
    entries: Sequence[Entry], low: bytes, high: bytes
) -> Iterator[tuple[bytes, bytes, Sequence[Entry]]]:
    """Cut sorted entries into pages whose bounds cover low..high without a gap."""
    starts = range(0, max(1, len(entries)), PAGE_ENTRIES)
    for start in starts:
        end = start + PAGE_ENTRIES
        first = low if start == 0 else entries[start][0]
        last = high
        if end < len(entries):
            last = (int.from_bytes(entries[end][0], "big") - 1).to_bytes(16, "big")
        yield first, last, entries[start:end]
