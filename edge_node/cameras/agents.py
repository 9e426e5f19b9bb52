"""Run the agents that this node hosts: each frame becomes an answer, in time if possible.

Owns, per hosted agent, its camera's state and the account of its frames. Never touches a pixel:
frames stay in the worker that decodes the camera, or travel to a peer as JPEG. Invariant: every
frame ends exactly once, as answered (met or missed), shed, or lost.
"""

import asyncio
import random
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_node.fleet.peers import PeerError, Peers
from edge_node.metrics import Counters, Latencies
from edge_node.placement.choose import choose
from edge_node.placement.fetch import CALIBRATION_PASSES, Holder, Link, in_order, is_worth
from edge_node.placement.view import FleetView, Option
from edge_node.workers import CameraSpec, FrameReady, Inference, ModelError, Shed, WorkerHandle

MAX_DEADLINE_MS = 60_000
MAX_IN_FLIGHT = 16  # frames of one agent under way at once; a newer one is shed at once
LONG_SIDE_PX = 640  # frames are kept and forwarded at this size; models scale down from it
FORWARD_MIN_S = 0.6  # a forward is given at least this long
SHORT = 16  # hex digits of a digest in load reports and cache keys: enough to tell models apart


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """One camera with its task, as its home node publishes it (owner record ``agent/<name>``)."""

    name: str
    home: bytes
    source: str
    fps: float
    model: str
    deadline_ms: float
    tier: int
    loop: bool
    noise_sigma: float
    takeover: bool
    since_ms: int
    """Wall time of its first publication: of two agents with one name the elder counts."""

    @classmethod
    def from_record(cls, name: str, home: bytes, record: object) -> "AgentSpec":
        """Read a record from the replica.

        Raises:
            ValueError: the record is not an agent of this version.
        """
        if not isinstance(record, dict):
            raise ValueError(f"agent {name}: not a table")
        try:
            spec = cls(
                name=name,
                home=home,
                source=str(record["source"]),
                fps=float(record["fps"]),
                model=str(record["model"]),
                deadline_ms=float(record["deadline_ms"]),
                tier=int(record["tier"]),
                since_ms=int(record["since_ms"]),
                loop=bool(record["loop"]),
                noise_sigma=float(record["noise_sigma"]),
                takeover=bool(record["takeover"]),
            )
            spec.camera()  # checks what the worker will want
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"agent {name}: {error!r}") from error
        if not (0 < spec.deadline_ms <= MAX_DEADLINE_MS and spec.tier in (1, 2, 3)):
            raise ValueError(f"agent {name}: deadline_ms or tier out of range")
        return spec

    def record(self) -> dict[str, Any]:
        """Return what :meth:`from_record` reads."""
        return {
            "source": self.source,
            "fps": self.fps,
            "task": "detect",
            "model": self.model,
            "deadline_ms": self.deadline_ms,
            "tier": self.tier,
            "loop": self.loop,
            "noise_sigma": self.noise_sigma,
            "takeover": self.takeover,
            "since_ms": self.since_ms,
        }

    def movable_to(self, files: str) -> bool:
        """Tell whether another node may open the source.

        A device of its home cannot be reached. A file can only under ``files``, the folder that the
        other node names for this (empty: none), since any member could publish any path.
        """
        if not self.takeover or self.source.startswith(("/dev/", "v4l2:")):
            return False
        scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", self.source)
        if scheme is not None and scheme[1] != "file":
            return scheme[1] in ("rtsp", "rtsps", "http", "https", "generated")
        path = Path(self.source.removeprefix("file:"))
        return bool(files) and ".." not in path.parts and path.is_relative_to(files)

    def camera(self) -> CameraSpec:
        """Return what the worker needs to open the camera."""
        return CameraSpec(
            agent=self.name,
            source=self.source,
            fps=self.fps,
            loop=self.loop,
            noise_sigma=self.noise_sigma,
            long_side=LONG_SIDE_PX,
        )


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
        return not self.asked and self.frames < CALIBRATION_PASSES


class Agents:
    """The agents hosted here, and the way of each of their frames."""

    def __init__(
        self,
        node_id: bytes,
        node_name: str,
        labels: tuple[str, ...],
        view: FleetView,
        peers: Peers,
        counters: Counters,
        rng: random.Random,
        on_result: Callable[[dict[str, Any]], None],
    ) -> None:
        self.hosted: dict[str, HostedAgent] = {}
        self.latest: dict[str, dict[str, Any]] = {}
        self.latencies = Latencies()
        self.forward = True
        self._node_id = node_id
        self._node_name = node_name
        self._labels = labels
        self._view = view
        self._peers = peers
        self._counters = counters
        self._rng = rng
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

    async def warm_start(self, name: str, holders: Iterable[Holder]) -> None:
        """Fetch the reuse state of an agent that is new here, once, where that is worth it.

        ``holders`` may include this node; without others nothing happens.
        """
        agent = self.hosted.get(name)
        others = [holder for holder in holders if holder.node != self._node_id]
        if agent is None or not others or not agent.is_cold:
            return
        agent.asked = True
        scene = await agent.worker.scene(name)
        full_s = agent.worker.service_ms.get(agent.digest, 0.0) / 1e3
        for holder in in_order(others, scene):
            if self.hosted.get(name) is not agent:
                return
            link = Link(self._peers.bandwidth_bps(holder.node), self._view.rtt_s(holder.node))
            outcome = "not worth it"
            if is_worth(holder, link, full_s, scene):
                outcome = await self._fetch(agent, holder, link.fetch_s(holder.size_bytes))
            self._counters.add("entries", outcome=outcome)
            if outcome == "taken":
                self._counters.add("warm_starts", agent=name)
                return

    async def _fetch(self, agent: HostedAgent, holder: Holder, predicted_s: float) -> str:
        """Ask a holder for its entry; return what became of it."""
        name, digest = agent.spec.name, agent.digest
        timeout_s = FORWARD_MIN_S + 2 * predicted_s
        try:
            entry = await self._peers.cache(holder.node, name, digest, timeout_s)
            if entry is None:
                return "gone"
            return "taken" if await agent.worker.import_cache(name, digest, entry) else "refused"
        except (PeerError, ModelError) as error:
            return "unreachable" if isinstance(error, PeerError) else "refused"

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
        try:
            node, inference = await self._infer(agent, frame)
        except Shed as shed:
            if shed.reason in ("worker died", "frame gone"):
                self._lost(agent, shed.reason)
            else:
                self._shed(agent, shed.reason)
        except ModelError as error:
            agent.reason = str(error)
            self._lost(agent, "model failed")
        else:
            self._answered(agent, frame, inference, node)
        finally:
            agent.in_flight -= 1
            agent.worker.drop_frame(frame.agent, frame.frame)

    async def _infer(self, agent: HostedAgent, frame: FrameReady) -> tuple[str, Inference]:
        """Return which node ran the frame, and the answer."""
        deadline_s = frame.captured_s + agent.spec.deadline_ms / 1e3
        digest, worker = agent.digest, agent.worker
        if not frame.reusable:  # else the cached answer holds, at no cost worth a decision
            now_s = time.monotonic()
            chosen = choose(
                (deadline_s - now_s) * 1e3,
                Option(None, worker.backlog_ms, worker.service_ms.get(digest, 0.0)),
                self._view.options(digest[:SHORT], now_s),
                self._rng,
                forward=self.forward,
            )
            if chosen.node is not None:
                reply = await self._forward(agent, frame, digest, deadline_s, chosen)
                if reply is not None:
                    return self._peers.name(chosen.node), reply
        return self._node_name, await worker.infer_frame(
            frame.agent, frame.frame, digest, deadline_s, agent.spec.tier
        )

    async def _forward(
        self, agent: HostedAgent, frame: FrameReady, digest: str, deadline_s: float, there: Option
    ) -> Inference | None:
        """Return the peer's answer, or None if the frame should run here after all."""
        node = there.node
        assert node is not None
        jpeg = await agent.worker.encode_frame(frame.agent, frame.frame, LONG_SIDE_PX)
        sent_s = time.monotonic()
        self._view.sent(node, digest[:SHORT], sent_s)
        request = {
            "agent": frame.agent,
            "frame": frame.frame,
            "digest": digest,
            "budget_ms": (deadline_s - sent_s) * 1e3,
            "tier": agent.spec.tier,
            "image": jpeg,
        }
        # Patience in proportion to what was predicted, so that slow peers are not written off.
        timeout_s = max(FORWARD_MIN_S, 2 * there.finish_ms / 1e3)
        try:
            reply = await self._peers.infer(node, request, timeout_s)
        except PeerError as error:
            self._counters.add("forward_failed", reason=error.reason)
            if error.silent:
                self._view.unanswered(node, time.monotonic())
            return None
        now_s = time.monotonic()
        agent.forwarded += 1
        self._counters.add("forwarded", agent=frame.agent)
        way_ms = (now_s - sent_s) * 1e3 - reply.wait_ms - reply.service_ms
        self._view.heard_reply(node, reply.backlog_ms, way_ms, now_s)
        return reply

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
            "rung": inference.rung,
            "met": met,
            "boxes": [self._box(*box) for box in inference.boxes],
        }
        agent.answered += 1
        agent.met += met
        agent.hits += inference.rung != "full"
        agent.latencies.record(latency_ms, now_s)
        self.latencies.record(latency_ms, now_s)
        self._counters.add("answered", agent=frame.agent, met="yes" if met else "no")
        self._counters.add("rung", agent=frame.agent, rung=inference.rung)
        if self.hosted.get(frame.agent) is agent:
            self.latest[frame.agent] = result
        self._on_result(result)

    def _box(
        self, x0: float, y0: float, x1: float, y1: float, score: float, label: float
    ) -> dict[str, Any]:
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
