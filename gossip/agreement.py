"""What the whole fleet is known to have had, and what time it thinks it is.

Owns the peers' last agreements with this replica and their clocks; never changes the replica.
Invariants: nothing counts as settled while a member that is not forgotten, or the author of
anything held here, has never agreed; no single peer of several moves the fleet's time.
"""

from crdt.clock import Instant
from crdt.store import Store
from gossip.config import GossipConfig
from gossip.members import LEFT, Members

_CLOCKS = 3  # peers whose median is trusted


class Agreement:
    """Gather what pings and acks say of the others' replicas and clocks, and pass it on."""

    def __init__(self, config: GossipConfig, store: Store, members: Members) -> None:
        self._interval_s = config.probe_interval_s
        self._store = store
        self._members = members
        self._held: dict[bytes, int] = {}  # by member: the generation it had all of
        self._leads_ms: dict[bytes, float] = {}  # by member: its wall clock less this one's mono
        self._settled = 0
        self._due_s = 0.0

    def held(self, node_id: bytes, generation: int) -> None:
        """Note that a member held all that this replica held at a generation."""
        self._held[node_id] = max(generation, self._held.get(node_id, 0))

    def clock(self, node_id: bytes, wall_s: int, now: Instant) -> None:
        """Note a member's wall clock."""
        self._leads_ms[node_id] = (wall_s - now.mono_s) * 1000

    def tick(self, now: Instant) -> None:
        """Tell the store, once per probe interval. O(members + origins) while news settle."""
        if now.mono_s < self._due_s:
            return
        self._due_s = now.mono_s + self._interval_s
        self._settle(now)
        live = {member.node_id for member in self._members.live()}
        self._leads_ms = {one: lead for one, lead in self._leads_ms.items() if one in live}
        leads = sorted(self._leads_ms.values())
        if leads and len(leads) >= min(_CLOCKS, len(live)):
            wall_ms = int(leads[(len(leads) - 1) // 2] + now.mono_s * 1000)
            self._store.fleet_wall(wall_ms, now)

    def _settle(self, now: Instant) -> None:
        if self._settled == self._store.generation or not self._held:
            return
        # an author may be down and, since this node's own restart, in nobody's table
        owing = {*self._store.knowledge(), *(member.node_id for member in self._members)}
        owing -= {member.node_id for member in self._members if member.state == LEFT}
        owing.discard(self._members.node_id)
        self._held = {one: held for one, held in self._held.items() if one in owing}
        settled = min((self._held.get(one, 0) for one in owing), default=0)
        if settled > self._settled:
            self._settled = settled
            self._store.settled(settled, now)
