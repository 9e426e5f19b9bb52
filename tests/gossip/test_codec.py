"""Messages <-> payloads."""

import os

import msgpack
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from crdt.codec import DecodeError
from gossip.codec import (
    MAX_MESSAGES,
    MAX_PAYLOAD_BYTES,
    Packer,
    counters_to_ranges,
    decode_payload,
    encode_message,
    join_messages,
)
from gossip.messages import (
    MAX_SCOPE,
    PAGE_ENTRIES,
    Announce,
    Claim,
    Knowledge,
    Message,
    Payload,
    Ping,
    Received,
    Roster,
)
from tests.gossip.examples import MESSAGES


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_round_trip(message: Message) -> None:
    assert decode_payload(join_messages([encode_message(message)])) == ([message], 0)


def test_all_together_fit_by_the_packer_and_come_back() -> None:
    packer = Packer()
    taken = [one for one in MESSAGES * 20 if packer.add(encode_message(one))]
    payload = join_messages(packer.parts)
    assert len(payload) <= MAX_PAYLOAD_BYTES
    assert decode_payload(payload) == (taken, 0)


def test_incompressible_full_datagram_still_fits() -> None:
    packer = Packer()
    assert packer.add(encode_message(Payload(os.urandom(1000), os.urandom(32), MAX_SCOPE)))
    while packer.add(encode_message(Received(((1, 2),), 0))):
        pass
    assert len(join_messages(packer.parts)) <= MAX_PAYLOAD_BYTES


def test_packer_refuses_what_fits_no_datagram() -> None:
    with pytest.raises(ValueError, match="fits no datagram"):
        Packer().add(bytes(MAX_PAYLOAD_BYTES))


def test_largest_pages_fit() -> None:
    high = b"\xff" * 16
    known = Knowledge(high, high, True, ((high, 2**63 - 1, 2**48 - 1, high[:8]),) * PAGE_ENTRIES)
    roster = Roster(high, high, True, ((high, 2**48 - 1, True),) * PAGE_ENTRIES)
    for page in (known, roster):
        assert Packer().add(encode_message(page))
        assert decode_payload(b"\0\x91" + encode_message(page)) == ([page], 0)


def test_unknown_message_is_skipped_and_counted() -> None:
    body = msgpack.packb([[99, "from the future"], [12, 7]])
    messages, unknown = decode_payload(b"\0" + body)
    assert len(messages) == 1
    assert unknown == 1


def zstd(data: bytes, *, size: bool = True) -> bytes:
    return b"\1" + zstandard.ZstdCompressor(level=3, write_content_size=size).compress(data)


BAD = {
    "empty body": b"\0",
    "unknown flag": b"\2\x90",
    "not an array": b"\0\x01",
    "trailing bytes": b"\0\x90\x90",
    "truncated": b"\0\x91",
    "message is not an array": b"\0\x91\x01",
    "empty message": b"\0\x91\x90",
    "code is not a number": b"\0" + msgpack.packb([["1", 2]]),
    "map": b"\0" + msgpack.packb([[12, {}]]),
    "extension": b"\0" + msgpack.packb([[12, msgpack.ExtType(1, b"")]]),
    "timestamp": b"\0" + msgpack.packb([[12, msgpack.Timestamp(1)]]),
    "bool for a number": b"\0" + msgpack.packb([[12, True]]),
    "negative": b"\0" + msgpack.packb([[12, -1]]),
    "too large": b"\0" + msgpack.packb([[12, 1 << 48]]),
    "float": b"\0" + msgpack.packb([[12, 1.0]]),
    "field missing": b"\0" + msgpack.packb([[1, 2, bytes(16)]]),
    "field too many": b"\0" + msgpack.packb([[12, 1, 1]]),
    "short fingerprint": b"\0" + msgpack.packb([[1, 2, bytes(15), bytes(8), 0]]),
    "text for bytes": b"\0" + msgpack.packb([[1, 2, "a" * 16, bytes(8), 0]]),
    "key of 31 bytes": b"\0" + msgpack.packb([[7, b"raw", bytes(31), 0]]),
    "batch too long": b"\0" + msgpack.packb([[7, bytes(1001), b"", 0]]),
    "a scope of two bits": b"\0" + msgpack.packb([[7, b"raw", b"", 2]]),
    "a scope of four bits": b"\0" + msgpack.packb([[7, b"raw", b"", 8]]),
    "a scope too deep": b"\0" + msgpack.packb([[7, b"raw", b"", 1 << 16]]),
    "a flag for a scope": b"\0" + msgpack.packb([[7, b"raw", b"", True]]),
    "a pause too long": b"\0" + msgpack.packb([[8, [], 1001]]),
    "fifteen sums": b"\0" + msgpack.packb([[13, False, 1, [bytes(8)] * 15]]),
    "a sum too short": b"\0" + msgpack.packb([[13, False, 1, [bytes(7)] * 16]]),
    "too many versions": b"\0" + msgpack.packb([[14, [[bytes(16), 1, 1]] * 17]]),
    "half a summary": b"\0" + msgpack.packb([[2, 2, bytes(8), b"", 0, 0]]),
    "too many messages": b"\0" + msgpack.packb([[12, 1]] * (MAX_MESSAGES + 1)),
    "too deep": b"\0" + b"\x91" * 1100,
    "not utf-8": b"\0\x91\x92\x0c\xa1\xff",
    "not zstd": b"\1 no frame",
    "no declared size": zstd(bytes(1000), size=False),
    "declared too large": zstd(bytes(16 * 1024 + 1)),
    "bomb": zstd(bytes(30_000_000)),
    "truncated frame": zstd(bytes(1000))[:-1],
    "frame and more": zstd(msgpack.packb([[12, 7]])) + b"more",
}


@pytest.mark.parametrize("payload", BAD.values(), ids=BAD.keys())
def test_malformed_is_a_decode_error(payload: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_payload(payload)


NO_HOSTS = [
    *["", "a" * 65, "nül", "a\nb", b"bytes", 7, 3232235777, "router.example", "localhost"],
    *["0.0.0.0", "::", "224.0.0.1", "ff02::1", "fe80::1%eth0", "10.0.0.256", "10.1", "010.0.0.1"],
    *["2001:DB8::1", "2001:db8:0::1", "::ffff:10.0.0.1", "::ffff:a00:1", "[::1]", " 10.0.0.1"],
]


@pytest.mark.parametrize("host", NO_HOSTS)
def test_malformed_hosts(host: object) -> None:
    claim = (bytes(32), 1, host, 7946, False, bytes(64))
    with pytest.raises(DecodeError):
        decode_payload(b"\0" + msgpack.packb([[5, claim, 0]]))


@pytest.mark.parametrize("host", ["10.0.0.1", "127.0.0.1", "::1", "2001:db8::1", "fe80::1"])
def test_addresses_are_hosts(host: str) -> None:
    claim = (bytes(32), 1, host, 7946, False, bytes(64))
    messages, _ = decode_payload(b"\0" + msgpack.packb([[5, claim, 0]]))
    assert messages == [Announce(Claim(*claim), False)]


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.binary(min_size=1, max_size=300))
def test_any_bytes_give_messages_or_a_decode_error(payload: bytes) -> None:
    try:
        decode_payload(payload)
    except DecodeError:
        pass


@given(st.lists(st.tuples(st.integers(0, 13), plain, plain, plain) | plain, max_size=5))
def test_any_structure_gives_messages_or_a_decode_error(body: object) -> None:
    try:
        decode_payload(b"\0" + msgpack.packb(body))
    except DecodeError:
        pass


@given(st.sampled_from(MESSAGES), st.data())
def test_cut_or_changed_encodings_never_raise_anything_else(
    message: Message, data: st.DataObject
) -> None:
    payload = bytearray(b"\0\x91" + encode_message(message))
    position = data.draw(st.integers(1, len(payload) - 1))
    with pytest.raises(DecodeError):
        decode_payload(bytes(payload[:position]))
    payload[position] = data.draw(st.integers(0, 255))
    try:
        decode_payload(bytes(payload))
    except DecodeError:
        pass


def test_ping_is_small() -> None:
    assert len(encode_message(Ping(1, bytes(16), bytes(8), 1))) <= 32


@given(st.sets(st.integers(0, 500)))
def test_ranges_hold_exactly_the_newest_counters(counters: set[int]) -> None:
    ranges = counters_to_ranges(counters)
    held = {counter for first, last in ranges for counter in range(first, last + 1)}
    assert held <= counters
    assert len(ranges) == 64 or held == counters
    assert all(counter < min(held) for counter in counters - held)
