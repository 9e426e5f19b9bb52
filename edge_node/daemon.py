"""The daemon: build its parts, connect them, start and stop them. Nothing is decided here.

Owns the lifecycle, the one event loop, and this node as a member of the fleet; as a place for
agents it is a :class:`~edge_node.station.Station`. What comes in (datagrams, frames, requests,
signals) goes straight to the part that owns it: ``GossipNode``, ``Station``, the API, ``reload``.
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
from functools import partial
from typing import Any

from aiohttp import web

from crdt import Change, HybridClock, Store
from edge_node import clock
from edge_node import config as configuration
from edge_node.api.events import Feed
from edge_node.api.local import local_app
from edge_node.api.peer import peer_app
from edge_node.config import Config, ConfigError
from edge_node.fleet.addresses import AddressError, advertised, listening, resolve
from edge_node.fleet.artifacts import Artifacts
from edge_node.fleet.auth import Signer, Verifier
from edge_node.fleet.directory import REVOKED, Directory, is_revoked
from edge_node.fleet.identity import IdentityError, load_or_create_identity, load_secret, load_token
from edge_node.fleet.journal import Journal, JournalError
from edge_node.fleet.keyring import FleetKeys
from edge_node.fleet.peers import Peers
from edge_node.fleet.shared import HOLDERS, PREFIX, SharedValues
from edge_node.fleet.trust import Trust
from edge_node.fleet.writes import Writes
from edge_node.memory import release_unused
from edge_node.metrics import Counters
from edge_node.notify import Notifier
from edge_node.requests import Requests
from edge_node.station import Station
from edge_node.workers import ModelError
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
from gossip.sealing import VERSIONS
from gossip.udp import UdpHost

log = logging.getLogger(__name__)

LOAD_PERIOD_S = 0.5
LAG_PERIOD_S = 0.5
ADDRESS_PERIOD_S = 60.0
SETTLED_S = 15.0  # what start-up alone needed is given back then
GOODBYE_S = 0.3
KEEPALIVE_S = 30.0
KEEP_PERIOD_S = 30.0


class StartError(Exception):
    """The daemon cannot start; the text says why and what to do."""


class Daemon:
    """One node. :meth:`start` brings every part up, :meth:`stop` takes it down in order."""

    def __init__(
        self,
        config: Config,
        on_failure: Callable[[], None],
        *,
        gossip: GossipConfig | None = None,
        versions: tuple[int, int] = VERSIONS,
        udp: UdpHost | None = None,
    ) -> None:
        """Prepare a node; ``on_failure`` is called when a part of it failed and it has to stop.

        Args:
            gossip: the protocol's tunables, all nodes' alike.
            versions: of the protocol, the lowest and the highest that this node speaks.
            udp: what carries the datagrams.
        """
        self.config = config
        self.udp = udp or UdpHost()
        self._protocol = gossip or GossipConfig(), versions
        self.failed = False
        self._on_failure = on_failure
        self.started = clock.now()
        self.boot = secrets.token_bytes(16)
        self.rng = random.Random(self.boot)
        self.counters = Counters()
        self.changes = Feed()
        self.loop_lag_s = 0.0
        self.notifier = Notifier()
        self._tasks: set[asyncio.Task[Any]] = set()
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
        await self.station.start(self._ends)
        for seed in self.config.fleet.seeds:
            self._spawn(self._join(seed), f"join {seed}")
        for loop in (
            self._introduce,
            self._share_load,
            self._watch_lag,
            self._watch_address,
            self._keep_artifacts,
            self._keep_keys,
        ):
            self._spawn(loop(), loop.__name__)
        self._ends.callback(self._cancel_tasks)
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
        wall_s = clock.now().wall_ms / 1e3
        self.journal = Journal.open(state_dir, origin=self.identity.node_id, wall_s=wall_s)
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
        tunables, versions = self._protocol
        self.gossip = GossipNode(
            self.identity,
            self.keys.ring,
            self.store,
            tunables,
            self.rng,
            boot=self.boot,
            incarnation=self.journal.start.incarnation,
            address=self.address,
            now=clock.now(),
            known=lambda node: node in self.keys.comrades,
            revoked=lambda node: is_revoked(self.store, node),
            versions=versions,
        )
        self.directory = Directory(self.store, self.gossip)
        self.writes = Writes(self.store, self.journal, self.gossip, self.udp.kick, self.counters)
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
        self.station = Station(
            config,
            self.store,
            self.gossip,
            self.directory,
            self.writes,
            self.peers,
            self.counters,
            self.rng,
            lambda: self.keys.ring.current.number,
            self._spawn,
        )
        self.shared = SharedValues(
            self.identity.node_id,
            self.store,
            self.writes,
            self.peers,
            Artifacts(config.node.state_dir / "artifacts"),
            self.directory.living,
        )
        self.requests = Requests(self)

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
            await self._serve(peer_app(self.requests, self.verifier), bind.host, bind.port)
        with listening(f"[api] bind {api}"):
            await self._serve(local_app(self.requests, token), api.host, api.port)
        self._ends.callback(self.changes.close)

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
        self.station.introduce()

    def _gossip_event(self, event: Event) -> None:
        match event:
            case StateChanged(changes=changes):
                self._state_changed(changes)
            case KeysChanged(number=number):
                log.info("the fleet's key is now that of key epoch %d", number)
                self.keys.note((one.node_id for one in self.gossip.members()), clock.now())
                if self.writes.acquainted.is_set():
                    self.station.publish()
            case MemberUp() | MemberSuspect() | MemberDown() | MemberLeft():
                word = type(event).__name__.removeprefix("Member").lower()
                log.info("node %s is %s", self.directory.name_of(event.node_id), word)
                if isinstance(event, MemberDown | MemberLeft):
                    self.station.view.forget(event.node_id)
                if not isinstance(event, MemberSuspect):  # the doubted still host what they host
                    self.station.reconcile()

    def _state_changed(self, changes: tuple[Change, ...]) -> None:
        self.station.follow(changes)
        for change in changes:
            if change.key.startswith((PREFIX, HOLDERS)):
                self._values_changed.set()
            elif change.key.startswith(REVOKED):
                self.trust.enforce()
            self.changes.tell(partial(self.requests.change, change))

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
            self.station.load.exchange(self.station.view, clock.now())
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
        self.config = replace(
            self.config,
            fleet=replace(self.config.fleet, keep_previous_key_s=fresh.fleet.keep_previous_key_s),
            placement=fresh.placement,
            model=replace(self.config.model, adapt=fresh.model.adapt),
            output=fresh.output,
            cameras=fresh.cameras,
        )
        self.keys.look()
        await self.station.apply(self.config)

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
