"""Who belongs to the fleet: rotating its key, and revoking members.

Owns the fleet registers ``revoked/ID``; the ring belongs to `FleetKeys`, its spreading to gossip.
Never shows a key. Invariant: no rotation locks a member out that is known to lack the current key,
unless that is asked for.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import Any

from crdt import Store, Value
from edge_node import clock
from edge_node.fleet.directory import REVOKED, is_revoked
from edge_node.fleet.journal import JournalFull
from edge_node.fleet.keyring import FleetKeys
from edge_node.fleet.writes import Writes
from gossip import GossipNode

log = logging.getLogger(__name__)

DURABLE_TIMEOUT_S = 3.0
_KEY_BYTES = 32


class TrustError(Exception):
    """The fleet's keys or members may not be changed so; the text says why and what to do."""


class Trust:
    """The fleet's keys and revocations as this node sees and changes them."""

    def __init__(
        self,
        own: bytes,
        store: Store,
        gossip: GossipNode,
        keys: FleetKeys,
        writes: Writes,
        kick: Callable[[], None],
        name_of: Callable[[bytes], str],
        keep_previous_s: Callable[[], float],
    ) -> None:
        self._own = own
        self._store = store
        self._gossip = gossip
        self._keys = keys
        self._writes = writes
        self._kick = kick
        self._name_of = name_of
        self._keep_previous_s = keep_previous_s

    def describe(self) -> dict[str, Any]:
        """Describe the keys, but no secret: epochs, ages, who holds the current one and who not."""
        ring, now = self._keys.ring, clock.now()
        left_s = self._keys.previous_left_s(self._keep_previous_s(), now)
        return {
            "epoch": ring.current.number,
            "age_s": self._keys.age_s(now),
            "previous": None if ring.previous is None else ring.previous.number,
            "previous_left_s": left_s,
            "durable": self._keys.durable,
            "current": [self._name_of(node) for node in self._holders(behind=False)],
            "behind": [self._name_of(node) for node in self._holders(behind=True)],
        }

    async def rotate(self, number: int, force: bool) -> None:
        """Give the fleet a new key under the next number; return when it is durable here.

        Raises:
            TrustError: it is not the next number, or locks members out; nothing has changed.
            JournalFull: the fleet has the key, but it is not durable here yet.
        """
        current = self._keys.ring.current.number
        if number != current + 1:
            raise TrustError(
                f"key epoch {number} does not follow: the current one is {current}, perhaps since "
                "a moment ago; look with: edge-node keys"
            )
        behind = [self._name_of(node) for node in self._holders(behind=True)]
        if behind and not force:
            raise TrustError(
                f"{', '.join(behind)} would be locked out, without the key of now: wait until "
                "they have been back, or revoke them, or force it"
            )
        if not self._gossip.rotate(number, secrets.token_bytes(_KEY_BYTES), clock.now()):
            raise TrustError(f"key epoch {number} is too large: give the fleet a new secret file")
        self._kick()
        deadline_s = time.monotonic() + DURABLE_TIMEOUT_S
        while not self._keys.durable:
            if time.monotonic() > deadline_s:
                problem = self._keys.problem or "it is not durable on this node yet"
                raise JournalFull(f"the fleet has key epoch {number}, but {problem}")
            await asyncio.sleep(0.01)

    async def revoke(self, text: str, revoked: bool) -> bytes:
        """Revoke the member that an id, its beginning or a name means, or take it back in.

        Return its id when the register shows it.

        Raises:
            KeyError: there is no such member.
            ValueError: several could be meant.
            TrustError: it is this node.
            JournalFull: the change could not be made durable yet; it waits for the disk.
        """
        node = self._resolve(text)
        if node == self._own:
            raise TrustError("a node does not revoke itself: ask another one")
        key = REVOKED + node.hex()
        value: Value = {"name": self._name_of(node)} if revoked else None
        await self._writes.acquainted.wait()
        if is_revoked(self._store, node) != revoked:
            if not self._writes.stage(self._store.set_fleet, key, value, clock.now()):
                raise JournalFull(self._writes.refused[key])
            self._writes.commit()
        deadline_s = time.monotonic() + DURABLE_TIMEOUT_S
        while is_revoked(self._store, node) != revoked:
            if time.monotonic() > deadline_s:
                raise JournalFull(self._writes.waiting or "the change is not durable yet")
            await asyncio.sleep(0.01)
        return node

    def enforce(self) -> None:
        """Close the links to who is revoked."""
        for member in self._gossip.members():
            node = member.node_id
            if node != self._own and is_revoked(self._store, node):
                if member.state in ("alive", "suspect"):
                    log.warning("node %s is revoked", self._name_of(node))
                self._gossip.expel(node)

    @property
    def problems(self) -> list[str]:
        """Return what stands between this node and the fleet's trust."""
        problems = [self._keys.problem]
        if is_revoked(self._store, self._own):
            problems.append(
                "the fleet has revoked this node; on another one: edge-node members restore "
                + self._own.hex()
            )
        return problems

    def _holders(self, *, behind: bool) -> list[bytes]:
        """Return who has said that it holds the current key, or one before; the revoked not."""
        current = self._keys.ring.current.number
        found = []
        for node, key, record in self._store.owners("node"):
            number = record.get("key_epoch") if key == "node" and isinstance(record, dict) else None
            if isinstance(number, int) and not is_revoked(self._store, node):
                number = current if node == self._own else number
                if (number < current) == behind:
                    found.append(node)
        return found

    def _resolve(self, text: str) -> bytes:
        if re.fullmatch(r"[0-9a-f]{32}", text):
            return bytes.fromhex(text)  # known or not: it may be met later
        known = {member.node_id for member in self._gossip.members()}
        known |= {node for node, key, _ in self._store.owners("node") if key == "node"}
        meant = {node for node in known if text == self._name_of(node)}
        if not meant and re.fullmatch(r"[0-9a-f]{4,31}", text):
            meant = {node for node in known if node.hex().startswith(text)}
        if len(meant) > 1:
            raise ValueError(
                f"{text} means {len(meant)} nodes; edge-node peers --json shows whole ids"
            )
        if not meant:
            raise KeyError(f"no node {text}; edge-node peers lists those that are known")
        return meant.pop()
