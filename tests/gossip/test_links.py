"""Links: certain, quick and frugal delivery, whatever the network and the hosts do."""

import random
from itertools import pairwise

import pytest

from crdt.clock import Instant
from gossip.antientropy import Census
from gossip.broadcast import PROMPT, REPAIR, STATE, URGENT, VOLATILE, Link, Links
from gossip.codec import decode_payload, encode_message, join_messages
from gossip.config import GossipConfig
from gossip.events import Transmit
from gossip.latency import Excess, Latency
from gossip.limits import Bucket
from gossip.messages import (
    Announce,
    IndirectAck,
    Message,
    Payload,
    PingRequest,
    Received,
    Suspect,
    VolatileRequest,
    VolatileState,
)
from simnet.world import Host, World

FLOOR_S = GossipConfig().resend_floor_s
HOP_S = 0.0015


class Pair:
    """The links of two nodes that met, driven by hand; what they send is read, not delivered."""

    def __init__(self, config: GossipConfig | None = None, peers: int = 1) -> None:
        world = World(1, config)
        self.hosts = world.fleet(peers + 1)
        world.run_until(world.all_live, 5)
        world.run(2)
        self.one, self.two = self.hosts[:2]
        self.now_s = world.now_s
        self.links = self.one.running._links
        self.counters = self.one.running.counters
        self.link = self.to(self.two)
        self.counters.clear()
        list(self.links.flush(self.now))

    @property
    def now(self) -> Instant:
        return Instant(self.now_s, 0)

    def to(self, host: Host) -> Link:
        link = self.links.get(host.node_id)
        assert link is not None
        return link

    def offer(self, count: int, priority: int = STATE, size: int = 1000) -> None:
        for _ in range(count):
            raw = self.one.rng.randbytes(size)
            assert self.links.offer(self.link, raw, encode_message(Payload(raw, b"", 0)), priority)

    def flush(self) -> list[tuple[int, list[Message]]]:
        """Return the counter and the messages of every datagram that is due."""
        sent = []
        for data, _ in list(self.links.flush(self.now)):
            host = next(one for one in self.hosts if self.opens(one, data))
            counter = int.from_bytes(data[6:12], "big")
            payload = self.reader(host).channel.open(data, counter)
            sent.append((counter, decode_payload(payload)[0]))
        return sent

    def reader(self, host: Host) -> Link:
        link = host.running._links.get(self.one.node_id)
        assert link is not None
        return link

    def opens(self, host: Host, data: bytes) -> bool:
        return host is not self.one and self.reader(host).channel.local == data[2:6]

    def ack(self, *counters: int, pause_ms: int = 0) -> None:
        ranges = tuple((one, one) for one in counters)
        self.links.on_received(self.link, Received(ranges, pause_ms), self.now)

    def run(self, duration_s: float) -> list[tuple[float, int, list[Message]]]:
        """Let time pass; return when each datagram left (from now), its counter and messages."""
        begun_s, end_s = self.now_s, self.now_s + duration_s
        sent = []
        while (due_s := self.links.deadline()) <= end_s:
            self.now_s = max(self.now_s, due_s)
            sent += [(self.now_s - begun_s, *one) for one in self.flush()]
        self.now_s = end_s
        return sent


def total(hosts: list[Host], name: str) -> int:
    return sum(host.running.counters.get(name, 0) for host in hosts)


def spread_times(loss: float, seed: int) -> tuple[list[float], float]:
    """Return how long 20 updates took to reach all of 12 nodes, and copies per node and update."""
    world = World(seed, standin=True)
    hosts = world.fleet(12)
    world.run_until(world.all_live, 10)
    world.run(3)
    world.network.change(loss=loss)
    before = total(hosts, "batches_new"), total(hosts, "batches_duplicate")
    times = []
    for index in range(20):
        writer = hosts[index % 12]
        begun_s = world.now_s
        writer.set_owner("key", index)
        while not all(host.store.owner(writer.node_id, "key") == index for host in hosts):
            assert world.now_s < begun_s + 10, f"seed {seed}: update {index} is missed"
            world.run(0.001)
        times.append(world.now_s - begun_s)
        world.run(0.5)
    new, again = total(hosts, "batches_new"), total(hosts, "batches_duplicate")
    assert new - before[0] == 20 * 11, "nobody misses anything"
    return sorted(times), 1 + (again - before[1]) / (20 * 11)


def test_without_loss_every_update_is_one_hop_and_one_copy() -> None:
    times, copies = spread_times(0.0, 1)
    assert times[-1] <= 3 * HOP_S
    assert copies == 1


@pytest.mark.parametrize(("loss", "median_tries", "most_tries"), [(0.2, 3, 7), (0.4, 5, 36)])
def test_loss_costs_a_few_resends_and_few_copies(
    loss: float, median_tries: int, most_tries: int
) -> None:
    for seed in (1, 2):
        times, copies = spread_times(loss, seed)
        assert times[len(times) // 2] <= 3 * HOP_S + (median_tries - 1) * (FLOOR_S + HOP_S)
        assert times[-1] <= 3 * HOP_S + (most_tries - 1) * (FLOOR_S + HOP_S)
        assert copies <= 2


def test_tries_keep_their_pace_five_times_then_slow_down_and_end() -> None:
    pair = Pair()
    pair.offer(1)
    left_s = [when for when, _, _ in pair.run(20)]
    gaps = [late - early for early, late in pairwise(left_s)]
    assert len(left_s) == GossipConfig().resend_limit
    assert gaps[:5] == pytest.approx([FLOOR_S] * 5)
    assert gaps[5:] == pytest.approx([FLOOR_S * 2, FLOOR_S * 4, FLOOR_S * 8, FLOOR_S * 16])
    assert pair.counters["given_up"] == 1
    assert not pair.link.flights
    assert not any(pair.link.queues)


def test_loss_of_one_datagram_does_not_slow_another() -> None:
    pair = Pair()
    pair.offer(1)
    pair.run(0.2)  # lost again and again: the next of their tries is more than 0.05 s away
    pair.offer(1)
    left_s = [when for when, _, _ in pair.run(FLOOR_S + 0.03)]
    assert left_s[0] <= pair.link.interval_s
    assert left_s[1] - left_s[0] == pytest.approx(FLOOR_S)


def test_what_later_datagrams_have_passed_is_resent_at_once() -> None:
    pair = Pair()
    pair.offer(4)
    (first, lost), (second, _), (third, _), _ = pair.flush()
    pair.now_s += HOP_S
    pair.ack(second)
    assert pair.flush() == [], "one may have overtaken another"
    pair.ack(third)
    ((again, messages),) = pair.flush()
    assert messages == lost
    assert again > third > first
    pair.ack(first)
    assert pair.counters["resent_early"] == 1, "it was late, not lost"


def test_late_answers_teach_patience_and_end_the_resending() -> None:
    pair = Pair()
    for late in range(8):
        pair.offer(1)
        ((counter, _),) = pair.flush()
        pair.run(FLOOR_S + 0.01)
        assert pair.counters["resent"] >= 1
        pair.now_s += 0.1
        pair.ack(counter)
        if late == 0:
            assert pair.link.resend_after_s(1, pair.now) < 0.1, "one alone says little"
            assert pair.run(10) == [], "it has arrived, whatever became of the second copy"
    assert pair.link.resend_after_s(1, pair.now) > 0.15
    pair.run(10)
    for _ in range(40):
        pair.offer(1)
        pair.ack(*[counter for _, counter, _ in pair.run(0.02)])
    assert pair.link.resend_after_s(1, pair.now) == FLOOR_S, (
        "and what is quick again is trusted again"
    )


def test_node_that_was_held_up_reads_the_answers_before_it_resends() -> None:
    world = World(3)
    one, two = world.fleet(2)
    world.run(3)
    one.running.counters.clear()
    one.set_owner("key", 1)
    world.run(0.002)  # on its way
    one.hold(0.5)
    world.run(2)
    assert two.store.owner(one.node_id, "key") == 1
    assert "resent" not in one.running.counters


def test_acknowledgements_wait_for_company_but_not_for_long() -> None:
    world = World(4)
    one, two = world.fleet(2)
    world.run(3.3)
    acked: list[float] = []
    world.tap = lambda source, _: acked.append(world.now_s) if source is two else None
    begun_s = world.now_s
    one.set_owner("key", 1)
    world.run(0.003)
    one.set_owner("key", 2)
    world.run(0.05)
    assert len(acked) <= 2
    assert acked[0] - begun_s <= world.config.ack_delay_s + 3 * HOP_S


def test_acknowledgements_of_rumours_alone_wait_for_company() -> None:
    pair = Pair()
    rumour, claim = Suspect(bytes(16), 1, pair.two.node_id, 0), pair.two.running._members.own
    for others, waits_s in [
        ((), 0.51),
        ((Announce(claim, 0),), 0.01),
        ((PingRequest(1, b"-" * 16),), 0.51),
    ]:
        channel = pair.reader(pair.two).channel
        _, data = channel.seal(join_messages([encode_message(one) for one in (rumour, *others)]))
        pair.one.running.receive_datagram(data, pair.two.address, pair.now)
        assert pair.link.ack_due_s == pytest.approx(pair.now_s + waits_s)
        pair.run(0.6)


def test_rumours_are_sent_again_later_and_measure_no_path() -> None:
    pair = Pair()
    rumour = encode_message(Suspect(bytes(16), 1, pair.two.node_id, 0))
    measured = pair.link.latency.mean_s
    assert pair.links.offer(pair.link, b"rumour", rumour, PROMPT, patient=True)
    ((_, first, _),) = pair.run(0.53)
    assert pair.counters["resent"] == 0
    ((_, second, _),) = pair.run(0.1)
    assert pair.counters["resent"] == 1
    pair.ack(first, second)
    assert pair.link.latency.mean_s == measured
    assert pair.run(5) == []


def test_death_that_a_comparison_brings_is_a_rumour_like_any() -> None:
    pair = Pair(peers=2)
    dead = pair.hosts[2]
    members = pair.one.running._members
    member = members.get(dead.node_id)
    assert member is not None
    members.bury(member, pair.now)
    census = Census(members, pair.links)
    census.dispute(pair.link, (dead.node_id, member.claim.incarnation, False))
    assert [type(one) for _, _, messages in pair.run(0.4) for one in messages] == [Suspect]
    assert pair.counters["resent"] == 0, "its acknowledgement may be on its way"


def test_many_rumours_are_acknowledged_soon_and_so_is_what_follows_one() -> None:
    pair = Pair()
    pair.links.on_arrival(pair.link, 0, pair.now, patient=True)
    assert pair.link.ack_due_s > pair.now_s + 0.4
    pair.links.on_arrival(pair.link, 1, pair.now)
    assert pair.link.ack_due_s == pytest.approx(pair.now_s + 0.01)
    pair.run(0.1)
    for counter in range(2, 10):
        pair.links.on_arrival(pair.link, counter, pair.now, patient=True)
    assert pair.link.ack_due_s == pytest.approx(pair.now_s + 0.01)


def test_rumours_on_their_way_to_one_that_is_doubted_hold_up_nothing_urgent() -> None:
    pair = Pair()
    pair.link.doubted = True
    rumour = encode_message(Suspect(bytes(16), 1, pair.two.node_id, 0))
    assert pair.links.offer(pair.link, b"rumour", rumour, PROMPT, patient=True)
    assert len(pair.run(0.02)) == 1
    pair.offer(1, PROMPT)
    pair.offer(1, URGENT)
    pair.offer(1, URGENT)
    ((_, _, messages),) = pair.run(0.03)
    assert len(messages) == 1, "which again holds up the rest"


def test_hostile_acknowledgements_change_nothing_else() -> None:
    pair = Pair()
    pair.offer(2)
    pair.flush()
    for ranges in [((5, 1),), ((1 << 40, 1 << 47),) * 64, ((0, 0),)]:
        pair.links.on_received(pair.link, Received(ranges, 0), pair.now)
    assert len(pair.link.flights) == 2
    pair.links.on_received(pair.link, Received(((0, (1 << 48) - 1),) * 64, 1000), pair.now)
    assert not pair.link.flights
    assert pair.run(5) == []


def test_lost_datagrams_are_remembered_within_bounds() -> None:
    pair = Pair(GossipConfig(resend_limit=32))
    for _ in range(100):
        pair.offer(3)
        pair.run(0.3)
    assert len(pair.link.lost) <= 64
    assert len(pair.link.flights) <= 32


def test_more_than_32_acknowledgements_share_several_datagrams() -> None:
    pair = Pair()
    for counter in range(0, 200, 2):
        pair.links.on_arrival(pair.link, counter, pair.now)
    told = [one for _, messages in pair.flush() for one in messages if isinstance(one, Received)]
    assert sorted(first for one in told for first, _ in one.ranges) == list(range(0, 200, 2))
    assert max(len(one.ranges) for one in told) == 32


# priorities and tokens

SHORT = GossipConfig(egress_bytes_per_s=20_000)  # a burst of 5,000 bytes: four full datagrams


def payload_sizes(sent: list[tuple[float, int, list[Message]]]) -> list[tuple[float, int]]:
    return [(when, len(one.raw)) for when, _, all_ in sent for one in all_ if type(one) is Payload]


def test_urgent_overtakes_when_tokens_are_short() -> None:
    pair = Pair(SHORT)
    pair.offer(8, REPAIR, 901)
    pair.offer(8, STATE, 902)
    pair.offer(3, PROMPT, 903)
    pair.offer(3, URGENT, 904)
    sent = []
    for _ in range(400):  # acknowledged as they leave, so that only tokens are short
        gone = pair.run(0.01)
        sent += [(index, *one[1:]) for index, one in enumerate(gone)]
        pair.ack(*[counter for _, counter, _ in gone])
    sizes = [size for _, size in payload_sizes(sent)]
    assert sizes[:6] == [904] * 3 + [903] * 3, "at once, whatever the bucket holds"
    assert sizes[6:] == [902] * 8 + [901] * 8, "later, the more urgent first, and nothing is lost"
    assert pair.counters.get("resent", 0) == 0


def test_egress_keeps_to_its_rate() -> None:
    pair = Pair(SHORT)
    pair.offer(60, STATE, 960)
    size = 0
    for _ in range(200):
        gone = pair.run(0.01)
        size += sum(size for _, size in payload_sizes(gone))
        pair.ack(*[counter for _, counter, _ in gone])
    assert 0.8 * 2 * 20_000 < size <= 5_000 + 2 * 20_000 + 1200


def test_volatile_is_shed_first_and_newest_replaces() -> None:
    pair = Pair(SHORT)

    def push(number: int) -> None:
        data = encode_message(VolatileState(number, pair.one.rng.randbytes(390)))
        assert pair.links.offer(pair.link, b"V", data, VOLATILE)

    push(1)
    push(2)
    ((_, messages),) = pair.flush()
    assert [one.sequence for one in messages if isinstance(one, VolatileState)] == [2]
    assert not pair.link.flights, "it is not acknowledged"
    pair.offer(4, PROMPT)
    assert len(pair.flush()) == 0, "within the batching interval"
    pair.now_s += 0.011
    assert len(pair.flush()) == 4
    pair.ack(*pair.link.flights)
    push(3)
    pair.now_s += 0.02
    assert pair.flush() == []
    assert pair.counters["shed_volatile"] == 1
    assert not any(pair.link.queues)


def test_answers_and_pings_never_wait_for_tokens() -> None:
    pair = Pair(SHORT)
    pair.offer(10, PROMPT)
    pair.flush()
    pair.offer(1, STATE)
    pair.links.post(pair.link, IndirectAck(7))
    pair.links.on_arrival(pair.link, 9, pair.now)
    ((_, messages),) = pair.flush()
    assert messages == [Received(((9, 9),), 0), IndirectAck(7)]


def test_bucket_fills_overdraws_within_bounds_and_knows_its_waits() -> None:
    bucket = Bucket(100.0, 50.0)
    assert bucket.level(Instant(1.0, 0)) == 1
    bucket.spend(500)
    assert bucket.level(Instant(1.0, 0)) == -1
    assert bucket.wait_s(0.5) == pytest.approx(0.75)
    assert bucket.level(Instant(1.75, 0)) == pytest.approx(0.5)
    assert bucket.level(Instant(1.0, 0)) == pytest.approx(0.5), "a clock that steps back fills none"
    assert bucket.level(Instant(100.0, 0)) == 1


def test_burst_leaves_in_portions() -> None:
    pair = Pair(GossipConfig(egress_bytes_per_s=1e9, window_datagrams=1024))
    pair.offer(300, STATE, 960)
    portions = [len(pair.flush())]
    while pair.links.deadline() < pair.now_s + 0.01:
        pair.now_s = max(pair.now_s, pair.links.deadline())
        portions.append(len(pair.flush()))
    assert sum(portions) == 300
    assert max(portions) * 1000 <= 64 * 1024 + 1200
    assert pair.flush() == []


def test_links_take_turns() -> None:
    pair = Pair(GossipConfig(egress_bytes_per_s=1e9), peers=3)
    for host in pair.hosts[1:]:
        pair.link = pair.to(host)
        pair.offer(30)
    reached = [data[2:6] for data, _ in pair.links.flush(pair.now)]
    assert len(set(reached[:3])) == 3
    assert max(reached.count(one) for one in reached) <= len(reached) // 3 + 1


# pauses


def test_pause_is_kept_between_datagrams_but_not_by_what_is_urgent() -> None:
    pair = Pair()
    pair.offer(1)
    pair.ack(pair.flush()[0][0], pause_ms=300)
    pair.offer(3)
    pair.offer(1, URGENT)
    begun_s, left_s = pair.now_s, []
    for _ in range(200):
        gone = pair.run(0.01)
        left_s += [round(pair.now_s - 0.01 + when, 3) for when, _, _ in gone]
        pair.ack(*[counter for _, counter, _ in gone], pause_ms=300)
    assert len(left_s) == 4
    assert left_s[0] - begun_s < 0.02, "what is urgent does not wait"
    assert all(late - early >= 0.299 for early, late in pairwise(left_s))
    assert pair.counters.get("resent", 0) == 0, "and nobody takes a paused peer for a lost one"
    pair.ack(pause_ms=0)
    pair.offer(2)
    assert len(pair.run(0.012)) == 2


def test_who_is_doubted_gets_one_datagram_at_a_time_until_it_is_heard() -> None:
    pair = Pair()
    pair.link.doubted = True
    pair.offer(3)
    sent = [at for at, _, _ in pair.run(2.0)]
    assert len(sent) <= 6
    pauses = [later - at for at, later in pairwise(sent)]
    assert all(later > 1.5 * pause for pause, later in pairwise(pauses))
    pair.links.heard(pair.link, pair.now)
    assert len(pair.run(1.0)) >= 3


def test_what_the_doubted_did_not_answer_is_sent_again_as_soon_as_it_is_heard() -> None:
    pair = Pair()
    pair.link.doubted = True
    pair.offer(1)
    pair.run(1.0)
    assert not pair.run(0.1), "the pauses have grown"
    pair.links.heard(pair.link, pair.now)
    assert len(pair.run(0.1)) >= 1


def test_node_that_is_late_waits_as_long_for_answers_before_it_resends() -> None:
    pair = Pair()
    pair.offer(1)
    pair.flush()
    pair.links.behind(0.4, pair.now)
    pair.run(0.2)
    assert "resent" not in pair.counters
    pair.run(0.4)
    assert pair.counters["resent"] == 1
    pair.links.behind(60.0, pair.now)
    pair.run(10)
    assert pair.counters["resent"] > 1, "but not for ever"


def test_node_that_is_late_asks_for_pauses_that_fade() -> None:
    pair = Pair()

    def asked() -> int:
        pair.links.on_arrival(pair.link, 1, pair.now)
        ((_, _, (told,)),) = pair.run(0.02)
        assert isinstance(told, Received)
        return told.pause_ms

    pair.links.behind(0.049, pair.now)
    assert asked() == 0
    pair.links.behind(float("inf"), pair.now)
    assert asked() == 0
    pair.links.behind(0.4, pair.now)
    assert 380 < asked() <= 400
    pair.now_s += 1
    assert 185 < asked() <= 200
    pair.now_s += 3
    assert asked() == 0
    pair.links.behind(60.0, pair.now)
    assert asked() == 1000


def test_held_node_makes_its_peers_pause_and_loses_nothing() -> None:
    world = World(5)
    one, two = world.fleet(2)
    world.run(3)
    two.hold(1.0)
    for index in range(100):
        one.store.set_owner(f"key/{index % 30}", one.rng.randbytes(600))
        one.running.commit(one.now())
        world.run(0.02)
        one.drain()
    assert one.running._links.get(two.node_id).pause_s > 0  # type: ignore[union-attr]
    world.run_until(world.converged, 20)
    world.run(10)
    one.set_owner("key/0", 0)
    world.run(0.1)
    assert two.store.owner(one.node_id, "key/0") == 0
    assert one.running._links.get(two.node_id).pause_s == 0  # type: ignore[union-attr]


def test_loss_widens_the_batching_and_its_end_narrows_it() -> None:
    pair = Pair()
    assert pair.link.interval_s == 0.01
    for _ in range(4):
        pair.offer(1)
        pair.run(0.3)
    assert pair.link.interval_s == 0.02
    for _ in range(60):
        pair.offer(1)
        pair.ack(*[counter for _, counter, _ in pair.run(0.03)], *pair.link.flights)
    assert pair.link.interval_s == 0.01


# payloads


def test_same_messages_to_many_are_joined_once_and_right(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(peers=5)
    joined: list[list[bytes]] = []

    def join(parts: list[bytes]) -> bytes:
        joined.append(parts)
        return join_messages(parts)

    monkeypatch.setattr("gossip.broadcast.join_messages", join)
    rng = random.Random(1)
    for _ in range(3):
        expected = Payload(rng.randbytes(300), b"", 0)
        for host in pair.hosts[1:]:
            key = expected.raw
            assert pair.links.offer(pair.to(host), key, encode_message(expected), STATE)
        assert [messages for _, messages in pair.flush()] == [[expected]] * 5
        for host in pair.hosts[1:]:
            pair.link = pair.to(host)
            pair.ack(*pair.link.flights)
        pair.now_s += 0.02
    assert len(joined) == 3
    pair.links.post(pair.link, VolatileRequest(1))
    pair.links.post(pair.to(pair.hosts[1]), VolatileRequest(2))
    assert sorted(messages[0] for _, messages in pair.flush()) == [
        VolatileRequest(1),
        VolatileRequest(2),
    ]


# links that come and go


def test_idle_links_above_the_bound_are_closed_and_nobody_is_thought_dead() -> None:
    world = World(6, GossipConfig(links_kept=16, link_idle_s=5.0))
    hosts = world.fleet(26)
    world.run_until(world.all_live, 20)
    world.run(60)
    sizes = [len(host.running._links) for host in hosts]
    assert sum(sizes) < 0.9 * 26 * 25, "some are closed"
    assert total(hosts, "links_idle") > 0
    assert world.all_live()
    assert not any(
        type(event).__name__ in ("MemberSuspect", "MemberDown")
        for host in hosts
        for _, event in host.events
    )


def test_links_within_the_bound_stay_however_idle() -> None:
    world = World(7, GossipConfig(links_kept=16, link_idle_s=1.0, probe_interval_s=20.0))
    hosts = world.fleet(4)
    world.run_until(world.all_live, 60)
    world.run(30)
    assert total(hosts, "links_idle") == 0
    assert all(len(host.running._links) == 3 for host in hosts)


def test_link_that_only_the_peer_has_closed_is_made_anew_by_the_next_news() -> None:
    world = World(8, GossipConfig(probe_interval_s=60.0))
    one, two = world.fleet(2)
    world.run_until(world.all_live, 5)
    world.run(2)
    two.running._links.close(one.node_id)
    one.set_owner("key", 1)
    begun_s = world.now_s
    world.run_until(lambda: two.store.owner(one.node_id, "key") == 1, 2)
    assert world.now_s - begun_s < 10 * FLOOR_S
    assert two.running.counters["dropped_channel"] > 0
    assert world.all_live()


def test_restarted_peer_is_met_by_the_next_news_before_any_probe() -> None:
    world = World(9, GossipConfig(probe_interval_s=60.0))
    one, two = world.fleet(2)
    world.run_until(world.all_live, 5)
    world.run(2)
    two.crash()
    two.seeds.clear()
    two.start()
    one.set_owner("key", 1)
    world.run(10 * FLOOR_S)
    assert two.store.owner(one.node_id, "key") == 1


def settled_latency(usual: Excess, *times_s: float) -> Latency:
    """Return what is known of a link that was measured at 0 s, and so often at 10 s."""
    latency = Latency(usual)
    for index, time_s in enumerate((0.3, *times_s)):
        latency.sample(time_s, 10.0 if index else 0.0)
    return latency


def test_latency_is_the_least_and_what_comes_on_top() -> None:
    latency = Latency(Excess())
    assert latency.mean_s is None
    assert latency.bound_s(0.0) is None
    latency = settled_latency(Excess(), 0.1)
    assert latency.mean_s == 0.1
    assert latency.bound_s(10.0) == pytest.approx(0.2), "half of the first, twice"
    latency.sample(0.02, 11.0)
    assert latency.least_s == 0.02
    for step in range(600):
        latency.sample(0.3, 12.0 + step)
    assert latency.least_s == pytest.approx(0.3, rel=0.01), "a path may become longer"
    assert latency.bound_s(612.0) == pytest.approx(0.3, rel=0.01)


def test_first_impression_of_a_link_counts_for_little_and_not_for_long() -> None:
    latency = Latency(Excess())
    for time_s in (1.5, 1.2, 1.4):
        latency.sample(time_s, 1.0)
    assert latency.bound_s(2.0) == 0.1
    latency.sample(0.002, 30.0)
    assert latency.bound_s(30.0) < 0.01  # type: ignore[operator]


def test_link_that_was_not_used_since_the_hosts_were_busy_learns_from_the_others() -> None:
    usual = Excess()
    idle, used = (settled_latency(usual, 0.04, 0.4, 0.5, 0.6, 0.6) for _ in range(2))
    assert idle.bound_s(10.0) > 0.4  # type: ignore[operator]
    for step in range(60):
        used.sample(0.005, 11.0 + step)
    assert idle.bound_s(71.0) < 0.1  # type: ignore[operator]
    slow = settled_latency(usual, 0.1)
    for step in range(30):
        slow.sample(0.1 + 0.4 * (step % 2), 71.0)
        used.sample(0.005, 71.0)
    assert slow.bound_s(71.0) > 0.5, "but one that was used knows its own peer"  # type: ignore[operator]


def test_no_datagram_of_a_link_is_lost_among_its_classes() -> None:
    """Random classes, losses and late answers: in the end all was acknowledged or given up."""
    for seed in range(20):
        rng = random.Random(seed)
        pair = Pair(GossipConfig(egress_bytes_per_s=100_000))
        kept: set[bytes] = set()
        arrived: set[bytes] = set()
        late: list[int] = []
        for step in range(300):
            if step < 100:
                raw = rng.randbytes(rng.randrange(50, 900))
                data = encode_message(Payload(raw, b"", 0))
                if pair.links.offer(pair.link, raw, data, rng.randrange(4)):
                    kept.add(raw)
            for _, counter, messages in pair.run(0.02):
                if rng.random() < 0.7:
                    arrived.update(one.raw for one in messages if isinstance(one, Payload))
                    late.append(counter)
            rng.shuffle(late)
            answered, late = late[: rng.randrange(4)], late[4:]
            pair.ack(*answered, pause_ms=rng.choice((0, 0, 0, 40)))
        pair.run(10)
        missing = len(kept - arrived)
        assert missing <= pair.counters.get("given_up", 0)
        assert not pair.link.flights
        assert not any(pair.link.queues)


def test_watch_is_not_needed_to_see_what_is_sent() -> None:
    world = World(10)
    sizes: list[int] = []

    def watch(source: Host, output: Transmit) -> None:
        sizes.append(len(output.data))

    world.tap = watch
    hosts = world.fleet(3)
    world.run(5)
    assert sum(sizes) == total(hosts, "out_bytes")
    assert isinstance(hosts[0].running._links, Links)
