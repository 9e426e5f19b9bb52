"""Messages <-> the payload of a datagram.

Owns every byte between the seal and the typed message. Never changes state: a payload is decoded
whole before any of it is handled, so a malformed one has no effect. Invariant: no payload that
`Packer` yields makes a datagram of more than 1,200 bytes.
"""

from collections.abc import Callable, Iterable
from typing import Any

import msgpack
import zstandard

from crdt.codec import DecodeError
from gossip.messages import (
    ID_BYTES,
    LAZY_ENTRIES,
    MAX_BATCH_BYTES,
    MAX_HOST_CHARS,
    MAX_INCARNATION,
    MAX_PAUSE_MS,
    MAX_SCOPE,
    MAX_VOLATILE_BYTES,
    PAGE_ENTRIES,
    Ack,
    Announce,
    Claim,
    Evidence,
    Have,
    IndirectAck,
    Knowledge,
    Message,
    NewKey,
    Payload,
    Ping,
    PingRequest,
    Received,
    Roster,
    Suspect,
    Tree,
    VolatileRequest,
    VolatileState,
    Want,
    canonical_host,
)
from gossip.sealing import HEADER_BYTES, MAX_DATAGRAM_BYTES, TAG_BYTES

_FLAG_ZSTD = 1
_COMPRESS_ABOVE_BYTES = 128  # below, zstd's own header eats what it saves
MAX_PAYLOAD_BYTES = MAX_DATAGRAM_BYTES - HEADER_BYTES - TAG_BYTES
MAX_INFLATED_BYTES = 16 * 1024
MAX_MESSAGES = 64
MAX_RANGES = 64
_ROOM_BYTES = MAX_PAYLOAD_BYTES - 1 - 3  # flags, array header

Check = Callable[[Any], Any]
_new = tuple.__new__  # half the time of calling the class


def _uint(limit: int) -> Check:
    def check(value: Any) -> int:
        if type(value) is not int or not 0 <= value <= limit:
            raise DecodeError("integer out of range")
        return value

    return check


def _binary(low: int, high: int | None = None) -> Check:
    top = low if high is None else high

    def check(value: Any) -> bytes:
        if type(value) is not bytes or not low <= len(value) <= top:
            raise DecodeError("binary of a wrong length")
        return value

    return check


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise DecodeError("not a flag")
    return value


def _host(value: Any) -> str:
    try:
        if type(value) is str and canonical_host(value) == value:
            return value
    except ValueError:
        pass
    raise DecodeError("not an IP address in its one spelling")


def _record(*checks: Check, make: type[Any] = tuple) -> Check:
    fields = range(len(checks))

    def check(value: Any) -> Any:
        if type(value) is not tuple or len(value) != len(checks):
            raise DecodeError("wrong number of fields")
        return _new(make, [checks[field](value[field]) for field in fields])

    return check


def _array(item: Check, most: int) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if type(value) is not tuple or len(value) > most:
            raise DecodeError("not a short array")
        return tuple([item(one) for one in value])

    return check


def _scope(value: Any) -> int:
    # a leading one bit, and up to three nibbles of an id below it
    if type(value) is not int or not 0 <= value <= MAX_SCOPE:
        raise DecodeError("integer out of range")
    if value and value.bit_length() % 4 != 1:
        raise DecodeError("not a scope")
    return value


def _some(length: int) -> Check:
    def check(value: Any) -> bytes:
        if type(value) is not bytes or len(value) not in (0, length):
            raise DecodeError("binary of a wrong length")
        return value

    return check


_number = _uint((1 << 48) - 1)
_incarnation = _uint(MAX_INCARNATION)
_id = _binary(ID_BYTES)
_claim = _record(_binary(32), _incarnation, _host, _uint(65535), _flag, _binary(64), make=Claim)
_epoch = _uint((1 << 63) - 1)
_key = _some(32)
_batch = _binary(1, MAX_BATCH_BYTES)
_versions = _array(_record(_id, _epoch, _number), LAZY_ENTRIES)


def _sums(value: Any) -> tuple[bytes, ...]:
    if type(value) is not tuple or len(value) != 16:
        raise DecodeError("not sixteen sums")
    return tuple([_sum(one) for one in value])


_sum = _binary(8)

# code -> (type, its fields' checks); the codes are the wire's, never reused for another meaning
_TABLE: dict[int, tuple[type[Any], Check]] = {
    1: (Ping, _record(_number, _binary(16), _binary(8), _number, make=Ping)),
    2: (Ack, _record(_number, _some(16), _some(8), _number, _number, make=Ack)),
    3: (PingRequest, _record(_number, _id, make=PingRequest)),
    4: (IndirectAck, _record(_number, make=IndirectAck)),
    5: (Announce, _record(_claim, _scope, make=Announce)),
    6: (Suspect, _record(_id, _incarnation, _id, _scope, make=Suspect)),
    7: (Payload, _record(_batch, _key, _scope, make=Payload)),
    8: (
        Received,
        _record(_array(_record(_number, _number), MAX_RANGES), _uint(MAX_PAUSE_MS), make=Received),
    ),
    9: (
        Knowledge,
        _record(
            _id,
            _id,
            _flag,
            _array(_record(_id, _epoch, _number, _sum), PAGE_ENTRIES),
            make=Knowledge,
        ),
    ),
    10: (
        Roster,
        _record(
            _id, _id, _flag, _array(_record(_id, _incarnation, _flag), PAGE_ENTRIES), make=Roster
        ),
    ),
    11: (VolatileState, _record(_number, _binary(1, MAX_VOLATILE_BYTES), make=VolatileState)),
    12: (VolatileRequest, _record(_number, make=VolatileRequest)),
    13: (Tree, _record(_flag, _scope, _sums, make=Tree)),
    14: (Have, _record(_versions, make=Have)),
    15: (Want, _record(_versions, make=Want)),
    16: (Evidence, _record(_batch, _key, make=Evidence)),
    17: (NewKey, _record(_uint((1 << 16) - 1), _binary(32), make=NewKey)),
}
_CODES: dict[type[Any], int] = {kind: code for code, (kind, _) in _TABLE.items()}

_packer = msgpack.Packer()
_compressor = zstandard.ZstdCompressor(level=1, write_checksum=False, write_content_size=True)
_decompressor = zstandard.ZstdDecompressor()


def encode_message(message: Message) -> bytes:
    """Return a message's MessagePack array [code, fields...]."""
    packed: bytes = _packer.pack((_CODES[type(message)], *message))
    return packed


def join_messages(parts: list[bytes]) -> bytes:
    """Return the payload that holds encoded messages, compressed only when that is smaller."""
    count = len(parts)
    head = bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
    body = head + b"".join(parts)
    if len(body) > _COMPRESS_ABOVE_BYTES:
        packed = _compressor.compress(body)
        if len(packed) < len(body):
            return bytes((_FLAG_ZSTD,)) + packed
    return b"\0" + body


def _inflate(data: bytes) -> bytes:
    # max_output_size is ignored where the frame declares its size: so the declaration is judged
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= MAX_INFLATED_BYTES:
            raise DecodeError("undeclared or excessive size")
        return _decompressor.decompress(data, allow_extra_data=False)
    except zstandard.ZstdError:
        raise DecodeError("not a zstd frame") from None


def decode_payload(payload: bytes) -> tuple[list[Message], int]:
    """Return a payload's messages and how many of unknown kind were skipped.

    Raises DecodeError for anything malformed. Cost is bounded by 16 KiB of inflated bytes.
    """
    flags = payload[0]
    if flags & ~_FLAG_ZSTD:
        raise DecodeError("unknown flags")
    body = _inflate(payload[1:]) if flags else payload[1:]
    try:
        raw = msgpack.unpackb(
            body,
            use_list=False,
            max_str_len=MAX_HOST_CHARS,
            max_bin_len=MAX_PAYLOAD_BYTES,
            max_array_len=MAX_MESSAGES,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException):
        raise DecodeError("not MessagePack within the caps") from None
    if type(raw) is not tuple:
        raise DecodeError("not an array of messages")
    messages: list[Message] = []
    unknown = 0
    for item in raw:
        if type(item) is not tuple or not item or type(item[0]) is not int:
            raise DecodeError("not a message")
        entry = _TABLE.get(item[0])
        if entry is None:
            unknown += 1  # a newer peer's; the rest of its datagram is still understood
        else:
            messages.append(entry[1](item[1:]))
    return messages, unknown


class Packer:
    """Collect encoded messages while they fit one datagram, and refuse the first that does not."""

    __slots__ = ("_room", "parts")

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._room = _ROOM_BYTES

    def add(self, part: bytes) -> bool:
        """Take a message if it fits; tell whether it was taken. ValueError if it never could."""
        if len(part) > _ROOM_BYTES:
            raise ValueError(f"a message of {len(part)} bytes fits no datagram")
        if len(part) > self._room or len(self.parts) == MAX_MESSAGES:
            return False
        self.parts.append(part)
        self._room -= len(part)
        return True


def counters_to_ranges(counters: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Compress counters into at most 64 ascending ranges, dropping the oldest; O(n log n)."""
    ranges: list[tuple[int, int]] = []
    for counter in sorted(counters):
        if ranges and counter <= ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], counter)
        else:
            ranges.append((counter, counter))
    return tuple(ranges[-MAX_RANGES:])
