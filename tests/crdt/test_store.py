"""The store, one behaviour at a time."""

import gc
import random

import pytest

from crdt import (
    MAX_BATCH_BYTES,
    MAX_ENTRIES,
    MAX_LIVE,
    Change,
    DecodeError,
    HybridClock,
    MergeStatus,
    Store,
)
from crdt.codec import encode_batch, encode_entry
from crdt.entries import OwnerEntry, RegisterEntry
from crdt.log import sequences
from crdt.store import SWEEP_S
from tests.crdt.replicas import NOW, Replica, exchange, later, reads, settle, trio, verify

HOUR_S = 3600.0


def forge(
    replica: Replica, sequence: int, *entries: OwnerEntry | RegisterEntry, epoch: int = 1
) -> bytes:
    """A rightly signed batch that the replica's own store knows nothing of."""
    encoded = [encode_entry(entry) for entry in entries]
    live = ((sequence, sequence),)
    return encode_batch(replica.id, epoch, sequence, live, encoded, replica.private.sign)


def fill(replica: Replica, size: int) -> int:
    """Stage owner records until the log is full; return how many there was room for."""
    keys = (f"{count:03}" for count in range(5000))
    with pytest.raises(ValueError, match="log is full"):
        all(replica.store.set_owner(key, bytes(size)) is None for key in keys)
    return int(next(keys)) - 1


# ------------------------------------------------------------------------ writes


def test_writes_show_only_once_durable() -> None:
    a = Replica(1)
    empty = a.store.fingerprint()
    a.store.set_owner("node", {"name": "a"})
    a.store.set_fleet("release/person", {"variant": "small"}, NOW)
    a.store.add("cache/cam", a.id)
    [batch] = a.store.commit(NOW)
    assert reads(a.store) == {"owners": [], "fleet": [], "sets": {}}
    assert a.store.fingerprint() == empty
    changes = a.store.persisted(batch, NOW)
    assert set(changes) == {
        Change("owner", "node", a.id),
        Change("fleet", "release/person", a.id),
        Change("set", "cache/cam", a.id),
    }
    assert a.store.owner(a.id, "node") == {"name": "a"}
    assert a.store.fleet("release/person", NOW) == {"variant": "small"}
    assert a.store.elements("cache/cam") == [a.id]
    assert a.store.fingerprint() != empty
    assert a.store.persisted(batch, NOW) == ()


def test_a_commit_coalesces_per_key() -> None:
    a = Replica(1)
    for n in range(500):
        a.store.set_owner("node", n)
        a.store.set_fleet("fleet", n, NOW)
        a.store.add("set", "x")
    [batch] = a.flush()
    assert len(batch.entries) == 3
    assert a.store.owner(a.id, "node") == 499
    assert a.store.commit(NOW) == []


def test_an_unchanged_owner_record_is_not_written_again() -> None:
    a = Replica(1)
    a.store.set_owner("node", {"x": True})
    a.flush()
    a.store.set_owner("node", {"x": 2})
    a.store.set_owner("node", {"x": True})
    assert a.store.commit(NOW) == []
    a.store.set_owner("node", {"x": 1})  # equal in Python, not in what it says
    a.flush()
    assert a.store.owner(a.id, "node") == {"x": 1}
    assert type(a.store.owner(a.id, "node")["x"]) is int  # type: ignore[index,call-overload]


def test_large_commits_are_cut_into_batches() -> None:
    a, b, _ = trio()
    for n in range(200):
        a.store.set_owner(f"k{n}", "v" * (n % 90))
    batches = a.flush()
    assert all(len(batch.raw) <= MAX_BATCH_BYTES for batch in batches)
    assert all(len(batch.entries) <= MAX_ENTRIES for batch in batches)
    b.take(batches)
    assert reads(b.store) == reads(a.store)
    assert len(a.store.owners()) == 200


def test_too_large_values_travel_by_reference() -> None:
    a = Replica(1)
    a.store.set_owner("k", b"v" * 697)
    for write in (
        lambda: a.store.set_owner("k", b"v" * 698),
        lambda: a.store.set_owner("k", "v" * 100_000),
        lambda: a.store.set_fleet("k", b"v" * 698, NOW),
        lambda: a.store.add("k", b"v" * 255),
    ):
        with pytest.raises(ValueError, match="by reference"):
            write()
    for key in ("", "k" * 97, "\u00e4" * 49):
        with pytest.raises(ValueError, match="key"):
            a.store.set_owner(key, 1)
    assert len(a.flush()) == 1


def test_values_are_copies() -> None:
    a = Replica(1)
    value: dict[str, list[int]] = {"list": [1]}
    a.store.set_owner("k", value)  # type: ignore[arg-type]
    value["list"].append(2)
    a.flush()
    a.store.owner(a.id, "k")["list"].append(3)  # type: ignore[index,union-attr,call-overload]
    assert a.store.owner(a.id, "k") == {"list": [1]}


def test_a_deleted_owner_record_leaves_nothing_behind() -> None:
    a, b, _ = trio()
    for value in (1, 2):  # the first value stays live beside "other", and must not come back
        a.store.set_owner("gone", value)
        a.store.set_owner(f"other{value}", value)
        b.take(a.flush())
    a.store.delete_owner("gone")
    a.store.delete_owner("never was")
    b.take(a.flush())
    for store in (a.store, b.store):
        assert store.owners() == [(a.id, "other1", 1), (a.id, "other2", 2)]
    assert not any(b"gone" in raw for raw in a.live())
    a.store.delete_owner("other1")
    a.store.delete_owner("other2")
    b.take(a.flush())
    assert b.store.owners() == []
    assert len(b.store.live_batches(a.id)) == 1


def test_deleting_a_register_beats_older_values_of_others() -> None:
    a, b, _ = trio()
    a.store.set_fleet("k", 1, NOW)
    b.take(a.flush())
    b.store.set_fleet("k", None, NOW)
    a.take(b.flush())
    assert a.store.fleet("k", NOW) is None
    assert a.store.fleet_items("", NOW) == []
    entry = a.store.fleet_entry("k", NOW)
    assert entry is not None
    assert entry[0] is None
    assert entry[2] == b.id


def test_reads_by_prefix_are_sorted() -> None:
    a, b, _ = trio()
    for replica in (b, a):
        for key in ("host/2", "host/1", "release/x"):
            replica.store.set_owner(key, key)
            replica.store.set_fleet(key, key, NOW)
            replica.store.add(key, key)
        replica.flush()
    exchange([a, b])
    owners = a.store.owners("host/")
    assert [row[:2] for row in owners] == sorted(
        (r.id, f"host/{n}") for r in (a, b) for n in (1, 2)
    )
    assert a.store.fleet_items("host/", NOW) == [("host/1", "host/1"), ("host/2", "host/2")]
    assert a.store.set_keys("host/") == ["host/1", "host/2"]


def test_a_full_log_refuses_more_but_takes_smaller_and_less() -> None:
    a = Replica(1)
    kept = fill(a, 60)
    a.flush()
    assert len(a.store.owners()) == kept
    assert 200 < kept < 640
    a.store.set_owner("000", 1)
    a.store.delete_owner("001")
    a.flush()
    assert a.store.owner(a.id, "000") == 1
    assert len(a.store.owners()) == kept - 1


# -------------------------------------------------------------------------- sets


def test_a_remove_takes_what_it_has_seen_and_a_concurrent_add_wins() -> None:
    a, b, c = trio()
    a.store.add("s", "x")
    exchange([a, b, c] if a.flush() else [])
    b.store.remove("s", "x")
    a.store.add("s", "x")  # concurrent
    b.flush(), a.flush()
    exchange([a, b, c])
    assert [r.store.elements("s") for r in (a, b, c)] == [["x"]] * 3
    c.store.remove("s", "x")
    c.flush()
    exchange([a, b, c])
    assert [r.store.elements("s") for r in (a, b, c)] == [[]] * 3
    assert [r.store.set_keys() for r in (a, b, c)] == [[]] * 3


def test_removing_what_was_staged_or_is_absent_writes_nothing() -> None:
    a = Replica(1)
    a.store.add("s", "x")
    a.store.remove("s", "x")
    a.store.remove("s", "y")
    assert a.store.commit(NOW) == []


def test_adding_back_within_one_commit() -> None:
    a, b, _ = trio()
    a.store.add("s", "x")
    b.take(a.flush())
    b.store.remove("s", "x")
    b.store.add("s", "x")
    a.take(b.flush())
    assert a.store.elements("s") == b.store.elements("s") == ["x"]


def test_removed_adds_and_their_removes_leave_the_logs() -> None:
    a, b, c = replicas = trio()
    for n in range(40):
        a.store.add("s", n)
    a.flush()
    exchange(replicas)
    for n in range(40):
        b.store.remove("s", n)
    b.flush()
    exchange(replicas)
    assert a.store.elements("s") == []
    settle(replicas)  # the adds go
    assert [len(batch) for batch in (a.live(), b.live())] == [1, 3]
    settle(replicas, later(SWEEP_S))  # and once everybody knows that, the removes
    assert [len(batch) for batch in (a.live(), b.live())] == [1, 1]
    assert a.store.commit(NOW) == b.store.commit(NOW) == []
    assert c.store.elements("s") == []
    assert len({r.store.fingerprint() for r in replicas}) == 1


def test_a_remove_stays_while_the_adds_log_has_gaps() -> None:
    a, b, _ = trio()
    a.store.add("s", "x")
    a.store.set_owner("gone", 1)
    b.take(a.flush())
    b.store.remove("s", "x")
    b.flush()
    a.store.delete_owner("gone")  # re-emits the add: `a` has not heard of the remove
    a.flush()
    a.store.set_owner("k", 1)
    b.take(a.flush())  # of the two batches only the later, which tells that the first is dropped
    assert not b.store.complete
    b.store.set_owner("other", 1)
    b.flush()
    b.take(a.live())
    assert b.store.complete
    assert b.store.elements("s") == []


def test_a_remove_outlives_a_restart_until_the_adds_log_is_known() -> None:
    a, b, c = replicas = trio()
    a.store.add("s", "x")
    a.flush()
    exchange(replicas)
    b.store.remove("s", "x")
    b.flush()
    fresh = b.restarted()
    fresh.store.set_owner("k", 1)
    fresh.flush()  # knows of no add: nobody was reached yet
    fresh.meet(replicas)
    exchange([c, fresh])
    assert fresh.store.elements("s") == c.store.elements("s") == []


def test_beaten_registers_leave_the_log() -> None:
    a, b, _ = trio()
    for n in range(900):  # each claims what the other had: more keys than a log has room for
        key, now = f"host/cam{n // 2}", later(n)
        replica, other = (a, b) if n % 2 else (b, a)
        replica.store.set_fleet(key, replica.id, now)
        batches = replica.flush(now)
        other.take(batches, now)
    assert len(a.store.fleet_items("", later(900))) == 450
    a.store.set_owner("k", 1), b.store.set_owner("k", 1)
    a.flush(later(900)), b.flush(later(900))
    exchange([a, b], later(900))
    beaten = [key for key, host in a.store.fleet_items("", later(900)) if host != a.id]
    assert beaten == []
    assert reads(a.store, later(900)) == reads(b.store, later(900))
    assert len(b.live()) < 10


# ------------------------------------------------------------------------- merge


def test_merge_statuses() -> None:
    a, b = Replica(1), Replica(2)
    for n in (1, 2):
        a.store.set_owner("k", n)
        a.flush()
    first, second = a.journal
    [unknown] = b.take([second])
    assert (unknown.status, unknown.changes) == (MergeStatus.UNKNOWN_KEY, ())
    assert b.store.merge(second, NOW, b.key).status is MergeStatus.UNKNOWN_KEY
    b.meet([a])
    empty = b.store.fingerprint()
    [bad] = b.take([second[:-1] + bytes([second[-1] ^ 1])])
    assert bad.status is MergeStatus.BAD_SIGNATURE
    with pytest.raises(DecodeError):
        b.take([second[:-70]])
    assert b.store.fingerprint() == empty
    assert b.store.knowledge() == {}
    assert b.store.key_of(a.id) is None, "a key is kept with the first batch that it verifies"
    new, duplicate, stale = b.take([second, second, first])
    assert new.status is MergeStatus.NEW
    assert new.batch is not None
    assert new.changes == (Change("owner", "k", a.id),)
    assert (duplicate.status, duplicate.changes) == (MergeStatus.DUPLICATE, ())
    assert (stale.status, stale.changes) == (MergeStatus.STALE, ())
    assert b.store.key_of(a.id) == a.key
    assert b.store.owner(a.id, "k") == 2
    assert b.store.knowledge() == a.store.knowledge()
    assert b.store.fingerprint() == a.store.fingerprint()
    assert b.store.live_batches(a.id) == [second]
    assert b.store.live_batches(a.id, after=(1, 1)) == [second]
    assert b.store.live_batches(a.id, after=(1, 2)) == []
    assert b.store.live_batches(bytes(16)) == []


def test_so_many_origins_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crdt.replica.MAX_ORIGINS", 3)
    reader, authors = Replica(9), [Replica(seed) for seed in range(1, 5)]
    reader.meet(authors)
    for author in authors:
        author.store.set_owner("k", 1)
        author.flush()
    found = [reader.take(author.journal)[0].status for author in authors]
    assert found == [MergeStatus.NEW] * 3 + [MergeStatus.FULL]
    assert len(reader.store.knowledge()) == len(reader.store._keys) - 1 == 3
    forks = [forge(authors[3], 1, OwnerEntry("k", value)) for value in (1, 2)]
    assert {reader.store.testify(raw, NOW).status for raw in forks} == {MergeStatus.FULL}
    authors[0].store.set_owner("k", 2)
    assert reader.take(authors[0].flush())[0].status is MergeStatus.NEW, "who is in stays in"
    reader.store.set_owner("k", 1)
    reader.flush()
    assert reader.store.owner(reader.id, "k") == 1, "and there is room for oneself"
    reader.store.retire(authors[0].id, NOW)
    reader.flush()
    assert reader.store.key_of(authors[0].id) is None
    reader.store.retire(authors[1].id, NOW)
    reader.flush()
    assert reader.take(authors[3].journal)[0].status is MergeStatus.NEW


def test_gaps_show_in_the_fingerprint_and_are_filled() -> None:
    a, b, _ = trio()
    for n in range(5):
        a.store.set_owner(f"k{n}", n)
        a.flush()
    b.take([a.journal[4], a.journal[1]])
    assert not b.store.complete
    assert b.store.fingerprint() != a.store.fingerprint()
    assert b.store.knowledge()[a.id][:2] == a.store.knowledge()[a.id][:2]
    b.take(a.live())
    assert b.store.complete
    assert b.store.fingerprint() == a.store.fingerprint()


def test_a_fork_quarantines_its_author_everywhere() -> None:
    a, b, c = trio()
    left, right = (forge(a, 1, OwnerEntry("k", value)) for value in ("left", "right"))
    b.take([left]), c.take([right])
    assert b.store.fingerprint() != c.store.fingerprint()
    [merge] = b.take([right])
    assert merge.status is MergeStatus.FORKED
    assert merge.changes == (Change("owner", "k", a.id),)
    assert b.store.live_batches(a.id) == []
    statuses = [c.store.testify(raw, NOW).status for raw in b.store.evidence(a.id)]
    assert statuses[-1] is MergeStatus.FORKED
    for store in (b.store, c.store):
        assert store.owners() == []
        assert (
            store.merge(forge(a, 5, OwnerEntry("k", 1), epoch=9), NOW).status is MergeStatus.FORKED
        )
        assert store.owners() == []
    assert b.store.fingerprint() == c.store.fingerprint()
    assert b.store.knowledge() == c.store.knowledge()
    [unsigned] = trio()[2].take([left[:-1] + bytes([left[-1] ^ 1])])
    assert unsigned.status is MergeStatus.BAD_SIGNATURE


def test_a_copy_of_a_node_cannot_silence_it() -> None:
    a, b, _ = trio()
    a.store.set_owner("k", "mine")
    b.take(a.flush())
    [merge] = a.take([forge(a, 1, OwnerEntry("k", "theirs"))])
    assert (merge.status, merge.changes) == (MergeStatus.FORKED, ())
    assert a.store.owner(a.id, "k") == "mine"
    assert a.store.contested


def test_what_a_copy_wrote_meanwhile_replaces_nothing() -> None:
    a, b, _ = trio()
    a.store.set_owner("k", "mine")
    a.store.set_fleet("f", "mine", NOW)
    b.take(a.flush())
    a.store.set_owner("k", "pending")
    [pending] = a.store.commit(NOW)
    theirs = forge(a, 1, OwnerEntry("k", "theirs"), OwnerEntry("other", 1), epoch=7)
    b.take([theirs])
    assert [merge.status for merge in a.take([theirs])] == [MergeStatus.NEW]
    assert a.store.contested
    a.store.persisted(pending, NOW)
    b.take(a.flush())
    for store in (a.store, b.store):
        assert store.knowledge()[a.id][0] == 8
        assert store.owners() == [(a.id, "k", "pending"), (a.id, "other", 1)]
        assert store.fleet("f", NOW) == "mine"


def test_a_forged_branch_without_a_signature_does_not_quarantine() -> None:
    a, b, _ = trio()
    left, right = (forge(a, 1, OwnerEntry("k", value)) for value in ("left", "right"))
    tampered = right[:-1] + bytes([right[-1] ^ 1])
    assert [m.status for m in b.take([left, tampered])] == [
        MergeStatus.NEW,
        MergeStatus.BAD_SIGNATURE,
    ]
    assert b.store.owner(a.id, "k") == "left"


def test_re_emission_is_no_change() -> None:
    a, b, _ = trio()
    a.store.set_owner("gone", 1)
    a.store.set_owner("k", {"v": 1})
    a.store.set_fleet("f", 1, NOW)
    a.store.add("s", 1)
    b.take(a.flush())
    a.store.delete_owner("gone")
    changes = [change for merge in b.take(a.flush()) for change in merge.changes]
    assert changes == [Change("owner", "gone", a.id)]


# ------------------------------------------------------------------------ clocks


def test_a_clock_set_back_an_hour_freezes_no_key() -> None:
    a, b, _ = trio()
    a.store.set_fleet("k", "before", NOW)
    b.take(a.flush())
    back = NOW._replace(mono_s=NOW.mono_s + 1, wall_ms=NOW.wall_ms - 3_600_000)
    a.store.set_fleet("k", "after", back)
    b.take(a.flush(back), later(1))
    assert a.store.fleet("k", back) == b.store.fleet("k", later(1)) == "after"
    b.store.set_fleet("k", "theirs", later(600))
    a.take(b.flush(later(600)), later(599, back))
    assert a.store.fleet("k", later(599, back)) == "theirs"
    a.store.set_fleet("k", "again", later(600, back))
    b.take(a.flush(later(600, back)), later(601))
    assert b.store.fleet("k", later(601)) == "again"


def test_a_clock_set_back_between_two_runs_freezes_no_key() -> None:
    a, b, _ = trio()
    a.store.set_fleet("k", "before", NOW)
    a.store.set_owner("keeps the batch alive", 1)
    b.take(a.flush())
    back = NOW._replace(mono_s=1.0, wall_ms=NOW.wall_ms - 3_600_000)
    for high_water in (a.store.clock.high_water, 0):  # even with the mark lost
        fresh = Replica(1, epoch=2, high_water=high_water)
        for raw in a.journal:
            fresh.store.restore(raw, back)
        fresh.store.set_fleet("k", "after", back)
        fresh.flush(back)
        assert fresh.store.fleet("k", back) == "after"
        c = Replica(3)
        c.meet([fresh])
        c.take(fresh.live())
        assert c.store.fleet("k", later(1)) == "after"


def test_registers_from_the_future_wait_hidden() -> None:
    a, b, _ = trio()
    a.store.set_fleet("k", "now", NOW)
    b.take(a.flush())
    c = trio()[2]
    c.store.set_fleet("k", "future", later(HOUR_S))
    c.flush(later(HOUR_S))
    before = b.store.fingerprint()
    [merge] = b.take(c.live())
    assert (merge.status, merge.changes, b.store.hidden) == (MergeStatus.NEW, (), 1)
    assert b.store.fingerprint() != before
    assert b.store.fleet("k", NOW) == "now"
    assert b.store.fleet_items("", NOW) == [("k", "now")]
    b.store.set_fleet("k", "newer", later(1))  # and nobody is kept from writing meanwhile
    b.flush(later(1))
    assert b.store.fleet("k", later(1)) == "newer"
    assert b.store.mature(later(HOUR_S - 6)) == ()
    assert b.store.mature(later(HOUR_S - 5)) == (Change("fleet", "k", c.id),)
    assert b.store.hidden == 0
    assert b.store.fleet("k", later(HOUR_S)) == "future"


def test_a_hidden_register_that_is_dropped_is_counted_no_more() -> None:
    b, c = trio()[1:]
    for seconds in (HOUR_S, HOUR_S + 1):
        c.store.set_fleet("k", seconds, later(seconds))
        b.take(c.flush(later(seconds)))
        assert b.store.hidden == 1
    assert b.store.mature(later(2 * HOUR_S)) == (Change("fleet", "k", c.id),)


def test_owner_records_are_immune_to_clocks() -> None:
    a, b, _ = trio()
    for seconds in (0, 10 * HOUR_S, -HOUR_S, -300 * HOUR_S):
        a.store.set_owner("k", seconds)
        b.take(a.flush(later(seconds)))
        assert b.store.owner(a.id, "k") == seconds


def test_a_write_beats_what_its_writer_could_read() -> None:
    a, b, _ = trio()
    ahead = later(4)
    a.store.set_fleet("k", "theirs", ahead)
    b.take(a.flush(ahead))
    b.store.set_fleet("k", "mine", NOW)
    a.take(b.flush())
    assert a.store.fleet("k", ahead) == b.store.fleet("k", NOW) == "mine"


# ---------------------------------------------------------------------- restarts


def test_a_restart_restores_the_same_state_and_writes_nothing_by_itself() -> None:
    a, b, _ = trio()
    for n in range(100):
        a.store.set_owner(f"k{n % 30}", n)
        a.store.add("s", n % 7)
        a.store.remove("s", n % 5)
        b.take(a.flush())
    fresh = a.restarted().restarted().restarted()
    assert reads(fresh.store) == reads(a.store)
    assert fresh.store.fingerprint() == a.store.fingerprint()
    assert fresh.store.commit(NOW) == []
    fresh.store.set_owner("k1", "next")
    fresh.store.remove("s", 6)
    b.take(fresh.flush())
    assert b.store.fingerprint() == fresh.store.fingerprint()
    assert b.store.owner(a.id, "k1") == "next"
    assert reads(b.store) == reads(fresh.store) == reads(fresh.restarted().store)


@pytest.mark.parametrize("kept", [True, False], ids=["its journal kept it", "a peer had it"])
def test_a_commit_cut_short_is_said_again_though_nobody_writes(kept: bool) -> None:
    a, b, _ = trio()
    for n in range(40):
        a.store.set_owner(f"k{n}", "x" * 60)
    first, *rest = a.flush()
    assert rest, "one batch would not do"
    b.take([first])
    fresh = a.restarted(journal=[first.raw] if kept else [])
    fresh.take([first])
    assert not b.store.complete
    assert not fresh.store.complete
    assert not fresh.store.sweep(NOW)
    assert not fresh.store.sweep(later(SWEEP_S / 2)), "the rest may be on its way"
    assert fresh.store.sweep(later(SWEEP_S))
    b.take(fresh.flush(later(SWEEP_S)))
    assert fresh.store.complete
    assert b.store.complete
    assert not fresh.store.sweep(later(2 * SWEEP_S))
    assert reads(b.store) == reads(fresh.store)


def test_the_live_part_of_a_journal_is_enough() -> None:
    a = Replica(1)
    for n in range(100):
        a.store.set_owner(f"k{n % 3}", n)
        a.store.set_fleet("f", n, NOW)
        a.flush()
    a.journal = a.live()
    assert len(a.journal) <= 4
    assert reads(a.restarted().store) == reads(a.store)


def test_a_batch_that_never_became_durable_is_forgotten() -> None:
    a, b, _ = trio()
    a.store.set_owner("k", "durable")
    b.take(a.flush())
    a.store.set_owner("k", "lost")
    a.store.commit(NOW)
    fresh = a.restarted()
    assert fresh.store.owner(a.id, "k") == "durable"
    fresh.store.set_owner("k", "new")
    [new] = fresh.flush()
    assert [merge.status for merge in b.take([new])] == [MergeStatus.NEW]


def test_commits_may_overtake_the_journal() -> None:
    a, b, _ = trio()
    waiting = []
    for n in range(5):
        a.store.set_owner("k", n)
        a.store.set_owner(f"k{n}", n)
        waiting += a.store.commit(NOW)
    assert [batch.sequence for batch in waiting] == [1, 2, 3, 4, 5]
    for batch in waiting:
        a.store.persisted(batch, NOW)
        b.take([batch])
        assert a.store.fingerprint() == b.store.fingerprint()
    assert a.store.owner(a.id, "k") == 4
    assert a.store.complete


def test_peers_give_back_what_a_lost_journal_held() -> None:
    a, b, _ = trio()
    b.store.add("s", "gone")
    a.take(b.flush())
    for n in range(40):
        a.store.set_owner(f"k{n}", n)
        a.store.set_fleet(f"f{n}", n, NOW)
        a.store.add("s", n)
        b.take(a.flush())
    a.store.delete_owner("k0")
    a.store.remove("s", "gone")
    a.store.remove("s", 7)
    state = reads(a.store)
    b.take(a.flush())
    state = reads(a.store)
    reborn = a.restarted(journal=[])
    reborn.meet([b])
    exchange([b, reborn])
    assert reborn.store.fingerprint() == b.store.fingerprint()
    b.take(reborn.flush())  # even with nothing to say: the journal has to hold it again
    assert reads(b.store) == reads(reborn.store) == state
    assert b.store.knowledge()[a.id][0] == reborn.store.epoch
    assert {merge.status for merge in b.take(a.live())} == {MergeStatus.STALE}
    assert {merge.status for merge in reborn.take(a.live())} == {MergeStatus.STALE}
    again = reborn.restarted()
    again.meet([b])
    exchange([b, again])
    assert reads(again.store) == state
    assert not again.store.contested


def test_an_epoch_begins_after_all_that_peers_know() -> None:
    a, b, _ = trio()
    a.store.set_owner("k", 1)
    a.flush()
    later_life = a.restarted().restarted()
    later_life.store.set_owner("k", 2)
    b.take(later_life.flush())
    image = a.restarted()  # of the first life, with a clock that is behind
    image.meet([b])
    image.take(b.store.live_batches(a.id))
    assert image.store.owner(a.id, "k") == 2
    image.store.set_owner("new", 1)
    assert {merge.status for merge in b.take(image.flush())} == {MergeStatus.NEW}
    assert reads(b.store) == reads(image.store)
    assert not image.store.contested


def test_a_new_epoch_replaces_the_old_log_as_one() -> None:
    a, b, c = trio()
    for n in range(60):
        a.store.set_owner(f"k{n}", "v" * 40)
        batches = a.flush()
        b.take(batches), c.take(batches)
    fresh = a.restarted()
    fresh.store.set_owner("k1", "next")
    batches = fresh.flush()
    assert len(batches) > 3
    changes = [change for merge in b.take(batches) for change in merge.changes]
    assert changes == [Change("owner", "k1", a.id)]
    changes = [change for merge in c.take(batches[::-1]) for change in merge.changes]
    assert changes == [Change("owner", "k1", a.id)]
    # A crash in between leaves both, in the journal and everywhere else.
    d = Replica(4)
    d.meet([a])
    d.take([*a.live(), batches[1].raw])
    assert len(d.store.owners()) == 60
    assert not d.store.complete
    half = a.restarted(journal=a.live()).restarted(journal=[*a.live(), batches[0].raw])
    half.store.set_owner("k2", "after")
    d.take(half.flush())
    assert d.store.complete
    assert d.store.owner(a.id, "k2") == "after"
    assert len(d.store.owners()) == 60


def test_a_log_that_is_never_complete_keeps_only_so_much() -> None:
    a, b, _ = trio()
    for n in range(2, 1000):
        raw = encode_batch(
            a.id,
            1,
            2 * n,
            ((2 * n - 1, 2 * n),),
            [encode_entry(OwnerEntry(f"k{n}", n))],
            a.private.sign,
        )
        b.take([raw])
    assert len(b.store.owners()) <= 2 * MAX_LIVE + 2
    assert b.store.knowledge()[a.id][:2] == (1, 1998)


def test_a_kept_journal_is_carried_into_a_new_epoch() -> None:
    a, b, _ = trio()
    for n in range(40):
        a.store.set_owner(f"k{n}", n)
        a.store.set_fleet(f"f{n}", n, NOW)
        a.store.add("s", n)
        b.take(a.flush())
    fresh = a.restarted()
    assert reads(fresh.store) == reads(a.store)
    fresh.store.set_owner("k0", "next")
    a.store.set_owner("k0", "next")
    a.flush()
    b.take(fresh.flush())
    for store in (fresh.store, b.store):
        assert reads(store) == reads(a.store)
        assert store.knowledge()[a.id][0] == 2
        assert store.complete
    assert b.store.fingerprint() == fresh.store.fingerprint()


def test_an_older_journal_is_completed_by_peers() -> None:
    a, b, _ = trio()
    for n in range(6):
        a.store.set_owner(f"k{n}", n)
        b.take(a.flush())
    fresh = a.restarted(journal=a.journal[:3])
    fresh.meet([b])
    fresh.take(b.store.live_batches(a.id))
    assert fresh.store.fingerprint() == b.store.fingerprint()
    fresh.store.set_owner("next", 1)
    statuses = [merge.status for merge in b.take(fresh.flush())]
    assert set(statuses) == {MergeStatus.NEW}
    assert reads(b.store) == reads(fresh.store)
    # What came back from peers was written anew: the journal alone is enough again.
    assert reads(fresh.restarted().store) == reads(fresh.store)


def test_a_foreign_or_damaged_journal_is_refused() -> None:
    a, b, _ = trio()
    a.store.set_owner("k", 1)
    [batch] = a.flush()
    for raw in (batch.raw[:-1] + bytes([batch.raw[-1] ^ 1]), batch.raw[:50]):
        with pytest.raises(DecodeError):
            Replica(1, epoch=2).store.restore(raw, NOW)
    with pytest.raises(DecodeError, match="this node"):
        b.store.restore(batch.raw, NOW)
    with pytest.raises(ValueError, match="epoch 2"):
        Replica(1, epoch=2).store.restore(forge(a, 1, epoch=2), NOW)
    with pytest.raises(ValueError, match="public key"):
        Store(
            b.id, epoch=1, sign=a.private.sign, verify=verify, public_key=a.key, clock=HybridClock()
        )


# ------------------------------------------------------------------------ bounds


def test_ten_thousand_random_writes_stay_within_bounds_and_lose_nothing() -> None:
    a, b, _ = replicas = trio()
    rng = random.Random(7)
    owners: dict[str, object] = {}
    fleet: dict[str, object] = {}
    members: set[int] = set()
    carried, marks = 0, []
    for step in range(10_000):
        key, action = f"k{rng.randrange(120)}", rng.randrange(6)
        if action < 2:
            owners[key] = rng.randbytes(rng.randrange(60))
            a.store.set_owner(key, owners[key])  # type: ignore[arg-type]
        elif action == 2:
            owners.pop(key, None)
            a.store.delete_owner(key)
        elif action == 3:
            fleet[key] = step
            a.store.set_fleet(key, step, NOW)
        else:
            element, writer = rng.randrange(60), rng.choice((a, a, b))
            (members.add if action == 4 else members.discard)(element)
            (writer.store.add if action == 4 else writer.store.remove)("s", element)
        # Exchanged at once, so that every remove has seen every add.
        for writer, reader in ((a, b), (b, a)):
            batches = writer.flush()
            writer.journal.clear()
            carried += sum(len(batch.entries) for batch in batches)
            reader.take(batches)
            assert all(sum(1 for _ in sequences(batch.live)) <= 2 * MAX_LIVE for batch in batches)
            assert len(writer.live()) <= MAX_LIVE
        if step % 1000 == 999:
            for replica in replicas[:2]:
                replica.changes.clear()
            gc.collect()
            marks.append(len(gc.get_objects()))
    for store in (a.store, b.store):
        assert {key: value for _, key, value in store.owners()} == owners
        assert dict(store.fleet_items("", NOW)) == fleet
        assert sorted(store.elements("s")) == sorted(members)  # type: ignore[type-var]
        assert store.complete
    assert a.store.fingerprint() == b.store.fingerprint()
    assert carried < 80_000  # re-emission costs a few entries a write
    assert max(marks[5:]) < max(marks[:5]) + 3000  # objects, of which 5,000 writes make far more
    c = Replica(3)
    c.meet([a, b])
    exchange([a, b, c])
    assert reads(c.store) == reads(a.store)


@pytest.mark.parametrize("size", [1, 30, 120, 390, 420, 690])
def test_the_bound_holds_at_capacity_for_every_size_of_value(size: int) -> None:
    a, b, _ = trio()
    rng = random.Random(size)
    count = fill(a, size)
    most = 0
    for _ in range(150):
        for _ in range(rng.choice((1, 1, 3, 40))):
            a.store.set_owner(f"{rng.randrange(count):03}", rng.randbytes(size))
        batches = a.flush()
        assert len(a.live()) <= MAX_LIVE
        most = max(most, *(sum(1 for _ in sequences(batch.live)) for batch in batches))
        b.take(batches)
    assert most <= 2 * MAX_LIVE
    assert len(b.store.owners()) == count
    assert reads(a.store) == reads(b.store)
