"""Agreement is F1 by frames, its bounds obey the laws of bounds and count what is independent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evidence import BLOCK_FRAMES, Evidence, matched, overlap, wilson
from models.wire import Box

BOX: Box = [0.1, 0.1, 0.3, 0.5, 0.9, 0]
OTHER: Box = [0.6, 0.2, 0.8, 0.6, 0.8, 0]
Z = 1.6

shares = st.floats(0, 1)
counts = st.floats(1e-3, 1e6)
quantiles = st.floats(0.1, 4)
sides = st.floats(0, 1, width=32)


@st.composite
def boxes(draw: st.DrawFn) -> list[Box]:
    found = []
    for _ in range(draw(st.integers(0, 6))):
        x, y = sorted([draw(sides), draw(sides)]), sorted([draw(sides), draw(sides)])
        found.append([x[0], y[0], x[1], y[1], draw(sides), draw(st.integers(0, 1))])
    return found


def shifted(box: Box, by: float) -> Box:
    return [box[0] + by, box[1], box[2] + by, *box[3:]]


def bounds(agreed: float, total: float, z: float) -> tuple[float, float]:
    low, high = wilson(agreed, total, z)
    return float(low), float(high)


@given(shares, counts, quantiles)
def test_what_was_observed_lies_within_its_bounds(share: float, count: float, z: float) -> None:
    observed = share * count / count
    low, high = bounds(share * count, count, z)
    assert 0 <= low <= observed <= high <= 1


@given(shares, counts, quantiles, st.floats(1.01, 100))
def test_more_evidence_and_less_confidence_narrow_the_bounds(
    share: float, count: float, z: float, more: float
) -> None:
    low, high = bounds(share * count, count, z)
    for narrower in (
        bounds(share * count * more, count * more, z),
        bounds(share * count, count, z / more),
    ):
        assert low <= narrower[0] + 1e-9
        assert high >= narrower[1] - 1e-9


@given(shares, shares, counts, quantiles)
def test_bounds_grow_with_the_share_and_mirror_it(
    one: float, two: float, count: float, z: float
) -> None:
    less, more = sorted([one, two])
    assert bounds(less * count, count, z)[0] <= bounds(more * count, count, z)[0] + 1e-9
    assert bounds(less * count, count, z)[1] <= bounds(more * count, count, z)[1] + 1e-9
    low, high = bounds(one * count, count, z)
    assert bounds((1 - one) * count, count, z) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_without_evidence_nothing_is_known_and_all_or_none_stay_possible() -> None:
    assert bounds(0, 0, Z) == (0, 1)
    assert bounds(5, 5, Z)[1] == 1
    assert bounds(0, 5, Z)[0] == 0
    low, high = wilson([0, 1, 50], [0, 1, 100], Z)
    assert low.shape == high.shape == (3,)
    assert low[2] < 0.5 < high[2]


@given(boxes())
def test_an_answer_agrees_with_itself(found: list[Box]) -> None:
    assert matched(found, found) == len(found)
    assert Evidence().add(found, [list(box) for box in found]) == 1


@given(boxes(), boxes())
def test_matching_is_symmetric_and_never_pairs_a_box_twice(one: list[Box], two: list[Box]) -> None:
    count = matched(one, two)
    assert count <= min(len(one), len(two))
    assert count == matched(two, one)


def test_boxes_pair_by_overlap_within_a_class() -> None:
    assert overlap(BOX, BOX) == pytest.approx(1)
    assert overlap(BOX, OTHER) == 0
    assert overlap([0.0, 0.0, 0.0, 0.0, 1, 0], BOX) == 0
    assert matched([BOX], [shifted(BOX, 0.05)]) == 1  # IoU .6
    assert matched([BOX], [shifted(BOX, 0.1)]) == 0  # IoU 1/3
    assert matched([BOX], [[*BOX[:5], 1]]) == 0
    near, far = shifted(BOX, 0.01), shifted(BOX, 0.05)
    assert matched([BOX, near], [near, BOX]) == 2
    assert matched([BOX], [far, near]) == 1


def test_agreement_is_f1_over_all_frames() -> None:
    evidence = Evidence()
    assert evidence.agreement == 1
    assert evidence.bounds(Z) == (0, 1)
    assert evidence.add([BOX, OTHER], [BOX]) == pytest.approx(2 / 3)
    assert evidence.add([], []) == 1
    assert evidence.add([BOX], []) == 0
    assert evidence.agreement == pytest.approx(2 / 4)
    assert (evidence.frames, evidence.boxes) == (3, 2)


@given(st.lists(st.tuples(boxes(), boxes()), max_size=30), quantiles)
def test_the_bounds_of_f1_hold_it(frames: list[tuple[list[Box], list[Box]]], z: float) -> None:
    evidence = Evidence()
    for full, given_boxes in frames:
        evidence.add(full, given_boxes)
    low, high = evidence.bounds(z)
    assert 0 <= low <= evidence.agreement + 1e-12
    assert evidence.agreement - 1e-12 <= high <= 1


def gathered(wrong: set[int], frames: int = 40 * BLOCK_FRAMES) -> Evidence:
    evidence = Evidence()
    for index in range(frames):
        evidence.add([BOX], [OTHER] if index in wrong else [BOX])
    return evidence


def test_errors_that_come_together_count_as_what_they_are_few_independent_ones() -> None:
    spread = gathered({8 * index for index in range(32)})  # one a block
    heaped = gathered(set(range(32)))  # four blocks, all wrong
    assert spread.agreement == heaped.agreement == pytest.approx(0.9)
    assert heaped.bounds(Z)[0] < spread.bounds(Z)[0] - 0.02
    assert heaped.bounds(Z)[1] > spread.bounds(Z)[1] + 0.02
    # As if only so many boxes had been seen as there are blocks.
    assert heaped.bounds(Z)[0] == pytest.approx(bounds(36, 40, Z)[0], abs=0.01)


def test_empty_frames_are_weak_evidence() -> None:
    empty, full = Evidence(), gathered(set(), 100)
    for _ in range(100):
        empty.add([], [])
    assert empty.agreement == 1
    assert 0.5 < empty.bounds(Z)[0] < full.bounds(Z)[0]


def test_a_window_forgets_whole_blocks() -> None:
    evidence = Evidence(most_blocks=2)
    for _ in range(1000):
        evidence.add([BOX], [BOX])
    assert evidence.frames == 1000
    assert evidence.boxes <= 2 * BLOCK_FRAMES
    for _ in range(2 * BLOCK_FRAMES):
        evidence.add([BOX], [OTHER])
    assert evidence.agreement == 0
    assert evidence.bounds(Z)[1] < 0.5, "a good past must not outweigh the present"


def test_bounds_of_many_shares_at_once_are_those_of_each() -> None:
    rng = np.random.default_rng(0)
    total = rng.integers(0, 50, 20)
    agreed = rng.integers(0, total + 1)
    low, high = wilson(agreed, total, Z)
    for index in range(20):
        assert (low[index], high[index]) == bounds(agreed[index], total[index], Z)
