"""What is fuzzed: one node in the middle of its life, and every way into it.

Whatever comes, nothing is raised, and each input is either taken or counted as dropped.
"""

import random
from collections.abc import Callable
from math import inf

from crdt.clock import HybridClock, Instant
from crdt.codec import DecodeError, decode_batch
from crdt.store import Store
from gossip.codec import decode_payload, encode_message, join_messages
from gossip.config import GossipConfig
from gossip.events import Persist, Transmit
from gossip.node import GossipNode
from gossip.sealing import HEADER_BYTES, MAX_DATAGRAM_BYTES, TAG_BYTES, Channel, Identity, verify
from tests.gossip.examples import MESSAGES

SECRET = b"the fleet's own secret"
ROOM_BYTES = MAX_DATAGRAM_BYTES - HEADER_BYTES - TAG_BYTES
_STEP_S = 1e-5


def make_node(number: int) -> tuple[GossipNode, Store]:
    """Return the same node for the same number, with one write in its log."""
    rng = random.Random(number)
    identity = Identity.from_private_bytes(rng.randbytes(32))
    store = Store(
        identity.node_id,
        epoch=1,
        sign=identity.sign,
        verify=verify,
        public_key=identity.public_key,
        clock=HybridClock(0),
    )
    node = GossipNode(
        identity,
        SECRET,
        store,
        GossipConfig(),
        rng,
        boot=rng.randbytes(16),
        incarnation=1,
        address=(f"192.0.2.{number}", 7946),
        now=Instant(0.0, 0),
        exchange=rng.randbytes(32),
    )
    store.set_owner("k", number)
    return node, store


class Victim:
    """A node with one live peer, whose channel the fuzzer holds."""

    def __init__(self) -> None:
        self.node, self.store = make_node(1)
        self.peer, peer_store = make_node(2)
        self.addresses = {self.node: ("192.0.2.1", 7946), self.peer: ("192.0.2.2", 7946)}
        self.now_s = 1.0
        self.inputs = 0
        self.node.commit(self.now())
        self.peer.commit(self.now())
        self.peer.join(self.addresses[self.node], self.now())
        for _ in range(200):
            self._exchange()
            self.now_s += 0.01
            self.node.handle_timer(self.now())
            self.peer.handle_timer(self.now())
        assert self.store.fingerprint() == peer_store.fingerprint()
        (link,) = self.peer._links
        self.channel: Channel = link.channel

    def now(self) -> Instant:
        """Return the time, which passes by ten microseconds an input."""
        return Instant(self.now_s, 1_790_000_000_000 + int(self.now_s * 1000))

    def raw(self, data: bytes) -> None:
        """Take a datagram from anybody: it changes nothing, but counts."""
        before = self.store.fingerprint(), len(self.node.members())
        self._offer(data)
        assert before == (self.store.fingerprint(), len(self.node.members()))

    def payload(self, data: bytes) -> None:
        """Take a payload that a member sealed: decoded whole, or dropped whole and counted."""
        if not 0 < len(data) <= ROOM_BYTES:
            return
        try:
            messages, _ = decode_payload(data)
        except DecodeError:
            messages = None
        for link in self.node._links:
            link.muted_s = -inf  # or little would be looked at
        before = self.node.counters.get("dropped_decode", 0)
        self._offer(self.channel.seal(data)[1])
        if messages is None:
            assert self.node.counters["dropped_decode"] == before + 1

    def batch(self, data: bytes) -> None:
        """Read a batch: it is one, or a DecodeError."""
        try:
            assert decode_batch(data).raw == data
        except DecodeError:
            pass

    def _offer(self, data: bytes) -> None:
        self.inputs += 1
        self.now_s += _STEP_S
        counted = self.node.counters["in_datagrams"]
        self.node.receive_datagram(data, self.addresses[self.peer], self.now())
        assert self.node.counters["in_datagrams"] == counted + 1
        while self.node.poll() is not None:
            pass

    def _exchange(self) -> None:
        """Carry what both nodes want to the other, until they want nothing."""
        busy = True
        while busy:
            busy = False
            for one, other in ((self.node, self.peer), (self.peer, self.node)):
                while (output := one.poll()) is not None:
                    busy = True
                    if isinstance(output, Transmit):
                        other.receive_datagram(output.data, self.addresses[one], self.now())
                    elif isinstance(output, Persist):
                        one.persisted(output.batch, self.now())


TARGETS: dict[str, Callable[[Victim, bytes], None]] = {
    "raw": Victim.raw,
    "payload": Victim.payload,
    "batch": Victim.batch,
}


def seeds(victim: Victim) -> dict[str, list[bytes]]:
    """Return well-formed inputs of each target, to begin from."""
    encoded = [encode_message(message) for message in MESSAGES]
    return {
        "raw": [b"\x12\0" + bytes(60), b"\x11\0" + bytes(330)],
        "payload": [b"\0\x91" + one for one in encoded] + [join_messages(encoded[:6])],
        "batch": victim.store.live_batches(victim.store.origin),
    }
