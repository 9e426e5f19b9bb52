"""Whom to call: seeds, members without a link, and the dead who may be back.

Owns handshakes in progress and every reason to begin one. Never gives up on a seed or on a kept
member for good. Invariant: an unvalidated address costs no state here and gets no reply larger
than its request.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from crdt.clock import Instant
from gossip.broadcast import Link, Links
from gossip.config import GossipConfig
from gossip.events import Address
from gossip.handshake import Handshake
from gossip.limits import Rates
from gossip.members import MAX_MEMBERS, Members
from gossip.sealing import DropError
from gossip.suspicion import Suspicion

_CALL_TRIES = 6
_CALL_RETRY_S, _CALL_LIMIT_S = 0.2, 2.0
_TOGETHER_S = 0.05  # calls that are due within it are repeated together
_CALL_LIMIT = 512
_RECONNECTORS = 8  # of all who call one that is down in an interval
_INTRODUCTION_S = 0.5  # between two peers that tell the others of this node
_KNOWN_FACTOR = 5  # a lost seed is tried this much more rarely while others are there
_CLAIMED_PER_S, _CLAIMED_BURST = 16.0, 128.0


@dataclass(slots=True)
class _Call:
    tries: int
    next_s: float
    most: int
    link: Link | None = None  # made by a CONFIRM of ours that may have been lost


class Contact:
    """Begin, repeat and answer handshakes."""

    def __init__(
        self,
        config: GossipConfig,
        rng: random.Random,
        handshake: Handshake,
        members: Members,
        links: Links,
        suspicion: Suspicion,
        send: Callable[[bytes, Address], None],
        on_link: Callable[[Link, Instant], None],
    ) -> None:
        self._config = config
        self._rng = rng
        self._handshake = handshake
        self._members = members
        self._links = links
        self._suspicion = suspicion
        self._send = send
        self._on_link = on_link
        self._seeds: dict[Address, float] = {}  # when each is called next
        self._seeds_s = inf  # the first of these
        self._calls: dict[Address, _Call] = {}
        self._claimed = Rates(_CLAIMED_PER_S, _CLAIMED_BURST)
        self._reconnect_s = 0.0
        self._introduce_s = -inf
        self._calls_s = inf  # no call is due before

    def deadline(self) -> float:
        """Return when the next call is due, in mono seconds, maybe a little too early."""
        due_s = self._calls_s if self._calls_s < self._seeds_s else self._seeds_s
        return min(due_s, self._reconnect_s) if self._members.down() else due_s

    def add_seed(self, addr: Address, now: Instant) -> None:
        """Remember an address to call whenever nobody there is a live peer."""
        self._seeds[addr] = self._seeds_s = now.mono_s

    def call(self, addr: Address, now: Instant, *, tries: int = _CALL_TRIES) -> None:
        """Begin a handshake with an address, unless one is under way."""
        if addr in self._calls or len(self._calls) >= _CALL_LIMIT:
            return
        self._calls[addr] = _Call(1, now.mono_s + _CALL_RETRY_S, tries)
        self._calls_s = min(self._calls_s, now.mono_s + _CALL_RETRY_S)
        self._send(self._handshake.hello(addr, now), addr)

    def call_claimed(self, addr: Address, now: Instant) -> None:
        """Call where a claim says that its subject is, at a bounded rate.

        Claims can name anybody's address. Who is not called now calls here, or is when probed.
        """
        if self._claimed.take(b"", now):
            self.call(addr, now)

    def tick(self, now: Instant) -> None:
        """Repeat unanswered calls; call seeds and, now and then, somebody who is down."""
        if now.mono_s >= self._calls_s:
            self._call_again(now)
        if now.mono_s >= self._seeds_s:
            self._call_seeds(now)
        if now.mono_s >= self._reconnect_s:
            self._reconnect_s = now.mono_s + self._config.reconnect_interval_s
            down = self._members.down()
            callers = _RECONNECTORS + len(down)  # every one, where half of all are down
            if down and self._rng.random() * len(self._members.live()) < callers:
                self.call(self._rng.choice(down).address, now)

    def receive(self, data: bytes, addr: Address, now: Instant) -> None:
        """Take a handshake datagram; raises DropError, having changed no peer's state."""
        reply, made = self._handshake.receive(data, addr, now, self._links.established)
        if made is not None:
            known = self._links.get(made.node_id) is not None
            if not known and len(self._links) >= MAX_MEMBERS:
                raise DropError("links_full")
        if reply is not None:
            self._send(reply, addr)
        if made is None:
            return
        before = self._links.get(made.node_id)
        channel = before.channel if before is not None else None
        link = self._links.open(made)
        if reply is None:
            self._calls.pop(addr, None)
        elif addr in self._calls:
            self._calls[addr].link = link
        if before is not link:
            self._suspicion.greet(link, now, introduce=self._introduces(now))
        else:
            self._suspicion.remind(link)
        if made.rtt_s is not None:  # it has answered a call of this node just now
            self._links.believe(link, now)
            self._suspicion.vouch(link.node_id, now)
        if link.channel is not channel or made.former:  # other keys, or it lacks the newest
            self._on_link(link, now)

    def _introduces(self, now: Instant) -> bool:
        """Tell whether a new peer is to make this node known to all: one seed is enough."""
        if self._members.live() or now.mono_s < self._introduce_s:
            return False
        self._introduce_s = now.mono_s + _INTRODUCTION_S
        return True

    def _call_again(self, now: Instant) -> None:
        for addr, call in list(self._calls.items()):
            if call.next_s > now.mono_s + _TOGETHER_S:
                continue
            if call.tries >= call.most or (call.link is not None and call.link.confirmed):
                del self._calls[addr]
                continue
            call.tries += 1
            patience_s = min(_CALL_LIMIT_S, _CALL_RETRY_S * (1 << call.tries))
            call.next_s = now.mono_s + patience_s * self._rng.uniform(0.75, 1.25)
            self._send(self._handshake.hello(addr, now), addr)
        self._calls_s = min((call.next_s for call in self._calls.values()), default=inf)

    def _call_seeds(self, now: Instant) -> None:
        live = self._members.live()
        interval_s = self._config.seed_interval_s * (_KNOWN_FACTOR if live else 1)
        for addr, due_s in self._seeds.items():
            if due_s > now.mono_s:
                continue
            self._seeds[addr] = now.mono_s + interval_s
            if not self._reached(addr):
                self.call(addr, now)
        self._seeds_s = min(self._seeds.values())

    def _reached(self, addr: Address) -> bool:
        for member in self._members.live():
            link = self._links.get(member.node_id)
            if link is not None and addr in (link.address, member.address):
                return True
        return False
