"""One of each message, fixed, so that golden bytes can be compared."""

from gossip.messages import (
    Ack,
    Announce,
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
    make_claim,
)
from gossip.sealing import Identity

IDENTITY = Identity.from_private_bytes(bytes(range(32)))
OTHER = Identity.from_private_bytes(bytes(range(32, 64)))
_ID = bytes(range(16))
_LAST = b"\xff" * 16

MESSAGES: list[Message] = [
    Ping(1, bytes(range(16)), bytes(range(8)), 3),
    Ack(1, bytes(range(16)), bytes(range(8)), 0),
    PingRequest(70_000, _ID),
    IndirectAck(70_000),
    Announce(make_claim(IDENTITY, 4, ("192.0.2.7", 7946)), True),
    Announce(make_claim(IDENTITY, 5, ("192.0.2.7", 7946), left=True), False),
    Suspect(_ID, 4, OTHER.node_id),
    Payload(b"a batch, verbatim", b""),
    Payload(b"a batch, verbatim", IDENTITY.public_key),
    Received(((1, 1), (3, 9))),
    Knowledge(bytes(16), _LAST, False, ((_ID, 2, 300, bytes(range(8))),)),
    Roster(bytes(16), _LAST, True, ((_ID, 4, False), (OTHER.node_id, 5, True))),
    VolatileState(3, b"\x81\xa1q\x01"),
    VolatileRequest(2),
]
