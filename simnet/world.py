"""A fleet of gossip nodes in one process, under virtual time.

Owns the queue of coming events, the hosts (what a machine keeps over a crash) and the trace.
Never reads a clock; the cores that run here are the ones that run on sockets. Invariant: the same
seed and the same calls give the same trace hash.
"""

import gc
import random
from collections.abc import Callable
from hashlib import sha256
from heapq import heappop, heappush
from math import inf
from typing import Any

from crdt.clock import HybridClock, Instant
from crdt.codec import Value
from crdt.store import Store
from edge_node.fleet.database import EPOCH_SALT_BITS, Saved, next_epoch
from gossip.config import GossipConfig
from gossip.events import Address, Event, Persist, Transmit
from gossip.node import GossipNode
from gossip.sealing import Identity
from simnet.link import Name, Network
from simnet.standin import StandinIdentity
from simnet.warm import acquaint

_EPOCH_WALL_MS = 1_700_000_000_000
_PERSIST_S = 0.001
_ACQUAINT_S = 5.0
_COMMIT_RETRY_S = 0.02
_LEAST_STEP_S = 1e-6


class Host:
    """A machine: what survives a crash, and the node that runs on it, if one does."""

    def __init__(self, world: "World", name: Name, address: Address, secret: bytes) -> None:
        self.world = world
        self.name = name
        self.address = address
        self.secret = secret
        self.skew_ms = 0
        self.revoked: set[bytes] = set()
        self.rng = world.rng(f"host {name}")
        private = self.rng.randbytes(32)
        self.identity = (
            StandinIdentity(private) if world.standin else Identity.from_private_bytes(private)
        )
        self.journal = Saved(self.identity.node_id)
        self.incarnation = 0
        self.seeds: list[Address] = []
        self.node: GossipNode | None = None
        self.store: Store
        self.events: list[tuple[float, Event]] = []
        self.written = 0  # entries of all batches made durable
        self._run = 0
        self._timer_s = inf  # when the timer that counts goes off; never later than needed
        self._held_s = -inf
        self._commit_s = 0.0

    @property
    def node_id(self) -> bytes:
        """Return the node id that this machine's key gives."""
        return self.identity.node_id

    @property
    def running(self) -> GossipNode:
        """Return the node; AssertionError while the machine is down."""
        assert self.node is not None, f"{self.name} is down"
        return self.node

    def now(self) -> Instant:
        """Return the virtual time as this machine's clocks show it."""
        now_s = self.world.now_s
        return Instant(now_s, _EPOCH_WALL_MS + int(now_s * 1000) + self.skew_ms)

    def start(self) -> None:
        """Boot as the daemon does: raise the durable numbers, restore the journal, call the seeds.

        `journal` is the machine's disk: a copy of it put back is an image, or a lost tail; a new
        `Saved` is a lost journal.
        """
        assert self.node is None, f"{self.name} is up"
        self.incarnation += 1
        salt = self.rng.getrandbits(EPOCH_SALT_BITS)
        self.journal.epoch = next_epoch(self.journal.epoch, self.now().wall_ms / 1000, salt)
        self._run += 1
        self._timer_s = inf
        self.store = Store(
            self.identity.node_id,
            epoch=self.journal.epoch,
            sign=self.identity.sign,
            verify=self.identity.verify,
            public_key=self.identity.public_key,
            clock=HybridClock(self.journal.high_water),
        )
        for _, raw in sorted(self.journal.batches.items()):
            self.store.restore(raw, self.now())
        self.node = GossipNode(
            self.identity,
            self.secret,
            self.store,
            self.world.config,
            self.world.rng(f"node {self.name} {self._run}"),
            boot=self.rng.randbytes(16),
            incarnation=self.incarnation,
            address=self.address,
            now=self.now(),
            exchange=self.rng.randbytes(32),
            revoked=self.revoked.__contains__,
        )
        patient = self.seeds or self.incarnation > 1
        self._commit_s = self.world.now_s + (_ACQUAINT_S if patient else 0.0)
        for seed in self.seeds:
            self.node.join(seed, self.now())
        self.drain()

    def crash(self) -> None:
        """Lose everything that is not in the journal, without a word."""
        if self.node is not None:
            self.incarnation = max(self.incarnation, self.node.incarnation)
        self.node = None

    def set_owner(self, key: str, value: Value) -> None:
        """Write one of this machine's own records, and commit."""
        self.store.set_owner(key, value)
        self.commit()

    def commit(self) -> None:
        """Commit the staged writes: at once, but not before this node is acquainted."""
        if self.running.acquainted or self.world.now_s >= self._commit_s:
            self._commit_s = 0.0
            self.running.commit(self.now())
            self.drain()
        else:
            self.world.after(_COMMIT_RETRY_S, self._commit_again, self._run)

    def hold(self, duration_s: float) -> None:
        """Freeze the process; its timer goes off before it reads what waits in the socket."""
        self._held_s = self.world.now_s + duration_s

    def receive(self, data: bytes, source: Address) -> None:
        """Take a datagram, if anything runs here."""
        if self.node is None:
            return
        if self.world.now_s < self._held_s:
            self.world.at(self._held_s + _LEAST_STEP_S, self.receive, data, source)
        else:
            self.node.receive_datagram(data, source, self.now())
            self.drain()

    def drain(self) -> None:
        """Carry out what the core wants, and arm its timer."""
        node = self.running
        while (output := node.poll()) is not None:
            if isinstance(output, Transmit):
                self.world.transmit(self, output)
            elif isinstance(output, Persist):
                self.world.after(_PERSIST_S, self._persisted, output, self._run)
            else:
                self.events.append((self.world.now_s, output))
                self.world.note(self.name, repr(output).encode())
        due_s = node.next_deadline()
        if due_s < self._timer_s:
            self._timer_s = max(due_s, self.world.now_s + _LEAST_STEP_S)
            self.world.at(self._timer_s, self._fire, self._timer_s, self._run)

    def _fire(self, due_s: float, run: int) -> None:
        if run != self._run or due_s != self._timer_s or self.node is None:
            return
        if self.world.now_s < self._held_s:
            self._timer_s = self._held_s
            self.world.at(self._held_s, self._fire, self._held_s, run)
            return
        self._timer_s = inf
        if self.node.next_deadline() <= self.world.now_s:  # else it has moved on meanwhile
            self.node.handle_timer(self.now())
        self.drain()

    def _persisted(self, output: Persist, run: int) -> None:
        if run != self._run or self.node is None:
            return
        assert self.journal.objection(output.batch) is None
        self.journal.add(output.batch, self.store.clock.high_water)
        self.written += len(output.batch.entries)
        self.node.persisted(output.batch, self.now())
        self.drain()

    def _commit_again(self, run: int) -> None:
        if run == self._run and self.node is not None:
            self.commit()


class World:
    """Hosts, the network between them, and time."""

    def __init__(
        self, seed: int, config: GossipConfig | None = None, *, standin: bool = False
    ) -> None:
        """Make an empty world; with `standin` its nodes' cryptography is simnet.standin's."""
        self.seed = seed
        self.standin = standin
        self.config = config or GossipConfig()
        self.network = Network(seed)
        self.now_s = 1000.0
        self.hosts: dict[Name, Host] = {}
        self.tap: Callable[[Host, Transmit], None] | None = None
        self._addresses: dict[Address, Host] = {}
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._trace = sha256()
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

    def warm_fleet(self, count: int) -> list[Host]:
        """Add and start n0, n1, ... that all know each other's claims, but have no links yet.

        No node has a seed: that who is lost comes back is not what such a fleet is for.
        """
        gc.unfreeze()
        gc.collect()  # what was frozen with a world that is gone
        hosts = [self.add(f"n{index}") for index in range(count)]
        for host in hosts:
            host.start()
        acquaint([host.running._members for host in hosts], hosts[0].now())
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
        while self._queue and self._queue[0][0] <= end_s:
            self.now_s, _, action, args = heappop(self._queue)
            action(*args)
        self.now_s = end_s

    def run_until(self, reached: Callable[[], bool], limit_s: float) -> float:
        """Run until a condition holds; return the virtual seconds it took, AssertionError if none.

        The condition is looked at every 50 virtual milliseconds.
        """
        begun_s = self.now_s
        while not reached():
            assert self.now_s - begun_s < limit_s, f"seed {self.seed}: not within {limit_s} s"
            self.run(0.05)
        return self.now_s - begun_s

    def converged(self) -> bool:
        """Tell whether all running nodes hold the same bytes."""
        return len({host.store.fingerprint() for host in self.hosts.values() if host.node}) == 1

    def all_live(self) -> bool:
        """Tell whether every running node sees exactly the running nodes alive; O(n) until so."""
        hosts = [host for host in self.hosts.values() if host.node]
        running = {host.node_id for host in hosts}
        if self._doubtful in hosts:
            hosts.insert(0, self._doubtful)
        for host in hosts:
            seen = [one for one in host.running.members() if one.state in ("self", "alive")]
            if {view.node_id for view in seen} != running:
                self._doubtful = host
                return False
        return True

    def transmit(self, source: Host, output: Transmit) -> None:
        """Put a datagram on the wire."""
        if self.tap is not None:
            self.tap(source, output)
        self.note(f"{source.name} {output.addr}", output.data)
        target = self._addresses.get(output.addr)
        if target is not None:
            sent = (source.name, target.name, output.data)
            for at_s, data in self.network.arrivals(*sent, self.now_s):
                self.at(at_s, self._deliver, data, output.addr, source.address)

    def note(self, who: str, what: bytes) -> None:
        """Take something that happened into the trace."""
        self._trace.update(f"{self.now_s:.6f} {who} {len(what)} ".encode() + what)

    def trace_hash(self) -> str:
        """Return the hash of all datagrams and events so far."""
        return self._trace.hexdigest()

    def _deliver(self, data: bytes, to: Address, source: Address) -> None:
        target = self._addresses.get(to)
        if target is not None:
            target.receive(data, source)
