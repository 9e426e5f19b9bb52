"""Batches as bytes.

Owns: the layout of a batch, byte for byte.
Never: verifies signatures or gives entries a meaning.
Invariant: `decode_batch` ends in a batch or in `DecodeError`; `raw` is kept and forwarded
verbatim, so nobody ever encodes another origin's batch.

A batch is at most 1000 bytes:

    offset  size  field
    0       1     version of the layout: 1
    1       16    origin: the first 16 bytes of the SHA-256 of the origin's public key
    17      ...   one MessagePack array of 4: [epoch, sequence, live, entries]
    -64     64    Ed25519 signature of the origin over everything before it

    epoch     int, 1 to 2^63-1
    sequence  int, 1 to 2^32-1; each epoch counts from 1 and uses a number once
    live      array of ints, even in number: ahead, run, gap, run, gap, ..., run; ahead >= 0, the
              rest >= 1. `ahead` batches of the same commit follow this one, and all of them say
              the same: counted back from the last of them, `run` batches are live, then `gap` are
              dropped, and so on; all that is left, and every earlier epoch, is dropped. At most
              128 live in all, this one among them.
              Example: sequence 8, live [1, 2, 3, 1] means 9, 8 and 4.
    entries   array of at most 16 arrays, no two about the same:
              [0, key, value]                            owner record
              [1, key, value, timestamp]                 fleet register
              [1, key, value, timestamp, epoch]          the same, said again: `epoch` is the
                                                         earlier one that it was first said in
              [2, key, element, epoch, counter]          add to a fleet set; (epoch, counter) is
                                                         the add's dot, its origin is the batch's
              [3, key, element, origin, epoch, counter]  remove the adds of the element that
                                                         `origin` made up to (epoch, counter)
    key       text, 1 to 96 bytes of UTF-8
    value     nil, bool, int, float, text, bytes, array or map with text keys, at most 8 deep;
              at most 700 bytes, an element at most 256
    timestamp int: 48 bits of Unix milliseconds, 16 bits of counter
    counter   int: 16 * sequence + index of the entry, in the batch that first carried the add

Ints may be up to 2^64-1 unless said otherwise. An origin keeps at most 64 batches live; a header
may name up to 128, since what two former lives left may come to more than one was allowed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from crdt.causal import Dot, NodeId
from crdt.entries import AddEntry, Entry, OwnerEntry, RegisterEntry, RemoveEntry, identity
from crdt.log import (
    MAX_BATCH_BYTES,
    MAX_ENTRIES,
    MAX_EPOCH,
    MAX_LIVE,
    MAX_SEQUENCE,
    SIGNATURE_BYTES,
    Batch,
    Ranges,
)
from crdt.values import (
    MAX_ELEMENT_BYTES,
    MAX_VALUE_BYTES,
    DecodeError,
    Value,
    check_bounded,
    decode_value,
    encode_value,
    unpack,
)

__all__ = [
    "MAX_ELEMENT_BYTES",
    "MAX_KEY_BYTES",
    "MAX_LIVE_BYTES",
    "MAX_VALUE_BYTES",
    "ROOM_BYTES",
    "DecodeError",
    "Value",
    "decode_batch",
    "decode_value",
    "encode_batch",
    "encode_entry",
    "encode_live",
    "encode_value",
    "origin_of",
]

LAYOUT_VERSION = 1
NODE_ID_BYTES = 16
MAX_KEY_BYTES = 96
MAX_LIVE_BYTES = 64
MAX_INT = 2**64 - 1
MAX_LIVE_ON_WIRE = 2 * MAX_LIVE
_HEADER_BYTES = 1 + NODE_ID_BYTES
# Array of 4, epoch, sequence, and the entries' own array header, each at its largest.
_FIELDS_BYTES = 1 + 9 + 5 + 3
_new = tuple.__new__  # half the time of calling the class
ROOM_BYTES = MAX_BATCH_BYTES - _HEADER_BYTES - _FIELDS_BYTES - MAX_LIVE_BYTES - SIGNATURE_BYTES
"""What the entries of one batch may take, however long its other fields are."""


def encode_entry(entry: Entry) -> bytes:
    """Return an entry's bytes. Raises ValueError for values that are not plain data."""
    if isinstance(entry, OwnerEntry):
        fields: tuple[Any, ...] = (0, entry.key, entry.value)
    elif isinstance(entry, RegisterEntry):
        fields = (1, *entry) if entry.epoch else (1, *entry[:3])
    elif isinstance(entry, AddEntry):
        fields = (2, entry.key, entry.element, entry.dot.epoch, entry.dot.counter)
    else:
        fields = (3, entry.key, entry.element, *entry.dot)
    packed: bytes = msgpack.packb(fields)
    return packed


def encode_live(live: Ranges, sequence: int) -> bytes:
    """Return the bytes of the live list of the batch `sequence`."""
    steps = [live[-1][1] - sequence]
    for index in range(len(live) - 1, -1, -1):
        first, last = live[index]
        steps.append(last - first + 1)
        if index:
            steps.append(first - live[index - 1][1] - 1)
    packed: bytes = msgpack.packb(steps)
    return packed


def encode_batch(
    origin: NodeId,
    epoch: int,
    sequence: int,
    live: Ranges,
    entries: Sequence[bytes],
    sign: Callable[[bytes], bytes],
) -> bytes:
    """Return the signed bytes of a batch; `entries` are encoded already. O(size).

    Raises AssertionError when the batch would be longer than 1000 bytes.
    """
    assert len(entries) <= MAX_ENTRIES
    # A MessagePack array of up to 15 items has a header of one byte, one of 16 takes three.
    count = len(entries)
    head = bytes((0x90 | count,)) if count < 16 else b"\xdc\x00\x10"
    message = b"".join(
        (
            bytes((LAYOUT_VERSION,)),
            origin,
            b"\x94",
            msgpack.packb(epoch),
            msgpack.packb(sequence),
            encode_live(live, sequence),
            head,
            *entries,
        )
    )
    raw = message + sign(message)
    assert len(raw) <= MAX_BATCH_BYTES
    return raw


def origin_of(raw: bytes) -> NodeId:
    """Return whose batch this would be, if it is one."""
    return raw[1:_HEADER_BYTES]


def decode_batch(raw: bytes) -> Batch:
    """Read a batch, leaving its signature unverified. Raises DecodeError. O(size)."""
    if not _HEADER_BYTES + SIGNATURE_BYTES < len(raw) <= MAX_BATCH_BYTES:
        raise DecodeError("a batch of impossible length")
    if raw[0] != LAYOUT_VERSION:
        raise DecodeError("unknown layout version")
    origin = origin_of(raw)
    fields = unpack(raw[_HEADER_BYTES:-SIGNATURE_BYTES])
    if type(fields) is not list or len(fields) != 4:
        raise DecodeError("not an array of four")
    epoch, sequence, steps, items = fields
    _check_int(epoch, 1, MAX_EPOCH)
    _check_int(sequence, 1, MAX_SEQUENCE)
    live = _live(sequence, steps)
    if type(items) is not list or len(items) > MAX_ENTRIES:
        raise DecodeError("entries are not an array of at most 16")
    entries = tuple([_entry(item, origin) for item in items])
    # Different keys are told apart at once; only where some are equal must all else be looked at.
    if len({entry.key for entry in entries}) < len(entries) and (
        len(set(map(identity, entries))) < len(entries)
    ):
        raise DecodeError("two entries about the same")
    return Batch(origin, epoch, sequence, live, entries, raw)


def _live(sequence: int, steps: Any) -> Ranges:
    if type(steps) is not list or not steps or len(steps) % 2:
        raise DecodeError("a live list of odd length")
    _check_int(steps[0], 0, MAX_LIVE_ON_WIRE)
    live: list[tuple[int, int]] = []
    last, total, included = sequence + steps[0], 0, False
    for index, step in enumerate(steps[1:]):
        _check_int(step, 1, last)
        if index % 2 == 0:
            live.append((last - step + 1, last))
            total += step
            included = included or last - step < sequence <= last
        last -= step
    if total > MAX_LIVE_ON_WIRE:
        raise DecodeError("too many live batches")
    if not included:
        raise DecodeError("a batch that drops itself")
    return tuple(reversed(live))


def _entry(item: Any, origin: NodeId) -> Entry:
    if type(item) is not list or len(item) < 3:
        raise DecodeError("not an entry")
    kind, key, value = item[0], item[1], item[2]
    # One byte of UTF-8 a character at least, so the cheap test comes first.
    if type(key) is not str or not 0 < len(key) <= MAX_KEY_BYTES:
        raise DecodeError("not a key")
    if not key.isascii() and len(key.encode()) > MAX_KEY_BYTES:
        raise DecodeError("key too long")
    if type(kind) is not int or not 0 <= kind < 4:
        raise DecodeError("not an entry")
    if len(item) != kind + 3 and (kind != 1 or len(item) != 5):
        raise DecodeError("not an entry")
    check_bounded(value, MAX_ELEMENT_BYTES if kind >= 2 else MAX_VALUE_BYTES)
    if kind == 0:
        return _new(OwnerEntry, (key, value))
    if kind == 1:
        _check_int(item[3], 0, MAX_INT)
        if len(item) == 4:
            return _new(RegisterEntry, (key, value, item[3], 0))
        _check_int(item[4], 1, MAX_EPOCH)
        return _new(RegisterEntry, (key, value, item[3], item[4]))
    for number in item[-2:]:
        _check_int(number, 0, MAX_INT)
    if kind == 2:
        return AddEntry(key, value, Dot(origin, item[3], item[4]))
    if type(item[3]) is not bytes or len(item[3]) != NODE_ID_BYTES:
        raise DecodeError("not a node id")
    return RemoveEntry(key, value, Dot(item[3], item[4], item[5]))


def _check_int(number: Any, least: int, most: int) -> None:
    if type(number) is not int or not least <= number <= most:
        raise DecodeError("not an int, or out of range")
