"""The placement functions: what one node decides for a task from what it believes."""

import random
from collections import Counter

import pytest

from edge_node.placement.baselines import blind, round_robin
from edge_node.placement.choose import Decision, Reach, bounce, choose
from edge_node.placement.view import (
    DRAIN,
    IDLE,
    LATE_HALF_LIFE_S,
    OVERTAKEN_MS,
    SILENCE_MAX_S,
    SILENCE_MIN_S,
    STALE_AFTER_S,
    FleetView,
    Option,
    Waits,
)

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16


def option(node: bytes | None, wait_ms: float, service_ms: float = 20.0) -> Option:
    return Option(node, wait_ms, service_ms, network_ms=0.0 if node is None else 2.0)


def decide(
    budget_ms: float,
    here: Option | None,
    *peers: Option,
    planned: bytes | None = None,
    far: tuple[Option, ...] = (),
    rng: random.Random | None = None,
    reuses: bool = True,
) -> Decision:
    known = {one.node: one for one in (*peers, *far) if one.node is not None}
    reach = Reach(
        tuple(one.node for one in peers if one.node), tuple(one.node for one in far if one.node)
    )
    return choose(
        budget_ms, here, planned, reach, known.get, rng or random.Random(1), reuses=reuses
    )


def node_of(decision: Decision) -> bytes | None:
    assert decision.option is not None
    return decision.option.node


def test_the_planned_place_is_taken_without_a_look_at_others_while_it_is_comfortable() -> None:
    decision = decide(200, option(None, 15), option(B, 0))
    assert (node_of(decision), decision.scope) == (None, "plan")
    assert len(decision.considered) == 1
    decision = decide(200, option(None, 0), option(B, 15), planned=B)
    assert (node_of(decision), decision.scope) == (B, "plan")


def test_a_frame_that_would_be_late_as_planned_goes_to_the_near_peer_that_makes_it() -> None:
    decision = decide(200, option(None, 400), option(B, 0), far=(option(C, 0),))
    assert (node_of(decision), decision.scope) == (B, "zone")
    assert C not in {one.node for one in decision.considered}


def test_the_scope_widens_only_when_the_near_ones_will_not_do() -> None:
    decision = decide(200, option(None, 400), option(B, 300), far=(option(C, 0),))
    assert (node_of(decision), decision.scope) == (C, "fleet")
    assert {one.node for one in decision.considered} == {None, B, C}


def test_a_frame_late_everywhere_goes_as_planned_where_it_disturbs_least() -> None:
    assert node_of(decide(200, option(None, 600), option(B, 500))) is None
    assert node_of(decide(200, option(None, 500), option(B, 600), planned=B)) == B


def test_a_task_that_nobody_does_has_no_place() -> None:
    assert decide(200, None).option is None
    assert node_of(decide(200, None, option(B, 900))) == B


def test_a_planned_place_of_which_nothing_is_known_is_passed_over() -> None:
    decision = decide(200, option(None, 100), planned=C)
    assert (node_of(decision), decision.scope) == (None, "here")


def test_what_gains_by_staying_moves_only_to_what_is_clearly_better() -> None:
    assert node_of(decide(200, option(None, 120), option(B, 60))) is None
    assert node_of(decide(200, option(None, 120), option(B, 0))) == B
    assert node_of(decide(200, option(None, 120), option(B, 60), reuses=False)) == B


def test_the_better_of_two_random_peers_is_taken_and_no_peer_draws_the_herd() -> None:
    peers = [option(bytes([i]) * 16, wait_ms=4.0 * i) for i in range(10)]
    rng = random.Random(7)
    taken = Counter(node_of(decide(200, option(None, 400), *peers, rng=rng)) for _ in range(300))
    assert max(taken.values()) < 100
    assert len(taken) >= 7
    best, worst = peers[0].node, peers[-1].node
    assert taken[best] > taken[worst]


def test_a_receiver_passes_on_only_what_is_late_here_and_in_time_there() -> None:
    reach, ask = Reach((B,)), {B: option(B, 30)}.get
    rng = random.Random(1)
    assert bounce(100, 90, reach, ask, rng) is None
    there = bounce(100, 150, reach, ask, rng)
    assert there is not None
    assert there.node == B
    assert bounce(40, 150, reach, ask, rng) is None


def test_round_robin_takes_everybody_in_turn_and_skips_the_unknown() -> None:
    ask = {B: option(B, 0)}.get
    turns = [round_robin(turn, option(None, 0), [B, C], ask).option for turn in range(4)]
    assert [one.node for one in turns if one] == [None, B, None, B]


def test_blind_placement_sees_queues_and_nothing_else() -> None:
    ask = {B: option(B, 10, service_ms=900)}.get
    assert node_of(blind(option(None, 20, service_ms=1), [B], ask, random.Random(1))) == B


def waits(wait_ms: float) -> Waits:
    return wait_ms, wait_ms, wait_ms


def heard(number: int, now_s: float, wait_ms: float = 0.0) -> FleetView:
    view = FleetView()
    view.heard_load(B, number, waits(wait_ms), {"m": 30.0}, network_ms=1.0, now_s=now_s)
    return view


def wait_ms(view: FleetView, now_s: float, tier: int = 3) -> float:
    found = view.option(B, "m", tier, now_s)
    assert found is not None
    return found.wait_ms


def test_the_view_counts_own_sends_drains_and_forgets_the_stale() -> None:
    view = heard(1, 100.0, wait_ms=10.0)
    view.sent(B, "m", 2, 100.0)
    assert [wait_ms(view, 100.0, tier) for tier in (1, 2, 3)] == [10.0, 40.0, 40.0]
    assert wait_ms(view, 100.030) == pytest.approx(40.0 - DRAIN * 30.0)
    assert wait_ms(view, 105.0) == 0.0
    assert view.option(B, "other", 1, 100.0) is None
    assert view.option(C, "m", 1, 100.0) is None
    assert view.option(B, "m", 1, 100.1 + STALE_AFTER_S) is None


def test_a_report_that_was_heard_before_changes_nothing() -> None:
    view = heard(1, 100.0)
    view.sent(B, "m", 1, 100.0)
    view.heard_load(B, 1, IDLE, {"m": 30.0}, network_ms=1.0, now_s=100.0)
    assert wait_ms(view, 100.0) == 30.0
    late_s = 101.0 + STALE_AFTER_S
    view.heard_load(B, 1, IDLE, {"m": 30.0}, network_ms=1.0, now_s=late_s)
    assert view.option(B, "m", 1, late_s) is None
    view.heard_load(B, 2, IDLE, {"m": 30.0}, network_ms=1.0, now_s=late_s)
    assert view.option(B, "m", 1, late_s) is not None


def test_a_peer_that_owes_answers_is_out_ever_longer_whatever_gossip_says() -> None:
    view = heard(1, 0.0)
    now_s, number, silences = 0.0, 1, []
    for _ in range(7):
        view.unanswered(B, now_s)
        began_s = now_s
        while view.option(B, "m", 1, now_s) is None:
            now_s, number = now_s + 0.25, number + 1
            view.heard_load(B, number, IDLE, {"m": 30.0}, network_ms=1.0, now_s=now_s)
        silences.append(now_s - began_s)
    assert silences[0] == SILENCE_MIN_S
    assert silences == sorted(silences)
    assert silences[-1] == SILENCE_MAX_S
    view.unanswered(B, now_s)
    view.heard_reply(B, IDLE, 1.0, 30.0, 30.0, now_s)
    assert view.option(B, "m", 1, now_s) is not None


def test_frames_that_fail_together_count_as_one_silence() -> None:
    view = heard(1, 0.0)
    for _ in range(10):
        view.unanswered(B, 0.0)
    assert view.option(B, "m", 1, SILENCE_MIN_S) is not None


def test_sending_to_a_peer_does_not_make_old_news_of_it_fresh() -> None:
    view = heard(1, 0.0)
    view.sent(B, "m", 1, STALE_AFTER_S)
    assert view.option(B, "m", 1, STALE_AFTER_S + 1.0) is None


def test_what_forwarding_costs_is_learned_from_replies_not_from_probes() -> None:
    view = heard(1, 0.0)
    view.heard_reply(B, IDLE, 11.0, 40.0, 41.0, 0.1)
    view.heard_reply(B, IDLE, 21.0, 40.0, 51.0, 0.2)
    view.heard_load(B, 2, IDLE, {"m": 30.0}, network_ms=1.0, now_s=0.3)
    found = view.option(B, "m", 1, 0.3)
    assert found is not None
    assert found.network_ms == pytest.approx(13.0)


def finish_ms(view: FleetView, now_s: float) -> float:
    found = view.option(B, "m", 2, now_s)
    assert found is not None
    return found.finish_ms


def late_answers(view: FleetView, count: int, now_s: float) -> None:
    """Have B answer ten times later than it makes believe."""
    for index in range(count):
        now_s += 0.1
        view.heard_load(B, 100 + index, IDLE, {"m": 30.0}, network_ms=1.0, now_s=now_s)
        view.heard_reply(B, IDLE, 1.0, finish_ms(view, now_s), 310.0, now_s)


def test_a_peer_that_answers_late_is_soon_believed_no_more() -> None:
    view = heard(1, 0.0)
    honest_ms = finish_ms(view, 0.0)
    late_answers(view, 10, 0.0)
    assert finish_ms(view, 1.0) > 4 * honest_ms


def test_trust_is_lost_faster_than_it_is_won() -> None:
    view = heard(1, 0.0)
    honest_ms = finish_ms(view, 0.0)
    late_answers(view, 4, 0.0)
    doubted_ms = finish_ms(view, 0.4)
    assert doubted_ms > 3 * honest_ms
    for index in range(4):
        view.heard_reply(B, IDLE, 1.0, finish_ms(view, 0.4), 31.0, 0.4 + index / 100)
    assert finish_ms(view, 0.5) > 0.7 * doubted_ms


def test_a_doubted_peer_that_is_not_asked_any_more_recovers_with_time() -> None:
    view = heard(1, 0.0)
    honest_ms = finish_ms(view, 0.0)
    late_answers(view, 10, 0.0)
    later_s = 1.0 + 10 * LATE_HALF_LIFE_S
    view.heard_load(B, 999, IDLE, {"m": 30.0}, network_ms=1.0, now_s=later_s)
    assert finish_ms(view, later_s) == pytest.approx(honest_ms, rel=0.02)


def test_an_honest_peer_with_noise_is_hardly_doubted() -> None:
    view, rng = heard(1, 0.0), random.Random(3)
    for index in range(500):
        now_s = index / 50
        view.heard_load(B, 2 + index, IDLE, {"m": 30.0}, network_ms=1.0, now_s=now_s)
        finish = finish_ms(view, now_s)
        view.heard_reply(B, IDLE, 1.0, finish, 31.0 * rng.uniform(0.7, 1.8), now_s)
    assert view.peers[B].late_ms(10.0) < 31.0  # less than its noise at the most


def test_what_critical_work_may_explain_changes_nothing() -> None:
    view = heard(1, 0.0)
    late_answers(view, 3, 0.0)
    before_ms = view.peers[B].late_ms(0.3)
    view.heard_reply(B, IDLE, 1.0, 400.0, 400.0 + OVERTAKEN_MS / 2, 0.3)
    assert view.peers[B].late_ms(0.3) == before_ms > 0


def test_who_comes_back_is_what_it_was() -> None:
    view = heard(1, 0.0)
    late_answers(view, 5, 0.0)
    view.forget(B)
    assert view.option(B, "m", 2, 0.5) is None
    view.heard_load(B, 1, IDLE, {"m": 30.0}, network_ms=1.0, now_s=0.6)
    assert view.peers[B].late_ms(0.6) > 30.0


def test_refusals_of_what_should_have_been_in_time_are_a_reason_for_doubt() -> None:
    view = heard(1, 0.0)
    honest_ms = finish_ms(view, 0.0)
    for _ in range(3):
        view.refused(B, 300.0, 0.0)
    assert finish_ms(view, 0.0) > 4 * honest_ms


def test_a_refusal_for_lack_of_time_counts_as_an_answer_after_the_deadline() -> None:
    view = heard(1, 0.0)
    honest_ms = finish_ms(view, 0.0)
    view.had_no_time(B, 100.0, 0.0)
    assert honest_ms < finish_ms(view, 0.0) < honest_ms + 100.0
