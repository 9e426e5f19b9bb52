"""Links: what is on its way to each peer, and its certain arrival.

Owns the peers' channels, their queues, acknowledgements and resending. Never looks into a message
beyond its key. Invariants: a queue, the datagrams in flight and the attempts are bounded, and
what exceeds a bound is dropped, counted, and left to repair.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf, nan

from crdt.clock import Instant
from gossip.codec import Packer, counters_to_ranges, encode_message, join_messages
from gossip.config import GossipConfig
from gossip.events import Address
from gossip.handshake import Established
from gossip.limits import Rates
from gossip.messages import Message, Received
from gossip.sealing import Channel

_ACK_DELAY_S = 0.02
_MAX_RESEND_S = 3.0
_FIRST_RTT_S = 0.1
_STRANGERS_PER_S, _STRANGERS_BURST = 256 / 60, 256  # of whom one peer may tell
# priorities: smaller leaves first
URGENT, STATE, REPAIR = 0, 1, 2


@dataclass(slots=True)
class _Item:
    key: bytes
    data: bytes
    priority: int
    attempts: int = 0


@dataclass(slots=True)
class _Flight:
    sent_s: float
    items: list[_Item]


@dataclass(slots=True)
class Link:
    """One peer boot that proved its identity and address."""

    node_id: bytes
    public_key: bytes
    boot: bytes
    channel: Channel
    address: Address
    made: Established
    confirmed: bool = False  # something has arrived under the pair key
    volatile_sequence: int = 0  # newest volatile state of the peer seen on this boot
    rtt_s: float | None = None
    rtt_var_s: float = 0.0
    queues: tuple[dict[bytes, _Item], ...] = field(default_factory=lambda: ({}, {}, {}))
    flights: dict[int, _Flight] = field(default_factory=dict)
    immediate: list[bytes] = field(default_factory=list)
    to_ack: list[int] = field(default_factory=list)
    ack_due_s: float = inf
    flushed_s: float = -inf
    backoff: int = 0
    scheduled_s: float = inf  # when the table of links looks at this one next

    def sample(self, rtt_s: float) -> None:
        """Take a round-trip sample into the smoothed estimate (RFC 6298)."""
        if self.rtt_s is None:
            self.rtt_s, self.rtt_var_s = rtt_s, rtt_s / 2
            return
        self.rtt_var_s += 0.25 * (abs(rtt_s - self.rtt_s) - self.rtt_var_s)
        self.rtt_s += 0.125 * (rtt_s - self.rtt_s)

    def resend_after_s(self, floor_s: float) -> float:
        """Return how long an acknowledgement may take before its datagram counts as lost."""
        rtt_s = self.rtt_s if self.rtt_s is not None else _FIRST_RTT_S
        base = max(floor_s, rtt_s + 4 * self.rtt_var_s + _ACK_DELAY_S)
        return min(_MAX_RESEND_S, base * float(1 << self.backoff))

    @property
    def waiting(self) -> bool:
        """Tell whether items wait in a queue."""
        return any(self.queues)

    def deadline(self, config: GossipConfig) -> float:
        """Return when this link next wants the timer, in mono seconds."""
        due = self.ack_due_s
        if self.immediate:
            return -inf
        if self.waiting and len(self.flights) < config.window_datagrams:
            due = min(due, self.flushed_s + config.batching_s)
        if self.flights:
            oldest = next(iter(self.flights.values()))
            due = min(due, oldest.sent_s + self.resend_after_s(config.resend_floor_s))
        return due


class Links:
    """All links, and the datagrams due on them."""

    def __init__(
        self,
        config: GossipConfig,
        counters: dict[str, int],
        retire: Callable[[bytes, bytes, Channel, bool], None],
    ) -> None:
        self._config = config
        self._retire = retire  # (id, boot, channel, gone for good?) of every dropped link
        self._strangers = Rates(_STRANGERS_PER_S, _STRANGERS_BURST)
        self._counters = counters
        self._by_id: dict[bytes, Link] = {}
        self._by_index: dict[bytes, Link] = {}
        self._agenda: list[tuple[float, int, Link]] = []  # a heap; stale where scheduled_s differs
        self._order = 0

    def get(self, node_id: bytes) -> Link | None:
        """Return the link to a node, if there is one."""
        return self._by_id.get(node_id)

    def at_index(self, index: bytes) -> Link | None:
        """Return the link whose peer was given this channel index."""
        return self._by_index.get(index)

    def established(self, node_id: bytes) -> Established | None:
        """Return how the link to a node was made, if there is one."""
        link = self._by_id.get(node_id)
        return link.made if link is not None else None

    def may_introduce(self, link: Link, now: Instant) -> bool:
        """Tell whether a peer may bring one more stranger's claim or key now; counts a no."""
        granted = self._strangers.take(link.node_id, now)
        if not granted:
            self._count("dropped_strangers")
        return granted

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Link]:
        return iter(list(self._by_id.values()))

    def open(self, made: Established) -> Link:
        """Take a finished handshake; return its link, which is the old one for the same boot."""
        old = self._by_id.get(made.node_id)
        if old is not None and old.boot == made.boot:
            old.address = made.address
            if made.rtt_s is not None:
                old.sample(made.rtt_s)
            return old
        if old is not None:
            self.close(made.node_id, gone=True)
        link = Link(made.node_id, made.public_key, made.boot, made.channel, made.address, made)
        if made.rtt_s is not None:
            link.sample(made.rtt_s)
        self._by_id[made.node_id] = link
        self._by_index[made.channel.local] = link
        return link

    def close(self, node_id: bytes, *, gone: bool = False) -> None:
        """Drop a link and all that was on its way; a boot that is gone gets no other."""
        link = self._by_id.pop(node_id, None)
        if link is not None:
            link.scheduled_s = nan  # equals nothing: what the agenda says of it is stale
            if self._by_index.get(link.channel.local) is link:
                del self._by_index[link.channel.local]
            self._retire(node_id, link.boot, link.channel, gone)

    def post(self, link: Link, message: Message) -> None:
        """Send a message with the next flush, once."""
        link.immediate.append(encode_message(message))
        self._schedule(link)

    def offer(self, link: Link, key: bytes, data: bytes, priority: int) -> bool:
        """Queue an encoded message until acknowledged; a newer one under a key replaces it."""
        queue = link.queues[priority]
        if key not in queue and len(queue) >= self._config.queue_items:
            self._count("queue_full")
            return False
        queue[key] = _Item(key, data, priority)
        self._schedule(link)
        return True

    def on_arrival(self, link: Link, counter: int, now: Instant) -> None:
        """Note a datagram that wants an acknowledgement."""
        link.to_ack.append(counter)
        link.ack_due_s = min(link.ack_due_s, now.mono_s + _ACK_DELAY_S)
        if len(link.to_ack) >= 32:
            link.ack_due_s = now.mono_s
        self._schedule(link)

    def on_received(self, link: Link, message: Received, now: Instant) -> None:
        """Forget what the peer acknowledges; ranges that match nothing are ignored."""
        if not link.flights:
            return
        hit = [
            counter
            for counter in link.flights
            if any(first <= counter <= last for first, last in message.ranges)
        ]
        for counter in hit:
            del link.flights[counter]
        if hit:
            link.backoff = 0
            link.scheduled_s = inf
            self._schedule(link)

    def deadline(self) -> float:
        """Return when the timer is next wanted; O(log n) amortised."""
        while self._agenda and self._agenda[0][0] != self._agenda[0][2].scheduled_s:
            heappop(self._agenda)
        return self._agenda[0][0] if self._agenda else inf

    def flush(self, now: Instant) -> Iterator[tuple[bytes, Address]]:
        """Yield every datagram that is due."""
        while self.deadline() <= now.mono_s:
            link = heappop(self._agenda)[2]
            link.scheduled_s = inf
            self._requeue_lost(link, now)
            while (sealed := self._next_datagram(link, now)) is not None:
                yield sealed, link.address
            self._schedule(link)

    def _schedule(self, link: Link) -> None:
        due_s = link.deadline(self._config)
        if due_s < link.scheduled_s:
            link.scheduled_s = due_s
            self._order += 1
            heappush(self._agenda, (due_s, self._order, link))

    def _next_datagram(self, link: Link, now: Instant) -> bytes | None:
        open_window = len(link.flights) < self._config.window_datagrams
        batch_due = now.mono_s >= link.flushed_s + self._config.batching_s
        queued = link.waiting and open_window and batch_due
        if not (link.immediate or queued or link.ack_due_s <= now.mono_s):
            return None
        packer = Packer()
        if link.to_ack:
            packer.add(encode_message(Received(counters_to_ranges(link.to_ack))))
            link.to_ack, link.ack_due_s = [], inf
        taken = 0
        while taken < len(link.immediate) and packer.add(link.immediate[taken]):
            taken += 1
        del link.immediate[:taken]
        items: list[_Item] = []
        if open_window and not link.immediate:
            items = self._take(link, packer)
            if not link.waiting:
                link.flushed_s = now.mono_s
        counter, sealed = link.channel.seal(join_messages(packer.parts))
        if items:
            link.flights[counter] = _Flight(now.mono_s, items)
        return sealed

    def _take(self, link: Link, packer: Packer) -> list[_Item]:
        items: list[_Item] = []
        for queue in link.queues:
            while queue:
                key, item = next(iter(queue.items()))
                if not packer.add(item.data):
                    return items
                del queue[key]
                items.append(item)
        return items

    def _requeue_lost(self, link: Link, now: Instant) -> None:
        limit_s = link.resend_after_s(self._config.resend_floor_s)
        lost: list[_Item] = []
        for counter, flight in list(link.flights.items()):
            if now.mono_s < flight.sent_s + limit_s:
                break
            del link.flights[counter]
            lost.extend(flight.items)
        if not lost:
            return
        link.backoff = min(link.backoff + 1, 5)
        link.flushed_s = -inf
        for item in lost:
            item.attempts += 1
            if item.attempts >= self._config.resend_limit:
                self._count("given_up")
            else:
                self._count("resent")
                link.queues[item.priority].setdefault(item.key, item)

    def _count(self, name: str) -> None:
        self._counters[name] = self._counters.get(name, 0) + 1
