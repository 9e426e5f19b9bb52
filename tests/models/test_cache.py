"""The output rungs: what is reused, what never is, and what is told of it."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.cache import OutputCache, View
from models.images import Canvas, Pixels
from tests.clips import noisy, picture

BOXES = [[0.1, 0.2, 0.3, 0.4, 0.9, 0]]
SCENE = picture()


def canvas(pixels: Pixels) -> Canvas:
    return Canvas(pixels, pixels.shape[1], pixels.shape[0])


def settled(sigma: float, seed: int = 0) -> tuple[OutputCache, np.random.Generator, View]:
    """Return a cache that knows the camera's noise and holds one answer for ("a", "d")."""
    cache, rng = OutputCache(), np.random.default_rng(seed)
    for _ in range(8):
        view = cache.observe("a", canvas(noisy(SCENE, sigma, rng)))
    cache.store("a", "d", view, BOXES, 0.0)
    return cache, rng, view


def test_same_bytes_are_answered_without_knowing_the_noise() -> None:
    cache = OutputCache()
    cache.store("a", "d", cache.observe("a", canvas(SCENE)), BOXES, 0.0)
    found = cache.lookup("a", "d", cache.observe("a", canvas(SCENE.copy())), 1.0)
    assert found is not None
    assert found[1] == "same"
    assert found[0].boxes == BOXES


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0, 3.0])
def test_noise_alone_is_no_change(sigma: float) -> None:
    cache, rng, _ = settled(sigma)
    for _ in range(40):
        view = cache.observe("a", canvas(noisy(SCENE, sigma, rng)))
        found = cache.lookup("a", "d", view, 1.0)
        assert found is not None
        assert found[1] == "gate"


@given(
    x=st.integers(0, 320 - 16),
    y=st.integers(0, 192 - 16),
    contrast=st.sampled_from([-40, -20, 20, 40]),
    channel=st.sampled_from([0, 1, 2, None]),
    sigma=st.sampled_from([0.0, 2.0]),
)
def test_a_planted_local_change_is_seen(
    x: int, y: int, contrast: int, channel: int | None, sigma: float
) -> None:
    cache, rng, _ = settled(sigma)
    changed = SCENE.astype(np.int16)
    where = (slice(y, y + 16), slice(x, x + 16), slice(None) if channel is None else channel)
    changed[where] += contrast
    pixels = noisy(np.clip(changed, 0, 255).astype(np.uint8), sigma, rng)
    assert cache.lookup("a", "d", cache.observe("a", canvas(pixels)), 1.0) is None
    assert cache.stats["miss: change"] + cache.stats["miss: thumbnail"] == 1


def test_texture_that_changes_at_equal_mean_is_seen() -> None:
    cache, rng, _ = settled(1.0)
    changed = SCENE.copy()
    checks = np.where(np.indices((24, 24)).sum(0) % 2, 30, -30)[..., None]
    changed[80:104, 160:184] = np.clip(changed[80:104, 160:184] + checks, 0, 255)
    view = cache.observe("a", canvas(noisy(changed, 1.0, rng)))
    assert cache.lookup("a", "d", view, 1.0) is None


def test_slow_drift_adds_up_against_the_reference() -> None:
    cache, rng, _ = settled(1.0)
    reused = 0
    for step in range(40):
        drifted = np.clip(SCENE.astype(np.int16) + step, 0, 255).astype(np.uint8)
        view = cache.observe("a", canvas(noisy(drifted, 1.0, rng)))
        reused += cache.lookup("a", "d", view, 1.0) is not None
    assert 0 < reused < 6


def test_a_scene_that_moves_everywhere_is_never_reused() -> None:
    cache, rng = OutputCache(), np.random.default_rng(1)
    for index in range(20):
        view = cache.observe("a", canvas(picture(seed=int(rng.integers(1 << 30)))))
        assert cache.lookup("a", "d", view, index * 0.1) is None
        cache.store("a", "d", view, BOXES, index * 0.1)


def test_never_across_digests_agents_or_geometries() -> None:
    cache, _, view = settled(1.0)
    assert cache.lookup("a", "other digest", view, 1.0) is None
    assert cache.lookup("b", "d", view, 1.0) is None
    cropped = Canvas(view.canvas.pixels, view.canvas.width - 8, view.canvas.height)
    assert cache.lookup("a", "d", View(cropped, view.means, view.noise), 1.0) is None
    taller = cache.observe("a", canvas(picture(320, 224)))
    assert cache.lookup("a", "d", taller, 1.0) is None
    assert cache.stats == {"miss: no entry": 2, "miss: geometry": 2}


def test_time_to_live_forces_a_full_pass() -> None:
    cache, _, view = settled(1.0)
    assert cache.lookup("a", "d", view, 29.9) is not None
    assert cache.lookup("a", "d", view, 30.0) is None
    cache.store("a", "d", view, BOXES, 30.0)
    assert cache.lookup("a", "d", view, 59.9) is not None


def test_holding_is_told_once_per_change_of_the_fact() -> None:
    told: list[tuple[str, str, bool]] = []
    cache = OutputCache(on_change=lambda *fact: told.append(fact))
    view = cache.observe("a", canvas(SCENE))
    for second in range(3):
        cache.store("a", "d", view, BOXES, float(second))
    cache.store("a", "e", view, BOXES, 3.0)
    cache.forget(digest="d")
    cache.expire(40.0)
    cache.expire(200.0)
    assert told == [("a", "d", True), ("a", "e", True), ("a", "d", False), ("a", "e", False)]


def test_memory_stays_bounded_and_the_oldest_goes_first() -> None:
    told: list[tuple[str, str, bool]] = []
    limit = 3 * SCENE.nbytes + SCENE.nbytes // 2
    cache = OutputCache(limit_bytes=limit, on_change=lambda *fact: told.append(fact))
    view = cache.observe("a", canvas(SCENE))
    for index in range(10):
        cache.store(f"a{index}", "d", view, BOXES, 0.0)
        held = sum(1 if fact[2] else -1 for fact in told)
        assert held <= 3
    assert told[-1] == ("a6", "d", False) or told[-2] == ("a6", "d", False)
    assert cache.size_bytes <= limit + SCENE.nbytes


def test_an_exported_entry_answers_elsewhere() -> None:
    cache, rng, _ = settled(2.0)
    data = cache.export("a", "d", 5.0)
    assert data is not None
    other = OutputCache()
    assert other.adopt("a", "d", data, 100.0)
    view = other.observe("a", canvas(noisy(SCENE, 2.0, rng)))
    found = other.lookup("a", "d", view, 100.0)
    assert found is not None
    assert found[1] == "gate"
    assert found[0].boxes == BOXES
    assert other.lookup("a", "d", view, 124.9) is not None
    assert other.lookup("a", "d", view, 125.1) is None  # its age travelled with it


def test_an_entry_that_does_not_belong_is_refused() -> None:
    cache, _, _ = settled(2.0)
    data = cache.export("a", "d", 5.0)
    assert data is not None
    other = OutputCache()
    assert not other.adopt("b", "d", data, 0.0)
    assert not other.adopt("a", "e", data, 0.0)
    assert cache.export("a", "d", 31.0) is None
    record = msgpack.unpackb(data)
    for change in (
        {"format": 2},
        {"age_s": 31.0},
        {"age_s": -1.0},
        {"canvas": [192, 328]},
        {"canvas": [1 << 20, 1 << 20]},
        {"size": [0, 0]},
        {"size": [10_000, 10]},
        {"noise": "loud"},
        {"boxes": [[0, 0, 1, 1, 2.0, 0]]},
        {"boxes": [[0, 0]]},
        {"pixels": b"nonsense"},
        {"pixels": record["pixels"][:-20]},
    ):
        assert not other.adopt("a", "d", msgpack.packb(record | change), 0.0), change
    assert other.size_bytes == 0


@given(st.data())
def test_damaged_entries_never_raise_and_never_enter(data: st.DataObject) -> None:
    cache, _, _ = settled(0.0)
    exported = cache.export("a", "d", 5.0)
    assert exported is not None
    cut = data.draw(st.integers(0, len(exported) - 1))
    other = OutputCache()
    assert not other.adopt("a", "d", exported[:cut], 0.0)
    assert not other.adopt("a", "d", data.draw(st.binary(max_size=64)), 0.0)
