"""Time the replicated state: `python -m tests.bench.crdt`.

Prints thread-CPU microseconds (the median over repetitions) and writes .bench/crdt.json.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterable

from crdt import MAX_ENTRIES, Batch, MergeStatus, decode_batch
from crdt.codec import encode_batch, encode_entry
from tests.bench.report import Figure, report
from tests.crdt.replicas import NOW, Replica

KEYS = 10_000
ROUNDS = 300


def median_us(step: Callable[[object], object], inputs: Iterable[object]) -> float:
    """Run one step per input; return the median thread-CPU time in microseconds."""
    times = []
    gc.collect()
    gc.disable()
    for item in inputs:
        begun = time.thread_time_ns()
        step(item)
        times.append(time.thread_time_ns() - begun)
    gc.enable()
    return statistics.median(times) / 1000


def full_batches(seed: int, rounds: int) -> tuple[Replica, list[Batch]]:
    """Batches of 16 entries, each of which replaces the one before."""
    writer, batches = Replica(seed), []
    for step in range(rounds):
        for n in range(MAX_ENTRIES):
            writer.store.set_fleet(f"key{n:02}", f"value {step:05} {n:02} of the benchmark", NOW)
        batches += writer.flush()
    assert all(len(batch.entries) == MAX_ENTRIES for batch in batches)
    return writer, batches


def crowd(reader: Replica) -> None:
    """Give a replica 10,000 keys of 40 origins."""
    for origin in range(40):
        writer = Replica(100 + origin)
        reader.store.learn_key(writer.key)
        for n in range(KEYS // 40):
            writer.store.set_owner(f"agent/{n}", n)
        reader.take(writer.flush())
    assert len(reader.store.owners()) == KEYS


def measure() -> list[Figure]:
    """Return the figures."""
    rows: list[Figure] = []

    def row(figure: str, value: float, note: str) -> None:
        rows.append(Figure(figure, value, note=note))

    writer, batches = full_batches(1, ROUNDS)
    size = f"16 entries, {len(batches[-1].raw)} bytes"
    signed, unsigned = Replica(2), Replica(3)
    unsigned.store._verify = lambda key, message, signature: True
    for replica in (signed, unsigned):
        replica.store.learn_key(writer.key)
        crowd(replica)
    raws = [batch.raw for batch in batches]
    row("merge_us", median_us(lambda raw: signed.store.merge(raw, NOW), raws), size)  # type: ignore[arg-type]
    row(
        "merge_without_signature_us",
        median_us(lambda raw: unsigned.store.merge(raw, NOW), raws),  # type: ignore[arg-type]
        f"{size}; decode included, signature check left out",
    )
    assert signed.store.fingerprint() == unsigned.store.fingerprint()
    assert signed.store.merge(raws[-1], NOW).status is MergeStatus.DUPLICATE
    row(
        "merge_duplicate_us",
        median_us(lambda raw: signed.store.merge(raw, NOW), raws[-1:] * ROUNDS),  # type: ignore[arg-type]
        size,
    )
    row(
        "fingerprint_us",
        median_us(lambda _: signed.store.fingerprint(), range(ROUNDS)),
        f"after one change, {KEYS} keys of 40 origins",
    )
    last = batches[-1]

    def encode(_: object) -> object:
        entries = [encode_entry(entry) for entry in last.entries]
        return encode_batch(
            last.origin, last.epoch, last.sequence, last.live, entries, lambda _: bytes(64)
        )

    row("encode_us", median_us(encode, range(ROUNDS)), f"{size}, without signing")
    row("decode_us", median_us(decode_batch, raws), size)  # type: ignore[arg-type]

    def write(step: object) -> object:
        writer.store.set_fleet("key00", f"value {step}", NOW)
        return writer.flush()

    row("write_us", median_us(write, range(ROUNDS)), "set, commit, sign, apply one register")
    return rows


def main() -> None:
    """Measure, print, write."""
    report("crdt", measure())


if __name__ == "__main__":
    main()
