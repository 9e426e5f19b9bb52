"""Who is retired comes back with nothing that is forgotten, and nobody else loses anything."""

import pytest

import crdt.replica
from crdt import Change, MergeStatus
from crdt.codec import encode_batch, encode_entry
from crdt.entries import Entry, OwnerEntry, RegisterEntry, RemoveEntry, register_identity
from crdt.log import Batch
from crdt.retirement import retired_key, subject_of
from tests.crdt.replicas import NOW, Replica, exchange, later, reads, trio
from tests.crdt.test_forgetting import DAY_S, calm
from tests.crdt.test_store import forge

HOUR_S = 3600.0


def names(entry: Entry, key: str) -> bool:
    return isinstance(entry, RegisterEntry) and entry.key == key


def forgotten_fleet() -> tuple[Replica, Replica, Replica]:
    """`c` is retired, and what it had said for all is deleted; the tombstones are gone."""
    a, b, c = trio()
    c.store.set_owner("own", 1)
    c.store.set_fleet("of c", 1, NOW)
    c.store.add("s", "of c")
    c.flush()
    for replica in (a, b):
        replica.store.set_owner("own", 1)
        replica.flush()
    exchange([a, b, c])
    a.store.retire(c.id, later(DAY_S))
    a.flush(later(DAY_S))
    exchange([a, b], later(DAY_S))
    a.store.set_fleet("of c", None, later(DAY_S))
    a.store.remove("s", "of c")
    a.flush(later(DAY_S))
    calm([a, b], DAY_S)
    assert a.store.fleet_entry("of c", later(2 * DAY_S)) is None
    return a, b, c


def reunited(a: Replica, b: Replica, c: Replica, seconds: float = 2 * DAY_S) -> None:
    """All meet, and only what `c` has said since is there."""
    c.meet([a, b])
    now = later(seconds)
    for _ in range(4):
        exchange([a, b, c], now)
        for replica in (a, b, c):
            if replica.store.sweep(now):
                replica.flush(now)
    exchange([a, b, c], now)
    for replica in (a, b, c):
        assert replica.store.fingerprint() == a.store.fingerprint()
        assert replica.store.complete
        assert replica.store.fleet("of c", now) is None
        assert replica.store.elements("s") == ["new"]
        assert replica.store.fleet("new", now) == 1
        assert replica.store.owner(c.id, "own") == 1


@pytest.mark.parametrize("restarts", [1, 2, 3])
@pytest.mark.parametrize("wrong_s", [0.0, -1e9, 1e9])
def test_a_member_that_restarted_alone_brings_nothing_back(restarts: int, wrong_s: float) -> None:
    a, b, c = forgotten_fleet()
    for count in range(restarts):
        alone = later(2 * DAY_S)
        alone = alone._replace(wall_ms=max(0, alone.wall_ms + round(wrong_s * 1000)))
        c = c.restarted(alone)
        if not count:  # what is new stays, however often it is carried over
            c.store.set_fleet("new", 1, alone)
            c.store.add("s", "new")
        c.store.set_owner("boot", count)
        c.flush(alone)
    reunited(a, b, c, 2 * DAY_S + max(0.0, wrong_s))


def test_a_member_that_retired_others_meanwhile_brings_nothing_back() -> None:
    a, b, c = forgotten_fleet()
    now = later(2 * DAY_S)
    for seed in (7, 8):  # each begins an epoch
        stranger = Replica(seed)
        stranger.store.set_owner("own", 1)
        c.meet([stranger])
        c.take(stranger.flush())
        assert c.store.retire(stranger.id, now)
        c.flush(now)
    assert c.store.epoch == 3
    c.store.set_fleet("new", 1, now)
    c.store.add("s", "new")
    c.flush(now)
    reunited(a, b, c)


def test_a_member_that_lost_its_disk_as_well_brings_nothing_back() -> None:
    a, b, c = forgotten_fleet()
    now = later(2 * DAY_S)
    for _ in range(2):
        c = c.restarted(now)
        c.store.set_fleet("new", 1, now)
        c.store.add("s", "new")
        c.flush(now)
    a.take(c.live(), now)
    reunited(a, b, c.restarted(now, journal=[]))


def test_what_is_taken_in_after_the_retirement_is_taken_back_too() -> None:
    """Peers give back one batch after another, and the word of the retirement in between."""
    a, b, c = forgotten_fleet()
    now = later(2 * DAY_S)
    old = c.restarted(now)
    old.store.set_owner("boot", 1)
    old.store.set_fleet("new", 1, now)
    old.store.add("s", "new")
    for count in range(20):
        old.store.set_fleet(f"more{count}", "v" * 60, now)
    old.flush(now)
    *most, last = old.live()
    fresh = c.restarted(now, journal=[])
    fresh.meet([a, b])
    fresh.take(most, now)
    fresh.take([*a.live(), *b.live()], now)
    fresh.take([last], now)
    assert fresh.store.sweep(now)
    fresh.flush(now)
    fresh.take(most, now)
    reunited(a, b, fresh)


def test_a_remove_that_was_carried_over_still_removes() -> None:
    a, b, c = trio()
    b.store.add("s", "x")
    b.flush()
    c.store.set_owner("own", 1)
    c.flush()
    exchange([a, b, c])
    c.store.remove("s", "x")
    c.flush()
    a.store.retire(c.id, later(DAY_S))
    a.flush(later(DAY_S))
    exchange([a, b], later(DAY_S))
    fresh = c.restarted(later(DAY_S))
    fresh.store.set_owner("own", 2)
    fresh.flush(later(DAY_S))
    fresh.meet([a, b])
    for _ in range(2):
        exchange([a, b, fresh], later(DAY_S))
        fresh.flush(later(DAY_S))
    assert any(isinstance(entry, RemoveEntry) for entry in fresh.store._writer.current.values())
    assert a.store.elements("s") == b.store.elements("s") == []


def carried_over(a: Replica, b: Replica, c: Replica) -> Replica:
    """`c` returns, started anew since `a` retired it, and `b` has heard all."""
    fresh = c.restarted(later(DAY_S))
    fresh.store.set_owner("own", 2)
    fresh.flush(later(DAY_S))
    fresh.meet([a, b])
    a.take(fresh.live(), later(DAY_S))
    for count in range(40):  # all that is beaten may go
        a.store.set_owner("k", count)
        a.flush(later(DAY_S))
    for _ in range(3):
        exchange([a, b, fresh], later(DAY_S))
        fresh.flush(later(DAY_S))
        a.flush(later(DAY_S))
    return fresh


def test_no_value_gives_way_to_one_that_is_taken_back() -> None:
    a, b, c = trio()
    for count in range(40):  # so that batches hold nothing else
        c.store.set_fleet(f"k{count}", "seen", NOW)
    c.flush()
    exchange([a, b, c])
    for count in range(40):
        c.store.set_fleet(f"k{count}", "unseen", later(HOUR_S))
    c.flush(later(HOUR_S))
    retire(a, c, DAY_S)
    exchange([a, b], later(DAY_S))
    fresh = carried_over(a, b, c)
    for replica in (a, b, fresh):
        kept = replica.store.fleet_items("k", later(DAY_S))
        assert [value for _, value in kept] == ["seen"] * 40


def test_a_value_gives_way_to_one_that_stays_though_its_author_was_retired() -> None:
    a, b, c = sorted(trio(), key=lambda one: one.id)
    c.store.set_owner("own", 1)
    c.flush()
    exchange([a, b, c])
    retire(a, c)
    fresh = c.restarted(NOW)
    fresh.meet([a, b])
    exchange([a, b, fresh])
    now = later(DAY_S)
    for replica in (a, fresh):  # at the same time, to the millisecond
        replica.store.set_fleet("k", None, now)
        replica.flush(now)
    a.take(fresh.live(), now)
    own, theirs = (one.store._writer.current for one in (a, fresh))
    about = register_identity("k")
    [mine, other] = (one[about] for one in (own, theirs))
    assert isinstance(mine, RegisterEntry)
    assert isinstance(other, RegisterEntry)
    assert mine.timestamp == other.timestamp
    a.store.set_owner("k", 1)
    a.flush(now)
    assert about not in a.store._writer.current


# ---------------------------------------------------------------- what is said again


def retire(a: Replica, c: Replica, seconds: float = 0.0) -> list[Batch]:
    assert a.store.retire(c.id, later(seconds))
    return a.flush(later(seconds))


def test_a_register_of_later_is_said_again() -> None:
    a, b, c = trio()
    ahead = later(2 * DAY_S)
    b.store.set_fleet("over b's", "of b", NOW)
    b.flush()
    for key in ("alone", "over b's"):
        c.store.set_fleet(key, "of c", ahead)
    c.store.set_fleet("deleted", None, ahead)
    c.flush()
    exchange([a, b, c])
    assert a.store.hidden == 3
    retire(a, c, DAY_S)
    exchange([a, b], later(DAY_S))
    for replica in (a, b):
        assert c.id not in replica.store.origins
        assert replica.store.hidden == 3
        assert replica.store.fleet("over b's", later(DAY_S)) == "of b"
        assert {one.key for one in replica.store.mature(ahead)} == {"alone", "deleted", "over b's"}
        assert replica.store.fleet("alone", ahead) == "of c"
        assert replica.store.fleet("over b's", ahead) == "of c"


def test_a_value_of_now_is_not_given_up_for_one_of_later() -> None:
    a, b, c = trio()
    a.store.set_fleet("of a", "now", NOW)
    a.flush()
    c.store.set_fleet("of c", "now", NOW)
    c.store.set_owner("stays", 1)
    c.flush()
    for key in ("of a", "of c"):
        c.store.set_fleet(key, "later", later(2 * DAY_S))
    c.flush()
    exchange([a, b, c])
    retire(a, c, DAY_S)
    exchange([a, b], later(DAY_S))
    for replica in (a, b):
        for key in ("of a", "of c"):
            assert replica.store.fleet(key, later(DAY_S)) == "now"


def test_what_a_member_says_of_itself_is_not_said_in_anothers_name() -> None:
    a, b, c = trio()
    own = RegisterEntry(retired_key(c.id), 2**62 - 1, later(1).wall_ms << 16)
    raw = forge(c, 1, own, OwnerEntry("k", 1))
    for replica in (a, b):
        replica.take([raw])
    retire(a, c, DAY_S)
    exchange([a, b], later(DAY_S))
    c.store.set_owner("k", 2)
    for replica in (a, b):
        assert replica.store.retired(c.id) == 1
    author = forge(c, 1, own, OwnerEntry("k", 2), epoch=2)
    for replica in (a, b):
        assert replica.take([author])[0].status is MergeStatus.NEW
    retire(b, a, 2 * DAY_S)  # nor by who retires the author of the retirement
    assert b.store.retired(c.id) == 1
    assert b.store.retire(c.id, later(3 * DAY_S))


def test_what_a_member_says_of_itself_does_not_beat_what_others_say() -> None:
    a, _, c = trio()
    c.store.set_owner("k", 1)
    a.take(c.flush())
    retire(a, c)
    own = RegisterEntry(retired_key(c.id), 2**62 - 1, later(HOUR_S).wall_ms << 16)
    a.take([forge(c, 1, own, epoch=2)], later(DAY_S))
    a.store.set_owner("k", 1)
    a.flush(later(DAY_S))
    assert any(names(entry, retired_key(c.id)) for entry in a.store._writer.current.values())
    assert a.store.retired(c.id) == 1


# -------------------------------------------------------------------- authors with gaps


def two_batches(a: Replica, c: Replica) -> tuple[bytes, bytes]:
    """`a` retires `c` in a commit of two batches; the one that says so, and the other."""
    for count in range(14):
        c.store.set_fleet(f"of c{count}", "v" * 60, NOW)
    a.take(c.flush())
    batches = retire(a, c, DAY_S)
    assert len(batches) == 2
    [told] = [one for one in batches if any(subject_of(entry.key) for entry in one.entries)]
    [other] = [one for one in batches if one is not told]
    return told.raw, other.raw


def test_a_retirement_counts_nowhere_before_all_that_goes_with_it_is_there() -> None:
    a, b, c = trio()
    told, other = two_batches(a, c)
    b.take(c.live())
    late = Replica(9)
    late.meet([a, b, c])
    for replica in (b, late):  # the author dies in the middle of it
        replica.take([told], later(DAY_S))
        replica.take(c.live(), later(DAY_S))
        assert replica.store.retired(c.id) == 0
        assert replica.store.fleet("of c0", later(DAY_S)) == "v" * 60
    assert b.store.fingerprint() == late.store.fingerprint()
    retire(b, a, 2 * DAY_S)  # which loses nothing of `c`'s either
    exchange([b, late], later(2 * DAY_S))
    for replica in (b, late):
        assert replica.store.retired(a.id) == 1
        assert len(replica.store.fleet_items("of c", later(2 * DAY_S))) == 14
    assert b.store.fingerprint() == late.store.fingerprint()
    assert [merge.status for merge in b.take([other])] == [MergeStatus.STALE]


def test_a_later_gap_in_the_authors_log_undoes_no_retirement() -> None:
    a, b, c = trio()
    told, other = two_batches(a, c)
    old = c.live()
    b.take([told, other, *old], later(DAY_S))
    assert c.id not in b.store.origins
    for count in range(40):
        a.store.set_owner(f"k{count}", "v" * 60)
    b.take(a.flush(later(DAY_S))[:1])
    assert not b.store.complete
    assert {merge.status for merge in b.take(old)} == {MergeStatus.STALE}
    assert b.store.retired(c.id) == 1


# ------------------------------------------------------------------------- memory


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crdt.replica, "MAX_LOG_BYTES", 20_000)
    monkeypatch.setattr(crdt.replica, "_SHARE_BYTES", 4_000)


def held_bytes(replica: Replica) -> int:
    logs = replica.store._logs.values()
    return sum(
        len(batch.raw)
        for log in logs
        for batch in (*log.former, *log.batches.values(), *log.evidence)
    )


def flood(author: Replica, count: int) -> list[bytes]:
    """Batches that all live."""
    entry = encode_entry(OwnerEntry("k", bytes(600)))
    return [
        encode_batch(author.id, 1, number, ((1, number),), [entry], author.private.sign)
        for number in range(1, count + 1)
    ]


@pytest.mark.usefixtures("little_room")
def test_a_hostile_log_takes_no_more_than_there_is_room_for() -> None:
    a, b, c = trio()
    statuses = [merge.status for merge in a.take(flood(c, 60))]
    assert statuses[:25] == [MergeStatus.NEW] * 25
    assert statuses[-30:] == [MergeStatus.FULL] * 30
    assert held_bytes(a) == a.store._log_bytes <= 20_000
    for count in range(3):  # others of usual size are heard, and so is the node itself
        b.store.set_owner(f"k{count}", bytes(500))
        assert {merge.status for merge in a.take(b.flush())} == {MergeStatus.NEW}
    for count in range(20):
        a.store.set_owner(f"k{count}", bytes(600))
    a.flush()
    assert len(a.store.owners()) == 1 + 3 + 20
    assert held_bytes(a) == a.store._log_bytes > 20_000
    a.take([forge(c, 1, OwnerEntry("k", "other"))])  # a proof of a fork is
    assert a.store.evidence(c.id)
    assert held_bytes(a) == a.store._log_bytes
    for count in range(12):
        b.store.set_owner("k", bytes(600 + count))
        assert {merge.status for merge in a.take(b.flush())} == {MergeStatus.NEW}


def test_the_bytes_held_are_counted_whatever_happens() -> None:
    a, b, c = trio()

    def check(one: Replica) -> bool:
        return held_bytes(one) == one.store._log_bytes

    for count in range(60):
        c.store.set_owner(f"k{count % 7}", bytes(count * 10))
        c.store.add("s", count % 5)
        a.take(c.flush(later(count)), later(count))
        assert check(a)
    batches = c.restarted(later(100)).flush(later(100))
    b.take(c.live()[1:])
    assert check(b)
    a.take(batches, later(100))
    retire(a, c, DAY_S)
    exchange([a, b], later(DAY_S))
    assert check(a)
    assert check(b)
    a.take([forge(b, 1, OwnerEntry("k", value)) for value in (1, 2)])
    assert check(a)
    retire(a, b, 2 * DAY_S)
    assert check(a)
    assert a.store.origins == {a.id}


# ------------------------------------------------------------------------- clocks


def test_a_register_that_is_hidden_again_is_told_of_and_shown_in_its_time() -> None:
    a, b, _ = trio()
    b.store.set_fleet("k", "before", NOW)
    b.flush()
    a.store.set_fleet("k", "later", later(HOUR_S))
    b.take(a.flush(later(HOUR_S)))
    change = (Change("fleet", "k", a.id),)
    assert b.store.hidden == 1
    for _ in range(2):
        b.store.clock.hint(later(HOUR_S).wall_ms, NOW)
        assert b.store.mature(NOW) == change
        assert (b.store.fleet("k", NOW), b.store.hidden) == ("later", 0)
        b.store.clock.hint(None, NOW)
        assert b.store.mature(NOW) == change
        assert (b.store.fleet("k", NOW), b.store.hidden) == ("before", 1)
        assert b.store.mature(NOW) == ()
    assert b.store.mature(later(HOUR_S)) == change
    assert reads(b.store, later(HOUR_S))["fleet"] == [("k", "later")]
