"""Names of members: as published, and told apart where two have one."""

import pytest

from edge_node.fleet.directory import Directory
from gossip import GossipNode
from simnet.world import World
from tests.edge_node.test_hosts import Site, tell

NOBODY: GossipNode = None  # type: ignore[assignment]  # names come from the replica alone


def test_a_node_has_its_name_and_the_beginning_of_its_id_where_two_have_one() -> None:
    porch, shed, other = (Site(name) for name in "abc")
    directory = Directory(porch.store, NOBODY)
    assert directory.name_of(shed.id) == shed.id.hex()[:8]
    for site, record in ((porch, {"name": "porch"}), (shed, {"name": "shed"}), (other, "odd")):
        site.store.set_owner("node", record)
    tell(porch, shed, other)
    assert [directory.name_of(one.id) for one in (porch, shed)] == ["porch", "shed"]
    assert directory.name_of(other.id) == other.id.hex()[:8]
    other.store.set_owner("node", {"name": "shed"})
    tell(porch, shed, other)
    assert directory.name_of(porch.id) == "porch"
    assert directory.name_of(shed.id) == f"shed-{shed.id.hex()[:4]}"
    assert directory.name_of(other.id) == f"shed-{other.id.hex()[:4]}"


def test_names_follow_renaming_and_forgetting() -> None:
    porch, shed, other = (Site(name) for name in "abc")
    for site in (porch, shed, other):
        site.store.set_owner("node", {"name": "shed"})
    tell(porch, shed, other)
    directory = Directory(porch.store, NOBODY)

    def names() -> list[str]:
        return [directory.name_of(one.id) for one in (porch, shed, other)]

    tails = [one.id.hex()[:4] for one in (porch, shed, other)]
    assert names() == [f"shed-{tail}" for tail in tails]
    porch.store.set_owner("node", {"name": "porch"})  # its own record, by its own hand
    porch.commit()
    assert names() == ["porch", f"shed-{tails[1]}", f"shed-{tails[2]}"]
    assert porch.store.retire(other.id, porch.now())
    porch.commit()
    assert names() == ["porch", "shed", other.id.hex()[:8]]
    assert directory.capacities([shed.id, other.id]).keys() == {shed.id}
    shed.store.delete_owner("node")
    tell(porch, shed)
    assert names() == ["porch", shed.id.hex()[:8], other.id.hex()[:8]]


def test_a_change_that_is_no_nodes_record_reads_none(monkeypatch: pytest.MonkeyPatch) -> None:
    porch, shed = Site("a"), Site("b")
    shed.store.set_owner("node", {"name": "shed", "capacity": 3.0})
    tell(porch, shed)
    directory = Directory(porch.store, NOBODY)
    assert directory.name_of(shed.id) == "shed"
    reads: list[object] = []
    for name in ("owner", "owners"):
        monkeypatch.setattr(porch.store, name, lambda *about: reads.append(about))
    shed.store.set_owner("agent/cam", {"source": "generated:1"})
    tell(porch, shed)
    assert directory.name_of(shed.id) == "shed"
    assert directory.capacities([shed.id])[shed.id].passes_per_s == 3.0
    assert not reads


def test_the_living_are_the_present_and_have_addresses() -> None:
    world = World(3)
    one, two, three = world.fleet(3)
    world.run(3.0)
    directory = Directory(one.store, one.running)
    assert set(directory.living()) == {one.node_id, two.node_id, three.node_id}
    assert directory.address_of(two.node_id) == two.address
    assert directory.address_of(one.node_id) is None, "nobody calls itself"
    assert directory.address_of(bytes(16)) is None
    two.running.leave(two.now())
    two.drain()
    three.crash()
    world.run(30.0)
    assert directory.living() == [one.node_id]
    assert [directory.address_of(gone.node_id) for gone in (two, three)] == [None, None]
    one.running.leave(one.now())
    assert directory.living() == []
