"""The placement functions: what one node decides from what it believes."""

import random

import pytest

from edge_node.placement.choose import choose
from edge_node.placement.hosting import should_host, successor
from edge_node.placement.view import SILENT_AFTER_S, STALE_AFTER_S, FleetView, Option

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16


def option(node: bytes | None, backlog_ms: float, service_ms: float = 20.0) -> Option:
    return Option(node, backlog_ms, service_ms, network_ms=0.0 if node is None else 2.0)


def test_a_frame_stays_here_while_here_is_in_time() -> None:
    decision = choose(200, option(None, 100), [option(B, 0)], random.Random(1))
    assert decision.option.node is None


def test_a_frame_that_would_be_late_here_goes_to_the_peer_that_makes_it() -> None:
    decision = choose(200, option(None, 400), [option(B, 0)], random.Random(1))
    assert decision.option.node == B


def test_forwarding_off_keeps_every_frame_here() -> None:
    decision = choose(200, option(None, 400), [option(B, 0)], random.Random(1), forward=False)
    assert decision.option.node is None


def test_a_frame_late_everywhere_stays_here() -> None:
    decision = choose(200, option(None, 400), [option(B, 500)], random.Random(1))
    assert decision.option.node is None


def test_the_better_of_two_random_peers_is_taken_and_no_peer_draws_the_herd() -> None:
    peers = [option(bytes([i]) * 16, backlog_ms=i) for i in range(10)]
    rng = random.Random(7)
    taken = [choose(200, option(None, 400), peers, rng).option.node for _ in range(300)]
    assert taken.count(peers[-1].node) == 0
    assert max(taken.count(peer.node) for peer in peers) < 100
    assert len(set(taken)) >= 7


def test_the_view_counts_own_sends_drains_and_forgets_the_silent_and_the_stale() -> None:
    view = FleetView()
    view.heard_load(B, 10.0, {"m": 30.0}, network_ms=1.0, now_s=100.0)
    view.sent(B, "m", 100.0)
    assert view.options("m", 100.0)[0].backlog_ms == 40.0
    assert view.options("m", 100.030)[0].backlog_ms == pytest.approx(10.0)
    assert view.options("other", 100.0) == []
    view.unanswered(B)
    assert view.options("m", 100.0) == []
    view.heard_reply(B, 5.0, 8.0, 100.0 + SILENT_AFTER_S)
    assert view.options("m", 100.0 + SILENT_AFTER_S)[0].backlog_ms == 5.0
    assert view.options("m", 101.0 + STALE_AFTER_S) == []


def test_sending_to_a_peer_does_not_make_old_news_of_it_fresh() -> None:
    view = FleetView()
    view.heard_load(B, 0.0, {"m": 30.0}, network_ms=1.0, now_s=0.0)
    view.sent(B, "m", STALE_AFTER_S)
    assert view.options("m", STALE_AFTER_S + 1.0) == []


def test_the_home_node_hosts_while_it_lives_and_gets_its_agent_back() -> None:
    capacities = {A: 10.0, B: 10.0}
    living = frozenset(capacities)
    assert should_host("door", A, None, True, capacities, living) == A
    assert should_host("door", A, B, True, capacities, living) == A


def test_an_orphan_goes_to_one_successor_and_stays_with_it() -> None:
    capacities = {B: 10.0, C: 10.0}
    living = frozenset(capacities)
    chosen = should_host("door", A, A, True, capacities, living)
    assert chosen == successor("door", capacities)
    assert chosen in living
    assert should_host("door", A, chosen, True, capacities, living) == chosen
    assert should_host("door", A, A, False, capacities, living) is None


def test_successors_follow_capacity_and_only_orphans_move() -> None:
    capacities = {A: 30.0, B: 10.0, C: 0.0}
    before = {f"agent{i}": successor(f"agent{i}", capacities) for i in range(2_000)}
    share = sum(node == A for node in before.values()) / len(before)
    assert 0.70 < share < 0.80
    assert C not in before.values()
    after = {agent: successor(agent, {B: 10.0}) for agent in before}
    assert all(after[agent] == B for agent, node in before.items() if node == B)
    assert successor("agent", {}) is None


def test_what_forwarding_costs_is_learned_from_replies_not_from_probes() -> None:
    view = FleetView()
    view.heard_load(B, 0.0, {"m": 30.0}, network_ms=1.0, now_s=0.0)
    view.heard_reply(B, 0.0, 11.0, 0.1)
    view.heard_reply(B, 0.0, 21.0, 0.2)
    view.heard_load(B, 0.0, {"m": 30.0}, network_ms=1.0, now_s=0.3)
    assert view.options("m", 0.3)[0].network_ms == pytest.approx(13.0)
