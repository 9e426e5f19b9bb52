"""State: sent straight, acknowledged, repaired."""

import pytest

from gossip.config import GossipConfig
from gossip.events import StateChanged, Transmit
from gossip.sealing import MAX_DATAGRAM_BYTES
from simnet.world import Host, World


def knows(host: Host, key: str, value: object, of: Host) -> bool:
    return host.store.owner(of.node_id, key) == value


def fill(host: Host, count: int, size: int = 600) -> None:
    """Write so much that nothing shares a batch, and that nothing can be compressed."""
    for index in range(count):
        host.store.set_owner(f"record/{index}", host.rng.randbytes(size))
        host.running.commit(host.now())
    host.drain()


def test_update_reaches_all_in_one_hop() -> None:
    world = World(1)
    hosts = world.fleet(5)
    world.run_until(world.all_live, 5)
    world.run(1)
    sent = [host.running.counters["out_datagrams"] for host in hosts]
    hosts[2].set_owner("key", {"a": [1, 2.5, b"x", None]})
    world.run(0.005)  # persisted after 1 ms, a hop takes 1 to 1.5 ms
    assert all(knows(host, "key", {"a": [1, 2.5, b"x", None]}, hosts[2]) for host in hosts)
    world.run(0.1)
    changed = [event for _, event in hosts[0].events if isinstance(event, StateChanged)]
    assert [change.key for event in changed for change in event.changes] == ["key"]
    more = sum(host.running.counters["out_datagrams"] for host in hosts) - sum(sent)
    assert more <= 8 + 4, "one datagram and one acknowledgement each, and a probe"


def test_nothing_is_visible_or_sent_before_it_is_durable() -> None:
    world = World(2)
    one, two = world.fleet(2)
    world.run(2)
    sent = one.running.counters["out_datagrams"]
    one.store.set_owner("key", 1)
    one.running.commit(one.now())
    output = one.running.poll()
    assert output is not None
    assert not isinstance(output, Transmit)
    assert one.running.poll() is None
    assert one.running.counters["out_datagrams"] == sent
    assert one.store.owner(one.node_id, "key") is None
    assert two.store.owner(one.node_id, "key") is None


def test_crash_before_durable_leaves_no_trace_and_after_it_restores() -> None:
    world = World(3)
    one, two = world.fleet(2)
    world.run(2)
    one.set_owner("kept", 1)
    world.run(1)
    one.set_owner("lost", 2)
    one.crash()
    world.run(1)
    one.start()
    world.run_until(lambda: world.all_live() and world.converged(), 20)
    assert knows(two, "kept", 1, one)
    assert two.store.owner(one.node_id, "lost") is None
    one.set_owner("after", 3)
    world.run(1)
    assert knows(two, "after", 3, one)
    assert world.converged()


def test_burst_shares_datagrams() -> None:
    world = World(4)
    one, two = world.fleet(2)
    world.run(2)
    before = one.running.counters["out_datagrams"]
    for index in range(40):
        one.store.set_owner(f"key/{index}", index)
        one.running.commit(one.now())
    one.drain()
    world.run(0.5)
    assert all(knows(two, f"key/{index}", index, one) for index in range(40))
    assert one.running.counters["out_datagrams"] - before < 20


@pytest.mark.parametrize("loss", [0.2, 0.4])
def test_loss_delays_but_loses_nothing(loss: float) -> None:
    world = World(5)
    hosts = world.fleet(6)
    world.run_until(world.all_live, 10)
    world.network.change(loss=loss)
    for index in range(30):
        hosts[index % 6].set_owner(f"key/{index}", index)
        world.run(0.1)
    world.run_until(world.converged, 30)
    for index in range(30):
        assert all(knows(host, f"key/{index}", index, hosts[index % 6]) for host in hosts)


def test_duplicated_datagrams_are_replays() -> None:
    world = World(6)
    world.network.change(duplicate=0.5)
    one, two, three = world.fleet(3)
    world.run(5)
    one.set_owner("key", 1)
    world.run(5)
    assert world.converged()
    assert knows(three, "key", 1, one)
    assert two.running.counters["dropped_replay"] > 0


def test_equal_replicas_say_nothing_more() -> None:
    world = World(7)
    hosts = world.fleet(4)
    fill(hosts[0], 5)
    world.run(10)
    before = [host.running.counters.get("repairs", 0) for host in hosts]
    sent = sum(host.running.counters["out_datagrams"] for host in hosts)
    world.run(60)
    assert [host.running.counters.get("repairs", 0) for host in hosts] == before
    assert sum(host.running.counters["out_datagrams"] for host in hosts) - sent <= 60 * 4 * 2 + 8


def test_healed_partition_converges_to_equal_fingerprints() -> None:
    world = World(8)
    hosts = world.fleet(6)
    world.run_until(world.all_live, 10)
    world.network.partition(["n0", "n1", "n2"], ["n3", "n4", "n5"])
    world.run(20)
    for index, host in enumerate(hosts):
        host.store.set_fleet("release", index, host.now())
        host.store.add("holders", index)
        host.commit()
        world.run(0.5)
    assert not world.converged()
    world.network.heal()
    world.run_until(lambda: world.converged() and world.all_live(), 60)
    assert {host.store.fleet("release", host.now()) for host in hosts} == {5}
    assert all(host.store.elements("holders") == list(range(6)) for host in hosts)


def test_newcomer_gets_hundreds_of_batches_and_the_keys_of_the_dead() -> None:
    world = World(9)
    hosts = world.fleet(8)
    world.run_until(world.all_live, 10)
    for host in hosts:
        fill(host, 38)
        world.run(0.5)
    world.run_until(world.converged, 20)
    hosts[4].crash()
    world.run(20)
    newcomer = world.add("newcomer")
    newcomer.seeds.append(hosts[0].address)
    newcomer.start()
    world.run_until(world.converged, 20)
    record = hosts[4].store.owner(hosts[4].node_id, "record/37")
    assert record is not None
    assert knows(newcomer, "record/37", record, hosts[4])
    assert len(newcomer.store.knowledge()) == 8


def test_newcomer_with_a_full_queue_in_its_way_still_converges() -> None:
    world = World(10, GossipConfig(queue_items=16, window_datagrams=4))
    one = world.fleet(1)[0]
    fill(one, 38)
    world.run(1)
    newcomer = world.add("newcomer")
    newcomer.seeds.append(one.address)
    newcomer.start()
    world.run_until(world.converged, 30)
    assert one.running.counters["queue_full"] > 0


def test_many_origins_are_compared_in_pages() -> None:
    world = World(11)
    hosts = world.fleet(60)
    world.run_until(world.all_live, 20)
    for host in hosts:
        host.set_owner("node", host.name)
    world.run(1)
    world.run_until(world.converged, 10)
    newcomer = world.add("newcomer")
    newcomer.seeds.append(hosts[7].address)
    newcomer.start()
    newcomer.set_owner("node", "newcomer")
    world.run_until(lambda: len(newcomer.store.owners("node")) == 61 and world.converged(), 20)
    assert world.run_until(world.all_live, 20) < 20


def test_no_datagram_is_ever_larger_than_1200_bytes() -> None:
    world = World(12)
    largest = 0

    def watch(source: Host, output: Transmit) -> None:
        nonlocal largest
        largest = max(largest, len(output.data))

    world.tap = watch
    hosts = world.fleet(8)
    world.network.change(loss=0.1)
    for host in hosts:
        fill(host, 10, size=690)
        host.running.set_volatile("load", host.rng.randbytes(380), host.now())
        world.run(1)
    world.run_until(world.converged, 30)
    assert 1000 < largest <= MAX_DATAGRAM_BYTES


def test_given_up_batches_are_repaired() -> None:
    world = World(13, GossipConfig(resend_limit=1))
    one, two = world.fleet(2)
    world.run(2)
    world.network.cut(["n0"], ["n1"], key="cut")
    one.set_owner("key", 1)
    world.run(0.4)
    world.network.heal()
    assert one.running.counters["given_up"] > 0
    assert not knows(two, "key", 1, one)
    world.run_until(world.converged, 10)
    assert knows(two, "key", 1, one)


def test_above_the_fan_out_repair_does_the_rest() -> None:
    world = World(14, GossipConfig(direct_members=2, leaf_members=1))
    hosts = world.fleet(8)
    world.run_until(world.all_live, 10)
    hosts[0].set_owner("key", 1)
    world.run(0.01)
    world.run_until(world.converged, 30)
    assert all(knows(host, "key", 1, hosts[0]) for host in hosts)


def test_volatile_values_travel_outside_the_state() -> None:
    world = World(15)
    one, two, three = world.fleet(3)
    world.run(2)
    before = one.store.fingerprint()
    for index in range(20):
        one.running.set_volatile("load", {"backlog_ms": index}, one.now())
        one.drain()
        world.run(0.05)
    world.run(1)
    for host in (one, two, three):
        assert host.running.volatile(one.node_id, "load") == {"backlog_ms": 19}
    assert one.store.fingerprint() == before
    assert two.running.volatile(one.node_id, "other") is None
    assert two.running.volatile(bytes(16), "load") is None


def test_lost_volatile_value_is_asked_for() -> None:
    world = World(16)
    one, two = world.fleet(2)
    world.run(2)
    world.network.cut(["n0"], ["n1"], key="cut")
    one.running.set_volatile("load", 7, one.now())
    one.drain()
    world.run(0.1)
    world.network.heal()
    assert two.running.volatile(one.node_id, "load") is None
    world.run(3)
    assert two.running.volatile(one.node_id, "load") == 7


def test_volatile_values_of_a_new_boot_replace_and_of_the_dead_vanish() -> None:
    world = World(17)
    one, two = world.fleet(2)
    world.run(2)
    for index in range(5):
        one.running.set_volatile("load", index, one.now())
    one.drain()
    world.run(1)
    one.crash()
    one.start()
    world.run(2)
    one.running.set_volatile("load", 100, one.now())
    one.drain()
    world.run(3)
    assert two.running.volatile(one.node_id, "load") == 100
    one.crash()
    world.run(15)
    assert two.running.volatile(one.node_id, "load") is None


def test_volatile_state_is_bounded() -> None:
    world = World(18)
    one = world.fleet(1)[0]
    one.running.set_volatile("kept", 1, one.now())
    one.running.set_volatile("load", "x" * 400, one.now())
    assert one.running.counters["volatile_oversize"] == 1
    assert one.running.volatile(one.node_id, "kept") == 1
    assert one.running.volatile(one.node_id, "load") is None
