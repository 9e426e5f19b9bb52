"""Links: what is on its way to each peer, and its certain arrival.

Owns the table of links, when each is looked at, and how much leaves at once and in all. Never
looks into a message beyond its key. Invariants: what exceeds a bound is dropped, counted, and
left to repair; membership, revocations and answers never wait for tokens; closing an idle link
says nothing about its peer.
"""

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from itertools import chain
from math import inf, nan

from crdt.clock import Instant
from gossip.codec import Packer, counters_to_ranges, encode_message, join_messages
from gossip.config import GossipConfig
from gossip.events import Address
from gossip.handshake import Established
from gossip.latency import Excess, Latency
from gossip.limits import Bucket, Rates
from gossip.link import PATIENCE, PROMPT, REPAIR, STATE, URGENT, VOLATILE, Item, Link
from gossip.messages import MAX_PAUSE_MS, Message, Received
from gossip.sealing import Channel

__all__ = ["PROMPT", "REPAIR", "STATE", "URGENT", "VOLATILE", "Link", "Links"]

_STRANGERS_PER_S, _STRANGERS_BURST = 256 / 60, 256  # of whom one peer may tell
_FAULTS_PER_S, _FAULTS_BURST = 8.0, 64.0  # signatures checked in vain because of one peer
_MUTED_S = 10.0
_ACKS_AT_ONCE = 32
_PATIENT_ACKS = 8  # so many datagrams of rumours wait for company no longer than others
_BURST_S = 0.25  # of the egress rate, which may leave at once after a rest
# how full the bucket of the egress must be for each class; the first two overdraw it
_RESERVES = (-inf, -inf, 0.0, 0.25, 0.5)
_LEAST_WAIT_S = 0.005  # for tokens: enough for several datagrams
_FLUSH_BYTES = 64 * 1024  # at once, to all; more would flood the sockets and hold up the loop
_DATAGRAM_COST = 512  # bytes of that, at least, since each takes time as well
_FLUSH_PAUSE_S = 0.001
_LAG_TOLERATED_S = 0.05
_MAX_LAG_S = 3.0  # by which answers may be late because of this node itself
_BYTES = [f"bytes_{kind}" for kind in ("urgent", "prompt", "state", "repair", "volatile")]


class Links:
    """All links, and the datagrams due on them."""

    def __init__(
        self,
        config: GossipConfig,
        counters: dict[str, int],
        retire: Callable[[bytes, bytes, Channel, bool], None],
        deaf: Callable[[Link, Instant], None],
    ) -> None:
        self._config = config
        self._retire = retire  # (id, boot, channel, gone for good?) of every dropped link
        self._deaf = deaf  # called for a link whose peer seems not to hear what is sent
        self._strangers = Rates(_STRANGERS_PER_S, _STRANGERS_BURST)
        self._faults = Rates(_FAULTS_PER_S, _FAULTS_BURST)
        self._egress = Bucket(config.egress_bytes_per_s, config.egress_bytes_per_s * _BURST_S)
        self._counters = counters
        self._counted = self._count  # one bound method for all links
        self.changes = 0  # how often a link was opened or closed
        self._excess = Excess()
        self._by_id: dict[bytes, Link] = {}
        self._by_index: dict[bytes, Link] = {}
        self._agenda: list[tuple[float, int, Link]] = []  # a heap; stale where scheduled_s differs
        self._order = 0
        self._joined: tuple[list[bytes], bytes] = ([], b"")  # the last payload: often the next
        self._resume_s = -inf
        self._sweep_s = -inf
        self._lag: tuple[float, float] = (0.0, 0.0)  # seconds, and when that was

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

    def fault(self, link: Link, now: Instant) -> None:
        """Note that a peer had a signature checked in vain; who does it often is not listened to.

        No honest member sends what it has not checked itself.
        """
        if not self._faults.take(link.node_id, now):
            link.muted_s = now.mono_s + _MUTED_S

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Link]:
        return iter(list(self._by_id.values()))

    def longest_queue(self) -> int:
        """Return how many items wait in the longest queue of all. O(links)."""
        queues = chain.from_iterable(link.queues for link in self._by_id.values())
        return max(map(len, queues), default=0)

    def open(self, made: Established) -> Link:
        """Take a finished handshake; return its link, which is the old one for the same boot."""
        old = self._by_id.get(made.node_id)
        if old is not None and old.boot == made.boot:
            if old.channel is not made.channel:  # made under a newer epoch key
                old.channel, old.confirmed = made.channel, False
            old.address, old.made = made.address, made
            if made.rtt_s is not None:
                self.sample(old, made.rtt_s, Instant(made.made_s, 0))
            return old
        if old is not None:
            self.close(made.node_id, gone=True)
        link = Link(
            made.node_id,
            made,
            self._config,
            self._counted,
            made.channel,
            made.address,
            made.made_s,
            made.made_s,
            Latency(self._excess),
        )
        if made.rtt_s is not None:
            self.sample(link, made.rtt_s, Instant(made.made_s, 0))
        self.changes += 1
        self._by_id[made.node_id] = link
        self._by_index[made.channel.local] = link
        return link

    def close(self, node_id: bytes, *, gone: bool = False) -> None:
        """Drop a link and all that was on its way; a boot that is gone gets no other."""
        link = self._by_id.pop(node_id, None)
        if link is not None:
            self.changes += 1
            link.scheduled_s = nan  # equals nothing: what the agenda says of it is stale
            if self._by_index.get(link.channel.local) is link:
                del self._by_index[link.channel.local]
            self._retire(node_id, link.boot, link.channel, gone)

    def post(self, link: Link, message: Message) -> None:
        """Send a message with the next flush, once."""
        link.immediate.append(encode_message(message))
        self._schedule(link)

    def offer(
        self, link: Link, key: bytes, data: bytes, priority: int, *, patient: bool = False
    ) -> bool:
        """Queue an encoded message until acknowledged; a newer one under a key replaces it.

        What is VOLATILE leaves once, and is dropped when the egress is short; what is `patient`
        the peer may acknowledge late. False: not queued.
        """
        if not link.offer(Item(key, data, priority, patient)):
            return False
        self._schedule(link)
        return True

    def heard(self, link: Link, now: Instant) -> None:
        """Note that something authentic came from a peer."""
        link.confirmed = True
        link.heard_s = link.used_s = now.mono_s
        self.believe(link, now)

    def believe(self, link: Link, now: Instant) -> None:
        """Note that a peer is there: what was held back while it was doubted leaves."""
        if link.doubted:
            link.believed(now)
            self._schedule(link)

    def on_arrival(self, link: Link, counter: int, now: Instant, *, patient: bool = False) -> None:
        """Note a datagram that wants an acknowledgement, which may be late if it is `patient`."""
        link.to_ack.append(counter)
        delay_s = self._config.ack_delay_s
        if len(link.to_ack) >= _ACKS_AT_ONCE:
            delay_s = 0.0
        elif patient and len(link.to_ack) < _PATIENT_ACKS:
            delay_s += PATIENCE * self._config.probe_interval_s
        if now.mono_s + delay_s < link.ack_due_s:
            link.ack_due_s = now.mono_s + delay_s
        self._schedule(link)

    def on_received(self, link: Link, message: Received, now: Instant) -> None:
        """Take a peer's acknowledgements and its wish for a pause."""
        link.paused(message.pause_ms / 1000, now)
        if link.flights or link.lost:
            link.acknowledged(message.ranges, now, measure=self._calm(link, now))
        link.scheduled_s = inf
        self._schedule(link)

    def sample(self, link: Link, time_s: float, now: Instant) -> None:
        """Take a round-trip time, unless a host that was held up has made it long."""
        if self._calm(link, now):
            link.latency.sample(time_s, now.mono_s)

    def behind(self, lag_s: float, now: Instant) -> None:
        """Ask the peers for pauses as long as this node was late; they halve every second."""
        if self._lag_s(now) < lag_s < inf:
            self._lag = (lag_s, now.mono_s)

    def deadline(self) -> float:
        """Return when the timer is next wanted; O(log n) amortised."""
        agenda = self._agenda
        while agenda and agenda[0][0] != agenda[0][2].scheduled_s:
            heappop(agenda)
        due_s = agenda[0][0] if agenda else inf
        if len(self._by_id) > self._config.links_kept:
            due_s = min(due_s, self._sweep_s)
        return due_s if due_s > self._resume_s else self._resume_s

    def flush(self, now: Instant) -> Iterator[tuple[bytes, Address]]:
        """Yield the datagrams that are due, so many that the loop is not held up by them."""
        if len(self._by_id) > self._config.links_kept and now.mono_s >= self._sweep_s:
            self._close_idle(now)
        room = _FLUSH_BYTES
        while self.deadline() <= now.mono_s:
            link = heappop(self._agenda)[2]
            link.scheduled_s = inf
            if link.resend_due_s <= now.mono_s:
                lag_s = min(_MAX_LAG_S, self._lag_s(now))
                if link.expire(now, lag_s):
                    self._deaf(link, now)
            sealed = self._next_datagram(link, now)
            self._schedule(link, now.mono_s)  # again, if more is due: the links take turns
            if sealed is not None:
                room -= max(len(sealed), _DATAGRAM_COST)
                if room <= 0:
                    self._resume_s = now.mono_s + _FLUSH_PAUSE_S
                yield sealed, link.address

    def _schedule(self, link: Link, least_s: float = -inf) -> None:
        due_s = link.due_s()
        if due_s < least_s:
            due_s = least_s
        if due_s < link.scheduled_s:
            link.scheduled_s = due_s
            self._order += 1
            heappush(self._agenda, (due_s, self._order, link))

    def _next_datagram(self, link: Link, now: Instant) -> bytes | None:
        """Return a sealed datagram of what is due; None if nothing is, or all waits for tokens."""
        answers_due = link.immediate or link.ack_due_s <= now.mono_s
        if not answers_due and link.queues_due_s() > now.mono_s:
            return None
        packer = Packer()
        if link.to_ack:
            acked, link.to_ack = link.to_ack[:_ACKS_AT_ONCE], link.to_ack[_ACKS_AT_ONCE:]
            pause_ms = min(MAX_PAUSE_MS, int(self._lag_s(now) * 1000))
            packer.add(encode_message(Received(counters_to_ranges(acked), pause_ms)))
            link.ack_due_s = now.mono_s if link.to_ack else inf
        taken = 0
        while taken < len(link.immediate) and packer.add(link.immediate[taken]):
            taken += 1
        del link.immediate[:taken]
        items = []
        classes = self._admitted(link, now)
        if not link.immediate and any(link.queues):
            items = link.take(packer, classes)
        if not packer.parts:
            return None
        if packer.parts != self._joined[0]:
            self._joined = packer.parts, join_messages(packer.parts)
        counter, sealed = link.channel.seal(self._joined[1])
        if items:
            shrunk = len(sealed) / sum(map(len, packer.parts))
            for item in items:
                self._count(_BYTES[item.priority], int(len(item.data) * shrunk))
            link.departed(counter, items, now)
        link.used_s = now.mono_s
        self._egress.spend(len(sealed))
        return sealed

    def _admitted(self, link: Link, now: Instant) -> int:
        """Return how many of the queues the peer and the egress have room for."""
        classes = link.admitted(now)
        level = self._egress.level(now)
        if level >= _RESERVES[VOLATILE]:
            return classes
        if link.queues[VOLATILE]:
            self._count("shed_volatile", len(link.queues[VOLATILE]))
            link.queues[VOLATILE].clear()
        for one in (STATE, REPAIR):
            if level < _RESERVES[one]:
                classes = min(classes, one)
                if link.queues[one]:
                    wait_s = max(_LEAST_WAIT_S, self._egress.wait_s(_RESERVES[one]))
                    link.held_class, link.held_s = one, now.mono_s + wait_s
                    break
        return classes

    def _calm(self, link: Link, now: Instant) -> bool:
        return link.calm(now) and not self._lag_s(now)

    def _lag_s(self, now: Instant) -> float:
        """Return how late this node lately was; 0 for what peers need not know."""
        lag_s, since_s = self._lag
        lag_s *= 0.5 ** (now.mono_s - since_s)
        return lag_s if lag_s >= _LAG_TOLERATED_S else 0.0

    def _close_idle(self, now: Instant) -> None:
        idle_s = self._config.link_idle_s
        self._sweep_s = now.mono_s + idle_s / 4
        idle = [link for link in self._by_id.values() if link.used_s + idle_s <= now.mono_s]
        idle.sort(key=lambda link: link.used_s)
        for link in idle[: len(self._by_id) - self._config.links_kept]:
            self._count("links_idle")
            self.close(link.node_id)

    def _count(self, name: str, by: int = 1) -> None:
        self._counters[name] = self._counters.get(name, 0) + by
