"""The typed messages of protocol version 1 and the claims that members sign.

Owns their fields and limits; never their bytes (codec) nor their effect (the other rooms).
"""

from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

import msgpack

from crdt.causal import node_id_of
from gossip.sealing import Identity

ID_BYTES = 16
MAX_BATCH_BYTES = 1000
MAX_VOLATILE_BYTES = 400
MAX_HOST_CHARS = 64
MAX_INCARNATION = (1 << 48) - 1
PAGE_ENTRIES = 22  # of at most 48 bytes each, so that any page fits a datagram
LAZY_ENTRIES = 16
MAX_SCOPE = (1 << 13) - 1  # three levels of 16 below the root, crdt.ranges
MAX_PAUSE_MS = 1000


@lru_cache(maxsize=1024)
def canonical_host(host: str) -> str:
    """Return an IP address in its one spelling, IPv4 where it is mapped into IPv6.

    ValueError for names, zones (`%eth0`), and what is nobody's address: wildcards and multicast.
    """
    ip = ip_address(host)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_unspecified or ip.is_multicast or "%" in host:
        raise ValueError(f"{host!r} is not the IP address of a host")
    return str(ip)


class Claim(NamedTuple):
    """What a member says of itself: where it is, or (`left`) that it has gone.

    Only the subject can make one, so nobody else can revive, move or bury it. Of two claims the
    greater (incarnation, left) is the newer.
    """

    public_key: bytes
    incarnation: int
    host: str
    port: int
    left: bool
    signature: bytes

    @property
    def node_id(self) -> bytes:
        """Return the subject's id."""
        return node_id_of(self.public_key)

    @property
    def order(self) -> tuple[int, bool]:
        """Return what claims of one subject are ordered by."""
        return self.incarnation, self.left

    def authentic(self, by: Identity) -> bool:
        """Tell whether the subject signed this, by a node's own cryptography."""
        return by.verify(self.public_key, _signed_part(self), self.signature)


def _signed_part(claim: Claim) -> bytes:
    return b"edge-node claim 1" + bytes(msgpack.packb(claim[:5]))


def make_claim(
    identity: Identity, incarnation: int, address: tuple[str, int], *, left: bool = False
) -> Claim:
    """Sign a claim about oneself."""
    draft = Claim(identity.public_key, incarnation, address[0], address[1], left, b"")
    return draft._replace(signature=identity.sign(_signed_part(draft)))


class Ping(NamedTuple):
    """A direct probe; fingerprint and roster say what the sender knows."""

    number: int
    fingerprint: bytes
    roster: bytes
    volatile: int


class Ack(NamedTuple):
    """The answer to a Ping of the same number; empty summaries equal those of the ping."""

    number: int
    fingerprint: bytes
    roster: bytes
    volatile: int
    wall_s: int


class PingRequest(NamedTuple):
    """Please probe `target` for me."""

    number: int
    target: bytes


class IndirectAck(NamedTuple):
    """The target of your PingRequest answered."""

    number: int


class Announce(NamedTuple):
    """A claim, to be passed on to the live members in `scope` (0: nobody)."""

    claim: Claim
    scope: int


class Suspect(NamedTuple):
    """`accuser` got no answer from `subject`, last known at `incarnation`; pass on in `scope`."""

    subject: bytes
    incarnation: int
    accuser: bytes
    scope: int


class Payload(NamedTuple):
    """A signed batch verbatim, to be passed on in `scope`.

    With the origin's public key where the receiver may not know it.
    """

    raw: bytes
    public_key: bytes
    scope: int


class Received(NamedTuple):
    """Counters of datagrams that arrived, as (first, last) ranges.

    `pause_ms` asks to leave that much time between two datagrams of less than urgent things.
    """

    ranges: tuple[tuple[int, int], ...]
    pause_ms: int


class Knowledge(NamedTuple):
    """What the sender holds of every origin from `low` to `high`.

    Entries are (origin, epoch, sequence, hash of the live ranges). The receiver sends what the
    sender lacks and, unless this is a reply, its own page when it lacks something itself.
    """

    low: bytes
    high: bytes
    reply: bool
    entries: tuple[tuple[bytes, int, int, bytes], ...]


class Roster(NamedTuple):
    """Which claims the sender holds from `low` to `high`, as (id, incarnation, left)."""

    low: bytes
    high: bytes
    reply: bool
    entries: tuple[tuple[bytes, int, bool], ...]


class VolatileState(NamedTuple):
    """The sender's volatile values, as one encoded map; the newest sequence wins."""

    sequence: int
    blob: bytes


class VolatileRequest(NamedTuple):
    """Please send your volatile values: your ping named a sequence I do not have."""

    have: int


class Tree(NamedTuple):
    """The sums of the 16 child ranges of `scope`, of the replica or (`roster`) of the members."""

    roster: bool
    scope: int
    sums: tuple[bytes, ...]


class Have(NamedTuple):
    """Batches the sender holds, as (origin, epoch, sequence): ask if you miss them."""

    versions: tuple[tuple[bytes, int, int], ...]


class Want(NamedTuple):
    """Please send these batches that you said you have."""

    versions: tuple[tuple[bytes, int, int], ...]


class Evidence(NamedTuple):
    """One of two batches that prove their origin's fork; the other travels the same way."""

    raw: bytes
    public_key: bytes


class NewKey(NamedTuple):
    """The fleet's secret of a later key epoch."""

    number: int
    secret: bytes


Message = (
    Ping
    | Ack
    | PingRequest
    | IndirectAck
    | Announce
    | Suspect
    | Payload
    | Received
    | Knowledge
    | Roster
    | VolatileState
    | VolatileRequest
    | Tree
    | Have
    | Want
    | Evidence
    | NewKey
)
