"""Meeting an unknown boot."""

import random
from typing import Any

import pytest

from crdt.clock import Instant
from gossip.handshake import Established, Handshake
from gossip.sealing import Aead, DropError, Exchange, Identity, Keyring, parse_header
from tests.gossip.examples import IDENTITY, OTHER

THIRD = Identity.from_private_bytes(bytes(range(64, 96)))
SECRET = b"the fleet's own secret"
HERE, THERE = ("192.0.2.1", 1), ("192.0.2.2", 2)
NOW = Instant(1000.0, 0)


def later(seconds: float) -> Instant:
    return Instant(NOW.mono_s + seconds, 0)


def party(
    identity: Identity, seed: int, secret: bytes | Keyring = SECRET, **options: Any
) -> Handshake:
    rng = random.Random(seed)
    exchange = rng.randbytes(32)
    return Handshake(identity, secret, rng.randbytes(16), exchange, **options)


def run(
    one: Handshake,
    two: Handshake,
    met: tuple[Established, Established] | None = None,
    hello: bytes | None = None,
) -> tuple[Established, Established, list[bytes]]:
    """Let one call two; `met` is what both made of each other before."""
    mine_of = {met[0].node_id: met[0]}.get if met else {}.get
    theirs_of = {met[1].node_id: met[1]}.get if met else {}.get
    hello = hello or one.hello(THERE, NOW)
    challenge, nothing = two.receive(hello, HERE, NOW, theirs_of)
    assert challenge is not None
    assert nothing is None
    confirm, mine = one.receive(challenge, THERE, later(0.2), mine_of)
    assert confirm is not None
    assert mine is not None
    reply, theirs = two.receive(confirm, HERE, later(0.3), theirs_of)
    assert reply is None
    assert theirs is not None
    return mine, theirs, [hello, challenge, confirm]


def talk(mine: Established, theirs: Established) -> None:
    """Check that either reads what the other seals."""
    for source, target in ((mine, theirs), (theirs, mine)):
        _, data = source.channel.seal(b"hi")
        _, _, index, counter = parse_header(data)
        assert index == target.channel.local
        assert target.channel.open(data, counter) == b"hi"


def test_both_sides_learn_who_and_where_and_share_keys() -> None:
    mine, theirs, datagrams = run(party(IDENTITY, 1), party(OTHER, 2))
    assert (mine.node_id, mine.address) == (OTHER.node_id, THERE)
    assert (theirs.node_id, theirs.address) == (IDENTITY.node_id, HERE)
    assert mine.rtt_s == pytest.approx(0.2)
    talk(mine, theirs)
    assert len({len(datagram) for datagram in datagrams}) == 1, "a reply is never larger"


def test_wrong_secret_is_a_broken_seal() -> None:
    hello = party(IDENTITY, 1, b"another fleet's secret").hello(THERE, NOW)
    with pytest.raises(DropError, match="seal"):
        party(OTHER, 2).receive(hello, HERE, NOW, {}.get)


def test_every_flipped_byte_is_refused() -> None:
    two = party(OTHER, 2)
    hello = party(IDENTITY, 1).hello(THERE, NOW)
    for position in range(len(hello)):
        broken = bytearray(hello)
        broken[position] ^= 1
        if position in (0, 1):  # version and kind are read before; the seal covers them as well
            continue
        with pytest.raises(DropError, match="seal"):
            two.receive(bytes(broken), HERE, NOW, {}.get)


def test_member_cannot_speak_for_another() -> None:
    class Forger(Identity):
        def __init__(self) -> None:
            self._own = Identity.from_private_bytes(bytes(32))
            self.public_key, self.node_id = IDENTITY.public_key, IDENTITY.node_id

        def sign(self, message: bytes) -> bytes:
            return self._own.sign(message)

    with pytest.raises(DropError, match="handshake"):
        party(OTHER, 2).receive(party(Forger(), 1).hello(THERE, NOW), HERE, NOW, {}.get)


def test_own_reflection_is_refused() -> None:
    one = party(IDENTITY, 1)
    with pytest.raises(DropError, match="self"):
        one.receive(one.hello(THERE, NOW), THERE, NOW, {}.get)


def test_challenge_counts_once_and_only_from_where_hello_went() -> None:
    one, two = party(IDENTITY, 1), party(OTHER, 2)
    challenge, _ = two.receive(one.hello(THERE, NOW), HERE, NOW, {}.get)
    assert challenge is not None
    with pytest.raises(DropError, match="handshake"):
        one.receive(challenge, HERE, NOW, {}.get)
    one.receive(challenge, THERE, NOW, {}.get)
    with pytest.raises(DropError, match="handshake"):
        one.receive(challenge, THERE, NOW, {}.get)


def test_cookie_is_bound_to_address_and_time() -> None:
    one, two = party(IDENTITY, 1), party(OTHER, 2)
    challenge, _ = two.receive(one.hello(THERE, NOW), HERE, NOW, {}.get)
    assert challenge is not None
    confirm, _ = one.receive(challenge, THERE, NOW, {}.get)
    assert confirm is not None
    for address, when in ((THERE, NOW), (HERE, later(25))):
        with pytest.raises(DropError, match="handshake"):
            two.receive(confirm, address, when, {}.get)
    two.receive(confirm, HERE, later(5), {}.get)


def test_confirm_to_an_earlier_boot_is_refused() -> None:
    one, two = party(IDENTITY, 1), party(OTHER, 2)
    _, _, (_, _, confirm) = run(one, two)
    with pytest.raises(DropError, match="handshake"):
        party(OTHER, 3).receive(confirm, HERE, later(0.3), {}.get)


def test_replaced_boot_never_comes_back() -> None:
    one, two = party(IDENTITY, 1), party(OTHER, 2)
    _, theirs, _ = run(one, two)
    two.retire(theirs.node_id, theirs.boot, theirs.channel, True)
    challenge, _ = two.receive(one.hello(THERE, later(1)), HERE, later(1), {}.get)
    assert challenge is not None
    confirm, _ = one.receive(challenge, THERE, later(1), {}.get)
    assert confirm is not None
    with pytest.raises(DropError, match="handshake"):
        two.receive(confirm, HERE, later(1), {}.get)


def test_repeated_handshake_keeps_the_channel_and_its_window() -> None:
    one, two = party(IDENTITY, 1), party(OTHER, 2)
    mine, theirs, _ = run(one, two)
    _, data = mine.channel.seal(b"once")
    theirs.channel.open(data, parse_header(data)[3])
    challenge, _ = two.receive(one.hello(THERE, NOW), HERE, NOW, {theirs.node_id: theirs}.get)
    assert challenge is not None
    confirm, again = one.receive(challenge, THERE, NOW, {mine.node_id: mine}.get)
    assert confirm is not None
    _, theirs_again = two.receive(confirm, HERE, NOW, {theirs.node_id: theirs}.get)
    assert again is not None
    assert theirs_again is not None
    assert again.channel is mine.channel
    assert theirs_again.channel is theirs.channel
    with pytest.raises(DropError, match="replay"):
        theirs.channel.open(data, parse_header(data)[3])


def test_one_sided_loss_of_a_channel_opens_no_door_to_replays() -> None:
    one, two = party(IDENTITY, 1), party(OTHER, 2)
    mine, theirs, _ = run(one, two)
    old = [theirs.channel.seal(b"old")[1] for _ in range(3)]
    used = mine.channel.counter = 7
    one.retire(mine.node_id, mine.boot, mine.channel, False)  # e.g. it held the peer for down
    challenge, _ = two.receive(one.hello(THERE, NOW), HERE, NOW, {theirs.node_id: theirs}.get)
    assert challenge is not None
    _, again = one.receive(challenge, THERE, NOW, {}.get)
    assert again is not None
    for data in old:
        with pytest.raises(DropError, match="replay"):
            again.channel.open(data, parse_header(data)[3])
    assert again.channel.counter >= used, "a counter of the same keys must not come twice"


def test_cut_and_lengthened_handshakes_are_refused() -> None:
    one, two = party(IDENTITY, 1), party(OTHER, 2)
    hello = one.hello(THERE, NOW)
    for data in (hello[:-1], hello[:40], hello + b"\0"):
        with pytest.raises(DropError, match="seal"):
            two.receive(data, HERE, NOW, {}.get)
    short = one._seal.seal(b"authentic but short", one.keys.current)
    with pytest.raises(DropError, match="decode"):
        two.receive(short, HERE, NOW, {}.get)


def test_another_nodes_boot_is_another_peer() -> None:
    victim, two = party(IDENTITY, 1), party(OTHER, 2)
    _, theirs, _ = run(victim, two)
    liar = Handshake(THIRD, SECRET, theirs.boot, None)
    peers = {theirs.node_id: theirs}
    challenge, _ = two.receive(liar.hello(THERE, NOW), HERE, NOW, peers.get)
    assert challenge is not None
    confirm, _ = liar.receive(challenge, THERE, NOW, {}.get)
    assert confirm is not None
    _, made = two.receive(confirm, HERE, NOW, peers.get)
    assert made is not None
    assert made.boot == theirs.boot
    assert made.channel is not theirs.channel
    assert made.channel.local != theirs.channel.local
    two.retire(made.node_id, made.boot, made.channel, True)  # the liar "restarts"
    mine, again, _ = run(victim, two)
    assert (mine.node_id, again.node_id) == (OTHER.node_id, IDENTITY.node_id)


def test_confirm_counts_once() -> None:
    one, two = party(IDENTITY, 1), party(OTHER, 2)
    _, _, (_, _, confirm) = run(one, two)
    with pytest.raises(DropError, match="replay"):
        two.receive(confirm, HERE, later(1), {}.get)


@pytest.mark.parametrize("held_back", ["confirm", "challenge"])
def test_older_boot_never_replaces_a_newer_one(held_back: str) -> None:
    old, new, two = party(IDENTITY, 1), party(IDENTITY, 3), party(OTHER, 2)
    if held_back == "confirm":
        challenge, _ = two.receive(old.hello(THERE, NOW), HERE, NOW, {}.get)
        assert challenge is not None
        held, _ = old.receive(challenge, THERE, NOW, {}.get)
    else:
        held, _ = old.receive(two.hello(HERE, NOW), THERE, NOW, {}.get)
    assert held is not None
    other_port = ("192.0.2.1", 9)
    challenge, _ = two.receive(new.hello(THERE, later(1)), other_port, later(1), {}.get)
    assert challenge is not None
    confirm, _ = new.receive(challenge, THERE, later(1), {}.get)
    assert confirm is not None
    _, made = two.receive(confirm, other_port, later(1), {}.get)
    assert made is not None
    with pytest.raises(DropError, match="handshake"):
        two.receive(held, HERE, later(2), {made.node_id: made}.get)


def test_newer_boot_replaces_an_older_one() -> None:
    old, new, two = party(IDENTITY, 1), party(IDENTITY, 3), party(OTHER, 2)
    _, known, _ = run(old, two)
    challenge, _ = two.receive(new.hello(THERE, NOW), HERE, NOW, {known.node_id: known}.get)
    assert challenge is not None
    confirm, _ = new.receive(challenge, THERE, NOW, {}.get)
    assert confirm is not None
    _, made = two.receive(confirm, HERE, NOW, {known.node_id: known}.get)
    assert made is not None
    assert made.channel is not known.channel


def test_replayed_hellos_keep_nobody_out() -> None:
    one, two, newcomer = party(IDENTITY, 1), party(OTHER, 2), party(THIRD, 3)
    recorded = one.hello(THERE, NOW)
    two.receive(recorded, HERE, NOW, {}.get)
    for index in range(2000):
        when = later(index / 250)
        with pytest.raises(DropError, match="replay"):
            two.receive(recorded, ("198.51.100.1", index), when, {}.get)
        if index % 50 == 0:
            assert two.receive(newcomer.hello(THERE, when), THERE, when, {}.get)[0] is not None


def test_one_address_cannot_use_up_the_rate_and_answers_cost_nothing() -> None:
    one, two, flood = party(IDENTITY, 1), party(OTHER, 2), party(THIRD, 3)
    for _ in range(100):
        two.receive(flood.hello(THERE, NOW), ("198.51.100.1", 1), NOW, {}.get)
    with pytest.raises(DropError, match="handshake_rate"):
        two.receive(flood.hello(THERE, NOW), ("198.51.100.1", 2), NOW, {}.get)
    challenge, _ = two.receive(one.hello(THERE, NOW), HERE, NOW, {}.get)
    assert challenge is not None
    confirm, _ = one.receive(challenge, THERE, NOW, {}.get)
    assert confirm is not None
    for index in range(99):
        two.receive(flood.hello(THERE, NOW), (f"198.51.100.{2 + index % 9}", 1), NOW, {}.get)
    with pytest.raises(DropError, match="handshake_rate"):
        two.receive(flood.hello(THERE, NOW), THERE, NOW, {}.get)
    assert two.receive(confirm, HERE, NOW, {}.get)[1] is not None
    answer, _ = one.receive(two.hello(HERE, NOW), THERE, NOW, {}.get)
    assert answer is not None
    assert two.receive(answer, HERE, NOW, {}.get)[1] is not None


def test_a_bad_signature_uses_up_the_cookie() -> None:
    one, two = party(IDENTITY, 1), party(OTHER, 2)
    challenge, _ = two.receive(one.hello(THERE, NOW), HERE, NOW, {}.get)
    assert challenge is not None
    confirm, _ = one.receive(challenge, THERE, NOW, {}.get)
    assert confirm is not None
    plain, epoch = one._seal.open(confirm)
    forged = one._seal.seal(plain[:-1] + bytes((plain[-1] ^ 1,)), epoch)
    with pytest.raises(DropError, match="handshake"):
        two.receive(forged, HERE, NOW, {}.get)
    with pytest.raises(DropError, match="replay"):
        two.receive(confirm, HERE, NOW, {}.get)


def test_all_costly_cryptography_is_the_identitys() -> None:
    class Counting(Identity):
        def __init__(self) -> None:
            super().__init__(IDENTITY._private_key)
            self.asked: list[str] = []

        def sign(self, message: bytes) -> bytes:
            self.asked.append("sign")
            return super().sign(message)

        def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
            self.asked.append("verify")
            return super().verify(public_key, message, signature)

        def aead(self, key: bytes) -> Aead:
            self.asked.append("aead")
            return super().aead(key)

        def exchange(self, private: bytes) -> Exchange:
            self.asked.append("exchange")
            return super().exchange(private)

    identity = Counting()
    run(party(identity, 1), party(OTHER, 2))
    hello, handshake_seal, confirm, both_ways = "sign", "aead", ["verify", "aead", "aead"], "sign"
    assert identity.asked == ["exchange", hello, handshake_seal, *confirm, both_ways]


@pytest.mark.parametrize(
    ("ours", "others", "version"),
    [((1, 1), (1, 1), 1), ((1, 2), (1, 1), 1), ((1, 2), (1, 2), 2), ((1, 3), (2, 9), 3)],
)
def test_older_and_newer_node_talk_in_the_highest_common_version(
    ours: tuple[int, int], others: tuple[int, int], version: int
) -> None:
    for one, two in ((ours, others), (others, ours)):
        mine, theirs, datagrams = run(
            party(IDENTITY, 1, versions=one), party(OTHER, 2, versions=two)
        )
        assert mine.version == theirs.version == version
        assert {data[0] for data in datagrams} == {0x11}, "the handshake itself has one layout"
        assert mine.channel.seal(b"")[1][0] >> 4 == version
        talk(mine, theirs)


@pytest.mark.parametrize(("ours", "others"), [((1, 1), (2, 2)), ((1, 2), (3, 15))])
def test_no_common_version_is_refused(ours: tuple[int, int], others: tuple[int, int]) -> None:
    for one, two in ((ours, others), (others, ours)):
        caller, called = party(IDENTITY, 1, versions=one), party(OTHER, 2, versions=two)
        with pytest.raises(DropError, match="version"):
            called.receive(caller.hello(THERE, NOW), HERE, NOW, {}.get)


@pytest.mark.parametrize("versions", [(0, 1), (2, 1), (1, 16)])
def test_impossible_versions_are_the_callers_fault(versions: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="versions"):
        party(IDENTITY, 1, versions=versions)


def extended(
    sender: Handshake, identity: Identity, data: bytes, more: bytes, signed: bool
) -> bytes:
    """A handshake datagram with more before its signature, as a later version may have it."""
    plain, epoch = sender._seal.open(data)
    body = plain[:-64] + more
    signature = identity.sign(b"edge-node handshake 1" + body) if signed else plain[-64:]
    return sender._seal.seal(body + signature, epoch)


def test_newer_version_may_say_more_if_it_signs_it() -> None:
    newer, two = party(IDENTITY, 1, versions=(1, 2)), party(OTHER, 2)
    hello = newer.hello(THERE, NOW)
    with pytest.raises(DropError, match="handshake"):
        two.receive(extended(newer, IDENTITY, hello, b"more", False), HERE, NOW, {}.get)
    hello = extended(newer, IDENTITY, newer.hello(THERE, NOW), b"more", True)
    challenge, _ = two.receive(hello, HERE, NOW, {}.get)
    assert challenge is not None
    assert len(challenge) < len(hello)
    confirm, mine = newer.receive(challenge, THERE, NOW, {}.get)
    assert confirm is not None
    assert mine is not None
    _, theirs = two.receive(extended(newer, IDENTITY, confirm, b"m" * 900, True), HERE, NOW, {}.get)
    assert theirs is not None
    talk(mine, theirs)


def test_own_version_has_one_length() -> None:
    one, two = party(IDENTITY, 1), party(OTHER, 2)
    hello = extended(one, IDENTITY, one.hello(THERE, NOW), b"m", True)
    with pytest.raises(DropError, match="decode"):
        two.receive(hello, HERE, NOW, {}.get)
