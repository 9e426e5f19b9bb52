"""The write law: what one node may make the fleet take in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.clock import Instant
from gossip.config import GossipConfig
from gossip.pacing import WriteLaw

CONFIG = GossipConfig(intake_entries_per_s=300.0, write_burst=16)


def at(mono_s: float) -> Instant:
    return Instant(mono_s, 0)


def test_a_rested_node_writes_a_burst_at_once_and_then_its_share() -> None:
    law = WriteLaw(CONFIG)
    assert law.grant(16, 10, at(0))
    assert not law.grant(1, 10, at(0))
    # 300 / 3 entries a second for ten members: ten a second each
    assert law.ready_s(1, 10, at(0)) == pytest.approx(0.1)
    assert not law.grant(1, 10, at(0.09))
    assert law.grant(1, 10, at(0.11))


def test_more_than_a_burst_goes_from_a_full_bucket_and_is_paid_back() -> None:
    law = WriteLaw(CONFIG)
    assert law.grant(116, 10, at(0))
    assert law.ready_s(1, 10, at(0)) == pytest.approx(10.1)


def test_what_is_said_again_is_paid_back_before_anything_else_goes() -> None:
    law = WriteLaw(CONFIG)
    assert law.grant(6, 10, at(0))
    law.charge(18)
    assert not law.grant(0, 10, at(0))
    assert law.ready_s(0, 10, at(0)) == pytest.approx(0.8)
    assert law.ready_s(1, 10, at(0)) == pytest.approx(0.9)
    assert law.grant(0, 10, at(law.ready_s(0, 10, at(0))))


def test_whole_log_said_again_is_a_debt_of_one_burst() -> None:
    law = WriteLaw(CONFIG)
    law.charge(640)
    assert law.ready_s(0, 10, at(0)) == pytest.approx(CONFIG.write_burst / 10)
    assert law.grant(100, 10, at(60))
    owed = law.ready_s(0, 10, at(60))
    law.charge(640)
    assert law.ready_s(0, 10, at(60)) == owed, "what was granted is owed in full"


@given(st.floats(0, 1e6), st.integers(0, 700), st.integers(1, 20_000))
def test_what_is_ready_is_granted(start_s: float, debt: int, members: int) -> None:
    law = WriteLaw(CONFIG)
    law.charge(debt)
    ready_s = law.ready_s(1, members, at(start_s))
    assert law.grant(1, members, at(ready_s))


def test_without_debt_nothing_staged_goes_at_once_and_clocks_may_stand_still() -> None:
    law = WriteLaw(CONFIG)
    assert law.ready_s(0, 10, at(0)) == 0
    assert law.grant(0, 10, at(0))
    assert law.grant(16, 10, at(-5))
    assert not law.grant(16, 10, at(-5))


@given(
    st.lists(st.tuples(st.floats(0, 2), st.integers(1, 40), st.integers(1, 300)), max_size=200),
)
def test_over_any_time_no_more_than_the_share_is_granted(
    asked: list[tuple[float, int, int]],
) -> None:
    law = WriteLaw(CONFIG)
    now_s, granted = 0.0, 0
    for pause_s, entries, members in asked:
        now_s += pause_s
        if law.grant(entries, members, at(now_s)):
            granted += entries
    assert granted <= 40 + 16 + now_s * 300 / 3
