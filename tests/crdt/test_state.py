"""The derived state: changes say what reads differently, and only what is stated counts."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from crdt import AddEntry, Batch, Change, Dot, Entry, OwnerEntry, RegisterEntry, RemoveEntry
from crdt.entries import identity
from crdt.state import KEPT_CHANGES, State
from crdt.values import decode_value, encode_value

ORIGINS = (b"a", b"b")
KEYS = ("x", "y")
plain = st.sampled_from([None, 1, True, 1.0, "1", [1], [True], {"k": 1, "l": 2}, {"l": 2, "k": 1}])
dots = st.builds(Dot, st.sampled_from(ORIGINS), st.just(1), st.integers(1, 2))
keys = st.sampled_from(KEYS)
entries = st.one_of(
    st.builds(OwnerEntry, keys, plain),
    st.builds(RegisterEntry, keys, plain, st.integers(1, 9)),
    st.builds(AddEntry, keys, st.sampled_from([1, [1]]), dots),
    st.builds(RemoveEntry, keys, st.sampled_from([1, [1]]), dots),
)
contents = st.lists(st.lists(entries, max_size=4, unique_by=identity), max_size=8)


def batches_of(origin: bytes, items: list[list[Entry]]) -> list[Batch]:
    return [
        Batch(origin, 1, sequence, ((sequence, sequence),), tuple(content), b"")
        for sequence, content in enumerate(items, 1)
    ]


def shown(state: State, horizon: int) -> dict[Change, str]:
    """What each key reads, by the Change that would tell of it (for registers: of any origin)."""
    reads: dict[Change, Any] = {}
    for key in KEYS:
        for origin in ORIGINS:
            reads[Change("owner", key, origin)] = state.owner(origin, key)
        found = state.fleet(key, horizon)
        reads[Change("fleet", key, b"")] = None if found is None else found[0]
        reads[Change("set", key, b"")] = list(state.set_at(key))
    return {change: repr(_sorted(value)) for change, value in reads.items()}


def _sorted(value: Any) -> Any:
    return sorted(value.items()) if isinstance(value, dict) else value


@given(contents, contents, st.data())
def test_changes_are_what_reads_differently(
    first: list[list[Entry]], second: list[list[Entry]], data: st.DataObject
) -> None:
    waiting = [*batches_of(b"a", first), *batches_of(b"b", second)]
    state, horizon, held = State(), 0, []
    while waiting or held:
        before = shown(state, horizon)
        horizon = max(0, horizon + data.draw(st.integers(-2, 3)))
        changes = list(state.mature(horizon))
        origin = data.draw(st.sampled_from([batch.origin for batch in (*waiting, *held)]))
        mine = [batch for batch in held if batch.origin == origin]
        arriving: list[Batch | None] = [batch for batch in waiting if batch.origin == origin]
        put = data.draw(st.sampled_from([*arriving, None] if mine else arriving))
        drop = mine[: data.draw(st.integers(0 if put else 1, len(mine)))]
        changes += state.update(put, drop, origin, horizon)
        held = [batch for batch in [*held, *([put] if put else [])] if batch not in drop]
        waiting = [batch for batch in waiting if batch is not put]
        after = shown(state, horizon)
        told = {one if one.kind == "owner" else one._replace(origin=b"") for one in changes}
        differ = {change for change in after if before[change] != after[change]}
        # A register that matured and was superseded at once is told of, equal as it may read.
        assert differ <= told
        assert all(one in differ or one.kind == "fleet" for one in told)

        afresh = State()
        for batch in reversed(held):
            afresh.update(batch, (), batch.origin, horizon)
        assert shown(afresh, horizon) == after
        assert afresh.hidden == state.hidden


def test_what_is_only_stated_again_is_no_change() -> None:
    items: list[Entry] = [
        OwnerEntry("x", {"a": [1, 2.5], "b": None}),
        RegisterEntry("x", ["v"], 1),
        AddEntry("x", "e", Dot(b"a", 1, 1)),
    ]
    old, new = batches_of(b"a", [items, items])
    state = State()
    assert len(state.update(old, (), b"a", 9)) == 3
    assert state.update(new, [old], b"a", 9) == ()
    assert len(state.update(None, [new], b"a", 9)) == 3


@given(contents, contents, st.data())
def test_who_reads_again_what_changed_has_what_is_there(
    first: list[list[Entry]], second: list[list[Entry]], data: st.DataObject
) -> None:
    """Put and drop in any order, looked at now and then."""
    state, mark, mirror = State(), -1, dict[tuple[bytes, str], Any]()
    held: dict[bytes, list[Batch]] = {origin: [] for origin in ORIGINS}
    for batch in data.draw(st.permutations([*batches_of(b"a", first), *batches_of(b"b", second)])):
        mine = held[batch.origin]
        drop = mine[: data.draw(st.integers(0, len(mine)))]
        state.update(batch, drop, batch.origin, 0)
        held[batch.origin] = [*mine[len(drop) :], batch]
        if data.draw(st.booleans()):
            mark, changed = state.owners_changed(mark)
            if changed is None:
                mirror = {(origin, key): value for origin, key, value in state.owners("")}
            for origin, key in changed or ():
                mirror[origin, key] = state.owner(origin, key)
            found = {(origin, key): repr(value) for origin, key, value in state.owners("")}
            assert {k: repr(v) for k, v in mirror.items() if v is not None} == found
            assert state.owners_changed(mark) == (mark, set())


def test_who_has_missed_too_much_is_told_so() -> None:
    state, (mark, changed) = State(), State().owners_changed(-1)
    assert (mark, changed) == (0, None), "nothing was read yet"
    for sequence in range(1, KEPT_CHANGES + 1):
        batch = Batch(b"a", 1, sequence, ((1, sequence),), (OwnerEntry("k", sequence),), b"")
        state.update(batch, (), b"a", 0)
    assert state.owners_changed(mark) == (KEPT_CHANGES, {(b"a", "k")})
    batch = Batch(b"a", 1, sequence + 1, ((1, sequence + 1),), (OwnerEntry("k", None),), b"")
    state.update(batch, (), b"a", 0)
    assert state.owners_changed(mark) == (KEPT_CHANGES + 1, None)


nested = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(nested)
def test_a_value_that_was_read_may_be_changed(value: Any) -> None:
    """It is a copy, all the way down, in the form in which values are told."""
    stated = {"v": value, "list": [[], {}]}
    state = State()
    state.update(Batch(b"a", 1, 1, ((1, 1),), (OwnerEntry("k", stated),), b""), (), b"a", 0)
    read: Any = state.owner(b"a", "k")
    assert repr(read) == repr(decode_value(encode_value(stated)))
    for one in (read, read["list"], read["list"][0], read["list"][1]):
        one.clear()
    [(_, _, again)] = state.owners("k")
    assert repr(again) == repr(decode_value(encode_value(stated)))
