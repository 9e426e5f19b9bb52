"""Know which of the fleet's agents run here, and make it so.

Owns this node's part of the keys ``agent/*`` (owner records: what this node configures) and
``host/*`` (fleet registers: who runs an agent). Never opens a camera that the register gives to
another living node. Invariant: an agent runs here only if the register names this node, or names
nobody and this node is its home.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from crdt import Instant, Store
from edge_node.cameras.agents import Agents, AgentSpec, without_password
from edge_node.config import CameraConfig
from edge_node.placement.hosting import CLAIM_EPOCHS, should_host
from edge_node.workers import WorkerHandle

log = logging.getLogger(__name__)


class Hosts:
    """The fleet's agents as this replica knows them, and the claims of this node."""

    def __init__(
        self,
        node_id: bytes,
        store: Store,
        agents: Agents,
        worker_for: Callable[[str], WorkerHandle | None],
        clock: Callable[[], Instant],
    ) -> None:
        self._node_id = node_id
        self._store = store
        self._agents = agents
        self._worker_for = worker_for
        self._clock = clock
        self._wanted_epochs: dict[str, int] = {}
        self._refused: set[tuple[bytes, str]] = set()
        self._lock = asyncio.Lock()

    def publish(self, cameras: Iterable[CameraConfig], model: str) -> None:
        """Stage records for ``cameras`` and drop those of cameras no longer configured."""
        wanted = {
            f"agent/{camera.name}": AgentSpec(
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
            ).record()
            for camera in cameras
        }
        for origin, key, _ in self._store.owners("agent/"):
            if origin == self._node_id and key not in wanted:
                self._store.delete_owner(key)
        for key, record in wanted.items():
            if self._store.owner(self._node_id, key) != record:
                self._store.set_owner(key, record)

    def specs(self) -> dict[str, AgentSpec]:
        """Return every agent of the fleet by name; of two homes with one name the first counts."""
        specs: dict[str, AgentSpec] = {}
        for origin, key, record in self._store.owners("agent/"):
            name = key.removeprefix("agent/")
            try:
                if name in specs:
                    raise ValueError(f"agent {name} is configured on two nodes; rename one")
                specs[name] = AgentSpec.from_record(name, origin, record)
            except ValueError as error:
                if (origin, key) not in self._refused:
                    self._refused.add((origin, key))
                    log.warning("node %s: %s", origin.hex()[:8], error)
        return specs

    def host_of(self, spec: AgentSpec) -> bytes:
        """Return the node that the register names, or the home if it names nobody."""
        host = self._store.fleet(f"host/{spec.name}", self._clock())
        return host if isinstance(host, bytes) else spec.home

    def claim(self, capacities: Mapping[bytes, float], living: frozenset[bytes]) -> list[str]:
        """Count one epoch; stage and return the claims that survived enough of them.

        Args:
            capacities: node id -> full passes per second, of the living nodes that take over.
            living: ids of all nodes believed alive, this one included.
        """
        claimed = []
        specs = self.specs()
        for name, spec in specs.items():
            host = self.host_of(spec)
            chosen = should_host(name, spec.home, host, spec.movable, capacities, living)
            if chosen != self._node_id or host == self._node_id:
                self._wanted_epochs.pop(name, None)
                continue
            epochs = self._wanted_epochs.get(name, 0) + 1
            self._wanted_epochs[name] = epochs
            if epochs >= CLAIM_EPOCHS:
                self._store.set_fleet(f"host/{name}", self._node_id, self._clock())
                claimed.append(name)
        for name in self._wanted_epochs.keys() - specs.keys():
            del self._wanted_epochs[name]
        return claimed

    async def reconcile(self) -> list[str]:
        """Open and close cameras until what runs here is what the replica says.

        Returns the names of agents that came here from another node.
        """
        arrived = []
        async with self._lock:
            wanted = {
                name: spec
                for name, spec in self.specs().items()
                if self.host_of(spec) == self._node_id
            }
            for name in [name for name in self._agents.hosted if name not in wanted]:
                log.info("agent %s no longer runs here", name)
                await self._agents.release(name)
            for name, spec in wanted.items():
                worker = self._worker_for(name)
                if worker is None:
                    continue
                if name not in self._agents.hosted:
                    log.info("agent %s runs here (%s)", name, without_password(spec.source))
                    if spec.home != self._node_id:
                        arrived.append(name)
                await self._agents.host(spec, worker)
        return arrived
