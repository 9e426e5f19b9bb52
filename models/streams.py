"""The cameras of a worker: one decode thread each, and the few frames it keeps.

Owns the threads that pull frames from sources and the last `KEPT_FRAMES` frames of each camera;
never runs a model. Invariant: a frame number is given once, ascending per camera; a frame is
either kept or gone, and asking for one that is gone is a `Shed("frame gone")`.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from models.cache import Entry, View
from models.engine import Engine
from models.images import Pixels, Scaler
from models.wire import CameraSpec, CameraState, FrameReady, ModelError, Rung, Shed

KEPT_FRAMES = 4


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
    """Hold one frame; `view` was made for `digest`, `found` is the entry that answers it."""

    number: int
    pixels: Pixels
    digest: str
    view: View | None
    found: tuple[Entry, Rung] | None


class Camera:
    """Pull frames from one source in a thread of its own and announce them."""

    def __init__(
        self,
        spec: CameraSpec,
        digest: str,
        first_frame: int,
        engine: Engine,
        open_source: OpenSource,
        on_frame: Callable[[FrameReady], None],
        on_state: Callable[[CameraState], None],
    ) -> None:
        self.spec = spec
        self.digest = digest
        self.size: tuple[int, int] | None = None  # (width, height) of the last frame
        self._next = first_frame
        self._engine = engine
        self._open_source = open_source
        self._on_frame = on_frame
        self._on_state = on_state
        self._stop = threading.Event()
        self._frames: OrderedDict[int, Frame] = OrderedDict()
        self._lock = threading.Lock()
        self._scaler = Scaler()
        self._thread = threading.Thread(target=self._run, name=f"camera {spec.agent}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end and let go of all frames; does not wait for it."""
        self._stop.set()
        with self._lock:
            self._frames.clear()

    def frame(self, number: int) -> Frame:
        """Return a kept frame; raises Shed("frame gone")."""
        with self._lock:
            found = self._frames.get(number)
        if found is None:
            raise Shed("frame gone")
        return found

    def drop(self, number: int) -> None:
        """Let go of a frame; one that is gone already is no error."""
        with self._lock:
            self._frames.pop(number, None)

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
                    self._take(captured_s, pixels)
                return
            except Exception as error:  # noqa: BLE001 - one camera's surprise must not end the others
                on_state("retrying", f"unexpected {type(error).__name__}: {error}")
                self._stop.wait(pause_s)
                pause_s = min(30.0, pause_s * 2)

    def _take(self, captured_s: float, pixels: Pixels) -> None:
        """Keep one frame, let the ladder look at it, announce it."""
        if self._stop.is_set():
            return
        agent, digest = self.spec.agent, self.digest
        height, width = pixels.shape[:2]
        self.size = (width, height)
        view, found = None, None
        try:
            view = self._engine.view(agent, digest, pixels, self._scaler)
            found = self._engine.cache.lookup(agent, digest, view, time.monotonic())
        except ModelError:
            pass  # no model yet, or one that does not fit: whoever asks for an answer is told
        frame = Frame(self._next, pixels, digest, view, found)
        self._next += 1
        with self._lock:
            if self._stop.is_set():
                return
            self._frames[frame.number] = frame
            while len(self._frames) > KEPT_FRAMES:
                self._frames.popitem(last=False)
        age_s = max(0.0, time.monotonic() - captured_s)
        captured_ms = int((time.time() - age_s) * 1000)
        self._on_frame(
            FrameReady(
                agent, frame.number, captured_ms, captured_s, width, height, found is not None
            )
        )
