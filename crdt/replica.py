"""What all origins' logs say: take batches in, read what they add up to.

Owns: one log per origin and its key, the state derived from them, and the sums by which replicas
are compared.
Never: writes; `crdt.store` adds the own log to this.
Invariant: what is read is a function of the live batches held (and of the time, for registers
dated in the future); replicas with equal fingerprints hold the same bytes. Of an origin nothing is
kept before it has signed something, nor once it is retired.
"""

from collections.abc import Callable, KeysView
from typing import NamedTuple

from crdt.causal import NodeId, node_id_of
from crdt.clock import HybridClock, Instant
from crdt.codec import decode_batch, origin_of
from crdt.entries import OwnerEntry, RegisterEntry
from crdt.log import SIGNATURE_BYTES, Batch, MergeStatus, OriginLog
from crdt.ranges import EVERYTHING, RangeTree
from crdt.retirement import PREFIX, Retirements
from crdt.state import Change, State
from crdt.values import Value, decode_value

Verify = Callable[[bytes, bytes, bytes], bool]
"""(public_key, message, signature) -> whether the signature is right."""

MAX_HALVES = 64
MAX_ORIGINS = 16_384
"""How many logs are held: as many as members may live. An honest one has at most 64 KB."""
MAX_LOG_BYTES = 256 << 20
"""How much they may hold in all before only those within an equal share of it may grow."""
_SHARE_BYTES = MAX_LOG_BYTES // MAX_ORIGINS
_RECORD = frozenset((OwnerEntry,))


class Merge(NamedTuple):
    """Say what became of a batch, and what reads differently because of it."""

    status: MergeStatus
    batch: Batch | None
    changes: tuple[Change, ...]


class Replica:
    """Merge and read replicated state."""

    def __init__(
        self, origin: NodeId, *, verify: Verify, public_key: bytes, clock: HybridClock
    ) -> None:
        """Begin an empty replica. Raises ValueError if the id is not the key's."""
        if origin != node_id_of(public_key):
            raise ValueError("the node id does not belong to the public key")
        self.origin = origin
        self.clock = clock
        self.tree = RangeTree()
        """The logs' digests, summed over ranges of origins; to be read only."""
        self.generation = 0
        """A number that rises with every batch taken in, own ones included."""
        self.contested = False
        """Whether peers hold batches of this run's time that this node signed but did not write."""
        self._verify = verify
        self._keys = {origin: public_key}  # of this node and of those whose log is held
        self._logs: dict[NodeId, OriginLog] = {}
        self._log_bytes = 0  # of all of them
        self._state = State()
        self._retirements = Retirements(self._state, self._log)
        self._halves: dict[NodeId, Batch] = {}

    # ------------------------------------------------------------------ merge

    def merge(self, raw: bytes, now: Instant, key: bytes = b"") -> Merge:
        """Take in a batch of any origin. O(entries) amortised.

        `key` is a public key for an origin of which nothing is held, UNKNOWN_KEY without it; it is
        kept with what it has verified. FULL if 16,384 logs are held already, or 256 MiB and more
        than 16 KiB of the origin, unless that is this node. The state changes only if the status is
        NEW, or FORKED for the first time: all that a quarantined origin said is then dropped, so
        that replicas agree whichever branch they saw. Raises DecodeError if malformed; the state is
        then unchanged.
        """
        known = self._logs.get(origin_of(raw))
        again = None if known is None else known.find(raw)
        if again is not None:
            return Merge(MergeStatus.DUPLICATE, again, ())
        batch = decode_batch(raw)
        log = self._log(batch.origin)
        status = log.judge(batch)
        if batch.epoch <= self._over(batch.origin):
            status = MergeStatus.STALE
        forked_before = bool(log.evidence)
        if status in (MergeStatus.DUPLICATE, MergeStatus.STALE) or forked_before:
            return Merge(status, batch, ())
        refusal = self._refusal(batch, key)
        if refusal is not None:
            return Merge(refusal, batch, ())
        if status is MergeStatus.FORKED:
            return Merge(status, batch, self._quarantine(log.batches[batch.sequence], batch, now))
        if batch.origin == self.origin:
            self._returned(batch)
        elif self._crowded(log, batch):
            return Merge(MergeStatus.FULL, batch, ())
        self._keys.setdefault(batch.origin, key)
        return Merge(status, batch, self._apply(log, batch, now))

    def testify(self, raw: bytes, now: Instant, key: bytes = b"") -> Merge:
        """Take one half of the proof of a fork; the other is held, or comes by the next call.

        FORKED once both are here, STALE for the first half, and for what is retired: that is all
        that changes. `key` is as for `merge`. Raises DecodeError if malformed.
        """
        batch = decode_batch(raw)
        origin = batch.origin
        log = self._log(origin)
        if batch.epoch <= self.retired(origin):
            return Merge(MergeStatus.STALE, batch, ())
        if log.evidence:
            return Merge(MergeStatus.FORKED, batch, ())
        refusal = self._refusal(batch, key)
        if refusal is not None:
            return Merge(refusal, batch, ())
        held = log.batches.get(batch.sequence)
        for other in (held, self._halves.pop(origin, None)):
            if other is not None and other.version == batch.version and other.raw != raw:
                self._keys.setdefault(origin, key)
                changes = self._quarantine(other, batch, now)
                return Merge(MergeStatus.FORKED, batch, changes)
        self._halves[origin] = batch
        if len(self._halves) > MAX_HALVES:
            del self._halves[next(iter(self._halves))]
        return Merge(MergeStatus.STALE, batch, ())

    def evidence(self, origin: NodeId) -> tuple[bytes, ...]:
        """Return the two batches that prove an origin's fork; none if it has not forked."""
        log = self._logs.get(origin)
        return tuple(batch.raw for batch in log.evidence) if log is not None else ()

    def mature(self, now: Instant) -> tuple[Change, ...]:
        """Show the registers whose time has come; return what reads differently."""
        matured = self._state.mature(self.clock.horizon(now))
        if matured:
            self._noted(None, [])
        return matured

    # ------------------------------------------------------------------- read

    def owner(self, origin: NodeId, key: str) -> Value:
        """Return an origin's own record, None if it has none."""
        return self._state.owner(origin, key)

    def owners(self, prefix: str = "") -> list[tuple[NodeId, str, Value]]:
        """Return the owner records under a prefix, sorted by origin and key. O(records)."""
        return self._state.owners(prefix)

    def owners_changed(self, since: int) -> tuple[int, set[tuple[NodeId, str]] | None]:
        """Return the mark of now, and (origin, key) of the owner records changed since another.

        None instead of them for a mark of long ago, -1 included: then read all. O(changes since).
        """
        return self._state.owners_changed(since)

    def fleet(self, key: str, now: Instant) -> Value:
        """Return a register's value, None if it was never set or is deleted."""
        found = self._state.fleet(key, self.clock.horizon(now))
        return None if found is None else found[0]

    def fleet_items(self, prefix: str, now: Instant) -> list[tuple[str, Value]]:
        """Return the registers under a prefix that have a value, sorted. O(registers)."""
        return self._state.fleet_items(prefix, self.clock.horizon(now))

    def fleet_entry(self, key: str, now: Instant) -> tuple[Value, int, NodeId] | None:
        """Return (value, timestamp, origin) of a register, deletions included."""
        return self._state.fleet(key, self.clock.horizon(now))

    def elements(self, key: str) -> list[Value]:
        """Return the elements of a fleet set, sorted by their bytes. O(elements)."""
        return [decode_value(element) for element in self._state.set_at(key)]

    def set_keys(self, prefix: str = "") -> list[str]:
        """Return the keys under a prefix whose set is not empty, sorted. O(sets)."""
        return self._state.set_keys(prefix)

    @property
    def hidden(self) -> int:
        """Return how many registers dated in the future wait for their time."""
        return self._state.hidden

    @property
    def origins(self) -> KeysView[NodeId]:
        """Return the origins of which a log is held, as it changes."""
        return self._logs.keys()

    def key_of(self, origin: NodeId) -> bytes | None:
        """Return the public key of an origin whose log is held, or this node's; else None."""
        return self._keys.get(origin)

    @property
    def complete(self) -> bool:
        """Say whether every live batch of every known log is held. O(origins)."""
        return all(log.complete for log in self._logs.values())

    def fingerprint(self) -> bytes:
        """Return 16 bytes that are equal where the same batches are held. O(1)."""
        return self.tree.sum_of(EVERYTHING)

    def knowledge(
        self, low: NodeId = bytes(16), high: NodeId = b"\xff" * 16
    ) -> dict[NodeId, tuple[int, int, bytes]]:
        """Return per origin (epoch, sequence, 8 bytes over the batches held). O(origins)."""
        return {
            origin: (log.epoch, log.sequence, log.digest.to_bytes(16, "big")[:8])
            for origin, log in self._logs.items()
            if low <= origin <= high
        }

    def retired(self, member: NodeId) -> int:
        """Return the last epoch of a member's that is over, 0 if none is."""
        return self._retirements.epoch(member)

    def batch(self, origin: NodeId, epoch: int, sequence: int) -> bytes | None:
        """Return the bytes of a live batch that is held, None for any other."""
        log = self._logs.get(origin)
        held = log.batches.get(sequence) if log is not None and log.epoch == epoch else None
        return None if held is None else held.raw

    def has(self, origin: NodeId, epoch: int, sequence: int) -> bool:
        """Say whether a batch is of no use here: held, dropped, or of a time that is over."""
        log = self._logs.get(origin)
        held = log is not None and not log.wants(epoch, sequence)
        return held or epoch <= self._over(origin)

    def live_batches(self, origin: NodeId, after: tuple[int, int] = (0, 0)) -> list[bytes]:
        """Return an origin's batches later than (epoch, sequence), verbatim, ascending.

        That is what is live, and before it what is stated until all of that is here. Nothing of
        a quarantined origin: see `evidence`. O(live batches).
        """
        log = self._log(origin)
        held = sorted([*log.former, *log.batches.values()], key=lambda batch: batch.version)
        return [batch.raw for batch in held if batch.version > after]

    # ----------------------------------- what a replica with a log of its own does besides

    def _over(self, origin: NodeId) -> int:
        """Return the last epoch of an origin's of which nothing is taken in any more."""
        return self.retired(origin)

    def _returned(self, batch: Batch) -> None:
        """Take note of an own batch that a peer gave back, before it is applied."""

    def _renounce(self, epoch: int) -> None:
        """Accept that the fleet has retired this node's log up to an epoch."""

    def _noted(self, put: Batch | None, drop: list[Batch]) -> None:
        """Take note of what has moved in the state, owner records apart."""

    # --------------------------------------------------------------- internal

    def _log(self, origin: NodeId) -> OriginLog:
        return self._logs.get(origin) or OriginLog()

    def _refusal(self, batch: Batch, key: bytes) -> MergeStatus | None:
        """Say why a batch cannot be believed, or kept; None if it can. `key` is as for `merge`."""
        known = self._keys.get(batch.origin)
        if known is None:
            if node_id_of(key) != batch.origin:
                return MergeStatus.UNKNOWN_KEY
            if len(self._logs) >= MAX_ORIGINS:
                return MergeStatus.FULL
        message, signature = batch.raw[:-SIGNATURE_BYTES], batch.raw[-SIGNATURE_BYTES:]
        if not self._verify(known or key, message, signature):
            return MergeStatus.BAD_SIGNATURE
        return None

    def _apply(self, log: OriginLog, batch: Batch, now: Instant) -> tuple[Change, ...]:
        """Put a batch judged NEW into its log and the state."""
        was_complete, before = log.complete, (log.digest, log.size_bytes)
        dropped = log.add(batch)
        self._count(log, batch.origin, before)
        changes = self._update(batch, dropped, batch.origin, now)
        if self._retirements.members and log.complete:
            news = any(entry.key.startswith(PREFIX) for entry in batch.entries)
            if news or not was_complete:
                changes += self._end_logs(now)
        return changes

    def _crowded(self, log: OriginLog, batch: Batch) -> bool:
        """Say whether there is no room for a batch; a log of usual size always has some."""
        size = len(batch.raw)
        full = self._log_bytes + size > MAX_LOG_BYTES
        return full and log.size_bytes + size > _SHARE_BYTES

    def _count(self, log: OriginLog, origin: NodeId, before: tuple[int, int]) -> None:
        """Note that a log has changed; before it had this digest and this size."""
        digest, size_bytes = before
        self.generation += 1
        new = origin not in self._logs
        self._logs[origin] = log
        self.tree.change(origin, log.digest - digest, count=int(new))
        self._log_bytes += log.size_bytes - size_bytes

    def _quarantine(self, one: Batch, other: Batch, now: Instant) -> tuple[Change, ...]:
        origin = one.origin
        if origin == self.origin:
            self.contested = True
            return ()  # a copy of this node speaks in its name; it cannot silence itself
        log = self._log(origin)
        before = log.digest, log.size_bytes
        dropped = log.quarantine(one, other)
        self._halves.pop(origin, None)
        self._count(log, origin, before)
        return self._update(None, dropped, origin, now)

    def _end_logs(self, now: Instant) -> tuple[Change, ...]:
        """Drop what retired members said, as far as those who say so are heard out."""
        changes: tuple[Change, ...] = ()
        for member in list(self._retirements.members):
            epoch = self._retirements.hear(member)
            if member == self.origin and epoch:
                self._renounce(epoch)
            log = self._logs.get(member)
            if log is None:
                continue
            before, self._log_bytes = log.digest, self._log_bytes - log.size_bytes
            dropped = log.end(epoch)
            over = log.written <= epoch
            if over:
                del self._logs[member]
                if member != self.origin:
                    del self._keys[member]
            else:
                self._log_bytes += log.size_bytes
            if over or dropped:
                self.generation += 1
                self.tree.change(member, log.digest - before, count=-int(over))
                changes += self._update(None, dropped, member, now)
            if over:
                self._state.forget(member)
        return changes

    def _update(
        self, put: Batch | None, drop: list[Batch], origin: NodeId, now: Instant
    ) -> tuple[Change, ...]:
        horizon = self.clock.horizon(now)
        matured = self._state.mature(horizon)
        entries = () if put is None else put.entries
        changes = matured + self._state.update(put, drop, origin, horizon)
        moved = drop if put is None else [put, *drop]
        if not all(_RECORD.issuperset(map(type, batch.entries)) for batch in moved):
            stamps = [entry.timestamp for entry in entries if type(entry) is RegisterEntry]
            self.clock.observe(max((one for one in stamps if one <= horizon), default=0), now)
            self._retirements.note(moved)
            self._noted(put, drop)
        elif matured:
            self._noted(None, [])
        return changes
