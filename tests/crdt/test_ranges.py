"""The tree of sums over node ids."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.ranges import (
    MAX_DEPTH,
    RangeTree,
    bounds,
    child_scopes,
    depth_of,
    in_scope,
    scope_of,
)

ids = st.binary(min_size=16, max_size=16)


def test_scopes_are_named_by_the_digits_they_fix() -> None:
    node_id = bytes.fromhex("a3f0" + "00" * 14)
    assert [scope_of(node_id, depth) for depth in range(4)] == [1, 0x1A, 0x1A3, 0x1A3F]
    assert [depth_of(scope) for scope in (1, 0x1A, 0x1A3, 0x1A3F)] == [0, 1, 2, 3]
    assert list(child_scopes(0x1A)) == list(range(0x1A0, 0x1B0))
    assert bounds(0x1A3) == (bytes.fromhex("a30" + "0" * 29), bytes.fromhex("a3" + "f" * 30))
    assert bounds(1) == (bytes(16), b"\xff" * 16)


@pytest.mark.parametrize("number", [-1, 0, 2, 3, 8, 0xA, 0x20, 0xA3, 0x1A3F0, 1 << 200])
def test_other_numbers_are_no_scopes(number: int) -> None:
    for question in (depth_of, child_scopes, bounds, lambda scope: in_scope(bytes(16), scope)):
        with pytest.raises(ValueError, match="not a scope"):
            question(number)
    with pytest.raises(ValueError, match="deepest"):
        child_scopes(0x1A3F)


@given(node_id=ids, depth=st.integers(0, MAX_DEPTH - 1))
def test_the_sixteen_within_a_scope_divide_it(node_id: bytes, depth: int) -> None:
    scope = scope_of(node_id, depth)
    inside = [child for child in child_scopes(scope) if in_scope(node_id, child)]
    assert inside == [scope_of(node_id, depth + 1)]
    pairs = [bounds(child) for child in child_scopes(scope)]
    assert (pairs[0][0], pairs[-1][1]) == bounds(scope)
    for (_, last), (first, _) in pairwise(pairs):
        assert int.from_bytes(first, "big") == int.from_bytes(last, "big") + 1
    low, high = bounds(scope)
    assert low <= node_id <= high


@given(members=st.dictionaries(ids, st.integers(0, 2**128 - 1), max_size=30), seed=st.integers())
def test_sums_are_of_the_members_whatever_the_order(members: dict[bytes, int], seed: int) -> None:
    tree, other = RangeTree(), RangeTree()
    for node_id, number in members.items():
        tree.change(node_id, number, count=1)
    shuffled = list(members.items())
    random.Random(seed).shuffle(shuffled)
    for node_id, number in shuffled:
        other.change(node_id, 5, count=1)
        other.change(node_id, number - 5)
    for scope in (1, *child_scopes(1), *(scope_of(node_id, 3) for node_id in members)):
        within = [number for node_id, number in members.items() if in_scope(node_id, scope)]
        expected = (sum(within) % 2**128).to_bytes(16, "big")
        assert tree.sum_of(scope) == other.sum_of(scope) == expected
        assert tree.count(scope) == other.count(scope) == len(within)
        if depth_of(scope) < MAX_DEPTH:
            children = [tree.sum_of(child)[:8] for child in child_scopes(scope)]
            assert list(tree.sums(scope)) == list(other.sums(scope)) == children
    for node_id, number in members.items():
        tree.change(node_id, -number, count=-1)
    assert tree.sum_of(1) == bytes(16)
    assert not tree._nodes
