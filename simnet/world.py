"""A fleet of gossip nodes in one process, under virtual time.

Owns the queue of coming events, the hosts (what a machine keeps over a crash) and the trace.
Never reads a clock; the cores that run here are the ones that run on sockets. Invariant: the same
seed and the same calls give the same trace hash.
"""

import random
from collections.abc import Callable
from hashlib import sha256
from heapq import heappop, heappush

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from crdt.clock import HybridClock, Instant
from crdt.codec import Value
from crdt.store import Store
from edge_node.fleet.database import EPOCH_SALT_BITS, Saved, next_epoch
from gossip.config import GossipConfig
from gossip.events import Address, Event, Persist, Transmit
from gossip.node import GossipNode
from gossip.sealing import Identity, verify
from simnet.link import Name, Network

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
        self.rng = random.Random(f"{world.seed} host {name}")
        self.identity = Identity.from_private_bytes(self.rng.randbytes(32))
        self.journal = Saved(self.identity.node_id)
        self.incarnation = 0
        self.seeds: list[Address] = []
        self.node: GossipNode | None = None
        self.store: Store
        self.events: list[tuple[float, Event]] = []
        self._run = 0
        self._timer_s = -1.0
        self._held_s = -1.0
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
        self._timer_s = -1.0
        self.store = Store(
            self.identity.node_id,
            epoch=self.journal.epoch,
            sign=self.identity.sign,
            verify=verify,
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
            random.Random(f"{self.world.seed} node {self.name} {self._run}"),
            boot=self.rng.randbytes(16),
            incarnation=self.incarnation,
            address=self.address,
            now=self.now(),
            exchange=X25519PrivateKey.from_private_bytes(self.rng.randbytes(32)),
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
            run = self._run

            def again() -> None:
                if self.node is not None and run == self._run:
                    self.commit()

            self.world.after(_COMMIT_RETRY_S, again)

    def hold(self, duration_s: float) -> None:
        """Freeze the process: datagrams and timers wait for it, as in a socket's buffer."""
        self._held_s = self.world.now_s + duration_s

    def receive(self, data: bytes, source: Address) -> None:
        """Take a datagram, if anything runs here."""
        if self.world.now_s < self._held_s:
            self.world.at(self._held_s, lambda: self.receive(data, source))
        elif self.node is not None:
            self.node.receive_datagram(data, source, self.now())
            self.drain()

    def drain(self) -> None:
        """Carry out what the core wants, and arm its timer."""
        node = self.running
        while (output := node.poll()) is not None:
            if isinstance(output, Transmit):
                self.world.transmit(self, output)
            elif isinstance(output, Persist):
                self.world.after(_PERSIST_S, self._persister(output))
            else:
                self.events.append((self.world.now_s, output))
                self.world.note(f"{self.name} {output!r}".encode())
        due_s = node.next_deadline()
        if due_s != float("inf"):
            due_s = max(due_s, self.world.now_s + _LEAST_STEP_S)
            if due_s != self._timer_s:
                self._timer_s = due_s
                self.world.at(due_s, self._timer(due_s))

    def _persister(self, output: Persist) -> Callable[[], None]:
        run = self._run

        def persisted() -> None:
            if self.node is not None and run == self._run:
                assert self.journal.objection(output.batch) is None
                self.journal.add(output.batch, self.store.clock.high_water)
                self.node.persisted(output.batch, self.now())
                self.drain()

        return persisted

    def _timer(self, due_s: float) -> Callable[[], None]:
        run = self._run

        def fire() -> None:
            if self.world.now_s < self._held_s:
                self.world.at(self._held_s, fire)
            elif self.node is not None and run == self._run and due_s == self._timer_s:
                self._timer_s = -1.0
                self.node.handle_timer(self.now())
                self.drain()

        return fire


class World:
    """Hosts, the network between them, and time."""

    def __init__(self, seed: int, config: GossipConfig | None = None) -> None:
        self.seed = seed
        self.config = config or GossipConfig()
        self.network = Network(seed)
        self.now_s = 1000.0
        self.hosts: dict[Name, Host] = {}
        self.tap: Callable[[Host, Transmit], None] | None = None
        self._addresses: dict[Address, Host] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._trace = sha256()

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

    def move(self, host: Host, address: Address) -> None:
        """Give a machine another address; whatever is sent to the old one is lost."""
        del self._addresses[host.address]
        host.address = address
        self._addresses[address] = host

    def at(self, when_s: float, action: Callable[[], None]) -> None:
        """Run an action at a virtual time."""
        self._order += 1
        heappush(self._queue, (when_s, self._order, action))

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Run an action after a delay."""
        self.at(self.now_s + delay_s, action)

    def run(self, duration_s: float) -> None:
        """Let virtual time pass."""
        end_s = self.now_s + duration_s
        while self._queue and self._queue[0][0] <= end_s:
            self.now_s, _, action = heappop(self._queue)
            action()
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
        """Tell whether every running node sees exactly the running nodes alive."""
        running = {host.node_id for host in self.hosts.values() if host.node}
        return all(
            {view.node_id for view in host.node.members() if view.state in ("self", "alive")}
            == running
            for host in self.hosts.values()
            if host.node
        )

    def transmit(self, source: Host, output: Transmit) -> None:
        """Put a datagram on the wire."""
        if self.tap is not None:
            self.tap(source, output)
        self.note(source.name.encode() + repr(output.addr).encode() + output.data)
        target = self._addresses.get(output.addr)
        if target is None:
            return
        address = source.address
        for delay_s in self.network.arrivals(source.name, target.name):
            self.after(delay_s, self._delivery(output, address))

    def note(self, what: bytes) -> None:
        """Take something that happened into the trace."""
        self._trace.update(f"{self.now_s:.6f} {len(what)} ".encode() + what)

    def trace_hash(self) -> str:
        """Return the hash of all datagrams and events so far."""
        return self._trace.hexdigest()

    def _delivery(self, output: Transmit, source: Address) -> Callable[[], None]:
        def deliver() -> None:
            target = self._addresses.get(output.addr)
            if target is not None:
                target.receive(output.data, source)

        return deliver
