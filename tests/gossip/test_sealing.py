"""Seals, keys and replay windows."""

import random

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from crdt.causal import node_id_of
from gossip.sealing import (
    HEADER_BYTES,
    MAX_DATAGRAM_BYTES,
    WINDOW_PACKETS,
    Channel,
    DropError,
    Identity,
    ReplayWindow,
    epoch_key,
    pair_key,
    parse_header,
    verify,
)


def pair(floor: int = 0) -> tuple[Channel, Channel]:
    one, two = bytes(32), bytes(31) + b"\1"
    here = Channel(one, two, b"here", 0, floor)
    there = Channel(two, one, b"ther", 0, floor)
    here.remote, there.remote = there.local, here.local
    return here, there


def opened(channel: Channel, data: bytes) -> bytes:
    return channel.open(data, parse_header(data)[3])


def test_identity_survives_its_bytes_and_signs() -> None:
    one = Identity.generate()
    two = Identity.from_private_bytes(one.private_bytes())
    assert one.node_id == two.node_id == node_id_of(one.public_key)
    signature = one.sign(b"message")
    assert verify(two.public_key, b"message", signature)
    assert not verify(two.public_key, b"massage", signature)
    assert not verify(two.public_key, b"message", signature[:-1])
    assert not verify(b"short", b"message", signature)
    assert not verify(Identity.generate().public_key, b"message", signature)


def test_short_fleet_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        epoch_key(b"too short")


def test_pair_keys_agree_and_differ_by_direction_boot_and_id() -> None:
    epoch = epoch_key(b"the fleet's own secret")
    one, two = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    publics = [key.public_key().public_bytes_raw() for key in (one, two)]
    a, b = (b"a" * 16, b"1" * 16), (b"b" * 16, b"2" * 16)
    forth = pair_key(epoch, one, publics[1], a, b)
    assert forth == pair_key(epoch, two, publics[0], a, b)
    others = [
        pair_key(epoch, one, publics[1], b, a),
        pair_key(epoch, one, publics[1], (b"a" * 16, b"3" * 16), b),
        pair_key(epoch, one, publics[1], (b"c" * 16, b"1" * 16), b),
        pair_key(epoch_key(b"another secret here"), one, publics[1], a, b),
    ]
    assert len({forth, *others}) == 5


def test_degenerate_exchange_key_is_dropped() -> None:
    with pytest.raises(DropError, match="handshake"):
        pair_key(bytes(32), X25519PrivateKey.generate(), bytes(32), (b"", b""), (b"", b""))


def test_channel_round_trip_and_every_flipped_bit_is_refused() -> None:
    here, there = pair()
    _, data = here.seal(b"payload")
    for bit in range(len(data) * 8):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DropError):
            opened(there, bytes(broken))
    assert opened(there, data) == b"payload"


def test_channel_refuses_a_replay_and_its_own_reflection() -> None:
    here, there = pair()
    _, data = here.seal(b"payload")
    assert opened(there, data) == b"payload"
    with pytest.raises(DropError, match="replay"):
        opened(there, data)
    with pytest.raises(DropError, match="seal"):
        opened(here, data)


def test_failed_seal_does_not_use_up_its_counter() -> None:
    here, there = pair()
    _, data = here.seal(b"payload")
    with pytest.raises(DropError, match="seal"):
        opened(there, data[:-1] + bytes((data[-1] ^ 1,)))
    assert opened(there, data) == b"payload"


def test_floor_refuses_what_an_earlier_window_had_seen() -> None:
    here, _ = pair()
    old = [here.seal(b"x")[1] for _ in range(5)]
    _, again = pair(floor=5)
    for data in old:
        with pytest.raises(DropError, match="replay"):
            opened(again, data)
    assert opened(again, here.seal(b"y")[1]) == b"y"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (bytes(HEADER_BYTES + 16), "truncated"),
        (bytes(MAX_DATAGRAM_BYTES + 1), "oversize"),
        (b"\x21" + bytes(100), "version"),
    ],
)
def test_bad_headers_are_named(data: bytes, reason: str) -> None:
    with pytest.raises(DropError, match=reason):
        parse_header(data)


def test_window_is_1024_wide() -> None:
    window = ReplayWindow()
    window.mark(5000)
    assert not window.fresh(5000)
    assert window.fresh(5000 - WINDOW_PACKETS + 1)
    assert not window.fresh(5000 - WINDOW_PACKETS)
    assert window.fresh(5001)


@given(st.lists(st.integers(0, 4000), max_size=200))
def test_window_agrees_with_a_set(counters: list[int]) -> None:
    window, seen, highest = ReplayWindow(), set[int](), -1
    for counter in counters:
        expected = counter not in seen and counter > highest - WINDOW_PACKETS
        assert window.fresh(counter) is expected
        if expected:
            window.mark(counter)
            seen.add(counter)
            highest = max(highest, counter)


def test_window_takes_reordered_packets_once() -> None:
    order = list(range(1000))
    random.Random(7).shuffle(order)
    window = ReplayWindow()
    for counter in order:
        assert window.fresh(counter)
        window.mark(counter)
    assert not any(window.fresh(counter) for counter in order)
