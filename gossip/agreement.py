"""What the whole fleet is known to have had, and what time it thinks it is.

Owns the peers' last agreements with this replica and their clocks; never changes the replica.
Invariants: nothing counts as settled while a member that is not forgotten, or the author of
anything held here, has never agreed; a clock that has been set is corrected only by a majority.
"""

from itertools import chain

from crdt.clock import DAWN_MS, Instant
from crdt.store import Store
from gossip.config import GossipConfig
from gossip.members import HEARD, LEFT, Members

_LEAST, _MOST = 3, 15  # peers whose clocks are asked for: at least, and at most


class Agreement:
    """Gather what pings and acks say of the others' replicas and clocks, and pass it on."""

    def __init__(self, config: GossipConfig, store: Store, members: Members) -> None:
        self._interval_s = config.probe_interval_s
        self._store = store
        self._members = members
        self._held: dict[bytes, int] = {}  # by member: the generation it had all of
        self._leads_ms: dict[bytes, float] = {}  # by member: its wall clock less this one's mono
        self._digest = b""  # of the members when those of others were last dropped
        self._majority = False  # whether the last hint was one
        self._settled = 0
        self._laggard = b""  # one that was not further than that; mostly it still is not
        self._due_s = 0.0

    def held(self, node_id: bytes, generation: int) -> None:
        """Note that a member held all that this replica held at a generation."""
        if self._owes(node_id):
            self._held[node_id] = max(generation, self._held.get(node_id, 0))

    def clock(self, node_id: bytes, wall_s: int, now: Instant) -> None:
        """Note a live member's wall clock, the last one of 15 members."""
        if not self._is_live(node_id):
            return
        self._leads_ms.pop(node_id, None)
        self._leads_ms[node_id] = (wall_s - now.mono_s) * 1000
        if len(self._leads_ms) > _MOST:
            del self._leads_ms[next(iter(self._leads_ms))]

    def tick(self, now: Instant) -> None:
        """Tell the store, once per probe interval. O(members + origins) as news settle."""
        if now.mono_s < self._due_s:
            return
        self._due_s = now.mono_s + self._interval_s
        self._settle()
        self._tell_time(now)

    def _tell_time(self, now: Instant) -> None:
        """Hint at the time that most live members' clocks have reached; of many, 8 speak for all.

        Of all members, this one included, since half a fleet that is ahead is no majority; and not
        of those known so far. Fewer, be it one, are believed only where the own clock was plainly
        never set.
        """
        if self._members.digest() != self._digest:
            self._digest = self._members.digest()
            leads_ms = self._leads_ms.items()
            self._leads_ms = {one: lead for one, lead in leads_ms if self._is_live(one)}
        leads, live = sorted(self._leads_ms.values(), reverse=True), len(self._members.live())
        unset = now.wall_ms < DAWN_MS
        most = min(live if unset else live + 1, _MOST) // 2 + 1
        majority = len(leads) >= max(_LEAST, most)
        if majority or (unset and leads and len(leads) == live):
            self._majority = majority
            wall_ms = leads[most - 1] + now.mono_s * 1000
            self._store.clock.hint(int(wall_ms), now)
        elif not unset and not self._majority:
            self._store.clock.hint(None, now)

    def _settle(self) -> None:
        held, before = self._held, self._settled
        if before == self._store.generation or not held:
            return
        if held.get(self._laggard, 0) <= before and self._owes(self._laggard):
            return
        # an author may be down and, since this node's own restart, in nobody's table
        owing = set()
        for one in chain((member.node_id for member in self._members), self._store.origins):
            if self._owes(one):
                if held.get(one, 0) <= before:
                    self._laggard = one
                    return
                owing.add(one)
        self._held = {one: generation for one, generation in held.items() if one in owing}
        if owing:
            self._settled = min(self._held.values())
            self._store.settled(self._settled)

    def _is_live(self, node_id: bytes) -> bool:
        member = self._members.get(node_id)
        return member is not None and member.live

    def _owes(self, node_id: bytes) -> bool:
        """Tell whether what is settled has to wait for a member, or for an author's return."""
        member = self._members.get(node_id)
        if member is None or member.state == HEARD:
            return node_id in self._store.origins and node_id != self._members.node_id
        # who has forked holds for good what all others have dropped
        return member.state != LEFT and not self._store.evidence(node_id)
