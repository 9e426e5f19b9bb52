"""Keys, signatures, seals and replay windows.

Owns the cryptography of datagrams and nothing of their meaning. Never keeps a secret anywhere but
in the objects it returns. Invariant: no (key, nonce) pair is used twice, because a pair key is
bound to both boots and a boot never takes the same counter twice.
"""

import hmac
from hashlib import sha256

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from crdt.causal import node_id_of

VERSION = 1
HEADER_BYTES = 12
TAG_BYTES = 16
MAX_DATAGRAM_BYTES = 1200
WINDOW_PACKETS = 1024
KIND_HANDSHAKE = 1
KIND_SEALED = 2
_COUNTER_LIMIT = 1 << 48


class DropError(Exception):
    """A datagram is refused; `reason` names the counter. No state has changed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Identity:
    """An Ed25519 key pair: who a node is, for as long as its key file lives."""

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
    joined = b"".join(len(part).to_bytes(2, "big") + part for part in parts)
    return hmac.digest(key, joined, "sha256")[:16]


def pair_key(
    epoch: bytes,
    exchange: X25519PrivateKey,
    peer_exchange: bytes,
    sender: tuple[bytes, bytes],
    receiver: tuple[bytes, bytes],
) -> bytes:
    """Derive the key of one direction between two boots.

    `sender` and `receiver` are (node id, boot). The ids are bound as well as the boots, or a
    member could pass another's exchange key off as its own. Raises DropError for a degenerate
    peer key (RFC 7748, section 6.1).
    """
    try:
        shared = exchange.exchange(X25519PublicKey.from_public_bytes(peer_exchange))
    except ValueError:
        raise DropError("handshake") from None
    info = b"edge-node pair 1" + b"".join(sender) + b"".join(receiver)
    return derive(shared, info, salt=epoch)


class ReplayWindow:
    """Remember which of the last 1,024 counters were seen (RFC 6479's idea, one integer).

    Everything below the window counts as seen, so an old recording never passes.
    """

    __slots__ = ("_bits", "_highest")

    def __init__(self, floor: int = 0) -> None:
        """Start with every counter below `floor` seen."""
        self._highest = floor - 1
        self._bits = (1 << WINDOW_PACKETS) - 1

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
        self._bits = (kept | 1) & ((1 << WINDOW_PACKETS) - 1)
        self._highest = counter


def parse_header(data: bytes) -> tuple[int, int, bytes, int]:
    """Split a header into (kind, key epoch, channel, counter); raises DropError."""
    if len(data) > MAX_DATAGRAM_BYTES:
        raise DropError("oversize")
    if len(data) <= HEADER_BYTES + TAG_BYTES:
        raise DropError("truncated")
    if data[0] >> 4 != VERSION:
        raise DropError("version")
    return data[0] & 15, data[1], data[2:6], int.from_bytes(data[6:12], "big")


class HandshakeSeal:
    """Seal and open what travels under the epoch key, which all boots of all nodes share.

    The 80 free bits of the nonce are a hash of the boot and a counter: unique, never drawn twice.
    """

    def __init__(self, key: bytes, boot: bytes) -> None:
        self._cipher = AESGCM(key)
        self._boot = boot
        self._sent = 0

    def seal(self, body: bytes) -> bytes:
        """Return the sealed datagram of a handshake body."""
        self._sent += 1
        unique = sha256(self._boot + self._sent.to_bytes(8, "big")).digest()[:10]
        header = bytes((VERSION << 4 | KIND_HANDSHAKE, 0)) + unique
        return header + self._cipher.encrypt(header, body, header)

    def open(self, data: bytes) -> bytes:
        """Return the body of a handshake datagram; raises DropError."""
        header = data[:HEADER_BYTES]
        try:
            return self._cipher.decrypt(header, data[HEADER_BYTES:], header)
        except InvalidTag:
            raise DropError("seal") from None


class Channel:
    """One peer boot's pair of keys: seals to it and opens what comes from it.

    `local` is the 4-byte index the peer puts into its headers, `remote` the one it expects.
    """

    __slots__ = ("_opener", "_sealer", "_window", "counter", "local", "remote")

    def __init__(self, send: bytes, receive: bytes, local: bytes, counter: int, floor: int) -> None:
        self._sealer = AESGCM(send)
        self._opener = AESGCM(receive)
        self._window = ReplayWindow(floor)
        self.counter = counter
        self.local = local
        self.remote = b""

    def seal(self, payload: bytes) -> tuple[int, bytes]:
        """Return (counter, sealed datagram) of a payload."""
        counter = self.counter
        assert counter < _COUNTER_LIMIT, "48-bit counter exhausted"
        self.counter = counter + 1
        header = bytes((VERSION << 4 | KIND_SEALED, 0)) + self.remote + counter.to_bytes(6, "big")
        return counter, header + self._sealer.encrypt(header, payload, header)

    def open(self, data: bytes, counter: int) -> bytes:
        """Return a datagram's payload and note its counter; raises DropError."""
        if not self._window.fresh(counter):
            raise DropError("replay")
        header = data[:HEADER_BYTES]
        try:
            payload = self._opener.decrypt(header, data[HEADER_BYTES:], header)
        except InvalidTag:
            raise DropError("seal") from None
        self._window.mark(counter)
        return payload
