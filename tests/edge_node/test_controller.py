"""The controller: what it prefers, what it learns, what it costs, and that it decides at all."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_node.placement.budget import BudgetSpent
from edge_node.placement.controller import (
    LATE_COST,
    MOST_ESTIMATES,
    Alternative,
    Controller,
)

BEST = Alternative(("large", "full"), 0.92, 8.0)
GOOD = Alternative(("small", "full"), 0.88, 4.0)
QUICK = Alternative(("small", "half"), 0.80, 1.0)
POOR = Alternative(("large", "half"), 0.70, 5.0)
ALL = (BEST, GOOD, QUICK, POOR)


def warm(factor: float = 1.0, **options: float) -> Controller:
    """Return a controller that has seen every alternative take `factor` times its prediction."""
    controller = Controller(**options)
    for _ in range(60):
        for option in ALL:
            controller.observe(option, factor * option.service_ms, True)
    return controller


def test_with_time_and_nobody_waiting_quality_counts() -> None:
    choice = warm().choose(1000.0, 0.0, ALL)
    assert choice.option is BEST
    assert choice.p_late < 0.01
    assert choice.reason == "the best quality"


def test_a_short_budget_takes_what_fits() -> None:
    controller = warm()
    choice = controller.choose(6.0, 0.0, ALL)
    assert choice.option is GOOD
    assert choice.reason == "better would risk to be late"
    assert controller.choose(2.0, 0.0, ALL).option is QUICK


def test_while_others_wait_the_quick_one_is_taken_though_all_would_be_in_time() -> None:
    controller = warm()
    choice = controller.choose(1000.0, 900.0, ALL)
    assert choice.option is QUICK
    assert choice.reason == "better would hold up others"
    # The price alone does it: without it the same controller takes the best.
    assert warm(price=0.0).choose(1000.0, 900.0, ALL).option is BEST


def test_when_nothing_fits_it_says_so_and_does_the_least_harm() -> None:
    choice = warm().choose(5.0, 50.0, ALL)
    assert choice.option is QUICK
    assert choice.p_late == 1.0
    assert choice.reason.startswith("nothing is likely to be in time")


def test_what_is_dominated_is_never_chosen() -> None:
    controller, rng = warm(), random.Random(1)
    for _ in range(500):
        choice = controller.choose(rng.uniform(0.1, 100), rng.uniform(0, 100), ALL)
        assert choice.option is not POOR


def test_priors_are_doubled_until_something_was_completed() -> None:
    controller = Controller()
    assert controller.service_ms(GOOD) == pytest.approx(2 * GOOD.service_ms)
    # One alternative tells of the machine, so of the others too.
    for _ in range(200):
        controller.observe(QUICK, 3.0 * QUICK.service_ms, True)
    assert controller.service_ms(QUICK) == pytest.approx(3.0, rel=0.01)
    assert controller.service_ms(BEST) == pytest.approx(24.0, rel=0.05)


def test_it_follows_a_machine_that_slows_down() -> None:
    controller = warm()
    assert controller.choose(6.0, 0.0, ALL).option is GOOD
    for _ in range(40):
        controller.observe(GOOD, 2 * GOOD.service_ms, False)
    assert controller.service_ms(GOOD) == pytest.approx(8.0, rel=0.1)
    assert controller.choose(6.0, 0.0, ALL).option is QUICK


def test_what_varies_is_trusted_less() -> None:
    steady, shaky, rng = warm(), warm(), random.Random(2)
    for _ in range(200):
        steady.observe(GOOD, 4.0, True)
        shaky.observe(GOOD, 4.0 * math.exp(rng.gauss(0, 0.8)), True)
    assert steady.choose(6.0, 0.0, [GOOD]).p_late < 0.01 < shaky.choose(6.0, 0.0, [GOOD]).p_late


def test_p_late_is_the_log_normal_probability() -> None:
    controller, rng = Controller(), random.Random(3)
    for _ in range(4000):
        controller.observe(GOOD, math.exp(rng.gauss(math.log(4.0), 0.3)), True)
    # The estimates keep moving, so what is compared is loose: .5 at the median, .05 far out.
    assert controller.choose(4.0, 0.0, [GOOD]).p_late == pytest.approx(0.5, abs=0.25)
    late = sum(math.exp(rng.gauss(math.log(4.0), 0.3)) + 3.0 > 9.5 for _ in range(20_000)) / 20_000
    assert controller.choose(9.5, 3.0, [GOOD]).p_late == pytest.approx(late, abs=0.08)


def test_being_late_gets_dearer_while_too_much_is_and_cheaper_when_not() -> None:
    controller = Controller(target=0.02)
    for _ in range(1000):
        controller.observe(GOOD, None, False)
    assert controller.late_cost == LATE_COST[1]
    for _ in range(100_000):
        controller.observe(GOOD, 4.0, True)
    assert controller.late_cost == LATE_COST[0]


def test_work_that_was_not_run_teaches_no_service_time() -> None:
    controller = warm()
    before_ms = controller.service_ms(GOOD)
    controller.observe(GOOD, None, False)
    controller.observe(GOOD, 0.0, True)  # answered from what was known
    assert controller.service_ms(GOOD) == before_ms


@pytest.mark.parametrize("budget_ms", [0.0, -5.0, math.nan])
def test_a_zero_or_past_budget_is_refused_with_the_reason(budget_ms: float) -> None:
    with pytest.raises(BudgetSpent, match="no time left"):
        Controller().choose(budget_ms, 0.0, ALL)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to choose"):
        Controller().choose(5.0, 0.0, [])
    for service_ms in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="service time"):
            Alternative("x", 0.5, service_ms)
    for wrong in ({"price": -1.0}, {"idle_price": 0.2}, {"target": 0.0}):
        with pytest.raises(ValueError, match=r"must be at least 0"):
            Controller(**wrong)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(1e-3, 1e4)), min_size=1, max_size=9),
    st.floats(1e-3, 1e6),
    st.floats(0, 1e6),
)
def test_it_always_decides(
    offered: list[tuple[float, float]], budget_ms: float, wait_ms: float
) -> None:
    options = [Alternative(index, *each) for index, each in enumerate(offered)]
    choice = Controller().choose(budget_ms, wait_ms, options)
    assert choice.option in options
    assert 0 <= choice.p_late <= 1
    assert math.isfinite(choice.score)
    # Nothing that is better, quicker and more certain was passed over.
    for option in options:
        assert not (
            option.quality > choice.option.quality and option.service_ms < choice.option.service_ms
        )


def test_the_same_completions_give_the_same_choices() -> None:
    def run() -> list[str]:
        controller, rng = Controller(), random.Random(5)
        reasons = []
        for _ in range(300):
            choice = controller.choose(rng.uniform(1, 30), rng.uniform(0, 20), ALL)
            took_ms = choice.option.service_ms * rng.uniform(0.5, 2)
            controller.observe(choice.option, took_ms, rng.random() < 0.9)
            reasons.append(f"{choice.option.key} {choice.reason}")
        return reasons

    assert run() == run()
    assert len(set(run())) > 3


def test_agents_that_come_and_go_do_not_fill_the_memory() -> None:
    controller = Controller()
    for number in range(MOST_ESTIMATES + 100):
        controller.observe(Alternative(("agent", number), 1.0, 10.0), 40.0, True)
    assert len(controller._estimates) == MOST_ESTIMATES
    # A newcomer has no estimate of its own, one that was completed lately has.
    controller.observe(Alternative(("agent", MOST_ESTIMATES + 99), 1.0, 10.0), 400.0, True)
    known = Alternative(("agent", MOST_ESTIMATES + 99), 1.0, 10.0)
    assert controller.service_ms(known) > controller.service_ms(Alternative("new", 1.0, 10.0))
