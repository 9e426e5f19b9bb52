"""The tree, what is announced lazily, who is a neighbour, and the zone.

Fleets of 100 with small limits stand for larger ones; their cryptography is simnet's stand-in.
"""

from collections import Counter

import pytest

from crdt import HybridClock, Store
from gossip.broadcast import PROMPT, STATE, URGENT, VOLATILE
from gossip.codec import encode_message
from gossip.config import GossipConfig
from gossip.events import Persist, Transmit
from gossip.messages import Have
from simnet.world import Host, World

_SMALL = {"direct_members": 16, "leaf_members": 8}


def large(seed: int, count: int = 100, run_s: float = 7.0, **config: float) -> World:
    """Return a fleet that is large for its limits and has its links."""
    world = World(seed, GossipConfig(**{**_SMALL, **config}), standin=True)  # type: ignore[arg-type]
    world.warm_fleet(count, links=False)
    world.run(run_s)
    return world


def knowing(world: World, source: Host, key: str) -> int:
    hosts = [host for host in world.hosts.values() if host.node]
    return sum(host.store.owner(source.node_id, key) is not None for host in hosts)


def total(world: World, counter: str) -> int:
    return sum(host.running.counters.get(counter, 0) for host in world.hosts.values() if host.node)


def test_update_reaches_a_large_fleet_by_the_tree_in_few_hops_and_copies() -> None:
    world = large(1)
    source = world.hosts["n3"]
    source.set_owner("key", "x" * 96)
    world.run(0.001 + 3 * 0.0015 + 0.004)  # persisted; then at most three hops of 1 to 1.5 ms
    assert knowing(world, source, "key") == 100
    world.run(1)
    assert total(world, "batches_new") == 99
    assert total(world, "batches_duplicate") <= 2
    assert 100 <= total(world, "haves") <= 200, "two each, but none to who is known to have it"
    assert total(world, "wants") == 0


def test_near_members_of_a_range_take_turns_at_its_head() -> None:
    world = large(1)
    spread = world.hosts["n3"].running._spread
    members = [one for one in spread._members.live() if spread._links.get(one.node_id)][:8]
    links = [spread._links.get(one.node_id) for one in members]
    for index, link in enumerate(links):
        assert link is not None
        link.latency.least_s = 0.01 if index == 0 else 0.0015 + index * 1e-5
    heads = Counter(spread._head(members).node_id for _ in range(2000))
    assert all(heads[one.node_id] > 150 for one in members[1:])
    assert 0 < heads[members[0].node_id] < 100, "one that is far, seldom"


def test_nobody_sends_to_all_in_a_large_fleet() -> None:
    world = large(2)
    source = world.hosts["n3"]
    sent: dict[str, int] = {}

    def watch(host: Host, output: Transmit) -> None:
        sent[host.name] = sent.get(host.name, 0) + (len(output.data) > 600)

    source.store.set_owner("key", source.rng.randbytes(600))
    world.tap = watch
    source.commit()
    world.run(0.5)
    assert knowing(world, source, "key") == 100
    assert max(sent.values()) <= 15 + 16


def test_links_are_few_in_a_large_fleet_and_go_where_the_tree_needs_them() -> None:
    world = large(3, count=150)
    counts = []
    for host in world.hosts.values():
        links = host.running._links
        counts.append(len(links))
        node_ids = [other.node_id for other in world.hosts.values() if other is not host]
        for first in range(16):
            inside = [one for one in node_ids if one[0] >> 4 == first]
            linked = [one for one in inside if links.get(one) is not None]
            assert len(linked) >= min(2, len(inside))
    # the zone, two in each range elsewhere, as many who chose this node, and who was probed
    assert sum(counts) / 150 < 18 + 2 * 30 + 2 * 7


def test_who_joins_a_large_fleet_links_as_few_as_others_and_writes_along_the_tree() -> None:
    world = large(4)
    hosts = list(world.hosts.values())
    usual = max(len(host.running._links) for host in hosts)
    quiet_s, before = 3.0, total(world, "out_datagrams")
    world.run(quiet_s)
    quiet = total(world, "out_datagrams") - before
    before = total(world, "out_datagrams")
    newcomer = world.add("newcomer")
    newcomer.seeds = [host.address for host in hosts[:3]]
    newcomer.start()
    newcomer.set_owner("key", 1)
    world.run(quiet_s)
    assert world.all_live()
    assert knowing(world, newcomer, "key") == 101
    assert len(newcomer.running._links) <= usual
    assert total(world, "wants") <= 3
    # claim and record: to all, acknowledged, two announcements each; a handshake and greetings
    # take 7 on each of its links
    joined = total(world, "out_datagrams") - before - quiet
    assert joined < 6 * 100 + 10 * len(newcomer.running._links) + 200
    assert total(world, "roster_repairs") <= 2, "those who were there do not all begin one"


def test_one_that_is_dead_is_called_by_a_few_of_many() -> None:
    world = large(5)
    dead = world.hosts["n7"]
    dead.crash()
    world.run(15)
    calls = 0

    def watch(host: Host, output: Transmit) -> None:
        nonlocal calls
        calls += output.addr == dead.address

    world.tap = watch
    world.run(30)
    # about nine begin in each of six intervals, and try six times
    assert 50 < calls < 2 * 9 * 6 * 6


def test_one_that_is_dead_and_that_all_hold_for_alive_is_found_out_soon() -> None:
    """Found by the swarm, seed 2: all who had buried it had restarted; it took most of a minute."""
    world = World(6, GossipConfig(direct_members=16, leaf_members=8), standin=True)
    hosts = world.warm_fleet(100, links=False)
    hosts[7].crash()
    world.run_until(world.all_live, 15)


def test_silent_heads_cost_hardly_any_repair() -> None:
    missed = repairs = 0
    for seed in range(1, 7):
        world = large(seed)
        source = world.hosts["n3"]
        silent = [host for host in world.hosts.values() if host is not source][::5]
        world.network.silence([host.name for host in silent], key="silent")
        source.set_owner("key", 1)
        world.run(0.9)  # less than two probes: announcements alone must do it
        assert total(world, "wants") > 0
        missed += 100 - len(silent) - knowing(world, source, "key")
        repairs += total(world, "repairs")
    assert missed <= 6 * 80 // 25
    assert repairs <= 2


def test_news_for_who_has_no_link_yet_wait_for_it() -> None:
    world = World(5, standin=True)
    hosts = world.warm_fleet(5, links=False)
    hosts[0].set_owner("key", 1)
    # persisted, three hops for a handshake, one for the news: no time for a repair
    world.run(0.001 + 4 * 0.0015 + 0.0005)
    assert knowing(world, hosts[0], "key") == 5


def test_what_waits_for_links_is_bounded() -> None:
    world = World(6, standin=True)
    hosts = world.warm_fleet(60, links=False)
    world.network.silence([host.name for host in hosts[1:]], key="silent")
    for index in range(40):
        hosts[0].set_owner(f"key/{index}", index)
        world.run(0.01)
    waiting = hosts[0].running._spread._waiting
    assert len(waiting) <= 64
    assert max(len(items) for _, items in waiting.values()) <= 16


def test_made_up_announcements_are_bounded_and_forgotten() -> None:
    world = World(7, standin=True)
    one, two = world.fleet(2)
    world.run(2)
    link = two.running._links.get(one.node_id)
    assert link is not None
    for index in range(1000):
        have = Have(tuple((two.rng.randbytes(16), 1, number + 1) for number in range(16)))
        two.running._links.offer(link, b"%d" % index, encode_message(have), VOLATILE)
    two.running.handle_timer(two.now())
    two.drain()
    before = two.running.counters["in_bytes"]
    world.run(0.3)
    assert 0 < len(one.running._spread.announcements._missing) <= 128
    world.run(10)
    assert not one.running._spread.announcements._missing
    assert two.running.counters["in_bytes"] - before < 400_000
    one.set_owner("key", 1)
    world.run(0.1)
    assert world.converged()


def test_most_urgent_entry_gives_a_batch_its_priority() -> None:
    world = World(8, standin=True)
    host = world.fleet(1)[0]
    store = Store(
        host.node_id,
        epoch=1,
        sign=host.identity.sign,
        verify=host.identity.verify,
        public_key=host.identity.public_key,
        clock=HybridClock(0),
    )

    def rank(*keys: str) -> int:
        for key in keys:
            store.set_fleet(key, key, host.now())
        (batch,) = store.commit(host.now())
        store.persisted(batch, host.now())
        return host.running._spread._rank(batch)

    assert rank("agent/door") == STATE
    assert rank("host/door", "agent/door") == PROMPT
    assert rank("release/people") == PROMPT
    assert rank("agent/yard", "host/yard", "revoked/17") == URGENT


def test_priorities_are_checked() -> None:
    with pytest.raises(ValueError, match="priorities"):
        GossipConfig(priorities=(("key/", 3),))
    with pytest.raises(ValueError, match="priorities"):
        GossipConfig(priorities=(("", 0),))


def test_volatile_values_stay_in_the_zone_whatever_the_size_of_the_fleet() -> None:
    sent = {}
    for count in (40, 120):
        world = large(9, count)
        hosts = list(world.hosts.values())
        source = hosts[3]
        before = total(world, "out_bytes")
        world.run(4)
        idle = total(world, "out_bytes") - before
        before = total(world, "out_bytes")
        for index in range(8):
            for host in hosts:
                host.running.set_volatile("load", index, host.now())
                host.drain()
            world.run(0.5)
        sent[count] = (total(world, "out_bytes") - before - idle) / count
        zone = [host for host in hosts if source.running._spread.neighbours.near(host.node_id)]
        assert 5 <= len(zone) <= 17
        for host in hosts:
            near = host.running._spread.neighbours.near(source.node_id)
            assert near == (host in zone), "symmetric"
            value = host.running.volatile(source.node_id, "load")
            assert value == (7 if near else None)
            assert len(host.running._volatile._others) <= 2 * 17 + 16
    assert sent[120] < 1.5 * sent[40]


def test_volatile_load_does_not_fill_the_log() -> None:
    world = World(10, standin=True)
    one, two = world.fleet(2)
    world.run(2)
    one.set_owner("node", "one")
    world.run(1)
    before = one.store.fingerprint(), one.written, one.store.generation
    assert one.node is not None
    for index in range(1_000_000):
        one.running.set_volatile("load", index, one.now())
        if index % 100_000 == 0:
            assert not isinstance(one.running.poll(), Persist)
            one.drain()
            world.run(1)
    one.drain()
    world.run(2)
    assert (one.store.fingerprint(), one.written, one.store.generation) == before
    assert two.store.fingerprint() == before[0]
    assert two.running.volatile(one.node_id, "load") == 999_999
