"""A machine of the world: what survives a crash, and the node that runs on it, if one does.

Owns a node's inputs and outputs, its clocks, its disk and its pauses; never decides when anything
happens to it. Invariant: what the daemon does around the gossip core happens here in the same
order: batches become durable one after the other, the first only once the node is acquainted.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from crdt.clock import HybridClock, Instant
from crdt.codec import Value
from crdt.log import Batch
from crdt.store import Store
from gossip.events import Address, Event, Persist, StateChanged, Transmit
from gossip.node import GossipNode
from gossip.sealing import VERSIONS, Identity
from simnet.disk import Disk, DiskFull, salt
from simnet.link import Name
from simnet.standin import StandinIdentity

if TYPE_CHECKING:
    from simnet.world import World

_EPOCH_WALL_MS = 1_700_000_000_000
_PERSIST_S = 0.001
_FULL_RETRY_S = 1.0
_ACQUAINT_S = 5.0
_COMMIT_RETRY_S = 0.02
_LEAST_STEP_S = 1e-6
_BURST_DATAGRAMS = 32  # that gossip.udp reads before the loop turns to its timers
_SOCKET_DATAGRAMS = 256  # that wait in a socket of Linux's usual size; more are dropped


class Watch(Protocol):
    """Who is told what happens on the machines."""

    def started(self, host: Host) -> None: ...
    def stopped(self, host: Host) -> None: ...
    def persisted(self, host: Host, batch: Batch) -> None: ...
    def told(self, host: Host, event: Event) -> None: ...


class Host:
    """A machine."""

    def __init__(self, world: World, name: Name, address: Address, secret: bytes) -> None:
        self.world = world
        self.name = name
        self.address = address
        self.secret = secret
        self.versions = VERSIONS
        self.revoked: set[bytes] = set()
        self.rng = world.rng(f"host {name}")
        private = self.rng.randbytes(32)
        self.identity = (
            StandinIdentity(private) if world.standin else Identity.from_private_bytes(private)
        )
        self.disk = Disk(self.identity.node_id)
        self.seeds: list[Address] = []
        self.node: GossipNode | None = None
        self.store: Store
        self.events: list[tuple[float, Event]] = []
        self.written = 0  # entries of all batches made durable
        self.slow_s = 0.0  # what each datagram takes
        self.paused = False
        self.skew_ms = 0  # how far the wall clock is ahead
        self._wanted = False  # to be started, as soon as the disk lets it
        self._rate = 1.0
        self._mono_base_s = self._base_s = world.now_s
        self._run = 0
        self._due_s = inf  # when the node last said that it wants to be woken
        self._timer_s = inf  # when the timer that counts goes off; never later than needed
        self._free_s = 0.0  # when what came before has been dealt with
        self._empty_s = 0.0  # when nothing waited any more
        self._unread = 0  # datagrams read since
        self._waiting: deque[tuple[bytes, Address]] = deque()
        self._to_persist: deque[Batch] = deque()
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

    @property
    def incarnation(self) -> int:
        """Return the newest incarnation that is durable."""
        return self.disk.saved.incarnation

    # clocks

    def drift(self, rate: float) -> None:
        """Let the clocks run so much faster from now on; 1 is right."""
        self._mono_base_s, self._base_s = self._mono_s(), self.world.now_s
        self._rate = rate
        self._rearm()

    def now(self) -> Instant:
        """Return the virtual time as this machine's clocks show it."""
        mono_s = self._mono_s()
        return Instant(mono_s, _EPOCH_WALL_MS + int(mono_s * 1000) + self.skew_ms)

    def _mono_s(self) -> float:
        return self._mono_base_s + (self.world.now_s - self._base_s) * self._rate

    def _true_s(self, mono_s: float) -> float:
        if self._rate == 1.0 and self._mono_base_s == self._base_s:
            return mono_s
        return self._base_s + (mono_s - self._mono_base_s) / self._rate

    # life

    def start(self) -> None:
        """Boot as the daemon does: raise the durable numbers, restore the journal, call the seeds.

        While the disk has no room for a new journal that is tried again every second.
        """
        assert self.node is None, f"{self.name} is up"
        self._wanted = True
        try:
            saved = self.disk.boot(self.now().wall_ms / 1000, salt(self.rng))
        except DiskFull:
            self.world.after(_FULL_RETRY_S, self._start_again)
            return
        self._run += 1
        self._timer_s = inf
        self._to_persist.clear()
        self.store = Store(
            self.identity.node_id,
            epoch=saved.epoch,
            sign=self.identity.sign,
            verify=self.identity.verify,
            public_key=self.identity.public_key,
            clock=HybridClock(saved.high_water),
        )
        for _, raw in sorted(saved.batches.items()):
            self.store.restore(raw, self.now())
        self.node = GossipNode(
            self.identity,
            self.secret,
            self.store,
            self.world.config,
            self.world.rng(f"node {self.name} {self._run}"),
            boot=self.rng.randbytes(16),
            incarnation=saved.incarnation,
            address=self.address,
            now=self.now(),
            exchange=self.rng.randbytes(32),
            revoked=self.revoked.__contains__,
            versions=self.versions,
        )
        patient = self.seeds or saved.incarnation > 1
        self._commit_s = self.world.now_s + (_ACQUAINT_S if patient else 0.0)
        if self.world.watch is not None:
            self.world.watch.started(self)
        for seed in self.seeds:
            self.node.join(seed, self.now())
        self.drain()

    def crash(self, disk: str = "whole") -> None:
        """Lose everything that is not on the disk, without a word; see ``simnet.disk``."""
        self._wanted = False
        if self.node is None:
            return
        self.disk.crash(disk, self.rng)
        self._stop()

    def leave(self) -> None:
        """Say goodbye and end."""
        self._wanted = False
        if self.node is not None and not self.paused:
            self.node.leave(self.now())
            self.drain()
            self.disk.crash("whole", self.rng)
            self._stop()

    def _stop(self) -> None:
        self.node = None
        self.paused = False
        self._waiting.clear()
        if self.world.watch is not None:
            self.world.watch.stopped(self)

    def _start_again(self) -> None:
        if self._wanted and self.node is None:
            self.start()

    def pause(self) -> None:
        """Stop the process where it is; what comes waits in the socket."""
        self.paused = self.node is not None

    def resume(self) -> None:
        """Let it go on; its timer goes off before it reads what waits in the socket."""
        if not self.paused:
            return
        self.paused = False
        if self._timer_s <= self.world.now_s:
            self._fire(self._timer_s, self._run)
        while self._waiting:
            self.receive(*self._waiting.popleft())
        self._persist_next(self._run)

    def hold(self, duration_s: float) -> None:
        """Pause for a while."""
        self.pause()
        self.world.after(duration_s + _LEAST_STEP_S, self.resume)

    # writes

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

    def _commit_again(self, run: int) -> None:
        if run == self._run and self.node is not None:
            self.commit()

    # what comes in and goes out

    def receive(self, data: bytes, source: Address) -> None:
        """Take a datagram, if anything runs here."""
        if self.node is None:
            return
        if self.paused:
            if len(self._waiting) < _SOCKET_DATAGRAMS:
                self._waiting.append((data, source))
            return
        if self.slow_s:
            self._free_s = max(self._free_s, self.world.now_s) + self.slow_s
            if self._free_s - self.world.now_s > _SOCKET_DATAGRAMS * self.slow_s:
                self._free_s -= self.slow_s
                return
            self.world.at(self._free_s, self._take, data, source, self._run)
            return
        self.node.receive_datagram(data, source, self.now())
        self.drain()

    def _take(self, data: bytes, source: Address, run: int) -> None:
        if run != self._run or self.node is None:
            return
        if self.paused:
            self._waiting.append((data, source))
            return
        self._unread += 1
        if self._free_s <= self.world.now_s:
            self._unread, self._empty_s = 0, self.world.now_s
        elif self._unread >= _BURST_DATAGRAMS:  # as gossip.udp tells after so many
            self._unread = 0
            self.node.slow(self.world.now_s - self._empty_s, self.now())
        self.node.receive_datagram(data, source, self.now())
        self.drain()

    def drain(self) -> None:
        """Carry out what the core wants, and arm its timer."""
        node, world = self.running, self.world
        while (output := node.poll()) is not None:
            if isinstance(output, Transmit):
                world.transmit(self, output)
            elif isinstance(output, Persist):
                self._to_persist.append(output.batch)
                if len(self._to_persist) == 1:
                    world.after(_PERSIST_S, self._persist_next, self._run)
                    self.disk.begun = output.batch, self.store.clock.high_water
            else:
                self._tell(output)
        self._rearm()

    def _rearm(self) -> None:
        if self.node is None:
            return
        self._due_s = self.node.next_deadline()
        self._arm()

    def _arm(self) -> None:
        due_s = self._true_s(self._due_s)
        if due_s < self._timer_s:
            self._timer_s = max(due_s, self.world.now_s + _LEAST_STEP_S)
            self.world.at(self._timer_s, self._fire, self._timer_s, self._run)

    def _tell(self, event: Event) -> None:
        if self.world.watch is not None:
            self.world.watch.told(self, event)
        else:
            self.events.append((self.world.now_s, event))
        self.world.note(self.name, _signature(event))

    def _fire(self, due_s: float, run: int, late: bool = False) -> None:
        if run != self._run or due_s != self._timer_s or self.node is None or self.paused:
            return
        busy_s = min(self._free_s - self.world.now_s, _BURST_DATAGRAMS * self.slow_s)
        if busy_s > 0 and not late:
            self.world.after(busy_s, self._fire, due_s, run, True)
            return
        self._timer_s = inf
        if self._true_s(self._due_s) > self.world.now_s:  # it has moved on meanwhile
            self._arm()
            return
        now = self.now()
        # rounding must not make a timer early, when there would be nothing to do
        self.node.handle_timer(now._replace(mono_s=max(now.mono_s, self._due_s)))
        self.drain()

    def _persist_next(self, run: int) -> None:
        if run != self._run or self.node is None or self.paused or not self._to_persist:
            return
        batch = self._to_persist[0]
        try:
            self.disk.write(batch, self.store.clock.high_water)
        except DiskFull:
            self.world.after(_FULL_RETRY_S, self._persist_next, run)
            return
        self._to_persist.popleft()
        self.disk.raise_incarnation(self.node.incarnation)
        self.written += len(batch.entries)
        if self.world.watch is not None:
            self.world.watch.persisted(self, batch)
        self.node.persisted(batch, self.now())
        if self._to_persist:
            self.disk.begun = self._to_persist[0], self.store.clock.high_water
            self.world.after(_PERSIST_S, self._persist_next, run)
        self.drain()


def _signature(event: Any) -> bytes:
    """Return bytes that tell events apart, whatever the process."""
    if isinstance(event, StateChanged):
        return b"".join(
            f"{change.kind} {change.key} ".encode() + change.origin for change in event.changes
        )
    return type(event).__name__.encode() + repr(tuple(event)).encode()
