"""One peer: what waits for it, what is on its way, and what its answers say of the path.

Owns a link's queues, its datagrams in flight, its estimates of time and loss; never seals or sends
(broadcast does), and never looks into a message beyond its key. Invariants: queues, flights and
tries are bounded; an item is queued again only for a datagram that counts as lost, and a datagram
counts as lost once.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf

from crdt.clock import Instant
from gossip.codec import Packer
from gossip.config import GossipConfig
from gossip.events import Address
from gossip.handshake import Established
from gossip.latency import Latency
from gossip.sealing import Channel

# Priorities: the smaller leaves first. What is volatile is not acknowledged.
URGENT, PROMPT, STATE, REPAIR, VOLATILE = range(5)

_FIRST_RTT_S = 0.1
_MAX_RESEND_S = 3.0
_MOST_DOUBLINGS = 8
_STEADY_TRIES = 5  # of an item, after which the pauses between its tries double
_PASSED_LIMIT = 2  # answers to later datagrams, after which an unanswered one counts as lost
_LOST_KEPT = 64  # lost datagrams whose late answers are still understood
_LATE_S = 0.005  # a timer so late may have answers waiting behind it in the socket
_LOSS_GAIN = 1 / 16
_TOLERATED_LOSS = 0.05
_WIDEST_S = 0.02
_PAUSE_LASTS_S = 4.5  # until the longest has faded
PATIENCE = 0.5  # of the probe interval: how long the answer to rumours may wait for company


@dataclass(slots=True)
class Item:
    """An encoded message; `done` once some datagram that held it was acknowledged.

    What is `patient` is acknowledged when that costs little, and sent again that much later.
    """

    key: bytes
    data: bytes
    priority: int
    patient: bool = False
    tries: int = 0
    done: bool = False


@dataclass(slots=True)
class Flight:
    """A datagram that awaits its acknowledgement."""

    sent_s: float
    due_s: float
    items: list[Item]
    patient: bool
    passed: int = 0
    spared: bool = False


@dataclass(slots=True)
class Link:
    """One peer boot that proved its identity and address."""

    node_id: bytes
    made: Established
    config: GossipConfig
    count: Callable[[str], None]
    channel: Channel
    address: Address
    heard_s: float
    used_s: float
    latency: Latency
    confirmed: bool = False  # something has arrived under the pair key
    volatile_sequence: int = 0  # newest volatile state of the peer seen on this boot
    loss: float = 0.0  # the share of datagrams lost, smoothed
    misses: int = 0  # datagrams lost since the last that was acknowledged
    doubted: bool = False  # its peer was suspected, and has not been heard since
    pause_s: float = 0.0  # asked for by the peer ...
    pause_end_s: float = -inf  # ... and over by then, said again or not
    queues: tuple[dict[bytes, Item], ...] = field(default_factory=lambda: ({}, {}, {}, {}, {}))
    flights: dict[int, Flight] = field(default_factory=dict)  # by counter, ascending
    lost: dict[int, Flight] = field(default_factory=dict)
    immediate: list[bytes] = field(default_factory=list)
    to_ack: list[int] = field(default_factory=list)
    ack_due_s: float = inf
    resend_due_s: float = inf
    flushed_s: float = -inf
    held_class: int = 0  # this queue and the less urgent ones wait for tokens ...
    held_s: float = -inf  # ... until then
    muted_s: float = -inf  # nothing is taken from the peer before
    scheduled_s: float = inf  # when the table of links looks at this one next

    @property
    def public_key(self) -> bytes:
        """Return the peer's public key."""
        return self.made.public_key

    @property
    def boot(self) -> bytes:
        """Return the peer's boot."""
        return self.made.boot

    @property
    def rtt_s(self) -> float | None:
        """Return the smoothed round-trip time, None before the first measurement."""
        return self.latency.mean_s

    def resend_after_s(self, tries: int, now: Instant) -> float:
        """Return how long the acknowledgement of an item's n-th try may take."""
        known_s = self.latency.bound_s(now.mono_s)
        usual_s = (known_s or _FIRST_RTT_S) + self.config.ack_delay_s
        usual_s = max(self.config.resend_floor_s, usual_s) + self.pause_s
        # of which nothing is known may be slow, a doubted one dead: each silence makes it likelier
        doublings = self.misses if self.doubted else tries - (_STEADY_TRIES if known_s else 1)
        if doublings > 0:
            usual_s *= 1 << min(doublings, _MOST_DOUBLINGS)
        return min(_MAX_RESEND_S, usual_s)

    def paused(self, pause_s: float, now: Instant) -> None:
        """Take the peer's wish for a pause, which would halve every second."""
        self.pause_s = pause_s
        self.pause_end_s = now.mono_s + _PAUSE_LASTS_S

    def calm(self, now: Instant) -> bool:
        """Tell whether the peer is not held up; a pause that is over is forgotten."""
        if self.pause_s and now.mono_s >= self.pause_end_s:
            self.pause_s = 0.0
        return not self.pause_s

    @property
    def window(self) -> int:
        """Return how many datagrams may be unacknowledged."""
        return 1 if self.doubted else self.config.window_datagrams

    @property
    def interval_s(self) -> float:
        """Return the least time between two flushes of the queues: longer on a lossy path."""
        batching_s = self.config.batching_s
        if self.loss <= _TOLERATED_LOSS:
            return batching_s
        return max(batching_s, min(_WIDEST_S, batching_s * self.loss / _TOLERATED_LOSS))

    def full(self, priority: int) -> bool:
        """Tell whether a queue takes no further items."""
        return len(self.queues[priority]) >= self.config.queue_items

    def offer(self, item: Item) -> bool:
        """Queue an item; False, and counted, when too many wait already."""
        queue = self.queues[item.priority]
        if item.key not in queue and self.full(item.priority):
            self.count("queue_full")
            return False
        queue[item.key] = item
        return True

    def carries(self, key: bytes, priority: int) -> bool:
        """Tell whether an item under a key waits here or is on its way."""
        flying = (item.key for flight in self.flights.values() for item in flight.items)
        return key in self.queues[priority] or key in flying

    def due_s(self) -> float:
        """Return when something is to be done here next, in mono seconds."""
        if self.immediate:
            return -inf
        due_s = self.ack_due_s if self.ack_due_s < self.resend_due_s else self.resend_due_s
        return min(due_s, self.queues_due_s()) if any(self.queues) else due_s

    def queues_due_s(self) -> float:
        """Return when the most urgent of what waits may leave; inf when nothing may."""
        for first, queue in enumerate(self.queues[: self._classes()]):
            if queue:
                due_s = self.flushed_s + self.interval_s
                if first > URGENT and self.pause_s:
                    due_s = max(due_s, self.flushed_s + self.pause_s)
                return max(due_s, self.held_s) if first >= self.held_class else due_s
        return inf

    def admitted(self, now: Instant) -> int:
        """Return how many of the queues, most urgent first, the peer will take from now."""
        self.calm(now)
        paused = now.mono_s < self.flushed_s + self.pause_s
        return min(self._classes(), URGENT + 1) if paused else self._classes()

    def _classes(self) -> int:
        """Return how many of the queues the window has room for: rumours hold up nothing urgent."""
        if len(self.flights) < self.window:
            return VOLATILE + 1
        return URGENT + 1 if all(one.patient for one in self.flights.values()) else 0

    def take(self, packer: Packer, classes: int) -> list[Item]:
        """Move into a datagram what fits of the most urgent `classes` queues; return the items."""
        items: list[Item] = []
        for queue in self.queues[:classes]:
            while queue:
                key, item = next(iter(queue.items()))
                if not packer.add(item.data):
                    return items
                del queue[key]
                items.append(item)
        return items

    def departed(self, counter: int, items: list[Item], now: Instant) -> None:
        """Note the items that left in a datagram."""
        if self.pause_s or not any(self.queues):
            self.flushed_s = now.mono_s
        if items[-1].priority == VOLATILE:
            items = [item for item in items if item.priority != VOLATILE]
            if not items:
                return
        tries = 0
        for item in items:
            item.tries += 1
            if item.tries > tries:
                tries = item.tries
        due_s = now.mono_s + self.resend_after_s(tries, now)
        patient = all(item.patient for item in items)
        if patient:
            due_s += PATIENCE * self.config.probe_interval_s
        self.flights[counter] = Flight(now.mono_s, due_s, items, patient)
        if due_s < self.resend_due_s:
            self.resend_due_s = due_s

    def acknowledged(
        self, ranges: Iterable[tuple[int, int]], now: Instant, *, measure: bool = True
    ) -> None:
        """Forget what has arrived, and count as lost what later datagrams have passed.

        What it says of the path is taken only to `measure` it: not while either host is held up.
        Every counter is sent once, so that even late answers give exact times. What matches
        nothing is ignored. O(flights x ranges).
        """
        if self.lost and self._arrived(self.lost, ranges, now, measure):
            self.count("resent_early")
        hits = self._arrived(self.flights, ranges, now, measure)
        if not hits:
            return
        for counter, flight in list(self.flights.items()):  # mostly none
            flight.passed += sum(hit > counter for hit in hits)
            if flight.passed >= _PASSED_LIMIT:
                self._lose(counter)
        self._look_again()

    def expire(self, now: Instant, lag_s: float = 0.0) -> bool:
        """Count as lost what was not acknowledged in time; tell if the peer seems not to hear us.

        After a late timer, or on a host that is `lag_s` late, everything gets more time, once: the
        answers may wait in its own socket.
        """
        deaf = False
        for counter, flight in list(self.flights.items()):
            late_s = now.mono_s - flight.due_s
            if late_s < 0:
                continue
            if (lag_s or late_s > _LATE_S) and not flight.spared:
                flight.due_s, flight.spared = now.mono_s + max(_LATE_S, lag_s), True
                continue
            tried = any(item.tries == _STEADY_TRIES for item in flight.items)
            deaf = deaf or (tried and not self.doubted and self.heard_s < flight.sent_s)
            self._lose(counter)
        self._look_again()
        return deaf

    def believed(self, now: Instant) -> None:
        """Take the peer for present again: what awaits its answer has waited long enough."""
        self.doubted = False
        for flight in self.flights.values():
            flight.due_s = min(flight.due_s, now.mono_s)
        self._look_again()

    def _arrived(
        self,
        table: dict[int, Flight],
        ranges: Iterable[tuple[int, int]],
        now: Instant,
        measure: bool,
    ) -> list[int]:
        hits = [one for one in table for first, last in ranges if first <= one <= last]
        for counter in hits:
            flight = table.pop(counter, None)
            if flight is None:  # ranges may overlap
                continue
            took_s = now.mono_s - flight.sent_s - self.config.ack_delay_s
            if measure and not flight.patient:
                self.latency.sample(max(0.0, min(_MAX_RESEND_S, took_s)), now.mono_s)
            self.loss -= self.loss * _LOSS_GAIN
            self.misses = 0
            for item in flight.items:
                item.done = True
                if self.queues[item.priority].get(item.key) is item:
                    del self.queues[item.priority][item.key]
        return hits

    def _lose(self, counter: int) -> None:
        flight = self.flights.pop(counter)
        self.lost[counter] = flight
        if len(self.lost) > _LOST_KEPT:
            del self.lost[next(iter(self.lost))]
        self.loss += (1 - self.loss) * _LOSS_GAIN
        self.misses += 1
        if not self.pause_s:
            self.flushed_s = -inf
        for item in flight.items:
            if item.done:
                continue
            if item.tries >= self.config.resend_limit:
                self.count("given_up")
            elif self.queues[item.priority].setdefault(item.key, item) is item:
                self.count("resent")

    def _look_again(self) -> None:
        self.resend_due_s = inf
        for flight in self.flights.values():
            if flight.due_s < self.resend_due_s:
                self.resend_due_s = flight.due_s
