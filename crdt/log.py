"""An origin's log: its live batches, and what is known of it.

Owns: `Batch`, and for one origin the batches held, the newest header and the log's digest.
Never: looks into entries, checks signatures.
Invariant: every batch held is named live by the newest header held, so the log depends only on
which batches arrived, not on their order (an honest origin never revives what it dropped); equal
digests mean the same bytes. What a header drops is stated until all that it names live is here:
a commit, and with it the first one of an epoch, replaces what was before as one.
"""

from collections.abc import Iterable, Iterator
from enum import Enum
from hashlib import blake2b
from typing import NamedTuple

from crdt.causal import NodeId
from crdt.entries import Entry

MAX_ENTRIES = 16
MAX_BATCH_BYTES = 1000
MAX_LIVE = 64
MAX_EPOCH = 2**63 - 1
MAX_SEQUENCE = 2**32 - 1
SIGNATURE_BYTES = 64
MAX_FORMER = 2 * MAX_LIVE
_DIGEST_MOD = 1 << 128

Ranges = tuple[tuple[int, int], ...]


class MergeStatus(Enum):
    """Say what became of a batch that was offered."""

    NEW = "new"
    DUPLICATE = "duplicate"
    STALE = "stale"
    UNKNOWN_KEY = "unknown key"
    BAD_SIGNATURE = "bad signature"
    FORKED = "forked"
    FULL = "full"


class Batch(NamedTuple):
    """Hold a decoded batch: `raw` is the signed bytes verbatim, `live` ascending ranges."""

    origin: NodeId
    epoch: int
    sequence: int
    live: Ranges
    entries: tuple[Entry, ...]
    raw: bytes

    @property
    def version(self) -> tuple[int, int]:
        """Return (epoch, sequence), by which an origin's batches are ordered."""
        return self.epoch, self.sequence


class OriginLog:
    """Keep the live batches of one origin."""

    __slots__ = (
        "_wanted",
        "batches",
        "digest",
        "epoch",
        "evidence",
        "former",
        "sequence",
        "size_bytes",
    )

    def __init__(self) -> None:
        self.epoch = 0
        self.sequence = 0
        self.batches: dict[int, Batch] = {}
        self.former: list[Batch] = []  # dropped, but stated until the log is complete
        self.digest = 0  # sum over the batches held of the hash of their bytes, mod 2^128
        self.evidence: tuple[Batch, ...] = ()  # two that prove a fork
        self.size_bytes = 0  # of all that is held
        self._wanted: frozenset[int] = frozenset()

    @property
    def complete(self) -> bool:
        """Say whether every batch that the newest header names live is held."""
        return len(self.batches) == len(self._wanted)

    def find(self, raw: bytes) -> Batch | None:
        """Return the live batch with these bytes, if it is held. O(live batches)."""
        for batch in reversed(self.batches.values()):  # what is repeated is mostly recent
            if batch.raw == raw:
                return batch
        return None

    @property
    def written(self) -> int:
        """Return the last epoch in which the origin is known to have signed something."""
        return self.evidence[0].epoch if self.evidence else self.epoch

    def wants(self, epoch: int, sequence: int) -> bool:
        """Say whether a batch of this number would be new here."""
        if (epoch, sequence) > (self.epoch, self.sequence):
            return True
        return epoch == self.epoch and sequence in self._wanted and sequence not in self.batches

    def judge(self, batch: Batch) -> MergeStatus:
        """Say what `add` would do with a batch, were its signature right. O(1)."""
        if self.evidence:
            return MergeStatus.FORKED
        if batch.epoch != self.epoch:
            return MergeStatus.NEW if batch.epoch > self.epoch else MergeStatus.STALE
        held = self.batches.get(batch.sequence)
        if held is not None:
            return MergeStatus.DUPLICATE if held.raw == batch.raw else MergeStatus.FORKED
        if batch.sequence > self.sequence or batch.sequence in self._wanted:
            return MergeStatus.NEW
        return MergeStatus.STALE

    def add(self, batch: Batch) -> list[Batch]:
        """Take in a batch judged NEW; return those stated no more. O(live batches)."""
        if batch.version > (self.epoch, self.sequence):
            self._wanted = frozenset(sequences(batch.live))
            live = self._wanted if batch.epoch == self.epoch else ()
            for number in [number for number in self.batches if number not in live]:
                held = self.batches.pop(number)
                self.former.append(held)
                self.digest = (self.digest - digest(held.raw)) % _DIGEST_MOD
            self.epoch, self.sequence = batch.version
        self.batches[batch.sequence] = batch
        self.digest = (self.digest + digest(batch.raw)) % _DIGEST_MOD
        dropped: list[Batch] = []
        if self.complete or len(self.former) > MAX_FORMER:  # who is never complete gets no more
            dropped, self.former = self.former, []
        self.size_bytes += len(batch.raw) - _size(dropped)
        return dropped

    def end(self, epoch: int) -> list[Batch]:
        """Drop what is of this epoch or earlier, proofs included; return what was stated."""
        dropped = [batch for batch in self.former if batch.epoch <= epoch]
        self.former = [batch for batch in self.former if batch.epoch > epoch]
        if self.written <= epoch:
            dropped += self.batches.values()
            self.batches, self._wanted, self.digest = {}, frozenset(), 0
        self.size_bytes -= _size(dropped)
        return dropped

    def quarantine(self, one: Batch, other: Batch) -> list[Batch]:
        """Drop everything but the proof that the origin signed one number twice.

        All replicas that know of the fork then agree, whichever two batches told them.
        """
        dropped = [*self.former, *self.batches.values()]
        self.evidence = (one, other)
        self.batches, self.former = {}, []
        self.size_bytes = _size(self.evidence)
        self._wanted = frozenset()
        # Newer than anything the origin can sign, so that repair spreads the proof.
        self.epoch, self.sequence = MAX_EPOCH, MAX_SEQUENCE
        self.digest = digest(b"forked" + one.origin)
        return dropped


def _size(batches: Iterable[Batch]) -> int:
    return sum(len(batch.raw) for batch in batches)


def digest(raw: bytes) -> int:
    """Return 128 bits of BLAKE2b of some bytes. O(size)."""
    return int.from_bytes(blake2b(raw, digest_size=16).digest(), "big")


def sequences(live: Ranges) -> Iterator[int]:
    """Yield the numbers in ascending ranges. O(numbers)."""
    for first, last in live:
        yield from range(first, last + 1)


def ranges(numbers: Iterable[int]) -> Ranges:
    """Return ascending numbers as ranges. O(numbers)."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return tuple(found)
