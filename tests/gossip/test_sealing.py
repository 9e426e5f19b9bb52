"""Seals, keys and replay windows."""

import random

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from crdt.causal import node_id_of
from gossip.sealing import (
    EPOCH_LEAP,
    HEADER_BYTES,
    MAX_DATAGRAM_BYTES,
    MAX_EPOCH,
    WINDOW_PACKETS,
    Channel,
    DropError,
    Exchange,
    HandshakeSeal,
    Identity,
    Keyring,
    ReplayWindow,
    epoch_key,
    pair_key,
    parse_header,
    verify,
)

SECRET = b"the fleet's own secret"


def pair(floor: int = 0, *, version: int = 1, epoch: int = 0) -> tuple[Channel, Channel]:
    one, two = AESGCM(bytes(32)), AESGCM(bytes(31) + b"\1")
    here = Channel(one, two, b"here", 0, floor, version=version, epoch=epoch)
    there = Channel(two, one, b"ther", 0, floor, version=version, epoch=epoch)
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
    assert one.verify(two.public_key, b"message", signature)
    assert not one.verify(one.public_key, b"massage", signature)
    assert not verify(two.public_key, b"massage", signature)
    assert not verify(two.public_key, b"message", signature[:-1])
    assert not verify(b"short", b"message", signature)
    assert not verify(Identity.generate().public_key, b"message", signature)


def test_short_fleet_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        epoch_key(b"too short")


def test_pair_keys_agree_and_differ_by_direction_boot_and_id() -> None:
    epoch = epoch_key(SECRET)
    one, two = Exchange(bytes(range(32))), Exchange(bytes(range(32, 64)))
    shared = one.shared(two.public)
    assert shared == two.shared(one.public)
    a, b = (b"a" * 16, b"1" * 16), (b"b" * 16, b"2" * 16)
    keys = {
        pair_key(epoch, shared, a, b),
        pair_key(epoch, shared, b, a),
        pair_key(epoch, shared, (b"a" * 16, b"3" * 16), b),
        pair_key(epoch, shared, (b"c" * 16, b"1" * 16), b),
        pair_key(epoch_key(b"another secret here"), shared, a, b),
        pair_key(epoch, one.shared(one.public), a, b),
    }
    assert len(keys) == 6


def test_degenerate_exchange_key_is_refused() -> None:
    with pytest.raises(ValueError):
        Exchange(bytes(range(32))).shared(bytes(32))


def secret_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


def held(ring: Keyring) -> list[tuple[int, bytes]]:
    return [(epoch.number, epoch.secret) for epoch in ring.held]


def test_ring_goes_up_only_and_keeps_the_one_before() -> None:
    ring = Keyring(SECRET)
    assert held(ring) == [(0, SECRET)]
    first = ring.current
    assert ring.offer(1, secret_of(1))
    assert held(ring) == [(1, secret_of(1)), (0, SECRET)]
    assert ring.previous is first
    for number in (0, 1):
        assert not ring.offer(number, secret_of(number))
    assert ring.offer(3, secret_of(3))
    assert held(ring) == [(3, secret_of(3)), (1, secret_of(1))]
    ring.forget_previous()
    assert held(ring) == [(3, secret_of(3))]


@pytest.mark.parametrize(
    ("number", "secret"),
    [
        (6, b""),
        (6, bytes(31)),
        (6, bytes(33)),
        (5 + EPOCH_LEAP + 1, bytes(32)),
        (4, bytes(32)),
        (-1, bytes(32)),
        (5, SECRET),
    ],
)
def test_ring_refuses_what_is_no_next_epoch(number: int, secret: bytes) -> None:
    ring = Keyring(SECRET, 5, (4, secret_of(4)))
    assert not ring.offer(number, secret)
    assert held(ring) == [(5, SECRET), (4, secret_of(4))]


def test_ring_ends_at_16_bits() -> None:
    ring = Keyring(SECRET, MAX_EPOCH - 1)
    assert not ring.offer(MAX_EPOCH + 1, secret_of(1))
    assert ring.offer(MAX_EPOCH, secret_of(1))
    assert not ring.offer(MAX_EPOCH + 1, secret_of(1))


@pytest.mark.parametrize(
    ("number", "previous"),
    [(-1, None), (MAX_EPOCH + 1, None), (5, 5), (5, 6), (500, 500 - EPOCH_LEAP - 1)],
)
def test_ring_that_cannot_be_is_the_callers_fault(number: int, previous: int | None) -> None:
    with pytest.raises(ValueError, match="epoch"):
        Keyring(SECRET, number, None if previous is None else (previous, secret_of(1)))


def test_two_rotations_at_once_end_as_one_and_keep_what_was_before() -> None:
    ends = set()
    for order in ((1, 2), (2, 1)):
        ring = Keyring(SECRET)
        for which in order:
            ring.offer(1, secret_of(which))
        ends.add(tuple(held(ring)))
    (end,) = ends
    assert end[1] == (0, SECRET)


@given(st.lists(st.tuples(st.integers(0, EPOCH_LEAP), st.integers(0, 3))), st.randoms())
def test_rings_agree_whatever_the_order(offers: list[tuple[int, int]], rng: random.Random) -> None:
    rings = [Keyring(SECRET), Keyring(SECRET)]
    for ring in rings:
        for number, which in offers:
            ring.offer(number, secret_of(which))
        rng.shuffle(offers)
    assert rings[0].current.order == rings[1].current.order


def test_handshake_seal_reads_the_current_and_the_previous_epoch_only() -> None:
    old, new, ring = (Keyring(SECRET) for _ in range(3))
    seals = [
        HandshakeSeal(keys, bytes([n]) * 16, AESGCM) for n, keys in enumerate((old, new, ring))
    ]
    early = seals[0].seal(b"body", old.current)
    for keys in (new, ring):
        assert keys.offer(1, secret_of(1))
    late = seals[1].seal(b"body", new.current)
    assert (early[1], late[1]) == (0, 1)
    assert seals[2].open(early) == (b"body", ring.previous)
    assert seals[2].open(late) == (b"body", ring.current)
    assert ring.offer(2, secret_of(2))
    with pytest.raises(DropError, match="epoch"):
        seals[2].open(early)
    assert seals[2].open(late) == (b"body", ring.previous)
    ring.forget_previous()
    with pytest.raises(DropError, match="epoch"):
        seals[2].open(late)


def test_handshake_nonces_differ_even_under_epochs_with_one_secret() -> None:
    ring = Keyring(SECRET, 1, (0, SECRET))
    seal = HandshakeSeal(ring, bytes(16), AESGCM)
    nonces = {seal.seal(b"body", epoch)[2:12] for _ in range(9) for epoch in ring.held}
    assert len(nonces) == 18


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
        (b"\x13" + bytes(100), "version"),
        (b"\x10" + bytes(100), "version"),
    ],
)
def test_bad_headers_are_named(data: bytes, reason: str) -> None:
    with pytest.raises(DropError, match=reason):
        parse_header(data)


def test_channel_has_one_version_and_says_its_epoch() -> None:
    here, there = pair(version=2, epoch=300)
    _, data = here.seal(b"payload")
    assert data[:2] == bytes((0x22, 300 & 255))
    assert parse_header(data) == (2, 300 & 255, b"ther", 0)
    with pytest.raises(DropError, match="version"):
        opened(pair(version=1, epoch=300)[1], data)
    assert opened(there, data) == b"payload"


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
