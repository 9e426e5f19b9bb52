"""Repair: make two replicas equal when their fingerprints say that they are not.

Owns the decision to repair and the pages that compare; never the replica itself (crdt.store).
Invariant: batches and claims travel verbatim, so whoever repairs vouches for nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from crdt.clock import Instant
from crdt.store import Store
from gossip.broadcast import REPAIR, Link, Links
from gossip.codec import encode_message
from gossip.config import GossipConfig
from gossip.members import Members
from gossip.messages import PAGE_ENTRIES, Announce, Knowledge, Payload, Roster

_FIRST, _LAST = bytes(16), b"\xff" * 16
_Entry = tuple[Any, ...]  # begins with an id
_PATIENCE = 2  # pings in a row that must differ: news in flight differs, too


class Repair:
    """Compare with one peer at a time, and send what it lacks."""

    def __init__(
        self,
        config: GossipConfig,
        store: Store,
        members: Members,
        links: Links,
        count: Callable[[str], None],
    ) -> None:
        self._config = config
        self._store = store
        self._members = members
        self._links = links
        self._count = count
        self.agreed = False
        """Whether a live peer's replica was equal to ours at some time."""
        self._state_differs = 0
        self._roster_differs = 0
        self._state_busy_s = 0.0  # one repair at a time: a newcomer would get all from everybody
        self._roster_busy_s = 0.0
        self._greeted: dict[bytes, None] = {}

    def agrees(self, fingerprint: bytes) -> bool:
        """Say whether a live peer's replica equals ours."""
        same = fingerprint == self._store.fingerprint()
        self.agreed = self.agreed or same
        return same

    def observe(self, link: Link, fingerprint: bytes, roster: bytes, now: Instant) -> None:
        """Judge the summaries in an ack; begin a repair when they kept differing."""
        first = link.boot not in self._greeted
        if first:
            self._greeted[link.boot] = None
            if len(self._greeted) > 4096:
                del self._greeted[next(iter(self._greeted))]
        pause_s = self._config.probe_interval_s / 2
        same = self.agrees(fingerprint)
        self._state_differs = 0 if same else self._state_differs + 1
        wanted = not same and (first or self._state_differs >= _PATIENCE)
        if wanted and now.mono_s >= self._state_busy_s:
            self._state_busy_s = now.mono_s + pause_s
            self._count("repairs")
            self._send_knowledge(link, _FIRST, _LAST, reply=False)
        same = roster == self._members.digest()
        self._roster_differs = 0 if same else self._roster_differs + 1
        wanted = not same and (first or self._roster_differs >= _PATIENCE)
        if wanted and now.mono_s >= self._roster_busy_s:
            self._roster_busy_s = now.mono_s + pause_s
            self._count("roster_repairs")
            self._send_roster(link, _FIRST, _LAST, reply=False)

    def on_knowledge(self, link: Link, page: Knowledge, now: Instant) -> None:
        """Send what the page's sender lacks, and my own page if I lack something."""
        theirs = {entry[0]: entry[1:] for entry in page.entries}
        lacking = False
        for origin, mine in sorted(self._store.knowledge().items()):
            if not page.low <= origin <= page.high:
                continue
            other = theirs.pop(origin, None)
            if other is None:
                self._send_batches(link, origin, (0, 0), with_key=True)
            elif other != mine:
                # with equal versions somebody has gaps: both send all that lives. Behind a newer
                # version there is nothing to send but the proof of a fork, if I have one
                lacking = lacking or other[:2] >= mine[:2]
                after = (0, 0) if other[:2] == mine[:2] else other[:2]
                self._send_batches(link, origin, after, with_key=False)
        if (lacking or theirs) and not page.reply:
            self._send_knowledge(link, page.low, page.high, reply=True)

    def on_roster(self, link: Link, page: Roster, now: Instant) -> None:
        """Send the newer claims, and my own page if I lack some."""
        theirs = {node_id: (incarnation, left) for node_id, incarnation, left in page.entries}
        lacking = False
        for node_id, incarnation, left in self._members.roster():
            if not page.low <= node_id <= page.high:
                continue
            other = theirs.pop(node_id, (-1, False))
            if other < (incarnation, left):
                claim = self._members.claim_of(node_id)
                assert claim is not None
                data = encode_message(Announce(claim, False))
                self._links.offer(link, b"M" + node_id, data, REPAIR)
            lacking = lacking or other > (incarnation, left)
        if (lacking or theirs) and not page.reply:
            self._send_roster(link, page.low, page.high, reply=True)

    def _send_batches(
        self, link: Link, origin: bytes, after: tuple[int, int], *, with_key: bool
    ) -> None:
        key = (self._store.key_of(origin) or b"") if with_key else b""
        for raw in self._store.live_batches(origin, after):
            self._count("repair_batches")
            if not self._links.offer(link, raw, encode_message(Payload(raw, key)), REPAIR):
                return

    def _send_knowledge(self, link: Link, low: bytes, high: bytes, *, reply: bool) -> None:
        entries = sorted(
            (origin, *known)
            for origin, known in self._store.knowledge().items()
            if low <= origin <= high
        )
        for first, last, part in _pages(entries, low, high):
            page = Knowledge(first, last, reply, tuple(part))
            self._links.offer(link, b"K" + first, encode_message(page), REPAIR)

    def _send_roster(self, link: Link, low: bytes, high: bytes, *, reply: bool) -> None:
        entries = [entry for entry in self._members.roster() if low <= entry[0] <= high]
        for first, last, part in _pages(entries, low, high):
            page = Roster(first, last, reply, tuple(part))
            self._links.offer(link, b"R" + first, encode_message(page), REPAIR)


def _pages(
    entries: Sequence[_Entry], low: bytes, high: bytes
) -> Iterator[tuple[bytes, bytes, Sequence[_Entry]]]:
    """Cut sorted entries into pages whose bounds cover low..high without a gap."""
    starts = range(0, max(1, len(entries)), PAGE_ENTRIES)
    for start in starts:
        end = start + PAGE_ENTRIES
        first = low if start == 0 else entries[start][0]
        last = high
        if end < len(entries):
            last = (int.from_bytes(entries[end][0], "big") - 1).to_bytes(16, "big")
        yield first, last, entries[start:end]
