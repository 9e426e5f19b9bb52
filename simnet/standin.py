"""Cheap stand-ins for a node's cryptography, so that thousands of nodes fit one process.

Owns nothing that is secret or safe: whoever knows a public key can sign in its name here, and
nothing is encrypted. Never used outside simulations, nor in scenarios about security; reports say
where it was. Invariants: every size is that of the real thing, the same input gives the same
bytes, and what was damaged or sealed under another key fails as it does there.
"""

from hashlib import blake2b
from zlib import crc32

from cryptography.exceptions import InvalidTag

from crdt.causal import node_id_of
from gossip.sealing import TAG_BYTES, Aead, Exchange, Identity

_CHECK_BYTES = 4


class StandinIdentity(Identity):
    """Who a simulated node is."""

    def __init__(self, private: bytes) -> None:
        self._private = private
        self.public_key = _hash(b"public", private, 32)
        self.node_id = node_id_of(self.public_key)

    def private_bytes(self) -> bytes:
        """Return the 32 private bytes."""
        return self._private

    def sign(self, message: bytes) -> bytes:
        """Return 64 bytes that stand for a signature."""
        return _signature(self.public_key, message)

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        """Tell whether `sign` gave this signature under a public key."""
        return signature == _signature(public_key, message)

    def aead(self, key: bytes) -> Aead:
        """Return what authenticates and does not encrypt."""
        return StandinAead(key)

    def exchange(self, private: bytes) -> Exchange:
        """Return the stand-in key pair of a boot."""
        return StandinExchange(private)


class StandinAead:
    """A checksum and part of the key for a tag, and the plaintext as it is."""

    __slots__ = ("_check", "_mark")

    def __init__(self, key: bytes) -> None:
        self._check = crc32(key)
        self._mark = key[: TAG_BYTES - _CHECK_BYTES]

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None, /) -> bytes:
        """Return the data and a tag of 16 bytes."""
        return data + self._tag(nonce, data, associated_data)

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None, /) -> bytes:
        """Return the data; raises InvalidTag."""
        plain, tag = data[:-TAG_BYTES], data[-TAG_BYTES:]
        if tag != self._tag(nonce, plain, associated_data):
            raise InvalidTag
        return plain

    def _tag(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        check = crc32(nonce + (associated_data or b"") + data, self._check)
        return self._mark + check.to_bytes(_CHECK_BYTES, "big")


class StandinExchange(Exchange):
    """Both sides hash both public keys."""

    def __init__(self, private: bytes) -> None:
        self.public = _hash(b"exchange", private, 32)

    def shared(self, peer_public: bytes) -> bytes:
        """Return the 32 bytes that the peer gets as well."""
        return _hash(b"shared", b"".join(sorted((self.public, peer_public))), 32)


def _signature(public_key: bytes, message: bytes) -> bytes:
    return _hash(b"signature", public_key + message, 64)


def _hash(purpose: bytes, data: bytes, size_bytes: int) -> bytes:
    return blake2b(data, digest_size=size_bytes, person=purpose).digest()
