"""Plain values as MessagePack.

Owns: what a value may be, its canonical bytes, and the bounds within which one is read.
Never: gives meaning to a value.
Invariant: equal values have equal bytes (map keys sorted, shortest forms), so bytes identify
set elements; reading ends in a value or in `DecodeError`.
"""

from typing import Any, TypeAlias

import msgpack

MAX_DEPTH = 8
MAX_VALUE_BYTES = 700
MAX_ELEMENT_BYTES = 256
MAX_READ_BYTES = 16_384

Value: TypeAlias = bool | int | float | str | bytes | list["Value"] | dict[str, "Value"] | None

_NUMBERS = frozenset((type(None), bool, int, float))  # at most 9 bytes each
_SCALARS = _NUMBERS | {str, bytes}
_pack = msgpack.Packer().pack  # only for what came in a batch: its buffer never shrinks


class DecodeError(Exception):
    """Report bytes that are not what they should be: the peer's fault. State is unchanged."""


def encode_value(value: Value) -> bytes:
    """Return the canonical bytes of a value.

    Raises ValueError for anything that is not plain data, is nested deeper than 8, or holds an
    integer beyond 64 bits. O(size).
    """
    try:
        packed: bytes = msgpack.packb(
            value if type(value) in _SCALARS else _canonical(value, MAX_DEPTH)
        )
    except (TypeError, OverflowError) as error:
        raise ValueError(f"not plain data: {error}") from error
    return packed


def decode_value(data: bytes) -> Value:
    """Read one value that fills `data`. Raises DecodeError. O(size), at most 16 KiB."""
    value = unpack(data)
    check_value(value)
    return value  # type: ignore[no-any-return]


def unpack(data: bytes | memoryview) -> Any:
    """Read one MessagePack object that fills `data`, unchecked inside. Raises DecodeError."""
    if len(data) > MAX_READ_BYTES:
        raise DecodeError("too long")
    try:
        # Without an explicit bound unpackb lets a length field promise at most len(data) items.
        return msgpack.unpackb(data, use_list=True, strict_map_key=True)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise DecodeError(f"not MessagePack: {type(error).__name__}") from error


def check_value(value: Any, depth: int = MAX_DEPTH) -> None:
    """Raise DecodeError unless `value` is plain data at most `depth` deep. O(size)."""
    kind = type(value)
    if kind in _SCALARS:
        return
    if depth == 0:
        raise DecodeError("nested too deep")
    if kind is list:
        for item in value:
            if type(item) not in _SCALARS:
                check_value(item, depth - 1)
    elif kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise DecodeError("a map key that is not text")
            if type(item) not in _SCALARS:
                check_value(item, depth - 1)
    else:
        raise DecodeError("not plain data")


def check_bounded(value: Any, limit_bytes: int) -> None:
    """Raise DecodeError unless `value`, read from a batch, is plain data of at most so many bytes.

    O(size).
    """
    kind = type(value)
    if kind is str or kind is bytes:
        if 4 * len(value) + 5 <= limit_bytes:
            return  # at its longest it is short enough
    elif kind in _NUMBERS:
        return
    else:
        check_value(value)
    if len(_pack(value)) > limit_bytes:
        raise DecodeError("value too long")


def same(one: Value, other: Value) -> bool:
    """Say whether two values read from batches have equal bytes; NaN equals nothing. O(size)."""
    if type(one) is not type(other) or one != other:
        return False
    # Python's == takes 0.0 for -0.0 and, inside containers, True for 1: it would hide a difference.
    return _pack(one) == _pack(other) or encode_value(one) == encode_value(other)


def _canonical(value: Any, depth: int) -> Any:
    if isinstance(value, list | tuple | dict):
        if depth == 0:
            raise ValueError("nested too deep")
        if not isinstance(value, dict):
            return [_canonical(item, depth - 1) for item in value]
        if not all(isinstance(key, str) for key in value):
            raise ValueError("map keys must be text")
        return {key: _canonical(value[key], depth - 1) for key in sorted(value)}
    if type(value) not in _SCALARS:
        raise ValueError(f"not plain data: {type(value).__name__}")
    return value
