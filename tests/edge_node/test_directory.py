"""Names of members: as published, and told apart where two have one."""

from edge_node.fleet.directory import Directory
from gossip import GossipNode
from tests.edge_node.test_hosts import Site, tell


def test_a_node_has_its_name_and_the_beginning_of_its_id_where_two_have_one() -> None:
    porch, shed, other = (Site(name) for name in "abc")
    gossip: GossipNode = None  # type: ignore[assignment]  # names come from the replica alone
    directory = Directory(porch.store, gossip)
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
