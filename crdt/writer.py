"""The writer of a node's own log: what to put into the next batches, and what to drop.

Owns: the plan of the own log, which runs ahead of the durable one until the host has stored it.
Never: shows anything to readers, keeps a sequence number that was ever used.
Invariant: every current entry is in a live batch; after a commit at most 64 batches live. A
batch is dropped once nothing in it is current, or once all its survivors are in newer batches.
What former lives of the node wrote is taken in until the first commit of this life's epoch,
which carries the survivors over. A survivor names the epoch that it was first said in, however
often it is said again: an add in its dot, a register beside its timestamp.

An origin may hold 640 sixteenths of a batch, so that repacking everything always fits 64 batches
with a quarter to spare; that keeps the amortised cost of re-emission near two entries a write.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Set

from crdt.causal import Dot, NodeId
from crdt.codec import (
    MAX_LIVE_BYTES,
    ROOM_BYTES,
    decode_batch,
    encode_batch,
    encode_entry,
    encode_live,
)
from crdt.entries import AddEntry, Entry, Identity, RegisterEntry, first_epoch, identity
from crdt.log import MAX_ENTRIES, MAX_LIVE, Batch, OriginLog, Ranges, ranges

CAPACITY = 640
_SETTLED_LIVE = 48
_COUNTER_BYTES = 8  # what a fresh add may grow by when it gets its dot
_EPOCH_BYTES = 9  # what a register may grow by when it is said again in a later epoch


class Writer:
    """Plan the own log."""

    def __init__(self, origin: NodeId, epoch: int, sign: Callable[[bytes], bytes]) -> None:
        self.epoch = epoch
        self.log = OriginLog()
        self.current: dict[Identity, Entry] = {}
        self._origin = origin
        self._sign = sign
        self._home: dict[Identity, int] = {}  # the sequence of the batch of a current entry
        self._weights: dict[Identity, int] = {}
        self.borrowed = False
        """Whether some of a former life's batches came from peers, so the journal lacks them."""

    @property
    def fresh(self) -> bool:
        """Say whether nothing was committed in this life's epoch yet."""
        return self.log.epoch < self.epoch

    @property
    def load(self) -> int:
        """Return the weight of all current entries. O(entries)."""
        return sum(self._weights.values())

    def restore(self, batch: Batch) -> None:
        """Take in a batch of a former life, while this one is fresh. O(entries)."""
        self.log.add(batch)
        self.current, self._home, self._weights = {}, {}, {}
        held = [*self.log.former, *self.log.batches.values()]
        for batch in sorted(held, key=lambda one: one.version):
            for entry in batch.entries:
                self._set_current(identity(entry), _dated(entry, batch.epoch), batch.sequence)

    def carried(self, epoch: int) -> list[Identity]:
        """Return the registers and adds that were first said in an epoch up to `epoch`."""
        return [about for about, entry in self.current.items() if 0 < first_epoch(entry) <= epoch]

    def restart(self, epoch: int) -> None:
        """Forget all that was written, and go on in a later epoch."""
        self.epoch = epoch
        self.log = OriginLog()
        self.current, self._home, self._weights = {}, {}, {}

    def release(self, about: Identity) -> None:
        """Forget an entry that has no effect any more; its batch goes when it holds no other."""
        del self.current[about], self._home[about], self._weights[about]

    def commit(
        self, staged: Mapping[Identity, Entry | None], litter: Collection[Identity] = ()
    ) -> list[Batch]:
        """Return signed batches that carry the staged entries; None takes an entry back.

        No copy of what is in `litter` stays, but for one that is current. Empty if there is
        nothing to put or to drop. All batches carry the live list that the last one leaves.
        O(entries held).
        """
        gone = {about for about, entry in staged.items() if entry is None}.union(litter)
        doomed = self._doomed(gone)
        idle = self.log.batches.keys() - set(self._home.values()) - {self.log.sequence}
        mending = self.borrowed or not self.log.complete
        if not staged and not litter and not (mending if self.fresh else idle):
            return []
        for about, entry in staged.items():
            if entry is None and about in self.current:
                self.release(about)
        limit = MAX_LIVE
        while True:
            queue = {about: entry for about, entry in staged.items() if entry is not None}
            keep: Counter[int] = Counter()
            for about, sequence in self._home.items():
                if sequence in doomed:
                    queue.setdefault(about, self._undated(self.current[about]))
                elif about not in queue:
                    keep[sequence] += self._weights[about]
            bins = _pack(queue)
            excess = len(keep) + len(bins) - limit
            first = 1 if self.fresh else self.log.sequence + 1
            live = ranges([*sorted(keep), *range(first, first + len(bins))])
            if not keep or (excess <= 0 and len(encode_live(live, first)) <= MAX_LIVE_BYTES):
                break
            # Make room for a good while: rewriting a little at every commit costs more in all.
            limit = _SETTLED_LIVE
            emptiest = sorted(keep, key=lambda sequence: (keep[sequence], sequence))
            doomed.update(emptiest[: max(1, excess)])
        return [self._emit(first + index, live, packed) for index, packed in enumerate(bins)]

    def _doomed(self, gone: Set[Identity]) -> set[int]:
        """Return the batches that must go: re-emission takes what they hold out of the log."""
        if self.fresh:
            return set(self._home.values())
        if not gone:
            return set()
        # Superseded copies count: they would come to light again.
        return {
            sequence
            for sequence, batch in self.log.batches.items()
            if not gone.isdisjoint(map(identity, batch.entries))
        }

    def _emit(self, sequence: int, live: Ranges, packed: Mapping[Identity, Entry]) -> Batch:
        numbered = {
            about: self._numbered(entry, MAX_ENTRIES * sequence + index)
            for index, (about, entry) in enumerate(packed.items())
        }
        encoded = [encode_entry(entry) for entry in numbered.values()]
        raw = encode_batch(self._origin, self.epoch, sequence, live, encoded, self._sign)
        batch = decode_batch(raw)
        self.log.add(batch)
        for about, entry in numbered.items():
            self._set_current(about, _dated(entry, self.epoch), sequence)
        return batch

    def _numbered(self, entry: Entry, counter: int) -> Entry:
        """Give a fresh add its dot. Made of the sequence, it is never used twice either."""
        if isinstance(entry, AddEntry) and entry.dot.counter == 0:
            return entry._replace(dot=Dot(self._origin, self.epoch, counter))
        return entry

    def _undated(self, entry: Entry) -> Entry:
        """Leave out the epoch of a register where it is that of the batch."""
        if isinstance(entry, RegisterEntry) and entry.epoch == self.epoch:
            return entry._replace(epoch=0)
        return entry

    def _set_current(self, about: Identity, entry: Entry, sequence: int) -> None:
        self.current[about] = entry
        self._home[about] = sequence
        self._weights[about] = weight(entry)


def weight(entry: Entry | None) -> int:
    """Return how many sixteenths of a batch an entry counts for, what it wastes included."""
    if entry is None:
        return 0
    fresh = isinstance(entry, RegisterEntry) and entry.epoch == 0
    size = _size_bytes(entry) + (_EPOCH_BYTES if fresh else 0)
    return -(-MAX_ENTRIES // min(MAX_ENTRIES, ROOM_BYTES // size))


def _dated(entry: Entry, epoch: int) -> Entry:
    """Give a register that names no epoch that of its batch."""
    if isinstance(entry, RegisterEntry) and entry.epoch == 0:
        return entry._replace(epoch=epoch)
    return entry


def _size_bytes(entry: Entry) -> int:
    fresh = isinstance(entry, AddEntry) and entry.dot.counter == 0
    return len(encode_entry(entry)) + (_COUNTER_BYTES if fresh else 0)


def _pack(queue: Mapping[Identity, Entry]) -> list[dict[Identity, Entry]]:
    """Spread entries over batches, the largest first, each into the first that has room.

    Returns at least one batch, be it empty. O(entries x batches).
    """
    sizes = {about: _size_bytes(entry) for about, entry in queue.items()}
    bins: list[dict[Identity, Entry]] = [{}]
    room = [ROOM_BYTES]
    for about in sorted(sizes, key=lambda about: -sizes[about]):
        size = sizes[about]
        for index, packed in enumerate(bins):
            if len(packed) < MAX_ENTRIES and room[index] >= size:
                break
        else:
            index = len(bins)
            bins.append({})
            room.append(ROOM_BYTES)
        bins[index][about] = queue[about]
        room[index] -= size
    return bins
