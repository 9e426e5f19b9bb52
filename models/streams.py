"""The cameras of a worker: one decode thread each, and the frames under way.

Owns the threads that pull frames from sources and the frames that were announced and not dropped
yet; never runs a model. Invariants: a frame number is given once, strictly ascending per agent,
however often its camera is reopened; a frame is kept until it is dropped, unless its agent has
more than `MAX_KEPT` frames or `MAX_KEPT_BYTES` of them (the oldest go), or its camera was closed
`LINGER_S` ago; asking for one that is gone is a `Shed("frame gone")`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from models.engine import Engine
from models.images import Canvas, Pixels, Scaler
from models.wire import Box, CameraSpec, CameraState, FrameReady, ModelError, Rung, Shed

MAX_KEPT = 16
MAX_KEPT_BYTES = 64 << 20
LINGER_S = 2.0
"""How long the frames of a closed camera stay, so that those under way still end."""


class OpenSource(Protocol):
    """Open a camera: yield (CLOCK_MONOTONIC seconds, uint8[h, w, 3] BGR) until it ends.

    The iterator retries by itself, reports through `on_state(state, reason)`, and returns when
    `stop` is set or the source has ended for good.
    """

    def __call__(
        self, spec: CameraSpec, stop: threading.Event, on_state: Callable[[str, str], None]
    ) -> Iterator[tuple[float, Pixels]]: ...


@dataclass(frozen=True, eq=False)
class Frame:
    """Hold one frame; `canvas` was made for `digest`, `found` is the answer it may reuse."""

    number: int
    pixels: Pixels
    digest: str
    canvas: Canvas | None
    found: tuple[list[Box], Rung] | None

    @property
    def size_bytes(self) -> int:
        """Return what keeping it costs."""
        canvas = self.canvas.pixels if self.canvas is not None else self.pixels
        return int(self.pixels.nbytes + (canvas.nbytes if canvas is not self.pixels else 0))


class Frames:
    """Keep the announced frames of one agent and number them; outlives its camera."""

    def __init__(self) -> None:
        self._next = 0
        self._kept: dict[int, Frame] = {}  # ascending
        self._size_bytes = 0
        self._gone_s = math.inf  # when what is left of a closed camera goes
        self._lock = threading.Lock()

    def open(self, first: int) -> None:
        """Take frames of a (new) camera; their numbers are at least `first`."""
        with self._lock:
            self._next = max(self._next, first)
            self._gone_s = math.inf

    def close(self, now_s: float) -> None:
        """Keep what is under way for `LINGER_S` more."""
        with self._lock:
            self._gone_s = now_s + LINGER_S

    def announce(
        self, stop: threading.Event, make: Callable[[int], Frame], tell: Callable[[Frame], None]
    ) -> None:
        """Keep the frame that `make` returns for its number, and tell of it, unless stopped.

        All in one step, so that of two cameras (an old thread that has not ended yet) neither
        repeats a number nor tells of a lower one later.
        """
        with self._lock:
            if stop.is_set():
                return
            frame = make(self._next)
            self._next += 1
            self._kept[frame.number] = frame
            self._size_bytes += frame.size_bytes
            while len(self._kept) > MAX_KEPT or (
                self._size_bytes > MAX_KEPT_BYTES and len(self._kept) > 1
            ):
                self._remove(next(iter(self._kept)))
            tell(frame)

    def get(self, number: int) -> Frame:
        """Return a kept frame; raises Shed("frame gone")."""
        with self._lock:
            found = self._kept.get(number)
        if found is None:
            raise Shed("frame gone")
        return found

    def drop(self, number: int) -> None:
        """Let go of a frame; one that is gone already is no error."""
        with self._lock:
            self._remove(number)

    def expire(self, now_s: float) -> None:
        """Let go of everything if the camera has been closed for `LINGER_S`."""
        with self._lock:
            if now_s >= self._gone_s:
                self._kept.clear()
                self._size_bytes = 0

    def _remove(self, number: int) -> None:
        frame = self._kept.pop(number, None)
        if frame is not None:
            self._size_bytes -= frame.size_bytes


class Camera:
    """Pull frames from one source in a thread of its own and announce them."""

    def __init__(
        self,
        spec: CameraSpec,
        digest: str,
        frames: Frames,
        engine: Engine,
        open_source: OpenSource,
        on_frame: Callable[[FrameReady], None],
        on_state: Callable[[CameraState], None],
    ) -> None:
        self.spec = spec
        self.digest = digest
        self.size: tuple[int, int] | None = None  # (width, height) of the last frame
        self._frames = frames
        self._engine = engine
        self._open_source = open_source
        self._on_frame = on_frame
        self._on_state = on_state
        self._stop = threading.Event()
        self._scaler = Scaler()
        self._thread = threading.Thread(target=self._run, name=f"camera {spec.agent}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; does not wait for it. Its frames stay in `Frames`."""
        self._stop.set()

    def use(self, digest: str) -> None:
        """Answer this camera with another model from the next frame on.

        Raises ModelError when it is not loaded or does not fit; the old one stays in use then.
        """
        session = self._engine.session(digest)
        if self.size is not None:
            session.check_fits(*self.size)
        self.digest = digest

    def _run(self) -> None:
        def on_state(state: str, reason: str) -> None:
            if not self._stop.is_set():
                self._on_state(CameraState(self.spec.agent, state, reason))  # type: ignore[arg-type]

        pause_s = 0.5
        while not self._stop.is_set():
            try:
                for captured_s, pixels in self._open_source(self.spec, self._stop, on_state):
                    if self._stop.is_set():
                        return
                    self._take(captured_s, pixels)
                return
            except Exception as error:  # noqa: BLE001 - one camera's surprise must not end the others
                # A source's address may hold a password.
                text = str(error).replace(self.spec.source, "the source")
                on_state("retrying", f"unexpected {type(error).__name__}: {text}")
                self._stop.wait(pause_s)
                pause_s = min(30.0, pause_s * 2)

    def _take(self, captured_s: float, pixels: Pixels) -> None:
        """Let the ladder look at one frame, keep it, announce it."""
        agent, digest = self.spec.agent, self.digest
        height, width = pixels.shape[:2]
        self.size = (width, height)
        canvas, found = None, None
        try:
            canvas, found = self._engine.look(agent, digest, pixels, self._scaler)
        except ModelError:
            pass  # no model yet, or one that does not fit: whoever asks for an answer is told

        def tell(frame: Frame) -> None:
            age_s = max(0.0, time.monotonic() - captured_s)
            captured_ms = int((time.time() - age_s) * 1000)
            reusable = found is not None
            self._on_frame(
                FrameReady(agent, frame.number, captured_ms, captured_s, width, height, reusable)
            )

        self._frames.announce(
            self._stop, lambda number: Frame(number, pixels, digest, canvas, found), tell
        )
