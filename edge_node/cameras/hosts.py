"""Know which of the fleet's agents run here, and make it so.

Owns this node's part of the keys ``agent/*`` (owner records: what this node configures) and
``host/*`` (fleet registers: who runs an agent). Invariants: a node that can run its own cameras and
need not give them away runs them, whatever others claim; another node's camera runs here only while
the register names this node and has done so for an epoch. So of two claims that cross the smaller
ends before it took effect, and where all replicas agree, one node runs an agent.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter

from crdt import Instant, Store, Value
from edge_node.cameras.address import public_address
from edge_node.cameras.agents import Agents
from edge_node.cameras.spec import AgentSpec
from edge_node.config import CameraConfig
from edge_node.fleet.published import Capacity
from edge_node.fleet.records import Records
from edge_node.metrics import Counters
from edge_node.placement.hosting import should_host
from edge_node.workers import ModelError, WorkerHandle

log = logging.getLogger(__name__)

AGENT, HOST = "agent/", "host/"
WALL_BITS = 16  # a register's timestamp is its wall time in ms, shifted by this
REMEMBERED_EPOCHS = 300  # what is answered twice for longer is counted for this long
EARLY_S = 0.01  # timers may fire a little early


@dataclass(slots=True)
class _Named:
    """Whom the register names, since when this replica has known it, and its wall time."""

    host: bytes
    since_s: float
    claimed_ms: int
    answered: deque[tuple[int, int]] = field(
        default_factory=lambda: deque(maxlen=REMEMBERED_EPOCHS)
    )
    """Frames answered here by wall time, one entry per epoch."""


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
        counters: Counters,
        wake: Callable[[float], object],
    ) -> None:
        """Prepare.

        ``workers`` lists those that can take a camera now; ``stage`` makes a write of the store
        and says whether it was taken; ``wake`` has :meth:`reconcile` called in so many seconds.
        """
        self.epoch_s = 2.0
        """How long a claim has to survive before it takes effect."""
        self.leaving = False
        """Whether this node gives its agents away."""
        self.problems: dict[str, str] = {}
        """Agents that cannot run here although they should, and why."""
        self._node_id = node_id
        self._store = store
        self._agents = agents
        self._workers = workers
        self._clock = clock
        self._stage = stage
        self._counters = counters
        self._wake = wake
        self._named: dict[str, _Named] = {}
        self._claimed_from: dict[str, bytes] = {}
        self._records = Records(store, AGENT, self._take)
        self._configured: dict[tuple[bytes, str], AgentSpec] = {}
        self._specs: Mapping[str, AgentSpec] = {}
        self._lock = asyncio.Lock()

    def publish(self, cameras: Iterable[CameraConfig], model: str) -> None:
        """Stage records for ``cameras``, and drop those of cameras no longer configured."""
        now = self._clock()
        wanted = {}
        for camera in cameras:
            key = AGENT + camera.name
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
                safety=camera.safety,
                since_ms=since_ms if isinstance(since_ms, int) else now.wall_ms,
            ).record()
        for origin, key, _ in self._store.owners(AGENT):
            if origin == self._node_id and key not in wanted:
                self._stage(self._store.delete_owner, key)
                name = key.removeprefix(AGENT)
                for register in (HOST + name, f"tier/{name}"):
                    if self._store.fleet(register, now) is not None:
                        self._stage(self._store.set_fleet, register, None, now)
        for key, record in wanted.items():
            if self._store.owner(self._node_id, key) != record:
                self._stage(self._store.set_owner, key, record)

    def specs(self) -> Mapping[str, AgentSpec]:
        """Return every agent of the fleet by name; of two with one name the elder.

        O(agents log agents) after one has changed, O(1) until the next.
        """
        if self._records.look():
            self._specs = self._elders()
        return self._specs

    def _take(self, origin: bytes, key: str, record: Value) -> None:
        try:
            spec = AgentSpec.from_record(key.removeprefix(AGENT), origin, record)
        except ValueError:  # gone, of a newer version, or of a liar; ours are checked before
            self._configured.pop((origin, key), None)
        else:
            self._configured[origin, key] = spec

    def _elders(self) -> dict[str, AgentSpec]:
        specs: dict[str, AgentSpec] = {}
        for (origin, _), spec in sorted(self._configured.items(), key=itemgetter(0)):
            elder = specs.get(spec.name)
            if elder is None or (spec.since_ms, origin) < (elder.since_ms, elder.home):
                specs[spec.name] = spec
        return specs

    def conflicts(self) -> list[str]:
        """Name this node's cameras whose name another node's elder camera has. O(agents)."""
        specs = self.specs()
        own = [spec.name for spec in self._configured.values() if spec.home == self._node_id]
        return sorted(name for name in own if specs[name].home != self._node_id)

    def host_of(self, spec: AgentSpec) -> bytes:
        """Return the node that the register names, or the home if it names nobody."""
        host = self._store.fleet(HOST + spec.name, self._clock())
        return host if isinstance(host, bytes) else spec.home

    def claim(self, living: Mapping[bytes, Capacity]) -> dict[str, str]:
        """Stage the claims of this epoch; return each claimed agent's cause.

        The cause is why its host changes: "death" (or no accelerator works there), "drain", "hot",
        or "home" for an agent that returns.

        Args:
            living: what the nodes believed alive published, this one included.
        """
        own = self._node_id
        leaving = {n for n, one in living.items() if (self.leaving if n == own else one.leaving)}
        settled = {n for n, one in living.items() if one.passes_per_s > 0} - leaving
        claimed = {}
        for name, spec in self.specs().items():
            host = self.host_of(spec)
            if host == own:
                self._claimed_from.pop(name, None)
            if host == own or (spec.home in settled and spec.home != own):
                continue  # nothing to ask: most agents are at home
            able = _able(spec, living)
            if should_host(name, spec.home, host, able, leaving) != own:
                continue
            if self._stage(self._store.set_fleet, HOST + name, own, self._clock()):
                claimed[name] = "home" if spec.home == own else _cause(living.get(host))
                if self._claimed_from.get(name) != host:  # else it waits for the disk
                    self._claimed_from[name] = host
                    self._counters.add("handovers", cause=claimed[name])
        self._remember_answers()
        return claimed

    def belonging(self, files: str) -> dict[str, AgentSpec]:
        """Return the agents that are to run here now, by name; see :meth:`reconcile`."""
        specs = self.specs()
        for name in self._named.keys() - specs.keys():
            del self._named[name]
        return {name: spec for name, spec in specs.items() if self._belongs_here(spec, files)}

    def _belongs_here(self, spec: AgentSpec, files: str) -> bool:
        host, survived = self._notice(spec)
        is_home = spec.home == self._node_id
        if is_home and not self.leaving:
            return True
        if host == self._node_id:
            return survived and (is_home or spec.movable_to(files))
        # In good order: what leaves runs until the claim of its next host takes effect there.
        return self.leaving and spec.name in self._agents.hosted and not survived

    def _notice(self, spec: AgentSpec) -> tuple[bytes, bool]:
        """Return whom the register names, and whether that claim has survived an epoch here."""
        now = self._clock()
        entry = self._store.fleet_entry(HOST + spec.name, now)
        host = entry[0] if entry is not None and isinstance(entry[0], bytes) else spec.home
        known = self._named.get(spec.name)
        if known is None or known.host != host:
            claimed_ms = 0 if entry is None else entry[1] >> WALL_BITS
            named = _Named(host, now.mono_s, claimed_ms)
            if known is not None:
                self._count_duplicates(spec, known, named)
                named.answered = known.answered
            self._named[spec.name] = known = named
            if host == self._node_id or spec.name in self._agents.hosted:
                self._wake(self.epoch_s + EARLY_S)
        return host, now.mono_s - known.since_s >= self.epoch_s

    def _count_duplicates(self, spec: AgentSpec, known: _Named, named: _Named) -> None:
        """Count what was answered here although another node's claim had taken effect by then.

        That comes to light when a partition ends: that node answered frames of the time as well.
        Exact to what an epoch answers.
        """
        agent = self._agents.hosted.get(spec.name)
        if agent is None or named.host == self._node_id:
            return
        effect_ms = named.claimed_ms + round(self.epoch_s * 1e3)
        before = [count for wall_ms, count in known.answered if wall_ms <= effect_ms]
        since = [count for wall_ms, count in known.answered if wall_ms > effect_ms]
        if since:
            first = before[-1] if before else since[0]
            self._counters.add("duplicates", max(0, agent.answered - first), agent=spec.name)

    def _remember_answers(self) -> None:
        """Note once an epoch how many frames each agent that runs here has answered."""
        wall_ms = self._clock().wall_ms
        for name, named in self._named.items():
            agent = self._agents.hosted.get(name)
            if agent is None:
                named.answered.clear()
            else:
                named.answered.append((wall_ms, agent.answered))

    async def reconcile(self, digest: str, files: str) -> None:
        """Open and close cameras until what runs here is what the replica says.

        Args:
            digest: the model to answer with.
            files: folder under which files of other nodes' cameras may be opened.
        """
        async with self._lock:
            hosted, workers = self._agents.hosted, self._workers()
            specs = self.belonging(files)
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


def _cause(host: Capacity | None) -> str:
    """Say why an agent's former host lost it to a successor."""
    if host is not None and host.leaving:
        return "drain" if host.draining else "hot"
    return "death"


def _able(spec: AgentSpec, living: Mapping[bytes, Capacity]) -> dict[bytes, float]:
    """Return the full passes per second of those that can run an agent, and would."""
    return {
        node: one.passes_per_s
        for node, one in living.items()
        if one.passes_per_s > 0
        and (node == spec.home or (one.takeover and spec.movable_to(one.files)))
    }
