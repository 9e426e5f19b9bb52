"""Lazy announcements: in a large fleet a few hear of every batch by number, and ask if they miss it
(Leitao et al. 2007, "Epidemic broadcast trees").

Owns what was heard of and has not come. Never holds a batch. Invariant: what is remembered is
bounded, in all and per announcer, and given up after a few tries: repair finds the rest.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf

from crdt.clock import Instant
from crdt.log import Batch
from crdt.store import Store
from gossip.broadcast import STATE, VOLATILE, Link, Links
from gossip.codec import encode_message
from gossip.config import GossipConfig
from gossip.members import Members
from gossip.messages import LAZY_ENTRIES, Have, Payload, Want
from gossip.neighbours import Neighbours

Version = tuple[bytes, int, int]  # origin, epoch, sequence

_COMPANY_S = 0.02  # how long an announcement waits for others
_MISSING_LIMIT, _MISSING_PER_PEER = 1024, 128
_ANNOUNCERS = 4  # kept of one version
_TRIES = 4
_FIRST_RTT_S = 0.1


@dataclass(slots=True)
class _Missing:
    announcers: list[bytes]
    due_s: float
    tries: int = 0


class Announcements:
    """Tell a few what arrived; ask for what others have."""

    def __init__(
        self,
        config: GossipConfig,
        rng: random.Random,
        store: Store,
        members: Members,
        links: Links,
        neighbours: Neighbours,
        count: Callable[[str], None],
    ) -> None:
        self._config = config
        self._rng = rng
        self._store = store
        self._members = members
        self._links = links
        self._neighbours = neighbours
        self._count = count
        self._fresh: dict[Version, frozenset[bytes]] = {}  # to announce -> who knows
        self._rescued: set[Version] = set()  # of those: what had to be asked for
        self._announce_s = inf
        self._missing: dict[Version, _Missing] = {}
        self._agenda: list[tuple[float, Version]] = []  # a heap; stale where due_s differs

    def took(self, batch: Batch, knowers: frozenset[bytes], now: Instant) -> None:
        """Announce a new batch soon, but not to `knowers`.

        What the tree did not bring it did not bring to the neighbours in the range either, most
        likely: they are all told.
        """
        version = (batch.origin, batch.epoch, batch.sequence)
        heard = self._missing.pop(version, None)
        if len(self._fresh) >= LAZY_ENTRIES:
            self._count("announcements_dropped")  # a repair brings in more than can be news
            return
        if heard is not None:
            knowers = knowers.union(heard.announcers)
            if heard.tries:
                self._rescued.add(version)
        self._fresh[version] = knowers
        self._announce_s = min(self._announce_s, now.mono_s + _COMPANY_S)

    def on_have(self, link: Link, message: Have, now: Instant) -> None:
        """Note what to ask for unless it comes by itself soon."""
        room = min(_MISSING_LIMIT - len(self._missing), self._room_of(link.node_id))
        for version in message.versions:
            if self._store.has(*version):
                continue
            missing = self._missing.get(version)
            if missing is not None:
                if len(missing.announcers) < _ANNOUNCERS:
                    missing.announcers.append(link.node_id)
            elif room > 0:
                room -= 1
                self._missing[version] = _Missing([link.node_id], inf)
                self._ask_at(version, now.mono_s + self._config.lazy_delay_s)

    def on_want(self, link: Link, message: Want, now: Instant) -> None:
        """Send the batches that are held, with their origins' keys."""
        for version in message.versions:
            raw = self._store.batch(*version)
            if raw is not None:
                self._count("lazy_batches")
                key = self._store.key_of(version[0]) or b""
                self._links.offer(link, raw, encode_message(Payload(raw, key, 0)), STATE)

    def deadline(self) -> float:
        """Return when something is to be announced or asked for, in mono seconds."""
        agenda = self._agenda
        while agenda and not self._is_due(*agenda[0]):
            heappop(agenda)
        return min(self._announce_s, agenda[0][0]) if agenda else self._announce_s

    def tick(self, now: Instant) -> None:
        """Announce what is new; ask for what did not come."""
        if now.mono_s < self.deadline():
            return
        if now.mono_s >= self._announce_s:
            self._announce()
        wants: dict[bytes, list[Version]] = {}
        while self._agenda and self._agenda[0][0] <= now.mono_s:
            due_s, version = heappop(self._agenda)
            if self._is_due(due_s, version):
                announcer = self._next_announcer(version, now)
                if announcer is not None:
                    wants.setdefault(announcer, []).append(version)
        for announcer, versions in wants.items():
            link = self._links.get(announcer)
            assert link is not None
            for start in range(0, len(versions), LAZY_ENTRIES):
                data = encode_message(Want(tuple(versions[start : start + LAZY_ENTRIES])))
                self._count("wants")
                self._links.offer(link, data, data, STATE)

    def _announce(self) -> None:
        fresh, rescued = self._fresh, self._rescued
        self._fresh, self._rescued, self._announce_s = {}, set(), inf
        told = {link.node_id: (link, list(fresh)) for link in self._few()}
        if rescued:
            for member in self._neighbours.within(self._neighbours.leaf()):
                link = self._links.get(member.node_id)
                if link is not None:
                    told.setdefault(
                        member.node_id, (link, [one for one in fresh if one in rescued])
                    )
        for node_id, (link, versions) in told.items():
            unknown = [version for version in versions if node_id not in fresh[version]]
            if unknown:
                self._count("haves")
                data = encode_message(Have(tuple(unknown)))
                self._links.offer(link, data, data, VOLATILE)  # a hint: others give it, too

    def _few(self) -> list[Link]:
        """Draw those that are told of everything, of all peers that count as live."""
        links = list(self._links)
        few = self._rng.sample(links, min(self._config.lazy_peers, len(links)))
        if all(map(self._is_live, few)):
            return few
        live = list(filter(self._is_live, links))  # seldom, and O(links)
        return self._rng.sample(live, min(self._config.lazy_peers, len(live)))

    def _is_live(self, link: Link) -> bool:
        member = self._members.get(link.node_id)
        return member is not None and member.live

    def _next_announcer(self, version: Version, now: Instant) -> bytes | None:
        """Return whom to ask for a version now; None, having forgotten it, if that is over."""
        missing = self._missing[version]
        linked = [one for one in missing.announcers if self._links.get(one) is not None]
        if self._store.has(*version) or missing.tries >= _TRIES or not linked:
            del self._missing[version]
            return None
        announcer = linked[missing.tries % len(linked)]
        missing.tries += 1
        link = self._links.get(announcer)
        rtt_s = link.rtt_s if link is not None and link.rtt_s is not None else _FIRST_RTT_S
        pause_s = 4 * max(rtt_s, self._config.lazy_delay_s, self._config.resend_floor_s)
        self._ask_at(version, now.mono_s + pause_s)
        return announcer

    def _ask_at(self, version: Version, due_s: float) -> None:
        self._missing[version].due_s = due_s
        heappush(self._agenda, (due_s, version))

    def _is_due(self, due_s: float, version: Version) -> bool:
        missing = self._missing.get(version)
        return missing is not None and missing.due_s == due_s

    def _room_of(self, node_id: bytes) -> int:
        """Return how many more versions a peer may announce that nobody else did before it."""
        if len(self._missing) < _MISSING_PER_PEER:
            return _MISSING_PER_PEER - len(self._missing)
        first = sum(1 for one in self._missing.values() if one.announcers[0] == node_id)
        return _MISSING_PER_PEER - first
