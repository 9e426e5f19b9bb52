"""Signatures of scenes: what must not move them, and what must."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_node.placement.fetch import NEAR_BITS
from models.images import Pixels
from models.scene import distance, signature
from tests.clips import noisy, picture

SCENES = st.integers(0, 1000)
JITTER_BITS = 4


def scene(seed: int) -> Pixels:
    """Return a picture with room for brightness on either side: 70 to 155 grey levels."""
    return (picture(640, 384, seed).astype(np.uint16) // 2 + 50).astype(np.uint8)


@given(SCENES, st.floats(0.8, 1.2), st.integers(-30, 30), st.floats(0, 4))
def test_light_gain_and_noise_move_few_bits(
    seed: int, gain: float, light: int, sigma: float
) -> None:
    rng = np.random.default_rng(seed)
    seen = np.rint(scene(seed) * gain + light).astype(np.uint8)
    assert distance(signature(scene(seed)), signature(noisy(seen, sigma, rng))) <= JITTER_BITS


@given(SCENES, st.sampled_from([1, 2, 3]))
def test_size_moves_few_bits(seed: int, part: int) -> None:
    assert distance(signature(scene(seed)), signature(scene(seed)[::part, ::part])) <= JITTER_BITS


def test_other_scenes_are_told_apart() -> None:
    known = [signature(scene(seed)) for seed in range(40)]
    apart = [distance(one, other) for i, one in enumerate(known) for other in known[:i]]
    assert np.mean([bits > NEAR_BITS for bits in apart]) > 0.95


def test_a_person_who_enters_does_not_make_it_another_scene() -> None:
    image = scene(1)
    image[150:350, 300:380] = 30
    assert 0 < distance(signature(scene(1)), signature(image)) <= NEAR_BITS


@given(st.integers(1, 20), st.integers(1, 20))
def test_any_size_has_a_signature(height: int, width: int) -> None:
    assert 0 <= signature(np.full((height, width, 3), 7, np.uint8)) < 1 << 64
