"""What the live batches of all origins add up to.

Owns: the owner records, fleet registers and fleet sets, and which registers are still hidden
because they are dated in the future.
Never: knows which batches are live (the logs do), writes anything.
Invariant: the state is a function of the multiset of entries put and not dropped; order never
matters. Reads of one key are O(1) in the number of keys.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from crdt.causal import NodeId
from crdt.entries import AddEntry, Entry, OwnerEntry, RegisterEntry
from crdt.log import Batch
from crdt.registers import Candidate, LwwMap
from crdt.sets import OrSet
from crdt.values import Value, decode_value, encode_value


class Change(NamedTuple):
    """Tell that reading a key gives another result than before; `origin` is who caused it."""

    kind: Literal["owner", "fleet", "set"]
    key: str
    origin: NodeId


_Cell = tuple[type, str, NodeId | bytes]  # what an entry bears on: a record, register or element


class State:
    """Hold the derived state; `put` and `drop` batches, read values."""

    def __init__(self) -> None:
        self._owners: dict[NodeId, LwwMap] = {}
        self._fleet = LwwMap()
        self._sets: dict[str, OrSet] = {}
        self._future: list[tuple[int, NodeId, int, int, str]] = []  # (*stamp, key), ascending

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
        before: dict[_Cell, Any] = {}
        dropped = [(batch, entry) for batch in drop for entry in batch.entries]
        entries = () if put is None else put.entries
        for entry in (*entries, *[entry for _, entry in dropped]):
            cell = _cell(entry, origin)
            if cell not in before:
                before[cell] = self._read(cell, horizon)
        if put is not None:
            for entry in entries:
                self._put(entry, put, horizon)
        for batch, entry in dropped:
            self._drop(entry, batch)
        changed: dict[Change, None] = {}
        for cell, old in before.items():
            new = self._read(cell, horizon)
            if new is not old and _differ(old, new):
                changed[_change(cell, origin)] = None
        return tuple(changed)

    def mature(self, horizon: int) -> tuple[Change, ...]:
        """Show the registers whose time has come; return what reads differently."""
        changed: dict[Change, None] = {}
        while self._future and self._future[0][0] <= horizon:
            timestamp, origin, epoch, sequence, key = self._future.pop(0)
            newest = self._fleet.newest(key, (horizon + 1,))
            if newest is not None and newest[0] == (timestamp, origin, epoch, sequence):
                changed[Change("fleet", key, origin)] = None
        return tuple(changed)

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

    def fleet(self, key: str, horizon: int) -> tuple[Value, int, NodeId] | None:
        """Return (value, timestamp, origin) of what wins at a register, deletions included."""
        found = self._fleet.newest(key, (horizon + 1,))
        return None if found is None else (_detached(found[1]), found[0][0], found[0][1])

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

    def _read(self, cell: _Cell, horizon: int) -> Candidate | bool | None:
        kind, key, about = cell
        if kind is OwnerEntry:
            records = self._owners.get(about)
            return None if records is None else records.newest(key)
        if kind is RegisterEntry:
            return self._fleet.newest(key, (horizon + 1,))
        found = self._sets.get(key)
        return found is not None and about in found

    def _put(self, entry: Entry, batch: Batch, horizon: int) -> None:
        if isinstance(entry, OwnerEntry):
            records = self._owners.setdefault(batch.origin, LwwMap())
            records.put(entry.key, batch.version, entry.value)
        elif isinstance(entry, RegisterEntry):
            stamp = (entry.timestamp, batch.origin, *batch.version)
            self._fleet.put(entry.key, stamp, entry.value)
            if entry.timestamp > horizon:
                insort(self._future, (*stamp, entry.key))
        else:
            target = self._sets.setdefault(entry.key, OrSet())
            put = target.add if isinstance(entry, AddEntry) else target.remove
            put(encode_value(entry.element), entry.dot)

    def _drop(self, entry: Entry, batch: Batch) -> None:
        if isinstance(entry, OwnerEntry):
            self._owners[batch.origin].drop(entry.key, batch.version)
        elif isinstance(entry, RegisterEntry):
            stamp = (entry.timestamp, batch.origin, *batch.version)
            self._fleet.drop(entry.key, stamp)
            waiting = (*stamp, entry.key)
            index = bisect_left(self._future, waiting)
            if index < len(self._future) and self._future[index] == waiting:
                del self._future[index]
        else:
            target = self._sets[entry.key]
            drop = target.drop_add if isinstance(entry, AddEntry) else target.drop_remove
            drop(encode_value(entry.element), entry.dot)
            if not target:
                del self._sets[entry.key]


def _cell(entry: Entry, origin: NodeId) -> _Cell:
    if isinstance(entry, OwnerEntry):
        return OwnerEntry, entry.key, origin
    if isinstance(entry, RegisterEntry):
        return RegisterEntry, entry.key, b""
    return AddEntry, entry.key, encode_value(entry.element)


def _change(cell: _Cell, origin: NodeId) -> Change:
    kind, key, _ = cell
    if kind is OwnerEntry:
        return Change("owner", key, origin)
    return Change("fleet" if kind is RegisterEntry else "set", key, origin)


def _differ(old: Candidate | bool | None, new: Candidate | bool | None) -> bool:
    """Compare two results of a read: by value, and an absent record reads as None."""
    if isinstance(old, bool) or isinstance(new, bool):
        return old != new
    was, is_ = old and old[1], new and new[1]
    if type(was) is not type(is_):
        return True
    # Inside containers Python's == takes True for 1, and so would hide a change.
    if isinstance(was, list | dict):
        return encode_value(was) != encode_value(is_)
    return was != is_


def _detached(value: Value) -> Value:
    """Return a value that a caller may change without changing the state."""
    return decode_value(encode_value(value)) if isinstance(value, list | dict) else value
