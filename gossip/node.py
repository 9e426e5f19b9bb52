"""GossipNode: the protocol core's only door. Inputs go in, outputs are polled.

Owns the order of things: which room handles which message, and that everything due is flushed
after every input. Never reads a clock, a socket or global randomness, and decides nothing itself.
Invariant: nothing that comes from the network raises out of here or changes state before it has
been authenticated and decoded whole.
"""

import random
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from crdt.causal import node_id_of
from crdt.clock import Instant
from crdt.codec import DecodeError, Value
from crdt.log import Batch, MergeStatus
from crdt.store import Store
from gossip.antientropy import Repair
from gossip.broadcast import STATE, Link, Links
from gossip.codec import decode_payload, encode_message
from gossip.config import GossipConfig
from gossip.contact import Contact
from gossip.events import Address, Event, MemberView, Output, Persist, StateChanged, Transmit
from gossip.handshake import Handshake
from gossip.members import Members
from gossip.messages import (
    Ack,
    Announce,
    Claim,
    IndirectAck,
    Knowledge,
    Message,
    Payload,
    Ping,
    PingRequest,
    Received,
    Roster,
    Suspect,
    VolatileRequest,
    VolatileState,
)
from gossip.probe import Probing, Summary
from gossip.sealing import (
    KIND_HANDSHAKE,
    KIND_SEALED,
    DropError,
    Identity,
    parse_header,
)
from gossip.suspicion import Suspicion
from gossip.volatile import Volatiles

_RELIABLE = (Announce, Suspect, Payload, Knowledge, Roster)
_HELD_UP_S = 0.25  # a timer this late means that the host was held up, not that others are silent


class GossipNode:
    """One node's gossip, without IO."""

    def __init__(
        self,
        identity: Identity,
        secret: bytes,
        store: Store,
        config: GossipConfig,
        rng: random.Random,
        *,
        boot: bytes,
        incarnation: int,
        address: Address,
        now: Instant,
        exchange: X25519PrivateKey | None = None,
    ) -> None:
        """Make a node that knows nobody yet.

        `boot` is 16 fresh random bytes of this run; `incarnation` must be greater than that of
        earlier runs; `address` (host an IP address) is where others reach this node. `exchange` is
        this boot's secret key, given only where runs must repeat (simulation); `rng` decides
        nothing secret. ValueError for a host that is none, or an incarnation out of range.
        """
        self.counters: dict[str, int] = {}
        self._outputs: deque[Output] = deque()
        self._store = store
        self._config = config
        self._rng = rng
        self._identity = identity
        self._born_s = now.mono_s
        self._left = False
        handshake = Handshake(identity, secret, boot, exchange, config.handshakes_per_s)
        self._links = Links(config, self.counters, handshake.retire)
        self._members = Members(
            identity, incarnation, address, config, self._outputs.append, self._count
        )
        self._suspicion = Suspicion(config, self._members, self._links, self._on_met)
        self._contact = Contact(
            config,
            rng,
            handshake,
            self._members,
            self._links,
            self._suspicion,
            self._transmit,
            self._on_link,
        )
        self._volatile = Volatiles(config, self._members, self._links, self._count)
        self._repair = Repair(config, store, self._members, self._links, self._count)
        self._probing = Probing(
            config,
            rng,
            self._members,
            self._links,
            self._suspicion,
            self._summary,
            self._contact.call,
        )
        self._handlers: dict[type[Any], Callable[[Link, Any, Instant], None]] = {
            Ping: self._on_ping,
            Ack: self._on_ack,
            PingRequest: self._probing.on_request,
            IndirectAck: self._probing.on_indirect,
            Announce: self._suspicion.on_announce,
            Suspect: self._suspicion.on_suspect,
            Payload: self._on_payload,
            Received: self._links.on_received,
            Knowledge: self._repair.on_knowledge,
            Roster: self._repair.on_roster,
            VolatileState: self._volatile.on_state,
            VolatileRequest: self._volatile.on_request,
        }

    # inputs

    def receive_datagram(self, data: bytes, addr: Address, now: Instant) -> None:
        """Take a datagram from the network; whatever it holds, nothing is raised."""
        self._count("in_datagrams")
        self._count("in_bytes", len(data))
        try:
            kind, _, index, counter = parse_header(data)
            if kind == KIND_HANDSHAKE:
                self._contact.receive(data, addr, now)
            elif kind == KIND_SEALED:
                self._receive_sealed(data, index, counter, now)
            else:
                raise DropError("version")
        except DropError as drop:
            self._count("dropped_" + drop.reason)
        except DecodeError:
            self._count("dropped_decode")
        self._flush(now)

    def handle_timer(self, now: Instant) -> None:
        """Do what is due; call it at next_deadline(), or later."""
        late_s = now.mono_s - min(self._probing.deadline(), self._suspicion.deadline())
        if _HELD_UP_S < late_s < inf:
            self._probing.slow(late_s)
            self._probing.defer(late_s)
            self._suspicion.defer(late_s)
        if not self._left:
            self._probing.tick(now)
            self._contact.tick(now)
            self._volatile.tick(now)
        self._suspicion.expire(now)
        self._changed(self._store.mature(now))
        self._flush(now)

    def commit(self, now: Instant) -> None:
        """Bundle the store's staged writes into signed batches, each to be persisted."""
        for batch in self._store.commit(now):
            self._outputs.append(Persist(batch))

    def persisted(self, batch: Batch, now: Instant) -> None:
        """Make a durable batch visible, and send it to all."""
        changes = self._store.persisted(batch, now)
        self._changed(changes)
        data = encode_message(Payload(batch.raw, b""))
        peers = [
            link
            for member in self._members.live()
            if (link := self._links.get(member.node_id)) is not None
        ]
        if len(peers) > self._config.fan_out:
            peers = self._rng.sample(peers, self._config.fan_out)
        for link in peers:
            self._links.offer(link, batch.raw, data, STATE)
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
        self._suspicion.renew(self._members.own.incarnation, left=True)
        self._flush(now)

    def readdress(self, address: Address, now: Instant) -> None:
        """Tell everybody that this node is now reached at another address."""
        self._suspicion.renew(self._members.own.incarnation, address)
        for member in self._members.live():
            self._contact.call(member.address, now)
        self._flush(now)

    def slow(self, lag_s: float) -> None:
        """Report that the host's event loop was late; this node becomes patient."""
        self._probing.slow(lag_s)

    # outputs and views

    def poll(self) -> Output | None:
        """Return the next thing for the host to do or know; drain until None."""
        return self._outputs.popleft() if self._outputs else None

    def next_deadline(self) -> float:
        """Return when handle_timer is next wanted, in mono seconds (maybe in the past)."""
        due = min(self._links.deadline(), self._suspicion.deadline())
        if self._left:
            return due
        return min(
            due, self._probing.deadline(), self._contact.deadline(), self._volatile.deadline()
        )

    def volatile(self, node_id: bytes, key: str) -> Value | None:
        """Return a live member's volatile value, or None."""
        return self._volatile.get(node_id, key)

    @property
    def acquainted(self) -> bool:
        """Tell whether a live peer's replica was ever equal to ours: then we know what it knows."""
        return self._repair.agreed

    @property
    def incarnation(self) -> int:
        """Return this node's incarnation, which a refutation raises; worth keeping durably."""
        return self._members.own.incarnation

    def members(self) -> list[MemberView]:
        """Return all members, this node first, then by id."""
        own = self._members.own
        state = "left" if self._left else "self"
        mine = MemberView(
            self._members.node_id, (own.host, own.port), state, own.incarnation, None, self._born_s
        )
        views = [mine]
        for member in sorted(self._members, key=lambda one: one.node_id):
            link = self._links.get(member.node_id)
            rtt_s = link.rtt_s if link is not None else None
            views.append(
                MemberView(
                    member.node_id,
                    member.address,
                    member.state,
                    member.claim.incarnation,
                    rtt_s,
                    member.since_s,
                )
            )
        return views

    # dispatch

    def _receive_sealed(self, data: bytes, index: bytes, counter: int, now: Instant) -> None:
        link = self._links.at_index(index)
        if link is None:
            raise DropError("channel")
        messages, unknown = decode_payload(link.channel.open(data, counter))
        if unknown:
            self._count("unknown_messages", unknown)
        if any(isinstance(message, _RELIABLE) for message in messages):
            self._links.on_arrival(link, counter, now)
        link.confirmed = True
        self._probing.heard(link.node_id)
        for message in messages:
            self._handle(link, message, now)

    def _handle(self, link: Link, message: Message, now: Instant) -> None:
        try:
            self._handlers[type(message)](link, message, now)
        except DecodeError:
            self._count("dropped_decode")

    def _on_ping(self, link: Link, message: Ping, now: Instant) -> None:
        if not self._left:
            self._probing.on_ping(link, message, now)
            self._repair.agrees(message.fingerprint)
            self._volatile.observe(link, message.volatile)

    def _on_ack(self, link: Link, message: Ack, now: Instant) -> None:
        self._probing.on_ack(link, message, now)
        self._volatile.observe(link, message.volatile)
        self._repair.observe(link, message.fingerprint, message.roster, now)

    def _on_payload(self, link: Link, message: Payload, now: Instant) -> None:
        merge = self._store.merge(message.raw, now)
        key = message.public_key
        stranger = merge.batch if merge.status is MergeStatus.UNKNOWN_KEY else None
        signed = stranger is not None and node_id_of(key) == stranger.origin
        if signed and self._links.may_introduce(link, now):
            self._store.learn_key(key)
            merge = self._store.merge(message.raw, now)
        self._count("batches_" + merge.status.name.lower())
        self._changed(merge.changes)

    def _on_met(self, claim: Claim, now: Instant) -> None:
        link = self._links.get(claim.node_id)
        address = (claim.host, claim.port)
        if link is None or link.address != address:
            self._contact.call_claimed(address, now)

    def _on_link(self, link: Link, now: Instant) -> None:
        self._store.learn_key(link.public_key)
        self._probing.on_link(link, now)
        self._probing.ping(link)

    def _summary(self) -> Summary:
        return self._store.fingerprint(), self._members.digest(), self._volatile.sequence

    def _changed(self, changes: tuple[Any, ...]) -> None:
        if changes:
            self._emit(StateChanged(changes))

    def _emit(self, event: Event) -> None:
        self._outputs.append(event)

    def _transmit(self, data: bytes, addr: Address) -> None:
        self._count("out_datagrams")
        self._count("out_bytes", len(data))
        self._outputs.append(Transmit(data, addr))

    def _flush(self, now: Instant) -> None:
        for data, addr in self._links.flush(now):
            self._transmit(data, addr)

    def _count(self, name: str, by: int = 1) -> None:
        self.counters[name] = self.counters.get(name, 0) + by
