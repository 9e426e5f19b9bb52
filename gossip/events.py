"""What a GossipNode tells its host: facts about members and state, and outputs to carry out.

Owns the types alone; never any behaviour. Events are facts that have already happened.
"""

from typing import NamedTuple

from crdt.log import Batch
from crdt.state import Change

Address = tuple[str, int]


class MemberUp(NamedTuple):
    """A member is there: new, back from suspicion or death, or at another address."""

    node_id: bytes
    address: Address
    incarnation: int


class MemberSuspect(NamedTuple):
    """A member did not answer and has yet to refute it."""

    node_id: bytes


class MemberDown(NamedTuple):
    """A suspicion ran out unrefuted."""

    node_id: bytes


class MemberLeft(NamedTuple):
    """A member said goodbye."""

    node_id: bytes


class StateChanged(NamedTuple):
    """The replica's visible state changed."""

    changes: tuple[Change, ...]


class KeysChanged(NamedTuple):
    """The fleet's secret was rotated: keep `GossipNode.keys` as durably as the secret before."""

    number: int


class Transmit(NamedTuple):
    """A datagram of at most 1,200 bytes to send."""

    data: bytes
    addr: Address


class Persist(NamedTuple):
    """A batch to make durable; answer with GossipNode.persisted(batch), in this order."""

    batch: Batch


class MemberView(NamedTuple):
    """A member as this node sees it; state is self, alive, suspect, down or left."""

    node_id: bytes
    address: Address
    state: str
    incarnation: int
    rtt_s: float | None
    since_mono_s: float


Event = MemberUp | MemberSuspect | MemberDown | MemberLeft | StateChanged | KeysChanged
Output = Transmit | Persist | Event
