"""The bytes of an entry: whatever arrives, it decodes to what was sent, or to nothing."""

from __future__ import annotations

import dataclasses
from functools import cache as once
from typing import Any

import msgpack
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models import entries
from models.entries import Entry
from tests.clips import picture

DIGEST = "ab" * 32
BOX = [0.1, 0.1, 0.2, 0.2, 0.9, 0]


@once
def small_entry() -> bytes:
    calibrated = (0.02, 1.0, 0.25, 0.98)
    return entries.encode("a", DIGEST, Entry(picture(32, 16), 32, 16, [BOX], 1.0, 0.5, calibrated))


def test_an_entry_survives_its_bytes() -> None:
    entry = Entry(picture(48, 32), 40, 30, [BOX], 2.5, 0.0, None)
    found = entries.decode("a", DIGEST, entries.encode("a", DIGEST, entry))
    assert found is not None
    assert same_entry(found, entry)


def same_entry(one: Entry, other: Entry) -> bool:
    first, second = dataclasses.asdict(one), dataclasses.asdict(other)
    return np.array_equal(first.pop("pixels"), second.pop("pixels")) and first == second


@given(st.data())
def test_bytes_that_are_cut_or_foreign_never_decode(data: st.DataObject) -> None:
    whole = small_entry()
    assert entries.decode("a", DIGEST, whole[: data.draw(st.integers(0, len(whole) - 1))]) is None
    assert entries.decode("a", DIGEST, data.draw(st.binary(max_size=200))) is None
    assert entries.decode("a", DIGEST, whole + data.draw(st.binary(min_size=1))) is None


@given(at=st.integers(0, 1 << 20), flip=st.integers(1, 255), field=st.binary(max_size=4))
def test_damage_never_raises(at: int, flip: int, field: bytes) -> None:
    damaged = bytearray(small_entry())
    damaged[at % len(damaged)] ^= flip
    entries.decode("a", DIGEST, bytes(damaged))
    damaged[at % len(damaged) : at % len(damaged) + 1] = field
    entries.decode("a", DIGEST, bytes(damaged))
    entries.decode("a", DIGEST, entries.checked(bytes(damaged[entries.CHECK_BYTES :])))


@given(at=st.integers(0, 1 << 20), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_taken_for_an_answer(at: int, bit: int) -> None:
    whole = small_entry()
    damaged = bytearray(whole)
    damaged[at % len(whole)] ^= 1 << bit
    found, right = entries.decode("a", DIGEST, bytes(damaged)), entries.decode("a", DIGEST, whole)
    assert right is not None
    assert found is None or same_entry(found, right)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=8)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)
FIELDS = ("format", "agent", "digest", "age_s", "noise", "size", "canvas", "boxes", "calibrated")


@given(field=st.sampled_from((*FIELDS, "pixels")), value=VALUES)
def test_fields_of_any_kind_never_raise(field: str, value: Any) -> None:
    record = fields_of(small_entry())
    entries.decode("a", DIGEST, packed(record | {field: value}))
    del record[field]
    assert entries.decode("a", DIGEST, packed(record)) is None


def fields_of(data: bytes) -> dict[str, Any]:
    record: dict[str, Any] = msgpack.unpackb(data[entries.CHECK_BYTES :])
    return record


def packed(record: dict[str, Any]) -> bytes:
    return entries.checked(msgpack.packb(record))
