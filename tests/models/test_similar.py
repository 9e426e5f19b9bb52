"""Answers of similar crops are reused when checks have shown that they agree, else never."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.similar import (
    CHECKS_TO_RELAX,
    FIRST_MEAN,
    MEAN_STEP,
    Floats,
    SimilarAnswers,
    SimilarityLimit,
    SimilarPolicy,
    pooled,
    wilson,
)

WIDTH = 32
FRAME_S = 0.1
TARGET = SimilarPolicy().target


class World:
    """Objects that look much alike: a large common part, a small one of their own, noise."""

    def __init__(self, seed: int, objects: int = 8, noise: float = 0.3) -> None:
        self.rng = np.random.default_rng(seed)
        self._common = self.rng.uniform(0.5, 2, WIDTH)
        self._own = self.rng.normal(0, 1, (objects, WIDTH)) / WIDTH**0.5
        self._noise = noise / WIDTH**0.5
        self.now_s = 0.0

    def crop(self) -> tuple[int, Floats]:
        """Return an object at random and a feature of it; a tenth of a second passes."""
        self.now_s += FRAME_S
        at = int(self.rng.integers(len(self._own)))
        noise = self.rng.normal(0, self._noise, WIDTH)
        return at, (self._common + self._own[at] + noise).astype(np.float32)


@dataclass
class Tally:
    """What came of looking up crops one after the other, as a pipeline does."""

    answers: SimilarAnswers[int]
    hits: int = 0
    wrong: int = 0
    limits: list[float | None] = field(default_factory=list)

    def step(self, feature: Floats, label: int, now_s: float) -> None:
        """Look a crop up; run the "model" (its label) where needed."""
        self.answers.observe(feature)
        found = self.answers.lookup(feature, now_s)
        if found is not None:
            self.hits += 1
            self.wrong += found.answer != label
        if found is not None and found.is_audit:
            self.answers.audit(found.answer == label)
        if found is None or found.is_audit:
            self.answers.store(feature, label, now_s)
        self.limits.append(self.answers.limit)


def learnt(seed: int, policy: SimilarPolicy | None = None) -> tuple[World, Tally]:
    """Return a world whose objects can be told apart, and answers that have learnt so."""
    world, tally = World(seed), Tally(SimilarAnswers(np.random.default_rng(seed), policy))
    for _ in range(600):
        label, feature = world.crop()
        tally.step(feature, label, world.now_s)
    assert tally.answers.limit is not None
    return world, tally


# --- what reuse is worth -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_noisy_duplicates_are_reused_and_agree(seed: int) -> None:
    world, tally = learnt(seed)
    tally.hits = tally.wrong = 0
    for _ in range(2000):
        label, feature = world.crop()
        tally.step(feature, label, world.now_s)
    assert tally.hits > 1000
    assert tally.wrong <= (1 - TARGET) * tally.hits


def test_it_starts_off_and_never_answers_before_the_evidence() -> None:
    world, answers = World(1), SimilarAnswers[int](np.random.default_rng(1))
    for _ in range(SimilarPolicy().least_checks):
        label, feature = world.crop()
        answers.observe(feature)
        assert answers.lookup(feature, world.now_s) is None
        assert answers.limit is None
        answers.store(feature, label, world.now_s)
        assert answers.lookup(feature, world.now_s) is None


@pytest.mark.parametrize("seed", range(4))
def test_a_label_that_the_features_do_not_show_is_never_reused(seed: int) -> None:
    world, tally = World(seed), Tally(SimilarAnswers(np.random.default_rng(seed)))
    for _ in range(3000):
        _, feature = world.crop()
        tally.step(feature, int(world.rng.integers(2)), world.now_s)
    assert tally.hits == 0
    assert set(tally.limits) == {None}


@pytest.mark.parametrize("seed", range(4))
def test_a_hidden_label_that_changes_slowly_is_not_reused_either(seed: int) -> None:
    """Against the frame before it agrees in 98 of 100 checks; within a TTL it does not."""
    world, tally = World(seed), Tally(SimilarAnswers(np.random.default_rng(seed)))
    for _ in range(3000):
        _, feature = world.crop()
        tally.step(feature, int(world.now_s / 5) % 2, world.now_s)
    assert tally.hits == 0


def test_features_too_close_to_tell_apart_stay_off() -> None:
    world, tally = World(3, noise=3.0), Tally(SimilarAnswers(np.random.default_rng(3)))
    for _ in range(2000):
        label, feature = world.crop()
        tally.step(feature, label, world.now_s)
    assert tally.wrong <= 5


def test_the_mean_separates_what_the_raw_cosine_does_not() -> None:
    world = World(5)
    crops = [world.crop() for _ in range(400)]
    labels = np.array([label for label, _ in crops])
    features = np.stack([feature for _, feature in crops]).astype(np.float64)
    same = labels[:, None] == labels[None]
    others = ~np.eye(len(labels), dtype=bool)

    def cosines(rows: np.typing.NDArray[np.float64]) -> np.typing.NDArray[np.float64]:
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        product: np.typing.NDArray[np.float64] = unit @ unit.T
        return product

    raw, centred = cosines(features), cosines(features - features.mean(axis=0))
    # A raw limit anywhere in the literature's range takes every object for every other.
    assert raw[~same].min() > 0.85
    assert np.median(centred[same & others]) > 0.8
    assert np.quantile(centred[~same], 0.99) < 0.75
    tally = Tally(SimilarAnswers(np.random.default_rng(5)))
    for index in range(400):
        tally.step(features[index].astype(np.float32), int(labels[index]), index * FRAME_S)
    limit = tally.answers.limit
    assert limit is not None
    assert limit < 0.95  # on raw cosines this limit would reuse any answer
    assert (raw[~same] > limit).mean() > 0.5
    assert tally.wrong <= 3


def test_a_drift_is_noticed_and_switches_off() -> None:
    world, tally = learnt(7)
    tally.hits = 0
    crops = 0
    while tally.answers.limit is not None:
        _, feature = world.crop()
        tally.step(feature, int(world.rng.integers(2, 10)), world.now_s)
        crops += 1
        assert crops < 3000, "an answer that is wrong most of the time goes on being reused"
    assert tally.answers.breaches >= 1
    before = tally.hits
    for _ in range(1000):
        _, feature = world.crop()
        tally.step(feature, int(world.rng.integers(2, 10)), world.now_s)
    assert tally.hits == before


def test_after_a_drift_it_learns_again() -> None:
    world, tally = learnt(8)
    for _ in range(3000):
        _, feature = world.crop()
        tally.step(feature, int(world.rng.integers(9)), world.now_s)
    assert tally.answers.limit is None
    # The mean and the evidence of the bad time fade; the world is as before again.
    for _ in range(4000):
        label, feature = world.crop()
        tally.step(feature, label, world.now_s)
    tally.hits = tally.wrong = 0
    for _ in range(1000):
        label, feature = world.crop()
        tally.step(feature, label, world.now_s)
    assert tally.hits > 500
    assert tally.wrong <= (1 - TARGET) * tally.hits


def test_what_was_stored_before_the_mean_moved_is_still_found() -> None:
    world, tally = learnt(9)
    label, kept = world.crop()
    now_s = world.now_s
    tally.answers.store(kept, label, now_s)
    for _ in range(2 * MEAN_STEP):
        _, feature = world.crop()
        tally.answers.observe(feature + np.float32(0.4))
    found = tally.answers.lookup(kept, now_s)
    assert found is not None
    assert found.similarity > 0.9999
    assert found.answer == label


def test_audits_are_as_frequent_as_asked() -> None:
    world, tally = learnt(10, SimilarPolicy(audit_share=0.1))
    hits, audits = tally.answers.hits, tally.answers.audits
    for _ in range(2000):
        label, feature = world.crop()
        tally.step(feature, label, world.now_s)
    share = (tally.answers.audits - audits) / (tally.answers.hits - hits)
    assert 0.07 < share < 0.13


def test_the_same_seed_gives_the_same_answers() -> None:
    one, two = (learnt(11)[1] for _ in range(2))
    assert (one.hits, one.limits) == (two.hits, two.limits)


# --- the limit ---------------------------------------------------------------------------------


def degrees(value: float) -> float:
    return float(np.cos(np.radians(value)))


def test_the_bound_is_wilsons() -> None:
    low, high = wilson([81, 80, 50, 0, 0], [81, 80, 100, 10, 0], 1.2816)
    assert low[0] > 0.98 > low[1]
    assert (low[2], high[2]) == pytest.approx((0.4364, 0.5636), abs=1e-4)
    assert (low[3], high[3]) == pytest.approx((0.0, 0.1411), abs=1e-4)
    assert (low[4], high[4]) == (0, 1)


def test_the_limit_is_the_widest_angle_that_the_evidence_bears() -> None:
    limit = SimilarityLimit(SimilarPolicy())
    for index in range(300):
        limit.check(degrees(5.5 + index % 3), agreed=True)
    assert limit.degrees == 8
    for index in range(6):
        limit.check(degrees(12.5), agreed=index % 2 == 0)
    assert limit.degrees == 8
    for _ in range(200):
        limit.check(degrees(20.5), agreed=True)  # sure ones beyond do not pay for those before
    assert limit.degrees == 8


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(-1, 1), st.booleans()), max_size=200),
    st.integers(1, 120),
)
def test_a_limit_always_has_the_evidence_for_it(
    checks: list[tuple[float, bool]], least: int
) -> None:
    policy = SimilarPolicy(target=0.8, least_checks=least)
    limit = SimilarityLimit(policy)
    for count in range(len(checks)):
        limit.check(*checks[count])
        if limit.degrees:
            near = [ok for cosine, ok in checks[: count + 1] if cosine > degrees(limit.degrees)]
            assert len(near) >= least
            assert sum(near) / len(near) > policy.target


def test_a_breach_tightens_a_second_switches_off() -> None:
    limit = SimilarityLimit(SimilarPolicy())
    for index in range(400):
        limit.check(degrees(0.5 + index % 20), agreed=True)
    assert limit.degrees == 20
    limit.audit(agreed=False)
    assert limit.degrees == 20, "one wrong answer of one is no evidence yet"
    limit.audit(agreed=False)
    assert (limit.degrees, limit.is_tightened) == (10, True)
    limit.check(degrees(3), agreed=True)
    assert limit.degrees == 10
    limit.audit(agreed=False)
    limit.audit(agreed=False)
    assert (limit.degrees, limit.is_tightened, limit.breaches) == (0, False, 2)
    limit.check(degrees(3), agreed=True)
    assert limit.degrees == 0, "the old evidence is gone"


def test_a_limit_that_was_tightened_relaxes_with_fresh_evidence() -> None:
    limit = SimilarityLimit(SimilarPolicy())
    for index in range(400):
        limit.check(degrees(0.5 + index % 20), agreed=True)
    limit.audit(agreed=False)
    limit.audit(agreed=False)
    for index in range(CHECKS_TO_RELAX):
        assert limit.degrees == 10
        limit.check(degrees(0.5 + index % 20), agreed=True)
    assert (limit.degrees, limit.is_tightened) == (20, False)


def test_audits_that_agree_as_often_as_asked_are_no_breach() -> None:
    limit = SimilarityLimit(SimilarPolicy())
    for index in range(1000):
        limit.check(degrees(1.5), agreed=True)
        limit.audit(agreed=index % 50 != 49)
    assert (limit.breaches, limit.degrees) == (0, 2)


# --- what is kept ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.lists(st.floats(0, 8), min_size=20, max_size=80))
def test_nothing_older_than_the_ttl_is_answered(seed: int, waits_s: list[float]) -> None:
    world = World(seed, objects=2, noise=0.1)
    policy = SimilarPolicy(ttl_s=5, target=0.2, least_checks=1, audit_share=0)
    answers = SimilarAnswers[tuple[int, float]](
        np.random.default_rng(seed), policy, same=lambda one, other: one[0] == other[0]
    )
    now_s = 0.0
    for wait_s in [0.05] * 150 + waits_s:
        now_s += wait_s
        label, feature = world.crop()
        answers.observe(feature)
        found = answers.lookup(feature, now_s)
        if found is None:
            answers.store(feature, (label, now_s), now_s)
        else:
            assert 0 <= now_s - found.answer[1] <= policy.ttl_s
    assert answers.hits


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=150), st.integers(200, 6000))
def test_entries_and_bytes_are_bounded(sizes: list[int], limit_bytes: int) -> None:
    policy = SimilarPolicy(entries=20, size_bytes=limit_bytes, ttl_s=1e6)
    answers, world = SimilarAnswers[int](np.random.default_rng(0), policy), World(2)
    for _ in range(FIRST_MEAN):
        answers.observe(world.crop()[1])
    for size in sizes:
        label, feature = world.crop()
        answers.store(feature, label, world.now_s, size)
        assert answers.size_bytes <= limit_bytes
        assert len(answers) <= 20
    assert len(answers) > 0 or min(sizes) + 4 * WIDTH > limit_bytes - 40


def test_the_least_recently_used_goes_first() -> None:
    policy = SimilarPolicy(entries=3, ttl_s=100, target=0.2, least_checks=1)
    answers, world = SimilarAnswers[int](np.random.default_rng(0), policy), World(2, objects=4)
    kinds: dict[int, Floats] = {}
    for _ in range(FIRST_MEAN):
        label, feature = world.crop()
        kinds[label] = feature
        answers.observe(feature)
    for now_s in range(0, 400, 20):
        answers.store(kinds[0], 0, now_s)  # teaches that equals agree
    for label in (0, 1, 2):
        answers.store(kinds[label], label, 400)
    assert answers.lookup(kinds[0], 401) is not None
    answers.store(kinds[3], 3, 402)
    found = [answers.lookup(kinds[label], 403) for label in range(4)]
    assert [one.answer if one else None for one in found] == [0, None, 2, 3]


def test_old_entries_give_their_bytes_back() -> None:
    world, tally = learnt(3, SimilarPolicy(ttl_s=10))
    many = len(tally.answers)
    label, feature = world.crop()
    tally.answers.store(feature, label, world.now_s + 100)
    assert many > 1 == len(tally.answers)
    assert tally.answers.size_bytes == 4 * WIDTH + 32 + 64


# --- bad input ---------------------------------------------------------------------------------


def test_features_that_cannot_be_compared_are_refused() -> None:
    answers = SimilarAnswers[int](np.random.default_rng(0))
    good = np.ones(4, np.float32)
    answers.observe(good)
    for bad in (np.ones(5), np.ones((2, 2)), np.zeros(0), np.array([1, 2, np.nan, 4])):
        wrong = bad.astype(np.float32)
        for call in (
            lambda: answers.observe(wrong),  # noqa: B023 - called at once
            lambda: answers.lookup(wrong, 0),  # noqa: B023
            lambda: answers.store(wrong, 1, 0),  # noqa: B023
        ):
            with pytest.raises(ValueError, match=r"a feature of shape|not finite"):
                call()
    with pytest.raises(ValueError, match="hold no feature of 4 numbers"):
        SimilarAnswers[int](np.random.default_rng(0), SimilarPolicy(size_bytes=40)).observe(good)


def test_equal_features_have_no_direction_and_no_answer() -> None:
    tally = Tally(SimilarAnswers(np.random.default_rng(0)))
    for index in range(500):
        tally.step(np.ones(8, np.float32), 1, index * FRAME_S)
    assert tally.hits == 0


@pytest.mark.parametrize(
    "wrong", [{"target": 1.0}, {"audit_share": 2.0}, {"ttl_s": 0.0}, {"entries": 0}, {"z": 0.0}]
)
def test_a_policy_that_means_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"shares of 1|above 0"):
        SimilarPolicy(**wrong)  # type: ignore[arg-type]


def test_rows_are_pooled_to_mean_and_maximum() -> None:
    rows = np.array([[1, 5], [3, -1]], np.float32)
    assert pooled(rows).tolist() == [2, 2, 3, 5]
    assert pooled(rows).dtype == np.float32
    for bad in (np.zeros((0, 3), np.float32), np.zeros(3, np.float32)):
        with pytest.raises(ValueError, match="cannot be pooled"):
            pooled(bad)
