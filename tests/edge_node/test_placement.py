"""The placement functions: what one node decides from what it believes."""

import random

import pytest

from edge_node.placement.choose import choose
from edge_node.placement.hosting import should_host, successor
from edge_node.placement.view import SILENCE_MAX_S, SILENCE_MIN_S, STALE_AFTER_S, FleetView, Option

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16


def option(node: bytes | None, backlog_ms: float, service_ms: float = 20.0) -> Option:
    return Option(node, backlog_ms, service_ms, network_ms=0.0 if node is None else 2.0)


def test_a_frame_stays_here_while_here_is_in_time() -> None:
    chosen = choose(200, option(None, 100), [option(B, 0)], random.Random(1))
    assert chosen.node is None


def test_a_frame_that_would_be_late_here_goes_to_the_peer_that_makes_it() -> None:
    chosen = choose(200, option(None, 400), [option(B, 0)], random.Random(1))
    assert chosen.node == B


def test_forwarding_off_keeps_every_frame_here() -> None:
    chosen = choose(200, option(None, 400), [option(B, 0)], random.Random(1), forward=False)
    assert chosen.node is None


def test_a_frame_late_everywhere_stays_here() -> None:
    chosen = choose(200, option(None, 400), [option(B, 500)], random.Random(1))
    assert chosen.node is None


def test_the_better_of_two_random_peers_is_taken_and_no_peer_draws_the_herd() -> None:
    peers = [option(bytes([i]) * 16, backlog_ms=i) for i in range(10)]
    rng = random.Random(7)
    taken = [choose(200, option(None, 400), peers, rng).node for _ in range(300)]
    assert taken.count(peers[-1].node) == 0
    assert max(taken.count(peer.node) for peer in peers) < 100
    assert len(set(taken)) >= 7


def heard(number: int, now_s: float, backlog_ms: float = 0.0) -> FleetView:
    view = FleetView()
    view.heard_load(B, number, backlog_ms, {"m": 30.0}, network_ms=1.0, now_s=now_s)
    return view


def test_the_view_counts_own_sends_drains_and_forgets_the_stale() -> None:
    view = heard(1, 100.0, backlog_ms=10.0)
    view.sent(B, "m", 100.0)
    assert view.options("m", 100.0)[0].backlog_ms == 40.0
    assert view.options("m", 100.030)[0].backlog_ms == pytest.approx(10.0)
    assert view.options("other", 100.0) == []
    assert view.options("m", 100.1 + STALE_AFTER_S) == []


def test_a_report_that_was_heard_before_changes_nothing() -> None:
    view = heard(1, 100.0)
    view.sent(B, "m", 100.0)
    view.heard_load(B, 1, 0.0, {"m": 30.0}, network_ms=1.0, now_s=100.0)
    assert view.options("m", 100.0)[0].backlog_ms == 30.0
    view.heard_load(B, 1, 0.0, {"m": 30.0}, network_ms=1.0, now_s=101.0 + STALE_AFTER_S)
    assert view.options("m", 101.0 + STALE_AFTER_S) == []
    view.heard_load(B, 2, 0.0, {"m": 30.0}, network_ms=1.0, now_s=101.0 + STALE_AFTER_S)
    assert len(view.options("m", 101.0 + STALE_AFTER_S)) == 1


def test_a_peer_that_owes_answers_is_out_ever_longer_whatever_gossip_says() -> None:
    view = heard(1, 0.0)
    now_s, number, silences = 0.0, 1, []
    for _ in range(7):
        view.unanswered(B, now_s)
        began_s = now_s
        while not view.options("m", now_s):
            now_s, number = now_s + 0.25, number + 1
            view.heard_load(B, number, 0.0, {"m": 30.0}, network_ms=1.0, now_s=now_s)
        silences.append(now_s - began_s)
    assert silences[0] == SILENCE_MIN_S
    assert silences == sorted(silences)
    assert silences[-1] == SILENCE_MAX_S
    view.unanswered(B, now_s)
    view.heard_reply(B, 0.0, 1.0, now_s)
    assert len(view.options("m", now_s)) == 1


def test_frames_that_fail_together_count_as_one_silence() -> None:
    view = heard(1, 0.0)
    for _ in range(10):
        view.unanswered(B, 0.0)
    assert len(view.options("m", SILENCE_MIN_S)) == 1


def test_sending_to_a_peer_does_not_make_old_news_of_it_fresh() -> None:
    view = heard(1, 0.0)
    view.sent(B, "m", STALE_AFTER_S)
    assert view.options("m", STALE_AFTER_S + 1.0) == []


def test_the_home_node_hosts_while_it_can_and_gets_its_agent_back() -> None:
    takers = {A: 10.0, B: 10.0}
    able = frozenset(takers)
    assert should_host("door", A, A, able, takers) == A
    assert should_host("door", A, B, able, takers) == A
    assert should_host("door", A, B, frozenset([B]), {B: 10.0}) == B


def test_an_orphan_goes_to_one_successor_and_stays_with_it() -> None:
    takers = {B: 10.0, C: 10.0}
    able = frozenset(takers)
    chosen = should_host("door", A, A, able, takers)
    assert chosen == successor("door", takers)
    assert chosen in able
    assert should_host("door", A, chosen, able, takers) == chosen
    assert should_host("door", A, A, able, {}) is None


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
    view = heard(1, 0.0)
    view.heard_reply(B, 0.0, 11.0, 0.1)
    view.heard_reply(B, 0.0, 21.0, 0.2)
    view.heard_load(B, 2, 0.0, {"m": 30.0}, network_ms=1.0, now_s=0.3)
    assert view.options("m", 0.3)[0].network_ms == pytest.approx(13.0)
