"""The daemon: build its parts, connect them, start and stop them. Nothing is decided here.

Owns the lifecycle and the one event loop. What comes in (datagrams, frames, requests, signals)
goes straight to the part that owns it: ``GossipNode``, ``Agents``, the API, ``reload``.
"""

import asyncio
import contextlib
import logging
import random
import secrets
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from aiohttp import web

import edge_node
from crdt import Change, HybridClock, Store, Value
from edge_node import clock
from edge_node import config as configuration
from edge_node.api.events import Feed
from edge_node.api.local import local_app
from edge_node.api.peer import peer_app
from edge_node.cameras.agents import Agents
from edge_node.cameras.hosts import Hosts
from edge_node.cameras.outputs import Outputs
from edge_node.cameras.warm import WarmStarts
from edge_node.config import Config, ConfigError
from edge_node.dispatch import Dispatch
from edge_node.fleet.addresses import AddressError, advertised, listening, resolve
from edge_node.fleet.artifacts import Artifacts
from edge_node.fleet.auth import Signer, Verifier
from edge_node.fleet.directory import REVOKED, Directory, is_revoked
from edge_node.fleet.health import Health, read_zones
from edge_node.fleet.holdings import Holdings
from edge_node.fleet.identity import IdentityError, load_or_create_identity, load_secret, load_token
from edge_node.fleet.journal import Journal, JournalError
from edge_node.fleet.keyring import FleetKeys
from edge_node.fleet.load import Load
from edge_node.fleet.peers import Peers
from edge_node.fleet.planner import Planner
from edge_node.fleet.release import Release
from edge_node.fleet.shared import HOLDERS, PREFIX, SharedValues
from edge_node.fleet.tiers import Tiers
from edge_node.fleet.trust import Trust
from edge_node.fleet.writes import Writes
from edge_node.foresight import Foresight
from edge_node.memory import release_unused
from edge_node.metrics import Counters
from edge_node.notify import Notifier
from edge_node.placement.view import FleetView
from edge_node.pool import WorkerPool
from edge_node.status import Status
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
from gossip import (
    Event,
    GossipConfig,
    GossipNode,
    KeysChanged,
    MemberDown,
    MemberLeft,
    MemberSuspect,
    MemberUp,
    StateChanged,
    verify,
)
from gossip.udp import UdpHost
from models.manifest import load_manifest

log = logging.getLogger(__name__)

LOAD_PERIOD_S = 0.5
LAG_PERIOD_S = 0.25
DRAIN_S = 2.0
ADDRESS_PERIOD_S = 60.0
SETTLED_S = 60.0  # what start-up alone needed is given back then
GOODBYE_S = 0.3
KEEPALIVE_S = 30.0
KEEP_PERIOD_S = 30.0


class StartError(Exception):
    """The daemon cannot start; the text says why and what to do."""


class Daemon:
    """One node. :meth:`start` brings every part up, :meth:`stop` takes it down in order."""

    def __init__(self, config: Config, on_failure: Callable[[], None]) -> None:
        """Prepare a node; ``on_failure`` is called when a part of it failed and it has to stop."""
        self.config = config
        self.failed = False
        self._on_failure = on_failure
        self.started = clock.now()
        self.boot = secrets.token_bytes(16)
        self.rng = random.Random(self.boot)
        self.counters = Counters()
        self.view = FleetView()
        self.changes = Feed()
        self.detections = Feed()
        self.outputs = Outputs()
        self.health = Health()
        self.loop_lag_s = 0.0
        self.notifier = Notifier()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reconcile = asyncio.Event()
        self._values_changed = asyncio.Event()
        self._ends = contextlib.AsyncExitStack()

    # Starting

    async def start(self) -> None:
        """Bring the node up; each part that starts says how it ends.

        Raises:
            StartError: something outside this process is in the way; call :meth:`stop`.
        """
        try:
            self._open_state()
            self.address = await advertised(self.config.fleet)
            self._build()
            await self._listen()
        except (AddressError, IdentityError, JournalError, ModelError) as error:
            raise StartError(str(error)) from error
        self._ends.push_async_callback(self.pool.stop, DRAIN_S)
        await self.pool.start()
        self.foresight.open(next((one.spec.provider for one in self.pool.probes if one.ok), "cpu"))
        self._ends.callback(self.foresight.close)
        self.outputs.open(self.config.output.jsonl, self.config.output.mqtt)
        self._ends.push_async_callback(self.outputs.close)
        self._ends.push_async_callback(self.agents.close, DRAIN_S)
        for seed in self.config.fleet.seeds:
            self._spawn(self._join(seed), f"join {seed}")
        for loop in (
            self._introduce,
            self._follow_state,
            self._epochs,
            self._share_load,
            self._watch_lag,
            self._watch_address,
            self._keep_artifacts,
            self._keep_keys,
            self.foresight.keep_trained,
        ):
            self._spawn(loop(), loop.__name__)
        self._ends.callback(self._cancel_tasks)
        self._reconcile.set()
        settled = asyncio.get_running_loop().call_later(SETTLED_S, release_unused)
        self._ends.callback(settled.cancel)
        log.info(
            "node %s (%s) up: peers %s:%d, API %s",
            self.config.node.name,
            self.identity.node_id.hex(),
            *self.address,
            self.config.api.bind,
        )

    def _open_state(self) -> None:
        state_dir = self.config.node.state_dir
        self.identity = load_or_create_identity(state_dir)
        secret = load_secret(self.config.fleet.secret_file)
        self.journal = Journal.open(state_dir, origin=self.identity.node_id)
        self._ends.push_async_callback(self.journal.close)
        self.keys = FleetKeys.open(state_dir, secret, clock.now())
        self._ends.push_async_callback(self.keys.save)
        for notice in self.journal.start.notices:
            log.warning("%s", notice)
        start = self.journal.start
        self.store = Store(
            self.identity.node_id,
            epoch=start.epoch,
            sign=self.identity.sign,
            verify=verify,
            public_key=self.identity.public_key,
            clock=HybridClock(start.high_water),
        )
        for raw in start.batches:
            self.store.restore(raw, clock.now())

    def _build(self) -> None:
        config = self.config
        self.gossip = GossipNode(
            self.identity,
            self.keys.ring,
            self.store,
            GossipConfig(),
            self.rng,
            boot=self.boot,
            incarnation=self.journal.start.incarnation,
            address=self.address,
            now=clock.now(),
            known=lambda node: node in self.keys.comrades,
            revoked=lambda node: is_revoked(self.store, node),
        )
        self.directory = Directory(self.store, self.gossip)
        self.udp = UdpHost()
        self.writes = Writes(self.store, self.journal, self.gossip, self.udp.kick, self.counters)
        self.holdings = Holdings(self.identity.node_id, self.store, self.writes.stage)
        self.peers = Peers(
            Signer(self.identity.node_id, self.boot, self.keys.ring),
            self.directory.address_of,
            self.directory.name_of,
        )
        self.trust = Trust(
            self.identity.node_id,
            self.store,
            self.gossip,
            self.keys,
            self.writes,
            self.udp.kick,
            self.directory.name_of,
            lambda: self.config.fleet.keep_previous_key_s,
        )
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
        self.load = Load(
            self.store, self.gossip, self.pool, self.counters, lambda: self.release.digest
        )
        self.planner = Planner(self.identity.node_id, self.load, self.view)
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
            self.peers,
            self.pool,
            self.counters,
            self.rng,
            self.release.quality,
            self.foresight,
        )
        self.agents = Agents(
            config.node.name,
            manifest.classes,
            self.dispatch.answer,
            self.counters,
            self._tier_of,
            self._result,
        )
        self.warm = WarmStarts(
            self.identity.node_id, self.agents, self.view, self.peers, self.counters
        )
        self.hosts = Hosts(
            self.identity.node_id,
            self.store,
            self.agents,
            self._ready_workers,
            clock.now,
            self.writes.stage,
            self.counters,
            lambda after_s: asyncio.get_running_loop().call_later(after_s, self._reconcile.set),
        )
        self.tiers = Tiers(
            self.identity.node_id,
            self.store,
            self.hosts,
            self.agents,
            clock.now,
            self.writes.stage,
        )
        self.health.restore(self.store.owner(self.identity.node_id, "node"))
        self._follow_settings()
        self.shared = SharedValues(
            self.identity.node_id,
            self.store,
            self.writes,
            self.peers,
            Artifacts(config.node.state_dir / "artifacts"),
            self.directory.living,
        )
        self.status = Status(self)

    async def _listen(self) -> None:
        config = self.config
        bind, api = config.fleet.bind, config.api.bind
        with listening(f"[fleet] bind {bind} (UDP)"):
            await self.udp.start(
                self.gossip,
                (bind.host, bind.port),
                persist=self.writes.persist,
                on_event=self._gossip_event,
                clock=clock.now,
                on_failure=self._fail,
            )
        self._ends.push_async_callback(self._say_goodbye)
        self._ends.push_async_callback(self.peers.close)
        self.verifier = Verifier(
            self.identity.node_id, self.keys.ring, lambda node: is_revoked(self.store, node)
        )
        token = load_token(config.api.token_file) if config.api.token_file else None
        with listening(f"[fleet] bind {bind} (TCP)"):
            await self._serve(peer_app(self.status, self.verifier), bind.host, bind.port)
        with listening(f"[api] bind {api}"):
            await self._serve(local_app(self.status, token), api.host, api.port)
        self._ends.callback(self.changes.close)
        self._ends.callback(self.detections.close)

    async def _serve(self, app: web.Application, host: str, port: int) -> None:
        runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=1.0, keepalive_timeout=KEEPALIVE_S
        )
        self._ends.push_async_callback(runner.cleanup)
        await runner.setup()
        wildcard = host == "::" and socket.has_dualstack_ipv6()  # reached over IPv4 too
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, dualstack_ipv6=wildcard)
        await web.SockSite(runner, listener).start()

    def _publish(self) -> None:
        self.writes.refused.clear()
        record: Value = {
            "name": self.config.node.name,
            "version": edge_node.__version__,
            "zone": self.config.node.zone,
            "takeover": self.config.placement.takeover,
            "draining": self.health.draining,
            "hot": self.health.hot,
            "files": self.config.placement.files,
            "key_epoch": self.keys.ring.current.number,
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
        if self.store.owner(self.identity.node_id, "node") != record:
            self.writes.stage(self.store.set_owner, "node", record)
        self.hosts.publish(self.config.cameras, self.config.model.name)
        self.writes.commit()

    async def _join(self, seed: configuration.Address) -> None:
        """Tell gossip where the seed is, again from time to time: names and networks change."""
        while True:
            self.gossip.join(await resolve(seed), clock.now())
            self.udp.kick()
            await asyncio.sleep(ADDRESS_PERIOD_S)

    async def _watch_address(self) -> None:
        """Tell the peers when this node's own address changed."""
        while True:
            await asyncio.sleep(ADDRESS_PERIOD_S)
            address = self.address
            with contextlib.suppress(AddressError):  # its name does not resolve just now
                address = await advertised(self.config.fleet)
            if address != self.address:
                log.info("this node is now at %s:%d", *address)
                self.address = address
                self.gossip.readdress(address, clock.now())
                self.udp.kick()

    # Running

    async def _introduce(self) -> None:
        await self.writes.acquaint(bool(self.config.fleet.seeds))
        self.holdings.withdraw_former()
        self.health.restore(self.store.owner(self.identity.node_id, "node"))
        self._follow_settings()
        self._publish()

    def _gossip_event(self, event: Event) -> None:
        match event:
            case StateChanged(changes=changes):
                self._state_changed(changes)
            case KeysChanged(number=number):
                log.info("the fleet's key is now that of key epoch %d", number)
                self.keys.note((one.node_id for one in self.gossip.members()), clock.now())
                if self.writes.acquainted.is_set():
                    self._publish()
            case MemberUp() | MemberSuspect() | MemberDown() | MemberLeft():
                word = type(event).__name__.removeprefix("Member").lower()
                log.info("node %s is %s", self.directory.name_of(event.node_id), word)
                if isinstance(event, MemberDown | MemberLeft):
                    self.view.forget(event.node_id)
                self._reconcile.set()

    def _state_changed(self, changes: tuple[Change, ...]) -> None:
        self._reconcile.set()
        for change in changes:
            if change.key.startswith((PREFIX, HOLDERS)):
                self._values_changed.set()
            elif change.key.startswith(REVOKED):
                self.trust.enforce()
            self.changes.publish(self.status.change(change))

    def _worker_event(self, worker: str, event: WorkerEvent) -> None:
        match event:
            case CameraState(agent=agent, state=state, reason=reason):
                log.info("camera %s %s%s", agent, state, f": {reason}" if reason else "")
                self.agents.camera_state(agent, state, reason)
            case CacheHolding():
                self.holdings.take(event)
                self.writes.commit()
            case WorkerDied(reason=reason):
                log.error("worker %s died: %s", worker, reason)
                self.counters.add("worker_deaths", accelerator=worker)
                self._reconcile.set()
            case WorkerReady():
                self._reconcile.set()

    def _frame_ready(self, frame: FrameReady) -> None:
        self.agents.frame_ready(frame)

    def _tier_of(self, agent: str) -> int:
        return self.tiers.tier_of(agent)

    def _result(self, result: dict[str, Any]) -> None:
        self.tiers.observe(result)
        self.detections.publish(result)
        self.outputs.put(result)

    async def _follow_state(self) -> None:
        """After each change: run the desired model, then the agents that belong here."""
        while True:
            await self._reconcile.wait()
            self._reconcile.clear()
            if self.health.leaving:  # its cameras may have other hosts, of whom it has to hear
                await self.writes.acquainted.wait()
            await self.release.follow(self.store.fleet(self.release.key, clock.now()))
            digest = self.release.digest
            if not digest:
                continue
            await self.hosts.reconcile(digest, self.config.placement.files)
            for name, current in self.agents.cold.items():
                holders = self.holdings.of(name, current)
                self._spawn(self.warm.begin(name, holders), f"warm start {name}")

    async def _epochs(self) -> None:
        while True:
            await asyncio.sleep(self.config.placement.epoch_s)
            placement = self.config.placement
            zones = await asyncio.to_thread(read_zones, placement.thermal)
            if self.health.felt(zones, placement.hot_c):
                log.warning("this node is %s", self.health.temperature)
                self._stay_or_leave()
            self.tiers.evaluate()
            self._claim()
            await self._plan()

    async def _plan(self) -> None:
        """Plan where the frames of the next epoch run."""
        await self.planner.renew(
            self.hosts.specs(),
            self.hosts.host_of,
            self.tiers.tier_of,
            self.release.digest,
            self.load.capacities(frozenset(self.directory.living())),
            time.monotonic(),
        )

    def _claim(self) -> None:
        """Claim the agents that should run here, and try again what failed."""
        if self.writes.acquainted.is_set():  # else who seems to be gone was only not met yet
            living = self.load.capacities(frozenset(self.directory.living()))
            for name, cause in self.hosts.claim(living).items():
                log.info("claiming agent %s (%s)", name, cause)
            self.writes.commit()
        self._reconcile.set()

    def drain(self, on: bool) -> None:
        """Give this node's agents away and take no work of others, or no longer."""
        if on != self.health.draining:
            log.info("this node drains" if on else "this node drains no longer")
        self.health.draining = on
        self._stay_or_leave()
        self._claim()

    def _stay_or_leave(self) -> None:
        """Tell the parts and the fleet whether this node gives its agents away."""
        self._follow_settings()
        if self.writes.acquainted.is_set():
            self._publish()

    def _follow_settings(self) -> None:
        placement = self.config.placement
        self.hosts.epoch_s, self.tiers.enabled = placement.epoch_s, placement.tiers
        self.hosts.leaving = self.load.closed = self.health.leaving
        self.dispatch.policy = placement.policy
        self.dispatch.adaptation.mode = self.config.model.adapt

    async def _keep_artifacts(self) -> None:
        """Keep the large values that this node has to keep, and only those."""
        await self.writes.acquainted.wait()
        while True:
            await self.shared.keep()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KEEP_PERIOD_S):
                    await self._values_changed.wait()
            self._values_changed.clear()

    async def _keep_keys(self) -> None:
        await self.keys.keep(lambda: self.config.fleet.keep_previous_key_s, clock.now)

    async def _share_load(self) -> None:
        """Tell the peers this node's load, take theirs into the view, keep the incarnation."""
        durable = self.journal.start.incarnation
        while True:
            if self.gossip.incarnation > durable:  # a suspicion was refuted
                with contextlib.suppress(JournalError):
                    await self.journal.record_incarnation(self.gossip.incarnation)
                    durable = self.gossip.incarnation
            self.load.exchange(self.view, clock.now())
            self.udp.kick()
            await asyncio.sleep(LOAD_PERIOD_S)

    async def _watch_lag(self) -> None:
        """Measure how late the loop runs: gossip is patient on a busy node, systemd is told."""
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(LAG_PERIOD_S)
            self.loop_lag_s = max(0.0, time.monotonic() - before_s - LAG_PERIOD_S)
            self.gossip.slow(self.loop_lag_s, clock.now())
            self.notifier.watchdog()

    def _ready_workers(self) -> list[WorkerHandle]:
        return [worker for worker in self.pool.living if self.release.digest in worker.loaded]

    def _spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> None:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Ours: better to crash and be restarted than to run on without a part.
            log.critical("task %s failed", task.get_name(), exc_info=error)
            self._fail()

    def _fail(self) -> None:
        self.failed = True
        self._on_failure()

    # Changing and stopping

    async def reload(self) -> None:
        """Read the configuration again; a bad file keeps the old one."""
        self.notifier.reloading()
        try:
            await self._apply(configuration.load(self.config.path))
            log.info("configuration reloaded")
        except ConfigError as error:
            log.error("configuration not changed: %s", error)
        finally:
            self.notifier.ready()

    async def _apply(self, fresh: Config) -> None:
        for name in configuration.needs_restart(self.config, fresh):
            log.warning("%s changed: takes effect after a restart", name)
        outputs_changed = fresh.output != self.config.output
        self.config = replace(
            self.config,
            fleet=replace(self.config.fleet, keep_previous_key_s=fresh.fleet.keep_previous_key_s),
            placement=fresh.placement,
            model=replace(self.config.model, adapt=fresh.model.adapt),
            output=fresh.output,
            cameras=fresh.cameras,
        )
        self.keys.look()
        self._follow_settings()
        if outputs_changed:
            await self.outputs.close()
            self.outputs.open(fresh.output.jsonl, fresh.output.mqtt)
        self._publish()

    async def stop(self) -> None:
        """Finish the frames under way, say goodbye to the peers, and end every part."""
        self.notifier.stopping()
        await self._ends.aclose()

    def _cancel_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    async def _say_goodbye(self) -> None:
        self.gossip.leave(clock.now())
        self.udp.kick()
        await asyncio.sleep(GOODBYE_S)
        await self.udp.close()
