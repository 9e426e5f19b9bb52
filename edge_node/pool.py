"""The node's accelerators: probed, each healthy one served by a worker process.

Owns the workers as a set; what one worker does is ``workers.WorkerHandle``'s job. Never gives an
accelerator that failed its probe a worker: it is left out, with the reason.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial

from edge_node.config import AcceleratorConfig
from edge_node.workers import FrameReady, WorkerEvent, WorkerHandle
from models.accelerators import AcceleratorSpec, ProbeResult, probe

log = logging.getLogger(__name__)


class WorkerPool:
    """All workers of this node, and what their probes said."""

    def __init__(
        self,
        accelerators: Iterable[AcceleratorConfig],
        on_frame: Callable[[FrameReady], None],
        on_event: Callable[[str, WorkerEvent], None],
    ) -> None:
        self.probes: list[ProbeResult] = []
        self.workers: list[WorkerHandle] = []
        self._specs = [
            AcceleratorSpec(one.name, one.provider, one.device, one.share, one.queue, one.cache_mb)
            for one in accelerators
        ]
        self._on_frame = on_frame
        self._on_event = on_event

    async def start(self) -> None:
        """Probe every accelerator side by side, and start a worker for each healthy one."""
        self.probes = list(
            await asyncio.gather(*(asyncio.to_thread(probe, spec) for spec in self._specs))
        )
        for result in self.probes:
            if not result.ok:
                log.error("accelerator %s left out: %s", result.spec.name, result.reason)
                continue
            handle = WorkerHandle(
                result.spec,
                on_frame=self._on_frame,
                on_event=partial(self._on_event, result.spec.name),
            )
            self.workers.append(handle)
        await asyncio.gather(*(worker.start() for worker in self.workers))

    async def stop(self, drain_s: float) -> None:
        """End every worker after the work under way, at most ``drain_s`` later."""
        await asyncio.gather(*(worker.stop(drain_s) for worker in self.workers))

    @property
    def living(self) -> list[WorkerHandle]:
        """The workers that serve now."""
        return [worker for worker in self.workers if worker.alive]

    @property
    def capacity(self) -> float:
        """Full passes of the probe's model per second over all accelerators, shares counted."""
        return sum(
            1e3 * result.spec.share / result.latency_ms
            for result in self.probes
            if result.ok and result.latency_ms > 0
        )

    def least_loaded(self, digest: str, tier: int) -> WorkerHandle | None:
        """Return the living worker that would answer first among those that run ``digest``."""
        able = [worker for worker in self.living if digest in worker.loaded]
        return min(
            able,
            key=lambda worker: worker.waits_ms[tier - 1] + worker.service_ms[digest],
            default=None,
        )

    @property
    def problems(self) -> list[str]:
        """What keeps accelerators from working, in words."""
        left_out = [
            f"accelerator {result.spec.name} left out: {result.reason}"
            for result in self.probes
            if not result.ok
        ]
        return left_out + [
            f"worker {worker.spec.name} is being replaced"
            for worker in self.workers
            if not worker.alive
        ]
