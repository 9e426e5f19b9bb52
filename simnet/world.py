"""A fleet of gossip nodes in one process, under virtual time.

Owns the queue of coming events, the machines and the trace. Never reads a clock; the cores that run
here are the ones that run on sockets. Invariant: the same seed and the same calls give the same
trace hash.
"""

import gc
import random
from collections.abc import Callable
from hashlib import sha256
from heapq import heappop, heappush
from struct import Struct
from typing import Any

from gossip.config import GossipConfig
from gossip.events import Address, Transmit
from simnet.host import Host, Watch
from simnet.link import Conditions, Name, Network
from simnet.warm import acquaint, connect

__all__ = ["Host", "World"]

_STAMP = Struct("<dI")
_TRACE_BYTES = 1 << 16


class World:
    """Machines, the network between them, and time."""

    def __init__(
        self,
        seed: int,
        config: GossipConfig | None = None,
        *,
        conditions: Conditions | None = None,
        standin: bool = False,
    ) -> None:
        """Make an empty world; with `standin` its nodes' cryptography is simnet.standin's."""
        self.seed = seed
        self.standin = standin
        self.config = config or GossipConfig()
        self.network = Network(seed, conditions)
        self.now_s = 1000.0
        self.hosts: dict[Name, Host] = {}
        self.tap: Callable[[Host, Transmit], None] | None = None
        self.watch: Watch | None = None
        """Who is told what happens; without one, hosts keep their events."""
        self._addresses: dict[Address, Host] = {}
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._trace = sha256()
        self._noted = bytearray()
        self._doubtful: Host | None = None  # who last did not see all live

    def add(self, name: Name, *, secret: bytes = b"the fleet's own secret") -> Host:
        """Add a machine, not yet started."""
        address = (f"10.0.{len(self.hosts) // 250}.{len(self.hosts) % 250 + 1}", 7946)
        host = Host(self, name, address, secret)
        self.hosts[name] = host
        self._addresses[address] = host
        return host

    def fleet(self, count: int) -> list[Host]:
        """Add and start machines n0, n1, ... that all have n0 for a seed."""
        hosts = [self.add(f"n{index}") for index in range(count)]
        for host in hosts:
            if host is not hosts[0]:
                host.seeds.append(hosts[0].address)
            host.start()
        return hosts

    def warm_fleet(self, count: int, *, links: bool = True) -> list[Host]:
        """Add and start n0, n1, ... that have known each other for long; no node has a seed.

        Without `links` they know each other's claims alone, and have still to shake hands.
        """
        gc.unfreeze()
        gc.collect()  # what was frozen with a world that is gone
        hosts = [self.add(f"n{index}") for index in range(count)]
        for host in hosts:
            host.start()
        acquaint([host.running._members for host in hosts], hosts[0].now())
        if links:
            met = self.network.conditions
            rtt_s = 2 * met.delay_s + met.jitter_s
            connect([host.running for host in hosts], hosts[0].now(), self.rng("links"), rtt_s)
        for host in hosts:
            host.drain()
        gc.freeze()  # a fleet lives as long as its world: collections need not visit all of it
        return hosts

    def rng(self, purpose: str) -> random.Random:
        """Return a stream of random numbers of its own, the same for the same seed and purpose."""
        return random.Random(f"{self.seed} {purpose}")

    def move(self, host: Host, address: Address) -> None:
        """Give a machine another address; whatever is sent to the old one is lost."""
        del self._addresses[host.address]
        host.address = address
        self._addresses[address] = host

    def at(self, when_s: float, action: Callable[..., None], *args: Any) -> None:
        """Run an action at a virtual time."""
        self._order += 1
        heappush(self._queue, (when_s, self._order, action, args))

    def after(self, delay_s: float, action: Callable[..., None], *args: Any) -> None:
        """Run an action after a delay."""
        self.at(self.now_s + delay_s, action, *args)

    def run(self, duration_s: float) -> None:
        """Let virtual time pass."""
        end_s = self.now_s + duration_s
        queue = self._queue
        while queue and queue[0][0] <= end_s:
            self.now_s, _, action, args = heappop(queue)
            action(*args)
        self.now_s = end_s

    def run_until(
        self, reached: Callable[[], bool], limit_s: float, *, step_s: float = 0.05
    ) -> float:
        """Run until a condition holds; return the virtual seconds it took, AssertionError if none.

        The condition is looked at after every step.
        """
        begun_s = self.now_s
        while not reached():
            assert self.now_s - begun_s < limit_s, f"seed {self.seed}: not within {limit_s} s"
            self.run(step_s)
        return self.now_s - begun_s

    def converged(self) -> bool:
        """Tell whether all running nodes hold the same bytes."""
        return len({host.store.fingerprint() for host in self.hosts.values() if host.node}) <= 1

    def all_live(self) -> bool:
        """Tell whether every running node sees exactly the running nodes alive; O(n) until so."""
        hosts = [host for host in self.hosts.values() if host.node]
        running = {host.node_id for host in hosts}
        if self._doubtful in hosts:
            hosts.insert(0, self._doubtful)
        for host in hosts:
            if host.running.alive() != running:
                self._doubtful = host
                return False
        return True

    def transmit(self, source: Host, output: Transmit) -> None:
        """Put a datagram on the wire."""
        if self.tap is not None:
            self.tap(source, output)
        data, addr = output
        self.note(source.name, data)
        target = self._addresses.get(addr)
        if target is not None:
            for at_s, copy in self.network.arrivals(source.name, target.name, data, self.now_s):
                self.at(at_s, self._deliver, copy, addr, source.address)

    def note(self, who: str, what: bytes) -> None:
        """Take something that happened into the trace."""
        noted = self._noted
        noted += _STAMP.pack(self.now_s, len(what))
        noted += who.encode()
        noted += what
        if len(noted) > _TRACE_BYTES:
            self._trace.update(noted)
            noted.clear()

    def trace_hash(self) -> str:
        """Return the hash of all datagrams and events so far."""
        self._trace.update(self._noted)
        self._noted.clear()
        return self._trace.hexdigest()

    def _deliver(self, data: bytes, to: Address, source: Address) -> None:
        target = self._addresses.get(to)
        if target is not None:
            target.receive(data, source)
