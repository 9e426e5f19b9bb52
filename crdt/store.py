"""A node's replica of the fleet's state.

Owns: one log per origin, the state derived from them, and the node's own unsent writes.
Never: sends, stores or schedules; the host makes a batch durable and then calls `persisted`.
Invariant: what is read is a function of the live batches held (and of the time, for registers
dated in the future); replicas with equal fingerprints hold the same bytes.
"""

from collections.abc import Callable
from typing import NamedTuple

from crdt.causal import Dot, NodeId, node_id_of
from crdt.clock import HybridClock, Instant
from crdt.codec import MAX_KEY_BYTES, decode_batch, encode_entry
from crdt.entries import (
    AddEntry,
    Entry,
    Identity,
    OwnerEntry,
    RegisterEntry,
    RemoveEntry,
    add_identity,
    identity,
    owner_identity,
    register_identity,
)
from crdt.log import MAX_ENTRIES, SIGNATURE_BYTES, Batch, MergeStatus, OriginLog
from crdt.state import Change, State
from crdt.values import (
    MAX_ELEMENT_BYTES,
    MAX_VALUE_BYTES,
    DecodeError,
    Value,
    decode_value,
    encode_value,
)
from crdt.writer import CAPACITY, Writer, weight

Sign = Callable[[bytes], bytes]
Verify = Callable[[bytes, bytes, bytes], bool]
"""(public_key, message, signature) -> whether the signature is right."""

_DIGEST_MOD = 1 << 128


class Merge(NamedTuple):
    """Say what became of a batch, and what reads differently because of it."""

    status: MergeStatus
    batch: Batch | None
    changes: tuple[Change, ...]


class Store:
    """Write, merge and read replicated state."""

    def __init__(
        self,
        origin: NodeId,
        *,
        epoch: int,
        sign: Sign,
        verify: Verify,
        public_key: bytes,
        clock: HybridClock,
    ) -> None:
        """Begin an empty replica. Raises ValueError if the id is not the key's.

        `epoch` belongs to this run of the node alone: no run before it may have used it.
        """
        if origin != node_id_of(public_key):
            raise ValueError("the node id does not belong to the public key")
        self.origin = origin
        self.clock = clock
        self._verify = verify
        self._keys: dict[NodeId, bytes] = {}
        self._logs: dict[NodeId, OriginLog] = {}
        self._state = State()
        self._digest = 0
        self._writer = Writer(origin, epoch, sign)
        self._staged: dict[Identity, Entry | None] = {}
        self._load = 0
        self._moved = False
        self.contested = False
        """Whether peers hold batches of this run's time that this node signed but did not write."""
        self.learn_key(public_key)

    @property
    def epoch(self) -> int:
        """Return the epoch that own batches are written in."""
        return self._writer.epoch

    # ------------------------------------------------------------------- keys

    def learn_key(self, public_key: bytes) -> NodeId:
        """Learn an origin's key, so that its batches can be verified; return its id."""
        origin = node_id_of(public_key)
        self._keys[origin] = public_key
        return origin

    def key_of(self, origin: NodeId) -> bytes | None:
        """Return an origin's public key, None if unknown."""
        return self._keys.get(origin)

    # ----------------------------------------------------------------- writes

    def set_owner(self, key: str, value: Value) -> None:
        """Stage an owner record. Raises ValueError (key, value or log too large)."""
        entry = OwnerEntry(_key(key), _value(value))
        about = owner_identity(key)
        current = self._writer.current.get(about)
        self._stage(about, entry)
        if current is not None and encode_entry(current) == encode_entry(entry):
            del self._staged[about]

    def delete_owner(self, key: str) -> None:
        """Stage the deletion of an owner record; nothing of it remains."""
        self._stage(owner_identity(key), None)

    def set_fleet(self, key: str, value: Value, now: Instant) -> None:
        """Stage a fleet register, later than all that could be read; None deletes.

        Raises ValueError (key, value or log too large).
        """
        about = register_identity(_key(key))
        shown = self._state.fleet(key, self.clock.horizon(now))
        own = self._staged.get(about) or self._writer.current.get(about)
        after = max(
            0 if shown is None else shown[1],
            own.timestamp if isinstance(own, RegisterEntry) else 0,
        )
        timestamp = self.clock.tick(now, after)
        self._stage(about, RegisterEntry(key, _value(value), timestamp))

    def add(self, key: str, element: Value) -> None:
        """Stage an add; it survives every remove that has not seen it.

        Raises ValueError (key, element or log too large).
        """
        entry = AddEntry(_key(key), _value(element, MAX_ELEMENT_BYTES), self._fresh_dot())
        self._stage(identity(entry), entry)

    def remove(self, key: str, element: Value) -> None:
        """Stage the removal of every add of the element seen so far.

        The own add is just dropped; adds of others cost an entry per origin. Raises ValueError
        (key or log too large).
        """
        element = _value(element, MAX_ELEMENT_BYTES)
        packed = encode_value(element)
        newest: dict[NodeId, Dot] = {}
        for dot in self._state.set_at(_key(key)).visible(packed):
            newest[dot.origin] = max(dot, newest.get(dot.origin, dot))
        newest.pop(self.origin, None)
        for dot in newest.values():
            entry = RemoveEntry(key, element, dot)
            self._stage(identity(entry), entry)
        self._stage(add_identity(key, packed), None)

    def commit(self, now: Instant) -> list[Batch]:
        """Bundle and sign what is staged, and re-emit or drop what has to go.

        The first one carries over what former lives wrote; from then on nothing more of theirs is
        taken in. The batches are not applied: make each durable, in order, then call `persisted`.
        Empty if there is nothing to say. O(own entries).
        """
        self._retire(now)
        batches = self._writer.commit(self._staged)
        self._staged.clear()
        self._load = self._writer.load
        return batches

    def persisted(self, batch: Batch, now: Instant) -> tuple[Change, ...]:
        """Apply an own batch that is durable; return what reads differently."""
        log = self._log(batch.origin)
        if log.judge(batch) is not MergeStatus.NEW:
            return ()
        return self._apply(log, batch, now)

    def restore(self, raw: bytes, now: Instant) -> None:
        """Take in an own batch from the journal, before any write, in (epoch, sequence) order.

        Raises DecodeError if malformed or not signed by this node, ValueError if not of an epoch
        before the store's; the state is then unchanged.
        """
        batch = decode_batch(raw)
        if batch.origin != self.origin or not self._signed(batch):
            raise DecodeError("not a batch of this node")
        if batch.epoch >= self.epoch:
            raise ValueError(f"the journal's epoch {batch.epoch} is not before the store's")
        log = self._log(batch.origin)
        if log.judge(batch) is MergeStatus.NEW:
            self._recall(batch)
            self._apply(log, batch, now)

    # ------------------------------------------------------------------ merge

    def merge(self, raw: bytes, now: Instant) -> Merge:
        """Take in a batch of any origin. O(entries) amortised.

        The state changes only if the status is NEW, or FORKED for the first time: all that a
        quarantined origin said is then dropped, so that replicas agree whichever branch they saw.
        Raises DecodeError if malformed; the state is then unchanged.
        """
        batch = decode_batch(raw)
        if batch.origin not in self._keys:
            return Merge(MergeStatus.UNKNOWN_KEY, batch, ())
        log = self._log(batch.origin)
        status = log.judge(batch)
        mine = batch.origin == self.origin
        if mine and batch.epoch < self.epoch and not self._writer.fresh:
            status = MergeStatus.STALE  # carried over already, or too late
        forked_before = bool(log.evidence)
        if status in (MergeStatus.DUPLICATE, MergeStatus.STALE) or forked_before:
            return Merge(status, batch, ())
        if not self._signed(batch):
            return Merge(MergeStatus.BAD_SIGNATURE, batch, ())
        if status is MergeStatus.FORKED:
            return Merge(status, batch, self._quarantine(log, batch, now))
        if mine:
            self._recall(batch)
            self._writer.borrowed = True
        return Merge(status, batch, self._apply(log, batch, now))

    def mature(self, now: Instant) -> tuple[Change, ...]:
        """Show the registers whose time has come; return what reads differently."""
        return self._state.mature(self.clock.horizon(now))

    # ------------------------------------------------------------------- read

    def owner(self, origin: NodeId, key: str) -> Value:
        """Return an origin's own record, None if it has none."""
        return self._state.owner(origin, key)

    def owners(self, prefix: str = "") -> list[tuple[NodeId, str, Value]]:
        """Return the owner records under a prefix, sorted by origin and key. O(records)."""
        return self._state.owners(prefix)

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
    def complete(self) -> bool:
        """Say whether every live batch of every known log is held. O(origins)."""
        return all(log.complete for log in self._logs.values())

    def fingerprint(self) -> bytes:
        """Return 16 bytes that are equal where the same batches are held. O(1)."""
        return self._digest.to_bytes(16, "big")

    def knowledge(self) -> dict[NodeId, tuple[int, int, bytes]]:
        """Return per origin (epoch, sequence, 8 bytes over the batches held). O(origins)."""
        return {
            origin: (log.epoch, log.sequence, log.digest.to_bytes(16, "big")[:8])
            for origin, log in self._logs.items()
        }

    def live_batches(self, origin: NodeId, after: tuple[int, int] = (0, 0)) -> list[bytes]:
        """Return an origin's batches later than (epoch, sequence), verbatim, ascending.

        That is what is live, and before it what is stated until all of that is here. Of a
        quarantined origin: the two batches that prove its fork. O(live batches).
        """
        log = self._logs.get(origin)
        if log is None:
            return []
        if log.evidence:
            return list(log.evidence)
        held = sorted([*log.former, *log.batches.values()], key=lambda batch: batch.version)
        return [batch.raw for batch in held if batch.version > after]

    # --------------------------------------------------------------- internal

    def _log(self, origin: NodeId) -> OriginLog:
        return self._logs.get(origin) or OriginLog()

    def _signed(self, batch: Batch) -> bool:
        message, signature = batch.raw[:-SIGNATURE_BYTES], batch.raw[-SIGNATURE_BYTES:]
        return self._verify(self._keys[batch.origin], message, signature)

    def _apply(self, log: OriginLog, batch: Batch, now: Instant) -> tuple[Change, ...]:
        """Put a batch judged NEW into its log and the state."""
        self._logs[batch.origin] = log
        before = log.digest
        dropped = log.add(batch)
        self._digest = (self._digest + log.digest - before) % _DIGEST_MOD
        return self._update(batch, dropped, batch.origin, now)

    def _quarantine(self, log: OriginLog, batch: Batch, now: Instant) -> tuple[Change, ...]:
        if batch.origin == self.origin:
            self.contested = True
            return ()  # a copy of this node speaks in its name; it cannot silence itself
        before = log.digest
        dropped = log.quarantine(batch)
        self._digest = (self._digest + log.digest - before) % _DIGEST_MOD
        return self._update(None, dropped, batch.origin, now)

    def _update(
        self, put: Batch | None, drop: list[Batch], origin: NodeId, now: Instant
    ) -> tuple[Change, ...]:
        horizon = self.clock.horizon(now)
        matured = self._state.mature(horizon)
        entries = () if put is None else put.entries
        stamps = [entry.timestamp for entry in entries if type(entry) is RegisterEntry]
        for timestamp in sorted(stamps, reverse=True):
            self.clock.observe(timestamp, now)
        if not self._moved:
            moved = (batch for batch in (put, *drop) if batch is not None)
            self._moved = any(
                type(entry) is not OwnerEntry for batch in moved for entry in batch.entries
            )
        return matured + self._state.update(put, drop, origin, horizon)

    def _recall(self, batch: Batch) -> None:
        """Let the own log take in what a former life wrote, this life's epoch staying the last."""
        if batch.epoch >= self.epoch:
            if not self._writer.fresh:  # not even a former life: what was written stays, anew
                self.contested = True
                self._staged = {**self._writer.current, **self._staged}
            self._writer.epoch = batch.epoch + 1
        self._writer.restore(batch)
        held = self._writer.current
        self._load = self._writer.load + sum(
            weight(entry) - weight(held.get(about)) for about, entry in self._staged.items()
        )

    def _fresh_dot(self) -> Dot:
        return Dot(self.origin, self.epoch, 0)

    def _stage(self, about: Identity, entry: Entry | None) -> None:
        held = self._writer.current.get(about)
        change = weight(entry) - weight(self._staged.get(about, held))
        if change > 0 and self._load + change > CAPACITY:
            raise ValueError("this node's log is full: delete records, or share by reference")
        self._load += change
        if entry is None and held is None:
            self._staged.pop(about, None)
        else:
            self._staged[about] = entry

    def _retire(self, now: Instant) -> None:
        """Release own entries without effect: see `_spent`. O(own entries) if anything moved."""
        if not self._moved:
            return
        self._moved = False
        horizon = self.clock.horizon(now)
        for about, entry in list(self._writer.current.items()):
            if self._spent(about, entry, horizon):
                self._writer.release(about)

    def _spent(self, about: Identity, entry: Entry, horizon: int) -> bool:
        """Say whether an entry is a removed add, a beaten register or a remove of dropped adds.

        What others' logs say counts while they are complete: a re-emitted entry could be on its
        way. For a remove the add's log must also have got as far as the add.
        """
        if isinstance(entry, AddEntry):
            return self._state.set_at(entry.key).removed(about[2], entry.dot)
        if isinstance(entry, RegisterEntry):
            shown = self._state.fleet(entry.key, horizon)
            if shown is None or shown[1:] <= (entry.timestamp, self.origin):
                return False
            return shown[2] != self.origin and self._log(shown[2]).complete
        if isinstance(entry, RemoveEntry):
            log, dot = self._log(entry.dot.origin), entry.dot
            known = (log.epoch, log.sequence) >= (dot.epoch, dot.counter // MAX_ENTRIES)
            held = self._state.set_at(entry.key).holds(about[2], dot)
            return known and log.complete and not held
        return False


def _key(key: str) -> str:
    if not 0 < len(key.encode()) <= MAX_KEY_BYTES:
        raise ValueError(f"a key has 1 to {MAX_KEY_BYTES} bytes, {key[:20]!r} does not")
    return key


def _value(value: Value, limit_bytes: int = MAX_VALUE_BYTES) -> Value:
    """Return a copy in canonical form."""
    packed = encode_value(value)
    if len(packed) > limit_bytes:
        raise ValueError(
            f"{len(packed)} bytes are too many to share (at most {limit_bytes}): "
            "let the value travel by reference"
        )
    return decode_value(packed)
