"""Which of a node's own entries may leave its log.

Owns: what has become of own tombstones (deleted registers, removes) since they were written.
Never: changes the log; the writer does.
Invariant: an entry leaves only if no replica that is not forgotten can read differently for it.
A tombstone leaves once it has nothing left to hide and everybody has held a state in which that
was so: whoever comes back after that, with whatever it knew, has nothing old to show.
"""

from collections.abc import Callable, Iterable

from crdt.causal import Dot, NodeId
from crdt.entries import (
    AddEntry,
    Entry,
    Identity,
    RegisterEntry,
    RemoveEntry,
    identity,
    register_identity,
)
from crdt.log import MAX_ENTRIES, Batch, OriginLog
from crdt.retirement import epoch_in, subject_of
from crdt.state import State
from crdt.values import Value, encode_value


class Release:
    """Judge own entries by what the replica holds, and by what all members have held."""

    def __init__(
        self,
        origin: NodeId,
        state: State,
        log_of: Callable[[NodeId], OriginLog],
        retired: Callable[[NodeId], int],
    ) -> None:
        self.settled = -1
        """The generation that all members have reached."""
        self._origin = origin
        self._state = state
        self._log_of = log_of
        self._retired = retired
        # When own durable tombstones were made (a timestamp or a dot), and the generation in which
        # others last said anything about it.
        self._watched: dict[Identity, tuple[int | Dot, int]] = {}

    def note(self, put: Batch | None, drop: Iterable[Batch], generation: int) -> None:
        """Take note of batches that came into the state, or left it, with a generation."""
        if put is not None and put.origin == self._origin:
            for entry in put.entries:
                if (made := _tombstone(entry)) is not None:
                    about = identity(entry)
                    if self._watched.get(about, (None, 0))[0] != made:  # else only re-emitted
                        self._watched[about] = made, generation
        elif self._watched:
            for batch in drop if put is None else (put, *drop):
                for entry in batch.entries:
                    affected = _bears_on(entry)
                    if affected in self._watched:
                        self._watched[affected] = self._watched[affected][0], generation

    def spent(self, about: Identity, entry: Entry, horizon: int) -> bool:
        """Say whether an entry has no effect: its batch may go once it holds nothing else.

        That is a removed add, a register beaten by another origin's, and a remove that has nothing
        left to remove. What others' logs say counts while they are complete: a re-emitted entry
        could be on its way.
        """
        if isinstance(entry, RegisterEntry):
            return self._beaten(entry, horizon)
        if isinstance(entry, AddEntry):
            return self._state.set_at(entry.key).removed(about[2], entry.dot)
        if isinstance(entry, RemoveEntry):
            log, dot = self._log_of(entry.dot.origin), entry.dot
            known = (log.epoch, log.sequence) >= (dot.epoch, dot.counter // MAX_ENTRIES)
            known = known or self._retired(dot.origin) >= dot.epoch
            held = self._state.set_at(entry.key).holds(about[2], dot)
            return known and log.complete and not held and self._ripe(about, dot)
        return False

    def litter(self, entries: Iterable[Entry], horizon: int, *, complete: bool) -> list[Identity]:
        """Return what should leave the log even at the price of rewriting a batch.

        That is own tombstones that nobody needs any more, and whatever others' tombstones wait
        for: removed adds and deleted registers, copies that were superseded long ago included.
        `complete` says whether all live batches of all logs are held.
        """
        found = []
        for entry in entries:
            if isinstance(entry, AddEntry):
                about = identity(entry)
                wanted = self._state.set_at(entry.key).removed(about[2], entry.dot)
            elif isinstance(entry, RegisterEntry):
                about = register_identity(entry.key)
                wanted = self._deleted(about, entry, horizon, complete)
            else:
                continue
            if wanted:
                found.append(about)
        return found

    def keep_only(self, current: dict[Identity, Entry]) -> None:
        """Forget the tombstones that are not in the log any more."""
        self._watched = {about: seen for about, seen in self._watched.items() if about in current}

    def _beaten(self, entry: RegisterEntry, horizon: int) -> bool:
        shown = self._state.fleet(entry.key, horizon)
        if shown is None or shown[1:] <= (entry.timestamp, self._origin):
            return False
        subject = subject_of(entry.key)
        if subject and (shown[2] == subject or epoch_in(shown[0]) < epoch_in(entry.value)):
            return False  # of what others say of it the greatest counts, not the latest
        return shown[2] != self._origin and self._stays(entry, shown)

    def _deleted(self, about: Identity, entry: RegisterEntry, horizon: int, complete: bool) -> bool:
        shown = self._state.fleet(entry.key, horizon)
        if shown is None or shown[0] is not None or shown[1:] < (entry.timestamp, self._origin):
            return False
        if shown[2] != self._origin:
            return self._stays(entry, shown)
        alone = all(stamp[1] == self._origin for stamp, _ in self._state.candidates(entry.key))
        return complete and alone and self._ripe(about, shown[1])

    def _stays(self, entry: RegisterEntry, shown: tuple[Value, int, NodeId]) -> bool:
        """Say whether another origin will go on stating what beats an own entry.

        Not what it first said in an epoch that is retired: that it takes back.
        """
        _, timestamp, origin = shown
        log, epoch = self._log_of(origin), self._retired(origin)
        again = epoch and any(
            other.timestamp == timestamp and (other.epoch or batch.epoch) <= epoch
            for batch in log.batches.values()
            for other in batch.entries
            if isinstance(other, RegisterEntry) and other.key == entry.key
        )
        return log.complete and not again

    def _ripe(self, about: Identity, made: int | Dot) -> bool:
        watched, generation = self._watched.get(about, (None, 0))
        return watched == made and generation <= self.settled


def _tombstone(entry: Entry) -> int | Dot | None:
    """Return by what a tombstone is known, None for all other entries."""
    if isinstance(entry, RemoveEntry):
        return entry.dot
    return entry.timestamp if isinstance(entry, RegisterEntry) and entry.value is None else None


def _bears_on(entry: Entry) -> Identity | None:
    """Return which tombstone an entry could have to do with."""
    if isinstance(entry, RegisterEntry):
        return register_identity(entry.key)
    if isinstance(entry, AddEntry):
        return RemoveEntry, entry.key, encode_value(entry.element), entry.dot.origin
    return None
