"""Replicated state: values that every node may write and that converge without consensus.

Pure: no IO, no clock, no randomness; the caller passes `now` and makes batches durable.
Begin with `store.Store` and the `replica.Replica` that it is, then `log` (the unit of everything is
the signed batch) and `codec` (its bytes). `state` is what all logs add up to, `ranges` how two
replicas find where they differ; `writer` decides what the own log carries, `release` what may leave
it, and `retirement` how members are forgotten. `counters` and the version vectors of `causal` are
for what a host counts, or has seen, and passes on by itself: nothing here keeps any.
"""

from crdt.causal import Dot, NodeId, VersionVector, node_id_of
from crdt.clock import HybridClock, Instant
from crdt.codec import decode_batch
from crdt.counters import GCounter, PNCounter
from crdt.entries import AddEntry, Entry, OwnerEntry, RegisterEntry, RemoveEntry
from crdt.log import MAX_BATCH_BYTES, MAX_ENTRIES, MAX_LIVE, Batch, MergeStatus, OriginLog
from crdt.replica import Merge
from crdt.state import Change
from crdt.store import Store
from crdt.values import (
    MAX_ELEMENT_BYTES,
    MAX_VALUE_BYTES,
    DecodeError,
    Value,
    decode_value,
    encode_value,
)

__all__ = [
    "MAX_BATCH_BYTES",
    "MAX_ELEMENT_BYTES",
    "MAX_ENTRIES",
    "MAX_LIVE",
    "MAX_VALUE_BYTES",
    "AddEntry",
    "Batch",
    "Change",
    "DecodeError",
    "Dot",
    "Entry",
    "GCounter",
    "HybridClock",
    "Instant",
    "Merge",
    "MergeStatus",
    "NodeId",
    "OriginLog",
    "OwnerEntry",
    "PNCounter",
    "RegisterEntry",
    "RemoveEntry",
    "Store",
    "Value",
    "VersionVector",
    "decode_batch",
    "decode_value",
    "encode_value",
    "node_id_of",
]
