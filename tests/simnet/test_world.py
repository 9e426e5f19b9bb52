"""The virtual-time world itself."""

import os
import subprocess
import sys

import pytest

from gossip.sealing import Identity
from simnet.link import Network
from simnet.world import World


def eventful_run(seed: int) -> str:
    """Return the trace hash of a run in which everything happens."""
    world = World(seed)
    world.network.faults.loss = 0.1
    world.network.faults.duplicate = 0.05
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


def test_same_seed_same_trace_and_another_seed_another() -> None:
    assert eventful_run(3) == eventful_run(3)
    assert eventful_run(3) != eventful_run(4)


def test_trace_does_not_depend_on_the_hash_seed() -> None:
    code = "from tests.simnet.test_world import eventful_run; print(eventful_run(5))"
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


def test_faults_do_what_they_say() -> None:
    network = Network(1)
    assert len(network.arrivals("a", "b")) == 1
    network.partition(["a"], ["b", "c"])
    assert network.arrivals("a", "b") == network.arrivals("c", "a") == []
    assert network.arrivals("b", "c")
    network.heal()
    network.faults.silent.add("a")
    assert network.arrivals("a", "b") == network.arrivals("b", "a") == []
    network.heal()
    network.faults.loss = 0.3
    arrived = sum(len(network.arrivals("a", "b")) for _ in range(2000))
    assert 1300 < arrived < 1500
    network.faults.duplicate = 1.0
    network.faults.loss = 0.0
    assert len(network.arrivals("a", "b")) == 2


def test_one_link_s_faults_do_not_shift_another_s() -> None:
    quiet, busy = Network(1), Network(1)
    for _ in range(10):
        busy.arrivals("a", "c")
    assert quiet.arrivals("a", "b") == busy.arrivals("a", "b")


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
