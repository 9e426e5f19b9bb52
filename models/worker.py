"""The process of one accelerator: serves the daemon over a local socket.

Owns the socket, the cameras and the engine of this process; never decides where work runs.
Invariants: every request is answered exactly once; every message carries the newest prediction
of the backlog; when the socket ends, so does the process, whatever its threads do.

Threads: this one reads requests; one infers; one per camera decodes; one handles images (JPEG,
cache transfer); a load has a thread for its duration. Whoever has an answer writes it.
"""

from __future__ import annotations

import dataclasses
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from models.accelerators import AcceleratorSpec
from models.engine import Answer, Engine, Job
from models.images import Scaler, decode_jpeg, encode_jpeg, fitted
from models.scene import signature
from models.streams import Camera, Frame, Frames, OpenSource
from models.wire import (
    ALONE,
    HEADER,
    CacheHolding,
    CameraSpec,
    CameraState,
    FrameReady,
    Inference,
    Message,
    ModelError,
    ModelFile,
    Shed,
    pack,
    unpack,
)

IMAGE_QUEUE = 32


class Worker:
    """Serve one accelerator until the socket ends."""

    def __init__(
        self, connection: socket.socket, spec: AcceleratorSpec, open_source: OpenSource
    ) -> None:
        self._connection = connection
        self._open_source = open_source
        self._sending = threading.Lock()
        self._cameras: dict[str, Camera] = {}
        self._frames: dict[str, Frames] = {}  # of closed cameras too: numbers never repeat
        self._specs: dict[str, CameraSpec] = {}  # of closed cameras too
        self._images: queue.Queue[Callable[[], None]] = queue.Queue(IMAGE_QUEUE)
        self._scaler = Scaler()
        self._seen = 0
        self._engine = Engine(
            spec, on_cache_change=self._on_cache_change, on_load_change=self._on_load_change
        )
        self._handlers: dict[str, Callable[[Message], None]] = {
            "load": self._load,
            "unload": self._unload,
            "open": self._open,
            "use": self._use,
            "close": self._close,
            "infer": self._infer,
            "image": self._image,
            "encode": self._encode,
            "drop": self._drop,
            "scene": self._scene,
            "export": self._export,
            "import": self._import,
            "ping": self._ping,
        }

    def serve(self) -> None:
        """Answer requests until the daemon says stop or is gone. Returns then."""
        threading.excepthook = _die_loudly
        self._engine.start()
        threading.Thread(target=self._work_on_images, name="images", daemon=True).start()
        self._send({"event": "ready", "pid": os.getpid()})
        while (message := self._receive()) is not None and message["op"] != "stop":
            self._seen = message.get("id", self._seen)
            try:
                self._handlers[message["op"]](message)
            except (Shed, ModelError) as error:
                self._refuse(message["id"], error)
        for agent in list(self._cameras):
            self._leave(agent)
        self._engine.stop()

    # Requests.

    def _load(self, message: Message) -> None:
        def work() -> None:
            try:
                costs_s = self._engine.load(ModelFile(**message["model"]))
            except ModelError as error:
                self._refuse(message["id"], error)
            else:
                self._reply(message["id"], costs_s)

        threading.Thread(target=work, name="load", daemon=True).start()

    def _unload(self, message: Message) -> None:
        self._engine.unload(message["digest"])
        self._reply(message["id"], None)

    def _open(self, message: Message) -> None:
        # A model that is not loaded (the successor of a worker could not load it again) is no
        # reason to have no camera: its frames carry no view until it is.
        spec = CameraSpec(**message["camera"])
        self._leave(spec.agent)
        if self._specs.get(spec.agent, spec) != spec:  # what was learned is of another camera
            self._engine.cache.forget(agent=spec.agent)
        self._specs[spec.agent] = spec
        frames = self._frames.setdefault(spec.agent, Frames())
        frames.open(message["first_frame"])
        camera = next((one for one in self._cameras.values() if one.serves(spec)), None)
        if camera is None:
            camera = Camera(spec, self._engine, self._open_source, self._on_frame, self._on_state)
        self._cameras[spec.agent] = camera
        self._reply(message["id"], None)
        camera.join(spec.agent, message["digest"], frames)

    def _use(self, message: Message) -> None:
        camera = self._cameras.get(message["agent"])
        if camera is None:
            raise ModelError(f"agent {message['agent']} has no camera on {self._engine.spec.name}")
        camera.use(message["agent"], message["digest"])
        self._reply(message["id"], None)

    def _close(self, message: Message) -> None:
        # The cache entry stays until it expires: the agent's next host may ask for it.
        if self._leave(message["agent"]):
            self._frames[message["agent"]].close(time.monotonic())
        self._reply(message["id"], None)

    def _leave(self, agent: str) -> bool:
        """Have an agent leave its camera; return whether it had one."""
        if (camera := self._cameras.pop(agent, None)) is None:
            return False
        camera.leave(agent)
        if camera.agents:
            self._engine.cache.part(agent)
        return True

    def _infer(self, message: Message) -> None:
        now_s = time.monotonic()
        agent, digest = message["agent"], message["digest"]
        frame = self._frame(message)
        view, pixels = frame.view, frame.pixels
        if view is not None and view.digest != digest:
            # What one model sees, scaled already, serves another that wants no more.
            if max(view.image.shape) >= self._engine.session(digest).long_side:
                pixels = view.image
            view = None
        reply, effort = self._answering(message["id"]), message["effort"]
        job = Job(agent, digest, pixels, view, now_s, reply, effort)
        if message["deadline_s"] <= now_s:
            raise Shed("deadline")
        if view is not None and view.found is not None:
            self._engine.answer(job, *view.found, now_s)
            return
        self._engine.submit(job, message["deadline_s"], message["tier"])

    def _image(self, message: Message) -> None:
        arrived_s = time.monotonic()
        agent, digest = message["agent"], message["digest"]
        if message["deadline_s"] <= arrived_s:
            raise Shed("deadline")
        self._engine.session(digest)

        def work() -> None:
            try:
                pixels = decode_jpeg(message["image"], self._scaler)
                view = None
                if not agent.startswith(ALONE):
                    view = self._engine.look(agent, digest, pixels, self._scaler)
                reply = self._answering(message["id"])
                job = Job(agent, digest, pixels, view, arrived_s, reply, message["effort"])
                if view is not None and view.found is not None:
                    self._engine.answer(job, *view.found, time.monotonic())
                else:
                    self._engine.submit(job, message["deadline_s"], message["tier"])
            except ValueError as error:
                self._refuse(message["id"], ModelError(f"frame of agent {agent}: {error}"))
            except ModelError as error:
                self._refuse(message["id"], error)

        self._enqueue_image(work)

    def _encode(self, message: Message) -> None:
        frame = self._frame(message)

        def work() -> None:
            height, width = frame.pixels.shape[:2]
            width, height = fitted(width, height, message["long_side"], enlarge=False)
            data = encode_jpeg(self._scaler.resize(frame.pixels, width, height))
            self._reply(message["id"], data)

        self._enqueue_image(work)

    def _drop(self, message: Message) -> None:
        if (frames := self._frames.get(message["agent"])) is not None:
            frames.drop(message["frame"])

    def _scene(self, message: Message) -> None:
        frames = self._frames.get(message["agent"])
        frame = frames.newest() if frames is not None else None
        self._reply(message["id"], signature(frame.pixels) if frame is not None else None)

    def _export(self, message: Message) -> None:
        self._enqueue_image(
            lambda: self._reply(
                message["id"],
                self._engine.cache.export(message["agent"], message["digest"], time.monotonic()),
            )
        )

    def _import(self, message: Message) -> None:
        agent, digest, data = message["agent"], message["digest"], message["data"]
        session = self._engine.session(digest)

        def work() -> None:
            try:
                taken = self._engine.cache.adopt(agent, session, data, time.monotonic())
            except ModelError as error:
                self._refuse(message["id"], error)
            else:
                self._reply(message["id"], taken)

        self._enqueue_image(work)

    def _ping(self, message: Message) -> None:
        now_s = time.monotonic()
        for frames in self._frames.values():
            frames.expire(now_s)
        self._reply(
            message["id"],
            {
                "running_s": self._engine.running_s(),
                "ladder": dict(self._engine.cache.counts()),
                "cache_bytes": self._engine.cache.size_bytes,
                "cameras": self._engine.cache.records(now_s),
            },
        )

    # Facts.

    def _on_frame(self, frame: FrameReady) -> None:
        self._send({"event": "frame", **dataclasses.asdict(frame)})

    def _on_state(self, state: CameraState) -> None:
        self._send({"event": "camera", **dataclasses.asdict(state)})

    def _on_cache_change(self, holding: CacheHolding) -> None:
        self._send({"event": "cache", **dataclasses.asdict(holding)})

    def _on_load_change(self) -> None:
        self._send({"event": "load"})

    # Plumbing.

    def _frame(self, message: Message) -> Frame:
        frames = self._frames.get(message["agent"])
        if frames is None:
            raise Shed("frame gone")
        return frames.get(message["frame"])

    def _enqueue_image(self, work: Callable[[], None]) -> None:
        try:
            self._images.put_nowait(work)
        except queue.Full:
            raise Shed("queue full") from None

    def _work_on_images(self) -> None:
        while True:
            self._images.get()()

    def _answering(self, request: int) -> Callable[[Answer], None]:
        def reply(answer: Answer) -> None:
            if isinstance(answer, Inference):
                self._reply(
                    request,
                    dataclasses.asdict(answer)
                    | {"cost_s": self._engine.cost_s(answer.digest, answer.effort)},
                )
            else:
                self._refuse(request, answer)

        return reply

    def _reply(self, request: int, value: Any) -> None:
        self._send({"id": request, "value": value})

    def _refuse(self, request: int, error: Shed | ModelError) -> None:
        if isinstance(error, Shed):
            self._send({"id": request, "shed": error.reason})
        else:
            self._send({"id": request, "model_error": str(error)})

    def _send(self, message: Message) -> None:
        message["load"] = (*self._engine.figures(), self._seen)
        data = pack(message)
        with self._sending:
            try:
                self._connection.sendall(data)
            except OSError:
                os._exit(0)  # the daemon is gone; nothing here is worth keeping

    def _receive(self) -> Message | None:
        header = self._read(HEADER.size)
        body = self._read(HEADER.unpack(header)[0]) if header else None
        return unpack(body) if body else None

    def _read(self, size_bytes: int) -> bytes | None:
        buffer = bytearray()
        while len(buffer) < size_bytes:
            try:
                part = self._connection.recv(size_bytes - len(buffer))
            except OSError:
                return None
            if not part:
                return None
            buffer += part
        return bytes(buffer)


def _die_loudly(trouble: threading.ExceptHookArgs) -> None:
    """End the process on a bug in any thread: the daemon starts a new one and says why."""
    traceback.print_exception(trouble.exc_type, trouble.exc_value, trouble.exc_traceback)
    sys.stderr.flush()
    os._exit(70)
