"""Values that live only while they are fresh: load and the like.

Owns this node's and the peers' volatile maps; never the log, the journal or the fingerprint.
Invariants: of one boot of an owner the newest sequence wins, and only the owner itself is heard;
they travel within a zone (gossip.neighbours), whatever the size of the fleet.
"""

from collections.abc import Callable
from math import inf

from crdt.clock import Instant
from crdt.codec import DecodeError, Value, decode_value, encode_value
from gossip.broadcast import VOLATILE, Link, Links
from gossip.codec import encode_message
from gossip.config import GossipConfig
from gossip.members import ALIVE, Member, Members
from gossip.messages import MAX_VOLATILE_BYTES, VolatileRequest, VolatileState
from gossip.neighbours import Neighbours


class Volatiles:
    """Push this node's volatile map to its zone, and keep theirs."""

    def __init__(
        self,
        config: GossipConfig,
        members: Members,
        links: Links,
        neighbours: Neighbours,
        count: Callable[[str], None],
    ) -> None:
        self._config = config
        self._members = members
        self._links = links
        self._neighbours = neighbours
        self._count = count
        self._own: dict[str, Value] = {}
        self._blob = b""
        self._others: dict[bytes, dict[str, Value]] = {}
        self._news: set[bytes] = set()  # whose map nobody has asked for yet
        self._alive: set[bytes] = set()  # when news were last asked for
        self._live: list[Member] = []
        self.due_s = inf
        """When the next push is due, in mono seconds."""
        self._pushed_s = -inf
        self.sequence = 0

    def set(self, key: str, value: Value, now: Instant) -> None:
        """Set one of this node's values; above 400 bytes in all nothing changes but a counter."""
        draft = {**self._own, key: value}
        blob = encode_value(draft)
        if len(blob) > MAX_VOLATILE_BYTES:
            self._count("volatile_oversize")
            return
        if blob == self._blob:
            return
        self._own, self._blob = draft, blob
        self.sequence += 1
        self.due_s = max(now.mono_s, self._pushed_s + self._config.volatile_interval_s)

    def get(self, node_id: bytes, key: str) -> Value | None:
        """Return a value of a live member's or of this node's, or None."""
        if node_id == self._members.node_id:
            return self._own.get(key)
        member = self._members.get(node_id)
        if member is None or not member.live:
            return None
        return self._others.get(node_id, {}).get(key)

    def news(self) -> list[bytes]:
        """Return the alive whose map came since the last call, or who were not alive at it; by id.

        O(news log news), O(members) when the live have changed.
        """
        live = self._members.live()
        if live is not self._live:
            alive = {member.node_id for member in live if member.state == ALIVE}
            self._news |= alive - self._alive
            self._live, self._alive = live, alive
        news = sorted(self._news & self._alive)
        self._news.clear()
        return news

    def tick(self, now: Instant) -> None:
        """Push to everybody in the zone when due."""
        if now.mono_s < self.due_s:
            return
        self.due_s, self._pushed_s = inf, now.mono_s
        data = encode_message(VolatileState(self.sequence, self._blob))
        for member in self._neighbours.zone():
            link = self._links.get(member.node_id)
            if link is not None:
                self._links.offer(link, b"V", data, VOLATILE)

    def observe(self, link: Link, sequence: int) -> None:
        """Ask for what a ping or ack of the zone says is newer than what arrived."""
        if sequence > link.volatile_sequence and self._neighbours.near(link.node_id):
            self._links.post(link, VolatileRequest(link.volatile_sequence))

    def on_state(self, link: Link, message: VolatileState, now: Instant) -> None:
        """Take a peer's newer map; raises DecodeError, having changed nothing."""
        if message.sequence <= link.volatile_sequence:
            return
        value = decode_value(message.blob)
        if not isinstance(value, dict):
            raise DecodeError("volatile state is not a map")
        link.volatile_sequence = message.sequence
        self._others[link.node_id] = value
        self._news.add(link.node_id)
        zone = self._neighbours.zone()
        if len(self._others) > 2 * len(zone) + 16:  # forget the gone, now and then
            known = [member.node_id for member in zone if member.node_id in self._others]
            self._others = {node_id: self._others[node_id] for node_id in known}
            self._news.intersection_update(known)

    def on_request(self, link: Link, message: VolatileRequest, now: Instant) -> None:
        """Answer a peer of the zone that lacks the newest."""
        if self.sequence > message.have and self._neighbours.near(link.node_id):
            data = encode_message(VolatileState(self.sequence, self._blob))
            self._links.offer(link, b"V", data, VOLATILE)
