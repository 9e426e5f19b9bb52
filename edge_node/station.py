"""This node as a place for agents: which run here, on which model, and where their frames go.

Owns the workers, the hosted agents and the parts that decide about them, and carries between them
what one says and another has to know. Decides nothing itself. Never sends a datagram and never
waits for the disk: what it writes goes through ``Writes``. Invariant: after every change of the
workers, the members or what the replica says of agents, what runs here is brought in line again.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import edge_node
from crdt import Change, Store, Value
from edge_node import clock
from edge_node.api.events import Feed
from edge_node.cameras.agents import Agents
from edge_node.cameras.hosts import AGENT, HOST, Hosts
from edge_node.cameras.outputs import Outputs
from edge_node.cameras.warm import WarmStarts
from edge_node.config import Config
from edge_node.dispatch import Dispatch
from edge_node.fleet.directory import Directory
from edge_node.fleet.health import Health, Zone, read_zones
from edge_node.fleet.holdings import CACHE, Holdings
from edge_node.fleet.load import Load
from edge_node.fleet.peers import Peers
from edge_node.fleet.planner import Planner
from edge_node.fleet.published import Capacity
from edge_node.fleet.release import RELEASE, Release
from edge_node.fleet.tiers import Tiers
from edge_node.fleet.writes import Writes
from edge_node.foresight import Foresight
from edge_node.metrics import Counters
from edge_node.placement.view import FleetView
from edge_node.pool import WorkerPool
from edge_node.workers import (
    CacheHolding,
    CameraState,
    FrameReady,
    ModelError,
    WorkerDied,
    WorkerEvent,
    WorkerHandle,
    WorkerReady,
)
from gossip import GossipNode
from models.manifest import load_manifest

log = logging.getLogger(__name__)

DRAIN_S = 2.0
SENSORS_LIMIT_S = 1.0  # a driver may hang
_BEARS = (AGENT, HOST, RELEASE, CACHE)  # keys that say what runs here


class Station:
    """The agents' part of a node. :meth:`start` brings it up and says how it ends."""

    def __init__(
        self,
        config: Config,
        store: Store,
        gossip: GossipNode,
        directory: Directory,
        writes: Writes,
        peers: Peers,
        counters: Counters,
        rng: random.Random,
        key_epoch: Callable[[], int],
        spawn: Callable[[Coroutine[Any, Any, Any], str], None],
    ) -> None:
        """Prepare; nothing runs before :meth:`start`.

        Args:
            key_epoch: tells that of the fleet's current key.
            spawn: runs a coroutine, under a name, until the node stops.

        Raises:
            ModelError: the configured model is not what the manifest holds.
        """
        self.view = FleetView()
        self.detections = Feed()
        self.outputs = Outputs()
        self.health = Health()
        self._config = config
        self._sensing: asyncio.Task[list[Zone]] | None = None
        self._store = store
        self._directory = directory
        self._writes = writes
        self._counters = counters
        self._key_epoch = key_epoch
        self._spawn = spawn
        self._reconcile = asyncio.Event()
        self.holdings = Holdings(store.origin, store, writes.stage)
        self._build_placement(gossip, peers, rng)
        self._build_cameras(peers)
        self._resume()

    def _build_placement(self, gossip: GossipNode, peers: Peers, rng: random.Random) -> None:
        """Build what answers frames and decides where."""
        config, store = self._config, self._store
        manifest = load_manifest(config.model.manifest)
        if manifest.name != config.model.name:
            raise ModelError(f"[model] name: the manifest holds {manifest.name}; name that one")
        self.pool = WorkerPool(config.accelerators, self._frame_ready, self._worker_event)
        self.release = Release(
            manifest,
            config.model.variant,
            self.pool.workers,
            lambda: self.agents.digests,
            config.model.also,
        )
        self.load = Load(gossip, self.pool, self._counters, lambda: self.release.digest)
        self.planner = Planner(store.origin, self.load, self.view)
        self.foresight = Foresight(
            config.node.state_dir / "affinity",
            self.planner.provider,
            self.release.by_digest,
            lambda: self.health.hottest_c,
        )
        self.dispatch = Dispatch(
            config.node.name,
            self.view,
            self.planner,
            peers,
            self.pool,
            self._counters,
            rng,
            self.release.quality,
            self.foresight,
        )

    def _build_cameras(self, peers: Peers) -> None:
        """Build what says which agents run here, and runs them."""
        store, writes = self._store, self._writes
        self.agents = Agents(
            self._config.node.name,
            self.release.manifest.classes,
            self.dispatch.answer,
            self._counters,
            self._tier_of,
            self._result,
        )
        self.warm = WarmStarts(store.origin, self.agents, self.view, peers, self._counters)
        self.hosts = Hosts(
            store.origin,
            store,
            self.agents,
            self._ready_workers,
            clock.now,
            writes.stage,
            self._counters,
            lambda after_s: asyncio.get_running_loop().call_later(after_s, self.reconcile),
        )
        self.tiers = Tiers(store.origin, store, self.hosts, self.agents, clock.now, writes.stage)

    async def start(self, ends: AsyncExitStack) -> None:
        """Bring the parts up; each that starts tells ``ends`` how it ends."""
        ends.callback(self.detections.close)
        ends.push_async_callback(self.pool.stop, DRAIN_S)
        await self.pool.start()
        self.foresight.open(next((one.spec.provider for one in self.pool.probes if one.ok), "cpu"))
        ends.callback(self.foresight.close)
        self.outputs.open(self._config.output.jsonl, self._config.output.mqtt)
        ends.push_async_callback(self.outputs.close)
        ends.push_async_callback(self.agents.close, DRAIN_S)
        for loop in (self._follow_state, self._epochs, self.foresight.keep_trained):
            self._spawn(loop(), loop.__name__)
        self.reconcile()

    # From outside

    def introduce(self) -> None:
        """Tell the fleet what this node is, now that it has its former state back."""
        self.holdings.withdraw_former()
        self._resume()
        self.publish()

    def follow(self, changes: Iterable[Change]) -> None:
        """Take what has changed in the replica."""
        if any(change.key.startswith(_BEARS) for change in changes):
            self.reconcile()

    def reconcile(self) -> None:
        """Have what runs here brought in line with the replica, soon."""
        self._reconcile.set()

    def publish(self) -> None:
        """Tell the fleet what this node is, and which cameras it has."""
        node, placement = self._config.node, self._config.placement
        self._writes.refused.clear()
        record: Value = {
            "name": node.name,
            "version": edge_node.__version__,
            "zone": node.zone,
            "takeover": placement.takeover,
            "draining": self.health.draining,
            "hot": self.health.hot,
            "files": placement.files,
            "key_epoch": self._key_epoch(),
            "capacity": round(self.pool.capacity, 2),
            "accelerators": [
                {
                    "name": probe.spec.name,
                    "provider": probe.spec.provider,
                    "share": probe.spec.share,
                }
                for probe in self.pool.probes
                if probe.ok
            ],
        }
        if self._store.owner(self._store.origin, "node") != record:
            self._writes.stage(self._store.set_owner, "node", record)
        self.hosts.publish(self._config.cameras, self._config.model.name)
        self._writes.commit()

    def drain(self, on: bool) -> None:
        """Give this node's agents away and take no work of others, or no longer."""
        if on != self.health.draining:
            log.info("this node drains" if on else "this node drains no longer")
        self.health.draining = on
        self._stay_or_leave()
        self._claim()

    async def apply(self, config: Config) -> None:
        """Go on with a new configuration."""
        outputs_changed = config.output != self._config.output
        self._config = config
        self._follow_settings()
        if outputs_changed:
            await self.outputs.close()
            self.outputs.open(config.output.jsonl, config.output.mqtt)
        self.publish()

    # From the parts

    def _worker_event(self, worker: str, event: WorkerEvent) -> None:
        match event:
            case CameraState(agent=agent, state=state, reason=reason):
                log.info("camera %s %s%s", agent, state, f": {reason}" if reason else "")
                self.agents.camera_state(agent, state, reason)
            case CacheHolding():
                self.holdings.take(event)
                self._writes.commit()
            case WorkerDied(reason=reason):
                log.error("worker %s died: %s", worker, reason)
                self._counters.add("worker_deaths", accelerator=worker)
                self.reconcile()
            case WorkerReady():
                self.reconcile()

    def _frame_ready(self, frame: FrameReady) -> None:
        self.agents.frame_ready(frame)

    def _tier_of(self, agent: str) -> int:
        return self.tiers.tier_of(agent)

    def _result(self, result: dict[str, Any]) -> None:
        self.tiers.observe(result)
        self.detections.publish(result)
        self.outputs.put(result)

    def _ready_workers(self) -> list[WorkerHandle]:
        return [worker for worker in self.pool.living if self.release.digest in worker.loaded]

    def _living(self) -> dict[bytes, Capacity]:
        return self._directory.capacities(self._directory.living())

    # Running

    async def _follow_state(self) -> None:
        """After each change: run the desired model, then the agents that belong here."""
        while True:
            await self._reconcile.wait()
            self._reconcile.clear()
            if self.health.leaving:  # its cameras may have other hosts, of whom it has to hear
                await self._writes.acquainted.wait()
            await self.release.follow(self._store.fleet(self.release.key, clock.now()))
            digest = self.release.digest
            if not digest:
                continue
            await self.hosts.reconcile(digest, self._config.placement.files)
            for name, current in self.agents.cold.items():
                holders = self.holdings.of(name, current)
                self._spawn(self.warm.begin(name, holders), f"warm start {name}")

    async def _epochs(self) -> None:
        while True:
            await asyncio.sleep(self._config.placement.epoch_s)
            placement = self._config.placement
            zones = await self._feel(placement.thermal)
            if zones is not None and self.health.felt(zones, placement.hot_c):
                log.warning("this node is %s", self.health.temperature)
                self._stay_or_leave()
            self.tiers.evaluate()
            self._claim()
            await self._plan()

    async def _feel(self, thermal: Path | None) -> list[Zone] | None:
        """Read the device's sensors; None while a driver does not answer."""
        if self._sensing is None or self._sensing.done():
            self._sensing = asyncio.create_task(
                asyncio.to_thread(self._read_sensors, thermal), name="sensors"
            )
        await asyncio.wait([self._sensing], timeout=SENSORS_LIMIT_S)
        return self._sensing.result() if self._sensing.done() else None

    def _read_sensors(self, thermal: Path | None) -> list[Zone]:
        self.foresight.measure(time.monotonic())
        return read_zones(thermal)

    async def _plan(self) -> None:
        """Plan where the frames of the next epoch run."""
        specs, living, now_s = self.hosts.specs(), self._living(), time.monotonic()
        if not specs:
            self.planner.rest(living, now_s)
            return
        given = self.planner.inputs(
            specs,
            self.hosts.host_of,
            self.tiers.tier_of,
            self.dispatch.warmth.factor,
            lambda _: self.release.digest,
            living,
            now_s,
        )
        await self.planner.renew(given, living)

    def _claim(self) -> None:
        """Claim the agents that should run here, and try again what failed."""
        if self._writes.acquainted.is_set():  # else who seems to be gone was only not met yet
            living = self._living() if self.hosts.specs() else {}
            for name, cause in self.hosts.claim(living).items():
                log.info("claiming agent %s (%s)", name, cause)
            self._writes.commit()
        self.reconcile()

    def _stay_or_leave(self) -> None:
        """Tell the parts and the fleet whether this node gives its agents away."""
        self._follow_settings()
        if self._writes.acquainted.is_set():
            self.publish()

    def _resume(self) -> None:
        """Go on as this node's own record says that it was."""
        self.health.restore(self._store.owner(self._store.origin, "node"))
        self._follow_settings()

    def _follow_settings(self) -> None:
        placement = self._config.placement
        self.hosts.epoch_s, self.tiers.enabled = placement.epoch_s, placement.tiers
        self.hosts.leaving = self.load.closed = self.health.leaving
        self.dispatch.policy = placement.policy
        self.dispatch.adaptation.mode = self._config.model.adapt
