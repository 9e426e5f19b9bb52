"""Forgetting members that are gone for good, without forgetting what they said.

Owns: the registers that tell up to which epoch a member's log is over, and what has to be said
again before it is.
Never: decides who is gone, drops a log (the store does, when the author's log is complete).
Invariant: of all that others than the member say of it the greatest epoch counts, whatever its
timestamp, from when a complete log has said it until no log says it any more.
"""

from collections.abc import Callable, Iterable

from crdt.causal import NodeId
from crdt.entries import (
    AddEntry,
    Entry,
    Identity,
    RegisterEntry,
    RemoveEntry,
    identity,
)
from crdt.log import MAX_EPOCH, Batch, OriginLog
from crdt.state import State
from crdt.values import Value

PREFIX = "member/retired/"
MAX_RETIRED = 128
"""How many such registers an author keeps; the oldest go first."""
_MAX_OVER = MAX_EPOCH // 2  # nobody can take all epochs that are left from a member


def retired_key(member: NodeId) -> str:
    """Return the key of the register about a member."""
    return PREFIX + member.hex()


def subject_of(key: str) -> NodeId | None:
    """Return whom a register is about, None for every other register."""
    if not key.startswith(PREFIX):
        return None
    try:
        member = bytes.fromhex(key[len(PREFIX) :])
    except ValueError:
        return None
    return member if len(member) == 16 and retired_key(member) == key else None


def epoch_in(value: Value) -> int:
    """Return the epoch that a register tells, 0 if its value is none."""
    return value if type(value) is int and 0 < value <= _MAX_OVER else 0


class Retirements:
    """Know of which members the log is over, and up to which epoch."""

    def __init__(self, state: State, log_of: Callable[[NodeId], OriginLog]) -> None:
        self.members: dict[NodeId, int] = {}
        """Of whom it is said, and up to which epoch it counts here."""
        self._state = state
        self._log_of = log_of

    def note(self, batches: Iterable[Batch]) -> None:
        """Take note of batches that came into the state or left it."""
        for batch in batches:
            for entry in batch.entries:
                if entry.key.startswith(PREFIX) and isinstance(entry, RegisterEntry):
                    member = subject_of(entry.key)
                    if member is not None:
                        said = self._said(member, complete=False)
                        self.members[member] = min(said, self.epoch(member))
                        if not said:
                            del self.members[member]

    def hear(self, member: NodeId) -> int:
        """Count what is said by authors whose log is complete; return what `epoch` does.

        What they said again is then here, too. A gap that comes later undoes nothing.
        """
        if member in self.members:
            self.members[member] = max(self.epoch(member), self._said(member, complete=True))
        return self.epoch(member)

    def epoch(self, member: NodeId) -> int:
        """Return up to which epoch a member's log is over, 0 if it is not."""
        return self.members.get(member, 0)

    def _said(self, member: NodeId, *, complete: bool) -> int:
        said = [
            epoch_in(value)
            for (_, author, *_), value in self._state.candidates(retired_key(member))
            if author != member and (not complete or self._log_of(author).complete)
        ]
        return max(said, default=0)


def said_again(
    member: NodeId,
    log: OriginLog,
    state: State,
    retired: Callable[[NodeId], int],
    horizon: int,
) -> dict[Identity, Entry]:
    """Return what would be lost with a member's log, as entries for another's. O(entries).

    Registers keep value and timestamp, so that whoever says them again at the same time agrees,
    and tombstones and removes go on hiding what they hide. An add needs a dot of the other log
    (here it has the newest of its old ones).
    """
    entries: dict[Identity, Entry] = {}
    for batch in (*log.former, *log.batches.values()):
        for entry in batch.entries:
            about = identity(entry)
            if isinstance(entry, RegisterEntry):
                again: Entry | None = _register(member, entry.key, state, retired, horizon)
            elif isinstance(entry, AddEntry):
                dots = list(state.set_at(entry.key).visible(about[2]))
                mine = dots and all(dot.origin == member for dot in dots)
                again = entry._replace(dot=max(dots)) if mine else None
            elif isinstance(entry, RemoveEntry):
                seen = entries.get(about)
                again = seen if isinstance(seen, RemoveEntry) and seen.dot > entry.dot else entry
            else:
                continue
            if again is not None:
                entries[about] = again
    return entries


def _register(
    member: NodeId, key: str, state: State, retired: Callable[[NodeId], int], horizon: int
) -> RegisterEntry | None:
    """Say what the member's value decides now, or else once its time has come."""
    said = state.candidates(key)
    subject = subject_of(key)
    if subject is not None:
        epoch = retired(subject)  # as far as it counts: where it does not, that log is held
        stamps = [stamp[0] for stamp, _ in said if stamp[1] != subject]
        return RegisterEntry(key, epoch, stamps[-1]) if epoch else None
    shown = state.fleet(key, horizon)
    if shown is not None and shown[2] == member:
        return RegisterEntry(key, shown[0], shown[1])
    (timestamp, origin, *_), value = said[-1]
    return RegisterEntry(key, value, timestamp) if origin == member else None
