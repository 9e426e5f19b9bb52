"""Golden bytes: what is on the wire does not change unnoticed.

`python -m tests.gossip.test_vectors` writes the file anew; a change there is a change of protocol.
"""

import json
import random
from pathlib import Path

from crdt.clock import Instant
from gossip.codec import decode_payload, encode_message, join_messages
from gossip.handshake import Handshake
from gossip.sealing import parse_header
from tests.gossip.examples import IDENTITY, MESSAGES, OTHER

FILE = Path(__file__).parents[1] / "vectors" / "gossip_v1.json"
HERE, THERE = ("192.0.2.1", 7946), ("192.0.2.2", 7946)


def computed() -> dict[str, dict[str, str]]:
    """Return every vector as hex, by group and name."""
    messages = {
        f"{index} {type(message).__name__}": encode_message(message).hex()
        for index, message in enumerate(MESSAGES)
    }
    now, rng = Instant(1000.0, 0), random.Random(1)
    parties = [
        Handshake(
            identity,
            b"the fleet's own secret",
            rng.randbytes(16),
            rng.randbytes(32),
        )
        for identity in (IDENTITY, OTHER)
    ]
    hello = parties[0].hello(THERE, now)
    challenge, _ = parties[1].receive(hello, HERE, now, {}.get)
    assert challenge is not None
    confirm, mine = parties[0].receive(challenge, THERE, now, {}.get)
    assert confirm is not None
    assert mine is not None
    _, theirs = parties[1].receive(confirm, HERE, now, {}.get)
    assert theirs is not None
    payload = join_messages([encode_message(message) for message in MESSAGES[:2]])
    counter, sealed = mine.channel.seal(payload)
    assert theirs.channel.open(sealed, parse_header(sealed)[3]) == payload
    assert counter == 0
    datagrams = {
        "hello": hello.hex(),
        "challenge": challenge.hex(),
        "confirm": confirm.hex(),
        "sealed": sealed.hex(),
        "its payload": payload.hex(),
    }
    return {"messages": messages, "datagrams": datagrams}


def test_encodings_are_the_golden_ones() -> None:
    assert computed() == json.loads(FILE.read_text())


def test_golden_messages_decode() -> None:
    golden = json.loads(FILE.read_text())["messages"]
    for message, encoded in zip(MESSAGES, golden.values(), strict=True):
        assert decode_payload(b"\0\x91" + bytes.fromhex(encoded)) == ([message], 0)


if __name__ == "__main__":
    FILE.write_text(json.dumps(computed(), indent=1) + "\n")
