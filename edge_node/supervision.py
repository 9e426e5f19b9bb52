"""The lives of one accelerator's worker process: one after the other, until it is stopped.

Owns when a process starts and when the next one follows, with pauses that grow. Never knows what a
process is told or asked (`workers` does), nor how (`worker_link` does). Invariants: `link` has
been told everything (`prepare` has returned); however a life ends, its process is gone before the
next begins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from edge_node.worker_link import LinkEnded, WorkerLink
from models.accelerators import AcceleratorSpec
from models.wire import Message, Shed

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 30.0
HEALTHY_AFTER_S = 30.0  # a worker that lived this long is respawned without delay
LEAVE_LIMIT_S = 2.0


class Supervisor:
    """Keeps a worker process alive."""

    def __init__(
        self,
        spec: AcceleratorSpec,
        python: str,
        heartbeat_s: float,
        hang_s: float,
        prepare: Callable[[WorkerLink], Awaitable[None]],
        on_message: Callable[[Message], None],
        on_end: Callable[[str], None],
    ) -> None:
        """Prepare; nothing runs before `start`.

        `prepare` tells a new process what it has to know, and raises Shed when it dies meanwhile;
        `on_end` is called with the reason after each life, and after each failed start.
        """
        self.link: WorkerLink | None = None
        self._spec = spec
        self._python = python
        self._heartbeat_s = heartbeat_s
        self._hang_s = hang_s
        self._prepare = prepare
        self._on_message = on_message
        self._on_end = on_end
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start; return when the worker serves or its first start failed, which is retried."""
        first = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._supervise(first))
        await first

    async def stop(self, drain_s: float) -> None:
        """Wait up to `drain_s` for work under way, then end the worker for good."""
        if self.link is not None:
            await self.link.drained(drain_s)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _supervise(self, first: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        pause_s = FIRST_PAUSE_S
        try:
            while True:
                started_s = loop.time()
                try:
                    reason = await self._live(first)
                except LinkEnded as ended:
                    reason = str(ended)
                except Exception as error:  # ours, but the node must not go blind
                    log.critical("supervising %s failed", self._spec.name, exc_info=error)
                    reason = f"its supervision failed: {error!r}"
                self._on_end(reason)
                if not first.done():
                    first.set_result(None)
                if loop.time() - started_s > HEALTHY_AFTER_S:
                    pause_s = FIRST_PAUSE_S
                await asyncio.sleep(pause_s)
                pause_s = min(LAST_PAUSE_S, pause_s * 2)
        finally:
            if not first.done():
                first.cancel()

    async def _live(self, first: asyncio.Future[None]) -> str:
        """Run one worker process from its start to its end; return why it ended.

        Raises LinkEnded when it cannot be started. However this ends, so does the process.
        """
        link = await WorkerLink.spawn(self._spec, self._python, self._on_message)
        watching = asyncio.create_task(link.watch(self._heartbeat_s, self._hang_s))
        try:
            try:
                await self._prepare(link)
            except Shed:
                return await watching
            self.link = link  # no pause since then, so nothing was asked for meanwhile
            if not first.done():
                first.set_result(None)
            return await watching
        finally:
            self.link = None
            watching.cancel()
            await link.close(LEAVE_LIMIT_S)
