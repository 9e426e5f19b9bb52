"""Meeting an unknown boot: three signed messages under the epoch key, then a channel.

HELLO -> CHALLENGE (echoes the nonce, brings a cookie) -> CONFIRM (echoes the cookie). All three
have one layout and one size, so no reply is larger than its request, and the responder keeps
nothing before the cookie has come back from the address it was sent to. Owns the pending
attempts and the construction of channels; never the table of peers. Invariant: a boot that a
newer boot of the same node has replaced never gets a channel again.
"""

import struct
from dataclasses import dataclass
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from crdt.clock import Instant
from gossip.events import Address
from gossip.sealing import (
    VERSION,
    Channel,
    DropError,
    HandshakeSeal,
    Identity,
    derive,
    epoch_key,
    mac16,
    node_id_of,
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
_REPLACED_LIMIT = 1024


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
        self._replaced: dict[bytes, None] = {}
        self._rate_per_s = self._tokens = rate_per_s
        self._tokens_s = 0.0
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

    def retire(self, boot: bytes, channel: Channel, replaced: bool) -> None:
        """Take note of a dropped channel, so that no counter of its keys comes twice."""
        self._floor = self._next_counter(channel)
        if replaced:
            self._replaced[boot] = None
            if len(self._replaced) > _REPLACED_LIMIT:
                del self._replaced[next(iter(self._replaced))]

    def receive(
        self, data: bytes, addr: Address, now: Instant, current: dict[bytes, Channel]
    ) -> tuple[bytes | None, Established | None]:
        """Return (reply, established) for a handshake datagram; raises DropError.

        `current` holds the live channels by peer boot, which a repeated handshake keeps.
        """
        body = self._opened(data, now)
        if body.kind == HELLO:
            cookie = self._cookie(body, addr, int(now.mono_s // _COOKIE_S))
            index = self._index(body.boot)
            floor = self._next_counter(current.get(body.boot))
            return self._sealed(CHALLENGE, body.nonce, cookie, body.boot, index, floor), None
        if body.peer_boot != self._boot or body.boot in self._replaced:
            raise DropError("handshake")
        if body.kind == CHALLENGE:
            attempt = self._attempts.get(addr)
            if attempt is None or attempt.nonce != body.nonce:
                raise DropError("handshake")
            del self._attempts[addr]
            made = self._establish(body, addr, current, now.mono_s - attempt.sent_s)
            index, floor = made.channel.local, made.channel.counter
            reply = self._sealed(CONFIRM, body.nonce, body.cookie, body.boot, index, floor)
            return reply, made
        bucket = int(now.mono_s // _COOKIE_S)
        if body.cookie not in (
            self._cookie(body, addr, bucket),
            self._cookie(body, addr, bucket - 1),
        ):
            raise DropError("handshake")
        return None, self._establish(body, addr, current, None)

    def _establish(
        self, body: _Body, addr: Address, current: dict[bytes, Channel], rtt_s: float | None
    ) -> Established:
        node_id = node_id_of(body.public_key)
        channel = current.get(body.boot)
        if channel is None:
            me, peer = (self._identity.node_id, self._boot), (node_id, body.boot)
            channel = Channel(
                send=pair_key(self._epoch, self._exchange, body.exchange, me, peer),
                receive=pair_key(self._epoch, self._exchange, body.exchange, peer, me),
                local=self._index(body.boot),
                counter=self._floor,
                floor=body.floor,
            )
        # a channel that outlived the peer's copy of it keeps what the CHALLENGE promised
        channel.counter = self._next_counter(channel)
        channel.remote = body.channel
        return Established(node_id, body.public_key, body.boot, channel, addr, rtt_s)

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

    def _opened(self, data: bytes, now: Instant) -> _Body:
        plain = self._seal.open(data)
        self._spend_token(now)  # only now: who lacks the secret must not use up the tokens
        if len(plain) != _BODY_BYTES:
            raise DropError("decode")
        body = _Body(*_LAYOUT.unpack_from(plain))
        if not HELLO <= body.kind <= CONFIRM or body.floor >= 1 << 48:
            raise DropError("decode")
        if not body.version_low <= VERSION <= body.version_high:
            raise DropError("version")
        if body.public_key == self._identity.public_key:
            raise DropError("self")
        if not verify(body.public_key, _LABEL + plain[: _LAYOUT.size], plain[_LAYOUT.size :]):
            raise DropError("handshake")
        return body

    def _spend_token(self, now: Instant) -> None:
        gained = max(0.0, now.mono_s - self._tokens_s) * self._rate_per_s
        self._tokens = min(self._rate_per_s, self._tokens + gained)
        self._tokens_s = now.mono_s
        if self._tokens < 1:
            raise DropError("handshake_rate")
        self._tokens -= 1

    def _cookie(self, body: _Body, addr: Address, bucket: int) -> bytes:
        where = f"{addr[0]} {addr[1]}".encode()
        stamp = bucket.to_bytes(8, "big", signed=True)
        who = (body.public_key, body.boot, body.nonce)
        return mac16(self._local_key, b"cookie", where, *who, stamp)

    def _index(self, boot: bytes) -> bytes:
        return mac16(self._local_key, b"index", boot)[:4]
