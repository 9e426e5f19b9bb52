"""Keys, signatures, seals and replay windows.

Owns the cryptography of datagrams and nothing of their meaning; all of it that is costly goes
through `Identity`. Never keeps a secret anywhere but in the objects it returns. Invariant: no
(key, nonce) pair is used twice, because a pair key is bound to both boots and a boot never takes
the same counter twice.
"""

import hmac
import struct
from collections.abc import Callable
from hashlib import sha256
from typing import Protocol

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from crdt.causal import node_id_of

VERSIONS = (1, 1)  # the lowest and the highest version of the protocol that this code speaks
HEADER_BYTES = 12
TAG_BYTES = 16
MAX_DATAGRAM_BYTES = 1200
WINDOW_PACKETS = 1024
KIND_HANDSHAKE = 1
KIND_SEALED = 2
ROTATED_SECRET_BYTES = 32
EPOCH_LEAP = 255  # so that the header's byte tells the two epochs of a ring apart
MAX_EPOCH = (1 << 16) - 1
_COUNTER_LIMIT = 1 << 48
_WINDOW_MASK = (1 << WINDOW_PACKETS) - 1
_HANDSHAKE_VERSION = 1  # of the handshake's layout; what comes later is appended to it
_HEADER = struct.Struct(">BB4sHI")


class DropError(Exception):
    """A datagram is refused; `reason` names the counter. No state has changed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Aead(Protocol):
    """A cipher with its key: AES-256-GCM, or a stand-in of the same sizes."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None, /) -> bytes:
        """Return the ciphertext and the 16-byte tag."""
        ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None, /) -> bytes:
        """Return the plaintext; raises InvalidTag."""
        ...


class Exchange:
    """An X25519 key pair, one for each boot."""

    def __init__(self, private: bytes) -> None:
        self._private_key = X25519PrivateKey.from_private_bytes(private)
        self.public: bytes = self._private_key.public_key().public_bytes_raw()

    def shared(self, peer_public: bytes) -> bytes:
        """Return the 32 bytes shared with a peer; ValueError for a degenerate key of the peer's.

        Source: RFC 7748, section 6.1.
        """
        return self._private_key.exchange(X25519PublicKey.from_public_bytes(peer_public))


class Identity:
    """An Ed25519 key pair: who a node is, for as long as its key file lives.

    Also the node's provider of cryptography: a simulation of thousands of nodes may override
    `sign`, `verify`, `aead` and `exchange` with something cheap of the same sizes.
    """

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.public_key: bytes = private_key.public_key().public_bytes_raw()
        self.node_id: bytes = node_id_of(self.public_key)

    @classmethod
    def generate(cls) -> "Identity":
        """Make a new identity from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_private_bytes(cls, data: bytes) -> "Identity":
        """Load an identity from its 32 private bytes; ValueError when they are not 32."""
        return cls(Ed25519PrivateKey.from_private_bytes(data))

    def private_bytes(self) -> bytes:
        """Return the 32 private bytes, for the key file."""
        return self._private_key.private_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of a message."""
        return self._private_key.sign(message)

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        """Tell whether a signature is that of a message under anybody's public key."""
        return verify(public_key, message, signature)

    def aead(self, key: bytes) -> Aead:
        """Return the cipher of a 32-byte key."""
        return AESGCM(key)

    def exchange(self, private: bytes) -> Exchange:
        """Return the key pair of a boot's 32 private bytes."""
        return Exchange(private)


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Tell whether a signature is that of a message under a public key; never raises."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def derive(secret: bytes, info: bytes, salt: bytes = b"") -> bytes:
    """Derive 32 bytes with HKDF-SHA256 (RFC 5869)."""
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=info).derive(secret)


def epoch_key(secret: bytes) -> bytes:
    """Derive the fleet's epoch key from its secret; ValueError below 16 bytes."""
    if len(secret) < 16:
        raise ValueError("the fleet secret must have at least 16 bytes")
    return derive(secret, b"edge-node epoch 1")


def mac16(key: bytes, *parts: bytes) -> bytes:
    """Return a 16-byte HMAC-SHA256 over length-prefixed parts."""
    joined = b"".join([len(part).to_bytes(2, "big") + part for part in parts])
    return hmac.digest(key, joined, "sha256")[:16]


def pair_key(
    epoch: bytes, shared: bytes, sender: tuple[bytes, bytes], receiver: tuple[bytes, bytes]
) -> bytes:
    """Derive the key of one direction between two boots from what their exchange gave.

    `sender` and `receiver` are (node id, boot). The ids are bound as well as the boots, or a
    member could pass another's exchange key off as its own.
    """
    info = b"edge-node pair 1" + b"".join(sender) + b"".join(receiver)
    return derive(shared, info, salt=epoch)


class Epoch:
    """The fleet's secret under its number, and the epoch key; there is one object of each."""

    __slots__ = ("key", "number", "order", "secret")

    def __init__(self, number: int, secret: bytes) -> None:
        """Raise ValueError for a number beyond 16 bits or a secret below 16 bytes."""
        if not 0 <= number <= MAX_EPOCH:
            raise ValueError(f"key epoch {number}: must be between 0 and {MAX_EPOCH}")
        self.number = number
        self.secret = secret
        self.key = epoch_key(secret)
        self.order = number, sha256(secret).digest()


class Keyring:
    """The fleet's secret of now and, while a rotation spreads, the one before it.

    Epochs only go up, by number and then by the secret's hash: so rings that heard of different
    rotations agree in the end, whatever the order.
    """

    def __init__(
        self, secret: bytes, number: int = 0, previous: tuple[int, bytes] | None = None
    ) -> None:
        """Raise ValueError for what is no epoch, or a previous one that cannot precede it."""
        self.current = Epoch(number, secret)
        self.previous = Epoch(*previous) if previous is not None else None
        if self.previous is not None and not 1 <= number - self.previous.number <= EPOCH_LEAP:
            raise ValueError(f"key epoch {number} cannot follow {self.previous.number}")

    @property
    def held(self) -> tuple[Epoch, ...]:
        """Return the epochs whose handshakes are read, the current one first."""
        return (self.current,) if self.previous is None else (self.current, self.previous)

    def offer(self, number: int, secret: bytes) -> bool:
        """Take a later epoch as the current one; tell whether it was taken.

        It must have 32 bytes and be at most 255 numbers ahead. Of two secrets under one number
        the lesser is dropped; the epoch before both stays, since who was away knows only that.
        """
        leap = number - self.current.number
        if len(secret) != ROTATED_SECRET_BYTES or not 0 <= leap <= EPOCH_LEAP or number > MAX_EPOCH:
            return False
        offered = Epoch(number, secret)
        if offered.order <= self.current.order:
            return False
        if leap:
            self.previous = self.current
        self.current = offered
        return True

    def forget_previous(self) -> None:
        """End a rotation: who knows only the previous secret is locked out from here on."""
        self.previous = None


class ReplayWindow:
    """Remember which of the last 1,024 counters were seen (RFC 6479's idea, one integer).

    Everything below the window counts as seen, so an old recording never passes.
    """

    __slots__ = ("_bits", "_highest")

    def __init__(self, floor: int = 0) -> None:
        """Start with every counter below `floor` seen."""
        self._highest = floor - 1
        self._bits = _WINDOW_MASK

    def fresh(self, counter: int) -> bool:
        """Tell whether a counter was not seen yet; changes nothing."""
        if counter > self._highest:
            return True
        age = self._highest - counter
        return age < WINDOW_PACKETS and not self._bits >> age & 1

    def mark(self, counter: int) -> None:
        """Note a counter whose packet was authentic."""
        shift = counter - self._highest
        if shift <= 0:
            self._bits |= 1 << -shift if -shift < WINDOW_PACKETS else 0
            return
        kept = self._bits << shift if shift < WINDOW_PACKETS else 0
        self._bits = (kept | 1) & _WINDOW_MASK
        self._highest = counter


def parse_header(data: bytes) -> tuple[int, int, bytes, int]:
    """Split a header into (kind, key epoch, channel, counter); raises DropError.

    Whether a sealed datagram has the version of its channel, the channel looks at.
    """
    if len(data) > MAX_DATAGRAM_BYTES:
        raise DropError("oversize")
    if len(data) <= HEADER_BYTES + TAG_BYTES:
        raise DropError("truncated")
    first, epoch, index, high, low = _HEADER.unpack_from(data)
    kind = first & 15
    if kind != KIND_SEALED and first != _HANDSHAKE_VERSION << 4 | KIND_HANDSHAKE:
        raise DropError("version")
    return kind, epoch, index, high << 32 | low


class HandshakeSeal:
    """Seal and open what travels under an epoch key, which all boots of all nodes share.

    The 80 free bits of the nonce are a hash of the boot and a counter: unique, never drawn twice.
    """

    def __init__(self, keys: Keyring, boot: bytes, aead: Callable[[bytes], Aead]) -> None:
        self._keys = keys
        self._boot = boot
        self._aead = aead
        self._ciphers: dict[Epoch, Aead] = {}
        self._sent = 0  # over all epochs: two of them might have the same secret

    def seal(self, body: bytes, epoch: Epoch) -> bytes:
        """Return the sealed datagram of a handshake body."""
        self._sent += 1
        unique = sha256(self._boot + self._sent.to_bytes(8, "big")).digest()[:10]
        first = _HANDSHAKE_VERSION << 4 | KIND_HANDSHAKE
        header = bytes((first, epoch.number & 255)) + unique
        return header + self._cipher(epoch).encrypt(header, body, header)

    def open(self, data: bytes) -> tuple[bytes, Epoch]:
        """Return the body of a handshake datagram and its epoch; raises DropError."""
        header = data[:HEADER_BYTES]
        for epoch in self._keys.held:
            if epoch.number & 255 == header[1]:
                try:
                    return self._cipher(epoch).decrypt(header, data[HEADER_BYTES:], header), epoch
                except InvalidTag:
                    raise DropError("seal") from None
        raise DropError("epoch")

    def _cipher(self, epoch: Epoch) -> Aead:
        if epoch not in self._ciphers:
            self._ciphers = {
                held: self._aead(derive(held.key, b"edge-node handshake seal 1"))
                for held in self._keys.held
            }
        return self._ciphers[epoch]


class Channel:
    """One peer boot's pair of keys: seals to it and opens what comes from it.

    `local` is the 4-byte index the peer puts into its headers, `remote` the one it expects;
    `version` is what both speak.
    """

    __slots__ = ("_lead", "_opener", "_sealer", "_window", "counter", "local", "remote", "version")

    def __init__(
        self,
        sealer: Aead,
        opener: Aead,
        local: bytes,
        counter: int,
        floor: int,
        *,
        version: int = 1,
        epoch: int = 0,
    ) -> None:
        self._sealer = sealer
        self._opener = opener
        self._window = ReplayWindow(floor)
        self._lead = bytes((version << 4 | KIND_SEALED, epoch & 255))
        self.counter = counter
        self.local = local
        self.remote = b""
        self.version = version

    def seal(self, payload: bytes) -> tuple[int, bytes]:
        """Return (counter, sealed datagram) of a payload."""
        counter = self.counter
        assert counter < _COUNTER_LIMIT, "48-bit counter exhausted"
        self.counter = counter + 1
        header = self._lead + self.remote + counter.to_bytes(6, "big")
        return counter, header + self._sealer.encrypt(header, payload, header)

    def open(self, data: bytes, counter: int) -> bytes:
        """Return a datagram's payload and note its counter; raises DropError."""
        if data[0] != self._lead[0]:
            raise DropError("version")
        if not self._window.fresh(counter):
            raise DropError("replay")
        header = data[:HEADER_BYTES]
        try:
            payload = self._opener.decrypt(header, data[HEADER_BYTES:], header)
        except InvalidTag:
            raise DropError("seal") from None
        self._window.mark(counter)
        return payload
