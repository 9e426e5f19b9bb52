"""Meeting an unknown boot: three signed messages under an epoch key, then a channel.

HELLO -> CHALLENGE (echoes the nonce, brings a cookie) -> CONFIRM (echoes the cookie). All three
have one layout and one size, so no reply is larger than its request, and the responder keeps
nothing before the cookie has come back from the address it was sent to. Owns the pending
attempts and the construction of channels; never the table of peers. Invariants: a boot that has
left, or that a newer boot of the same node has replaced, never gets a channel again; only a fresh
HELLO costs anything, and only so many of them are examined, from one address and in all. Under
the previous epoch key nobody is met for the first time, and between two boots none is gone back.
"""

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from crdt.causal import node_id_of
from crdt.clock import Instant
from gossip.events import Address
from gossip.limits import Rates, Recent
from gossip.sealing import (
    VERSIONS,
    Channel,
    DropError,
    Epoch,
    HandshakeSeal,
    Identity,
    Keyring,
    derive,
    mac16,
    pair_key,
)

HELLO, CHALLENGE, CONFIRM = 1, 2, 3
_LAYOUT = struct.Struct(">BBB32s32s16s16s16s16s4sQ")
_BODY_BYTES = _LAYOUT.size + 64
_LABEL = b"edge-node handshake 1"
_ZERO16 = bytes(16)
_COOKIE_S = 10.0
_PENDING_LIMIT = 512
_TRIES_KEPT = 4  # of an address, for answers that were long on the way
_ANSWER_S = 10.0
_REPLACED_LEAST = 1024
_HELLOS_LEAST = 8192  # a recording costs a token once in so many


class _Body(NamedTuple):
    kind: int
    version_low: int
    version_high: int
    public_key: bytes
    exchange: bytes
    boot: bytes
    nonce: bytes  # the initiator's; echoed by the others
    cookie: bytes  # the responder's; zero in HELLO
    peer_boot: bytes  # zero in HELLO
    channel: bytes  # the index the sender wants in headers to it; zero in HELLO
    floor: int  # the sender's next datagrams on this channel count from here or above


class _Opened(NamedTuple):
    body: _Body
    node_id: bytes
    epoch: Epoch
    version: int  # the highest that both speak
    signed: bytes
    signature: bytes  # not yet verified


@dataclass(slots=True)
class _Attempt:
    nonce: bytes
    sent_s: float
    epoch: Epoch


class Established(NamedTuple):
    """A peer has proved its identity, its address and its knowledge of an epoch's secret.

    `former` says that this was our previous one: the peer does not know the current yet.
    """

    node_id: bytes
    public_key: bytes
    boot: bytes
    channel: Channel
    address: Address
    rtt_s: float | None
    made_s: float
    epoch: Epoch
    former: bool

    @property
    def version(self) -> int:
        """Return the version of the protocol that both speak."""
        return self.channel.version


Current = Callable[[bytes], Established | None]  # how the live link to a node id was made
OfNode = Callable[[bytes], bool]  # something that holds of a node id or does not


class Handshake:
    """Run handshakes for one boot of one node."""

    def __init__(
        self,
        identity: Identity,
        secret: bytes | Keyring,
        boot: bytes,
        exchange: bytes | None,
        rate_per_s: float = 200.0,
        *,
        versions: tuple[int, int] = VERSIONS,
        known: OfNode = lambda _: False,
        revoked: OfNode = lambda _: False,
    ) -> None:
        """Begin for a boot of 16 fresh bytes, speaking the versions from low to high (up to 15).

        `exchange` is the boot's 32 private bytes, given only where runs must repeat. Only those
        that are `known` may come under the previous epoch key, and the `revoked` never.
        """
        if len(boot) != 16:
            raise ValueError("a boot has 16 bytes")
        if not 1 <= versions[0] <= versions[1] <= 15:
            raise ValueError(f"versions {versions}: must be between 1 and 15")
        self.keys = secret if isinstance(secret, Keyring) else Keyring(secret)
        self._identity = identity
        self._boot = boot
        self._versions = versions
        self._known = known
        self._revoked = revoked
        private = exchange or os.urandom(32)
        self._exchange = identity.exchange(private)
        self._seal = HandshakeSeal(self.keys, boot, identity.aead)
        # whoever does not hold this boot's private key can neither foresee nor forge these
        self._local_key = derive(private, b"edge-node local 1")
        # by address, the newest last: on a slow path an answer comes after the next try
        self._attempts: dict[Address, list[_Attempt]] = {}
        self._nonces = 0
        self._replaced = Recent(_REPLACED_LEAST)  # node id + boot
        self._hellos = Recent(_HELLOS_LEAST)
        # at least the cookies that HELLOs can have paid for while one is good
        self._spent = Recent(int(rate_per_s * 5 * _COOKIE_S) + 1)
        self._rate = Rates(rate_per_s, rate_per_s)
        self._rate_by_host = Rates(rate_per_s / 2, rate_per_s / 2)
        self._floor = 0  # no counter of a dropped channel is at or above this

    def hello(self, address: Address, now: Instant) -> bytes:
        """Start (or start again) a handshake; return the datagram for `address`.

        Who does not answer may know only the previous epoch key: every other time that is tried.
        """
        self._nonces += 1
        nonce = mac16(self._local_key, b"nonce", self._nonces.to_bytes(8, "big"))
        attempts = self._attempts.pop(address, [])[1 - _TRIES_KEPT :]
        if len(self._attempts) >= _PENDING_LIMIT:
            del self._attempts[next(iter(self._attempts))]
        epoch = self.keys.current
        if attempts and attempts[-1].epoch is epoch:
            epoch = self.keys.previous or epoch
        self._attempts[address] = [*attempts, _Attempt(nonce, now.mono_s, epoch)]
        return self._sealed(HELLO, epoch, nonce, _ZERO16, _ZERO16, bytes(4), 0)

    def retire(self, node_id: bytes, boot: bytes, channel: Channel, gone: bool) -> None:
        """Take note of a dropped channel, so that no counter of its keys comes twice.

        A boot that is gone for good (it left, or another one replaced it) gets no new channel.
        """
        self._floor = max(self._floor, channel.counter)
        if gone:
            self._replaced.add(node_id + boot)

    def receive(
        self, data: bytes, addr: Address, now: Instant, current: Current
    ) -> tuple[bytes | None, Established | None]:
        """Return (reply, established) for a handshake datagram; raises DropError.

        A repeated handshake keeps the channel that `current` knows for the same node and boot,
        unless it was made under an older epoch key: then there is a new one to go on with.
        """
        opened = self._opened(data)
        body, node_id, epoch = opened.body, opened.node_id, opened.epoch
        met = current(node_id)
        same, rival = (met, None) if met is None or met.boot == body.boot else (None, met)
        self._permit(node_id, epoch, same)
        sent_s = None
        if body.kind == HELLO:
            self._admit(body.nonce, addr, now)
        else:
            sent_s = self._expected(opened, addr, now, rival)
        # the costly check comes last, so that each HELLO sent or admitted pays for at most one
        signed = _LABEL + opened.signed
        if not self._identity.verify(body.public_key, signed, opened.signature):
            raise DropError("handshake")
        if body.kind == HELLO:
            cookie = self._cookie(body, addr, int(now.mono_s // _COOKIE_S), rival)
            index, floor = self._index(opened), self._next_counter(same)
            answer = (body.nonce, cookie, body.boot, index, floor)
            return self._sealed(CHALLENGE, epoch, *answer), None
        made = self._establish(opened, addr, now, same, sent_s)
        if body.kind == CONFIRM:
            return None, made
        index, floor = made.channel.local, made.channel.counter
        answer = (body.nonce, body.cookie, body.boot, index, floor)
        return self._sealed(CONFIRM, epoch, *answer), made

    def _permit(self, node_id: bytes, epoch: Epoch, same: Established | None) -> None:
        """Let pass who may come under an epoch key.

        A thief of the previous one must not invent members. A boot once met under an epoch knows
        it; if it could be met under an older one again, both sides might end with other keys.
        """
        if self._revoked(node_id):
            raise DropError("revoked")
        if epoch is not self.keys.current and not self._known(node_id):
            raise DropError("epoch")
        if same is not None and epoch.order < same.epoch.order:
            raise DropError("epoch")

    def _admit(self, nonce: bytes, addr: Address, now: Instant) -> None:
        """Let a HELLO pass that is new and within the rates."""
        if nonce in self._hellos:
            raise DropError("replay")
        if not (self._rate_by_host.take(addr[0], now) and self._rate.take(b"", now)):
            raise DropError("handshake_rate")
        self._hellos.add(nonce)

    def _expected(
        self, opened: _Opened, addr: Address, now: Instant, rival: Established | None
    ) -> float | None:
        """Let an answer pass that was asked for, once; return when, if it was by a HELLO.

        What was asked before a rival boot of the same node was met comes from an older boot.
        """
        body = opened.body
        if body.peer_boot != self._boot or opened.node_id + body.boot in self._replaced:
            raise DropError("handshake")
        if body.kind == CHALLENGE:
            asked = body.nonce, opened.epoch
            sent_s = [
                one.sent_s
                for one in self._attempts.get(addr, ())
                if (one.nonce, one.epoch) == asked
                and now.mono_s - one.sent_s < _ANSWER_S
                and (rival is None or rival.made_s <= one.sent_s)
            ]
            if not sent_s:
                raise DropError("handshake")
            del self._attempts[addr]
            return sent_s[0]
        if body.cookie in self._spent:
            raise DropError("replay")
        bucket = int(now.mono_s // _COOKIE_S)
        if all(body.cookie != self._cookie(body, addr, bucket - age, rival) for age in (0, 1)):
            raise DropError("handshake")
        self._spent.add(body.cookie)
        return None

    def _establish(
        self,
        opened: _Opened,
        addr: Address,
        now: Instant,
        same: Established | None,
        sent_s: float | None,
    ) -> Established:
        body, epoch = opened.body, opened.epoch
        counter = self._next_counter(same)
        if same is not None and same.epoch is epoch:
            channel = same.channel
            # one that outlived the peer's copy of it keeps what the CHALLENGE promised
            channel.counter = counter
        else:
            channel = self._channel(opened, counter)
        channel.remote = body.channel
        return Established(
            opened.node_id,
            body.public_key,
            body.boot,
            channel,
            addr,
            now.mono_s - sent_s if sent_s is not None else None,
            now.mono_s,
            epoch,
            epoch is not self.keys.current,
        )

    def _channel(self, opened: _Opened, counter: int) -> Channel:
        body, epoch = opened.body, opened.epoch
        me = self._identity.node_id, self._boot
        peer = opened.node_id, body.boot
        try:
            shared = self._exchange.shared(body.exchange)
        except ValueError:
            raise DropError("handshake") from None
        return Channel(
            self._identity.aead(pair_key(epoch.key, shared, me, peer)),
            self._identity.aead(pair_key(epoch.key, shared, peer, me)),
            self._index(opened),
            counter,
            body.floor,
            version=opened.version,
            epoch=epoch.number,
        )

    def _next_counter(self, same: Established | None) -> int:
        return self._floor if same is None else max(self._floor, same.channel.counter)

    def _sealed(
        self,
        kind: int,
        epoch: Epoch,
        nonce: bytes,
        cookie: bytes,
        peer_boot: bytes,
        index: bytes,
        floor: int,
    ) -> bytes:
        me = (self._identity.public_key, self._exchange.public, self._boot)
        about = (nonce, cookie, peer_boot, index, floor)
        body = _LAYOUT.pack(kind, *self._versions, *me, *about)
        return self._seal.seal(body + self._identity.sign(_LABEL + body), epoch)

    def _opened(self, data: bytes) -> _Opened:
        """Take a datagram apart; a newer version may say more before the signature."""
        plain, epoch = self._seal.open(data)
        if len(plain) < _BODY_BYTES:
            raise DropError("decode")
        body = _Body._make(_LAYOUT.unpack_from(plain))
        low, high = self._versions
        if not HELLO <= body.kind <= CONFIRM or body.floor >= 1 << 48:
            raise DropError("decode")
        if len(plain) > _BODY_BYTES and body.version_high <= high:
            raise DropError("decode")
        version = min(high, body.version_high)
        if version < max(low, body.version_low):
            raise DropError("version")
        if body.public_key == self._identity.public_key:
            raise DropError("self")
        node_id = node_id_of(body.public_key)
        return _Opened(body, node_id, epoch, version, plain[:-64], plain[-64:])

    def _cookie(self, body: _Body, addr: Address, bucket: int, rival: Established | None) -> bytes:
        where = f"{addr[0]} {addr[1]}".encode()
        stamp = bucket.to_bytes(8, "big", signed=True)
        who = (body.public_key, body.boot, body.nonce)
        instead_of = rival.boot if rival is not None else b""
        return mac16(self._local_key, b"cookie", where, *who, stamp, instead_of)

    def _index(self, opened: _Opened) -> bytes:
        return mac16(self._local_key, b"index", opened.node_id, opened.body.boot)[:4]
