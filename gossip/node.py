"""GossipNode: the protocol core's only door. Inputs go in, outputs are polled.

Owns the order of things: which room handles which message, and that everything due is flushed
after every input. Never reads a clock, a socket or global randomness, and decides nothing itself.
Invariant: nothing that comes from the network raises out of here or changes state before it has
been authenticated and decoded whole.
"""

import random
from collections import defaultdict, deque
from collections.abc import Callable
from math import inf
from typing import Any

from crdt.clock import Instant
from crdt.codec import DecodeError, Value
from crdt.log import Batch
from crdt.store import Store
from gossip.agreement import Agreement
from gossip.antientropy import Repair
from gossip.broadcast import Link, Links
from gossip.codec import decode_payload
from gossip.config import GossipConfig
from gossip.contact import Contact
from gossip.events import Address, MemberView, Output, Transmit
from gossip.handshake import Handshake
from gossip.members import ALIVE, HEARD, Member, Members
from gossip.messages import (
    Ack,
    Announce,
    Claim,
    Evidence,
    Have,
    IndirectAck,
    Knowledge,
    NewKey,
    Payload,
    Ping,
    PingRequest,
    Received,
    Roster,
    Suspect,
    Tree,
    VolatileRequest,
    VolatileState,
    Want,
)
from gossip.pings import Pings, Summary
from gossip.probe import Probing
from gossip.replication import Replication
from gossip.rotation import Rotation
from gossip.sealing import KIND_HANDSHAKE, VERSIONS, DropError, Identity, Keyring, parse_header
from gossip.spread import Spread
from gossip.suspicion import Suspicion
from gossip.volatile import Volatiles

_RELIABLE = frozenset((Announce, Suspect, Payload, Knowledge, Roster, Tree, Want, Evidence, NewKey))
_PATIENT = frozenset((Suspect,))  # of these
_HELD_UP_S = 0.1  # a timer this late means that the host was held up, not that others are silent


class GossipNode:
    """One node's gossip, without IO."""

    def __init__(
        self,
        identity: Identity,
        secret: bytes | Keyring,
        store: Store,
        config: GossipConfig,
        rng: random.Random,
        *,
        boot: bytes,
        incarnation: int,
        address: Address,
        now: Instant,
        exchange: bytes | None = None,
        known: Callable[[bytes], bool] = lambda node_id: False,
        revoked: Callable[[bytes], bool] = lambda node_id: False,
        versions: tuple[int, int] = VERSIONS,
    ) -> None:
        """Make a node that knows nobody yet.

        `boot` is 16 fresh random bytes of this run; `incarnation` must be greater than that of
        earlier runs; `address` (host an IP address) is where others reach this node. `exchange` is
        this boot's secret key, given only where runs must repeat (simulation); `rng` decides
        nothing secret. Ids that are `known` may come under the previous key like those whose claim
        is held; ids that are `revoked` get no handshake and no new key. `versions` of the protocol,
        lowest and highest, are spoken. ValueError for a host that is none, or an incarnation out of
        range.
        """
        self.counters: dict[str, int] = defaultdict(int)
        self._outputs: deque[Output] = deque()
        self._store = store
        self._born_s = now.mono_s
        self._left = False
        self._input_s = now.mono_s
        self._wake_s = inf  # when the host said that it would wake this node
        handshake = Handshake(
            identity,
            secret,
            boot,
            exchange,
            config.handshakes_per_s,
            known=lambda node_id: self._members.get(node_id) is not None or known(node_id),
            revoked=revoked,
            versions=versions,
        )
        self.keys = handshake.keys
        self._links = Links(config, self.counters, handshake.retire, self._on_deaf)
        self._members = Members(
            identity, incarnation, address, config, self._outputs.append, self._count
        )
        self._spread = Spread(
            config,
            rng,
            store,
            self._members,
            self._links,
            self._call,
            self._call_claimed,
            self._on_silent,
            self._count,
        )
        self._announcements = self._spread.announcements
        self._pings = Pings(config, self._links, self._summary)
        self._agreement = Agreement(config, store, self._members)
        self._suspicion = Suspicion(
            config,
            rng,
            self._members,
            self._links,
            self._spread,
            self._pings,
            self._on_met,
            self._call_briefly,
            self._count,
        )
        self._contact = Contact(
            config,
            rng,
            handshake,
            self._members,
            self._links,
            self._suspicion,
            self._shake_hands,
            self._on_link,
        )
        self._rotation = Rotation(
            self.keys, self._links, revoked, self._contact.call, self._emit, self._count
        )
        self._volatile = Volatiles(
            config, self._members, self._links, self._spread.neighbours, self._count
        )
        self._repair = Repair(config, store, self._members, self._links, self._count, now)
        self._replication = Replication(
            config,
            store,
            self._members,
            self._links,
            self._spread,
            self._repair,
            self._emit,
            self._count,
        )
        self._probing = Probing(
            config,
            rng,
            self._members,
            self._links,
            self._suspicion,
            self._pings,
            self._contact.call,
        )
        self._handlers: dict[type[Any], Callable[[Link, Any, Instant], None]] = {
            Ping: self._on_ping,
            Ack: self._on_ack,
            PingRequest: self._probing.on_request,
            IndirectAck: self._probing.on_indirect,
            Announce: self._suspicion.on_announce,
            Suspect: self._suspicion.on_suspect,
            Payload: self._replication.on_payload,
            Received: self._links.on_received,
            Knowledge: self._repair.on_knowledge,
            Roster: self._repair.on_roster,
            Tree: self._repair.on_tree,
            Have: self._announcements.on_have,
            Want: self._announcements.on_want,
            Evidence: self._replication.on_evidence,
            NewKey: self._rotation.on_new_key,
            VolatileState: self._volatile.on_state,
            VolatileRequest: self._volatile.on_request,
        }

    # inputs

    def receive_datagram(self, data: bytes, addr: Address, now: Instant) -> None:
        """Take a datagram from the network; whatever it holds, nothing is raised."""
        self._judge_lag(now)
        self.counters["in_datagrams"] += 1
        self.counters["in_bytes"] += len(data)
        try:
            kind, _, index, counter = parse_header(data)
            if kind == KIND_HANDSHAKE:
                self._contact.receive(data, addr, now)
            else:
                self._receive_sealed(data, index, counter, now)
        except DropError as drop:
            self._count("dropped_" + drop.reason)
        except DecodeError:
            self._count("dropped_decode")
        self._flush(now)

    def handle_timer(self, now: Instant) -> None:
        """Do what is due; call it at next_deadline(), or later."""
        self._judge_lag(now)
        if not self._left:
            self._probing.tick(now)
            self._contact.tick(now)
            self._volatile.tick(now)
            self._announcements.tick(now)
            self._spread.tick(now)
            self._agreement.tick(now)
            self._rotation.tick(now)
            self._replication.forget(now)
        self._suspicion.tick(now)
        self._replication.tick(now)
        self._flush(now)

    def commit(self, now: Instant) -> None:
        """Have the store's staged writes bundled into signed batches, each to be persisted.

        At once, or when the write law allows: what is written meanwhile joins them, and of a key
        written twice only the newest value travels.
        """
        self._replication.commit(now)

    def persisted(self, batch: Batch, now: Instant) -> None:
        """Make a durable batch visible, and send it to all."""
        self._replication.persisted(batch, now)
        self._flush(now)

    def set_volatile(self, key: str, value: Value, now: Instant) -> None:
        """Set a volatile value of this node's; what exceeds 400 bytes in all is counted alone."""
        self._volatile.set(key, value, now)
        self._volatile.tick(now)
        self._flush(now)

    def join(self, addr: Address, now: Instant) -> None:
        """Add a seed; it is called for ever while nobody there is a live peer."""
        self._contact.add_seed(addr, now)
        self._contact.tick(now)
        self._flush(now)

    def leave(self, now: Instant) -> None:
        """Say goodbye; flush and give the peers a moment to acknowledge before closing."""
        self._left = True
        self._suspicion.renew(self._members.own.incarnation, now, left=True)
        self._flush(now)

    def readdress(self, address: Address, now: Instant) -> None:
        """Tell everybody that this node is now reached at another address."""
        self._suspicion.renew(self._members.own.incarnation, now, address)
        for member in self._members.live():
            self._contact.call(member.address, now)
        self._flush(now)

    def rotate(self, number: int, secret: bytes, now: Instant) -> bool:
        """Replace the fleet's secret everywhere by that of a later key epoch (32 bytes).

        Tell whether it was later than the current one; the one before stays good until
        `keys.forget_previous()`, so that members that are away can come back.
        """
        taken = self._rotation.rotate(number, secret)
        self._flush(now)
        return taken

    def expel(self, node_id: bytes) -> None:
        """Drop the link to a boot that was revoked, for good."""
        self._links.close(node_id, gone=True)

    def slow(self, lag_s: float, now: Instant) -> None:
        """Report that the host's event loop was late; this node becomes patient."""
        self._probing.slow(lag_s)
        self._links.behind(lag_s, now)

    # outputs and views

    def poll(self) -> Output | None:
        """Return the next thing for the host to do or know; drain until None."""
        return self._outputs.popleft() if self._outputs else None

    def next_deadline(self) -> float:
        """Return when handle_timer is next wanted, in mono seconds (maybe in the past)."""
        due_s = min(self._links.deadline(), self._suspicion.due_s, self._replication.deadline())
        if not self._left:
            due_s = min(
                due_s,
                self._probing.deadline(),
                self._contact.deadline(),
                self._volatile.due_s,
                self._announcements.deadline(),
                self._spread.deadline(),
            )
        self._wake_s = max(due_s, self._input_s)  # a deadline may lie in the past when it comes up
        return due_s

    def volatile(self, node_id: bytes, key: str) -> Value | None:
        """Return a live member's volatile value, or None."""
        return self._volatile.get(node_id, key)

    def volatile_news(self) -> list[bytes]:
        """Return who of the alive has new values, or is alive again, since this was last asked."""
        return self._volatile.news()

    @property
    def acquainted(self) -> bool:
        """Tell whether this node knew once what a live peer knows: its replica, and the members."""
        return self._repair.agreed and self._repair.acquainted

    @property
    def incarnation(self) -> int:
        """Return this node's incarnation, which a refutation raises; worth keeping durably."""
        return self._members.own.incarnation

    def longest_queue(self) -> int:
        """Return how many items wait for one peer, at the most; `queue_items` may. O(links)."""
        return self._links.longest_queue()

    def alive(self) -> set[bytes]:
        """Return the ids of this node and of those that are alive and not suspected."""
        members = self._members
        found = {member.node_id for member in members.live() if member.state == ALIVE}
        found.add(members.node_id)
        return found

    def present(self) -> list[bytes]:
        """Return the ids of this node and of those that count as present. O(members)."""
        found = [member.node_id for member in self._members.live()]
        return found if self._left else [self._members.node_id, *found]

    def members(self) -> list[MemberView]:
        """Return all members, this node first, then by id. O(members log members)."""
        own = self._members.own
        state = "left" if self._left else "self"
        mine = MemberView(
            self._members.node_id, (own.host, own.port), state, own.incarnation, None, self._born_s
        )
        others = sorted(self._members, key=lambda one: one.node_id)
        return [mine, *map(self._view, others)]

    def member(self, node_id: bytes) -> MemberView | None:
        """Return another member, None for a stranger and for this node."""
        member = self._members.get(node_id)
        return None if member is None or member.state == HEARD else self._view(member)

    def _view(self, member: Member) -> MemberView:
        link = self._links.get(member.node_id)
        rtt_s = link.rtt_s if link is not None else None
        claim = member.claim
        return MemberView(
            member.node_id, member.address, member.state, claim.incarnation, rtt_s, member.since_s
        )

    def _judge_lag(self, now: Instant) -> None:
        late_s = now.mono_s - self._wake_s
        if self._left or late_s <= 0:
            return
        self._wake_s = inf  # judged once
        self._links.behind(late_s, now)
        if late_s > _HELD_UP_S:
            # what the others said meanwhile may wait in the socket: nobody is judged before that
            self._probing.slow(late_s)
            self._probing.defer(late_s, now)
            self._suspicion.defer(late_s, now)

    # dispatch

    def _receive_sealed(self, data: bytes, index: bytes, counter: int, now: Instant) -> None:
        link = self._links.at_index(index)
        if link is None:
            raise DropError("channel")
        if now.mono_s < link.muted_s:
            raise DropError("muted")
        messages, unknown = decode_payload(link.channel.open(data, counter))
        if unknown:
            self._count("unknown_messages", unknown)
        reliable = _RELIABLE.intersection(map(type, messages))
        if reliable:
            self._links.on_arrival(link, counter, now, patient=reliable == _PATIENT)
        self._links.heard(link, now)
        self._probing.heard(link.node_id)
        for message in messages:
            if now.mono_s < link.muted_s:
                raise DropError("muted")
            try:
                self._handlers[type(message)](link, message, now)
            except DecodeError:
                self._count("dropped_decode")

    def _on_ping(self, link: Link, message: Ping, now: Instant) -> None:
        if not self._left:
            self._pings.on_ping(link, message, now)
            if self._repair.agrees(link, message.fingerprint):
                self._agreement.held(link.node_id, self._store.generation)
            self._volatile.observe(link, message.volatile)

    def _on_ack(self, link: Link, message: Ack, now: Instant) -> None:
        answer = self._probing.on_ack(link, message, now)
        if answer is None:  # to nothing that was asked, or long ago
            self._count("acks_unknown")
            return
        sent, ack = answer
        self._volatile.observe(link, ack.volatile)
        self._repair.observe(link, ack.fingerprint, ack.roster, now)
        self._agreement.clock(link.node_id, ack.wall_s, now)
        if ack.fingerprint == sent.summary.fingerprint:
            self._agreement.held(link.node_id, sent.summary.generation)
        elif ack.fingerprint == self._store.fingerprint():
            self._agreement.held(link.node_id, self._store.generation)

    def _on_met(self, claim: Claim, now: Instant) -> None:
        link = self._links.get(claim.node_id)
        address = (claim.host, claim.port)
        if link is None:
            self._spread.met(claim.node_id, now)
        elif link.address != address:
            self._contact.call_claimed(address, now)
        self._probing.introduce(claim.node_id, now)

    def _on_link(self, link: Link, now: Instant) -> None:
        self._rotation.on_link(link)
        self._spread.on_link(link, now)
        self._probing.on_link(link, now)

    def _on_deaf(self, link: Link, now: Instant) -> None:
        self._contact.call(link.address, now)

    def _call(self, address: Address, now: Instant) -> None:
        self._contact.call(address, now)

    def _call_briefly(self, address: Address, now: Instant) -> None:
        self._contact.call(address, now, tries=2)

    def _call_claimed(self, address: Address, now: Instant) -> None:
        self._contact.call_claimed(address, now)

    def _on_silent(self, node_id: bytes) -> None:
        self._probing.hasten(node_id)

    def _summary(self) -> Summary:
        store, members = self._store, self._members
        return Summary(
            store.fingerprint(), members.digest(), self._volatile.sequence, store.generation
        )

    def _emit(self, event: Output) -> None:
        self._outputs.append(event)

    def _shake_hands(self, data: bytes, addr: Address) -> None:
        self._count("bytes_handshakes", len(data))
        self._transmit(data, addr)

    def _transmit(self, data: bytes, addr: Address) -> None:
        self.counters["out_datagrams"] += 1
        self.counters["out_bytes"] += len(data)
        self._outputs.append(Transmit(data, addr))

    def _flush(self, now: Instant) -> None:
        self._input_s = now.mono_s
        if self._links.deadline() <= now.mono_s:  # mostly there is nothing
            for data, addr in self._links.flush(now):
                self._transmit(data, addr)

    def _count(self, name: str, by: int = 1) -> None:
        self.counters[name] += by
