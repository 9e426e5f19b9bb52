"""The table of members: the newest claim of each, and what this node makes of it.

Owns states and claims; never a timer or a message. Invariants: who is down or has left becomes
alive only by a newer claim that it signed itself; in a small fleet nobody counts as present on
another's word; at most `dead_members` claims are kept of those that are not.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from hashlib import blake2b
from operator import attrgetter
from typing import NamedTuple

from crdt.clock import Instant
from crdt.ranges import EVERYTHING, RangeTree
from gossip.config import GossipConfig
from gossip.events import Address, Event, MemberDown, MemberLeft, MemberSuspect, MemberUp
from gossip.messages import MAX_INCARNATION, Claim, canonical_host, make_claim
from gossip.sealing import Identity

ALIVE, SUSPECT, DOWN, LEFT = "alive", "suspect", "down", "left"
HEARD = "heard"  # another brought its claim, and nobody here has met it: it may be long dead
MAX_MEMBERS = 16384
_ID = attrgetter("node_id")


class Member(NamedTuple):
    """One other member, as this node sees it."""

    node_id: bytes
    claim: Claim
    state: str
    since_s: float

    @property
    def address(self) -> Address:
        """Return where the member says it is."""
        return self.claim.host, self.claim.port

    @property
    def live(self) -> bool:
        """Tell whether it counts as present."""
        return self.state in (ALIVE, SUSPECT)


class Members:
    """All members but this node, and this node's own claim."""

    def __init__(
        self,
        identity: Identity,
        incarnation: int,
        address: Address,
        config: GossipConfig,
        emit: Callable[[Event], None],
        count: Callable[[str], None],
    ) -> None:
        self.identity = identity
        self._config = config
        self._emit = emit
        self._count = count
        self._table: dict[bytes, Member] = {}
        self.tree = RangeTree()
        """Marks of this node's claim and of those of the live; to be read only."""
        self._live: list[Member] = []  # by id; this list and the next are replaced, never changed
        self._down: list[Member] = []
        self._absent: dict[bytes, Member] = {}  # who is not live
        self.heard: dict[bytes, None] = {}
        """Who was only heard of."""
        self.changes = 0
        """How often anything here has changed."""
        if not 0 <= incarnation <= MAX_INCARNATION // 2:  # far beyond what refutations can reach
            raise ValueError(f"incarnation {incarnation}: this identity is used up, make another")
        self.own = make_claim(identity, incarnation, (canonical_host(address[0]), address[1]))
        self.node_id = identity.node_id
        self._mark(self.own, 1)

    def __iter__(self) -> Iterator[Member]:
        """Iterate over those that are, or were, present; the live first, by id."""
        yield from self._live
        yield from (member for member in self._absent.values() if member.state != HEARD)

    def get(self, node_id: bytes) -> Member | None:
        """Return a member, or None for strangers and for this node."""
        return self._table.get(node_id)

    @property
    def small(self) -> bool:
        """Tell whether the fleet is so small that everybody has a link to everybody."""
        return self.tree.count(EVERYTHING) <= self._config.direct_members

    def live(self) -> list[Member]:
        """Return the alive and the suspected, by id; not to be changed."""
        return self._live

    def between(self, low: bytes, high: bytes) -> list[Member]:
        """Return the live whose ids are from low to high, by id. O(log live + found)."""
        live = self._live
        return live[bisect_left(live, low, key=_ID) : bisect_right(live, high, key=_ID)]

    def down(self) -> list[Member]:
        """Return those held for dead, in the order in which they died; not to be changed."""
        return self._down

    def renew(self, above: int, address: Address | None = None, *, left: bool = False) -> Claim:
        """Sign a new claim of this node's whose incarnation is greater than `above`.

        Who has left stays so, whatever is claimed anew. ValueError if the host is no IP address.
        """
        incarnation = min(MAX_INCARNATION, max(above, self.own.incarnation) + 1)
        where = (self.own.host, self.own.port)
        if address is not None:
            where = (canonical_host(address[0]), address[1])
        left = left or self.own.left
        self._mark(self.own, -1)
        self.own = make_claim(self.identity, incarnation, where, left=left)
        self._mark(self.own, 1)
        return self.own

    def accept(self, claim: Claim, now: Instant, *, met: bool) -> bool:
        """Take another's claim if it is newer and authentic; tell whether it was taken.

        `met` says that its subject is in contact with this node.
        """
        node_id = claim.node_id
        known = self._table.get(node_id)
        if known is not None and claim.order <= known.claim.order:
            return False
        if known is None and self.tree.count(EVERYTHING) > MAX_MEMBERS:
            self._count("dropped_members_full")
            return False
        if not claim.authentic(self.identity):
            self._count("dropped_claim")
            return False
        state = self._state_for(claim, known, met)
        since_s = known.since_s if known is not None and known.state == state else now.mono_s
        member = Member(node_id, claim, state, since_s)
        fresh = known is None or known.state != member.state or known.address != member.address
        self._put(member, known)
        if fresh and claim.left:
            self._emit(MemberLeft(node_id))
        elif fresh and member.live:
            self._emit(MemberUp(node_id, member.address, claim.incarnation))
        if not member.live:
            self._prune()
        return True

    def vouch(self, member: Member, now: Instant) -> None:
        """Count one who was suspected, or only heard of, as present: it has answered."""
        if member.state in (SUSPECT, HEARD):
            self._turn(member, ALIVE, now)
            self._emit(MemberUp(member.node_id, member.address, member.claim.incarnation))
        while self.heard and not self.small:  # as if it had been heard now
            self.vouch(self._table[next(iter(self.heard))], now)

    def forget(self, node_id: bytes) -> None:
        """Drop a member that is not live; from then on it is a stranger."""
        member = self._table.get(node_id)
        if member is not None and not member.live:
            del self._table[node_id], self._absent[node_id]
            self.heard.pop(node_id, None)
            self._changed()

    def suspect(self, member: Member, now: Instant) -> None:
        """Doubt an alive member."""
        self._turn(member, SUSPECT, now)
        self._emit(MemberSuspect(member.node_id))

    def bury(self, member: Member, now: Instant) -> None:
        """Declare a suspected member down."""
        self._turn(member, DOWN, now)
        self._emit(MemberDown(member.node_id))
        self._prune()

    def digest(self) -> bytes:
        """Return 8 bytes that are equal where the same live members are known. O(1)."""
        return self.tree.sum_of(EVERYTHING)[:8]

    def roster(
        self, low: bytes = bytes(16), high: bytes = b"\xff" * 16
    ) -> list[tuple[bytes, int, bool]]:
        """Return (id, incarnation, left) of the claims held from low to high, own included."""
        absent = [one for one in self._absent.values() if low <= one.node_id <= high]
        claims = [(one.node_id, one.claim) for one in self.between(low, high) + absent]
        if low <= self.node_id <= high:
            claims.append((self.node_id, self.own))
        return sorted((node_id, claim.incarnation, claim.left) for node_id, claim in claims)

    def claim_of(self, node_id: bytes) -> Claim | None:
        """Return the claim held of a node, this one included."""
        if node_id == self.node_id:
            return self.own
        member = self._table.get(node_id)
        return member.claim if member else None

    def _state_for(self, claim: Claim, known: Member | None, met: bool) -> str:
        if claim.left:
            return LEFT
        if met or (known is not None and known.state != HEARD):
            return ALIVE
        # somebody who slept may bring the claim of a member that died long ago. In a large fleet
        # not everybody can meet everybody
        return HEARD if self.small else ALIVE

    def _put(self, member: Member, known: Member | None) -> None:
        node_id = member.node_id
        was = known.claim if known is not None and known.live else None
        now = member.claim if member.live else None
        if was is not now:
            if was is not None:
                self._mark(was, -1)
            if now is not None:
                self._mark(now, 1)
        self._table[node_id] = member
        if was is not None or now is not None:
            place = bisect_left(self._live, node_id, key=_ID)
            here = [member] if now is not None else []
            self._live = self._live[:place] + here + self._live[place + (was is not None) :]
        if was is None or now is None:
            self._absent.pop(node_id, None)
            self.heard.pop(node_id, None)
            if now is None:
                self._absent[node_id] = member
                if member.state == HEARD:
                    self.heard[node_id] = None
        self._changed()

    def _changed(self) -> None:
        self._down = [one for one in self._absent.values() if one.state == DOWN]
        self.changes += 1

    def _turn(self, member: Member, state: str, now: Instant) -> None:
        known = self._table[member.node_id]
        self._put(Member(known.node_id, known.claim, state, now.mono_s), known)

    def _mark(self, claim: Claim, by: int) -> None:
        stamp = claim.incarnation.to_bytes(8, "big") + bytes((claim.left,))
        mark = blake2b(claim.node_id + stamp, digest_size=16).digest()
        self.tree.change(claim.node_id, by * int.from_bytes(mark, "big"), count=by)

    def _prune(self) -> None:
        excess = len(self._absent) - self._config.dead_members
        if excess > 0:
            dead = list(self._absent.values())
            dead.sort(key=lambda member: (member.state != HEARD, member.since_s))
            for member in dead[:excess]:
                self.forget(member.node_id)
