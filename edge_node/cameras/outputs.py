"""Send results to those who asked for them: JSON lines and MQTT.

Owns one bounded queue per output. Never slows a camera or the end of the daemon down: an output
that cannot keep up, stands still, or whose disk is full or broker away, loses its oldest results,
counts them, and recovers by itself.
"""

import asyncio
import contextlib
import json
import logging
import os
import queue
import select
import stat
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

log = logging.getLogger(__name__)

QUEUE_RESULTS = 1_000
RETRY_MIN_S = 0.5
RETRY_MAX_S = 30.0
SLOW_S = 5.0
"""A write that takes longer is a problem; it goes on all the same."""
CLOSE_S = 1.0

Result = Mapping[str, Any]
Write = Callable[[list[Result]], Awaitable[None]]


async def _nothing() -> None:
    """End an output that holds nothing open."""


class Output:
    """One consumer of results: a queue, a task that drains it, and its state in words.

    ``written`` and ``dropped`` count each result once it has left the queue.
    """

    def __init__(
        self, name: str, write: Write, end: Callable[[], Awaitable[None]] = _nothing
    ) -> None:
        self.name = name
        self.problem = ""
        self.written = 0
        self.dropped = 0
        self._write = write
        self._end = end
        self._queue: deque[Result] = deque()
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._task = asyncio.create_task(self._drain(), name=f"output {name}")

    def put(self, result: Result) -> None:
        """Queue one result; drops the oldest when full."""
        if len(self._queue) >= QUEUE_RESULTS:
            self._queue.popleft()
            self.dropped += 1
        self._queue.append(result)
        self._filled.set()
        self._emptied.clear()

    async def close(self, timeout_s: float = CLOSE_S) -> None:
        """Write what is queued, within ``timeout_s``, and stop; what is left is dropped."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._emptied.wait(), timeout_s)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._queue:
            log.warning("output %s: %d results not written", self.name, len(self._queue))
            self.dropped += len(self._queue)
            self._queue.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._end(), timeout_s)

    async def _drain(self) -> None:
        retry_s = RETRY_MIN_S
        while True:
            await self._filled.wait()
            results = list(self._queue)
            try:
                await self._watched(results)
            except Exception as error:  # noqa: BLE001 - a consumer's surprise ends neither it nor us
                self._trouble(f"{str(error) or type(error).__name__}; retrying")
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, RETRY_MAX_S)
                continue
            self.problem, retry_s = "", RETRY_MIN_S
            for result in results:  # those that overflowed meanwhile are counted already
                if self._queue and self._queue[0] is result:
                    self._queue.popleft()
                    self.written += 1
            if not self._queue:
                self._filled.clear()
                self._emptied.set()

    async def _watched(self, results: list[Result]) -> None:
        writing = asyncio.ensure_future(self._write(results))
        try:
            if not (await asyncio.wait([writing], timeout=SLOW_S))[0]:
                self._trouble(f"it has taken nothing for {SLOW_S:g} s")
            await writing
        finally:
            writing.cancel()

    def _trouble(self, what: str) -> None:
        if not self.problem:
            log.warning("output %s: %s", self.name, what)
        self.problem = f"output {self.name}: {what}"


class _Lines:
    """Write lines in a thread of its own: a pipe that nobody reads may hold it for ever.

    The thread is a daemon, and writes to the descriptor itself: neither the loop's executor nor
    a lock of ``sys.stdout`` is held at the end of the process.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._work: queue.SimpleQueue[tuple[list[Result], asyncio.Future[None]] | None] = (
            queue.SimpleQueue()
        )
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, name="json lines", daemon=True).start()

    async def write(self, results: list[Result]) -> None:
        """Append results. Raises OSError; a file holds all of them then, or none."""
        done = self._loop.create_future()
        self._work.put((results, done))
        await done

    async def end(self) -> None:
        """Let the thread end once it can."""
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            results, done = work
            error: Exception | None = None
            try:
                self._append(results)
            except Exception as trouble:  # noqa: BLE001 - raised where it is awaited
                error = trouble
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(_settle, done, error)

    def _append(self, results: list[Result]) -> None:
        rest = "".join(json.dumps(one, separators=(",", ":")) + "\n" for one in results).encode()
        if self._target == "-":
            _write_all(sys.__stdout__.fileno() if sys.__stdout__ else 1, rest)
            return
        descriptor = os.open(self._target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            before = os.fstat(descriptor)
            try:
                _write_all(descriptor, rest)
            except OSError:
                if stat.S_ISREG(before.st_mode):  # no half line, and none twice after the retry
                    os.ftruncate(descriptor, before.st_size)
                raise
        finally:
            os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # somebody made it non-blocking
            select.select([], [descriptor], [])


def _settle(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.done():
        return  # nobody waits any more
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


def json_lines(target: str) -> Output:
    """Append every result as one line of JSON to ``target``: a file, a FIFO, or "-" for stdout.

    It is opened for each write, so that log rotation may move a file at any time.
    """
    lines = _Lines(target)
    return Output("json lines", lines.write, lines.end)


def mqtt(url: str) -> Output:
    """Publish every result to ``mqtt://[user:password@]host:port/prefix`` under prefix/agent.

    User and password are percent-decoded.

    Raises:
        ValueError: the ``mqtt`` extra is not installed.
    """
    try:
        import aiomqtt
    except ImportError:
        raise ValueError("MQTT output needs the extra: pip install 'edge-node[mqtt]'") from None
    address = urlsplit(url)
    prefix = address.path.strip("/") or "edge-node"
    connected: aiomqtt.Client | None = None

    async def end() -> None:
        nonlocal connected
        client, connected = connected, None
        if client is not None:
            with contextlib.suppress(Exception):
                await client.__aexit__(None, None, None)

    async def write(results: list[Result]) -> None:
        nonlocal connected
        try:
            if connected is None:
                client = aiomqtt.Client(
                    address.hostname or "localhost",
                    address.port or 1883,
                    username=unquote(address.username) if address.username else None,
                    password=unquote(address.password) if address.password else None,
                )
                connected = await client.__aenter__()
            for result in results:
                await connected.publish(f"{prefix}/{result['agent']}", json.dumps(result))
        except Exception as error:
            await end()
            raise OSError(
                f"broker {address.hostname}: {str(error) or type(error).__name__}"
            ) from error

    return Output("mqtt", write, end)


class Outputs:
    """All outputs that the configuration asks for."""

    def __init__(self) -> None:
        self._open: list[Output] = []

    @property
    def problems(self) -> list[str]:
        """What keeps outputs from working, in words."""
        return [output.problem for output in self._open if output.problem]

    def open(self, jsonl: str, mqtt_url: str) -> None:
        """Open the outputs that are named (see :func:`json_lines` and :func:`mqtt`)."""
        if jsonl:
            self._open.append(json_lines(jsonl))
        if mqtt_url:
            try:
                self._open.append(mqtt(mqtt_url))
            except ValueError as error:
                log.error("[output] mqtt: %s", error)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return (written, dropped) results by output, since it was opened."""
        return {output.name: (output.written, output.dropped) for output in self._open}

    def put(self, result: Result) -> None:
        """Hand one result to every output."""
        for output in self._open:
            output.put(result)

    async def close(self) -> None:
        """Write what is queued and close every output; takes at most about two seconds."""
        await asyncio.gather(*(output.close() for output in self._open))
        self._open.clear()
