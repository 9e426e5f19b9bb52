"""Who is gone for good, and when this node writes of its own accord so that all forget it.

Owns since when members and authors have been away; never commits, and never speaks of a member
that is live here. Invariant: nobody is retired by who saw, for as long as that, fewer members than
were away. So of two halves of a divided fleet at most one gives up the other, as long as none of
them gets new members; and who comes back from the lesser gives up nobody that it has yet to meet.
"""

from collections.abc import Callable
from hashlib import blake2b
from math import inf

from crdt.clock import Instant
from crdt.store import Store
from gossip.config import GossipConfig
from gossip.members import LEFT, Members

_LOOK_S = 60.0
_LOOKS = 8  # at least, until somebody is overdue
_AT_ONCE = 8  # members whose words are said again in one commit


class Forgetting:
    """Retire members that have been away for too long, and weed this node's own log."""

    def __init__(
        self, config: GossipConfig, store: Store, members: Members, count: Callable[[str], None]
    ) -> None:
        self._interval_s = config.probe_interval_s
        self._limit_s = config.retire_after_s
        self._look_s = min(_LOOK_S, config.retire_after_s / _LOOKS)
        self._store = store
        self._members = members
        self._count = count
        self._away_s: dict[bytes, float] = {}  # since when, by member or author
        self._lesser_s = -inf  # when more were last away than here
        self._due_s = self._look_due_s = 0.0

    def tick(self, now: Instant) -> bool:
        """Say whether a commit now would make something forgotten.

        Once per probe interval, at little cost; O(members + origins) every minute.
        """
        if now.mono_s < self._due_s:
            return False
        self._due_s = now.mono_s + self._interval_s
        if now.mono_s >= self._look_due_s:
            self._look_due_s = now.mono_s + self._look_s
            self._look(now)
            if not self._in_charge():
                self._lesser_s = now.mono_s
            overdue = self._overdue(now)
            if overdue and self._forget(overdue, now):
                return True
        return self._store.sweep(now)

    def _look(self, now: Instant) -> None:
        """Note who is away: of what is not live here, whatever was present or has a log."""
        here = {member.node_id for member in self._members.live()}
        here.add(self._members.node_id)
        met = {member.node_id: member.since_s for member in self._members if not member.live}
        unmet = sorted(self._store.origins - here - met.keys())
        before_s = self._away_s
        self._away_s = met | {one: before_s.get(one, now.mono_s) for one in unmet}

    def _overdue(self, now: Instant) -> list[bytes]:
        """Return whom to forget now, or, if they have a log, whom it is this node's turn to."""
        turns, overdue = len(self._members.live()) + 1, []
        for node_id, since_s in self._away_s.items():
            wait_s = self._limit_s
            if node_id in self._store.origins:
                wait_s += self._look_s * self._turn(node_id, turns)
            if now.mono_s - max(since_s, self._lesser_s) >= wait_s:
                overdue.append(node_id)
        return overdue

    def _in_charge(self) -> bool:
        """Tell whether more are here than away: at equal numbers, whether the lowest id is here.

        Those who said goodbye are not on the other side of a cut.
        """
        here = [self._members.node_id, *(member.node_id for member in self._members.live())]
        left = {member.node_id for member in self._members if member.state == LEFT}
        away = self._away_s.keys() - left
        if len(here) == len(away):
            return min(here) < min(away)
        return len(here) > len(away)

    def _forget(self, overdue: list[bytes], now: Instant) -> bool:
        """Retire members, and let go of those whose log is over; tell whether a commit is due."""
        staged = 0
        for node_id in overdue:
            if node_id not in self._store.origins:
                self._members.forget(node_id)
            elif staged < _AT_ONCE:
                try:
                    staged += self._store.retire(node_id, now)
                except ValueError:  # no room here: somebody else's turn comes
                    self._count("retirements_refused")
        return staged > 0

    def _turn(self, node_id: bytes, turns: int) -> int:
        """Draw after how many looks a member is this node's to retire; of all about one begins."""
        drawn = blake2b(self._members.node_id + node_id, digest_size=8).digest()
        return int.from_bytes(drawn, "big") % turns
