"""Time the replicated state, and a datagram's way to it: `python -m tests.bench.crdt`.

Prints thread-CPU microseconds and writes .bench/crdt.json. Each figure is the least of the medians
of 50 short runs, since other load on the machine slows most of them. A full batch is 16 owner
records, each a map that replaces the one before, so that every entry of every batch changes
something.
"""

import gc
import os
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from crdt import MAX_ENTRIES, Batch, HybridClock, Instant, Merge, MergeStatus, Store, decode_batch
from crdt.codec import encode_batch, encode_entry
from gossip.codec import decode_payload, encode_message, join_messages
from gossip.config import GossipConfig
from gossip.events import Persist, Transmit
from gossip.messages import Payload
from gossip.node import GossipNode
from gossip.sealing import HEADER_BYTES, Identity, verify
from tests.bench.report import Figure, report

KEYS, ORIGINS = 10_000, 40
ROUNDS = 2_000
RUNS = 50
NOW = Instant(1000.0, 1_700_000_000_000)
SECRET = b"the fleet's own secret"
Verify = Callable[[bytes, bytes, bytes], bool]


class Clocked:
    """Samples of thread CPU by name."""

    def __init__(self) -> None:
        self._ns: dict[str, list[int]] = defaultdict(list)

    def run(self, name: str, step: Callable[..., Any], *args: object) -> Any:
        """Run a step and note how long it took."""
        begun = time.thread_time_ns()
        result = step(*args)
        self._ns[name].append(time.thread_time_ns() - begun)
        return result

    def us(self, name: str) -> float:
        """Return the least of the medians of the runs, in microseconds."""
        samples = self._ns[name]
        size = len(samples) // RUNS
        runs = (samples[run * size : (run + 1) * size] for run in range(RUNS))
        return min(statistics.median(run) for run in runs) / 1000


def signed(key: bytes, message: bytes, signature: bytes) -> bool:
    """Stand in for the check of a signature, to see what all else costs."""
    return True


def new_store(identity: Identity, check: Verify = verify) -> Store:
    """Return an empty store."""
    return Store(
        identity.node_id,
        epoch=1,
        sign=identity.sign,
        verify=check,
        public_key=identity.public_key,
        clock=HybridClock(),
    )


def flush(store: Store, now: Instant = NOW) -> list[Batch]:
    """Commit and make durable at once."""
    batches = store.commit(now)
    for batch in batches:
        store.persisted(batch, now)
    return batches


def write(store: Store, number: int, entries: int = MAX_ENTRIES) -> None:
    """Stage records that replace those of the write before, which had another number."""
    noise = random.Random(number)  # so that datagrams are of an honest size after compression
    for n in range(entries):
        value = {"frames": 300 + number, "digest": noise.randbytes(10), "up": True}
        store.set_owner(f"agent/camera-{n:02}", value)


def crowd(readers: list[Store]) -> None:
    """Give replicas 10,000 keys of 40 origins."""
    for _ in range(ORIGINS):
        identity = Identity.generate()
        writer = new_store(identity)
        for n in range(KEYS // ORIGINS):
            writer.set_owner(f"agent/{n}", n)
        raws = [batch.raw for batch in flush(writer)]
        for reader in readers:
            merge_all(reader, raws, identity.public_key)
    assert all(len(reader.owners()) == KEYS for reader in readers)


def merge_all(reader: Store, raws: list[bytes], key: bytes) -> list[Merge]:
    """Merge an origin's batches one after another."""
    return [reader.merge(raw, NOW, key) for raw in raws]


def store_figures() -> list[Figure]:
    """Return the figures of the store alone."""
    clocked, writer, alone = Clocked(), *[new_store(Identity.generate()) for _ in range(2)]
    readers = {
        "": new_store(Identity.generate()),
        " unsigned": new_store(Identity.generate(), signed),
    }
    key = writer.key_of(writer.origin) or b""
    crowd(list(readers.values()))
    for step in range(ROUNDS):
        for turn, entries in enumerate((MAX_ENTRIES, 20)):
            write(writer, 2 * step + turn, entries)
            raws = [batch.raw for batch in flush(writer)]
            for name, reader in readers.items():
                found = clocked.run(f"merge {entries}{name}", merge_all, reader, raws, key)
                assert sum(len(one.changes) for one in found) == entries
            batch = found[0].batch
            assert batch is not None
            clocked.run("fingerprint", reader.fingerprint)
        clocked.run("again", reader.merge, batch.raw, NOW)
        clocked.run("decode", decode_batch, batch.raw)
        clocked.run("encode", encode, batch)
        alone.set_fleet("tier", f"step {step}", NOW)
        clocked.run("write", flush, alone)
    assert reader.merge(batch.raw, NOW).status is MergeStatus.DUPLICATE
    assert len({one.fingerprint() for one in readers.values()}) == 1
    size = f"16 entries, {len(batch.raw)} bytes"
    return [
        Figure("merge one full batch, us", clocked.us("merge 16"), note=size),
        Figure(
            "merge one full batch, no signature check, us",
            clocked.us("merge 16 unsigned"),
            note="decoding included",
        ),
        Figure("merge a delta of 20 entries, us", clocked.us("merge 20"), note="two batches"),
        Figure(
            "merge a delta of 20 entries, no signature check, us",
            clocked.us("merge 20 unsigned"),
            note="two batches, decoding included",
        ),
        Figure("merge what is held already, us", clocked.us("again"), note=size),
        Figure(
            "digest after one change, us",
            clocked.us("fingerprint"),
            note=f"{KEYS} keys of {ORIGINS} origins; the merge keeps it up to date",
        ),
        Figure("encode one full batch, us", clocked.us("encode"), note="without signing"),
        Figure("decode one full batch, us", clocked.us("decode"), note=size),
        Figure("write one register, us", clocked.us("write"), note="commit, sign, apply"),
    ]


def encode(batch: Batch) -> bytes:
    """Encode a batch anew, but for its signature."""
    entries = [encode_entry(entry) for entry in batch.entries]
    return encode_batch(
        batch.origin, batch.epoch, batch.sequence, batch.live, entries, lambda _: bytes(64)
    )


class Party:
    """A node with its store, driven by hand."""

    def __init__(self, port: int, check: Verify) -> None:
        self.address = ("127.0.0.1", port)
        self.identity = Identity.generate()
        self.now = NOW
        self.store = new_store(self.identity, check)
        self.node = GossipNode(
            self.identity,
            SECRET,
            self.store,
            GossipConfig(intake_entries_per_s=1e6),
            random.Random(port),
            boot=os.urandom(16),
            incarnation=1,
            address=self.address,
            now=self.now,
        )

    def pass_time(self, seconds: float) -> None:
        """Move this party's clocks."""
        self.now = Instant(self.now.mono_s + seconds, self.now.wall_ms + round(seconds * 1000))

    def sent(self) -> list[bytes]:
        """Return the datagrams that wait to leave, making durable what must be."""
        datagrams = []
        while (output := self.node.poll()) is not None:
            if isinstance(output, Persist):
                self.node.persisted(output.batch, self.now)
            elif isinstance(output, Transmit):
                datagrams.append(output.data)
        return datagrams


def exchange(one: Party, two: Party) -> None:
    """Carry datagrams both ways until both are silent."""
    busy = True
    while busy:
        busy = False
        for source, target in ((one, two), (two, one)):
            for data in source.sent():
                busy = True
                target.node.receive_datagram(data, source.address, target.now)


def settle(one: Party, two: Party, seconds: float) -> None:
    """Let both do what is due after some time."""
    for party in (one, two):
        party.pass_time(seconds)
        party.node.handle_timer(party.now)
    exchange(one, two)


def next_large(one: Party, two: Party) -> bytes:
    """Return the datagram with a full batch that leaves one for two, now or when it is due."""
    while True:
        for data in one.sent():
            if len(data) > 300:
                return data
            two.node.receive_datagram(data, one.address, two.now)
        due_s = one.node.next_deadline()
        for party in (one, two):
            party.pass_time(max(0.0, due_s - party.now.mono_s))
        one.node.handle_timer(one.now)


def ping_pong() -> float:
    """Return the microseconds of a ping received and its ack sealed: gossip without the store."""
    one, two, clocked = Party(3, verify), Party(4, verify), Clocked()
    two.node.join(one.address, two.now)
    exchange(one, two)
    for _ in range(ROUNDS):
        due_s = min(one.node.next_deadline(), two.node.next_deadline())
        for party in (one, two):
            party.pass_time(max(0.0, due_s - party.now.mono_s))
        one.node.handle_timer(one.now)
        for data in one.sent():
            clocked.run("ping", two.node.receive_datagram, data, one.address, two.now)
        two.node.handle_timer(two.now)
        exchange(two, one)
    return clocked.us("ping")


def pipeline(check: Verify) -> tuple[Clocked, int]:
    """Send full batches from one node to another; time both ends, and the bare cryptography."""
    one, two, clocked = Party(1, verify), Party(2, check), Clocked()
    two.node.join(one.address, two.now)
    exchange(one, two)
    key = Ed25519PublicKey.from_public_bytes(one.identity.public_key)
    cipher, nonce = AESGCM(os.urandom(32)), bytes(HEADER_BYTES)
    size = 0
    for step in range(ROUNDS + 100):
        settle(one, two, 0.05)
        write(one.store, step)
        one.node.commit(one.now)
        data = next_large(one, two)
        size = len(data)
        raw = one.store.live_batches(one.store.origin)[-1]
        sealed = cipher.encrypt(nonce, data[HEADER_BYTES:-16], nonce)
        body = join_messages([encode_message(Payload(raw, b"", 0))])
        timed = clocked if step >= 100 else Clocked()  # the first ones warm up
        timed.run("receive", two.node.receive_datagram, data, one.address, two.now)
        timed.run("verify", key.verify, raw[-64:], raw[:-64])
        timed.run("open", cipher.decrypt, nonce, sealed, nonce)
        timed.run("decode payload", decode_payload, body)
        timed.run("decode batch", decode_batch, raw)
        assert two.store.fingerprint() == one.store.fingerprint()
    return clocked, size


def pipeline_figures() -> list[Figure]:
    """Return the figures of the whole receiving path, sealed."""
    bare, size = pipeline(signed)
    full, _ = pipeline(verify)
    note = f"one full batch in a sealed datagram of {size} bytes"
    return [
        Figure("receive, no signature check, us", bare.us("receive"), "<=", 80, note),
        Figure("receive, signature checked, us", full.us("receive"), "<=", 220, note),
        Figure("of it: AES-256-GCM open, us", bare.us("open")),
        Figure(
            "of it: decode payload, us", bare.us("decode payload"), note="zstandard, MessagePack"
        ),
        Figure("of it: decode batch, us", bare.us("decode batch")),
        Figure("of it: Ed25519 verify, us", full.us("verify"), note="the key loaded already"),
        Figure("receive a ping, answer it, us", ping_pong(), note="gossip's own share"),
        Figure(
            "receive, signature checked / bare verify + open",
            full.us("receive") / (full.us("verify") + full.us("open")),
            note="measured in turn, each at its quietest",
        ),
    ]


def main() -> None:
    """Measure, print, write."""
    gc.collect()
    gc.freeze()
    report("crdt", store_figures() + pipeline_figures())


if __name__ == "__main__":
    main()
