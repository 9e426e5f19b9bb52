"""What a node wrote survives its restarts, whatever became of its disk meanwhile."""

from copy import deepcopy

import pytest

from edge_node.fleet.database import Saved
from simnet.disk import Disk
from simnet.world import Host, World

LIMIT_S = 40


def fleet(seed: int = 1) -> tuple[World, list[Host]]:
    """Three nodes; n1 has written everything there is, and removed an element of n2's."""
    world = World(seed)
    hosts = world.fleet(3)
    world.run_until(world.all_live, 20)
    hosts[2].store.add("zone", "gone")
    hosts[2].store.add("zone", "stays")
    hosts[2].commit()
    world.run(1)
    write(hosts[1], 0)
    hosts[1].store.remove("zone", "gone")
    hosts[1].commit()
    spread(world)
    return world, hosts


def write(host: Host, number: int) -> None:
    for index in range(30):  # more than one batch
        host.store.set_owner(f"agent/{index}", {"number": number})
    host.store.set_fleet("release/person", number, host.now())
    host.store.add("zone", host.name)
    host.commit()


def spread(world: World) -> None:
    world.run(0.5)
    world.run_until(world.converged, 10)


def settled(world: World, hosts: list[Host]) -> bool:
    return world.all_live() and world.converged() and all(host.store.complete for host in hosts)


def check(hosts: list[Host], number: int) -> None:
    for host in hosts:
        records = [value for _, _, value in host.store.owners("agent/")]
        assert records == [{"number": number}] * 30
        assert host.store.fleet("release/person", host.now()) == number
        assert host.store.elements("zone") == ["n1", "stays"]
        assert not host.store.contested
        assert "batches_forked" not in host.running.counters


def restarted(world: World, hosts: list[Host], disk: Disk | None = None) -> None:
    """Restart n1, let it write something new, and wait until all agree."""
    one = hosts[1]
    if one.node is not None:
        one.crash()
    if disk is not None:
        one.disk = deepcopy(disk)
    one.start()
    epoch = one.disk.saved.epoch
    one.set_owner("node", epoch)  # the daemon publishes at once, too
    world.run_until(
        lambda: settled(world, hosts) and hosts[0].store.owner(one.node_id, "node") == epoch,
        LIMIT_S,
    )


@pytest.mark.parametrize("victim", [0, 1])
def test_a_whole_journal(victim: int) -> None:
    world, hosts = fleet()
    hosts[1], hosts[victim] = hosts[victim], hosts[1]
    restarted(world, hosts)
    check(hosts, 0)


def test_a_lost_tail_comes_back_from_peers() -> None:
    world, hosts = fleet()
    image = deepcopy(hosts[1].disk)
    write(hosts[1], 1)
    spread(world)
    restarted(world, hosts, image)
    check(hosts, 1)


@pytest.mark.parametrize("skew_s", [0, -1_000_000_000])
def test_a_lost_journal_comes_back_from_peers(skew_s: int) -> None:
    world, hosts = fleet()
    hosts[1].skew_ms = 1000 * skew_s  # a clock that is behind gives an epoch that is, too
    restarted(world, hosts, Disk(hosts[1].node_id))
    # as soon as each peer has told its time, the fleet's clocks show what its own would hide
    world.run_until(lambda: hosts[1].store.hidden == 0, 3)
    hosts[1].skew_ms = 0
    world.run(1)
    check(hosts, 0)
    for host in hosts:
        host.crash()
    hosts[1].start()
    assert len(hosts[1].store.owners("agent/")) == 30, "durable again"


def test_a_seed_that_lost_its_journal_gets_it_back() -> None:
    world, hosts = fleet()
    write(hosts[0], 5)
    spread(world)
    hosts[0], hosts[1] = hosts[1], hosts[0]
    disk = deepcopy(hosts[1].disk)
    disk.saved = Saved(hosts[1].node_id)  # the small file with the epoch is still there
    restarted(world, hosts, disk)
    for host in hosts:
        assert host.store.fleet("release/person", host.now()) == 5
        assert host.store.elements("zone") == ["n0", "n1", "stays"]


def test_one_image_restored_twice_in_isolation_is_no_fork() -> None:
    world, hosts = fleet()
    image = deepcopy(hosts[1].disk)
    stopped_ms = hosts[1].now().wall_ms
    epochs = set()
    for _ in range(2):
        hosts[1].crash()
        hosts[1].disk = deepcopy(image)
        hosts[1].skew_ms += stopped_ms - hosts[1].now().wall_ms  # no clock runs while it is off
        world.network.partition(["n1"], ["n0", "n2"])
        hosts[1].start()
        write(hosts[1], 7)
        world.run(8)  # longer than a node waits for its peers
        assert hosts[1].store.fleet("release/person", hosts[1].now()) == 7
        epochs.add(hosts[1].disk.saved.epoch)
        world.network.heal()
        world.run_until(lambda: settled(world, hosts), LIMIT_S)
    assert len(epochs) == 2
    for host in hosts:
        assert "batches_forked" not in host.running.counters
        assert len(host.store.owners("agent/")) == 30
        assert host.store.owner(hosts[1].node_id, "agent/0") == {"number": 7}


def test_two_quick_restarts() -> None:
    world, hosts = fleet()
    for pause_s in (0.004, 0.3, 0.0):
        hosts[1].crash()
        hosts[1].start()
        hosts[1].set_owner("node", pause_s)
        world.run(pause_s)
    restarted(world, hosts)
    check(hosts, 0)


@pytest.mark.parametrize("lost", [False, True])
def test_a_crash_amid_the_first_commit_loses_nothing(lost: bool) -> None:
    world, hosts = fleet()
    one = hosts[1]
    one.crash()
    one.start()
    one.set_owner("node", "half")
    while (one.disk.saved.epoch, 1) not in one.disk.saved.batches:
        world.run(0.0002)
    one.crash()
    first = one.disk.saved.batches[one.disk.saved.epoch, 1]
    hosts[0].store.merge(first, hosts[0].now())  # this much got out
    assert not hosts[0].store.complete
    world.run(3)
    for host in (hosts[0], hosts[2]):  # nobody sees anything vanish
        assert len(host.store.owners("agent/")) == 30
    restarted(world, hosts, Disk(one.node_id) if lost else None)
    check(hosts, 0)


def test_without_reachable_peers_a_node_goes_on_alone() -> None:
    world, hosts = fleet()
    hosts[0].crash()
    hosts[2].crash()
    hosts[1].crash()
    hosts[1].start()
    write(hosts[1], 3)
    assert len(hosts[1].store.owners("agent/")) == 30, "what is known is not waited for"
    assert hosts[1].store.fleet("release/person", hosts[1].now()) == 0
    world.run(6)
    assert hosts[1].store.fleet("release/person", hosts[1].now()) == 3
    hosts[0].start()
    hosts[2].start()
    world.run_until(lambda: settled(world, hosts), LIMIT_S)
    check(hosts, 3)


def test_a_fresh_fleet_does_not_wait() -> None:
    world = World(3)
    hosts = world.fleet(3)
    for host in hosts:
        host.set_owner("node", host.name)
    took_s = world.run_until(lambda: all(len(host.store.owners("node")) == 3 for host in hosts), 10)
    assert took_s < 4
