"""Batches and values as bytes: round trips, golden vectors, hostile input.

`python -m tests.crdt.test_codec` writes the golden batches anew; a change there is one of protocol.
"""

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt import (
    AddEntry,
    Batch,
    DecodeError,
    Dot,
    Entry,
    OwnerEntry,
    RegisterEntry,
    RemoveEntry,
    decode_batch,
    decode_value,
    encode_value,
)
from crdt.codec import MAX_LIVE_BYTES, ROOM_BYTES, encode_batch, encode_entry, encode_live
from crdt.entries import identity
from crdt.log import MAX_BATCH_BYTES, ranges, sequences
from crdt.values import same
from tests.crdt.replicas import Replica, verify

VECTORS = Path(__file__).parents[1] / "vectors" / "crdt_batches.json"
ORIGIN, OTHER = bytes(range(16)), bytes(range(16, 32))

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=9)
    | st.binary(max_size=9)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
keys = st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=12)
entries = st.one_of(
    st.builds(OwnerEntry, keys, values),
    st.builds(RegisterEntry, keys, values, st.integers(0, 2**64 - 1), st.integers(0, 2**63 - 1)),
    st.builds(
        AddEntry, keys, values, st.builds(Dot, st.just(ORIGIN), *[st.integers(0, 2**60)] * 2)
    ),
    st.builds(
        RemoveEntry, keys, values, st.builds(Dot, st.just(OTHER), *[st.integers(0, 2**60)] * 2)
    ),
)


def sign(message: bytes) -> bytes:
    return bytes(64)


def raw_batch(items: list[Entry], sequence: int = 9, live: Any = ((4, 4), (8, 9))) -> bytes:
    return encode_batch(ORIGIN, 7, sequence, live, [encode_entry(e) for e in items], sign)


def from_fields(fields: object, version: int = 1) -> bytes:
    return bytes([version]) + ORIGIN + msgpack.packb(fields) + bytes(64)


@given(values)
def test_values_survive_the_round_trip(value: Any) -> None:
    assert encode_value(decode_value(encode_value(value))) == encode_value(value)
    assert decode_value(encode_value(value)) == value


def test_equal_maps_have_equal_bytes() -> None:
    assert encode_value({"b": 1, "a": {"d": 2, "c": 3}}) == encode_value(
        {"a": {"c": 3, "d": 2}, "b": 1}
    )


@pytest.mark.parametrize("bad", [object(), {1: 2}, 2**64, {"a": {1, 2}}, [1j], "\ud800"])
def test_values_that_are_not_plain_data_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError):
        encode_value(bad)


def test_depth_is_bounded_both_ways() -> None:
    value: Any = 1
    for _ in range(8):
        value = [value]
    assert decode_value(encode_value(value)) == value
    with pytest.raises(ValueError, match="deep"):
        encode_value([value])
    for depth in (9, 700, 5000):
        with pytest.raises(DecodeError):
            decode_value(b"\x91" * depth + b"\x01")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x01\x01",
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xd4\x05\x00",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\xa1\xff",
        b"\x81\xc4\x01a\x01",
        bytes(20_000),
    ],
)
def test_malformed_values_are_decode_errors(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_value(data)


@given(st.lists(entries, max_size=16, unique_by=identity))
def test_batches_survive_the_round_trip(items: list[Entry]) -> None:
    try:
        raw = raw_batch(items)
    except AssertionError:
        return  # longer than 1000 bytes
    batch = decode_batch(raw)
    assert batch == Batch(ORIGIN, 7, 9, ((4, 4), (8, 9)), tuple(items), raw)


@given(st.sets(st.integers(1, 300), max_size=60), st.integers(301, 400), st.integers(0, 9))
def test_live_lists_survive_the_round_trip(numbers: set[int], sequence: int, ahead: int) -> None:
    numbers |= set(range(sequence, sequence + ahead + 1))
    live = ranges(sorted(numbers))
    assert list(sequences(live)) == sorted(numbers)
    raw = bytes([1]) + ORIGIN + b"\x94\x01" + msgpack.packb(sequence)
    assert decode_batch(raw + encode_live(live, sequence) + b"\x90" + bytes(64)).live == live


GOOD: list[Any] = [7, 9, [0, 2, 3, 1], [[0, "k", 1]]]


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [],
        GOOD[:3],
        [*GOOD, 0],
        [0, *GOOD[1:]],
        [True, *GOOD[1:]],
        [2**63, *GOOD[1:]],
        [7, 0, [0, 1], []],
        [7, 2**32, [0, 1], []],
        [7, 9, [], []],
        [7, 9, [0], []],
        [7, 9, [0, 2, 3], []],
        [7, 9, [0, 0, 1, 1], []],
        [7, 9, [0, 10], []],
        [7, 9, [0, 2, 3, 5], []],
        [7, 9, [-1, 1], []],
        [7, 9, [1, 1], []],
        [7, 9, [2, 2], []],
        [7, 900, [0, 129], []],
        [7, 900, [129, 130], []],
        [7, 9, [0, 1.0], []],
        [7, 9, "x", []],
        [7, 9, [0, 1], {}],
        [7, 9, [0, 1], [[0, f"k{n}", 1] for n in range(17)]],
        [7, 9, [0, 1], [[0, "k", 1], [0, "k", 2]]],
        [7, 9, [0, 1], [[2, "k", 1, 1, 1], [2, "k", 1, 1, 2]]],
        [7, 9, [0, 1], [[0, "", 1]]],
        [7, 9, [0, 1], [[0, "k" * 97, 1]]],
        [7, 9, [0, 1], [[0, "\u00e4" * 49, 1]]],
        [7, 9, [0, 1], [[0, b"k", 1]]],
        [7, 9, [0, 1], [[0, "k"]]],
        [7, 9, [0, 1], [[0, "k", 1, 2]]],
        [7, 9, [0, 1], [[-1, "k", 1]]],
        [7, 9, [0, 1], [[4, "k", 1, 1, 1, 1, 1]]],
        [7, 9, [0, 1], [[False, "k", 1]]],
        [7, 9, [0, 1], [[1, "k", 1, -1]]],
        [7, 9, [0, 1], [[1, "k", 1, None]]],
        [7, 9, [0, 1], [[3, "k", 1, b"short", 1, 1]]],
        [7, 9, [0, 1], [[0, "k", {"a": msgpack.ExtType(1, b"")}]]],
        [7, 9, [0, 1], [[0, "k", {b"a": 1}]]],
        [7, 9, [0, 1], [[0, "k", "v" * 698]]],
        [7, 9, [0, 1], [[1, "k", b"v" * 698, 1]]],
        [7, 9, [0, 1], [[2, "k", b"e" * 255, 1, 1]]],
        [7, 9, [0, 1], [[3, "k", "e" * 255, OTHER, 1, 1]]],
        [7, 9, [0, 1], [[1, "k", 1, 1, 0]]],
        [7, 9, [0, 1], [[1, "k", 1, 1, 2**63]]],
        [7, 9, [0, 1], [[1, "k", 1, 1, True]]],
        [7, 9, [0, 1], [[1, "k", 1, 1, 1, 1]]],
        [7, 9, [0, 1], [[0, "k", 1, 1, 1]]],
    ],
)
def test_fields_out_of_bounds_are_decode_errors(fields: Any) -> None:
    with pytest.raises(DecodeError):
        decode_batch(from_fields(fields))


@given(st.text() | st.text("\u00e4\u20ac\U0001f600", min_size=160, max_size=250) | values)
def test_values_are_read_up_to_their_limit(value: Any) -> None:
    size = len(encode_value(value))
    for entry, limit in (([0, "k", value], 700), ([2, "k", value, 1, 1], 256)):
        raw = from_fields([7, 9, [0, 1], [entry]])
        if size <= limit:
            assert len(decode_batch(raw).entries) == 1
        else:
            with pytest.raises(DecodeError):
                decode_batch(raw)


def test_a_value_is_as_long_as_in_its_canonical_form() -> None:
    # On the wire in 32 bits each, kept in 64.
    short = b"\xdc\x00\x64" + b"\xca\x3f\x80\x00\x00" * 100
    assert len(short) < 700 < len(encode_value([1.0] * 100))
    fields = b"\x94\x07\x09\x92\x00\x01\x91\x93\x00\xa1k" + short
    with pytest.raises(DecodeError, match="too long"):
        decode_batch(b"\x01" + ORIGIN + fields + bytes(64))


@given(values, values)
def test_values_are_the_same_when_their_bytes_are(one: Any, other: Any) -> None:
    assert same(one, other) == (encode_value(one) == encode_value(other))
    assert same(one, decode_value(encode_value(one)))


@pytest.mark.parametrize(
    ("one", "other"), [(1, True), ([1], [True]), (0.0, -0.0), ({"a": 1}, {"a": 1.0}), (None, 0)]
)
def test_equal_to_python_is_not_the_same(one: Any, other: Any) -> None:
    assert not same(one, other)
    assert same({"a": one, "b": other}, {"b": other, "a": one})


def test_the_frame_is_checked() -> None:
    assert decode_batch(from_fields(GOOD)).live == ((4, 4), (8, 9))
    for raw in (b"", from_fields(GOOD, version=2), from_fields(GOOD)[:81], bytes(1001)):
        with pytest.raises(DecodeError):
            decode_batch(raw)


def sample() -> bytes:
    replica = Replica(1, epoch=3)
    replica.store.set_owner("node", {"name": "n", "accelerators": [{"provider": "cpu"}]})
    replica.store.add("cache/a", b"\x01" * 16)
    return replica.flush()[0].raw


def test_every_truncation_and_every_trailing_byte_is_a_decode_error() -> None:
    raw = sample()
    for length in range(len(raw)):
        # A cut inside the signature shifts it into the fields, so there is no lucky length.
        with pytest.raises(DecodeError):
            decode_batch(raw[:length])
    for extra in (b"\x00", b"\xc0" * 7, bytes(64)):
        with pytest.raises(DecodeError):
            decode_batch(raw + extra)


def test_every_flipped_bit_is_a_decode_error_or_a_wrong_signature() -> None:
    raw = sample()
    key = Replica(1).key
    for bit in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            batch = decode_batch(bytes(flipped))
        except DecodeError:
            continue
        if bit % 5 == 0:  # a signature check takes a while
            assert not verify(key, batch.raw[:-64], batch.raw[-64:])


@given(st.binary(max_size=400))
def test_arbitrary_bytes_give_a_batch_or_a_decode_error(data: bytes) -> None:
    for raw in (data, b"\x01" + ORIGIN + data, b"\x01" + ORIGIN + b"\x94" + data):
        try:
            assert decode_batch(raw).raw == raw
        except DecodeError:
            pass


@given(st.recursive(scalars, lambda inner: st.lists(inner, max_size=5), max_leaves=30))
def test_arbitrary_fields_give_a_batch_or_a_decode_error(fields: Any) -> None:
    for shape in (fields, [7, 9, [0, 2, 3, 1], fields], [7, 9, [0, 2, 3, 1], [fields]]):
        try:
            decode_batch(from_fields(shape))
        except DecodeError:
            pass


def test_the_largest_entry_fits_beside_the_longest_live_list() -> None:
    live = ranges([*range(2**32 - 70_000, 2**32 - 1, 5000), 2**32 - 1])
    assert MAX_LIVE_BYTES - 4 <= len(encode_live(live, 2**32 - 1)) <= MAX_LIVE_BYTES
    largest = RegisterEntry("k" * 96, b"v" * 697, 2**64 - 1, 2**63 - 1)
    assert len(encode_value(largest.value)) == 700
    assert len(encode_entry(largest)) <= ROOM_BYTES
    raw = encode_batch(ORIGIN, 2**63 - 1, 2**32 - 1, live, [encode_entry(largest)], sign)
    assert len(raw) <= MAX_BATCH_BYTES


def test_a_small_value_makes_a_small_batch() -> None:
    entry = RegisterEntry("bench/key0", "x" * 103, 2**63)
    raw = encode_batch(ORIGIN, 1, 1000, ((1000, 1000),), [encode_entry(entry)], sign)
    assert len(encode_value(entry.value)) == 105
    assert len(raw) <= 105 + 115


VECTOR_BATCHES: dict[str, tuple[int, int, Any, list[Entry]]] = {
    "owner": (1, 1, ((1, 1),), [OwnerEntry("node", {"api": "a:1", "name": "n"})]),
    "register": (
        2,
        300,
        ((1, 1), (290, 295), (300, 300)),
        [RegisterEntry("host/cam", OTHER, 2**60)],
    ),
    "said again": (
        2**40,
        1,
        ((1, 1),),
        [RegisterEntry("host/cam", OTHER, 2**60, 2**39), RegisterEntry("x", None, 2**60, 1)],
    ),
    "deleted": (2, 301, ((301, 301),), [RegisterEntry("host/cam", None, 2**60 + 1)]),
    "set": (
        2**40,
        7,
        ((6, 7),),
        [
            AddEntry("cache/cam/0123456789abcdef", ORIGIN, Dot(b"", 2**40, 112)),
            RemoveEntry("cache/cam/0123456789abcdef", OTHER, Dot(OTHER, 1, 17)),
        ],
    ),
    "more follow": (3, 5, ((2, 2), (5, 7)), [OwnerEntry("k", 1)]),
    "full": (1, 2, ((1, 2),), [OwnerEntry(f"k{n}", n) for n in range(16)]),
    "empty": (1, 70_000, ((1, 1), (70_000, 70_000)), []),
}


def golden_batches() -> dict[str, Batch]:
    """Sign what VECTOR_BATCHES says."""
    replica, batches = Replica(1), {}
    for name, (epoch, sequence, live, items) in VECTOR_BATCHES.items():
        signed = tuple(
            e._replace(dot=e.dot._replace(origin=replica.id)) if isinstance(e, AddEntry) else e
            for e in items
        )
        encoded = [encode_entry(entry) for entry in signed]
        raw = encode_batch(replica.id, epoch, sequence, live, encoded, replica.private.sign)
        batches[name] = Batch(replica.id, epoch, sequence, live, signed, raw)
    return batches


def golden_file() -> str:
    """Return the file of golden batches as it should be."""
    content = {
        "about": "Batches signed with the Ed25519 private key 0101...01 (32 bytes), in hex; "
        "what they say is in tests/crdt/test_codec.py.",
        "public_key": Replica(1).key.hex(),
        "batches": {name: batch.raw.hex() for name, batch in golden_batches().items()},
    }
    return json.dumps(content, indent=1) + "\n"


def test_encoded_batches_are_the_golden_ones() -> None:
    assert VECTORS.read_text() == golden_file()


def test_golden_batches_decode() -> None:
    key = bytes.fromhex(json.loads(VECTORS.read_text())["public_key"])
    for batch in golden_batches().values():
        assert decode_batch(batch.raw) == batch
        assert verify(key, batch.raw[:-64], batch.raw[-64:])


if __name__ == "__main__":
    VECTORS.write_text(golden_file())
