"""One life of a worker process: spawned, asked, watched, ended.

Owns the process, its socket and the requests under way; never restarts anything (that is
`supervision`). Invariants: every request ends exactly once, with a value or an exception; when the
process is gone, or hangs and is killed, `ended` carries the reason and whatever was under way
has got `Shed("worker died")`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from models.accelerators import AcceleratorSpec, worker_environment
from models.wire import HEADER, MAX_MESSAGE_BYTES, Message, ModelError, Shed, pack, unpack

START_LIMIT_S = 60.0
RUN_LIMIT_S = 10.0
MAX_UNSENT_BYTES = 8 << 20
FRAME_WORK = frozenset({"infer", "image", "encode"})
"""What is shed while the worker does not read; all else is rare, small, and must arrive."""

log = logging.getLogger(__name__)


class LinkEnded(Exception):
    """Say that a worker process could not be started, and why."""


class WorkerLink:
    """Talk to one worker process. Create with `spawn`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_event: Callable[[Message], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.process = process
        self.ended: asyncio.Future[str] = loop.create_future()
        self.vitals: Message = {}  # what the worker said of itself at the last heartbeat
        self._ready: asyncio.Future[None] = loop.create_future()
        self._reader = reader
        self._writer = writer
        self._on_event = on_event
        self._next_id = 1
        self._pending: dict[int, tuple[asyncio.Future[Any], int, float]] = {}  # tier, cost
        self._load: tuple[Sequence[float], int, int] = ((0.0,) * 3, 0, 0)  # waits, queue, last id
        self._load_at_s = time.monotonic()
        self._stderr: deque[str] = deque(maxlen=5)
        self._kill_reason = ""
        self._tasks = [loop.create_task(self._read()), loop.create_task(self._read_stderr())]

    @classmethod
    async def spawn(
        cls, spec: AcceleratorSpec, python: str, on_event: Callable[[Message], None]
    ) -> WorkerLink:
        """Start a worker process and wait until it serves.

        Raises LinkEnded when it does not within `START_LIMIT_S`.
        """
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise LinkEnded(f"no socket for a worker: {error.strerror}") from None
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    python,
                    "-m",
                    "edge_node.worker_main",
                    f"--fd={theirs.fileno()}",
                    f"--accelerator={json.dumps(asdict(spec))}",
                    f"--parent={os.getpid()}",
                    pass_fds=[theirs.fileno()],
                    env=worker_environment(),
                    stdin=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,
                )
            except OSError as error:
                ours.close()
                raise LinkEnded(f"{python} cannot be run: {error.strerror}") from None
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        link = cls(process, reader, writer, on_event)
        try:
            waiting: list[asyncio.Future[Any]] = [link._ready, link.ended]
            await asyncio.wait(waiting, timeout=START_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
            if not link._ready.done():
                link.kill(f"did not start within {START_LIMIT_S:g} s")
                raise LinkEnded(await link.ended)
        except asyncio.CancelledError:
            link.kill("stopped")
            await asyncio.wait([link.ended])
            raise
        return link

    async def request(self, op: str, *, cost_s: float = 0.0, **fields: Any) -> Any:
        """Send a request and return its value.

        `cost_s` is the work it is expected to queue. Raises Shed or ModelError as the worker
        says, Shed("worker died") when it ends first, Shed("queue full") when it is frame work
        and the worker does not read.
        """
        if self.ended.done():
            raise Shed("worker died")
        unsent_bytes = self._writer.transport.get_write_buffer_size()
        if op in FRAME_WORK and unsent_bytes > MAX_UNSENT_BYTES:
            raise Shed("queue full")
        number = self._next_id
        self._next_id += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[number] = (future, fields.get("tier", 3), cost_s)
        try:
            self._writer.write(pack({"op": op, "id": number, **fields}))
            return await future
        finally:
            self._pending.pop(number, None)

    def post(self, op: str, **fields: Any) -> None:
        """Send a message that has no answer."""
        if not self.ended.done():
            self._writer.write(pack({"op": op, **fields}))

    @property
    def waits_s(self) -> tuple[float, float, float]:
        """Return the predicted waits of a new task by its tier 1, 2, 3.

        As reported, aged, plus what is on its way.
        """
        reported_s, _, seen = self._load
        gone_s = time.monotonic() - self._load_at_s
        first, second, third = (max(0.0, wait_s - gone_s) for wait_s in reported_s)
        for number, (_, tier, cost_s) in self._pending.items():
            if number > seen:
                first += cost_s * (tier == 1)
                second += cost_s * (tier <= 2)
                third += cost_s
        return first, second, third

    @property
    def queue_length(self) -> int:
        """Return how many tasks waited at the last message."""
        return self._load[1]

    async def drained(self, limit_s: float) -> None:
        """Wait until the requests under way are answered, at most `limit_s`."""
        if waiting := [future for future, _, _ in self._pending.values()]:
            await asyncio.wait(waiting, timeout=limit_s)

    async def watch(self, heartbeat_s: float, hang_s: float) -> str:
        """Send heartbeats until the process ends, killing it when it hangs; return the reason.

        Missed heartbeats are counted, not timed, so that a daemon that was itself suspended
        does not blame its workers.
        """
        missed = 0
        beat: asyncio.Task[Any] | None = None
        try:
            while not self.ended.done() and missed * heartbeat_s < hang_s:
                beat = beat or asyncio.create_task(self.request("ping"))
                await asyncio.wait([self.ended], timeout=heartbeat_s)
                if not beat.done():
                    missed += 1
                elif beat.exception() is None:
                    missed, self.vitals, beat = 0, beat.result(), None
                    if self.vitals["running_s"] > RUN_LIMIT_S:
                        self.kill(f"hung: one inference ran for {self.vitals['running_s']:.0f} s")
            if not self.ended.done():
                self.kill(f"hung: no heartbeat for {hang_s:g} s")
            return await self.ended
        finally:
            if beat is not None:
                beat.cancel()
                await asyncio.gather(beat, return_exceptions=True)

    def kill(self, reason: str) -> None:
        """Kill the process; `ended` follows."""
        self._kill_reason = self._kill_reason or reason
        if self.process.returncode is None:
            try:
                self.process.send_signal(signal.SIGKILL)
            except ProcessLookupError:
                pass

    async def close(self, limit_s: float) -> None:
        """Tell the worker to leave, kill it after `limit_s`, and wait for its end."""
        self.post("stop")
        await asyncio.wait([self.ended], timeout=limit_s)
        if not self.ended.done():
            self.kill("did not leave")
            await asyncio.wait([self.ended])

    async def _read(self) -> None:
        try:
            while True:
                header = await self._reader.readexactly(HEADER.size)
                size = HEADER.unpack(header)[0]
                assert size <= MAX_MESSAGE_BYTES
                self._take(unpack(await self._reader.readexactly(size)))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except Exception as error:  # ours, but the process must not go unwatched
            log.critical("reading from a worker failed", exc_info=error)
            self.kill(f"reading from it failed: {error!r}")
        finally:
            await self._bury()

    def _take(self, message: Message) -> None:
        self._load, self._load_at_s = message["load"], time.monotonic()
        if "event" in message:
            if message["event"] == "ready":
                self._ready.set_result(None)
            elif message["event"] != "load":
                self._on_event(message)
            return
        future = self._pending.get(message["id"], (None, 0, 0.0))[0]
        if future is None or future.done():
            return  # whoever asked gave up
        if "shed" in message:
            future.set_exception(Shed(message["shed"]))
        elif "model_error" in message:
            future.set_exception(ModelError(message["model_error"]))
        else:
            future.set_result(message["value"])

    async def _bury(self) -> None:
        """Wait for the process, then say why it ended and fail what was under way."""
        if self.process.returncode is None:
            try:  # its socket is closed: it has nothing left to do
                await asyncio.wait_for(self.process.wait(), 2.0)
            except TimeoutError:
                self.kill("closed its socket but did not exit")
                await self.process.wait()
        await asyncio.wait([self._tasks[1]], timeout=1.0)
        self._tasks[1].cancel()
        self._writer.close()
        if not self.ended.done():
            self.ended.set_result(self._kill_reason or self._exit_reason())
        for future, _, _ in self._pending.values():
            if not future.done():
                future.set_exception(Shed("worker died"))

    def _exit_reason(self) -> str:
        code = self.process.returncode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return f"{how}: {self._stderr[-1]}" if self._stderr and code > 0 else how

    async def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            if text := line.decode(errors="replace").strip():
                self._stderr.append(text[:500])
