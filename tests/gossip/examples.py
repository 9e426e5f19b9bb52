"""One of each message, fixed, so that golden bytes can be compared."""

from gossip.messages import (
    Ack,
    Announce,
    Evidence,
    Have,
    IndirectAck,
    Knowledge,
    Message,
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
    make_claim,
)
from gossip.sealing import Identity

IDENTITY = Identity.from_private_bytes(bytes(range(32)))
OTHER = Identity.from_private_bytes(bytes(range(32, 64)))
_ID = bytes(range(16))
_LAST = b"\xff" * 16

MESSAGES: list[Message] = [
    Ping(1, bytes(range(16)), bytes(range(8)), 3),
    Ack(1, bytes(range(16)), bytes(range(8)), 0, 1_790_000_000),
    Ack(2, b"", b"", 3, 1_790_000_001),
    PingRequest(70_000, _ID),
    IndirectAck(70_000),
    Announce(make_claim(IDENTITY, 4, ("192.0.2.7", 7946)), 1),
    Announce(make_claim(IDENTITY, 5, ("192.0.2.7", 7946), left=True), 0),
    Suspect(_ID, 4, OTHER.node_id, 0x1A3),
    Payload(b"a batch, verbatim", b"", 0x1A),
    Payload(b"a batch, verbatim", IDENTITY.public_key, 0),
    Received(((1, 1), (3, 9)), 250),
    Knowledge(bytes(16), _LAST, False, ((_ID, 2, 300, bytes(range(8))),)),
    Roster(bytes(16), _LAST, True, ((_ID, 4, False), (OTHER.node_id, 5, True))),
    VolatileState(3, b"\x81\xa1q\x01"),
    VolatileRequest(2),
    Tree(False, 0x1A, tuple(bytes((index,)) * 8 for index in range(16))),
    Have(((_ID, 2, 300), (OTHER.node_id, 1, 1))),
    Want(((_ID, 2, 300),)),
    Evidence(b"one of two batches", IDENTITY.public_key),
    NewKey(3, bytes(range(32))),
]
