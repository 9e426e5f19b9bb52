"""Time one datagram with one full batch through the whole receiving path.

Thread CPU, median, in microseconds: open the seal, decode, merge (with and without the signature
check), schedule the acknowledgement, poll the events. `python -m tests.bench.gossip_datagram`
prints the table and writes .bench/gossip_datagram.json.
"""

import os
import random
import statistics
import time
from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from crdt.clock import HybridClock, Instant
from crdt.store import Store
from gossip.codec import decode_payload, encode_message, join_messages
from gossip.config import GossipConfig
from gossip.events import Persist, Transmit
from gossip.messages import Payload
from gossip.node import GossipNode
from gossip.sealing import Identity, verify
from tests.bench.report import Figure, report

SECRET = b"the fleet's own secret"
ROUNDS = 3000
Verify = Callable[[bytes, bytes, bytes], bool]


class Party:
    """A node with its store, driven by hand."""

    def __init__(self, port: int, check: Verify) -> None:
        self.address = ("127.0.0.1", port)
        identity = Identity.generate()
        self.now = Instant(1000.0, 1_700_000_000_000)
        self.store = Store(
            identity.node_id,
            epoch=1,
            sign=identity.sign,
            verify=check,
            public_key=identity.public_key,
            clock=HybridClock(),
        )
        self.node = GossipNode(
            identity,
            SECRET,
            self.store,
            GossipConfig(),
            random.Random(port),
            boot=os.urandom(16),
            incarnation=1,
            address=self.address,
            now=self.now,
        )

    def pass_time(self, seconds: float) -> None:
        """Move this party's clocks."""
        self.now = Instant(self.now.mono_s + seconds, self.now.wall_ms + int(seconds * 1000))


def exchange(one: Party, two: Party) -> None:
    """Carry datagrams both ways until both are silent."""
    busy = True
    while busy:
        busy = False
        for source, target in ((one, two), (two, one)):
            while (output := source.node.poll()) is not None:
                if isinstance(output, Transmit):
                    busy = True
                    target.node.receive_datagram(output.data, source.address, target.now)


def median_us(samples_ns: list[int]) -> float:
    """Return the median of nanoseconds in microseconds."""
    return round(statistics.median(samples_ns) / 1000, 1)


def timed(action: Callable[[], object]) -> int:
    """Return the thread CPU nanoseconds of an action."""
    before = time.thread_time_ns()
    action()
    return time.thread_time_ns() - before


def pipeline(check: Verify) -> tuple[float, float, int]:
    """Return (receive, send, bytes) per datagram with one batch of 16 owner records."""
    one, two = Party(1, verify), Party(2, check)
    two.node.join(one.address, two.now)
    exchange(one, two)
    received: list[int] = []
    sent: list[int] = []
    size = 0
    for index in range(ROUNDS):
        for party in (one, two):
            party.pass_time(0.05)
            party.node.handle_timer(party.now)
        exchange(one, two)
        for party in (one, two):
            party.pass_time(0.015)  # past the batching interval: what comes next leaves at once
        for key in range(16):
            one.store.set_owner(f"agent/camera-{key}", {"frames": index * 16 + key})
        one.node.commit(one.now)
        persist = one.node.poll()
        assert isinstance(persist, Persist)
        sent.append(timed(lambda: one.node.persisted(persist.batch, one.now)))  # noqa: B023
        datagrams = []
        while (output := one.node.poll()) is not None:
            if isinstance(output, Transmit):
                datagrams.append(output.data)
        assert len(datagrams) == 1
        size = len(datagrams[0])
        received.append(
            timed(lambda: two.node.receive_datagram(datagrams[0], one.address, two.now))  # noqa: B023
        )
        assert two.store.owner(one.store.origin, "agent/camera-15") == {"frames": index * 16 + 15}
        exchange(one, two)
    return median_us(received[100:]), median_us(sent[100:]), size


def ping_pong() -> float:
    """Return the microseconds of a ping received and its ack sealed: gossip without the store."""
    one, two = Party(3, verify), Party(4, verify)
    two.node.join(one.address, two.now)
    exchange(one, two)
    samples: list[int] = []
    for _ in range(ROUNDS):
        for party in (one, two):
            party.pass_time(0.5)
        one.node.handle_timer(one.now)
        while (output := one.node.poll()) is not None:
            if isinstance(output, Transmit):
                data = output.data
                samples.append(
                    timed(lambda: two.node.receive_datagram(data, one.address, two.now))  # noqa: B023
                )
        two.node.handle_timer(two.now)
        exchange(two, one)
    return median_us(samples)


def repeated(action: Callable[[], object]) -> float:
    """Return the median microseconds of an action that can be repeated."""
    return median_us([timed(action) for _ in range(ROUNDS)])


def main() -> None:
    """Measure, print and write."""
    bare_us, send_us, size = pipeline(lambda key, message, signature: True)
    full_us, _, _ = pipeline(verify)
    identity, raw = Identity.generate(), os.urandom(900)
    signature = identity.sign(raw)
    nonce, plain = os.urandom(12), os.urandom(1100)
    aes, chacha = AESGCM(os.urandom(32)), ChaCha20Poly1305(os.urandom(32))
    body = join_messages([encode_message(Payload(raw, b""))])
    note = f"thread CPU, median, one batch of 16 records, datagram of {size} bytes"
    figures = [
        ("receive one full batch, no signature check, us", bare_us, 80, note),
        ("receive one full batch, signature checked, us", full_us, 220, note),
        ("send one durable batch to one peer, us", send_us, None, note),
        ("receive a ping and answer it, us", ping_pong(), None, "no store: gossip's own share"),
        (
            "decode payload, us",
            repeated(lambda: decode_payload(body)),
            None,
            "one incompressible batch of 900 bytes",
        ),
        (
            "Ed25519 verify, us",
            repeated(lambda: verify(identity.public_key, raw, signature)),
            None,
            "900 bytes",
        ),
        (
            "AES-256-GCM seal, us",
            repeated(lambda: aes.encrypt(nonce, plain, nonce)),
            None,
            "1,100 bytes; the one in use",
        ),
        (
            "ChaCha20-Poly1305 seal, us",
            repeated(lambda: chacha.encrypt(nonce, plain, nonce)),
            None,
            "1,100 bytes, to compare",
        ),
    ]
    report(
        "gossip_datagram",
        [Figure(name, value, "<=", target, remark) for name, value, target, remark in figures],
    )


if __name__ == "__main__":
    main()
