"""A node of a cluster: the real daemon, with the scenario where it meets the world outside.

Owns this process' faults, what it writes, and what it tells the controller: facts, each with its
time on the clock that all share. Never reaches into the protocol: its faults are those of clocks,
networks and disks, and its writes go the way of the daemon's own. Never makes the daemon wait.
Invariants: what happens to it when follows from the scenario, the seed and the run's zero, which
the controller tells; facts arrive in the order in which they were told.
"""

import asyncio
import gc
import logging
import os
import resource
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import aiohttp
import msgpack
import uvloop

from crdt.log import Batch
from edge_node import clock, config, daemon, service
from edge_node.config import Config
from edge_node.daemon import Daemon
from gossip import Event
from simnet import poison
from simnet.cluster.outside import Connector, Host, Skew, Wire
from simnet.cluster.setting import Setting
from simnet.faults import Clock, Flood, Poison, Slow, Step
from simnet.lasting import Lasting, follow
from simnet.link import Name, Network
from simnet.workload import FLOOD_S, Write, flood, read, told, workload

SAMPLE_S = 1.0
"""Least time between two samples."""

_PART = 256
"""Entries of a reading in one fact."""

_MOST_BYTES = 65_536
"""Of one thing that the controller says."""

_PACK_BYTES = 4096
"""Of a buffer for facts, to begin with."""


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
        self._lasting = Lasting()
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
        after, now_s = self._loop.call_later, time.monotonic()
        for step in self.setting.plan:
            wait_s = zero_s + step.at_s - now_s
            if wait_s > 0:
                after(wait_s, self._do, step)
            elif not isinstance(step.fault, Poison):
                self._do(step)
        for write in workload(self.setting.scenario, self.setting.seed):
            wait_s = zero_s + write.at_s - now_s
            if write.name == self.name and wait_s >= 0:
                after(wait_s, self._write, write)

    def _do(self, step: Step) -> None:
        follow(self._network, step)
        if self.name not in step.names:
            return
        fault, lasting = step.fault, self._lasting
        lasting.step(step)
        if isinstance(fault, Slow):
            self._wire.slow_s = sum(one.each_s for one in lasting.of(Slow))
        elif isinstance(fault, Clock):
            clocks = lasting.of(Clock)
            drift_ppm = sum(one.drift_ppm for one in clocks)
            self._skew.turn(sum(one.offset_s for one in clocks), drift_ppm)
            self.udp.kick()
        elif isinstance(fault, Flood) and step.begins:
            self._loop.call_soon(self._flood, step.number, fault.per_s)
        elif isinstance(fault, Poison):
            for round_ in range(poison.ROUNDS):
                self._loop.call_later(round_ * poison.EACH_S, self._poison, round_)

    # What it writes

    def _write(self, write: Write) -> None:
        removing = partial(self._reports.tell, "removing")
        write.put(self.store, self.writes.stage, clock.now(), removing)
        self.writes.commit()

    def _flood(self, number: int, per_s: float) -> None:
        if number in self._lasting:
            flood(self.store, self.writes.stage, per_s, time.monotonic())
            self.writes.commit()
            self._loop.call_later(FLOOD_S, self._flood, number, per_s)

    def _poison(self, round_: int) -> None:
        poison.spread(self.store, self.writes.stage, clock.now(), round_)
        self.writes.commit()
        self.gossip.set_volatile("load", poison.report(round_), clock.now())
        self.udp.kick()

    # What it tells

    def _durable(self, batch: Batch) -> None:
        self._reports.tell("persisted", batch.raw)

    def _told(self, event: Event) -> None:
        for fact in told(self.store, event):
            self._reports.tell(*fact)
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
        reading = read(self.store, clock.now())
        owners = [(*about, number) for about, number in reading.owners.items()]
        for first in range(0, len(owners), _PART):
            self._reports.tell("owners", owners[first : first + _PART])
        for key, register in reading.registers.items():
            self._reports.tell("register", key, *register)
        for key, numbers in reading.elements.items():
            self._reports.tell("elements", key, list(numbers))
        self._reports.tell("looked", reading.horizon, self.gossip.counters)


class Reports:
    """The way to the controller."""

    def __init__(self, address: str, name: str, heard: Callable[[list[Any]], None]) -> None:
        """Connect to the controller; ``heard`` gets what it says. Raises OSError."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect("\0" + address)
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[bytes] = deque()
        self._pack = msgpack.Packer(buf_size=_PACK_BYTES).pack  # packb would map and unmap 1 MiB
        self._socket.send(msgpack.packb(["hello", time.monotonic(), name]))
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._read)

    def tell(self, kind: str, *fields: Any) -> None:
        """Tell a fact that is true now."""
        data: bytes = self._pack([kind, time.monotonic(), *fields])
        if self._waiting or not self._send(data):
            if not self._waiting:
                self._loop.add_writer(self._socket, self._send_waiting)
            self._waiting.append(data)

    def _send_waiting(self) -> None:
        while self._waiting and self._send(self._waiting[0]):
            self._waiting.popleft()
        if not self._waiting:
            self._loop.remove_writer(self._socket)

    def _send(self, data: bytes) -> bool:
        """Tell whether the socket took it; without a controller nothing matters any more."""
        try:
            self._socket.send(data)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def _read(self) -> None:
        try:
            data = self._socket.recv(_MOST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._heard(msgpack.unpackb(data))
        else:  # the controller is gone; the launcher ends this process
            self._loop.remove_reader(self._socket)


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
