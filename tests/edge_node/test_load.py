"""Reports of load and capacity: told when there is news, read whatever they hold."""

from typing import Any

import pytest

from crdt import Instant
from edge_node.fleet.load import REFRESH_S, Load
from edge_node.fleet.published import Published
from edge_node.fleet.shared import _digest_of
from edge_node.metrics import Counters
from edge_node.placement.view import FleetView
from gossip.members import Member
from simnet.host import Host
from simnet.world import World
from tests.edge_node.test_hosts import Site, tell


class Worker:
    """A worker that waits."""

    waits_ms = (0.0, 1.0, 2.0)
    loaded = frozenset({"model"})
    queue_length = 0

    def __init__(self) -> None:
        self.service_ms = {"model": 8.0}


class Pool:
    """A pool of such."""

    def __init__(self, *workers: Worker) -> None:
        self.living = workers


def load_of(host: Host, *workers: Worker) -> Load:
    """Return the reports of a node of the world."""
    return Load(host.running, Pool(*workers), Counters(), lambda: "model")


def sequence(host: Host) -> Any:
    """Return the number of a node's newest report."""
    report = host.running.volatile(host.node_id, "load")
    return report["n"] if isinstance(report, dict) else None


def test_a_report_is_told_when_it_changes_and_now_and_then() -> None:
    world = World(1)
    one, other = world.fleet(2)
    world.run(3.0)
    view, worker = FleetView(), Worker()
    here, there = load_of(one, worker), load_of(other)

    def turn(after_s: float) -> tuple[Any, Any]:
        world.run(after_s)
        for load, host in ((here, one), (there, other)):
            load.exchange(view if load is there else FleetView(), host.now())
            host.drain()
        return sequence(one), sequence(other)

    assert turn(0.5) == (1, 1)
    assert turn(0.5) == (1, 1)  # nothing new
    worker.service_ms = {"model": 9.0}
    assert turn(0.5) == (2, 1)
    assert turn(1.0) == (2, 1)
    peer = view.peers[one.node_id]
    assert dict(peer.service_ms) == {"model": 9.0}
    heard_s = peer.heard_s
    assert turn(REFRESH_S) == (3, 1)  # whom nobody can ask need not be heard again
    turn(1.0)
    assert peer.heard_s > heard_s


def test_where_nothing_is_new_nobody_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(4)
    hosts = world.fleet(5)
    world.run(3.0)
    loads = [load_of(host, Worker()) for host in hosts]
    view = FleetView()

    def turn() -> None:
        for load, host in zip(loads, hosts, strict=True):
            load.exchange(view if load is loads[0] else FleetView(), host.now())
            host.drain()
        world.run(1.0)

    turn()
    asked: list[bytes] = []
    gossip = hosts[0].running
    get = gossip.volatile
    monkeypatch.setattr(gossip, "volatile", lambda *about: (asked.append(about[0]), get(*about))[1])
    turn()
    assert sorted(asked) == sorted(host.node_id for host in hosts[1:])
    assert len(view.peers) == 4
    asked.clear()
    turn()
    assert not asked
    hosts[2].running.set_volatile("load", {"n": 9}, hosts[2].now())
    hosts[2].drain()
    world.run(1.0)
    turn()
    assert asked == [hosts[2].node_id]


def test_who_comes_back_is_heard_although_it_says_nothing_new() -> None:
    """It was dead to this node alone: its report is the one of before."""
    world = World(5)
    one, two, _ = world.fleet(3)
    world.run(3.0)
    here, there, view = load_of(one), load_of(two, Worker()), FleetView()
    there.exchange(FleetView(), two.now())
    two.drain()
    world.run(1.0)
    here.exchange(view, one.now())
    assert view.peers[two.node_id].service_ms == {"model": 8.0}

    def state() -> str:
        member = one.running.member(two.node_id)
        return member.state if member is not None else "unknown"

    world.network.partition(["n0"], ["n1", "n2"])
    world.run_until(lambda: state() == "down", 30)
    view.forget(two.node_id)
    here.exchange(view, one.now())
    assert view.peers[two.node_id].service_ms == {}, "the dead count for nothing"
    world.network.heal()
    world.run_until(lambda: state() == "alive", 60)
    here.exchange(view, one.now())
    assert view.peers[two.node_id].service_ms == {"model": 8.0}


def test_what_a_suspected_node_said_counts_once_it_is_trusted_again() -> None:
    world = World(6)
    one, two = world.fleet(2)
    world.run(3.0)
    here, there, view = load_of(one), load_of(two, Worker()), FleetView()
    here.exchange(view, one.now())
    there.exchange(FleetView(), two.now())
    two.drain()
    world.run(1.0)
    members = one.running._members

    def member() -> Member:
        found = members.get(two.node_id)
        assert found is not None
        return found

    members.suspect(member(), one.now())
    here.exchange(view, one.now())
    assert not view.peers
    members.vouch(member(), one.now())
    here.exchange(view, one.now())
    assert view.peers[two.node_id].service_ms == {"model": 8.0}


@pytest.mark.parametrize(
    "accelerators", [7, [7], [{"provider": {}}], [{"provider": ["cpu"]}], [{"provider": None}]]
)
def test_a_capacity_of_nonsense_is_read_as_far_as_it_goes(accelerators: Any) -> None:
    """Found by poison in a cluster: a provider that is a table stopped every node."""
    a, b = Site("a"), Site("b")
    b.store.set_owner("node", {"capacity": 5.0, "accelerators": accelerators})
    tell(a, b)
    published = Published(a.store)
    found = published.capacities([b.id])[b.id]
    assert found.passes_per_s == 5.0
    assert set(found.providers) <= {"other"}
    assert published.capacities([a.id]) == {}
    b.store.set_owner("node", {"capacity": 6.0})
    tell(a, b)
    assert published.capacities([b.id])[b.id].passes_per_s == 6.0


@pytest.mark.parametrize("digest", ["../../etc/passwd", "0" * 63, "A" * 64, "", 7, None])
def test_a_reference_that_is_no_digest_is_a_value_like_any_other(digest: Any) -> None:
    """Found by poison in a cluster: holders were asked for a path."""
    assert _digest_of({"$artifact": digest, "size_bytes": 1}) is None
    assert _digest_of({"$artifact": "0" * 64, "size_bytes": 1}) == "0" * 64


def test_time_is_what_the_caller_says() -> None:
    world = World(2)
    (host,) = world.fleet(1)
    load = load_of(host, Worker())
    load.exchange(FleetView(), Instant(100.0, 0))
    load.exchange(FleetView(), Instant(100.0 + REFRESH_S - 0.1, 0))
    assert sequence(host) == 1
    load.exchange(FleetView(), Instant(100.0 + REFRESH_S, 0))
    assert sequence(host) == 2
