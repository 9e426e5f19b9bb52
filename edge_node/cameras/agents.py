"""Run the agents that this node hosts: each frame becomes an answer, in time if possible.

Owns, per hosted agent, its camera's state and the account of its frames. Never touches a pixel:
frames stay in the worker that decodes the camera, or travel to a peer as JPEG. Invariant: every
frame ends exactly once, as answered (met or missed), shed, or lost.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from edge_node.cameras.spec import AgentSpec
from edge_node.dispatch import Work
from edge_node.metrics import Counters, Latencies
from edge_node.placement.fetch import CALIBRATION_PASSES
from edge_node.workers import FrameReady, Inference, ModelError, Shed, WorkerHandle

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 16  # frames of one agent under way at once; a newer one is shed at once


@dataclass(slots=True)
class HostedAgent:
    """One agent while it runs here. Counts are frames since it came."""

    spec: AgentSpec
    worker: WorkerHandle
    digest: str
    state: str = "opening"
    reason: str = ""
    frames: int = 0
    answered: int = 0
    met: int = 0
    shed: int = 0
    lost: int = 0
    forwarded: int = 0
    hits: int = 0
    in_flight: int = 0
    latencies: Latencies = field(default_factory=Latencies)
    asked: bool = False  # others, for its reuse state

    @property
    def is_cold(self) -> bool:
        """Whether the reuse state of another node may help it."""
        is_kept = self.worker.spec.cache_mb > 0
        return is_kept and not self.asked and self.frames < CALIBRATION_PASSES


class Agents:
    """The agents hosted here, and the way of each of their frames."""

    def __init__(
        self,
        node_name: str,
        labels: tuple[str, ...],
        answer: Callable[[Work], Awaitable[tuple[str, Inference]]],
        counters: Counters,
        tier_of: Callable[[str], int],
        on_result: Callable[[dict[str, Any]], None],
    ) -> None:
        """Prepare; ``answer`` is :meth:`edge_node.dispatch.Dispatch.answer`."""
        self.hosted: dict[str, HostedAgent] = {}
        self.latest: dict[str, dict[str, Any]] = {}
        self.latencies = Latencies()
        self._node_name = node_name
        self._labels = labels
        self._answer_to = answer
        self._counters = counters
        self._tier_of = tier_of
        self._on_result = on_result
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def cold(self) -> dict[str, str]:
        """Agents that would start warm if another node had their state, and their digests."""
        return {name: agent.digest for name, agent in self.hosted.items() if agent.is_cold}

    @property
    def digests(self) -> set[str]:
        """Digests of the models that agents here are answered with."""
        return {agent.digest for agent in self.hosted.values()}

    async def host(self, spec: AgentSpec, worker: WorkerHandle, digest: str) -> None:
        """Have ``spec`` run on ``worker`` with the model ``digest``; does only what is missing.

        Raises:
            ModelError: the model is not loaded there or does not fit; what ran before still runs.
        """
        agent = self.hosted.get(spec.name)
        if agent is not None and (agent.spec != spec or agent.worker is not worker):
            await self.release(spec.name)
            agent = None
        if agent is None:
            agent = self.hosted[spec.name] = HostedAgent(spec, worker, digest)
            try:
                await worker.open_camera(spec.camera(), digest)
            except ModelError:
                del self.hosted[spec.name]
                raise
        elif agent.digest != digest:
            await worker.use(spec.name, digest)
            agent.digest = digest

    async def release(self, name: str) -> None:
        """Close the camera; frames under way still end."""
        agent = self.hosted.pop(name, None)
        self.latest.pop(name, None)
        if agent is not None:
            await agent.worker.close_camera(name)

    async def close(self, timeout_s: float) -> None:
        """Close every camera, and wait for the frames under way at most ``timeout_s``."""
        for name in list(self.hosted):
            await self.release(name)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    def camera_state(self, name: str, state: str, reason: str) -> None:
        """Take what the worker says of the camera."""
        agent = self.hosted.get(name)
        if agent is not None:
            agent.state, agent.reason = state, reason

    def frame_ready(self, frame: FrameReady) -> None:
        """Start the way of one frame; called by the worker's handle."""
        agent = self.hosted.get(frame.agent)
        if agent is None:
            return
        agent.frames += 1
        self._counters.add("frames", agent=frame.agent)
        if agent.in_flight >= MAX_IN_FLIGHT:
            self._shed(agent, "too many in flight")
            agent.worker.drop_frame(frame.agent, frame.frame)
            return
        agent.in_flight += 1
        task = asyncio.create_task(self._answer(agent, frame))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, agent: HostedAgent, frame: FrameReady) -> None:
        work = Work(
            frame.agent,
            frame.frame,
            agent.digest,
            self._tier_of(frame.agent),
            frame.captured_s + agent.spec.deadline_ms / 1e3,
            frame.reusable,
            agent.worker,
        )
        try:
            node, inference = await self._answer_to(work)
        except Shed as shed:
            if shed.reason in ("worker died", "frame gone"):
                self._lost(agent, shed.reason)
            else:
                self._shed(agent, shed.reason)
        except ModelError as error:
            agent.reason = str(error)
            self._lost(agent, "model failed")
        except Exception as error:  # ours, but every frame has to end
            log.critical("frame %d of %s failed", frame.frame, frame.agent, exc_info=error)
            self._lost(agent, "internal error")
        else:
            self._answered(agent, frame, inference, node)
        finally:
            agent.in_flight -= 1
            agent.worker.drop_frame(frame.agent, frame.frame)

    def _answered(
        self, agent: HostedAgent, frame: FrameReady, inference: Inference, node: str
    ) -> None:
        now_s = time.monotonic()
        latency_ms = (now_s - frame.captured_s) * 1e3
        met = latency_ms <= agent.spec.deadline_ms
        result = {
            "agent": frame.agent,
            "frame": frame.frame,
            "captured_ms": frame.captured_ms,
            "latency_ms": round(latency_ms, 2),
            "host": self._node_name,
            "node": node,
            "variant": inference.variant,
            "digest": inference.digest,
            "effort": inference.effort,
            "rung": inference.rung,
            "met": met,
            "boxes": [self.box(*box) for box in inference.boxes],
        }
        agent.answered += 1
        agent.met += met
        agent.forwarded += node != self._node_name
        agent.hits += inference.rung != "full"
        agent.latencies.record(latency_ms, now_s)
        self.latencies.record(latency_ms, now_s)
        self._counters.add("answered", agent=frame.agent, met="yes" if met else "no")
        self._counters.add("rung", agent=frame.agent, rung=inference.rung)
        if self.hosted.get(frame.agent) is agent:
            self.latest[frame.agent] = result
        self._on_result(result)

    def box(
        self, x0: float, y0: float, x1: float, y1: float, score: float, label: float
    ) -> dict[str, Any]:
        """Return a box as plain data, its class by name."""
        known = 0 <= label < len(self._labels)
        return {
            "x0": round(x0, 4),
            "y0": round(y0, 4),
            "x1": round(x1, 4),
            "y1": round(y1, 4),
            "score": round(score, 3),
            "label": self._labels[int(label)] if known else f"class {label:g}",
        }

    def _shed(self, agent: HostedAgent, reason: str) -> None:
        agent.shed += 1
        self._counters.add("shed", agent=agent.spec.name, reason=reason)

    def _lost(self, agent: HostedAgent, reason: str) -> None:
        agent.lost += 1
        self._counters.add("lost", agent=agent.spec.name, reason=reason)
