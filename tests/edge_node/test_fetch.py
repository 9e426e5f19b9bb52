"""When another node's reuse state is worth fetching, and whose."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from edge_node.placement.fetch import (
    CALIBRATION_PASSES,
    NEAR_BITS,
    Holder,
    Link,
    in_order,
    is_worth,
)

HERE, THERE = (1 << 64) - 1, 0
HOLDER = Holder(b"a" * 16, HERE, 150_000, False, 1)
HOLDERS = st.builds(
    Holder,
    st.binary(min_size=16, max_size=16),
    st.integers(0, (1 << 64) - 1),
    st.integers(1, 1 << 22),
    st.booleans(),
    st.integers(0, 1 << 48),
)
LINKS = st.builds(Link, st.floats(1e4, 1e10), st.floats(0, 2))
FULL_S = st.floats(1e-4, 10)
SCENES = st.none() | st.integers(0, (1 << 64) - 1)


@given(HOLDERS)
def test_elements_come_back(holder: Holder) -> None:
    assert Holder.from_element(holder.element()) == holder
    assert Holder.from_element([*holder.element(), "of a later version"]) == holder


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.binary() | st.text() | st.floats(),
        lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=2),
    )
)
def test_no_element_raises(element: object) -> None:
    holder = Holder.from_element(element)
    assert holder is None or Holder.from_element(holder.element()) == holder


def test_elements_of_other_versions_are_no_holders() -> None:
    element = HOLDER.element()
    for index, wrong in ((0, "a"), (1, -1), (1, 1 << 64), (2, 0), (2, True), (2, 1.5), (4, "now")):
        assert Holder.from_element([*element[:index], wrong, *element[index + 1 :]]) is None
    assert Holder.from_element(HOLDER.node) is None  # what the first version announced


def test_an_answer_alone_is_worth_a_fast_link_or_a_slow_accelerator() -> None:
    assert not is_worth(HOLDER, Link(100e6, 0.001), 0.0065, HERE)
    assert not is_worth(HOLDER, Link(100e6, 0.001), 0.029, HERE)
    assert is_worth(HOLDER, Link(1e9, 0.001), 0.029, HERE)
    assert is_worth(HOLDER, Link(100e6, 0.001), 0.3, HERE)
    assert not is_worth(HOLDER, Link(1e9, 0.001), 0.3, THERE)  # it will not hold there


def test_a_calibration_is_worth_nearly_any_link() -> None:
    calibrated = replace(HOLDER, calibrated=True)
    for scene in (None, HERE, THERE):
        assert is_worth(calibrated, Link(100e6, 0.01), 0.0065, scene)
        assert is_worth(calibrated, Link(2e6, 0.05), 0.0065, scene)
    assert not is_worth(calibrated, Link(1e6, 0.05), 0.0065, None)


@given(HOLDERS, LINKS, FULL_S, SCENES)
def test_worth_is_half_of_what_is_saved(
    holder: Holder, link: Link, full_s: float, scene: int | None
) -> None:
    passes = holder.is_near(scene) + CALIBRATION_PASSES * holder.calibrated
    fetch_s = link.fetch_s(holder.size_bytes)
    assert fetch_s >= link.rtt_s + holder.size_bytes * 8 / link.bandwidth_bps
    assert is_worth(holder, link, full_s, scene) == (fetch_s < passes * full_s / 2)


@given(HOLDERS, LINKS, FULL_S, SCENES, st.floats(1, 100))
def test_what_is_worth_it_stays_so_when_the_way_gets_shorter(
    holder: Holder, link: Link, full_s: float, scene: int | None, factor: float
) -> None:
    if is_worth(holder, link, full_s, scene):
        assert is_worth(holder, Link(link.bandwidth_bps * factor, link.rtt_s), full_s, scene)
        assert is_worth(holder, Link(link.bandwidth_bps, link.rtt_s / factor), full_s, scene)
        assert is_worth(holder, link, full_s * factor, scene)


@given(st.lists(HOLDERS, max_size=6), SCENES)
def test_those_near_come_first_then_the_newest(holders: list[Holder], scene: int | None) -> None:
    ordered = in_order(holders, scene)
    assert sorted(map(repr, ordered)) == sorted(map(repr, holders))
    keys = [(one.is_near(scene), one.since_ms) for one in ordered]
    assert keys == sorted(keys, reverse=True)


@given(st.integers(0, (1 << 64) - 1), st.sets(st.integers(0, 63)))
def test_near_is_a_matter_of_bits(scene: int, flipped: set[int]) -> None:
    holder = replace(HOLDER, signature=scene ^ sum(1 << bit for bit in flipped))
    assert holder.is_near(scene) == (len(flipped) <= NEAR_BITS)
