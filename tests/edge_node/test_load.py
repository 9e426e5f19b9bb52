"""Reports of load and capacity: told when there is news, read whatever they hold."""

from typing import Any

import pytest

from crdt import Instant
from edge_node.fleet.load import REFRESH_S, Load
from edge_node.fleet.shared import _digest_of
from edge_node.metrics import Counters
from edge_node.placement.view import FleetView
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
    return Load(host.store, host.running, Pool(*workers), Counters(), lambda: "model")


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


@pytest.mark.parametrize(
    "accelerators", [7, [7], [{"provider": {}}], [{"provider": ["cpu"]}], [{"provider": None}]]
)
def test_a_capacity_of_nonsense_is_read_as_far_as_it_goes(accelerators: Any) -> None:
    """Found by poison in a cluster: a provider that is a table stopped every node."""
    a, b = Site("a"), Site("b")
    b.store.set_owner("node", {"capacity": 5.0, "accelerators": accelerators})
    tell(a, b)
    gossip: Any = None
    load = Load(a.store, gossip, Pool(), Counters(), lambda: "")
    found = load.capacities([b.id])[b.id]
    assert found.passes_per_s == 5.0
    assert set(found.providers) <= {"other"}
    assert load.capacities([a.id]) == {}
    b.store.set_owner("node", {"capacity": 6.0})
    tell(a, b)
    assert load.capacities([b.id])[b.id].passes_per_s == 6.0


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
