"""Who should host an agent: the pure rule."""

from hypothesis import given
from hypothesis import strategies as st

from edge_node.placement.hosting import should_host, successor

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
BOTH = {A: 10.0, B: 10.0}
NOBODY: frozenset[bytes] = frozenset()

nodes = st.integers(0, 7).map(lambda number: bytes([number]) * 16)


def test_the_home_node_hosts_while_it_can_and_gets_its_agent_back() -> None:
    assert should_host("door", A, A, BOTH, NOBODY) == A
    assert should_host("door", A, B, BOTH, NOBODY) == A
    assert should_host("door", A, B, {B: 10.0}, NOBODY) == B


def test_an_orphan_goes_to_one_successor_and_stays_with_it() -> None:
    able = {B: 10.0, C: 10.0}
    chosen = should_host("door", A, A, able, NOBODY)
    assert chosen == successor("door", able)
    assert chosen in able
    assert should_host("door", A, chosen, able, NOBODY) == chosen
    assert should_host("door", A, A, {}, NOBODY) is None


def test_what_leaves_gives_its_agents_away_and_keeps_what_nobody_takes() -> None:
    assert should_host("door", A, A, BOTH, {A}) == B
    assert should_host("door", A, B, BOTH, {A}) == B
    assert should_host("door", A, B, {**BOTH, C: 1.0}, {A, B}) == C
    assert should_host("door", A, A, BOTH, {A, B}) == A
    assert should_host("door", A, B, BOTH, {A, B}) == B
    assert should_host("door", A, C, BOTH, {A, B}) == A
    assert should_host("door", A, C, {B: 10.0}, {B}) is None


def test_successors_follow_capacity_and_only_orphans_move() -> None:
    capacities = {A: 30.0, B: 10.0, C: 0.0}
    before = {f"agent{i}": successor(f"agent{i}", capacities) for i in range(2_000)}
    share = sum(node == A for node in before.values()) / len(before)
    assert 0.70 < share < 0.80
    assert C not in before.values()
    after = {agent: successor(agent, {B: 10.0}) for agent in before}
    assert all(after[agent] == B for agent, node in before.items() if node == B)
    assert successor("agent", {}) is None


@given(st.dictionaries(nodes, st.floats(0.1, 100)), st.frozensets(nodes), nodes, nodes)
def test_the_rule_comes_to_rest_after_one_move(
    able: dict[bytes, float], leaving: frozenset[bytes], home: bytes, host: bytes
) -> None:
    chosen = should_host("door", home, host, able, leaving)
    assert chosen is None or chosen in able
    if chosen is not None:
        assert should_host("door", home, chosen, able, leaving) == chosen
    if able.keys() - leaving:
        assert chosen is not None
        assert chosen not in leaving
