"""Gossip: members find each other, tell each other, and repair what got lost; without IO.

The door is `GossipNode`; `gossip.udp.UdpHost` runs it on a socket.
"""

from gossip.config import GossipConfig
from gossip.events import (
    Address,
    Event,
    KeysChanged,
    MemberDown,
    MemberLeft,
    MemberSuspect,
    MemberUp,
    MemberView,
    Output,
    Persist,
    StateChanged,
    Transmit,
)
from gossip.node import GossipNode
from gossip.sealing import Identity, Keyring, ReplayWindow, verify

__all__ = [
    "Address",
    "Event",
    "GossipConfig",
    "GossipNode",
    "Identity",
    "Keyring",
    "KeysChanged",
    "MemberDown",
    "MemberLeft",
    "MemberSuspect",
    "MemberUp",
    "MemberView",
    "Output",
    "Persist",
    "ReplayWindow",
    "StateChanged",
    "Transmit",
    "verify",
]
