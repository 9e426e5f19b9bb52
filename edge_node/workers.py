"""The daemon's side of the worker processes: one handle per accelerator, whatever its process does.

Owns what a worker is to hold and the requests to it; keeping a process alive is `supervision`'s.
Imports neither numpy nor ONNX Runtime nor PyAV, and no pixel passes through here but as JPEG.
Invariant: what `load`, `open_camera` and `use` established survives the death of the process: the
next one is told all of it before `WorkerReady`, and a model that it cannot load is no longer in
`loaded` then. No call but `infer_*` and `encode_frame` raises Shed.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edge_node.supervision import Supervisor
from edge_node.worker_link import WorkerLink
from models.accelerators import AcceleratorSpec
from models.wire import (
    EFFORTS,
    CacheHolding,
    CameraSpec,
    CameraState,
    Effort,
    FrameReady,
    Inference,
    Message,
    ModelError,
    ModelFile,
    Shed,
    WorkerDied,
    WorkerEvent,
    WorkerReady,
    fields,
)

__all__ = [
    "CacheHolding",
    "CameraSpec",
    "CameraState",
    "Effort",
    "FrameReady",
    "Inference",
    "ModelError",
    "ModelFile",
    "Shed",
    "WorkerDied",
    "WorkerEvent",
    "WorkerHandle",
    "WorkerReady",
]

log = logging.getLogger(__name__)

LOAD_LIMIT_S = 180.0


class WorkerHandle:
    """Run one accelerator's worker process and ask it for answers.

    Callbacks are called from the event loop, in order. `python` is the interpreter that runs
    the worker: an accelerator whose wheels live in an environment of their own has its own.
    """

    def __init__(
        self,
        spec: AcceleratorSpec,
        *,
        on_frame: Callable[[FrameReady], None],
        on_event: Callable[[WorkerEvent], None],
        python: str = sys.executable,
        heartbeat_s: float = 1.0,
        hang_s: float = 6.0,
    ) -> None:
        self.spec = spec
        self._on_frame = on_frame
        self._on_event = on_event
        self._models: dict[str, ModelFile] = {}
        self._cameras: dict[str, tuple[CameraSpec, str]] = {}
        self._next_frame: dict[str, int] = {}
        self._costs_s: dict[str, dict[Effort, float]] = {}
        self._held: set[tuple[str, str]] = set()
        self._draining = False
        self._supervisor = Supervisor(
            spec, python, heartbeat_s, hang_s, self._prepare, self._event, self._mourn
        )

    @property
    def _link(self) -> WorkerLink | None:
        return self._supervisor.link

    @property
    def pid(self) -> int | None:
        """Return the process id of the serving worker."""
        return self._link.process.pid if self._link else None

    @property
    def alive(self) -> bool:
        """Return whether a worker serves."""
        return self._link is not None

    @property
    def waits_ms(self) -> tuple[float, float, float]:
        """Return the predicted waits of a new task of tier 1, 2, 3; pacing included.

        No round trip.
        """
        first, second, third = self._link.waits_s if self._link else (0.0, 0.0, 0.0)
        return first * 1e3, second * 1e3, third * 1e3

    @property
    def queue_length(self) -> int:
        """Return how many tasks wait in the worker."""
        return self._link.queue_length if self._link else 0

    @property
    def loaded(self) -> frozenset[str]:
        """Return the digests that can be used now; none while no worker serves."""
        return frozenset(self._costs_s) if self._link else frozenset()

    @property
    def service_ms(self) -> dict[str, float]:
        """Return the moving average of a full pass, pacing included, by digest of `loaded`."""
        return {digest: self._costs_s[digest]["full"] * 1000 for digest in self.loaded}

    @property
    def costs_ms(self) -> dict[tuple[str, Effort], float]:
        """Return what `service_ms` tells of full effort for every effort: (digest, effort)."""
        return {
            (digest, effort): self._costs_s[digest][effort] * 1000
            for digest in self.loaded
            for effort in EFFORTS
        }

    @property
    def ladder_counts(self) -> Mapping[str, int]:
        """Return how the ladder of this process answered: rungs, misses by reason, evictions."""
        counts: Mapping[str, int] = self._link.vitals.get("ladder", {}) if self._link else {}
        return counts

    @property
    def cameras(self) -> Sequence[Mapping[str, Any]]:
        """Return what is reused of each camera and model, as of the last heartbeat.

        The records of `models.cache.ReuseCache`, of peers' cameras too, unordered.
        """
        records: Sequence[Mapping[str, Any]]
        records = self._link.vitals.get("cameras", ()) if self._link else ()
        return records

    @property
    def cache_bytes(self) -> int:
        """Return the size of the reuse state as of the last heartbeat."""
        return int(self._link.vitals.get("cache_bytes", 0)) if self._link else 0

    async def start(self) -> None:
        """Start supervision; return when the worker serves or its first start failed.

        A failed start is reported as `WorkerDied` and retried like any other death.
        """
        await self._supervisor.start()

    async def stop(self, drain_s: float) -> None:
        """Shed new work, wait up to `drain_s` for work under way, end the worker."""
        self._draining = True
        await self._supervisor.stop(drain_s)

    async def load(self, model: ModelFile) -> None:
        """Load and warm a model; afterwards it is usable by its digest.

        Raises ModelError, and what was loaded before stays in use: no worker serves, the file is
        damaged or unsuitable, or it kills or hangs the worker (it is not loaded again then).
        """
        link = self._link
        if link is None:
            raise ModelError(f"worker {self.spec.name} is not up")
        if model.digest in self.loaded:
            return
        try:
            costs_s = await self._load_into(link, model)
        except Shed as shed:
            raise ModelError(
                f"model {model.name}/{model.variant} was not loaded on {self.spec.name}: "
                f"{shed.reason} meanwhile"
            ) from None
        if self._link is link:
            self._costs_s[model.digest] = costs_s
        self._models[model.digest] = model

    async def unload(self, digest: str) -> None:
        """Forget a model and the cache entries made with it; unknown digests are no error."""
        self._models.pop(digest, None)
        self._costs_s.pop(digest, None)
        await self._if_alive("unload", digest=digest)

    async def open_camera(self, spec: CameraSpec, digest: str) -> None:
        """Open a camera (anew, if the agent has one) and answer it with a loaded model.

        An empty digest opens it without a model. Raises ModelError when the model is not loaded;
        nothing changed then. A source that cannot be opened is an event, never an exception.
        """
        self._check_loaded(digest)
        self._cameras[spec.agent] = (spec, digest)
        await self._if_alive("open", **self._opening(spec.agent))

    async def use(self, agent: str, digest: str) -> None:
        """Answer a camera with another loaded model from its next frame on.

        Raises ModelError when it is not loaded or does not fit the camera; the old one stays.
        """
        if agent not in self._cameras:
            raise ModelError(f"agent {agent} has no camera on {self.spec.name}")
        self._check_loaded(digest)
        await self._if_alive("use", agent=agent, digest=digest)
        if agent in self._cameras:
            self._cameras[agent] = (self._cameras[agent][0], digest)

    async def close_camera(self, agent: str) -> None:
        """Close a camera; its frames under way may still end. Unknown agents are no error."""
        self._cameras.pop(agent, None)
        await self._if_alive("close", agent=agent)

    async def infer_frame(
        self,
        agent: str,
        frame: int,
        digest: str,
        deadline_s: float,
        tier: int,
        effort: Effort = "full",
    ) -> Inference:
        """Return the answer for a kept frame, due at `deadline_s` (CLOCK_MONOTONIC).

        At half `effort` what the ladder has still answers; else a dense pass at half of the long
        side, which the ladder does not see. Raises Shed with the reason when it is not done,
        ModelError when the model fails.
        """
        return await self._infer(
            "infer", digest, effort, agent=agent, frame=frame, deadline_s=deadline_s, tier=tier
        )

    async def infer_image(
        self,
        agent: str,
        jpeg: bytes,
        digest: str,
        deadline_s: float,
        tier: int,
        effort: Effort = "full",
    ) -> Inference:
        """Return the answer for an encoded image of an agent's camera elsewhere.

        Raises Shed with the reason when it is not done, ModelError when the model fails or the
        image cannot be decoded.
        """
        return await self._infer(
            "image", digest, effort, agent=agent, image=jpeg, deadline_s=deadline_s, tier=tier
        )

    async def encode_frame(self, agent: str, frame: int, long_side: int) -> bytes:
        """Return a kept frame as JPEG, at most `long_side` pixels long. Raises Shed."""
        data: bytes = await self._serving().request(
            "encode", agent=agent, frame=frame, long_side=long_side
        )
        return data

    async def scene(self, agent: str) -> int | None:
        """Return the signature of what a camera shows now, None if it has shown nothing yet."""
        found: int | None = await self._if_alive("scene", agent=agent)
        return found

    async def export_cache(self, agent: str, digest: str) -> bytes | None:
        """Return the valid cache entry of (agent, digest) for another node, if there is one.

        None also while the worker is too busy or down.
        """
        data: bytes | None = await self._if_alive("export", agent=agent, digest=digest)
        return data

    async def import_cache(self, agent: str, digest: str, data: bytes) -> bool:
        """Take over another node's entry; False if it is damaged, stale or does not belong.

        False also while the worker is too busy or down.
        Raises ModelError when the digest is not loaded.
        """
        return bool(await self._if_alive("import", agent=agent, digest=digest, data=data))

    def drop_frame(self, agent: str, frame: int) -> None:
        """Let go of a kept frame."""
        if self._link is not None:
            self._link.post("drop", agent=agent, frame=frame)

    async def _infer(self, op: str, digest: str, effort: Effort, **message: Any) -> Inference:
        if self._draining:
            raise Shed("draining")
        cost_s = self._costs_s.get(digest, {}).get(effort, 0.0)
        message |= {"digest": digest, "effort": effort}
        value = await self._serving().request(op, cost_s=cost_s, **message)
        cost_s = value.pop("cost_s")
        answer = Inference(**value)
        if digest in self._costs_s and cost_s:
            self._costs_s[digest][answer.effort] = cost_s
        return answer

    def _serving(self) -> WorkerLink:
        if self._link is None:
            raise Shed("draining" if self._draining else "worker died")
        return self._link

    async def _if_alive(self, op: str, **message: Any) -> Any:
        """Ask a living worker; a dead one's successor learns of it by `_restore`."""
        try:
            return await self._serving().request(op, **message)
        except Shed:
            return None

    def _opening(self, agent: str) -> Message:
        spec, digest = self._cameras[agent]
        first_frame = self._next_frame.get(agent, 0)
        return {"camera": fields(spec), "digest": digest, "first_frame": first_frame}

    def _check_loaded(self, digest: str) -> None:
        if digest and digest not in self._models:
            raise ModelError(f"no model with digest {digest[:16]} is loaded on {self.spec.name}")

    async def _prepare(self, link: WorkerLink) -> None:
        self._costs_s = await self._restore(link)
        self._tell(WorkerReady())

    async def _restore(self, link: WorkerLink) -> dict[str, dict[Effort, float]]:
        """Tell a new process everything its predecessor knew; return the costs of its models.

        What is asked of this handle meanwhile counts too: at the return, without a pause between,
        the process has exactly the models and cameras that are wanted. Raises Shed when it dies.
        """
        costs: dict[str, dict[Effort, float]] = {}
        opened: dict[str, tuple[CameraSpec, str]] = {}
        while True:
            models, cameras = list(self._models.values()), list(self._cameras.items())
            if missing := [model for model in models if model.digest not in costs]:
                try:
                    costs[missing[0].digest] = await self._load_into(link, missing[0])
                except ModelError as error:
                    log.error("worker %s: a model is lost: %s", self.spec.name, error)
                    self._models.pop(missing[0].digest, None)
            elif surplus := costs.keys() - self._models.keys():
                costs.pop(digest := surplus.pop())
                await link.request("unload", digest=digest)
            elif closed := opened.keys() - self._cameras.keys():
                opened.pop(agent := closed.pop())
                await link.request("close", agent=agent)
            elif changed := [each for each in cameras if opened.get(each[0]) != each[1]]:
                agent, one = changed[0]
                opened[agent] = one
                await link.request("open", **self._opening(agent))
            else:
                return costs

    async def _load_into(self, link: WorkerLink, model: ModelFile) -> dict[Effort, float]:
        """Return the predicted costs in seconds. Raises ModelError; Shed when the worker dies."""
        try:
            async with asyncio.timeout(LOAD_LIMIT_S):
                costs_s: dict[Effort, float] = await link.request("load", model=fields(model))
        except TimeoutError:
            link.kill(f"hung while loading {model.name}/{model.variant}")
            raise ModelError(
                f"model {model.name}/{model.variant} was not loaded on {self.spec.name} within "
                f"{LOAD_LIMIT_S:g} s"
            ) from None
        return costs_s

    def _mourn(self, reason: str) -> None:
        """Take back what depended on the dead process."""
        for agent, digest in sorted(self._held):
            self._tell(CacheHolding(agent, digest, False))
        self._held.clear()
        self._tell(WorkerDied(reason))

    def _tell(self, event: WorkerEvent) -> None:
        # Through the loop, so that a fault in a callback is logged and not taken for ours.
        asyncio.get_running_loop().call_soon(self._on_event, event)

    def _event(self, message: Message) -> None:
        kind = message.pop("event")
        message.pop("load")
        if kind == "frame":
            frame = FrameReady(**message)
            self._next_frame[frame.agent] = frame.frame + 1
            asyncio.get_running_loop().call_soon(self._on_frame, frame)
        elif kind == "camera":
            self._tell(CameraState(**message))
        else:
            holding = CacheHolding(**message)
            key = (holding.agent, holding.digest)
            (self._held.add if holding.held else self._held.discard)(key)
            self._tell(holding)
