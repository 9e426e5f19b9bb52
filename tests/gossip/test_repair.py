"""Repair: what it costs, that no size overflows a datagram, and what it must not bring back.

Where thousands of origins are needed their cryptography is simnet's stand-in.
"""

from collections.abc import Callable

import pytest

from crdt import HybridClock, MergeStatus, Store
from crdt.clock import Instant
from gossip.broadcast import REPAIR
from gossip.codec import encode_message
from gossip.events import Transmit
from gossip.limits import Rates
from gossip.messages import Tree, make_claim
from gossip.sealing import MAX_DATAGRAM_BYTES
from simnet.standin import StandinIdentity
from simnet.world import Host, World

_DELAY_S = 0.05
_SEND_S = 0.012  # batching and the time until a timer


class Author:
    """An origin that is no host: it only signs."""

    def __init__(self, number: int) -> None:
        self.identity = StandinIdentity(number.to_bytes(32, "big"))
        self.id = self.identity.node_id
        self.number = number
        self.store = self.fresh()

    def fresh(self) -> Store:
        """Return a store of the same origin and epoch that has written nothing."""
        return Store(
            self.id,
            epoch=1,
            sign=self.identity.sign,
            verify=self.identity.verify,
            public_key=self.identity.public_key,
            clock=HybridClock(0),
        )

    def write(self, value: object, now: Instant, store: Store | None = None) -> bytes:
        store = store or self.store
        store.set_owner("node", value)
        (batch,) = store.commit(now)
        store.persisted(batch, now)
        return batch.raw


def give(host: Host, author: Author, raw: bytes) -> None:
    merge = host.store.merge(raw, host.now(), author.identity.public_key)
    assert merge.status is MergeStatus.NEW


class Measured:
    """Two nodes that meet for the first time, and what passes between them until they agree."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed, standin=True)
        self.world.network.change(delay_s=_DELAY_S, jitter_s=0.0)
        self.one, self.two = self.world.warm_fleet(2, links=False)
        self.bytes = self.largest = 0
        self.world.tap = self._watch

    def _watch(self, source: Host, output: Transmit) -> None:
        self.bytes += len(output.data)
        self.largest = max(self.largest, len(output.data))

    def until(self, equal: Callable[[], bool], repairs: str) -> int:
        """Return how many messages one after the other it took from the first of the repair."""

        def begun() -> bool:
            return any(host.running.counters.get(repairs) for host in (self.one, self.two))

        while not begun():
            self.world.run(0.001)
            assert self.world.now_s < 1010
        begun_s, self.bytes = self.world.now_s, 0
        while not equal():
            self.world.run(0.005)
            assert self.world.now_s < begun_s + 5
        return round((self.world.now_s - begun_s) / (_DELAY_S + _SEND_S / 2))


@pytest.mark.parametrize(("origins", "stale"), [(1000, 1), (1000, 5), (1000, 50), (10_000, 50)])
def test_repair_costs_few_round_trips_and_bytes_for_what_differs(origins: int, stale: int) -> None:
    measured = Measured(origins + stale)
    one, two, now = measured.one, measured.two, measured.one.now()
    for number in range(origins):
        author = Author(number)
        raw = author.write(0, now)
        give(one, author, raw)
        give(two, author, raw)
        if number < stale:
            give((one, two)[number % 2], author, author.write(1, now))
    assert one.store.fingerprint() != two.store.fingerprint()
    hops = measured.until(measured.world.converged, "repairs")
    print(f"N={origins} d={stale}: hops {hops}, bytes {measured.bytes}")
    assert hops <= 8, "four round trips"
    levels = 3 if origins > 1000 else 2
    assert measured.bytes <= 1200 + stale * (600 + 200 * levels)
    assert measured.largest <= MAX_DATAGRAM_BYTES


def test_digest_overflow_at_500_nodes() -> None:
    measured = Measured(1)
    one, two, now = measured.one, measured.two, measured.one.now()
    for host in (one, two):  # as of members; of strangers a peer may tell only so much
        host.running._links._strangers = Rates(1000, 1000)
    for number in range(1000):
        author = Author(number)
        give((one, two)[number % 3 == 0], author, author.write(number, now))
    measured.world.run_until(measured.world.converged, 10)
    assert len(one.store.knowledge()) == 1000
    assert measured.largest <= MAX_DATAGRAM_BYTES
    # the batches are most of it: nobody names all origins again and again
    assert measured.bytes < 1000 * 500


def test_rosters_are_compared_by_the_tree() -> None:
    measured = Measured(2)
    one, two, now = measured.one, measured.two, measured.one.now()
    for number in range(1000):
        identity = StandinIdentity(number.to_bytes(32, "big"))
        address = (f"10.9.{number // 250}.{number % 250 + 1}", 7946)
        claim = make_claim(identity, 1, address)
        newer = make_claim(identity, 2, address)
        one.running._members.accept(newer if number < 5 else claim, now, met=True)
        if not 5 <= number < 10:
            two.running._members.accept(claim, now, met=True)
    digests = [host.running._members.digest for host in (one, two)]
    one.running.join(two.address, now)
    one.drain()
    hops = measured.until(lambda: digests[0]() == digests[1](), "roster_repairs")
    print(f"rosters: hops {hops}, bytes {measured.bytes}")
    assert hops <= 8
    assert measured.bytes <= 10 * 1500 + 40 * 300, "claims, and handshakes with the new"
    assert measured.largest <= MAX_DATAGRAM_BYTES


def test_roster_repair_brings_no_claims_of_the_dead() -> None:
    measured = Measured(3)
    one, two, now = measured.one, measured.two, measured.one.now()
    claims = [
        make_claim(StandinIdentity(bytes([number]) * 32), 1, (f"10.9.0.{number}", 7946))
        for number in (1, 2, 3)
    ]
    for claim in claims:
        one.running._members.accept(claim, now, met=True)
    dead, gone, live = (one.running._members.get(claim.node_id) for claim in claims)
    assert dead is not None
    assert gone is not None
    assert live is not None
    one.running._members.suspect(dead, now)
    one.running._members.bury(dead, now)
    left = make_claim(StandinIdentity(bytes([2]) * 32), 1, gone.address, left=True)
    one.running._members.accept(left, now, met=True)
    measured.world.run_until(lambda: two.running._members.get(live.node_id) is not None, 3)
    measured.world.run(3)
    assert two.running._members.get(dead.node_id) is None
    assert two.running._members.get(gone.node_id) is None


def test_fork_is_proved_to_all_though_some_dropped_the_number() -> None:
    world = World(4, standin=True)
    hosts = world.fleet(5)
    world.run_until(world.all_live, 10)
    world.run(2)
    author, now = Author(77), hosts[0].now()
    one_half = author.write("one", now)
    other_half = author.write("other", now, author.fresh())
    later = author.write("later", now)
    for host in hosts[:3]:
        give(host, author, one_half)
    for host in hosts[1:3]:
        give(host, author, later)
    # from here on no other replica will see both halves: what was dropped is not sent any more
    assert hosts[0].store.merge(other_half, now).status is MergeStatus.FORKED
    world.run_until(lambda: all(host.store.evidence(author.id) for host in hosts), 30)
    assert world.converged()
    repairs = [host.running.counters.get("repairs") for host in hosts]
    world.run(20)
    assert [host.running.counters.get("repairs") for host in hosts] == repairs


def test_retired_origin_is_not_asked_for_again() -> None:
    world = World(5, standin=True)
    hosts = world.fleet(3)
    world.run_until(world.all_live, 10)
    author = Author(78)
    raw = author.write("once", hosts[0].now())
    for host in hosts:
        give(host, author, raw)
    world.network.partition(["n0", "n1"], ["n2"])
    hosts[0].store.retire(author.id, hosts[0].now())
    hosts[0].commit()
    world.run(20)
    assert hosts[1].store.retired(author.id)
    assert not hosts[2].store.retired(author.id)
    world.network.heal()
    world.run_until(lambda: world.converged() and world.all_live(), 60)
    assert all(author.id not in host.store.knowledge() for host in hosts)
    before = [host.running.counters.get("repairs") for host in hosts]
    world.run(20)
    assert [host.running.counters.get("repairs") for host in hosts] == before


def test_hostile_trees_and_pages_get_bounded_answers() -> None:
    measured = Measured(6)
    one, two, now = measured.one, measured.two, measured.one.now()
    for number in range(600):
        author = Author(number)
        raw = author.write(0, now)
        give(one, author, raw)
        give(two, author, raw)
    measured.world.run(3)
    link = two.running._links.get(one.node_id)
    assert link is not None
    measured.bytes = 0
    for index in range(500):
        sums = tuple(two.rng.randbytes(8) for _ in range(16))
        message = Tree(False, (1, 0x10 + index % 16)[index % 2], sums)
        two.running._links.offer(link, b"%d" % index, encode_message(message), REPAIR)
        for scope in (0, 0x1ABC):
            data = encode_message(Tree(True, scope, sums))
            two.running._links.offer(link, b"%d %d" % (index, scope), data, REPAIR)
    two.running.handle_timer(two.now())
    two.drain()
    measured.world.run(5)
    assert one.running.counters["repairs_declined"] > 0
    assert one.running.counters["dropped_decode"] > 0
    assert one.running.counters["out_datagrams"] < 1500
    assert measured.world.converged()
