"""Doubt, refutation, death and goodbye (SWIM, sections 4.2 and 4.4).

Owns the suspicion timers and the rumours about members. Never declares anybody down on another's
word: a rumour only starts this node's own timer, and the subject can end it with a newer claim.
"""

from collections.abc import Callable
from math import inf, log10

from crdt.clock import Instant
from gossip.broadcast import URGENT, Link, Links
from gossip.codec import encode_message
from gossip.config import GossipConfig
from gossip.events import Address
from gossip.members import ALIVE, Members
from gossip.messages import Announce, Claim, Message, Suspect

_GOODBYE_S = 1.0  # how long a link outlives its member's leave, to acknowledge it
_CLAIM_S = 10.0  # how long a link lasts whose peer does not claim to be alive


class Suspicion:
    """Decide who is suspected, down or left, and tell the others."""

    def __init__(
        self,
        config: GossipConfig,
        members: Members,
        links: Links,
        met: Callable[[Claim, Instant], None],
    ) -> None:
        self._config = config
        self._members = members
        self._links = links
        self._met = met  # called for every newly accepted claim of an alive member
        self._timers: dict[bytes, float] = {}
        # links to close unless their peer claims to be alive: (when, is this boot gone for good?)
        self._closing: dict[bytes, tuple[float, bool]] = {}
        self.patience = 1.0  # local health: multiplies this node's timeouts

    def deadline(self) -> float:
        """Return when the next suspicion ends, in mono seconds."""
        closing_s = min((due_s for due_s, _ in self._closing.values()), default=inf)
        return min(closing_s, min(self._timers.values(), default=inf))

    def accuse(self, node_id: bytes, now: Instant) -> None:
        """Suspect a member that failed this node's probe, and say so to everybody."""
        member = self._members.get(node_id)
        if member is None or member.state != ALIVE:
            return
        self._start(node_id, now)
        self.tell_all(Suspect(node_id, member.claim.incarnation, self._members.node_id), node_id)

    def on_suspect(self, link: Link, message: Suspect, now: Instant) -> None:
        """Take a rumour: refute it, start doubting, or correct its sender.

        Its incarnation is unsigned: what it says beyond the subject's own claims means nothing.
        """
        if message.subject == self._members.node_id:
            if message.incarnation == self._members.own.incarnation:
                self.renew(message.incarnation)
            # the accuser may be nobody I hold for live: it is told in any case
            self.tell(link, Announce(self._members.own, False), message.subject)
            return
        member = self._members.get(message.subject)
        if member is None:
            return
        if message.incarnation < member.claim.incarnation or member.claim.left:
            self.tell(link, Announce(member.claim, False), message.subject)
        elif message.incarnation == member.claim.incarnation and member.state == ALIVE:
            self._start(message.subject, now)

    def on_announce(self, link: Link, message: Announce, now: Instant) -> None:
        """Take a claim, or answer with a newer one; introduce its subject when it asks for that."""
        claim = message.claim
        node_id = claim.node_id
        if node_id == self._members.node_id:
            # an earlier run of this node (or a thief of its key) claimed more than this one did
            own = self._members.own
            if claim != own and claim.order >= own.order and claim.authentic():
                self.renew(claim.incarnation)
            if claim != own:
                self.tell(link, Announce(self._members.own, False), node_id)
            return
        known = self._members.get(node_id)
        if known is None and node_id != link.node_id and not self._links.may_introduce(link, now):
            return
        if not self._members.accept(claim, now):
            if known is not None and claim.order < known.claim.order:
                self.tell(link, Announce(known.claim, False), node_id)
            return
        self._timers.pop(node_id, None)
        self._closing.pop(node_id, None)
        parting = self._links.get(node_id)
        if not claim.left:
            self._met(claim, now)
        elif parting is not None:  # on another's word it may be an earlier boot that left
            self._closing[node_id] = (now.mono_s + _GOODBYE_S, parting is link)
        if message.introduce:
            self.tell_all(Announce(claim, False), node_id, but=link)

    def greet(self, link: Link, now: Instant, *, introduce: bool) -> None:
        """Begin a new link: say who I am, and what I think of the peer if it is bad."""
        member = self._members.get(link.node_id)
        if member is None or not member.live:
            self._closing[link.node_id] = (now.mono_s + _CLAIM_S, False)
        self.tell(link, Announce(self._members.own, introduce), self._members.node_id)
        self.remind(link)

    def remind(self, link: Link) -> None:
        """Tell a peer that it is doubted or dead here, so that it can refute."""
        member = self._members.get(link.node_id)
        if member is not None and member.state != ALIVE:
            me = self._members.node_id
            rumour = Suspect(link.node_id, member.claim.incarnation, me)
            self.tell(link, rumour, link.node_id)

    def renew(self, above: int, address: Address | None = None, *, left: bool = False) -> None:
        """Issue a newer claim of this node and tell everybody."""
        claim = self._members.renew(above, address, left=left)
        self.tell_all(Announce(claim, False), self._members.node_id)

    def expire(self, now: Instant) -> None:
        """Bury those whose suspicion ran out; close the links of the left and the silent."""
        for node_id in [key for key, due in self._timers.items() if due <= now.mono_s]:
            del self._timers[node_id]
            member = self._members.get(node_id)
            if member is not None and member.live:
                self._members.bury(member, now)
            self._links.close(node_id)
        for node_id, (due_s, gone) in list(self._closing.items()):
            if due_s <= now.mono_s:
                del self._closing[node_id]
                self._links.close(node_id, gone=gone)

    def defer(self, lag_s: float) -> None:
        """Give everybody the time during which this node itself was held up."""
        for node_id in self._timers:
            self._timers[node_id] += lag_s

    def tell(self, link: Link, message: Message, subject: bytes) -> None:
        """Queue membership news for one peer; the newest about a subject replaces older ones."""
        self._links.offer(link, b"M" + subject, encode_message(message), URGENT)

    def tell_all(self, message: Message, subject: bytes, but: Link | None = None) -> None:
        """Queue membership news for every live peer."""
        data = encode_message(message)
        for member in self._members.live():
            link = self._links.get(member.node_id)
            if link is not None and link is not but:
                self._links.offer(link, b"M" + subject, data, URGENT)

    def _start(self, node_id: bytes, now: Instant) -> None:
        member = self._members.get(node_id)
        assert member is not None
        count = len(self._members.live()) + 1
        intervals = self._config.suspicion_intervals * max(1.0, log10(count))
        timeout_s = intervals * self._config.probe_interval_s * self.patience
        self._timers[node_id] = now.mono_s + timeout_s
        self._members.suspect(member, now)
