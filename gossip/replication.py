"""What goes into the replica and what leaves it: peers' batches in, this node's own writes out.

Owns the write law and which commits wait for it; never the replica (crdt.store), nor who is told
(spread). Invariant: of this node's own writes nothing is visible or sent before it is durable.
"""

from collections.abc import Callable
from math import inf
from typing import Any

from crdt.causal import node_id_of
from crdt.clock import Instant
from crdt.codec import origin_of
from crdt.log import Batch, MergeStatus
from crdt.store import Merge, Store
from gossip.antientropy import Repair
from gossip.broadcast import Link, Links
from gossip.config import GossipConfig
from gossip.events import Output, Persist, StateChanged
from gossip.forgetting import Forgetting
from gossip.members import Members
from gossip.messages import Evidence, Payload
from gossip.pacing import WriteLaw
from gossip.spread import ALL, Spread


class Replication:
    """Give batches to the store, and the store's batches to the fleet."""

    def __init__(
        self,
        config: GossipConfig,
        store: Store,
        members: Members,
        links: Links,
        spread: Spread,
        repair: Repair,
        emit: Callable[[Output], None],
        count: Callable[[str], None],
    ) -> None:
        self._store = store
        self._members = members
        self._links = links
        self._spread = spread
        self._repair = repair
        self._emit = emit
        self._count = count
        self._forgetting = Forgetting(config, store, members, count)
        self._law = WriteLaw(config)
        self._wanted = False
        self._commit_s = inf

    def deadline(self) -> float:
        """Return when a commit that waits may go, in mono seconds."""
        return self._commit_s

    def tick(self, now: Instant) -> None:
        """Commit what waited; show what has become visible by time alone."""
        self._commit(now)
        self._changed(self._store.mature(now))

    def forget(self, now: Instant) -> None:
        """Commit what makes something forgotten, once this node is known not to lack its past."""
        if self._repair.agreed and not self._wanted and self._forgetting.tick(now):
            self.commit(now)

    def commit(self, now: Instant) -> None:
        """Commit the staged writes as soon as the write law allows."""
        self._wanted = True
        self._commit(now)

    def persisted(self, batch: Batch, now: Instant) -> None:
        """Make a durable batch visible, and send it to all."""
        self._changed(self._store.persisted(batch, now))
        self._spread.batch(batch, b"", ALL, now)

    def on_payload(self, link: Link, message: Payload, now: Instant) -> None:
        """Take a batch, and pass it on if it is news."""
        merge = self._taken(link, message, self._store.merge, now)
        if merge.status is MergeStatus.NEW and merge.batch is not None:
            key = message.public_key
            self._spread.batch(merge.batch, key, message.scope, now, link.node_id)
            self._repair.on_news(link, merge.batch.origin, now)

    def on_evidence(self, link: Link, message: Evidence, now: Instant) -> None:
        """Take one of the two batches that prove a fork."""
        self._taken(link, message, self._store.testify, now)

    def _taken(
        self, link: Link, message: Payload | Evidence, take: Callable[..., Merge], now: Instant
    ) -> Merge:
        """Give a batch to the store, with its origin's key if that is news and allowed."""
        origin, key = origin_of(message.raw), message.public_key
        known = self._members.claim_of(origin) or self._links.get(origin)
        merge = take(message.raw, now, b"" if known is None else known.public_key)
        stranger = merge.status is MergeStatus.UNKNOWN_KEY and node_id_of(key) == origin
        if stranger and self._links.may_introduce(link, now):
            merge = take(message.raw, now, key)
        in_vain = merge.status is MergeStatus.BAD_SIGNATURE
        if in_vain or (merge.status is MergeStatus.STALE and isinstance(message, Evidence)):
            self._links.fault(link, now)
        self._count("batches_" + merge.status.name.lower())
        self._changed(merge.changes)
        return merge

    def _commit(self, now: Instant) -> None:
        """Commit what is wanted and allowed, or note when to look again."""
        self._commit_s = inf
        if not self._wanted:
            return
        entries, sharing = self._store.staged, len(self._members.live()) + 1
        if self._law.grant(entries, sharing, now):
            self._wanted = False
            batches = self._store.commit(now)
            self._law.charge(max(0, sum(len(batch.entries) for batch in batches) - entries))
            for batch in batches:
                self._emit(Persist(batch))
        else:
            self._count("commits_delayed")
            self._commit_s = self._law.ready_s(entries, sharing, now)

    def _changed(self, changes: tuple[Any, ...]) -> None:
        if changes:
            self._emit(StateChanged(changes))
