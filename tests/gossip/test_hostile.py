"""Whatever comes from the network changes nothing unless it is authentic and whole."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdt.clock import HybridClock
from crdt.codec import encode_batch, encode_entry
from crdt.entries import OwnerEntry
from crdt.store import Store
from gossip.codec import decode_payload, encode_message, join_messages
from gossip.config import GossipConfig
from gossip.events import Address, MemberSuspect, Transmit
from gossip.handshake import Established, Handshake
from gossip.messages import (
    MAX_INCARNATION,
    Ack,
    Announce,
    Claim,
    Evidence,
    Have,
    IndirectAck,
    Knowledge,
    Message,
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
    make_claim,
)
from gossip.sealing import Identity, parse_header, verify
from simnet.world import Host, World
from tests.gossip.examples import OTHER


def drops(host: Host) -> dict[str, int]:
    counters = host.running.counters
    return {name: count for name, count in counters.items() if name.startswith("dropped_")}


def snapshot(host: Host) -> tuple[Any, ...]:
    """Everything that a datagram could change for good."""
    node = host.running
    views = [view[:4] for view in node.members()]
    load = [node.volatile(view.node_id, "load") for view in node.members()]
    return views, load, host.store.fingerprint(), host.store.knowledge(), len(host.events)


class Stage:
    """A settled fleet of three, and every datagram that led to it."""

    def __init__(self, seed: int = 1, config: GossipConfig | None = None) -> None:
        self.world = World(seed, config)
        self.world.network.change(jitter_s=0.0)  # in order, so that all of it is accepted
        self.tapped: list[tuple[Host, Transmit]] = []
        self.world.tap = lambda source, output: self.tapped.append((source, output))
        self.one, self.two, self.three = self.world.fleet(3)
        self.world.run(1)
        for host in (self.one, self.two):
            host.set_owner("key", host.name)
            host.running.set_volatile("load", 1, host.now())
        self.world.run(5)

    def to(self, target: Host) -> list[tuple[Host, Transmit]]:
        return [(source, out) for source, out in self.tapped if out.addr == target.address]

    def send(self, payload: bytes) -> None:
        """Let n1 send an authentic datagram with any payload to n0."""
        link = self.two.running._links.get(self.one.node_id)
        assert link is not None
        _, data = link.channel.seal(payload)
        self.one.running.receive_datagram(data, self.two.address, self.one.now())
        self.discard()

    def discard(self) -> None:
        while self.one.running.poll() is not None:
            pass


def expect_drop(stage: Stage, data: bytes, source: Host, reasons: set[str]) -> None:
    target = stage.one
    before, counts = snapshot(target), drops(target)
    target.running.receive_datagram(data, source.address, target.now())
    assert snapshot(target) == before
    fresh = {name for name, count in drops(target).items() if count != counts.get(name, 0)}
    assert len(fresh) == 1
    assert fresh <= {"dropped_" + reason for reason in reasons}
    output = target.running.poll()
    while output is not None:
        assert isinstance(output, Transmit)
        assert len(output.data) <= len(data), "no reply is larger than its request"
        output = target.running.poll()


def test_every_replayed_datagram_is_refused() -> None:
    stage = Stage()
    for source, output in stage.to(stage.one):
        if output.data[0] & 15 == 1:  # handshakes have a test of their own
            continue
        expect_drop(stage, output.data, source, {"replay"})


def test_replayed_handshakes_change_nothing() -> None:
    stage = Stage()
    stage.world.run(30)
    before = snapshot(stage.one)
    for source, output in stage.to(stage.one):
        if output.data[0] & 15 == 1:
            stage.one.running.receive_datagram(output.data, source.address, stage.one.now())
            reply = stage.one.running.poll()
            if reply is not None:
                assert isinstance(reply, Transmit)
                assert len(reply.data) <= len(output.data)
    assert snapshot(stage.one) == before
    stage.world.run(10)
    assert stage.world.all_live()


def test_replays_into_a_new_boot_are_refused() -> None:
    stage = Stage()
    recorded = stage.to(stage.one)
    stage.one.crash()
    stage.one.start()
    stage.world.run(5)
    before = snapshot(stage.one)
    for source, output in recorded:
        stage.one.running.receive_datagram(output.data, source.address, stage.one.now())
        stage.discard()
    assert snapshot(stage.one) == before


@pytest.mark.parametrize("size", [0, 1, 11, 12, 28, 100, 1000])
def test_truncated_datagrams_are_refused(size: int) -> None:
    stage = Stage()
    for source, output in stage.to(stage.one):
        if size < len(output.data):
            reasons = {"truncated", "seal", "channel", "replay"}
            expect_drop(stage, output.data[:size], source, reasons)


def test_oversized_datagrams_are_refused() -> None:
    stage = Stage()
    for source, output in stage.to(stage.one):
        data = output.data + bytes(1201 - len(output.data))
        expect_drop(stage, data, source, {"oversize"})
    expect_drop(stage, bytes(65507), stage.two, {"oversize"})


def test_every_flipped_bit_is_refused() -> None:
    stage = Stage()
    link = stage.two.running._links.get(stage.one.node_id)
    assert link is not None
    _, data = link.channel.seal(join_messages([encode_message(Ping(9, bytes(16), bytes(8), 9))]))
    for bit in range(len(data) * 8):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        expect_drop(stage, bytes(broken), stage.two, {"seal", "channel", "version", "replay"})
    stage.one.running.receive_datagram(data, stage.two.address, stage.one.now())
    assert isinstance(stage.one.running.poll(), Transmit)


def test_member_cannot_use_another_members_channel() -> None:
    stage = Stage()
    link = stage.three.running._links.get(stage.one.node_id)
    theirs = stage.two.running._links.get(stage.one.node_id)
    assert link is not None
    assert theirs is not None
    _, data = link.channel.seal(join_messages([encode_message(VolatileState(99, b"\x80"))]))
    forged = data[:2] + theirs.channel.remote + data[6:]
    expect_drop(stage, forged, stage.two, {"seal", "replay"})


def test_forged_claims_and_batches_change_nothing() -> None:
    stage = Stage()
    victim = stage.three
    real = make_claim(victim.identity, 9, victim.address)
    forged: list[Message] = [
        Announce(real._replace(incarnation=10), 0),
        Announce(real._replace(left=True), 0),
        Announce(real._replace(port=1), 1),
        Announce(real._replace(signature=bytes(64)), 0),
        Announce(make_claim(OTHER, 1, ("10.0.0.9", 1))._replace(signature=bytes(64)), 0),
        Payload(b"no batch at all", b"", 0),
        Payload(bytes(700), OTHER.public_key, 0),
    ]
    raw = stage.one.store.live_batches(stage.two.node_id)[0]
    newer = bytearray(raw)
    newer[-1] ^= 1
    forged += [Payload(bad, b"", 0) for bad in (bytes(newer), raw[:-1], raw + b"\0")]
    for message in forged:
        before, counters = snapshot(stage.one), dict(stage.one.running.counters)
        stage.send(join_messages([encode_message(message)]))
        assert snapshot(stage.one) == before, message
        after = stage.one.running.counters
        named = ("dropped_claim", "dropped_decode", "batches_bad_signature", "batches_forked")
        assert sum(after.get(name, 0) for name in named) > sum(
            counters.get(name, 0) for name in named
        ), message


def test_fork_is_proved_to_all_and_silences_its_author() -> None:
    stage = Stage()
    two = stage.two
    entry = encode_entry(OwnerEntry("key", "something else"))
    raw = encode_batch(two.node_id, two.store.epoch, 1, ((1, 1),), [entry], two.identity.sign)
    stage.send(join_messages([encode_message(Payload(raw, b"", 0))]))
    assert stage.one.running.counters["batches_forked"] == 1
    assert stage.one.store.owner(stage.two.node_id, "key") is None
    stage.world.run(20)
    assert stage.three.store.owner(stage.two.node_id, "key") is None


def test_author_of_a_fork_holds_up_neither_forgetting_nor_repair() -> None:
    stage = Stage()
    one, two, three = stage.one, stage.two, stage.three
    entry = encode_entry(OwnerEntry("key", "something else"))
    raw = encode_batch(two.node_id, two.store.epoch, 1, ((1, 1),), [entry], two.identity.sign)
    stage.send(join_messages([encode_message(Payload(raw, b"", 0))]))
    stage.world.run(20)
    assert stage.world.all_live()
    one.set_owner("key", "later")
    before = one.running.counters.get("repairs", 0)
    stage.world.run(20)
    for host in (one, three):
        assert host.running._agreement._settled == host.store.generation
    assert one.running.counters.get("repairs", 0) <= before + 1


def test_peer_whose_signatures_do_not_hold_is_not_listened_to_for_a_while() -> None:
    stage = Stage()
    raw = stage.one.store.live_batches(stage.two.node_id)[0]
    bad = encode_message(Payload(raw[:-1] + bytes((raw[-1] ^ 1,)), b"", 0))
    forged = encode_message(Announce(make_claim(OTHER, 9, ("10.0.0.9", 1))._replace(port=2), 0))
    counters = stage.one.running.counters
    for index in range(100):
        stage.send(join_messages([bad if index % 2 else forged] * 32))
    assert counters["batches_bad_signature"] + counters["dropped_claim"] <= 70
    assert counters["dropped_muted"] == 100 - 2
    stage.world.run(15)
    assert stage.world.all_live(), "an honest one would soon be heard again"
    stage.two.set_owner("key", "after")
    stage.world.run(5)
    assert stage.one.store.owner(stage.two.node_id, "key") == "after"


def test_suspicion_spread_by_a_liar_is_refuted() -> None:
    stage = Stage()
    for _ in range(5):
        incarnation = stage.three.running.incarnation
        rumour = Suspect(stage.three.node_id, incarnation, stage.two.node_id, 1)
        stage.send(join_messages([encode_message(rumour)]))
        stage.world.run(4)
        assert stage.world.all_live()


def test_liar_with_a_huge_incarnation_moves_nobody() -> None:
    stage = Stage()
    victim = stage.three
    for host in (stage.one, stage.three):
        link = stage.two.running._links.get(host.node_id)
        assert link is not None
        rumour = Suspect(victim.node_id, MAX_INCARNATION, stage.two.node_id, 1)
        stage.two.running._suspicion.tell(link, rumour)
    stage.two.running.handle_timer(stage.two.now())
    stage.two.drain()
    stage.world.run(0.5)
    assert stage.world.all_live(), "nobody doubts what the victim never claimed"
    assert victim.running.incarnation == 1
    stage.world.network.silence([victim.name], key=victim.name)
    stage.world.run(12)
    stage.world.network.heal()
    stage.world.run_until(stage.world.all_live, 60)
    victim.crash()
    stage.world.run(10)
    victim.start()
    stage.world.run_until(stage.world.all_live, 20)
    assert victim.running.incarnation < 10


def test_older_claim_is_answered_with_the_newer() -> None:
    stage = Stage()
    stage.three.crash()
    stage.three.start()
    stage.world.run(5)
    newer = stage.three.running._members.own
    old = make_claim(stage.three.identity, newer.incarnation - 1, stage.three.address)
    link = stage.two.running._links.get(stage.one.node_id)
    assert link is not None
    data = link.channel.seal(join_messages([encode_message(Announce(old, 0))]))[1]
    stage.one.running.receive_datagram(data, stage.two.address, stage.one.now())
    answers: list[Message] = []
    while (output := stage.one.running.poll()) is not None:
        assert isinstance(output, Transmit)
        counter = parse_header(output.data)[3]
        answers += decode_payload(link.channel.open(output.data, counter))[0]
    assert Announce(newer, 0) in answers


def meet(host: Host, party: Handshake, address: Address) -> Established:
    """Let whoever holds the secret make a link to a host."""
    world, replies = host.world, []
    world.tap = lambda _, output: replies.append(output)
    host.receive(party.hello(host.address, host.now()), address)
    challenge = next(output.data for output in replies if output.addr == address)
    confirm, made = party.receive(challenge, host.address, host.now(), {}.get)
    assert confirm is not None
    assert made is not None
    host.receive(confirm, address)
    world.tap = None
    return made


def say(host: Host, made: Established, address: Address, *messages: Message) -> None:
    """Send messages over a link made by `meet`."""
    data = made.channel.seal(join_messages([encode_message(one) for one in messages]))[1]
    host.receive(data, address)


FLEET = b"the fleet's own secret"
ELSEWHERE = ("10.6.6.6", 6)


def test_claiming_another_nodes_boot_takes_nothing_from_it() -> None:
    stage = Stage()
    link = stage.one.running._links.get(stage.three.node_id)
    assert link is not None
    meet(stage.one, Handshake(OTHER, FLEET, link.boot, None), ELSEWHERE)
    stage.world.run(0.5)
    assert stage.one.running._links.at_index(link.channel.local) is link
    meet(stage.one, Handshake(OTHER, FLEET, bytes(16), None), ELSEWHERE)
    stage.world.network.partition(["n0"], ["n1", "n2"])  # so that they meet again
    stage.world.run(30)
    stage.world.network.heal()
    stage.world.run_until(stage.world.all_live, 60)
    assert "dropped_handshake" not in drops(stage.one)


def test_replays_after_leaving_do_not_shut_the_next_boot_out() -> None:
    world = World(3)
    one, two = world.fleet(2)
    world.run(5)
    two.crash()
    world.run(25)
    recorded: list[Transmit] = []
    world.tap = lambda source, output: recorded.append(output) if source is two else None
    two.start()
    world.run(2)
    assert world.all_live()
    handshakes = [output.data for output in recorded if output.data[0] & 15 == 1]
    assert len(handshakes) >= 2
    two.running.leave(two.now())
    two.drain()
    world.run(1.5)
    two.crash()
    for data in handshakes:  # before the next boot is there ...
        one.receive(data, two.address)
    assert one.running._links.get(two.node_id) is None
    two.start()
    world.run(3)
    for data in handshakes:  # ... and after
        one.receive(data, two.address)
    world.run(60)
    assert world.all_live()
    assert len(two.running.members()) == 2


def claim(identity: Identity, incarnation: int, *, left: bool = False) -> Announce:
    return Announce(make_claim(identity, incarnation, ELSEWHERE, left=left), 0)


def test_boot_that_left_stays_out_and_the_next_one_does_not() -> None:
    stage = Stage()
    old, new = (Handshake(OTHER, FLEET, bytes([n]) * 16, None) for n in (1, 2))
    made = meet(stage.one, old, ELSEWHERE)
    say(stage.one, made, ELSEWHERE, claim(OTHER, 1), claim(OTHER, 2, left=True))
    stage.world.run(0.1)
    after = meet(stage.one, new, ELSEWHERE)  # it restarts at once, and its claim comes late
    stage.world.run(1.5)
    say(stage.one, after, ELSEWHERE, claim(OTHER, 3))
    assert [
        view.state for view in stage.one.running.members() if view.node_id == OTHER.node_id
    ] == ["alive"]
    say(stage.one, after, ELSEWHERE, claim(OTHER, 4, left=True))
    stage.world.run(1.5)
    for party in (old, new):
        meet(stage.one, party, ELSEWHERE)
        assert stage.one.running._links.get(OTHER.node_id) is None


def test_link_without_a_claim_is_closed() -> None:
    stage = Stage()
    for index in range(5):
        identity = Identity.from_private_bytes(bytes([index]) * 32)
        meet(stage.one, Handshake(identity, FLEET, bytes(16), None), ("10.6.6.6", index + 1))
    assert len(stage.one.running._links) == 7
    stage.world.run(11)
    assert len(stage.one.running._links) == 2
    assert stage.one.running._links.get(stage.two.node_id) is not None


def test_one_member_brings_a_bounded_number_of_strangers_and_calls() -> None:
    stage = Stage()
    called: set[tuple[str, int]] = set()
    stage.world.tap = lambda host, output: called.add(output.addr)
    for index in range(600):
        stranger = Identity.from_private_bytes(index.to_bytes(32, "big"))
        data = encode_message(Announce(make_claim(stranger, 1, ("203.0.113.7", index)), 0))
        link = stage.two.running._links.get(stage.one.node_id)
        assert link is not None
        sealed = link.channel.seal(join_messages([data]))[1]
        stage.one.receive(sealed, stage.two.address)
    assert len(list(stage.one.running.members())) == 3, "nobody here has met them"
    assert len(stage.one.running._members.roster()) == 3 + 256
    assert drops(stage.one)["dropped_strangers"] == 600 - 256
    stage.world.run(10)
    assert len(stage.one.running._members.roster()) == 3, "none of them was there"
    assert 16 <= sum(host == "203.0.113.7" for host, _ in called) <= 2 * 16, "twice within 3 s"
    stage.send(join_messages([encode_message(claim(OTHER, 1))]))
    rows = stage.one.running._members.roster()
    assert OTHER.node_id in {row[0] for row in rows}, "time brings new tokens"


def test_what_a_peer_says_of_itself_is_not_counted_against_it() -> None:
    stage = Stage()
    made = meet(stage.one, Handshake(OTHER, FLEET, bytes(16), None), ELSEWHERE)
    for index in range(300):
        stranger = Identity.from_private_bytes(index.to_bytes(32, "big"))
        say(stage.one, made, ELSEWHERE, claim(stranger, 1))
    say(stage.one, made, ELSEWHERE, claim(OTHER, 1))
    assert drops(stage.one)["dropped_strangers"] == 300 - 256
    assert OTHER.node_id in {view.node_id for view in stage.one.running.members()}


def test_one_member_brings_a_bounded_number_of_keys() -> None:
    stage = Stage()
    before = len(stage.one.store.knowledge())
    for index in range(300):
        stranger = Identity.from_private_bytes(index.to_bytes(32, "big"))
        origin = stranger.node_id
        sign, key = stranger.sign, stranger.public_key
        clock = HybridClock()
        store = Store(origin, epoch=1, sign=sign, verify=verify, public_key=key, clock=clock)
        store.set_owner("key", index)
        raw = store.commit(stage.one.now())[0].raw
        stage.send(join_messages([encode_message(Payload(raw, key, 0))]))
    assert len(stage.one.store.knowledge()) == before + 256
    assert len(stage.one.store._keys) == before + 256


def test_key_that_has_verified_nothing_is_not_kept() -> None:
    stage = Stage()
    before = dict(stage.one.store._keys)
    for index in range(20):
        stranger = Identity.from_private_bytes(index.to_bytes(32, "big"))
        entries = [encode_entry(OwnerEntry("key", index))]
        forged = encode_batch(stranger.node_id, 1, 1, ((1, 1),), entries, OTHER.sign)
        stage.send(join_messages([encode_message(Payload(forged, stranger.public_key, 0))]))
        stage.send(join_messages([encode_message(Evidence(forged, stranger.public_key))]))
    assert stage.one.running.counters["batches_bad_signature"] == 40
    assert stage.one.store._keys == before


def test_origins_beyond_what_is_held_are_refused_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage()
    monkeypatch.setattr("crdt.replica.MAX_ORIGINS", 5)
    held = len(stage.one.store.knowledge())
    for index in range(10):
        stranger = Identity.from_private_bytes(index.to_bytes(32, "big"))
        entries = [encode_entry(OwnerEntry("key", index))]
        raw = encode_batch(stranger.node_id, 1, 1, ((1, 1),), entries, stranger.sign)
        stage.send(join_messages([encode_message(Payload(raw, stranger.public_key, 0))]))
    assert len(stage.one.store.knowledge()) == 5
    assert stage.one.running.counters["batches_full"] == 10 - (5 - held)


def test_members_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(1, GossipConfig(direct_members=1))  # a large fleet, which believes in claims
    monkeypatch.setattr("gossip.members.MAX_MEMBERS", 3)
    for index in range(5):
        stranger = Identity.from_private_bytes(bytes([index]) * 32)
        stage.send(join_messages([encode_message(claim(stranger, 1))]))
    assert len(stage.one.running._members.live()) == 3
    assert drops(stage.one)["dropped_members_full"] == 4


def test_only_the_target_answers_for_a_relayed_probe() -> None:
    stage = Stage()
    stage.world.network.silence(["n2"], key="n2")
    stage.send(join_messages([encode_message(PingRequest(7, stage.three.node_id))]))
    inquiries = stage.one.running._probing._inquiries
    asked = stage.one.running._pings._sent
    number = next(key for key, sent in asked.items() if sent.target == stage.three.node_id)
    ack = join_messages([encode_message(Ack(number, bytes(16), bytes(8), 0, 0))])
    before = stage.one.running.counters.get("acks_unknown", 0)
    stage.send(ack)
    assert stage.one.running.counters["acks_unknown"] == before + 1
    assert stage.three.node_id in inquiries
    link = stage.three.running._links.get(stage.one.node_id)
    assert link is not None
    data = link.channel.seal(ack)[1]
    stage.one.running.receive_datagram(data, stage.three.address, stage.one.now())
    assert stage.three.node_id not in inquiries


def test_word_of_a_helper_that_nobody_asked_counts_for_nothing() -> None:
    world = World(1, GossipConfig(indirect_probes=0))
    one, liar, victim = world.fleet(3)
    world.run(3)
    world.network.partition(["n0"], ["n2"])
    for _ in range(100):
        link = liar.running._links.get(one.node_id)
        inquiry = one.running._probing._inquiries.get(victim.node_id)
        assert link is not None
        if inquiry is not None:
            data = join_messages([encode_message(IndirectAck(inquiry.number))])
            one.receive(link.channel.seal(data)[1], liar.address)
        world.run(0.1)
    assert MemberSuspect(victim.node_id) in [event for _, event in one.events]


def test_handshake_flood_is_limited_and_heals() -> None:
    stage = Stage()
    stranger = stage.world.add("stranger")
    stranger.start()
    for port in range(1000):
        data = stranger.running._contact._handshake.hello(stage.one.address, stranger.now())
        stage.one.running.receive_datagram(data, ("10.0.0.66", port + 1), stage.one.now())
    stage.discard()
    assert stage.one.running.counters["dropped_handshake_rate"] >= 700
    stage.world.run(20)
    assert stage.one.running.counters["in_datagrams"] > 1000
    assert len(stage.one.running._links) == 2


def test_flood_without_the_secret_keeps_nobody_out() -> None:
    stage = Stage()
    for index in range(2000):
        data = b"\x11\0" + index.to_bytes(4, "big") * 50
        stage.one.running.receive_datagram(data, ("10.0.0.66", 6), stage.one.now())
    newcomer = stage.world.add("newcomer")
    newcomer.seeds.append(stage.one.address)
    newcomer.start()
    stage.world.run(0.5)
    assert stage.world.all_live()
    assert stage.one.running.counters["dropped_seal"] == 2000


STAGE = Stage(7)
ids = st.sampled_from([STAGE.one.node_id, STAGE.two.node_id, STAGE.three.node_id, bytes(16)])
some_id = ids | st.binary(min_size=16, max_size=16)
number = st.integers(0, 5) | st.integers(0, 2**48 - 1)
claims = st.builds(
    Claim,
    st.sampled_from([OTHER.public_key, STAGE.one.identity.public_key, bytes(32)]),
    number,
    st.ip_addresses().map(str) | st.text("abc.:", min_size=1, max_size=64),
    st.integers(0, 65535),
    st.booleans(),
    st.binary(min_size=64, max_size=64),
) | st.builds(
    make_claim,
    st.sampled_from([OTHER, Identity.from_private_bytes(bytes(32))]),
    number,
    st.just(("10.0.0.77", 5)),
)
entries = st.lists(
    st.tuples(some_id, number, number, st.binary(min_size=8, max_size=8)), max_size=22
)
rows = st.lists(st.tuples(some_id, number, st.booleans()), max_size=22)
hash16, hash8 = st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8)
scopes = st.sampled_from([0, 1, 0x1A, 0x1F3, 0x1000])
versions = st.lists(st.tuples(some_id, number, number), min_size=1, max_size=16).map(tuple)
batches, keys = st.binary(min_size=1, max_size=1000), st.sampled_from([b"", OTHER.public_key])
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Ping, number, hash16, hash8, number),
    st.builds(Ack, number, st.just(b"") | hash16, st.just(b"") | hash8, number, number),
    st.builds(PingRequest, number, some_id),
    st.builds(IndirectAck, number),
    st.builds(Announce, claims, scopes),
    st.builds(Suspect, some_id, number, some_id, scopes),
    st.builds(Payload, batches, keys, scopes),
    st.builds(Evidence, batches, keys),
    st.builds(Tree, st.booleans(), scopes, st.tuples(*[hash8] * 16)),
    st.builds(Have, versions),
    st.builds(Want, versions),
    st.builds(
        Received,
        st.lists(st.tuples(number, number), max_size=64).map(tuple),
        st.integers(0, 1000),
    ),
    st.builds(Knowledge, some_id, some_id, st.booleans(), entries.map(tuple)),
    st.builds(Roster, some_id, some_id, st.booleans(), rows.map(tuple)),
    st.builds(VolatileState, number, st.binary(min_size=1, max_size=400)),
    st.builds(VolatileRequest, number),
)


@given(st.binary(max_size=1300), st.booleans())
def test_any_datagram_is_taken_or_counted(data: bytes, aimed: bool) -> None:
    if aimed:  # past the header checks
        data = b"\x12\0" + data if len(data) % 2 else b"\x11\0" + data
    before, counts = snapshot(STAGE.one), sum(drops(STAGE.one).values())
    STAGE.one.running.receive_datagram(data, ("10.6.6.6", 6), STAGE.one.now())
    assert sum(drops(STAGE.one).values()) == counts + 1
    assert snapshot(STAGE.one) == before


@given(st.binary(min_size=1, max_size=400))
def test_any_opened_payload_is_taken_or_counted(payload: bytes) -> None:
    STAGE.send(payload)


@given(st.lists(messages, min_size=1, max_size=4))
@settings(max_examples=300)
def test_any_messages_of_a_member_leave_a_working_node(batch: list[Message]) -> None:
    STAGE.send(join_messages([encode_message(message) for message in batch]))
    STAGE.world.run(0.05)
    view = next(view for view in STAGE.one.running.members() if view.state == "self")
    assert view.node_id == STAGE.one.node_id


def test_stage_still_works_after_all_that() -> None:
    STAGE.world.run(60)
    STAGE.three.set_owner("after", 1)
    STAGE.world.run(20)
    assert STAGE.one.store.owner(STAGE.three.node_id, "after") == 1
    assert STAGE.one.running.next_deadline() > STAGE.world.now_s
