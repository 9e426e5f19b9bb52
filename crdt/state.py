"""What the live batches of all origins add up to.

Owns: the owner records, fleet registers and fleet sets, and which registers are still hidden
because they are dated in the future.
Never: knows which batches are live (the logs do), writes anything.
Invariant: the state is a function of the multiset of entries put and not dropped; order never
matters. Reads of one key are O(1) in the number of keys.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Literal, NamedTuple

from crdt.causal import NodeId
from crdt.entries import AddEntry, OwnerEntry, RegisterEntry
from crdt.log import Batch
from crdt.registers import Candidate, LwwMap
from crdt.sets import OrSet
from crdt.values import Value, encode_value, same

KEPT_CHANGES = 1024
"""Of owner records, the newest: who has missed more had better read all records."""


class Change(NamedTuple):
    """Tell that reading a key gives another result than before; `origin` is who caused it."""

    kind: Literal["owner", "fleet", "set"]
    key: str
    origin: NodeId


class _Before(NamedTuple):
    """Hold what the records, registers and elements that batches bear on read before."""

    owners: dict[str, Candidate | None]
    fleet: dict[str, Candidate | None]
    sets: dict[tuple[str, bytes], bool]


_new = tuple.__new__  # half the time of calling the class
_Waiting = tuple[int, NodeId, int, int, str]  # (*stamp, key)


class State:
    """Hold the derived state; `put` and `drop` batches, read values."""

    def __init__(self) -> None:
        self._owners: dict[NodeId, LwwMap] = {}
        self._fleet = LwwMap()
        self._sets: dict[str, OrSet] = {}
        self._future: list[_Waiting] = []  # ascending
        self._horizon = -1  # at which all others became visible
        self._changed = 0  # owner records, ever
        self._recently: deque[Change] = deque(maxlen=KEPT_CHANGES)  # the newest of them

    @property
    def hidden(self) -> int:
        """Return how many register entries wait for their time."""
        return len(self._future)

    def update(
        self, put: Batch | None, drop: Iterable[Batch], origin: NodeId, horizon: int
    ) -> tuple[Change, ...]:
        """Put one batch and drop others of its origin; return what reads differently.

        What is only re-emitted is no change. O(entries).
        """
        before = _Before({}, {}, {})
        if put is not None:
            self._put(put, before, horizon)
        for batch in drop:
            self._drop(batch, before, horizon)
        records, below = self._owners.get(origin, LwwMap()), (horizon + 1,)
        changes = [
            _new(Change, ("owner", key, origin))
            for key, old in before.owners.items()
            if (new := records.newest(key)) is not old and _differ(old, new)
        ]
        if changes:
            self._changed += len(changes)
            self._recently.extend(changes)
        changes += [
            _new(Change, ("fleet", key, origin))
            for key, old in before.fleet.items()
            if (new := self._fleet.newest(key, below)) is not old and _differ(old, new)
        ]
        sets = dict.fromkeys(
            key
            for (key, element), was in before.sets.items()
            if was != (element in self.set_at(key))
        )
        return (*changes, *[Change("set", key, origin) for key in sets])

    def mature(self, horizon: int) -> tuple[Change, ...]:
        """Show the registers whose time has come; return what reads differently.

        Where the horizon has fallen those beyond it are hidden again. O(registers) then.
        """
        changed: dict[Change, None] = {}
        if horizon < self._horizon:
            self._hide(horizon, changed)
        self._horizon = horizon
        due = bisect_left(self._future, (horizon + 1,))
        for *stamp, key in self._future[:due]:
            newest = self._fleet.newest(key, (horizon + 1,))
            if newest is not None and newest[0] == tuple(stamp):
                changed[Change("fleet", key, newest[0][1])] = None
        del self._future[:due]
        return tuple(changed)

    def forget(self, origin: NodeId) -> None:
        """Let go of what is kept for an origin, now that all its batches are dropped."""
        self._owners.pop(origin, None)

    # ------------------------------------------------------------------ reads

    def owner(self, origin: NodeId, key: str) -> Value:
        """Return an origin's own record, None if it has none."""
        records = self._owners.get(origin)
        found = None if records is None else records.newest(key)
        return None if found is None else _detached(found[1])

    def owners(self, prefix: str) -> list[tuple[NodeId, str, Value]]:
        """Return all owner records under a prefix, by origin and key. O(records)."""
        return [
            (origin, key, _detached(value))
            for origin in sorted(self._owners)
            for key, value in self._owners[origin].items(prefix)
        ]

    def owners_changed(self, since: int) -> tuple[int, set[tuple[NodeId, str]] | None]:
        """Return the mark of now, and (origin, key) of the owner records changed since another.

        None instead of them for a mark of long ago, -1 included. O(changes since).
        """
        missed = self._changed - since
        if missed > len(self._recently):
            return self._changed, None
        recent = islice(reversed(self._recently), missed)
        return self._changed, {(change.origin, change.key) for change in recent}

    def fleet(self, key: str, horizon: int) -> tuple[Value, int, NodeId] | None:
        """Return (value, timestamp, origin) of what wins at a register, deletions included."""
        found = self._fleet.newest(key, (horizon + 1,))
        return None if found is None else (_detached(found[1]), found[0][0], found[0][1])

    def candidates(self, key: str) -> list[Candidate]:
        """Return all that logs say of a register, hidden or beaten; to be read only."""
        return self._fleet.candidates(key)

    def fleet_items(self, prefix: str, horizon: int) -> list[tuple[str, Value]]:
        """Return the registers under a prefix that have a value, sorted. O(registers)."""
        items = self._fleet.items(prefix, (horizon + 1,))
        return [(key, _detached(value)) for key, value in items]

    def set_at(self, key: str) -> OrSet:
        """Return the set of a key, to be read only."""
        return self._sets.get(key) or OrSet()

    def set_keys(self, prefix: str) -> list[str]:
        """Return the keys under a prefix whose set has an element, sorted. O(sets)."""
        keys = (key for key in self._sets if key.startswith(prefix))
        return sorted(key for key in keys if any(True for _ in self._sets[key]))

    # ---------------------------------------------------------------- entries

    def _put(self, batch: Batch, before: _Before, horizon: int) -> None:
        """Put a batch's entries; `before` gets what was read where they change something."""
        owners, fleet, sets = before
        origin, version, below = batch.origin, batch.version, (horizon + 1,)
        records = self._owners.get(origin)
        if records is None:
            records = self._owners[origin] = LwwMap()
        for entry in batch.entries:
            key = entry.key
            if isinstance(entry, OwnerEntry):
                owners[key] = records.put(key, version, entry.value)
            elif isinstance(entry, RegisterEntry):
                stamp = (entry.timestamp, origin, *version)
                fleet[key] = self._fleet.newest(key, below)
                self._fleet.put(key, stamp, entry.value)
                if entry.timestamp > horizon:
                    insort(self._future, (*stamp, key))
            else:
                target = self._sets.get(key)
                if target is None:
                    target = self._sets[key] = OrSet()
                element = encode_value(entry.element)
                sets.setdefault((key, element), element in target)
                state = target.add if isinstance(entry, AddEntry) else target.remove
                state(element, entry.dot)

    def _hide(self, horizon: int, changed: dict[Change, None]) -> None:
        """Let what was visible but lies in the future wait again; note what reads differently."""
        before, below = (self._horizon + 1,), (horizon + 1,)
        for key in self._fleet:
            stamps = [stamp for stamp, _ in self._fleet.candidates(key)]
            late = [stamp for stamp in stamps if below <= stamp < before]
            self._future += [(*stamp, key) for stamp in late]
            if late and _differ(self._fleet.newest(key, before), self._fleet.newest(key, below)):
                changed[Change("fleet", key, late[-1][1])] = None
        self._future.sort()

    def _drop(self, batch: Batch, before: _Before, horizon: int) -> None:
        """Drop a batch's entries; the counterpart of `_put`."""
        owners, fleet, sets = before
        version, below = batch.version, (horizon + 1,)
        records = self._owners[batch.origin]
        for entry in batch.entries:
            key = entry.key
            if isinstance(entry, OwnerEntry):
                if key not in owners:
                    owners[key] = records.newest(key)
                records.drop(key, version)
            elif isinstance(entry, RegisterEntry):
                if key not in fleet:
                    fleet[key] = self._fleet.newest(key, below)
                stamp = (entry.timestamp, batch.origin, *version)
                self._fleet.drop(key, stamp)
                if self._future:
                    self._expect_no_more((*stamp, key))
            else:
                target = self._sets[key]
                element = encode_value(entry.element)
                sets.setdefault((key, element), element in target)
                drop = target.drop_add if isinstance(entry, AddEntry) else target.drop_remove
                drop(element, entry.dot)
                if not target:
                    del self._sets[key]

    def _expect_no_more(self, waiting: _Waiting) -> None:
        index = bisect_left(self._future, waiting)
        if index < len(self._future) and self._future[index] == waiting:
            del self._future[index]


def _differ(old: Candidate | None, new: Candidate | None) -> bool:
    """Compare two results of a read: an absent record reads as None."""
    was, is_ = None if old is None else old[1], None if new is None else new[1]
    return was != is_ or not same(was, is_)


def _detached(value: Value) -> Value:
    """Return a value that a caller may change without changing the state; map keys sorted."""
    if type(value) is dict:
        return {key: _detached(value[key]) for key in sorted(value)}
    return [_detached(item) for item in value] if type(value) is list else value
