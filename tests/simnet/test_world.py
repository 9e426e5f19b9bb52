"""The virtual-time world itself."""

import os
import subprocess
import sys

import pytest

from gossip.config import GossipConfig
from gossip.sealing import Identity
from simnet.link import Network
from simnet.world import World


def eventful_run(seed: int) -> str:
    """Return the trace hash of a run in which everything happens."""
    world = World(seed)
    world.network.change(loss=0.1, duplicate=0.05)
    hosts = world.fleet(5)
    world.run(3)
    for index, host in enumerate(hosts):
        host.set_owner("key", index)
        host.store.add("set", index)
        host.commit()
    world.run(1)
    hosts[4].crash()
    world.network.partition(["n0", "n1"], ["n2", "n3"])
    world.run(12)
    hosts[4].start()
    world.network.heal()
    world.run(20)
    return world.trace_hash()


def branching_run(seed: int) -> str:
    """Return the trace hash of a fleet that spreads its news along a tree, under every fault."""
    config = GossipConfig(direct_members=8, leaf_members=4, links_kept=16, link_idle_s=2.0)
    world = World(seed, config, standin=True)
    world.network.change(loss=0.1, duplicate=0.1, reorder=0.1, corrupt=0.1)
    hosts = world.fleet(20) + [world.add(f"m{index}") for index in range(20)]
    for host in hosts[20:]:
        host.seeds.append(hosts[3].address)
        host.start()
    world.run(4)
    for index, host in enumerate(hosts):
        host.store.set_fleet(f"key/{index % 3}", index, host.now())
        host.running.set_volatile("load", index, host.now())
        host.commit()
    world.run(1)
    hosts[7].crash()
    hosts[8].hold(1.5)
    world.run(5)
    hosts[7].start()
    hosts[9].running.leave(hosts[9].now())
    world.run(2)
    return world.trace_hash()


def test_same_seed_same_trace_and_another_seed_another() -> None:
    assert eventful_run(3) == eventful_run(3)
    assert eventful_run(3) != eventful_run(4)


@pytest.mark.parametrize("run", ["eventful_run", "branching_run"])
def test_trace_does_not_depend_on_the_hash_seed(run: str) -> None:
    code = f"from tests.simnet.test_world import {run}; print({run}(5))"
    traces = set()
    for hash_seed in ("0", "1"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        traces.add(done.stdout)
    assert len(traces) == 1


def test_time_passes_only_as_told() -> None:
    world = World(1)
    seen: list[float] = []
    world.after(2.0, lambda: seen.append(world.now_s))
    world.after(1.0, lambda: seen.append(world.now_s))
    world.run(1.5)
    assert seen == [1001.0]
    world.run(1.0)
    assert seen == [1001.0, 1002.0]
    assert world.now_s == 1002.5


def arrived(network: Network, source: str, target: str, data: bytes = b"data") -> list[bytes]:
    return [copy for _, copy in network.arrivals(source, target, data, 0.0)]


def test_cuts_partitions_and_black_holes() -> None:
    network = Network(1)
    assert arrived(network, "a", "b") == [b"data"]
    network.partition(["a"], ["b", "c"])
    assert arrived(network, "a", "b") == arrived(network, "c", "a") == []
    assert arrived(network, "b", "c")
    assert arrived(network, "a", "d"), "who is in no group reaches everybody"
    network.heal()
    network.cut(["a"], ["b"], key="one way")
    assert arrived(network, "a", "b") == []
    assert arrived(network, "b", "a"), "one way"
    network.heal()
    network.silence(["a"], key="hole")
    assert arrived(network, "a", "b") == arrived(network, "b", "a") == []


def test_loss_duplicates_reordering_and_corruption_are_as_frequent_as_said() -> None:
    network = Network(1)
    network.change(loss=0.3)
    assert 1300 < sum(len(arrived(network, "a", "b")) for _ in range(2000)) < 1500
    network.change(loss=0.0, duplicate=0.5)
    assert 2900 < sum(len(arrived(network, "a", "b")) for _ in range(2000)) < 3100
    network.change(duplicate=0.0, reorder=0.5)
    held_s = network.conditions.reorder_s
    late = [network.arrivals("a", "b", b"", 0.0)[0][0] >= held_s for _ in range(2000)]
    assert 900 < sum(late) < 1100
    network.change(reorder=0.0, corrupt=0.5)
    data = bytes(100)
    copies = [arrived(network, "a", "b", data)[0] for _ in range(2000)]
    damaged = [copy for copy in copies if copy != data]
    assert 900 < len(damaged) < 1100
    assert {sum(map(bool, copy)) for copy in damaged} == {1}
    assert len({copy.index(0x55) for copy in damaged}) > 90, "anywhere in it"


def test_one_link_s_faults_do_not_shift_another_s() -> None:
    quiet, busy = Network(1), Network(1)
    for _ in range(10):
        busy.arrivals("a", "c", b"", 0.0)
    assert quiet.arrivals("a", "b", b"", 0.0) == busy.arrivals("a", "b", b"", 0.0)


def test_what_is_not_reordered_stays_in_order() -> None:
    network = Network(1)
    network.change(jitter_s=1.0)
    times = [network.arrivals("a", "b", b"", step / 100)[0][0] for step in range(300)]
    assert times == sorted(times)


def test_crash_keeps_the_journal_and_the_key_and_nothing_else() -> None:
    world = World(2)
    one, _ = world.fleet(2)
    world.run(1)
    one.set_owner("key", 1)
    world.run(0.5)
    identity: Identity = one.identity
    one.crash()
    with pytest.raises(AssertionError, match="n0 is down"):
        _ = one.running
    one.start()
    assert one.identity is identity
    assert one.store.owner(one.node_id, "key") == 1
    assert len(one.running.members()) == 1


def test_skewed_wall_clocks_freeze_no_register() -> None:
    world = World(3)
    one, two, three = world.fleet(3)
    one.skew_ms, two.skew_ms = 3_600_000, -3_600_000
    world.run(2)
    one.store.set_fleet("release", "from the future", one.now())
    one.commit()
    world.run(1)
    three.store.set_fleet("release", "now", three.now())
    three.commit()
    world.run(1)
    assert world.converged()
    assert three.store.fleet("release", three.now()) == "now"
    assert three.store.hidden == 1


def test_condition_that_never_comes_names_the_seed() -> None:
    with pytest.raises(AssertionError, match="seed 77"):
        World(77).run_until(lambda: False, 1.0)


def test_links_of_a_warm_fleet_are_as_good_as_those_made_by_handshakes() -> None:
    world = World(4, standin=True)
    hosts = world.warm_fleet(30)
    for host in hosts:
        assert len(host.running._links) == 29
    hosts[3].set_owner("key", 1)
    world.run(0.05)
    assert all(host.store.owner(hosts[3].node_id, "key") == 1 for host in hosts)
    world.run(5)
    dropped = [name for host in hosts for name in host.running.counters if "dropped" in name]
    assert not dropped
    assert not any("bytes_handshakes" in host.running.counters for host in hosts)
