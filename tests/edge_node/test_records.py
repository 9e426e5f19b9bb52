"""Owner records that are followed: read again when they change, and only then."""

from typing import Any

import pytest

from crdt import HybridClock, Instant, Store
from crdt.state import KEPT_CHANGES
from edge_node.fleet.records import Records
from gossip import Identity, verify
from tests.edge_node.test_hosts import Site, tell


class Mirror:
    """What a follower has been given, and how often it was told of anything."""

    def __init__(self, store: Store, prefix: str = "k/") -> None:
        self.store, self.prefix = store, prefix
        self.held: dict[tuple[bytes, str], Any] = {}
        self.told = 0
        self.records = Records(store, prefix, self._take)

    def _take(self, origin: bytes, key: str, value: Any) -> None:
        self.told += 1
        if value is None:
            del self.held[origin, key]  # never told of what it does not have
        else:
            self.held[origin, key] = value

    def look(self) -> bool:
        """Look, and check that nothing is missed."""
        changed = self.records.look()
        found = {(origin, key): value for origin, key, value in self.store.owners(self.prefix)}
        assert self.held == found
        return changed


def test_what_comes_changes_and_goes_is_told_once() -> None:
    a, b = Site("a"), Site("b")
    mirror = Mirror(a.store)
    assert not mirror.look()
    a.store.set_owner("k/1", 1)  # by its own hand
    b.store.set_owner("k/1", 2)  # by a peer
    b.store.set_owner("k/2", 3)
    tell(a, b)
    assert mirror.look()
    assert mirror.told == 3
    b.store.set_owner("k/2", 4)
    b.store.delete_owner("k/1")
    tell(a, b)
    assert mirror.look()
    assert mirror.told == 5
    assert not mirror.look()
    assert mirror.held == {(a.id, "k/1"): 1, (b.id, "k/2"): 4}


def test_a_change_of_something_else_reads_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = Site("a"), Site("b")
    b.store.set_owner("k/1", 1)
    tell(a, b)
    mirror = Mirror(a.store)
    mirror.look()
    reads: list[object] = []
    for name in ("owner", "owners"):
        monkeypatch.setattr(a.store, name, lambda *about: reads.append(about))
    b.store.set_owner("other", 1)
    b.store.set_fleet("k/1", 1, b.now())
    tell(a, b)
    assert not mirror.records.look()
    assert not reads


def test_one_record_is_read_where_one_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = (Site(name) for name in "abc")
    for site in (a, b, c):
        site.store.set_owner("k/1", 1)
    tell(a, b, c)
    mirror = Mirror(a.store)
    mirror.look()
    monkeypatch.setattr(a.store, "owners", None)
    b.store.set_owner("k/1", 2)
    tell(a, b, c)
    assert mirror.records.look()
    assert mirror.told == 4
    assert mirror.held[b.id, "k/1"] == 2


def test_what_the_journal_gave_back_is_there_and_changes() -> None:
    identity = Identity.generate()

    def store(epoch: int) -> Store:
        return Store(
            identity.node_id,
            epoch=epoch,
            sign=identity.sign,
            verify=verify,
            public_key=identity.public_key,
            clock=HybridClock(),
        )

    now = Instant(1.0, 1_000_000)
    former, fresh = store(1), store(2)
    former.set_owner("k/1", 1)
    former.set_owner("k/2", 2)
    batches = former.commit(now)
    before = Mirror(fresh)
    before.look()
    for batch in batches:
        fresh.restore(batch.raw, now)
    after = Mirror(fresh)
    for mirror in (before, after):
        assert mirror.look()
    fresh.delete_owner("k/1")
    for batch in fresh.commit(now):
        fresh.persisted(batch, now)
    for mirror in (before, after):
        assert mirror.look()
        assert mirror.held == {(identity.node_id, "k/2"): 2}


def test_a_member_that_is_forgotten_takes_its_records_along() -> None:
    a, b, c = (Site(name) for name in "abc")
    for site in (a, b, c):
        site.store.set_owner("k/1", site.id)
    tell(a, b, c)
    mirror = Mirror(a.store)
    mirror.look()
    assert b.store.retire(c.id, b.now())
    tell(a, b)
    assert c.id not in a.store.origins
    assert mirror.look()
    assert mirror.held.keys() == {(a.id, "k/1"), (b.id, "k/1")}


def test_who_looks_too_late_misses_nothing() -> None:
    a, b = Site("a"), Site("b")
    a.store.set_owner("k/gone", 1)
    tell(a, b)
    mirror = Mirror(a.store)
    mirror.look()
    a.store.delete_owner("k/gone")
    for number in range(KEPT_CHANGES + 1):
        a.store.set_owner(f"k/{number % 3}", number)
        a.commit()
    assert mirror.look()
    assert len(mirror.held) == 3
