"""What must hold of whole fleets, whatever the seed; `make soak` tries twenty of each.

With the stand-in cryptography of simnet.standin, since nothing here is about security. A round is
one hop: its greatest network delay (1.5 ms) and the 20 ms that batching may take.
"""

import os
from math import log2

import pytest

from gossip.events import MemberDown
from simnet.world import World
from tests.simnet import scenarios

SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
SEEDS = range(1, 21) if SOAK else range(1, 2)
LARGE = 250 if SOAK else 120


@pytest.mark.parametrize("seed", SEEDS if SOAK else [1])
@pytest.mark.parametrize("loss", [0.0, 0.4])
def test_news_reach_a_large_fleet_in_logarithmic_rounds(seed: int, loss: float) -> None:
    """p99 within log2 N rounds and all within 1.5 of it; twice that when 40 % are lost."""
    reached = scenarios.reach(seed, LARGE, loss, updates=10 if SOAK else 3, wait_s=4.0)
    allowed = log2(LARGE) * (2 if loss else 1)
    assert reached.missed == 0
    assert reached.percentile(0.99) <= allowed
    assert max(reached.rounds) <= 1.5 * allowed
    assert reached.copies <= (2.2 if loss else 1.5)


@pytest.mark.parametrize("seed", SEEDS)
def test_fleet_in_which_a_sixth_comes_and_goes_stays_whole(seed: int) -> None:
    result = scenarios.churn(seed, 100 if SOAK else 40)
    assert result.false_downs == 0
    assert result.back_s <= 60


@pytest.mark.parametrize("seed", SEEDS)
def test_halves_of_a_fleet_agree_after_a_partition(seed: int) -> None:
    assert scenarios.partition(seed, 100 if SOAK else 40) <= 60


@pytest.mark.parametrize("seed", SEEDS)
def test_fleet_that_writes_too_much_coalesces_and_loses_nothing(seed: int) -> None:
    result = scenarios.overload(seed, 30 if SOAK else 10)
    assert result.entries_per_s <= result.allowed_per_s
    assert result.settled_s <= 60


@pytest.mark.parametrize("seed", SEEDS)
def test_clocks_an_hour_off_and_jumping_freeze_no_key(seed: int) -> None:
    scenarios.clocks(seed, 12)


@pytest.mark.parametrize("seed", SEEDS)
def test_damaged_reordered_doubled_and_one_way_datagrams_do_no_harm(seed: int) -> None:
    world, hosts = scenarios.fleet(seed, 10)
    world.network.change(corrupt=0.2, reorder=0.2, duplicate=0.2)
    world.network.cut(["n1", "n3"], ["n2"], key="deaf")
    world.network.cut(["n2"], ["n4"], key="dumb")
    for step in range(20):
        hosts[step % 10].set_owner("key", step)
        world.run(1)
    world.network.change(corrupt=0.0)
    world.run_until(world.converged, 10)
    assert world.all_live()
    assert not any(isinstance(event, MemberDown) for host in hosts for _, event in host.events)
    for host in hosts:
        counters = host.running.counters
        assert sum(counters.get(f"dropped_{why}", 0) for why in ("seal", "channel", "version")) > 5
        assert counters["dropped_replay"] > 10
        assert [counters.get(f"batches_{bad}") for bad in ("bad_signature", "forked")] == [None] * 2


@pytest.mark.skipif(not SOAK, reason="a thousand nodes take minutes: make soak")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_thousand_nodes_come_to_hold_the_same(seed: int) -> None:
    assert scenarios.agree(seed, 1000, writers=20) <= 30


def test_what_one_node_of_a_warm_fleet_learns_the_others_do_not() -> None:
    world = World(1, standin=True)
    hosts = world.warm_fleet(20)
    assert world.all_live()
    table, other = hosts[1].running._members, hosts[2].running._members
    members = {member.node_id: member for member in table}
    assert hosts[1].node_id not in members
    assert len(members) == 19
    victim = members[hosts[5].node_id]
    table.suspect(victim, hosts[1].now())
    table.bury(table.get(victim.node_id), hosts[1].now())  # type: ignore[arg-type]
    assert len(table.live()) == 18
    assert len(other.live()) == 19
    assert table.digest() != other.digest()
    assert other.digest() == hosts[3].running._members.digest()
    table.forget(victim.node_id)
    assert table.get(victim.node_id) is None
    assert other.get(victim.node_id) is not None
