"""Send results to those who asked for them: JSON lines and MQTT.

Owns one bounded queue per output. Never slows a camera down: an output that cannot keep up, or
whose disk is full or broker away, loses its oldest results, counts them, and recovers by itself.
"""

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

log = logging.getLogger(__name__)

QUEUE_RESULTS = 1_000
RETRY_MIN_S = 0.5
RETRY_MAX_S = 30.0

Result = Mapping[str, Any]
Write = Callable[[list[Result]], Awaitable[None]]


async def _nothing() -> None:
    """End an output that holds nothing open."""


class Output:
    """One consumer of results: a queue, a task that drains it, and its state in words."""

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

    async def close(self, timeout_s: float = 1.0) -> None:
        """Write what is queued, within ``timeout_s``, and stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._emptied.wait(), timeout_s)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._end()

    async def _drain(self) -> None:
        retry_s = RETRY_MIN_S
        while True:
            await self._filled.wait()
            results = list(self._queue)
            try:
                await self._write(results)
            except OSError as error:
                if not self.problem:
                    log.warning("output %s: %s; retrying", self.name, error)
                self.problem = f"output {self.name}: {error}"
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, RETRY_MAX_S)
                continue
            self.problem, retry_s = "", RETRY_MIN_S
            self.written += len(results)
            for result in results:  # those that overflowed meanwhile are gone already
                if self._queue and self._queue[0] is result:
                    self._queue.popleft()
            if not self._queue:
                self._filled.clear()
                self._emptied.set()


def json_lines(target: str) -> Output:
    """Append every result as one line of JSON to the file ``target`` ("-": standard output).

    The file is opened for each write, so that log rotation may move it at any time.
    """

    def append(results: list[Result]) -> None:
        text = "".join(json.dumps(result, separators=(",", ":")) + "\n" for result in results)
        if target == "-":
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        rest = memoryview(text.encode())
        with Path(target).open("ab", buffering=0) as file:
            whole_bytes = file.seek(0, os.SEEK_END)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                file.truncate(whole_bytes)  # no half line, and none twice after the retry
                raise

    async def write(results: list[Result]) -> None:
        await asyncio.to_thread(append, results)

    return Output("json lines", write)


def mqtt(url: str) -> Output:
    """Publish every result to ``mqtt://[user:password@]host:port/prefix`` under prefix/agent.

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
            with contextlib.suppress(aiomqtt.MqttError):
                await client.__aexit__(None, None, None)

    async def write(results: list[Result]) -> None:
        nonlocal connected
        try:
            if connected is None:
                client = aiomqtt.Client(
                    address.hostname or "localhost",
                    address.port or 1883,
                    username=address.username,
                    password=address.password,
                )
                connected = await client.__aenter__()
            for result in results:
                await connected.publish(f"{prefix}/{result['agent']}", json.dumps(result))
        except aiomqtt.MqttError as error:
            await end()
            raise OSError(f"broker {address.hostname}: {error}") from error

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

    def put(self, result: Result) -> None:
        """Hand one result to every output."""
        for output in self._open:
            output.put(result)

    async def close(self) -> None:
        """Write what is queued and close every output."""
        for output in self._open:
            await output.close()
        self._open.clear()
