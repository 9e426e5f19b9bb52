"""Meeting an unknown boot: three signed messages under the epoch key, then a channel.

HELLO -> CHALLENGE (echoes the nonce, brings a cookie) -> CONFIRM (echoes the cookie). All three
have one layout and one size, so no reply is larger than its request, and the responder keeps
nothing before the cookie has come back from the address it was sent to. Owns the pending
attempts and the construction of channels; never the table of peers. Invariants: a boot that has
left, or that a newer boot of the same node has replaced, never gets a channel again; only a fresh
HELLO costs anything, and only so many of them are examined, from one address and in all.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from crdt.causal import node_id_of
from crdt.clock import Instant
from gossip.events import Address
from gossip.limits import Rates, Recent
from gossip.sealing import (
    VERSION,
    Channel,
    DropError,
    HandshakeSeal,
    Identity,
    derive,
    epoch_key,
    mac16,
    pair_key,
    verify,
)

HELLO, CHALLENGE, CONFIRM = 1, 2, 3
_LAYOUT = struct.Struct(">BBB32s32s16s16s16s16s4sQ")
_BODY_BYTES = _LAYOUT.size + 64
_LABEL = b"edge-node handshake 1"
_ZERO16 = bytes(16)
_COOKIE_S = 10.0
_PENDING_LIMIT = 512
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


@dataclass(slots=True)
class _Attempt:
    nonce: bytes
    sent_s: float


class Established(NamedTuple):
    """A peer has proved its identity and its address."""

    node_id: bytes
    public_key: bytes
    boot: bytes
    channel: Channel
    address: Address
    rtt_s: float | None
    made_s: float


Current = Callable[[bytes], Established | None]  # how the live link to a node id was made


class Handshake:
    """Run handshakes for one boot of one node."""

    def __init__(
        self,
        identity: Identity,
        secret: bytes,
        boot: bytes,
        exchange: X25519PrivateKey | None,
        rate_per_s: float = 200.0,
    ) -> None:
        if len(boot) != 16:
            raise ValueError("a boot has 16 bytes")
        self._identity = identity
        self._boot = boot
        self._exchange = exchange or X25519PrivateKey.generate()
        self._exchange_public = self._exchange.public_key().public_bytes_raw()
        self._epoch = epoch_key(secret)
        self._seal = HandshakeSeal(derive(self._epoch, b"edge-node handshake seal 1"), boot)
        # whoever does not hold this boot's private key can neither foresee nor forge these
        self._local_key = derive(self._exchange.private_bytes_raw(), b"edge-node local 1")
        self._attempts: dict[Address, _Attempt] = {}
        self._nonces = 0
        self._replaced = Recent(_REPLACED_LEAST)  # node id + boot
        self._hellos = Recent(_HELLOS_LEAST)
        # at least the cookies that HELLOs can have paid for while one is good
        self._spent = Recent(int(rate_per_s * 5 * _COOKIE_S) + 1)
        self._rate = Rates(rate_per_s, rate_per_s)
        self._rate_by_host = Rates(rate_per_s / 2, rate_per_s / 2)
        self._floor = 0  # no counter of a dropped channel is at or above this

    def hello(self, address: Address, now: Instant) -> bytes:
        """Start (or start again) a handshake; return the datagram for `address`."""
        self._nonces += 1
        nonce = mac16(self._local_key, b"nonce", self._nonces.to_bytes(8, "big"))
        self._attempts.pop(address, None)
        if len(self._attempts) >= _PENDING_LIMIT:
            del self._attempts[next(iter(self._attempts))]
        self._attempts[address] = _Attempt(nonce, now.mono_s)
        return self._sealed(HELLO, nonce, _ZERO16, _ZERO16, bytes(4), 0)

    def retire(self, node_id: bytes, boot: bytes, channel: Channel, gone: bool) -> None:
        """Take note of a dropped channel, so that no counter of its keys comes twice.

        A boot that is gone for good (it left, or another one replaced it) gets no new channel.
        """
        self._floor = self._next_counter(channel)
        if gone:
            self._replaced.add(node_id + boot)

    def receive(
        self, data: bytes, addr: Address, now: Instant, current: Current
    ) -> tuple[bytes | None, Established | None]:
        """Return (reply, established) for a handshake datagram; raises DropError.

        A repeated handshake keeps the channel that `current` knows for the same node and boot.
        """
        body, signed, signature = self._opened(data)
        known = current(node_id_of(body.public_key))
        rival = known if known is not None and known.boot != body.boot else None
        sent_s = None
        if body.kind == HELLO:
            self._admit(body.nonce, addr, now)
        else:
            sent_s = self._expected(body, addr, now, rival)
        # the costly check comes last, so that each HELLO sent or admitted pays for at most one
        if not verify(body.public_key, _LABEL + signed, signature):
            raise DropError("handshake")
        channel = known.channel if known is not None and rival is None else None
        if body.kind == HELLO:
            cookie = self._cookie(body, addr, int(now.mono_s // _COOKIE_S), rival)
            index, floor = self._index(body), self._next_counter(channel)
            return self._sealed(CHALLENGE, body.nonce, cookie, body.boot, index, floor), None
        made = self._establish(body, addr, now, channel, sent_s)
        if body.kind == CONFIRM:
            return None, made
        index, floor = made.channel.local, made.channel.counter
        return self._sealed(CONFIRM, body.nonce, body.cookie, body.boot, index, floor), made

    def _admit(self, nonce: bytes, addr: Address, now: Instant) -> None:
        """Let a HELLO pass that is new and within the rates."""
        if nonce in self._hellos:
            raise DropError("replay")
        if not (self._rate_by_host.take(addr[0], now) and self._rate.take(b"", now)):
            raise DropError("handshake_rate")
        self._hellos.add(nonce)

    def _expected(
        self, body: _Body, addr: Address, now: Instant, rival: Established | None
    ) -> float | None:
        """Let an answer pass that was asked for, once; return when, if it was by a HELLO.

        What was asked before a rival boot of the same node was met comes from an older boot.
        """
        if (
            body.peer_boot != self._boot
            or node_id_of(body.public_key) + body.boot in self._replaced
        ):
            raise DropError("handshake")
        if body.kind == CHALLENGE:
            attempt = self._attempts.get(addr)
            if attempt is None or attempt.nonce != body.nonce:
                raise DropError("handshake")
            if rival is not None and rival.made_s > attempt.sent_s:
                raise DropError("handshake")
            del self._attempts[addr]
            return attempt.sent_s
        if body.cookie in self._spent:
            raise DropError("replay")
        bucket = int(now.mono_s // _COOKIE_S)
        good = [self._cookie(body, addr, bucket - age, rival) for age in (0, 1)]
        if body.cookie not in good:
            raise DropError("handshake")
        self._spent.add(body.cookie)
        return None

    def _establish(
        self,
        body: _Body,
        addr: Address,
        now: Instant,
        channel: Channel | None,
        sent_s: float | None,
    ) -> Established:
        node_id = node_id_of(body.public_key)
        if channel is None:
            me, peer = (self._identity.node_id, self._boot), (node_id, body.boot)
            channel = Channel(
                send=pair_key(self._epoch, self._exchange, body.exchange, me, peer),
                receive=pair_key(self._epoch, self._exchange, body.exchange, peer, me),
                local=self._index(body),
                counter=self._floor,
                floor=body.floor,
            )
        # a channel that outlived the peer's copy of it keeps what the CHALLENGE promised
        channel.counter = self._next_counter(channel)
        channel.remote = body.channel
        rtt_s = now.mono_s - sent_s if sent_s is not None else None
        made = (node_id, body.public_key, body.boot, channel, addr, rtt_s, now.mono_s)
        return Established(*made)

    def _next_counter(self, channel: Channel | None) -> int:
        return self._floor if channel is None else max(self._floor, channel.counter)

    def _sealed(
        self, kind: int, nonce: bytes, cookie: bytes, peer_boot: bytes, index: bytes, floor: int
    ) -> bytes:
        body = _LAYOUT.pack(
            kind,
            VERSION,
            VERSION,
            self._identity.public_key,
            self._exchange_public,
            self._boot,
            nonce,
            cookie,
            peer_boot,
            index,
            floor,
        )
        return self._seal.seal(body + self._identity.sign(_LABEL + body))

    def _opened(self, data: bytes) -> tuple[_Body, bytes, bytes]:
        """Return a datagram's body, what of it is signed, and the signature, not yet verified."""
        plain = self._seal.open(data)
        if len(plain) != _BODY_BYTES:
            raise DropError("decode")
        body = _Body(*_LAYOUT.unpack_from(plain))
        if not HELLO <= body.kind <= CONFIRM or body.floor >= 1 << 48:
            raise DropError("decode")
        if not body.version_low <= VERSION <= body.version_high:
            raise DropError("version")
        if body.public_key == self._identity.public_key:
            raise DropError("self")
        return body, plain[: _LAYOUT.size], plain[_LAYOUT.size :]

    def _cookie(self, body: _Body, addr: Address, bucket: int, rival: Established | None) -> bytes:
        where = f"{addr[0]} {addr[1]}".encode()
        stamp = bucket.to_bytes(8, "big", signed=True)
        who = (body.public_key, body.boot, body.nonce)
        instead_of = rival.boot if rival is not None else b""
        return mac16(self._local_key, b"cookie", where, *who, stamp, instead_of)

    def _index(self, body: _Body) -> bytes:
        return mac16(self._local_key, b"index", node_id_of(body.public_key), body.boot)[:4]
