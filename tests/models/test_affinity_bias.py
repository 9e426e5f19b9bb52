"""The laws of the correction by place."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.affinity.bias import HALF_LIFE_S, Bias

HERE, THERE = ("here", "cpu"), ("there", "cuda")


def residuals(seed: int, mean: float, spread: float, count: int) -> list[float]:
    rng = random.Random(seed)
    return [rng.gauss(mean, spread) for _ in range(count)]


@given(st.lists(st.floats(-5, 5), max_size=60))
def test_a_correction_stays_within_what_was_observed(values: list[float]) -> None:
    bias = Bias()
    for number, value in enumerate(values):
        bias.add(HERE, value, number / 10)
    low, high = min([0.0, *values]), max([0.0, *values])
    assert low - 1e-9 <= bias.get(HERE) <= high + 1e-9
    assert bias.get(THERE) == 0.0


def test_a_place_that_doubled_is_corrected_soon_and_others_are_not() -> None:
    bias = Bias()
    for number, (one, other) in enumerate(
        zip(residuals(1, math.log(2), 0.1, 30), residuals(2, 0.0, 0.1, 30), strict=True)
    ):
        bias.add(HERE, one, number / 10)
        bias.add(THERE, other, number / 10)
    assert bias.get(HERE) == pytest.approx(math.log(2), abs=0.12)
    assert abs(bias.get(THERE)) < 0.05


def test_noise_is_corrected_far_less_than_it_scatters() -> None:
    sizes = []
    for seed in range(20):
        bias = Bias()
        for number, value in enumerate(residuals(seed, 0.0, 0.6, 200)):
            bias.add(HERE, value, number / 10)
        sizes.append(abs(bias.get(HERE)))
    assert sum(sizes) / len(sizes) < 0.1  # the mean itself strays by .14


def test_one_stalled_task_says_little() -> None:
    bias = Bias()
    for number in range(50):
        bias.add(HERE, 0.0, number / 10)
    bias.add(HERE, math.log(1_000), 5.0)
    assert bias.get(HERE) < 0.25


def test_a_place_no_longer_observed_is_forgotten_by_and_by() -> None:
    bias = Bias()
    for number in range(50):
        bias.add(HERE, 1.0, number / 10)
    start = bias.get(HERE)
    seconds = [5.0 + second for second in range(int(20 * HALF_LIFE_S))]
    for now_s in seconds[: int(HALF_LIFE_S)]:
        bias.add(THERE, 0.0, now_s)
    assert 0.3 * start < bias.get(HERE) < 0.7 * start
    for now_s in seconds[int(HALF_LIFE_S) :]:
        bias.add(THERE, 0.0, now_s)
    assert list(bias.values) == [THERE]


def test_a_correction_fades_also_after_the_clock_was_set_back() -> None:
    bias = Bias()
    year_s = 365 * 86_400.0
    for number in range(50):
        bias.add(HERE, 1.0, year_s + number / 10)
    for second in range(int(20 * HALF_LIFE_S)):
        bias.add(THERE, 0.0, float(second))
    assert list(bias.values) == [THERE]
