"""Values of applications, shared with the whole fleet: small ones by gossip, large by reference.

A value of at most 700 bytes is a fleet register. Of a longer one the register holds only the
digest; who has the bytes is a fleet set, and they are fetched over HTTP. Three members, chosen by
the digest, fetch them at once, so that they outlive their author.

Owns the registers under `app/`, the sets under `artifact/` and the folder of artifacts. Never
returns bytes that do not match their digest. Invariant: who is listed as a holder has the bytes
on its disk, or takes itself off the list when it finds that it has not.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from hashlib import sha256

import msgpack

from crdt import Store, Value
from crdt.values import MAX_VALUE_BYTES, encode_value
from edge_node import clock
from edge_node.fleet.artifacts import MAX_ARTIFACT_BYTES, Artifacts, is_digest
from edge_node.fleet.peers import PeerError, Peers
from edge_node.fleet.writes import Writes

log = logging.getLogger(__name__)

PREFIX = "app/"
HOLDERS = "artifact/"
KEEPERS = 3
FETCH_TIMEOUT_S = 10.0
_SHOWS_AFTER_S = 60.0
_REFERENCE = "$artifact"


class Unavailable(Exception):
    """No living holder of the value's bytes answered."""


class SharedValues:
    """Read and write the applications' values; keep what this node has to keep."""

    def __init__(
        self,
        node_id: bytes,
        store: Store,
        writes: Writes,
        peers: Peers,
        artifacts: Artifacts,
        living: Callable[[], Iterable[bytes]],
    ) -> None:
        """`living` gives the ids of the live members, this node included."""
        self._node_id = node_id
        self._store = store
        self._writes = writes
        self._peers = peers
        self._artifacts = artifacts
        self._living = living
        self._written_s: dict[str, float] = {}  # digests whose register may not show yet

    async def set(self, key: str, value: Value) -> None:
        """Set a value, whatever its size up to 4 MiB; None deletes it.

        Returns once it is staged; a large one's bytes are durable here by then. Raises ValueError
        (not plain data, too long, a reserved form, key or log too large), ArtifactsFull, OSError.
        """
        if isinstance(value, dict) and _REFERENCE in value:
            raise ValueError(f"a map with the key {_REFERENCE} is reserved for references")
        packed = encode_value(value)
        if len(packed) > MAX_VALUE_BYTES:
            digest = sha256(packed).hexdigest()
            self._written_s[digest] = time.monotonic()
            await asyncio.to_thread(self._artifacts.put, packed)
            self._list(digest, held=True)
            value = {_REFERENCE: digest, "size_bytes": len(packed)}
        await self._writes.acquainted.wait()
        self._store.set_fleet(PREFIX + key, value, clock.now())
        self._writes.commit()

    async def get(self, key: str) -> Value:
        """Return a value, None if there is none.

        Raises Unavailable if it is a large one whose holders do not answer, OSError.
        """
        value = self._store.fleet(PREFIX + key, clock.now())
        digest = _digest_of(value)
        if digest is None:
            return value
        data = await asyncio.to_thread(self._artifacts.get, digest)
        if data is None:
            data = await self._fetch(digest)
        try:
            found: Value = msgpack.unpackb(data, strict_map_key=True)
        except (ValueError, msgpack.UnpackException) as error:
            raise Unavailable(f"{key}: its bytes are no value") from error
        return found

    async def bytes_of(self, digest: str) -> bytes | None:
        """Return an artifact's bytes for a peer, None if this node does not hold it."""
        return await asyncio.to_thread(self._artifacts.get, digest)

    async def keep(self) -> None:
        """Fetch what this node has to keep, drop what no value refers to any more."""
        items = self._store.fleet_items(PREFIX, clock.now())
        wanted = {digest for _, value in items if (digest := _digest_of(value)) is not None}
        late_s = time.monotonic() - _SHOWS_AFTER_S
        self._written_s = {one: when for one, when in self._written_s.items() if when > late_s}
        wanted |= self._written_s.keys()
        held = set(await asyncio.to_thread(self._artifacts.digests))
        for digest in sorted(wanted - held):
            if self._node_id in _keepers(digest, self._living()):
                try:
                    await self._fetch(digest)
                except (Unavailable, OSError, ValueError) as error:
                    log.warning("%s is not kept here yet: %s", digest[:12], error)
        for digest in sorted(held - wanted):
            await asyncio.to_thread(self._artifacts.drop, digest)
        listed = {key.removeprefix(HOLDERS) for key in self._store.set_keys(HOLDERS)}
        for digest in sorted(wanted & held | listed - wanted):
            self._list(digest, held=digest in wanted)
        for digest in sorted(listed & wanted - held):
            if digest not in await asyncio.to_thread(self._artifacts.digests):
                self._list(digest, held=False)
        self._writes.commit()

    async def _fetch(self, digest: str) -> bytes:
        """Get an artifact from a holder, store it and say so."""
        holders = [one for one in self._store.elements(HOLDERS + digest) if isinstance(one, bytes)]
        living = set(self._living())
        for holder in _ranked(digest, [one for one in holders if one in living]):
            if holder == self._node_id:
                continue
            try:
                data = await self._peers.artifact(holder, digest, FETCH_TIMEOUT_S)
            except PeerError as error:
                log.info("%s from %s: %s", digest[:12], self._peers.name(holder), error)
                continue
            if data is not None and sha256(data).hexdigest() == digest:
                await asyncio.to_thread(self._artifacts.put, data)
                self._list(digest, held=True)
                self._writes.commit()
                return data
        raise Unavailable(f"no living holder of {digest[:12]} has answered")

    def _list(self, digest: str, *, held: bool) -> None:
        """Say in the fleet's set whether this node holds an artifact."""
        key = HOLDERS + digest
        if (self._node_id in self._store.elements(key)) != held:
            change = self._store.add if held else self._store.remove
            self._writes.stage(change, key, self._node_id)


def _digest_of(value: Value) -> str | None:
    """Return the digest that a register's value refers to, None if it is the value itself."""
    if not isinstance(value, dict) or _REFERENCE not in value:
        return None
    digest, size = value[_REFERENCE], value.get("size_bytes")
    good = isinstance(digest, str) and isinstance(size, int) and size <= MAX_ARTIFACT_BYTES
    return str(digest) if good and is_digest(str(digest)) else None


def _ranked(digest: str, nodes: Iterable[bytes]) -> list[bytes]:
    """Order nodes by rendezvous hashing (Thaler and Ravishankar 1998): the same everywhere."""
    return sorted(nodes, key=lambda node: sha256(digest.encode() + node).digest())


def _keepers(digest: str, nodes: Iterable[bytes]) -> list[bytes]:
    return _ranked(digest, nodes)[:KEEPERS]
