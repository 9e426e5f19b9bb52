"""A node's replica of the fleet's state, and its own log within it.

Owns: the node's unsent writes, and what is said again, kept and dropped in its own log.
Never: sends, stores or schedules; the host makes a batch durable and then calls `persisted`.
Invariant: own writes are read, here as everywhere, once they are in a durable batch; what leaves
the own log is missed by no replica that is not forgotten.
"""

from collections.abc import Callable
from math import inf

from crdt.causal import Dot, NodeId
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
    first_epoch,
    identity,
    owner_identity,
    register_identity,
)
from crdt.log import Batch, MergeStatus
from crdt.release import Release
from crdt.replica import Merge, Replica, Verify
from crdt.retirement import MAX_RETIRED, PREFIX, epoch_in, retired_key, said_again, subject_of
from crdt.state import Change
from crdt.values import (
    MAX_ELEMENT_BYTES,
    MAX_VALUE_BYTES,
    DecodeError,
    Value,
    decode_value,
    encode_value,
)
from crdt.writer import CAPACITY, Writer, weight

__all__ = ["SWEEP_S", "Merge", "Sign", "Store", "Verify"]

Sign = Callable[[bytes], bytes]

SWEEP_S = 30.0
"""How often batches are rewritten only to get rid of what others' tombstones wait for."""
_FULL = CAPACITY * 3 // 4


class Store(Replica):
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
        super().__init__(origin, verify=verify, public_key=public_key, clock=clock)
        self._writer = Writer(origin, epoch, sign)
        self._staged: dict[Identity, Entry | None] = {}
        self._load = 0
        self._release = Release(origin, self._state, self._log, self.retired)
        self._moved = self._littered = False  # whether a look for what can go is worth while
        self._swept_s = float("-inf")
        self._renounced = 0  # the epoch up to which the fleet has retired this node itself
        self._cut_s = inf  # since when a part of the own log has been sought
        self._overdue = False  # whether what follows from that waits for a commit

    @property
    def epoch(self) -> int:
        """Return the epoch that own batches are written in."""
        return self._writer.epoch

    @property
    def staged(self) -> int:
        """Return how many writes wait for the next commit."""
        return len(self._staged)

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

        Raises ValueError (key, value or log too large; a key that only `retire` writes).
        """
        if key.startswith(PREFIX):
            raise ValueError(f"keys under {PREFIX} are written by retiring a member")
        about = register_identity(_key(key))
        shown = self._state.fleet(key, self.clock.horizon(now))
        own = self._pending(about)
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
        batches = self._writer.commit(self._staged, self._weed(now))
        self._staged.clear()
        self._overdue = False
        self._load = self._writer.load
        return batches

    def persisted(self, batch: Batch, now: Instant) -> tuple[Change, ...]:
        """Apply an own batch that is durable; return what reads differently."""
        log = self._log(batch.origin)
        if batch.epoch <= self._renounced or log.judge(batch) is not MergeStatus.NEW:
            return ()
        return self._apply(log, batch, now)

    def restore(self, raw: bytes, now: Instant) -> None:
        """Take in an own batch from the journal, before any write, in (epoch, sequence) order.

        Raises DecodeError if malformed or not signed by this node, ValueError if not of an epoch
        before the store's; the state is then unchanged.
        """
        batch = decode_batch(raw)
        if batch.origin != self.origin or self._refusal(batch, b"") is not None:
            raise DecodeError("not a batch of this node")
        if batch.epoch >= self.epoch:
            raise ValueError(f"the journal's epoch {batch.epoch} is not before the store's")
        log = self._log(batch.origin)
        if log.judge(batch) is MergeStatus.NEW:
            self._recall(batch)
            self._apply(log, batch, now)

    # ------------------------------------------------------------- forgetting

    def settled(self, generation: int) -> None:
        """Note that every member not forgotten, down ones included, has caught up.

        Each has at some time held exactly what this replica held at `generation` or later.
        """
        if generation > self._release.settled:
            self._release.settled = generation
            self._moved = self._littered = True

    def sweep(self, now: Instant) -> bool:
        """Say whether a commit now would free or mend something, and this is the time for it.

        O(own entries), at most every 30 s, or at any time if the log is nearly full.
        """
        if self._overdue or self._cut_short(now):
            return True
        if not self._littered or not self._due(now):
            return False
        horizon = self.clock.horizon(now)
        current = self._writer.current.items()
        if self._litter(horizon) or any(
            self._release.spent(about, entry, horizon) for about, entry in current
        ):
            return True
        self._littered = False
        self._swept_s = now.mono_s
        return False

    def _cut_short(self, now: Instant) -> bool:
        """Tell whether a former life's last commit has been found in part only, and for long.

        The rest was never durable, or is lost with a disk: without another commit everybody would
        look for it for ever.
        """
        if not self._writer.fresh or self._writer.log.complete:
            self._cut_s = inf
            return False
        self._cut_s = min(self._cut_s, now.mono_s)
        return now.mono_s - self._cut_s >= SWEEP_S

    def retire(self, member: NodeId, now: Instant) -> bool:
        """Stage what makes the fleet forget a member's log, keeping what it said for all.

        What others still need of it is said again in this node's name; its epochs so far are over
        wherever that has arrived whole. It comes back under a later one. This node goes on in a
        later epoch, too: if the member has retired it meanwhile, it is heard nevertheless. False
        where there is nothing to forget, or no epoch would be left to the member. Raises
        ValueError (this node; or no room: nothing is staged).
        """
        if member == self.origin:
            raise ValueError("a node cannot retire itself")
        log = self._logs.get(member)
        key = retired_key(member)
        about = register_identity(key)
        own = self._pending(about)
        said = epoch_in(own.value) if isinstance(own, RegisterEntry) else 0
        if log is None or said >= epoch_in(log.written):
            return False
        horizon = self.clock.horizon(now)
        entries = {
            again: entry
            for again, entry in said_again(member, log, self._state, self.retired, horizon).items()
            if not self._outdone(again, entry, horizon)
        }
        shown = self._state.fleet(key, horizon)
        timestamp = self.clock.tick(now, 0 if shown is None else shown[1])
        epoch = max(log.written, self.retired(member))
        entries[about] = RegisterEntry(key, epoch, timestamp)
        for again, entry in entries.items():
            if isinstance(entry, AddEntry):
                entries[again] = entry._replace(dot=self._fresh_dot())
        if self._load + sum(self._growth(*item) for item in entries.items()) > CAPACITY:
            raise ValueError("this node's log has no room for what the member's says")
        for again, entry in entries.items():
            self._stage(again, entry)
        self._shed_retirements()
        if not self._writer.fresh:
            self._writer.epoch += 1
        return True

    # --------------------------------------------------------------- internal

    def _over(self, origin: NodeId) -> int:
        over = self.retired(origin)
        if origin == self.origin and not self._writer.fresh:
            return max(over, self.epoch - 1)  # carried over already, or too late
        return over

    def _returned(self, batch: Batch) -> None:
        self._recall(batch)
        self._writer.borrowed = True

    def _noted(self, put: Batch | None, drop: list[Batch]) -> None:
        self._moved = self._littered = True
        self._release.note(put, drop, self.generation)

    def _renounce(self, epoch: int) -> None:
        """Accept that the fleet has forgotten what this node wrote up to an epoch.

        It may have deleted it since, so nothing of it is said again but owner records, and what
        later epochs took over from it is taken back.
        """
        writer = self._writer
        self._renounced = max(self._renounced, epoch)
        if writer.log.epoch <= epoch:
            kept = {
                about: entry
                for about, entry in writer.current.items()
                if isinstance(entry, OwnerEntry)
            }
            self._staged = {**kept, **self._staged}
            writer.restart(max(writer.epoch, epoch + 1))
        self._take_back()
        self._overdue = self._overdue or bool(self._staged)

    def _outdone(self, about: Identity, entry: Entry, horizon: int) -> bool:
        """Say whether this node has written what counts more than a retired member's entry.

        It might not be durable yet, so the state does not tell. A value of now is not given up for
        one whose time has not come.
        """
        own = self._pending(about)
        if isinstance(entry, RegisterEntry):
            if not isinstance(own, RegisterEntry):
                return False
            if subject_of(entry.key):
                return epoch_in(own.value) >= epoch_in(entry.value)
            hidden = own.timestamp <= horizon < entry.timestamp
            return hidden or own.timestamp > entry.timestamp
        if isinstance(entry, AddEntry):
            if about in self._staged:
                return True
            own = self._pending((RemoveEntry, entry.key, about[2], entry.dot.origin))
        elif not isinstance(entry, RemoveEntry):
            return False
        return isinstance(own, RemoveEntry) and own.dot >= entry.dot

    def _pending(self, about: Identity) -> Entry | None:
        """Return what the own log says, or will say after the next commit."""
        return self._staged.get(about, self._writer.current.get(about))

    def _shed_retirements(self) -> None:
        """Take back the oldest of too many own retirements."""
        said = {**self._writer.current, **self._staged}
        own = [
            (entry.timestamp, about)
            for about, entry in said.items()
            if isinstance(entry, RegisterEntry) and entry.key.startswith(PREFIX)
        ]
        for _, about in sorted(own)[:-MAX_RETIRED]:
            self._stage(about, None)

    def _recall(self, batch: Batch) -> None:
        """Let the own log take in what a former life wrote, this life's epoch staying the last."""
        if batch.epoch >= self.epoch:
            if not self._writer.fresh:  # not even a former life: what was written stays, anew
                self.contested = True
                self._staged = {**self._writer.current, **self._staged}
            self._writer.epoch = batch.epoch + 1
        self._writer.restore(batch)
        self._take_back()

    def _take_back(self) -> None:
        """Unsay what was first said in an epoch that the fleet has retired."""
        epoch = self._renounced
        self._staged = {
            about: entry
            for about, entry in self._staged.items()
            if not 0 < first_epoch(entry) <= epoch
        }
        for about in self._writer.carried(epoch):
            self._staged.setdefault(about, None)
            self._overdue = True
        self._weigh()

    def _weigh(self) -> None:
        held = self._writer.current
        self._load = self._writer.load + sum(
            weight(entry) - weight(held.get(about)) for about, entry in self._staged.items()
        )

    def _growth(self, about: Identity, entry: Entry | None) -> int:
        """Return by how much the log grows with an entry."""
        return weight(entry) - weight(self._pending(about))

    def _fresh_dot(self) -> Dot:
        return Dot(self.origin, self.epoch, 0)

    def _stage(self, about: Identity, entry: Entry | None) -> None:
        change = self._growth(about, entry)
        if change > 0 and self._load + change > CAPACITY:
            raise ValueError("this node's log is full: delete records, or share by reference")
        self._load += change
        if entry is None and about not in self._writer.current:
            self._staged.pop(about, None)
        else:
            self._staged[about] = entry

    def _due(self, now: Instant) -> bool:
        return self._load > _FULL or now.mono_s >= self._swept_s + SWEEP_S

    def _weed(self, now: Instant) -> list[Identity]:
        """Release own entries that need not stay; return those whose every copy should go."""
        horizon, litter = self.clock.horizon(now), []
        if self._littered and self._due(now):
            litter = self._litter(horizon)
            self._littered = False
            self._swept_s = now.mono_s
        if self._moved or litter:
            self._moved = False
            gone = set(litter)
            for about, entry in list(self._writer.current.items()):
                if self._release.spent(about, entry, horizon) or (
                    about in gone and self._release.litter([entry], horizon, complete=True)
                ):
                    self._writer.release(about)
            self._release.keep_only(self._writer.current)
        return litter

    def _litter(self, horizon: int) -> list[Identity]:
        return self._release.litter(
            (entry for batch in self._writer.log.batches.values() for entry in batch.entries),
            horizon,
            complete=self.complete,
        )


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
