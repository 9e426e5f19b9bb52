"""The pure types: clock, dots, registers, sets, counters, and their laws."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt import Dot, GCounter, HybridClock, Instant, PNCounter, VersionVector
from crdt.registers import LwwMap
from crdt.sets import OrSet

HOUR_MS = 3_600_000
origins = st.sampled_from([b"a", b"b", b"c"])
dots = st.builds(Dot, origins, st.integers(1, 2), st.integers(1, 4))
Build = Callable[[list[Any]], Any]


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 2**41))))
def test_ticks_increase_and_the_horizon_never_falls(readings: list[tuple[int, int]]) -> None:
    clock, last, horizon, mono_s = HybridClock(), 0, 0, 0.0
    for step_s, wall_ms in readings:
        mono_s += step_s
        now = Instant(mono_s, wall_ms)
        tick = clock.tick(now)
        assert tick > last
        assert tick == clock.high_water
        assert horizon <= clock.horizon(now)
        assert clock.horizon(now) >= tick
        last, horizon = tick, clock.horizon(now)


def test_a_tick_holds_milliseconds_and_a_counter() -> None:
    clock, now = HybridClock(), Instant(0.0, 1_700_000_000_123)
    assert clock.tick(now) == 1_700_000_000_123 << 16
    assert clock.tick(now) == (1_700_000_000_123 << 16) + 1
    assert clock.tick(now, after=5 << 61) == (5 << 61) + 1


def test_observing_follows_others_but_not_into_the_future() -> None:
    clock, now = HybridClock(), Instant(0.0, 100_000)
    clock.observe(104_000 << 16, now)
    assert clock.tick(now) == (104_000 << 16) + 1
    clock.observe(106_000 << 16, now)
    assert clock.tick(now) == (104_000 << 16) + 2


def test_a_clock_resumes_from_its_high_water_mark() -> None:
    assert HybridClock(500 << 16).tick(Instant(0.0, 100)) == (500 << 16) + 1


def test_a_clock_set_back_still_follows_the_others() -> None:
    clock = HybridClock()
    clock.tick(Instant(0.0, 10 * HOUR_MS))
    back = Instant(600.0, 9 * HOUR_MS + 600_000)
    theirs = (10 * HOUR_MS + 600_000) << 16
    clock.observe(theirs, back)
    assert clock.tick(back) > theirs


LIE_MS = 1_700_000_000_000 + 100 * 365 * 24 * HOUR_MS


def test_a_hint_counts_until_the_fleet_says_otherwise_and_is_not_durable() -> None:
    clock, now = HybridClock(), Instant(0.0, 1000)
    own = clock.tick(now)
    clock.hint(LIE_MS, now)
    lied = clock.tick(now)
    assert lied == LIE_MS << 16
    assert clock.horizon(now) >> 16 == LIE_MS + 5000
    clock.observe(LIE_MS + 4000 << 16, now)
    assert clock.tick(now) > LIE_MS + 4000 << 16
    assert clock.high_water >> 16 == own >> 16, "nothing of it outlives a restart"
    clock.hint(2_000_000, now)
    assert clock.tick(now) == 2_000_000 << 16
    clock.hint(None, Instant(1.0, 2000))
    assert clock.tick(Instant(1.0, 2000)) == 2000 << 16
    assert clock.horizon(Instant(1.0, 2000)) >> 16 == 7000


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2**60) | st.none()), max_size=8))
def test_whatever_the_clocks_say_a_timestamp_fits(told: list[tuple[bool, int | None]]) -> None:
    clock, now = HybridClock(), Instant(1.0, 0)
    for step, (own, wall_ms) in enumerate(told):
        now = Instant(1.0 + step, wall_ms or 0 if own else now.wall_ms)
        if not own:
            clock.hint(wall_ms, now)
        shown = clock.horizon(now)
        clock.observe(shown, now)
        assert clock.high_water <= clock.tick(now, after=shown) < 2**64


def test_a_mark_that_no_clock_can_show_is_none() -> None:
    assert HybridClock(1 << 73).tick(Instant(0.0, 100)) == 100 << 16


def test_rewriting_what_is_dated_ahead_does_not_move_the_horizon_on_and_on() -> None:
    clock, now = HybridClock(), Instant(0.0, 100_000)
    for _ in range(5):
        clock.tick(now, after=clock.horizon(now))
    assert clock.horizon(now) >> 16 <= 105_001


def as_vector(items: list[Any]) -> VersionVector:
    built = VersionVector()
    for dot in items:
        built.observe(dot)
    return built


def as_counter(items: list[Any]) -> PNCounter:
    # An origin's own tally is the same history everywhere, seen up to some point.
    built = PNCounter()
    for origin, length in items:
        seen = PNCounter()
        for step in range(length):
            seen.increment(origin, 1, 3 if step % 3 else -1)
        built = built.merge(seen)
    return built


LAWS = [
    (as_vector, st.lists(dots), lambda v: [v.newest(o) for o in (b"a", b"b", b"c")]),
    (as_counter, st.lists(st.tuples(origins, st.integers(0, 9))), lambda c: c.value),
]


@pytest.mark.parametrize(("build", "items", "read"), LAWS)
@given(data=st.data())
def test_merging_is_commutative_associative_idempotent(
    build: Build, items: st.SearchStrategy[list[Any]], read: Callable[[Any], object], data: Any
) -> None:
    a, b, c = (build(data.draw(items)) for _ in range(3))
    assert read(a.merge(b)) == read(b.merge(a))
    assert read(a.merge(b).merge(c)) == read(a.merge(b.merge(c)))
    assert read(a.merge(a)) == read(a)
    assert read(a.merge(b).merge(b)) == read(a.merge(b))


@given(st.lists(st.tuples(st.integers(1, 9), origins), unique=True), st.randoms())
def test_a_register_is_the_greatest_stamp_whatever_came_and_went(
    stamps: list[tuple[int, bytes]], rng: Any
) -> None:
    built, kept = LwwMap(), stamps[::2]
    for stamp in rng.sample(stamps, len(stamps)):
        built.put("k", stamp, list(stamp))
    for stamp in rng.sample(stamps[1::2], len(stamps[1::2])):
        built.drop("k", stamp)
    newest = built.newest("k")
    assert (newest and newest[0]) == (max(kept) if kept else None)
    below = built.newest("k", (5,))
    early = [stamp for stamp in kept if stamp[0] < 5]
    assert (below and below[0]) == (max(early) if early else None)


def test_a_register_of_none_counts_as_absent() -> None:
    built = LwwMap()
    built.put("k", (1,), "v")
    built.put("k", (2,), None)
    assert list(built.items("")) == []
    built.drop("k", (2,))
    assert list(built.items("k")) == [("k", "v")]


def test_an_add_wins_over_a_concurrent_remove() -> None:
    seen, unseen, other = Dot(b"a", 1, 1), Dot(b"a", 1, 2), Dot(b"b", 1, 1)
    built = OrSet()
    built.add(b"x", seen)
    built.remove(b"x", seen)
    assert b"x" not in built
    for concurrent in (unseen, other):
        built.add(b"x", concurrent)
        assert list(built) == [b"x"]
        built.drop_add(b"x", concurrent)
    assert b"x" not in built


def test_a_set_keeps_nothing_of_what_is_no_longer_stated() -> None:
    built, dot = OrSet(), Dot(b"a", 1, 1)
    built.add(b"x", dot)
    built.add(b"x", dot)  # re-emitted: two batches state it
    built.remove(b"x", dot)
    built.drop_add(b"x", dot)
    assert built.holds(b"x", dot)
    built.drop_add(b"x", dot)
    assert not built.holds(b"x", dot)
    built.drop_remove(b"x", dot)
    assert len(built) == 0


def test_version_vectors_order_what_was_seen() -> None:
    old, new = as_vector([Dot(b"a", 1, 9)]), as_vector([Dot(b"a", 2, 1), Dot(b"b", 1, 1)])
    assert old <= new
    assert not new <= old
    assert new.covers(Dot(b"a", 1, 99))
    assert not new.covers(Dot(b"b", 1, 2))
    assert old.merge(new) == new


def test_counters_count_once_per_origin_and_epoch() -> None:
    mine, theirs = GCounter(), GCounter()
    mine.increment(b"a", 1, 5)
    theirs.increment(b"a", 1, 3)  # an older view of the same tally
    theirs.increment(b"a", 2, 2)  # after a restart
    theirs.increment(b"b", 1)
    assert mine.merge(theirs).value == 8
    with pytest.raises(ValueError, match="count down"):
        mine.increment(b"a", 1, -1)
    both = PNCounter()
    both.increment(b"a", 1, 5)
    both.increment(b"a", 1, -7)
    assert both.value == -2
    told = PNCounter(GCounter(both.up.tallies), GCounter(both.down.tallies))
    assert told == both
    told.increment(b"a", 1)
    assert both.up.tallies == {(b"a", 1): 5}
