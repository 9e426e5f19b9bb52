"""The planner between the replica and the plan: nothing is planned where there is no agent."""

import asyncio

import pytest

from edge_node.fleet import planner as planning
from edge_node.fleet.planner import NO_PLAN, Given, Planner
from edge_node.fleet.published import Capacity
from edge_node.placement.epoch import Seat, Stream
from edge_node.placement.view import IDLE, FleetView
from simnet.world import World
from tests.edge_node.test_load import Worker, load_of

ABLE = Capacity(passes_per_s=100.0, takeover=True, files="", providers=("cpu",))


def planner_of(world: World) -> tuple[Planner, FleetView, dict[bytes, Capacity]]:
    """Return a planner of the first node of a fleet, its view, and who lives."""
    hosts = world.fleet(3)
    world.run(3.0)
    view = FleetView()
    for host in hosts[1:]:
        view.heard_load(host.node_id, 1, IDLE, {"model": 8.0}, 1.0, 0.0)
    planner = Planner(hosts[0].node_id, load_of(hosts[0], Worker()), view)
    return planner, view, {host.node_id: ABLE for host in hosts}


def test_without_agents_there_is_no_plan_but_somebody_to_ask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planner, view, living = planner_of(World(1))
    own, other, last = living
    stream = Stream("cam", "model", 2, 5.0, 200.0, own)
    given = Given([stream], [Seat(own, "cpu", "", {"model": 8.0})], {})
    asyncio.run(planner.renew(given, living))
    assert planner.plan.primary == {"cam": own}
    assert planner.serves("model")
    planner.moved("cam", other)

    monkeypatch.setattr(planning, "plan", None)
    planner.rest(living, 1.0)
    assert planner.plan == NO_PLAN
    assert planner.planned("cam") is None, "neither planned nor moved"
    assert not planner.serves("model")
    assert planner.provider(other) == "cpu"
    assert sorted(planner.reach("model").zone) == sorted([other, last])
    view.peers[last].service_ms = {}
    assert sorted(planner.reach("model").zone) == sorted([other, last]), "kept until the next epoch"
    planner.rest(living, 3.0)
    assert planner.reach("model").zone == (other,)
