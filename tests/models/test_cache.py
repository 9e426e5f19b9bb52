"""The ladders of a worker's cameras: shared, bounded, evicted, forgotten; with a real network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache as once
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from models import cache, entries, sessions
from models.accelerators import AcceleratorSpec
from models.cache import FORGET_S, ReuseCache
from models.delta.onnxfile import write_model
from models.entries import Entry
from models.images import Canvas, Pixels, Scaler
from models.ladder import TTL_S, Ladder
from models.manifest import load_manifest
from models.sessions import Session, open_warm
from models.wire import Box, Rung
from tests.clips import model_file, noisy, picture
from tests.delta_nets import Net

CPU = AcceleratorSpec("cpu0", "cpu")
SCENE, OTHER = picture(seed=1), picture(seed=2)
IMAGE_BYTES = 96 * 160 * 3  # of the canvas below


@once
def detector(variant: str = "small") -> Session:
    """Return a packaged detector on canvases of 96 x 160 that reports faint boxes too."""
    model = load_manifest().variants[variant]
    changes = {"input": model.spec["input"] | {"long_side": 160}, "score_threshold": 0.002}
    return open_warm(dataclasses.replace(model, spec=model.spec | changes), CPU)


DIGEST = load_manifest().variants["small"].digest


class Camera:
    """One camera's frames, driven through a cache as the engine does it."""

    def __init__(self, held: ReuseCache, agent: str = "a", session: Session | None = None) -> None:
        self.held, self.agent, self.session = held, agent, session or detector()
        self._scaler = Scaler()

    def canvas(self, pixels: Pixels) -> Canvas:
        return self.session.canvas(pixels, self._scaler)

    def ladder(self, pixels: Pixels = SCENE) -> Ladder:
        return self.held.ladder(self.agent, self.session, self.canvas(pixels))

    def show(self, pixels: Pixels, now_s: float) -> tuple[list[Box], Rung]:
        canvas, ladder = self.canvas(pixels), self.ladder(pixels)
        found = ladder.look(canvas.pixels, now_s)
        if found is not None:
            return found
        outcome = ladder.serve(canvas.pixels, now_s)
        if outcome.afterwards is not None:
            outcome.afterwards()
        self.held.settle(now_s)
        return outcome.boxes, outcome.rung

    def record(self, now_s: float) -> dict[str, Any]:
        (found,) = (
            one
            for one in self.held.records(now_s)
            if (one["agent"], one["digest"]) == (self.agent, self.session.model.digest)
        )
        return found

    def calibrate(self, now_s: float = 1.0) -> float:
        """Change once, then hold still until the verdict; return the time of the next frame."""
        self.show(OTHER, now_s)
        for _ in range(300):
            now_s += 0.1
            self.show(SCENE, now_s)
            if self.ladder().mode in ("calibrated", "off"):
                return now_s + 0.1
        raise AssertionError(f"no verdict: {self.record(now_s)}")


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrate from the first frames on."""
    monkeypatch.setattr(cache, "CALIBRATE_AFTER", 1)


def exported(now_s: float = 15.0, agent: str = "a") -> bytes:
    """Return the entry of a camera that had its full pass at 10 s."""
    camera = Camera(ReuseCache(), agent)
    camera.show(SCENE, 10.0)
    data = camera.held.export(agent, DIGEST, now_s)
    assert data is not None
    return data


# From node to node


def test_an_exported_entry_answers_elsewhere_and_its_age_travels() -> None:
    old, new = Camera(ReuseCache()), Camera(ReuseCache())
    boxes, rung = old.show(SCENE, 10.0)
    assert (rung, len(boxes) > 5) == ("full", True)
    data = old.held.export("a", DIGEST, 15.0)
    assert data is not None
    assert new.held.adopt("a", new.session, data, 100.0)
    assert new.show(SCENE, 100.0) == (boxes, "same")
    assert new.show(SCENE, 124.9) == (boxes, "same")
    assert new.show(SCENE, 125.1)[1] == "full"
    assert new.held.counts() == {"import": 1, "same": 2, "full": 1, "frames": 3}


def test_the_noise_of_the_camera_travels() -> None:
    rng = np.random.default_rng(3)
    old, new, blind = (Camera(ReuseCache()) for _ in range(3))
    for second in range(20):
        old.show(noisy(SCENE, 10.0, rng), float(second))
    data = old.held.export("a", DIGEST, 20.0)
    assert data is not None
    entry = entries.decode("a", DIGEST, data)
    assert entry is not None
    assert entry.noise > 1
    assert new.held.adopt("a", new.session, data, 100.0)
    assert new.show(noisy(SCENE, 10.0, rng), 100.0)[1] == "gate"
    quiet = entries.encode("a", DIGEST, dataclasses.replace(entry, noise=0.0))
    assert blind.held.adopt("a", blind.session, quiet, 100.0)
    assert blind.show(noisy(SCENE, 10.0, rng), 100.0)[1] == "full"


def test_the_calibration_travels(eager: None) -> None:
    old, new = Camera(ReuseCache()), Camera(ReuseCache())
    now_s = old.calibrate()
    mine = old.record(now_s)
    assert mine["mode"] == "calibrated", mine
    data = old.held.export("a", DIGEST, now_s)
    assert data is None  # a verdict brings a setting, its first pass brings the reference
    old.show(SCENE, now_s)
    data = old.held.export("a", DIGEST, now_s)
    assert data is not None
    assert new.held.adopt("a", new.session, data, 5.0)
    theirs = new.record(5.0)
    same = ("mode", "gate", "level", "target")
    assert [theirs[key] for key in same] == [mine[key] for key in same]
    assert theirs["reason"] == "found by another node"
    assert new.show(SCENE, 5.0)[1] == "same"


def test_the_setting_that_travels_is_the_one_in_use() -> None:
    camera = Camera(ReuseCache())
    data = edited(calibrated=(0.03, 1.0, 0.5, 0.97))()
    assert camera.held.adopt("a", camera.session, data, 100.0)
    record = camera.record(100.0)
    found = [record[key] for key in ("mode", "gate", "level", "target")]
    assert found == ["calibrated", 0.03, 1.0, 0.97]
    touched = SCENE.copy()
    touched[80:96, 160:176] ^= 0x60  # 0.5 % of the picture
    assert camera.show(touched, 100.1)[1] == "gate"


def test_nothing_is_exported_that_is_not_valid() -> None:
    camera = Camera(ReuseCache())
    assert camera.held.export("a", DIGEST, 1.0) is None
    camera.show(SCENE, 10.0)
    assert camera.held.export("b", DIGEST, 10.0) is None
    assert camera.held.export("a", "ff" * 32, 10.0) is None
    assert camera.held.export("a", DIGEST, 10.0 + TTL_S) is None
    assert camera.held.export("a", DIGEST, 9.0 + TTL_S) is not None


def test_a_valid_reference_of_our_own_is_never_replaced() -> None:
    camera = Camera(ReuseCache())
    mine = camera.show(OTHER, 50.0)[0]
    before = camera.held.records(51.0)
    assert not camera.held.adopt("a", camera.session, exported(), 51.0)
    assert camera.held.records(51.0) == before
    assert camera.show(OTHER, 51.0) == (mine, "same")
    assert camera.held.adopt("a", camera.session, exported(), 50.0 + TTL_S)
    assert camera.show(SCENE, 51.0 + TTL_S)[1] == "same"


def edited(**changes: Any) -> Callable[[], bytes]:
    """Return how to make an entry, valid but for some fields."""

    def make() -> bytes:
        entry = entries.decode("a", DIGEST, exported())
        assert entry is not None
        return entries.encode("a", DIGEST, dataclasses.replace(entry, **changes))

    return make


BOX = [0.1, 0.1, 0.2, 0.2, 0.9, 0]
REFUSED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "not MessagePack": lambda: entries.checked(b"\xc1" * 40),
    "no entry": lambda: entries.checked(msgpack.packb([1, 2])),
    "truncated": lambda: exported()[:-9],
    "trailing": lambda: exported() + b"\0",
    "of another agent": lambda: exported(agent="b"),
    "of another digest": lambda: entries.encode("a", "ff" * 32, edited_entry()),
    "negative age": edited(age_s=-1.0),
    "age is no number": edited(age_s=float("nan")),
    "loud": edited(noise=1e9),
    "wider than its canvas": edited(width=161),
    "no area": edited(width=0),
    "score above 1": edited(boxes=[[*BOX[:4], 1.5, 0]]),
    "endless class": edited(boxes=[[*BOX[:5], float("inf")]]),
    "box without an end": edited(boxes=[BOX[:4]]),
    "too many boxes": edited(boxes=[BOX] * 1001),
    "gate wide open": edited(calibrated=(0.9, None, 1.0, 0.98)),
    "half a calibration": edited(calibrated=(0.1, None)),
}


def edited_entry() -> Entry:
    entry = entries.decode("a", DIGEST, exported())
    assert entry is not None
    return entry


@pytest.mark.parametrize("kind", REFUSED)
def test_an_entry_that_is_damaged_or_not_ours_changes_nothing(kind: str) -> None:
    held = ReuseCache()
    assert not held.adopt("a", detector(), REFUSED[kind](), 100.0)
    assert (held.records(100.0), held.size_bytes) == ([], 0)
    assert held.counts() == {"import refused": 1}


def test_an_entry_too_old_brings_nothing() -> None:
    camera = Camera(ReuseCache())
    assert not camera.held.adopt("a", camera.session, edited(age_s=TTL_S)(), 100.0)
    assert camera.held.size_bytes == 0
    assert camera.show(SCENE, 100.0)[1] == "full"


def test_an_entry_of_a_geometry_that_the_model_never_makes_is_refused() -> None:
    held, pixels = ReuseCache(), np.zeros((128, 160, 3), np.uint8)
    assert not held.adopt("a", detector(), edited(pixels=pixels)(), 100.0)
    assert (held.records(100.0), held.size_bytes) == ([], 0)


def test_an_entry_of_another_geometry_does_not_end_ours() -> None:
    camera = Camera(ReuseCache())
    mine = camera.show(SCENE, 50.0)[0]
    upright = Camera(ReuseCache())
    upright.show(picture(192, 320), 10.0)
    data = upright.held.export("a", DIGEST, 10.0)
    assert data is not None
    camera.held.adopt("a", camera.session, data, 51.0)
    assert camera.show(SCENE, 51.0) == (mine, "same")


# Memory


def test_memory_stays_under_the_limit_and_who_saves_nothing_goes_first() -> None:
    held = ReuseCache(limit_bytes=2 * IMAGE_BYTES + IMAGE_BYTES // 2)
    calm, still, busy = (Camera(held, agent) for agent in ("calm", "still", "busy"))
    for turn in range(12):
        now_s = 0.1 * turn
        for camera in (calm, still):
            camera.show(SCENE, now_s)
        if turn:
            busy.show(picture(seed=turn), now_s)
        assert held.size_bytes <= held.limit_bytes
    assert held.stats["evicted"] >= 11  # a newcomer might have been better, and is let in once
    assert {one["agent"] for one in held.records(2.0) if one["size_bytes"]} == {"calm", "still"}
    assert busy.record(2.0)["rungs"]["full"] == 11
    assert all(camera.record(2.0)["rungs"]["same"] >= 9 for camera in (calm, still))


def test_a_newcomer_takes_the_place_of_what_saves_less_than_usual() -> None:
    held = ReuseCache(limit_bytes=2 * IMAGE_BYTES)
    often, seldom, new = (Camera(held, agent) for agent in ("often", "seldom", "new"))
    seldom.show(SCENE, 0.0)
    for turn in range(20):
        often.show(SCENE, 0.1 * turn)
    seldom.show(SCENE, 2.0)
    new.show(SCENE, 2.0)
    assert {one["agent"] for one in held.records(2.0) if one["size_bytes"]} == {"often", "new"}


def test_what_lets_go_keeps_its_calibration(eager: None) -> None:
    held = ReuseCache()
    camera = Camera(held)
    now_s = camera.calibrate()
    camera.show(SCENE, now_s)
    before = camera.record(now_s)
    held.limit_bytes = 0
    held.settle(now_s)
    after = camera.record(now_s)
    assert (held.size_bytes, after["age_s"]) == (0, None)
    same = ("mode", "gate", "level", "reason")
    assert [after[key] for key in same] == [before[key] for key in same]


# Which ladders there are


def test_holding_is_told_once_when_it_begins_and_once_when_it_ends() -> None:
    told: list[tuple[str, str, bool]] = []
    held = ReuseCache(on_change=lambda one: told.append((one.agent, one.digest, one.held)))
    camera, other = Camera(held), Camera(held, "b")
    for second in range(4):
        camera.show(picture(seed=second), float(second))  # every one a refresh
    other.show(SCENE, 4.0)
    assert told == [("a", DIGEST, True), ("b", DIGEST, True)]
    held.expire(32.9)
    assert len(told) == 2
    held.expire(33.0)
    assert told[2:] == [("a", DIGEST, False)]
    held.forget(agent="b")
    held.expire(99.0)
    assert told[3:] == [("b", DIGEST, False)]


def test_a_swap_of_the_model_starts_cold() -> None:
    held = ReuseCache()
    small, large = Camera(held), Camera(held, session=detector("large"))
    small.show(SCENE, 1.0)
    assert large.show(SCENE, 1.1)[1] == "full"
    held.forget(digest=DIGEST)
    assert [one["digest"] for one in held.records(1.2)] == [large.session.model.digest]
    assert held.export("a", DIGEST, 1.2) is None
    assert large.show(SCENE, 1.2)[1] == "same"
    assert small.show(SCENE, 1.3)[1] == "full"


def test_references_expire_soon_and_calibrations_late(eager: None) -> None:
    held = ReuseCache()
    camera = Camera(held)
    now_s = camera.calibrate()
    camera.show(SCENE, now_s)
    held.expire(now_s + TTL_S)
    assert held.size_bytes == 0
    assert camera.record(now_s + TTL_S)["mode"] == "calibrated"
    held.expire(now_s + FORGET_S)
    assert len(held.records(now_s)) == 1
    held.expire(now_s + FORGET_S + 1)
    assert held.records(now_s) == []


def test_one_camera_at_a_time_is_calibrated(eager: None) -> None:
    held = ReuseCache()
    first, second = Camera(held, "first"), Camera(held, "second")
    seen = set()
    for turn in range(300):
        for camera in (first, second):
            moves = camera.ladder().mode == "strict" and turn % 2
            camera.show(OTHER if moves else SCENE, 1 + 0.1 * turn)
        modes = tuple(camera.ladder().mode for camera in (first, second))
        assert modes.count("calibrating") <= 1
        seen.add(modes)
        if modes == ("calibrated", "calibrated"):
            break
    assert {("calibrating", "strict"), ("calibrated", "calibrating")} <= seen


def test_a_camera_that_changes_its_size_starts_cold_and_leaves_nothing() -> None:
    camera = Camera(ReuseCache())
    camera.show(SCENE, 1.0)
    upright = picture(192, 320)
    assert camera.show(upright, 1.1)[1] == "full"
    assert camera.record(1.2)["canvas"] == [160, 96]
    assert camera.held.size_bytes == IMAGE_BYTES
    assert camera.show(upright, 1.2)[1] == "same"
    assert camera.show(SCENE, 1.3)[1] == "full"
    letterboxed = picture(320, 176)  # the same canvas, less of it covered
    assert camera.canvas(letterboxed).pixels.shape == camera.canvas(SCENE).pixels.shape
    assert camera.show(letterboxed, 1.4)[1] == "full"


def test_a_model_that_cannot_run_sparse_keeps_the_other_rungs_and_says_why(tmp_path: Path) -> None:
    net = Net()  # every pixel depends on the mean of all
    x = net.add("Sub", "image", net.add("GlobalAveragePool", "image"))
    x = net.add("Reshape", net.conv(x, 5, 16, 16, (0,) * 4), net.constant([1, 5, -1], np.int64))
    data = write_model(net.model(net.add("Transpose", x, perm=(0, 2, 1))))
    model = model_file(tmp_path / "global.onnx", data, name="image")
    camera = Camera(ReuseCache(), session=open_warm(model, CPU))
    assert camera.show(SCENE, 1.0)[1] == "full"
    assert camera.show(SCENE, 1.1)[1] == "same"
    record = camera.record(1.2)
    assert (record["executor"], record["level"]) == ("", None)
    assert "GlobalAveragePool" in record["refusal"]


def test_a_fault_in_the_analysis_costs_no_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*args: object) -> None:
        raise KeyError("layer")

    monkeypatch.setattr(sessions, "Differential", faulty)
    model = load_manifest().variants["small"]
    camera = Camera(ReuseCache(), session=open_warm(model, CPU))
    assert camera.show(SCENE, 1.0)[1] == "full"
    assert camera.show(SCENE, 1.1)[1] == "same"
    assert "KeyError('layer')" in camera.record(1.2)["refusal"]
