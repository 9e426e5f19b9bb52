"""Fleets in virtual time that forget who is gone for good, and nobody else."""

import pytest

from crdt.entries import register_identity
from crdt.retirement import retired_key
from crdt.store import SWEEP_S
from crdt.writer import CAPACITY
from gossip.config import GossipConfig
from gossip.forgetting import Forgetting
from simnet.world import Host, World

RETIRE_S = 60.0


def fleet(count: int, seed: int = 1) -> tuple[World, list[Host]]:
    """A fleet in which everybody has said something of every kind; ids ascend."""
    world = World(seed, GossipConfig(retire_after_s=RETIRE_S), standin=True)
    hosts = world.fleet(count)
    hosts.sort(key=lambda host: host.node_id)
    for host in hosts:
        host.seeds = [one.address for one in hosts if one is not host]
        for addr in host.seeds:
            host.running.join(addr, host.now())
    world.run_until(world.all_live, 20)
    for host in hosts:
        host.set_owner("node", host.name)
        host.store.set_fleet(f"of {host.name}", 1, host.now())
        host.store.add("names", host.name)
        host.commit()
    world.run(3)
    world.run_until(world.converged, 20)
    return world, hosts


def states(host: Host, of: Host) -> str:
    member = host.running._members.get(of.node_id)
    return member.state if member is not None else "unknown"


def forgotten(hosts: list[Host], gone: Host) -> bool:
    return all(
        gone.node_id not in host.store.origins and states(host, gone) == "unknown" for host in hosts
    )


def tombstones(host: Host) -> int:
    return sum(getattr(entry, "value", 0) is None for entry in host.store._writer.current.values())


def shared(host: Host) -> tuple[object, object]:
    """What can be read of registers and sets, but for who was retired."""
    items = host.store.fleet_items("", host.now())
    return [one for one in items if one[0].startswith("of ")], host.store.elements("names")


def test_member_gone_for_good_is_forgotten_and_welcome_when_it_returns() -> None:
    world, hosts = fleet(4)
    *others, gone = hosts
    before = shared(others[0])
    gone.crash()
    world.run(20)
    others[0].store.set_fleet("of nobody", 1, others[0].now())
    others[0].commit()
    world.run(5)
    others[0].store.set_fleet("of nobody", None, others[0].now())
    others[0].commit()
    world.run(20)
    assert tombstones(others[0]) == 1, "one who is down might still show the old value"
    assert not forgotten(others, gone)
    world.run_until(lambda: forgotten(others, gone), 120)
    world.run_until(world.converged, 10)
    for host in others:
        assert shared(host) == before, "what it said for all stays"
        assert host.store.owner(gone.node_id, "node") is None
        assert host.store.key_of(gone.node_id) is None
    world.run_until(lambda: not tombstones(others[0]), 3 * SWEEP_S)
    others[1].store.set_fleet(f"of {gone.name}", 2, others[1].now())
    others[1].store.remove("names", gone.name)
    others[1].commit()
    world.run(5)
    now = shared(others[1])
    gone.start()
    world.run_until(lambda: world.all_live() and world.converged(), 60)
    world.run(SWEEP_S)
    gone.set_owner("node", "back")
    gone.store.set_fleet("of the returned", 1, gone.now())
    gone.commit()
    world.run_until(lambda: others[0].store.fleet("of the returned", others[0].now()) == 1, 20)
    world.run_until(world.converged, 20)
    for host in hosts:
        assert host.store.owner(gone.node_id, "node") == "back"
        items, names = shared(host)
        assert isinstance(items, list)
        assert [one for one in items if one[0] != "of the returned"] == now[0]
        assert names == now[1], "nothing is resurrected"
    world.run(3 * RETIRE_S)
    assert gone.node_id in hosts[0].store.origins


def test_returning_member_says_its_records_again_though_nobody_writes() -> None:
    world, hosts = fleet(4)
    *others, gone = hosts
    gone.crash()
    world.run_until(lambda: forgotten(others, gone), 200)
    gone.start()
    world.run_until(lambda: others[0].store.owner(gone.node_id, "node") == gone.name, 30)


def test_member_that_ran_on_alone_gives_way_to_the_greater_half() -> None:
    world, hosts = fleet(5)
    *others, alone = hosts
    world.network.partition([alone.name], [host.name for host in others])
    world.run(20)
    alone.set_owner("node", "alone")
    world.run_until(lambda: forgotten(others, alone), 200)
    world.run(3 * RETIRE_S)
    assert len(alone.store.origins) == 5, "a node alone retires nobody"
    others[0].store.set_fleet("of the others", 1, others[0].now())
    others[0].commit()
    world.network.heal()
    world.run_until(lambda: world.all_live() and world.converged(), 60)
    world.run_until(
        lambda: all(host.store.owner(alone.node_id, "node") == "alone" for host in hosts), 60
    )
    assert all(host.store.fleet("of the others", host.now()) == 1 for host in hosts)


def test_who_comes_back_to_half_of_the_others_does_not_give_up_the_rest() -> None:
    world, hosts = fleet(5)
    *others, alone = hosts
    world.network.partition([alone.name], [host.name for host in others])
    world.run(3 * RETIRE_S)
    world.network.heal()
    late = others[:2]
    world.network.partition([host.name for host in late], [host.name for host in hosts[2:]])
    world.run(RETIRE_S / 2)
    assert len(alone.running.alive()) == 3, "more than are away"
    assert {host.node_id for host in late} <= alone.store.origins


def test_of_two_equal_halves_only_one_forgets_the_other() -> None:
    world, hosts = fleet(2)
    low, high = hosts
    world.network.partition([low.name], [high.name])
    world.run(6 * RETIRE_S)
    assert forgotten([low], high)
    assert low.node_id in high.store.origins
    world.network.heal()
    world.run_until(lambda: world.all_live() and world.converged(), 60)
    world.run_until(lambda: low.store.owner(high.node_id, "node") == high.name, 60)


def test_two_parts_that_gave_each_other_up_keep_what_was_said_before() -> None:
    """New members can make the smaller part the larger one; then both are in charge."""
    world, hosts = fleet(5)
    names = [host.name for host in hosts]
    fresh = [world.add(f"new{count}") for count in range(2)]
    world.network.partition([*names[:2], *(host.name for host in fresh)], names[2:])
    world.run(20)
    for host in fresh:
        host.seeds = [hosts[0].address]
        host.start()
        host.set_owner("node", host.name)
    world.run_until(lambda: all(forgotten(hosts[:2], gone) for gone in hosts[2:]), 300)
    world.run_until(lambda: all(forgotten(hosts[2:], gone) for gone in hosts[:2]), 300)
    world.network.heal()
    world.run_until(lambda: world.all_live() and world.converged(), 120)
    world.run(SWEEP_S)
    world.run_until(world.converged, 20)
    for host in (*hosts, *fresh):
        items, elements = shared(host)
        assert items == [(f"of {name}", 1) for name in sorted(names)]
        assert elements == sorted(names)
        assert all(host.store.owner(one.node_id, "node") == one.name for one in hosts)


def test_short_partition_retires_nobody() -> None:
    world, hosts = fleet(5)
    names = [host.name for host in hosts]
    before = shared(hosts[0])
    for _ in range(3):  # it does not add up
        world.network.partition(names[:2], names[2:])
        world.run(RETIRE_S - 5)
        world.network.heal()
        world.run_until(lambda: world.all_live() and world.converged(), 60)
        world.run(RETIRE_S / 4)
    for host in hosts:
        assert host.store.fleet_items(retired_key(b""), host.now()) == []
        assert len(host.store.origins) == 5
        assert shared(host) == before


def test_author_that_no_one_left_has_met_is_forgotten_as_well() -> None:
    world, hosts = fleet(4)
    *others, gone = hosts
    gone.crash()
    world.run(20)
    for host in others:  # one after another, so that its log is never lost
        host.crash()
        host.start()
        world.run_until(lambda: world.all_live() and world.converged(), 60)
    assert all(states(host, gone) == "unknown" for host in others)
    assert all(gone.node_id in host.store.origins for host in others)
    world.run_until(lambda: forgotten(others, gone), 200)


def test_member_that_said_goodbye_is_forgotten_too_and_none_is_asked() -> None:
    world, hosts = fleet(3)
    one, *parted = hosts[::-1]  # the highest id alone would not be in charge
    for host in parted:
        host.running.leave(host.now())
        host.drain()
        world.run(2)
        host.crash()
    world.run_until(lambda: forgotten([one], parted[0]) and forgotten([one], parted[1]), 300)
    assert [value for _, value in one.store.fleet_items("of ", one.now())] == [1] * 3


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_all_that_retire_a_member_at_once_agree(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Forgetting, "_turn", lambda *_: 0)
    world, hosts = fleet(4, seed)
    *others, gone = hosts
    before = shared(others[0])
    gone.crash()
    world.run_until(lambda: forgotten(others, gone), 200)
    world.run(10)
    assert world.converged()
    assert all(host.store.complete and shared(host) == before for host in others)


def test_full_log_leaves_retiring_to_others() -> None:
    world, hosts = fleet(4)
    full, *others, gone = hosts
    for host in (full, *others):  # it has the first turn
        host.running._replication._forgetting._turn = lambda *_, own=host: int(own is not full)
    while full.store._load < CAPACITY - 2:
        full.store.set_owner(f"k{full.store._load}", 1)
    full.commit()
    gone.crash()
    world.run_until(lambda: forgotten([full, *others], gone), 300)
    assert full.running.counters["retirements_refused"] > 0
    about = register_identity(retired_key(gone.node_id))
    assert [about in host.store._writer.current for host in (full, *others)].count(True) > 0
    assert about not in full.store._writer.current


def test_tombstone_goes_though_nobody_writes() -> None:
    world, hosts = fleet(3)
    hosts[0].store.set_fleet("of nobody", 1, hosts[0].now())
    hosts[0].commit()
    world.run(2)
    hosts[1].store.set_fleet("of nobody", None, hosts[1].now())
    hosts[1].commit()
    world.run_until(lambda: not any(map(tombstones, hosts)), 6 * SWEEP_S)
    world.run_until(world.converged, 10)
    assert all(host.store.fleet_entry("of nobody", host.now()) is None for host in hosts)
    written = [host.written for host in hosts]
    world.run(4 * SWEEP_S)
    assert [host.written for host in hosts] == written, "and then there is rest"


def test_what_is_said_again_counts_and_a_debt_delays_what_nobody_staged() -> None:
    world, hosts = fleet(2)
    host = hosts[0]
    for count in range(40):
        host.store.set_owner(f"k{count}", 1)
    host.commit()
    world.run(10)
    host.crash()
    host.start()
    world.run(10)
    before = host.written
    host.set_owner("k0", 2)
    world.run(0.1)
    replication = host.running._replication
    carried = host.written - before
    assert carried > 40
    assert replication._law._tokens == pytest.approx(64 - carried, abs=0.1 * 1500 / 6)
    replication._law.charge(1000)
    host.running.commit(host.now())
    assert host.now().mono_s < replication.deadline() < host.now().mono_s + 10
    host.drain()
    world.run(10)
    assert not replication._wanted
