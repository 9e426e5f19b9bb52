"""The frames that a worker keeps, and the threads that announce them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from models import streams
from models.accelerators import AcceleratorSpec
from models.engine import Engine
from models.images import Pixels
from models.streams import LINGER_S, MAX_KEPT, Camera, Frame, Frames
from models.wire import CameraSpec, CameraState, FrameReady, Shed
from tests.clips import picture

PATIENCE_S = 20.0


def make(pixels: Pixels) -> Callable[[int], Frame]:
    return lambda number: Frame(number, pixels, None)


def announced(frames: Frames, count: int, pixels: Pixels) -> list[int]:
    told: list[Frame] = []
    for _ in range(count):
        frames.announce(threading.Event(), make(pixels), told.append)
    return [frame.number for frame in told]


def kept(frames: Frames, numbers: list[int]) -> list[int]:
    return [number for number in numbers if is_kept(frames, number)]


def is_kept(frames: Frames, number: int) -> bool:
    try:
        return frames.get(number).number == number
    except Shed as shed:
        return shed.reason != "frame gone"


def test_a_frame_stays_until_it_is_dropped_or_many_newer_ones_came() -> None:
    frames = Frames()
    numbers = announced(frames, MAX_KEPT, picture())
    assert kept(frames, numbers) == numbers
    frames.drop(3)
    frames.drop(3)
    numbers += announced(frames, 2, picture())
    assert kept(frames, numbers) == [1, 2, *range(4, MAX_KEPT + 2)]


def test_large_frames_are_bounded_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = picture()
    monkeypatch.setattr(streams, "MAX_KEPT_BYTES", 3 * pixels.nbytes)
    frames = Frames()
    numbers = announced(frames, 5, pixels)
    assert kept(frames, numbers) == [2, 3, 4]
    frames.drop(3)
    numbers += announced(frames, 1, pixels)
    assert kept(frames, numbers) == [2, 4, 5]
    huge = np.zeros((4, *pixels.shape), np.uint8)
    numbers += announced(frames, 1, huge)
    assert kept(frames, numbers) == [6]  # the newest always


def test_frames_of_a_closed_camera_linger() -> None:
    frames = Frames()
    numbers = announced(frames, 2, picture())
    frames.close(now_s=10.0)
    frames.expire(10.0 + LINGER_S - 0.01)
    assert kept(frames, numbers) == numbers
    frames.open(0)
    frames.expire(10.0 + LINGER_S)
    assert kept(frames, numbers) == numbers  # it is open again
    frames.close(now_s=20.0)
    frames.expire(20.0 + LINGER_S)
    assert kept(frames, numbers) == []
    assert announced(frames, 1, picture()) == [2]
    frames.open(7)
    assert announced(frames, 1, picture()) == [7]


def test_a_thread_that_ends_late_repeats_no_number_and_tells_of_no_lower_one() -> None:
    engine = Engine(
        AcceleratorSpec("cpu0", "cpu"),
        on_cache_change=lambda holding: None,
        on_load_change=lambda: None,
    )
    told: list[int] = []
    telling, go_on, enough = threading.Event(), threading.Event(), threading.Event()

    def on_frame(frame: FrameReady) -> None:
        if not telling.is_set():
            telling.set()
            go_on.wait(PATIENCE_S)  # as a socket makes it wait that nobody reads
        told.append(frame.frame)
        if len(told) > 20:
            enough.set()

    def source(
        spec: CameraSpec, stop: threading.Event, on_state: Callable[[str, str], None]
    ) -> Iterator[tuple[float, Pixels]]:
        while not enough.is_set():
            yield 0.0, picture()

    def on_state(state: CameraState) -> None:
        raise AssertionError(state)

    frames = Frames()
    spec = CameraSpec("a", "generated:1", fps=10)
    old, new = (Camera(spec, engine, source, on_frame, on_state) for _ in range(2))
    old.join("a", "", frames)
    assert telling.wait(PATIENCE_S)
    old.leave("a")
    threading.Timer(0.1, go_on.set).start()
    frames.open(0)  # the daemon has not heard of frame 0 yet
    new.join("a", "", frames)
    assert enough.wait(PATIENCE_S)
    new.leave("a")
    assert told[0] == 0
    assert all(low < high for low, high in itertools.pairwise(told))


def test_a_surprise_in_a_source_tells_no_address() -> None:
    engine = Engine(
        AcceleratorSpec("cpu0", "cpu"),
        on_cache_change=lambda holding: None,
        on_load_change=lambda: None,
    )
    states: list[CameraState] = []
    said = threading.Event()

    def source(
        spec: CameraSpec, stop: threading.Event, on_state: Callable[[str, str], None]
    ) -> Iterator[tuple[float, Pixels]]:
        raise RuntimeError(f"cannot cope with {spec.source}")
        yield

    def on_state(state: CameraState) -> None:
        states.append(state)
        said.set()

    spec = CameraSpec("a", "rtsp://admin:word@10.0.0.9/1", fps=10)
    camera = Camera(spec, engine, source, lambda frame: None, on_state)
    camera.join("a", "", Frames())
    assert said.wait(PATIENCE_S)
    camera.leave("a")
    assert states[0].reason == "unexpected RuntimeError: cannot cope with the source"
