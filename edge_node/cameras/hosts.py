"""Know which of the fleet's agents run here, and make it so.

Owns this node's part of the keys ``agent/*`` (owner records: what this node configures) and
``host/*`` (fleet registers: who runs an agent). Invariants: a node that can run its own cameras
runs them, whatever others claim; another node's camera runs here only while the register names
this node.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from crdt import Instant, Store
from edge_node.cameras.address import public_address
from edge_node.cameras.agents import Agents, AgentSpec
from edge_node.config import CameraConfig
from edge_node.fleet.load import Capacity
from edge_node.placement.hosting import CLAIM_EPOCHS, should_host
from edge_node.workers import ModelError, WorkerHandle

log = logging.getLogger(__name__)


class Hosts:
    """The fleet's agents as this replica knows them, and the claims of this node."""

    def __init__(
        self,
        node_id: bytes,
        store: Store,
        agents: Agents,
        workers: Callable[[], list[WorkerHandle]],
        clock: Callable[[], Instant],
        stage: Callable[..., bool],
    ) -> None:
        """Prepare.

        ``workers`` lists those that can take a camera now; ``stage`` makes a write of the store
        and says whether it was taken.
        """
        self.problems: dict[str, str] = {}
        """Agents that cannot run here although they should, and why."""
        self._node_id = node_id
        self._store = store
        self._agents = agents
        self._workers = workers
        self._clock = clock
        self._stage = stage
        self._wanted_epochs: dict[str, int] = {}
        self._lock = asyncio.Lock()

    def publish(self, cameras: Iterable[CameraConfig], model: str) -> None:
        """Stage records for ``cameras``, and drop those of cameras no longer configured."""
        now = self._clock()
        wanted = {}
        for camera in cameras:
            key = f"agent/{camera.name}"
            known = self._store.owner(self._node_id, key)
            since_ms = known.get("since_ms") if isinstance(known, dict) else None
            wanted[key] = AgentSpec(
                name=camera.name,
                home=self._node_id,
                source=camera.source,
                fps=camera.fps,
                model=model,
                deadline_ms=float(camera.deadline_ms),
                tier=camera.criticality,
                loop=camera.loop,
                noise_sigma=camera.noise_sigma,
                takeover=camera.takeover,
                since_ms=since_ms if isinstance(since_ms, int) else now.wall_ms,
            ).record()
        for origin, key, _ in self._store.owners("agent/"):
            if origin == self._node_id and key not in wanted:
                self._stage(self._store.delete_owner, key)
                name = key.removeprefix("agent/")
                if self._store.fleet(f"host/{name}", now) is not None:
                    self._stage(self._store.set_fleet, f"host/{name}", None, now)
        for key, record in wanted.items():
            if self._store.owner(self._node_id, key) != record:
                self._stage(self._store.set_owner, key, record)

    def specs(self) -> dict[str, AgentSpec]:
        """Return every agent of the fleet by name; of two with one name the elder."""
        specs: dict[str, AgentSpec] = {}
        for origin, key, record in self._store.owners("agent/"):
            try:
                spec = AgentSpec.from_record(key.removeprefix("agent/"), origin, record)
            except ValueError:
                continue  # of a newer version, or of a liar; ours are checked before they leave
            elder = specs.get(spec.name)
            if elder is None or (spec.since_ms, origin) < (elder.since_ms, elder.home):
                specs[spec.name] = spec
        return specs

    def conflicts(self) -> list[str]:
        """Name this node's cameras whose name another node's elder camera has."""
        specs = self.specs()
        own = {
            key.removeprefix("agent/")
            for origin, key, _ in self._store.owners("agent/")
            if origin == self._node_id
        }
        return sorted(name for name in own if name in specs and specs[name].home != self._node_id)

    def host_of(self, spec: AgentSpec) -> bytes:
        """Return the node that the register names, or the home if it names nobody."""
        host = self._store.fleet(f"host/{spec.name}", self._clock())
        return host if isinstance(host, bytes) else spec.home

    def claim(self, living: Mapping[bytes, Capacity]) -> list[str]:
        """Count one epoch; stage and return the claims that are due.

        A home claims its camera at once; a successor after :data:`CLAIM_EPOCHS` epochs.

        Args:
            living: what the nodes believed alive published, this one included.
        """
        able = frozenset(node for node, capacity in living.items() if capacity.passes_per_s > 0)
        claimed, waiting = [], {}
        for name, spec in self.specs().items():
            takers = {
                node: capacity.passes_per_s
                for node, capacity in living.items()
                if capacity.takeover and node in able and spec.movable_to(capacity.files)
            }
            host = self.host_of(spec)
            if should_host(name, spec.home, host, able, takers) != self._node_id:
                continue
            if host == self._node_id:
                continue
            waiting[name] = self._wanted_epochs.get(name, 0) + 1
            if spec.home == self._node_id or waiting[name] >= CLAIM_EPOCHS:
                now = self._clock()
                if self._stage(self._store.set_fleet, f"host/{name}", self._node_id, now):
                    claimed.append(name)
        self._wanted_epochs = waiting
        return claimed

    def _belongs_here(self, spec: AgentSpec, files: str) -> bool:
        if spec.home == self._node_id:
            return True
        return self.host_of(spec) == self._node_id and spec.movable_to(files)

    async def reconcile(self, digest: str, files: str) -> None:
        """Open and close cameras until what runs here is what the replica says.

        Args:
            digest: the model to answer with.
            files: folder under which files of other nodes' cameras may be opened.
        """
        async with self._lock:
            hosted, workers = self._agents.hosted, self._workers()
            specs = {n: s for n, s in self.specs().items() if self._belongs_here(s, files)}
            for name in [name for name in hosted if name not in specs]:
                log.info("agent %s no longer runs here", name)
                await self._agents.release(name)
            problems = {}
            for name, spec in specs.items():
                new = name not in hosted
                try:
                    await self._agents.host(spec, self._worker_for(spec, workers), digest)
                except ModelError as error:
                    problems[name] = f"agent {name}: {error}"
                    continue
                if new:
                    log.info("agent %s runs here (%s)", name, public_address(spec.source))
            for name, problem in problems.items():
                if self.problems.get(name) != problem:
                    log.error("%s", problem)
            self.problems = problems

    def _worker_for(self, spec: AgentSpec, workers: list[WorkerHandle]) -> WorkerHandle:
        """Return the worker that runs the agent while it lives, else the one with the fewest.

        Agents of one camera go together: their worker does their work once.
        """
        hosted = self._agents.hosted
        if not workers:
            raise ModelError("no accelerator works")
        if spec.name in hosted and hosted[spec.name].worker in workers:
            return hosted[spec.name].worker
        camera = spec.camera()
        for other in hosted.values():
            if replace(other.spec.camera(), agent=spec.name) == camera and other.worker in workers:
                return other.worker
        return min(workers, key=lambda one: sum(a.worker is one for a in hosted.values()))
