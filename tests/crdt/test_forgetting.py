"""What a fleet forgets, and what it never does: tombstones, members, forks."""

import random

import pytest

from crdt import Change, MergeStatus
from crdt.codec import encode_batch, encode_entry
from crdt.entries import OwnerEntry, RegisterEntry
from crdt.log import sequences
from crdt.ranges import EVERYTHING
from crdt.replica import MAX_HALVES
from crdt.retirement import MAX_RETIRED, retired_key, subject_of
from crdt.store import SWEEP_S
from tests.crdt.replicas import NOW, Replica, exchange, later, reads, settle, trio
from tests.crdt.test_store import fill, forge

DAY_S = 86_400.0


def met(count: int) -> list[Replica]:
    replicas = [Replica(seed) for seed in range(1, count + 1)]
    for replica in replicas:
        replica.meet(replicas)
    return replicas


def calm(replicas: list[Replica], since_s: float = 0.0) -> None:
    """Let the fleet settle for as long as anything goes on."""
    for step in range(8):
        settle(replicas, later(since_s + step * SWEEP_S))


# -------------------------------------------------------------------- tombstones


def test_a_tombstone_goes_once_everybody_has_had_it() -> None:
    a, b, c = replicas = trio()
    a.store.set_fleet("k", 1, NOW)
    a.store.set_owner("stays", 1)
    a.flush()
    exchange(replicas)
    b.store.set_fleet("k", None, NOW)
    b.store.set_owner("stays", 1)
    b.flush()
    exchange(replicas)
    b.store.settled(b.store.generation - 1)  # nobody said so far that everybody had it
    assert not b.store.sweep(NOW)
    calm(replicas, SWEEP_S)
    for replica in replicas:
        assert replica.store.fleet_entry("k", NOW) is None
        assert not any(b"\xa1k" in raw for raw in (*a.live(), *b.live()))
        assert len(replica.store.owners("stays")) == 2
    assert c.store.complete


def test_a_tombstone_stays_while_anything_lies_under_it() -> None:
    a, b, c = replicas = trio()
    a.store.set_fleet("k", 1, NOW)
    a.store.set_owner("stays", 1)
    a.flush()
    exchange(replicas)
    b.store.set_fleet("k", None, NOW)
    b.flush()
    exchange(replicas)
    for step in range(3):  # `a` is down: it says nothing, though it knows
        for replica in (b, c):
            replica.store.settled(replica.store.generation)
            now = later(step * SWEEP_S)
            if replica.store.sweep(now):
                replica.flush(now)
    entry = b.store.fleet_entry("k", NOW)
    assert entry is not None
    assert entry[0] is None


def test_having_had_the_tombstone_beside_the_old_value_is_not_enough() -> None:
    a, b, c = replicas = trio()
    a.store.set_fleet("k", 1, NOW)
    a.flush()
    exchange(replicas)
    b.store.set_fleet("k", None, NOW)
    b.flush()
    exchange(replicas)
    b.store.settled(b.store.generation)  # all have the tombstone, and the old value
    a.flush(later(SWEEP_S))  # which is taken out now, while `c` is cut off
    exchange([a, b])
    assert not b.store.sweep(later(SWEEP_S))
    b.store.set_owner("k", 1)
    c.take(b.flush(later(SWEEP_S)))
    assert c.store.fleet("k", NOW) is None
    exchange(replicas)
    calm(replicas, 2 * SWEEP_S)
    assert b.store.fleet_entry("k", NOW) is None


def test_an_own_older_value_does_not_come_to_light() -> None:
    a, b, c = replicas = trio()
    a.store.set_fleet("k", 1, NOW)
    a.store.set_owner("stays", 1)
    a.flush()
    a.store.set_fleet("k", None, NOW)
    a.flush()
    exchange(replicas)
    changes: list[Change] = []
    for step in range(4):
        now = later(step * SWEEP_S)
        for replica in replicas:
            replica.store.settled(replica.store.generation)
        if a.store.sweep(now):
            for batch in a.flush(now):
                for other in (b, c):
                    changes += other.store.merge(batch.raw, now).changes
    assert a.store.fleet_entry("k", NOW) is None
    assert not any(change.kind == "fleet" for change in (*changes, *a.changes[3:]))


def test_a_tombstone_that_is_not_durable_is_not_what_everybody_has_had() -> None:
    a, b, _ = replicas = trio()
    a.store.set_fleet("k", 1, NOW)
    a.flush()
    a.store.set_fleet("k", None, NOW)
    a.flush()
    calm(replicas)
    b.store.set_fleet("k", 2, NOW)
    b.flush()
    exchange(replicas)
    b.store.set_fleet("k", None, later(1))
    [pending] = b.store.commit(later(1))
    b.store.settled(b.store.generation)
    assert not b.store.sweep(later(DAY_S))
    b.store.persisted(pending, NOW)
    assert not b.store.sweep(later(DAY_S))
    b.store.settled(b.store.generation)
    assert b.store.sweep(later(2 * DAY_S))


def test_deletes_never_freed() -> None:
    """A log must not fill up with what was deleted: ten thousand keys, each set and deleted."""
    a, b, _ = replicas = trio()
    a.store.set_owner("stays", 1)
    a.store.set_fleet("stays", 1, NOW)
    carried = 0
    for count in range(10_000):
        now = later(count)
        writer, other = (a, b) if count % 2 else (b, a)
        writer.store.set_fleet(f"k{count}", count, now)
        batches = writer.flush(now)
        if count % 3:  # by whoever set it, or another
            writer, other = other, writer
            writer.take(batches, now)
            batches = []
        writer.store.set_fleet(f"k{count}", None, now)
        batches += writer.flush(now)
        other.take(batches, now)
        if count % 20 == 0:
            exchange(replicas[:2], now)
            for replica in replicas[:2]:
                replica.store.settled(replica.store.generation)
                if replica.store.sweep(now):
                    batches = replica.flush(now)
                    carried += sum(len(batch.entries) for batch in batches)
                    exchange(replicas[:2], now)
        for replica in (a, b):
            replica.journal.clear()
            replica.changes.clear()
    calm(replicas, 10_000.0)
    now = later(20_000.0)
    for replica in replicas:
        assert replica.store.fleet_items("", now) == [("stays", 1)]
        assert len(replica.store._state._fleet._registers) == 1
    assert len(a.live()) + len(b.live()) < 6
    assert carried < 20_000


def test_without_word_that_all_have_it_a_log_fills_with_tombstones() -> None:
    """And says so, rather than dropping what somebody may still need."""
    a = Replica(1)
    keys = [f"k{count}" for count in range(700)]
    with pytest.raises(ValueError, match="log is full"):
        [(a.store.set_fleet(key, None, NOW), a.flush()) for key in keys]


def test_a_remove_stays_until_all_have_seen_the_add_gone() -> None:
    a, b, c = replicas = trio()
    a.store.add("s", "x")
    a.store.set_owner("stays", 1)
    a.flush()
    exchange(replicas)
    b.store.remove("s", "x")
    b.flush()
    exchange(replicas)
    a.flush(later(SWEEP_S))  # the add goes, while `c` is cut off
    exchange([a, b])
    b.store.set_owner("k", 1)
    c.take(b.flush(later(SWEEP_S)))
    assert c.store.elements("s") == []
    calm(replicas, 2 * SWEEP_S)
    assert not any(b"\xa1s" in raw for raw in (*a.live(), *b.live()))


# ------------------------------------------------------------------- retirement


def said_by_all(a: Replica, b: Replica, c: Replica) -> None:
    """`c` says something of every kind, some of it beaten, removed or shared; then it is gone."""
    replicas = [a, b, c]
    b.store.add("s", "of b, removed by c")
    b.store.add("s", "of both")
    b.store.set_fleet("deleted by c", 1, NOW)
    b.store.set_fleet("of b", 1, later(1))
    b.flush()
    exchange(replicas)
    c.store.set_owner("own", 1)
    c.store.set_fleet("of c", {"v": 1}, NOW)
    c.store.set_fleet("deleted by c", None, later(1))
    c.store.add("s", "of c")
    c.store.add("s", "of both")
    c.store.remove("s", "of b, removed by c")
    c.flush()
    exchange(replicas)


def test_a_retired_members_shared_state_is_kept_and_its_own_goes() -> None:
    a, b, c = trio()
    said_by_all(a, b, c)
    before = reads(a.store)
    entry = a.store.fleet_entry("of c", later(1))
    a.store.retire(c.id, later(DAY_S))
    a.flush(later(DAY_S))
    exchange([a, b], later(DAY_S))
    for store in (a.store, b.store):
        after = reads(store, later(DAY_S))
        assert after["sets"] == before["sets"] == {"s": ["of c", "of both"]}
        kept = [item for item in store.fleet_items("", later(DAY_S)) if not subject_of(item[0])]
        assert kept == before["fleet"] == [("of b", 1), ("of c", {"v": 1})]
        assert store.owners() == []
        assert store.retired(c.id) == 1
        assert c.id not in store.knowledge()
        assert store.live_batches(c.id) == []
        assert store.has(c.id, 1, 99)
        assert not store.has(c.id, 2, 1)
        assert store.tree.count(EVERYTHING) == len(store.knowledge()) == 2
    new = a.store.fleet_entry("of c", later(DAY_S))
    assert (entry and entry[:2]) == (new and new[:2])
    assert a.store.fingerprint() == b.store.fingerprint()
    assert {merge.status for merge in b.take(c.journal)} == {MergeStatus.STALE}
    calm([a, b], DAY_S)
    assert reads(a.store, later(DAY_S))["sets"] == before["sets"]
    assert a.store.fleet_entry("deleted by c", later(DAY_S)) is None


def test_it_does_not_matter_when_a_retirement_arrives() -> None:
    a, b, c = trio()
    said_by_all(a, b, c)
    old = [*b.live(), *c.live()]
    for count in range(60):  # so much that it takes several batches to say it again
        c.store.set_fleet(f"more{count}", "v" * 60, NOW)
    old += [batch.raw for batch in c.flush()]
    exchange([a, b, c])
    a.store.retire(c.id, later(DAY_S))
    retirement = [batch.raw for batch in a.flush(later(DAY_S))]
    assert len(retirement) > 3
    rng, prints = random.Random(3), set()
    for _ in range(40):
        reader = Replica(9)
        reader.meet([a, b, c])
        news = [*old, *retirement]
        rng.shuffle(news)
        shown = 0
        for raw in news:
            reader.take([raw], later(DAY_S))
            more = len(reader.store.fleet_items("more", later(DAY_S)))
            assert more >= shown  # nothing goes before it has been said again
            shown = more
        reader.take(a.live(), later(DAY_S))
        assert shown == 60
        assert reader.store.complete
        assert c.id not in reader.store.knowledge()
        assert reads(reader.store, later(DAY_S)) == reads(a.store, later(DAY_S))
        prints.add(reader.store.fingerprint())
    assert prints == {a.store.fingerprint()}


def test_members_retired_by_several_at_once() -> None:
    a, b, c = trio()
    said_by_all(a, b, c)
    before = reads(a.store)
    for replica in (a, b):
        replica.store.retire(c.id, later(DAY_S))
        replica.flush(later(DAY_S))
    exchange([a, b], later(DAY_S))
    calm([a, b], DAY_S)
    assert a.store.fingerprint() == b.store.fingerprint()
    assert reads(b.store, later(DAY_S))["sets"] == before["sets"]
    held = [raw for raw in (*a.live(), *b.live()) if b"of c" in raw and b"\xc0" in raw]
    assert len(held) <= 2


def test_of_two_retirements_the_greater_epoch_counts() -> None:
    a, b, c = trio()
    c.store.set_fleet("k", 1, NOW)
    a.take(c.flush())
    b.take(c.live())
    fresh = c.restarted()
    fresh.store.set_fleet("k2", 1, NOW)
    b.take(fresh.flush())
    b.store.retire(c.id, later(1))  # of epoch 2, which `a` does not know of
    b.flush(later(1))
    a.store.retire(c.id, later(2))
    a.flush(later(2))
    exchange([a, b], later(3))
    for step in range(3):
        a.flush(later(4 + step)), b.flush(later(4 + step))
        exchange([a, b], later(4 + step))
    for store in (a.store, b.store):
        assert store.retired(c.id) == 2
        assert store.fleet("k2", later(9)) == 1
        assert store.merge(fresh.journal[0], later(9)).status is MergeStatus.STALE
    assert a.store.fingerprint() == b.store.fingerprint()


def test_a_retired_member_comes_back_under_a_later_epoch_and_resurrects_nothing() -> None:
    a, b, c = trio()
    said_by_all(a, b, c)
    a.store.retire(c.id, later(DAY_S))
    a.flush(later(DAY_S))
    exchange([a, b], later(DAY_S))
    a.store.set_fleet("of c", None, later(DAY_S))
    a.store.remove("s", "of c")
    b.store.remove("s", "of both")
    for replica in (a, b):
        replica.flush(later(DAY_S))
    calm([a, b], DAY_S)
    state = reads(a.store, later(2 * DAY_S))
    now = later(2 * DAY_S)
    fresh = c.restarted(now)  # it meets the others before it says anything
    fresh.meet([a, b])
    exchange([a, b, fresh], now)
    assert reads(fresh.store, now) == reads(a.store, now) == state
    assert fresh.store.sweep(now)
    fresh.flush(now)
    exchange([a, b, fresh], now)
    for replica in (a, b, fresh):
        assert {**reads(replica.store, now), "owners": []} == state
        assert replica.store.owner(c.id, "own") == 1  # its own word is its own
        assert replica.store.fingerprint() == a.store.fingerprint()
    fresh.store.set_fleet("new", 1, now)
    exchange([a, b, fresh] if fresh.flush(now) else [], now)
    assert a.store.fleet("new", now) == 1


def test_a_member_that_ran_on_alone_takes_back_what_was_forgotten() -> None:
    a, b, c = trio()
    said_by_all(a, b, c)
    a.store.retire(c.id, later(DAY_S))
    a.flush(later(DAY_S))
    exchange([a, b], later(DAY_S))
    a.store.set_fleet("of c", None, later(DAY_S))
    a.store.remove("s", "of c")
    a.flush(later(DAY_S))
    calm([a, b], DAY_S)
    now = later(2 * DAY_S)
    c.store.set_owner("own", 2)
    pending = c.store.commit(now)
    state = reads(a.store, now)
    c.take([*a.live(), *b.live()], now)
    assert not any(c.store.persisted(batch, now) for batch in pending)
    assert c.store.epoch == 2
    assert c.store.sweep(now)
    c.flush(now)
    exchange([a, b, c], now)
    for replica in (a, b, c):
        assert {**reads(replica.store, now), "owners": []} == state
        assert replica.store.owner(c.id, "own") == 2
        assert replica.store.fingerprint() == a.store.fingerprint()


def test_a_member_that_started_alone_takes_back_what_it_carried_over() -> None:
    a, b, c = trio()
    said_by_all(a, b, c)
    a.store.retire(c.id, later(DAY_S))
    a.flush(later(DAY_S))
    exchange([a, b], later(DAY_S))
    a.store.set_fleet("of c", None, later(DAY_S))
    a.store.remove("s", "of c")
    a.flush(later(DAY_S))
    calm([a, b], DAY_S)
    now = later(2 * DAY_S)
    state = reads(a.store, now)
    fresh = c.restarted(now)
    fresh.store.set_fleet("new", 1, now)  # nobody is there: it goes on by itself
    fresh.flush(now)
    fresh.meet([a, b])
    fresh.take([*a.live(), *b.live()], now)
    assert fresh.store.sweep(now)
    fresh.flush(now)
    exchange([a, b, fresh], now)
    for replica in (a, b, fresh):
        found = reads(replica.store, now)
        assert found["sets"] == state["sets"]
        assert found["fleet"] == sorted([*state["fleet"], ("new", 1)])  # type: ignore[misc]
        assert replica.store.fingerprint() == a.store.fingerprint()


def test_what_a_returning_member_takes_back_is_still_said_by_who_retired_it() -> None:
    c, b, a = sorted(trio(), key=lambda one: -int.from_bytes(one.id, "big"))  # its copies win
    said_by_all(a, b, c)
    for count in range(40):  # so that batches hold nothing else
        c.store.set_fleet(f"more{count}", 1, NOW)
    c.flush()
    exchange([a, b, c])
    before = a.store.fleet_items("", later(1))
    now = later(DAY_S)
    a.store.retire(c.id, now)
    a.flush(now)
    exchange([a, b], now)
    fresh = c.restarted(now)
    fresh.store.set_fleet("new", 1, now)  # alone it carries over what was retired
    fresh.flush(now)
    fresh.meet([a, b])
    a.take(fresh.live(), now)
    a.store.set_owner("k", 1)
    a.flush(now)  # while what `a` has said again is beaten
    exchange([a, b, fresh], now)
    for step in range(3):
        assert fresh.store.sweep(now) == (step == 0)
        fresh.flush(now)
        exchange([a, b, fresh], now)
    for replica in (a, b, fresh):
        kept = [one for one in replica.store.fleet_items("", now) if not subject_of(one[0])]
        assert kept == sorted([("new", 1), *before])
        entry = replica.store.fleet_entry("deleted by c", now)
        assert entry is not None
        assert entry[0] is None


def test_two_that_retired_each_other_hear_each_other_again() -> None:
    a, b, c = trio()
    a.store.set_fleet("of a", 1, NOW)
    a.flush()
    said_by_all(a, b, c)
    now = later(DAY_S)
    for replica, gone in ((a, [c]), (c, [a, b])):  # neither saw the other for a day
        for one in gone:
            assert replica.store.retire(one.id, now)
        replica.flush(now)
    exchange([a, b], now)
    a.store.set_fleet("a", 1, now)
    c.store.set_fleet("c", 1, now)
    for replica in (a, c):
        replica.flush(now)
    for _ in range(3):
        exchange([a, b, c], now)
        for replica in (a, b, c):
            if replica.store.sweep(now):
                replica.flush(now)
    assert len({replica.store.fingerprint() for replica in (a, b, c)}) == 1
    for replica in (a, b, c):
        assert replica.store.complete
        # what both sides had said each left to the other, so "of both" is gone
        assert replica.store.elements("s") == ["of c"]
        assert [replica.store.fleet(key, now) for key in ("of a", "of b", "a", "c")] == [1] * 4
        assert replica.store.fleet("of c", now) == {"v": 1}
        assert replica.store.owner(c.id, "own") == 1


def test_who_cannot_be_retired_is_not_retired_again_and_again() -> None:
    a, _, c = trio()
    last = 2**62  # nobody can take this and all later epochs from a member
    a.take([forge(c, 1, OwnerEntry("k", 1), epoch=last)])
    assert not a.store.retire(c.id, NOW)
    assert a.store.staged == 0


def test_a_proof_of_a_fork_goes_with_its_author() -> None:
    a, b, c = trio()
    halves = [forge(c, 1, OwnerEntry("k", value)) for value in ("left", "right")]
    for replica in (a, b):
        replica.take(halves)
        assert len(replica.store.evidence(c.id)) == 2
    assert a.store.retire(c.id, NOW)
    assert not a.store.retire(c.id, NOW)
    a.flush()
    exchange([a, b])
    for replica in (a, b):
        assert replica.store.evidence(c.id) == ()
        assert c.id not in replica.store.origins
        assert replica.store.key_of(c.id) is None
        for raw in halves:  # whoever comes with them brings nothing back
            assert replica.store.testify(raw, NOW).status is MergeStatus.STALE
        assert c.id not in replica.store._halves
    assert a.store.fingerprint() == b.store.fingerprint()
    assert a.store.tree.count(EVERYTHING) == len(a.store.origins) == 1
    for replica in (a, b):  # a later epoch is heard, and a fork there is found again
        replica.take([forge(c, 1, OwnerEntry("k", "again"), epoch=2)])
        assert replica.store.owner(c.id, "k") == "again"
    a.take([forge(c, 1, OwnerEntry("k", "no"), epoch=2)])
    assert a.store.evidence(c.id)


def test_what_cannot_be_retired() -> None:
    a, b, c = trio()
    with pytest.raises(ValueError, match="itself"):
        a.store.retire(a.id, NOW)
    a.store.retire(b.id, NOW)  # has said nothing
    assert a.store.staged == 0
    c.store.add("s", "x")
    a.take(c.flush())
    fill(a, 60)
    staged, load = a.store.staged, a.store._load
    for count in range(60):
        c.store.set_fleet(f"k{count}", "v" * 50, NOW)
    a.take(c.flush())
    with pytest.raises(ValueError, match="no room"):
        a.store.retire(c.id, NOW)
    assert (a.store.staged, a.store._load) == (staged, load)
    with pytest.raises(ValueError, match="retiring"):
        b.store.set_fleet(retired_key(a.id), 7, NOW)


def test_the_same_is_not_said_twice() -> None:
    a, _, c = trio()
    c.store.set_fleet("k", 1, NOW)
    a.take(c.flush())
    a.store.retire(c.id, NOW)
    staged = a.store.staged
    a.store.retire(c.id, NOW)
    assert a.store.staged == staged == 2
    batches = a.store.commit(NOW)
    a.store.retire(c.id, NOW)
    assert a.store.staged == 0
    for batch in batches:
        a.store.persisted(batch, NOW)
    a.store.retire(c.id, NOW)
    assert a.store.staged == 0


def test_a_write_that_waits_for_the_disk_is_not_undone_by_a_retirement() -> None:
    a, _, c = trio()
    c.store.set_fleet("k", 1, NOW)
    c.store.add("s", "x")
    c.store.add("s", "y")
    a.take(c.flush())
    a.store.set_fleet("k", 2, later(1))
    a.store.remove("s", "x")
    batches = a.store.commit(later(1))
    a.store.remove("s", "y")
    a.store.retire(c.id, later(DAY_S))
    for batch in batches:
        a.store.persisted(batch, NOW)
    a.flush(later(DAY_S))
    assert a.store.fleet("k", later(DAY_S)) == 2
    assert a.store.elements("s") == []


def test_only_others_count_and_only_so_many_are_kept() -> None:
    a, b, c = trio()
    own = RegisterEntry(retired_key(c.id), 5, 1)
    c.store.set_owner("k", 1)
    b.take(c.flush())
    b.take([forge(c, 2, own)])
    assert b.store.retired(c.id) == 0
    for value in (0, -1, 2**63 - 1, True, "5", None):
        raw = encode_batch(
            a.id,
            1,
            1,
            ((1, 1),),
            [encode_entry(RegisterEntry(retired_key(c.id), value, 1))],
            a.private.sign,
        )
        reader = Replica(9)
        reader.meet([a, c])
        reader.take([*c.live(), raw])
        assert reader.store.retired(c.id) == 0
        assert c.id in reader.store.knowledge()
    for seed in range(10, 10 + MAX_RETIRED + 20):
        gone = Replica(seed)
        gone.store.set_owner("k", 1)
        a.meet([gone])
        a.take(gone.flush())
        a.store.retire(gone.id, later(seed))
        a.flush(later(seed))
    kept = a.store.fleet_items("member/retired/", later(1000))
    assert len(kept) == MAX_RETIRED
    assert a.store.retired(Replica(10).id) == 0
    assert a.store.retired(gone.id) == 1
    assert a.store.complete


# ------------------------------------------------------------------------- forks


def test_halves_of_a_proof_are_put_together() -> None:
    a, b, c = trio()
    left, right = (forge(a, 1, OwnerEntry("k", value)) for value in ("left", "right"))
    b.take([left, right])
    assert set(b.store.evidence(a.id)) == {left, right}
    assert b.store.live_batches(a.id) == []
    # `c` has dropped that number already.
    c.take([forge(a, 9, OwnerEntry("k", "later"))])
    first, again, second = (c.store.testify(raw, NOW) for raw in (left, left, right))
    assert first.status is again.status is MergeStatus.STALE
    assert second.status is MergeStatus.FORKED
    assert second.changes == (Change("owner", "k", a.id),)
    assert c.store.testify(left, NOW).status is MergeStatus.FORKED
    assert c.store.fingerprint() == b.store.fingerprint()
    assert c.store.knowledge() == b.store.knowledge()
    assert c.store.evidence(b.id) == ()
    # One that never heard of it, and one that holds the other half as a batch.
    for held in ([], [right]):
        reader = Replica(9)
        reader.meet([a])
        reader.take(held)
        for raw in b.store.evidence(a.id):
            reader.store.testify(raw, NOW)
        assert reader.store.fingerprint() == b.store.fingerprint()


def test_a_proof_takes_two_signatures_on_one_number() -> None:
    a, b, _ = trio()
    left, right = (forge(a, 1, OwnerEntry("k", value)) for value in ("left", "right"))
    forged = right[:-1] + bytes([right[-1] ^ 1])
    reader = Replica(9)
    assert reader.store.testify(left, NOW).status is MergeStatus.UNKNOWN_KEY
    statuses = [b.store.testify(raw, NOW).status for raw in (left, forged, forge(a, 2))]
    assert statuses == [MergeStatus.STALE, MergeStatus.BAD_SIGNATURE, MergeStatus.STALE]
    other = forge(a, 2, OwnerEntry("k", 1), epoch=2)
    assert b.store.testify(other, NOW).status is MergeStatus.STALE
    assert b.store.evidence(a.id) == ()
    assert b.store.knowledge() == {}


def test_only_so_many_halves_are_remembered() -> None:
    b = Replica(1)
    for seed in range(2, 2 + MAX_HALVES + 10):
        author = Replica(seed)
        b.meet([author])
        b.store.testify(forge(author, 1), NOW)
    assert len(b.store._halves) == MAX_HALVES


def test_testimony_does_not_silence_this_node_itself() -> None:
    a, _, _ = trio()
    a.store.set_owner("k", "mine")
    [batch] = a.flush()
    assert a.store.testify(batch.raw, NOW).status is MergeStatus.STALE
    assert not a.store.contested
    a.store.testify(forge(a, 1, OwnerEntry("k", "theirs")), NOW)
    assert a.store.contested
    assert a.store.owner(a.id, "k") == "mine"


# ------------------------------------------------------------------------ clocks


def test_a_node_that_starts_in_the_past_sees_the_fleets_registers() -> None:
    a, b, _ = trio()
    a.store.set_fleet("k", 1, NOW)
    b.take(a.flush(), past := NOW._replace(mono_s=5.0, wall_ms=0))
    assert b.store.fleet("k", past) is None
    assert b.store.hidden == 1
    b.store.clock.hint(NOW.wall_ms - 1000, past)
    assert b.store.mature(past) == (Change("fleet", "k", a.id),)
    assert b.store.fleet("k", past) == 1
    b.store.set_fleet("mine", 1, past)
    a.take(b.flush(past))
    entry = a.store.fleet_entry("mine", NOW)
    assert entry is not None
    assert entry[1] >> 16 >= NOW.wall_ms - 1000  # not in 1970
    a.store.set_fleet("k", 2, later(50))
    b.take(a.flush(later(50)), on := past._replace(mono_s=55.0, wall_ms=50_000))
    assert b.store.fleet("k", on) == 2  # the hint is carried on by the monotonic clock
    b.store.clock.hint(later(50).wall_ms - 4000, on)  # clocks differ a little
    assert b.store.fleet("k", on) == 2
    b.store.clock.hint(later(50).wall_ms - 10_000, on)
    assert b.store.fleet("k", on) is None


@pytest.mark.parametrize("jump_s", [-1e5, -3600, 3600, 1e5])
def test_no_jump_of_a_clock_freezes_a_key(jump_s: float) -> None:
    a, b, _ = replicas = trio()
    jumped = later(10)._replace(wall_ms=later(10).wall_ms + int(jump_s * 1000))
    a.store.set_fleet("k", "before", NOW)
    a.flush()
    exchange(replicas)
    a.store.set_fleet("k", "in the jump", jumped)
    a.flush(jumped)
    exchange(replicas, later(10))
    a.store.set_fleet("k", "after the jump", later(11))  # the clock is right again
    a.flush(later(11))
    exchange(replicas, later(11))
    assert a.store.fleet("k", later(11)) == "after the jump"
    b.store.set_fleet("k", "by another", later(20))
    b.flush(later(20))
    exchange(replicas, later(20))
    assert b.store.fleet("k", later(20)) == "by another"
    end = later(2e5)
    b.store.set_fleet("k", "at last", end)
    b.flush(end)
    exchange(replicas, end)
    assert {replica.store.fleet("k", end) for replica in replicas} == {"at last"}


def test_header_names_what_lives() -> None:
    """Rewriting to be rid of litter keeps the bound on live batches."""
    a, b, _ = replicas = trio()
    rng = random.Random(5)
    for count in range(600):
        now = later(count)
        a.store.set_fleet(f"k{rng.randrange(150)}", rng.choice([None, "v" * 50]), now)
        b.store.set_fleet(f"k{rng.randrange(150)}", rng.choice([None, 1]), now)
        for writer, other in ((a, b), (b, a)):
            batches = writer.flush(now)
            assert all(sum(1 for _ in sequences(batch.live)) <= 128 for batch in batches)
            assert len(writer.live()) <= 64
            other.take(batches, now)
        if count % 40 == 0:
            settle(replicas[:2], now)
    exchange(replicas, later(600))
    assert reads(a.store, later(600)) == reads(b.store, later(600))
