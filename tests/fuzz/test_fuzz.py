"""A short look at what `make fuzz` does for millions of inputs: whole, cut, flipped, trailing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, Victim, seeds

VICTIM = Victim()
SEEDS = seeds(VICTIM)


@st.composite
def mutants(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    data = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(("flip", "cut", "grow", "splice")))
        place = draw(st.integers(0, max(0, len(data) - 1)))
        if kind == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[place:]
        elif kind == "grow":
            data += draw(st.binary(max_size=40))
        elif kind == "splice":
            data[place:place] = draw(st.sampled_from(whole))[: draw(st.integers(0, 40))]
    return bytes(data)


@pytest.mark.parametrize("target", TARGETS)
@given(data=st.data())
def test_nothing_that_comes_in_raises(target: str, data: st.DataObject) -> None:
    TARGETS[target](VICTIM, data.draw(st.binary(max_size=1300) | mutants(SEEDS[target])))
