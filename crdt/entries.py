"""What a batch says: the four kinds of entry.

Owns: the entries and their identities.
Never: decides which entry wins.
Invariant: within one batch no identity occurs twice; within one origin's log the newest entry
of an identity makes the earlier ones superfluous.
"""

from typing import NamedTuple, TypeAlias

from crdt.causal import Dot, NodeId
from crdt.values import Value, encode_value


class OwnerEntry(NamedTuple):
    """Set a record that only its origin writes."""

    key: str
    value: Value


class RegisterEntry(NamedTuple):
    """Set a fleet register at a hybrid timestamp; the value None deletes.

    `epoch` is the one that its origin first said it in, 0 for that of the batch.
    """

    key: str
    value: Value
    timestamp: int
    epoch: int = 0


class AddEntry(NamedTuple):
    """Add an element to a fleet set. The dot's origin is the batch's."""

    key: str
    element: Value
    dot: Dot


class RemoveEntry(NamedTuple):
    """Take back the adds of an element that one origin made up to and including `dot`.

    Whoever has seen an add has seen, or need not see, that origin's earlier adds of the same
    element. So a remove costs one dot, however often the element was added.
    """

    key: str
    element: Value
    dot: Dot


Entry: TypeAlias = OwnerEntry | RegisterEntry | AddEntry | RemoveEntry
Identity: TypeAlias = tuple[type, str, bytes, NodeId]


def identity(entry: Entry) -> Identity:
    """Return what an entry is about: a later entry about the same replaces it."""
    if isinstance(entry, AddEntry):
        return add_identity(entry.key, encode_value(entry.element))
    if isinstance(entry, RemoveEntry):
        return RemoveEntry, entry.key, encode_value(entry.element), entry.dot.origin
    return type(entry), entry.key, b"", b""


def first_epoch(entry: Entry | None) -> int:
    """Return the epoch that a register or an add states to be first said in, 0 if none."""
    if isinstance(entry, RegisterEntry):
        return entry.epoch
    if isinstance(entry, AddEntry) and entry.dot.counter:  # else it gets its dot yet
        return entry.dot.epoch
    return 0


def owner_identity(key: str) -> Identity:
    """Return the identity of the owner record `key`."""
    return OwnerEntry, key, b"", b""


def register_identity(key: str) -> Identity:
    """Return the identity of the register `key`."""
    return RegisterEntry, key, b"", b""


def add_identity(key: str, element: bytes) -> Identity:
    """Return the identity of an add; `element` is its canonical bytes."""
    return AddEntry, key, element, b""
