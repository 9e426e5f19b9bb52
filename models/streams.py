"""The cameras of a worker: one decode thread each, and the frames under way of every agent.

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
from dataclasses import dataclass, replace
from typing import Protocol

from models.engine import Engine, View
from models.images import Pixels, Scaler
from models.wire import CameraSpec, CameraState, FrameReady, ModelError, Shed

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
    """Hold one frame, and how the model of its agent sees it (None: no model that fits)."""

    number: int
    pixels: Pixels
    view: View | None

    @property
    def size_bytes(self) -> int:
        """Return what keeping it costs."""
        canvas = self.view.canvas.pixels if self.view is not None else self.pixels
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

    def newest(self) -> Frame | None:
        """Return the last frame kept, None if there is none."""
        with self._lock:
            return self._kept[max(self._kept)] if self._kept else None

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


class Consumer:
    """One agent of a camera: the model that answers it, and its frames until it leaves."""

    def __init__(self, digest: str, frames: Frames) -> None:
        self.digest = digest
        self.frames = frames
        self.left = threading.Event()


class Camera:
    """Pull frames from one source in a thread of its own; announce each to every agent.

    Agents whose cameras differ in nothing but the agent share one: a frame is decoded once, and
    looked at once for each of their models. All methods are thread-safe.
    """

    def __init__(
        self,
        spec: CameraSpec,
        engine: Engine,
        open_source: OpenSource,
        on_frame: Callable[[FrameReady], None],
        on_state: Callable[[CameraState], None],
    ) -> None:
        self.size: tuple[int, int] | None = None  # (width, height) of the last frame
        self._spec = spec
        self._engine = engine
        self._open_source = open_source
        self._on_frame = on_frame
        self._on_state = on_state
        self._consumers: dict[str, Consumer] = {}
        self._prepared: set[str] = set()  # digests of models ready for frames of this size
        self._state = "", ""  # the last one and its reason
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._scaler = Scaler()
        self._thread = threading.Thread(target=self._run, name=f"camera {spec.agent}", daemon=True)

    @property
    def agents(self) -> list[str]:
        """Return the agents that it has now."""
        return list(self._consumers)

    def serves(self, spec: CameraSpec) -> bool:
        """Return whether the agent of a camera described so can join this one."""
        is_over = self._stop.is_set() or not self._thread.is_alive() or self._state[0] == "ended"
        return not is_over and replace(spec, agent=self._spec.agent) == self._spec

    def join(self, agent: str, digest: str, frames: Frames) -> None:
        """Announce the frames to this agent too, from the next one on; starts the first time."""
        with self._lock:
            self._consumers[agent] = Consumer(digest, frames)
            if self._state[0]:
                self._on_state(CameraState(agent, *self._state))  # type: ignore[arg-type]
        if self._thread.ident is None:
            self._thread.start()

    def leave(self, agent: str) -> None:
        """Announce no more frames to an agent; asks the thread to end with its last one.

        Does not wait for the thread. The agent's frames stay in its `Frames`.
        """
        with self._lock:
            consumer = self._consumers.pop(agent)
            if not self._consumers:
                self._stop.set()
        consumer.left.set()

    def use(self, agent: str, digest: str) -> None:
        """Answer an agent with another model from the next frame on.

        Raises ModelError when it is not loaded or does not fit; the old one stays in use then.
        """
        session = self._engine.session(digest)
        if self.size is not None:
            session.check_fits(*self.size)
        self._consumers[agent].digest = digest

    def _run(self) -> None:
        pause_s = 0.5
        while not self._stop.is_set():
            try:
                for captured_s, pixels in self._open_source(self._spec, self._stop, self._tell):
                    if self._stop.is_set():
                        return
                    self._take(captured_s, pixels)
                return
            except Exception as error:  # noqa: BLE001 - one camera's surprise must not end the others
                # A source's address may hold a password.
                text = str(error).replace(self._spec.source, "the source")
                self._tell("retrying", f"unexpected {type(error).__name__}: {text}")
                self._stop.wait(pause_s)
                pause_s = min(30.0, pause_s * 2)

    def _tell(self, state: str, reason: str) -> None:
        with self._lock:
            self._state = state, reason
            for agent in self._consumers:
                self._on_state(CameraState(agent, state, reason))  # type: ignore[arg-type]

    def _take(self, captured_s: float, pixels: Pixels) -> None:
        """Let the ladders look at one frame, keep it, announce it."""
        height, width = pixels.shape[:2]
        if self.size != (width, height):
            self.size, self._prepared = (width, height), set()
        for digest in {one.digest for one in tuple(self._consumers.values())} - self._prepared:
            self._engine.prepare(digest, width, height)  # not under the lock: it takes seconds
            self._prepared.add(digest)
        with self._lock:  # so that who has left is not given a ladder any more
            consumers = dict(self._consumers)
            agents: dict[str, list[str]] = {}
            for agent, consumer in consumers.items():
                agents.setdefault(consumer.digest, []).append(agent)
            views = {digest: self._view(digest, these, pixels) for digest, these in agents.items()}

        def announce(agent: str, consumer: Consumer, view: View | None) -> None:
            def tell(frame: Frame) -> None:
                age_s = max(0.0, time.monotonic() - captured_s)
                captured_ms = int((time.time() - age_s) * 1000)
                reusable = view is not None and view.found is not None
                self._on_frame(
                    FrameReady(
                        agent, frame.number, captured_ms, captured_s, width, height, reusable
                    )
                )

            consumer.frames.announce(
                consumer.left, lambda number: Frame(number, pixels, view), tell
            )

        for digest, these in agents.items():
            for agent in these:
                announce(agent, consumers[agent], views[digest])

    def _view(self, digest: str, agents: list[str], pixels: Pixels) -> View | None:
        try:
            return self._engine.look(agents[0], digest, pixels, self._scaler, agents[1:])
        except ModelError:
            return None  # none yet, or one that does not fit: whoever asks for an answer is told
