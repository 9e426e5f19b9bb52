"""The table of members: the newest claim of each, and what this node makes of it.

Owns states and claims; never a timer or a message. Invariants: a member's state changes to alive
only by a newer claim that it signed itself; at most `dead_members` claims of the down and left
are kept.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

from crdt.clock import Instant
from gossip.config import GossipConfig
from gossip.events import Address, Event, MemberDown, MemberLeft, MemberSuspect, MemberUp
from gossip.messages import MAX_INCARNATION, Claim, canonical_host, make_claim
from gossip.sealing import Identity

ALIVE, SUSPECT, DOWN, LEFT = "alive", "suspect", "down", "left"
MAX_MEMBERS = 4096


@dataclass(slots=True)
class Member:
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
        self._identity = identity
        self._config = config
        self._emit = emit
        self._count = count
        self._table: dict[bytes, Member] = {}
        self._digest: bytes | None = None
        self._live: list[Member] | None = None
        self._down: list[Member] | None = None
        if not 0 <= incarnation <= MAX_INCARNATION // 2:  # far beyond what refutations can reach
            raise ValueError(f"incarnation {incarnation}: this identity is used up, make another")
        self.own = make_claim(identity, incarnation, (canonical_host(address[0]), address[1]))
        self.node_id = identity.node_id

    def __iter__(self) -> Iterator[Member]:
        return iter(self._table.values())

    def get(self, node_id: bytes) -> Member | None:
        """Return a member, or None for strangers and for this node."""
        return self._table.get(node_id)

    def live(self) -> list[Member]:
        """Return the alive and the suspected, in the order in which they were met."""
        if self._live is None:
            self._live = [member for member in self._table.values() if member.live]
        return self._live

    def down(self) -> list[Member]:
        """Return those held for dead, in the order in which they were met."""
        if self._down is None:
            self._down = [member for member in self._table.values() if member.state == DOWN]
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
        self.own = make_claim(self._identity, incarnation, where, left=left)
        self._changed()
        return self.own

    def accept(self, claim: Claim, now: Instant) -> bool:
        """Take another's claim if it is newer and authentic; tell whether it was taken."""
        node_id = claim.node_id
        known = self._table.get(node_id)
        if known is not None and claim.order <= known.claim.order:
            return False
        if known is None and len(self.live()) >= MAX_MEMBERS:
            self._count("dropped_members_full")
            return False
        if not claim.authentic():
            self._count("dropped_claim")
            return False
        state = LEFT if claim.left else ALIVE
        fresh = known is None or known.state != state or known.address != (claim.host, claim.port)
        member = Member(node_id, claim, state, now.mono_s)
        if known is not None and known.state == state:
            member.since_s = known.since_s
        self._table[node_id] = member
        self._changed()
        if fresh and claim.left:
            self._emit(MemberLeft(node_id))
        elif fresh:
            self._emit(MemberUp(node_id, member.address, claim.incarnation))
        self._prune()
        return True

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
        """Return 8 bytes that are equal where the same live members are known; cached."""
        if self._digest is None:
            total = _mark(self.node_id, self.own)
            for member in self.live():
                total ^= _mark(member.node_id, member.claim)
            self._digest = total.to_bytes(8, "big")
        return self._digest

    def roster(self) -> list[tuple[bytes, int, bool]]:
        """Return (id, incarnation, left) of every claim held, own included, by id."""
        claims = [(member.node_id, member.claim) for member in self._table.values()]
        claims.append((self.node_id, self.own))
        return sorted((node_id, claim.incarnation, claim.left) for node_id, claim in claims)

    def claim_of(self, node_id: bytes) -> Claim | None:
        """Return the claim held of a node, this one included."""
        if node_id == self.node_id:
            return self.own
        member = self._table.get(node_id)
        return member.claim if member else None

    def _turn(self, member: Member, state: str, now: Instant) -> None:
        member.state, member.since_s = state, now.mono_s
        self._changed()

    def _changed(self) -> None:
        self._digest = self._live = self._down = None

    def _prune(self) -> None:
        dead = [member for member in self._table.values() if not member.live]
        excess = len(dead) - self._config.dead_members
        if excess > 0:
            dead.sort(key=lambda member: member.since_s)
            for member in dead[:excess]:
                del self._table[member.node_id]
            self._changed()


def _mark(node_id: bytes, claim: Claim) -> int:
    stamp = claim.incarnation.to_bytes(8, "big") + bytes((claim.left,))
    return int.from_bytes(blake2b(node_id + stamp, digest_size=8).digest(), "big")
