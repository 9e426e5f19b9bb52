"""A node of a cluster: the real daemon, with the scenario where it meets the world outside.

Owns this process' faults and what it tells the controller. Never reaches into the protocol: its
faults are those of clocks, networks and disks. Invariant: what happens to it when follows from the
scenario, the seed and the run's zero, which the controller tells.
"""

import asyncio
import gc
import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import aiohttp
import uvloop

from crdt.log import Batch
from edge_node import clock, config, daemon, service
from edge_node.config import Config
from edge_node.daemon import Daemon
from gossip import Event, KeysChanged, StateChanged
from simnet.cluster.reports import Reports
from simnet.cluster.setting import Setting
from simnet.cluster.skew import Skew
from simnet.cluster.wire import Connector, Host, Wire, follow
from simnet.cluster.writing import Writing
from simnet.faults import Clock, Flood, Poison, Slow, Step
from simnet.link import Name, Network
from simnet.workload import PREFIX, number_of

SAMPLE_S = 1.0
"""Least time between two samples."""

_PART = 256
"""Entries of a reading in one fact."""


class Given(NamedTuple):
    """What the launcher has made for all nodes."""

    setting: Setting
    configs: Mapping[Name, Config]


class Node(Daemon):
    """The daemon, between its reports and its faults."""

    def __init__(
        self,
        given: Given,
        name: Name,
        versions: tuple[int, int],
        on_failure: Callable[[], None],
    ) -> None:
        """Prepare; raises OSError if there is no controller."""
        self.setting, self.name = given.setting, name
        setting = given.setting
        self._network = Network(setting.seed, setting.scenario.network)
        self._wire = Wire(name, setting.name_at.get, self._network)
        self._skew = Skew()
        clock.now = self._skew.now
        self._loop = asyncio.get_running_loop()
        self._reports = Reports(setting.reports, name, self._heard)
        self._sampler: asyncio.TimerHandle | None = None
        self._sampled_s = 0.0
        super().__init__(
            given.configs[name],
            on_failure,
            gossip=setting.scenario.gossip,
            versions=versions,
            udp=Host(self._wire, self._durable, self._told),
        )

    def _build(self) -> None:
        super()._build()
        self.peers._session = aiohttp.ClientSession(
            auto_decompress=False, connector=Connector(self._wire)
        )
        for raw in self.journal.start.batches:
            self._reports.tell("restored_batch", raw)
        self._reports.tell("started", self.identity.node_id)

    async def start(self) -> None:
        """Bring the node up, and tell so."""
        await super().start()
        self._reports.tell("up")
        self._sample_soon()

    # What the controller says

    def _heard(self, words: list[Any]) -> None:
        if words[0] == "zero":
            self._follow_plan(words[1])
        elif words[0] == "look":
            self._look()
        else:
            self._sample()

    def _follow_plan(self, zero_s: float) -> None:
        """Carry out what the plan has for this node, in time; what lasts, at once."""
        writing = Writing(self, self._loop, partial(self._reports.tell, "removing"))
        now_s = time.monotonic()
        for step in self.setting.plan:
            wait_s = zero_s + step.at_s - now_s
            if wait_s > 0:
                self._loop.call_later(wait_s, self._do, step, writing)
            elif not isinstance(step.fault, Poison):
                self._do(step, writing)
        writing.begin(self.setting, self.name, zero_s)

    def _do(self, step: Step, writing: Writing) -> None:
        follow(self._network, step)
        if self.name not in step.names:
            return
        fault = step.fault
        if isinstance(fault, Slow):
            self._wire.slow_s += fault.each_s if step.begins else -fault.each_s
        elif isinstance(fault, Clock):
            self._skew.turn(fault.offset_s, fault.drift_ppm if step.begins else 0.0, step.begins)
            self.udp.kick()
        elif isinstance(fault, Flood):
            writing.flood(fault.per_s if step.begins else 0.0)
        elif isinstance(fault, Poison):
            writing.poison()

    # What it tells

    def _durable(self, batch: Batch) -> None:
        self._reports.tell("persisted", batch.raw)

    def _told(self, event: Event) -> None:
        if isinstance(event, StateChanged):
            for change in event.changes:
                if change.kind == "owner" and change.key.startswith(f"{PREFIX}owner"):
                    number = number_of(self.store.owner(change.origin, change.key))
                    self._reports.tell("record", change.origin, change.key, number)
                elif change.kind == "set" and change.key.startswith(PREFIX):
                    self._reports.tell("set", change.key, self._numbers(change.key))
        elif not isinstance(event, KeysChanged):
            self._reports.tell("event", type(event).__name__, event.node_id)
        self._sample_soon()

    def _sample_soon(self) -> None:
        if self._sampler is None:
            wait_s = max(0.05, self._sampled_s + SAMPLE_S - time.monotonic())
            self._sampler = self._loop.call_later(wait_s, self._sample)

    def _sample(self) -> None:
        if self._sampler is not None:
            self._sampler.cancel()
        self._sampler = None
        self._sampled_s = time.monotonic()
        members = self.gossip._members
        self._reports.tell(
            "sample",
            self.store.fingerprint(),
            members.digest(),
            1 + len(members.live()),
            self.writes.acquainted.is_set() and self.store.complete and not self.store.staged,
            self.gossip.longest_queue(),
            self.gossip.counters,
        )

    def _look(self) -> None:
        """Tell all that the workload's keys read now, in parts, and then the horizon."""
        store, now = self.store, clock.now()
        owners = [
            (origin, key, number)
            for origin, key, found in store.owners(PREFIX)
            if (number := number_of(found))
        ]
        for first in range(0, len(owners), _PART):
            self._reports.tell("owners", owners[first : first + _PART])
        for key, found in store.fleet_items(PREFIX, now):
            entry = store.fleet_entry(key, now)
            assert entry is not None
            self._reports.tell("register", key, entry[1], entry[2], number_of(found))
        for key in store.set_keys(PREFIX):
            self._reports.tell("elements", key, self._numbers(key))
        self._reports.tell("looked", store.clock.horizon(now), self.gossip.counters)

    def _numbers(self, key: str) -> list[int]:
        return [one for one in self.store.elements(key) if isinstance(one, int)]


def _keep_shared() -> int:
    """Give nothing back once started: what the nodes share costs nothing, and is needed again."""
    gc.collect()
    gc.freeze()
    return 0


def configs(setting: Setting) -> dict[Name, Config]:
    """Read every node's configuration, but for the accelerators that it has by default.

    A worker process would cost far more than the node, and nothing asks it.
    """
    return {
        name: replace(config.load(setting.config_of(name)), accelerators=())
        for name in setting.names
    }


def main(given: Given, name: Name, versions: tuple[int, int], *, full: bool) -> int:
    """Be a node until a signal comes; return the exit status."""
    log = os.open(given.setting.log_of(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    if full:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    daemon.release_unused = _keep_shared  # type: ignore[attr-defined]
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname).1s %(message)s"
    )

    async def live() -> int:
        return await service.serve(lambda fail: Node(given, name, versions, fail))

    return uvloop.run(live())
