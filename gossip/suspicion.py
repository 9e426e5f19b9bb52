"""Doubt, refutation, death and goodbye (SWIM, sections 4.2 and 4.4; Lifeguard, section IV).

Owns the suspicion timers and the rumours about members. Never declares anybody down on another's
word: a rumour only starts this node's own timer, which a few independent ones shorten. The subject
ends it with a newer claim everywhere, or by answering this node's own pings here.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import inf, log, log10

from crdt.clock import Instant
from gossip.broadcast import PROMPT, URGENT, Link, Links
from gossip.codec import encode_message
from gossip.config import GossipConfig
from gossip.events import Address
from gossip.limits import Rates
from gossip.members import ALIVE, DOWN, HEARD, Member, Members
from gossip.messages import Announce, Claim, Suspect
from gossip.pings import Pings
from gossip.spread import ALL, Spread

_GOODBYE_S = 1.0  # how long a link outlives its member's leave, to acknowledge it
_CLAIM_S = 10.0  # how long a link lasts whose peer does not claim to be alive
_CONFIRMATIONS = 3  # after the first accusation, to make a suspicion as short as it gets
_CORRECTORS = 3  # of all who know better than an accuser
_CHECK_FROM, _CHECK_TO = 0.25, 0.5  # of the shortest suspicion: when each looks for itself
# of the probe interval, since when many die at once their turns come in a close row: no two looks
# at the suspicions are closer, and calls and pings that are due so soon are made with others
_GRAIN, _TOGETHER = 0.05, 0.2
_CALL_BEFORE = 0.25  # of it: so long before the end the subject is called
# what one peer may cause: rumours taken, and refutations of what it says of this node
_RUMOURS_PER_S, _RUMOURS_BURST = 32.0, 512.0
_REFUTATIONS_PER_S, _REFUTATIONS_BURST = 1.0, 8.0


@dataclass(slots=True)
class _Doubt:
    begun_s: float
    least_s: float
    most_s: float
    wanted: int  # confirmations that make it last `least_s`
    check_s: float  # when this node next pings the subject
    floor_s: float = -inf  # not buried before: somebody may have answered already
    checked: bool = False
    called: bool = False
    accusers: dict[bytes, None] = field(default_factory=dict)
    bearers: dict[bytes, None] = field(default_factory=dict)
    end_s: float = inf  # when it ends in death
    call_s: float = inf  # when the subject is called, the last thing before
    due_s: float = inf  # when the first of all these is due

    def weigh(self) -> None:
        """Fix the times anew after a change: Lifeguard's logarithmic decay."""
        confirmed = max(0, len(self.accusers) - 1)
        share = log(confirmed + 1) / log(self.wanted + 1) if self.wanted else 1.0
        end_s = self.begun_s + self.most_s - (self.most_s - self.least_s) * share
        self.end_s = max(self.floor_s, end_s)
        self.call_s = inf if self.called else self.end_s - self.least_s * _CALL_BEFORE
        self.due_s = min(self.check_s, self.call_s, self.end_s)

    def confirm(self, accuser: bytes, bearer: bytes) -> bool:
        """Count an accusation, once for each accuser; tell whether it was still wanted.

        Who accuses is unsigned, so nobody is believed to bring more than one.
        """
        if len(self.accusers) > self.wanted or accuser in self.accusers or bearer in self.bearers:
            return False
        self.accusers[accuser] = None
        self.bearers[bearer] = None
        self.weigh()
        return True


class Suspicion:
    """Decide who is suspected, down or left, and tell the others."""

    def __init__(
        self,
        config: GossipConfig,
        rng: random.Random,
        members: Members,
        links: Links,
        spread: Spread,
        pings: Pings,
        met: Callable[[Claim, Instant], None],
        call: Callable[[Address, Instant], None],
        count: Callable[[str], None],
    ) -> None:
        self._config = config
        self._rng = rng
        self._members = members
        self._links = links
        self._spread = spread
        self._pings = pings
        self._met = met  # called for every newly accepted claim of a member that has not left
        self._call = call
        self._count = count
        self._doubts: dict[bytes, _Doubt] = {}
        # links to close unless their peer claims to be alive: (when, is this boot gone for good?)
        self._closing: dict[bytes, tuple[float, bool]] = {}
        self.due_s = inf
        """When this wants the timer, in mono seconds; maybe a little too early or too late."""
        self._rest_s = -inf  # not before
        self._rumours = Rates(_RUMOURS_PER_S, _RUMOURS_BURST)
        self._refutations = Rates(_REFUTATIONS_PER_S, _REFUTATIONS_BURST)
        self.patience = 1.0  # local health: multiplies this node's timeouts

    def accuse(self, node_id: bytes, now: Instant) -> None:
        """Suspect a member that does not answer this node's pings, and say so to everybody."""
        member = self._members.get(node_id)
        if member is None or not member.live:
            return
        if self._count_in(member, self._members.node_id, self._members.node_id, now):
            me = self._members.node_id
            self._tell_all(Suspect(node_id, member.claim.incarnation, me, ALL), now)

    def vouch(self, node_id: bytes, now: Instant) -> None:
        """Believe what this node hears for itself: the member answered it just now."""
        member = self._members.get(node_id)
        if member is not None:
            self._doubts.pop(node_id, None)
            self._members.vouch(member, now)

    def on_suspect(self, link: Link, message: Suspect, now: Instant) -> None:
        """Take a rumour: refute it, start doubting, count it in, or correct its sender.

        Its incarnation is unsigned: beyond the subject's own claims it is but a reason to ask.
        """
        if message.subject == self._members.node_id:
            self._refute(link, message, now)
            return
        member = self._members.get(message.subject)
        if member is None:
            return
        if message.incarnation < member.claim.incarnation or member.claim.left:
            # its subject answers the accuser as well, and the claim reaches all by itself
            if message.accuser == link.node_id and self._chosen(_CORRECTORS):
                self.tell(link, Announce(member.claim, 0))
            return
        teller = self._members.get(link.node_id)
        if teller is None or not teller.live:
            return
        if not self._rumours.take(link.node_id, now):
            self._count("dropped_rumours")
        elif message.incarnation > member.claim.incarnation:
            if member.live:  # whoever has the later claim answers this one with it
                self.tell(link, Announce(member.claim, 0))
        elif self._count_in(member, message.accuser, link.node_id, now):
            self._pass_on(message, now, link)

    def on_announce(self, link: Link, message: Announce, now: Instant) -> None:
        """Take a claim, or answer with what is newer; pass news on."""
        claim = message.claim
        node_id = claim.node_id
        if node_id == self._members.node_id:
            # an earlier run of this node (or a thief of its key) claimed more than this one did
            own = self._members.own
            if (
                claim != own
                and claim.order >= own.order
                and claim.authentic(self._members.identity)
            ):
                self.renew(claim.incarnation, now)
            if claim != own:
                self.tell(link, Announce(self._members.own, 0))
            return
        known = self._members.get(node_id)
        if known is None and node_id != link.node_id and not self._links.may_introduce(link, now):
            return
        parting = self._links.get(node_id)
        if not self._members.accept(claim, now, met=parting is not None):
            if known is None or claim.order > known.claim.order:
                self._links.fault(link, now)
            else:
                self._correct(link, claim, known)
            return
        self._doubts.pop(node_id, None)
        self._closing.pop(node_id, None)
        if not claim.left:
            self._met(claim, now)
        elif parting is not None:  # on another's word it may be an earlier boot that left
            self._close_at(node_id, now.mono_s + _GOODBYE_S, gone=parting is link)
        self._pass_on(message, now, link)

    def greet(self, link: Link, now: Instant, *, introduce: bool) -> None:
        """Begin a new link: say who I am, and what I think of the peer if it is bad."""
        member = self._members.get(link.node_id)
        if member is not None and member.state == HEARD:
            self._members.vouch(member, now)
        elif member is None or not member.live:
            self._close_at(link.node_id, now.mono_s + _CLAIM_S, gone=False)
        self.tell(link, Announce(self._members.own, ALL if introduce else 0))
        self.remind(link)

    def remind(self, link: Link) -> None:
        """Tell a peer that it is doubted or dead here, so that it can refute."""
        member = self._members.get(link.node_id)
        if member is not None and member.state != ALIVE:
            self._blame(link, member)

    def renew(
        self, above: int, now: Instant, address: Address | None = None, *, left: bool = False
    ) -> None:
        """Issue a newer claim of this node and tell everybody."""
        self._tell_all(Announce(self._members.renew(above, address, left=left), ALL), now)

    def tick(self, now: Instant) -> None:
        """Look for oneself at the suspected, bury them when it is time; close dead links."""
        if now.mono_s < self.due_s:
            return
        interval_s = self._config.probe_interval_s
        soon_s = now.mono_s + _TOGETHER * interval_s
        due = [one for one in self._doubts.items() if one[1].due_s <= soon_s]
        for node_id, doubt in due:
            if doubt.call_s <= soon_s:
                self._call_last(node_id, doubt, now)
            elif doubt.end_s <= now.mono_s:
                self._bury(node_id, now)
            elif doubt.check_s <= soon_s:
                self._check(node_id, doubt, now)
        for node_id, (due_s, gone) in list(self._closing.items()):
            if due_s <= now.mono_s:
                del self._closing[node_id]
                self._links.close(node_id, gone=gone)
        self._rest_s = now.mono_s + _GRAIN * interval_s
        self.due_s = inf
        self._schedule(min((doubt.due_s for doubt in self._doubts.values()), default=inf))
        self._schedule(min((due_s for due_s, _ in self._closing.values()), default=inf))

    def defer(self, lag_s: float, now: Instant) -> None:
        """Give everybody the time for which this node was held up, and half of it to be heard."""
        for doubt in self._doubts.values():
            doubt.begun_s += lag_s
            doubt.floor_s = max(doubt.floor_s, now.mono_s + lag_s / 2)
            if not doubt.checked and doubt.check_s != inf:
                doubt.check_s = now.mono_s
            doubt.weigh()

    def tell(self, link: Link, message: Announce | Suspect) -> None:
        """Queue membership news for one peer; a subject's newer claim replaces older ones."""
        priority, patient = _manner(message, link.node_id)
        self._links.offer(link, _key(message), encode_message(message), priority, patient=patient)

    def _refute(self, link: Link, message: Suspect, now: Instant) -> None:
        own = self._members.own
        if message.incarnation == own.incarnation and self._refutations.take(link.node_id, now):
            self.renew(message.incarnation, now)
        # the accuser may be nobody I hold for live: it is told in any case
        self.tell(link, Announce(self._members.own, 0))

    def _chosen(self, wanted: int) -> bool:
        """Draw: of all live members about `wanted` say yes."""
        return self._rng.random() * len(self._members.live()) < wanted

    def _correct(self, link: Link, claim: Claim, known: Member) -> None:
        """Answer a claim that is no news here."""
        if claim.order < known.claim.order:
            self.tell(link, Announce(known.claim, 0))
        if known.state == DOWN:  # whoever says that it is there shall look
            self._blame(link, known)

    def _blame(self, link: Link, member: Member) -> None:
        rumour = Suspect(member.node_id, member.claim.incarnation, self._members.node_id, 0)
        self.tell(link, rumour)

    def _count_in(self, member: Member, accuser: bytes, bearer: bytes, now: Instant) -> bool:
        """Begin or shorten a suspicion; tell whether the others should hear of it."""
        doubt = self._doubts.get(member.node_id)
        if doubt is None:
            if member.state != ALIVE:
                return False
            doubt = self._begin(member, now)
        # in a small fleet everybody speaks for itself; in a large one news come by others
        if self._members.small and accuser != bearer:
            return not doubt.accusers
        news = doubt.confirm(accuser, bearer)
        self._schedule(doubt.due_s)
        return news

    def _begin(self, member: Member, now: Instant) -> _Doubt:
        others = len(self._members.live()) - 1  # than this node and the subject
        intervals = self._config.suspicion_intervals * _crowd_factor(others + 1)
        least_s = intervals * self._config.probe_interval_s * self.patience
        check_s = inf  # all others look once, when they call it
        if self._spread.neighbours.near(member.node_id):
            check_s = now.mono_s + least_s * self._rng.uniform(_CHECK_FROM, _CHECK_TO)
        most_s = least_s * self._config.suspicion_factor
        doubt = _Doubt(now.mono_s, least_s, most_s, min(_CONFIRMATIONS, others), check_s)
        self._doubts[member.node_id] = doubt
        self._members.suspect(member, now)
        link = self._links.get(member.node_id)
        if link is not None:
            link.doubted = True
        doubt.weigh()
        self._schedule(doubt.due_s)
        return doubt

    def _check(self, node_id: bytes, doubt: _Doubt, now: Instant) -> None:
        link = self._links.get(node_id)
        doubt.checked, doubt.check_s = True, inf
        if link is not None:
            self._pings.send(link, now)
            if not link.carries(b"M" + node_id + self._members.node_id, URGENT):
                self.remind(link)
            pause_s = 2 * self._pings.retry_s(link, now)
            doubt.check_s = now.mono_s + pause_s * _crowd_factor(len(self._members.live()))
        doubt.weigh()

    def _call_last(self, node_id: bytes, doubt: _Doubt, now: Instant) -> None:
        """Ping and call the subject once more, and leave it time to answer.

        There may be no link to it, or one that it has long dropped: it held this node for dead.
        """
        doubt.called = True
        doubt.floor_s = max(doubt.floor_s, now.mono_s + doubt.least_s * _CALL_BEFORE)
        doubt.weigh()
        link, member = self._links.get(node_id), self._members.get(node_id)
        if link is not None:
            self._pings.send(link, now)
        if member is not None:
            self._call(member.address, now)

    def _bury(self, node_id: bytes, now: Instant) -> None:
        del self._doubts[node_id]
        member = self._members.get(node_id)
        if member is not None and member.live:
            self._members.bury(member, now)
        self._links.close(node_id)

    def _close_at(self, node_id: bytes, due_s: float, *, gone: bool) -> None:
        self._closing[node_id] = (due_s, gone)
        self._schedule(due_s)

    def _schedule(self, due_s: float) -> None:
        self.due_s = min(self.due_s, max(due_s, self._rest_s))

    def _tell_all(
        self, message: Announce | Suspect, now: Instant, but: tuple[bytes, ...] = ()
    ) -> None:
        """Queue membership news for the live members in the message's scope."""
        make = lambda scope: message._replace(scope=scope)  # noqa: E731
        manner = partial(_manner, message)
        self._spread.send(make, _key(message), manner, message.scope, now, but)

    def _pass_on(self, message: Announce | Suspect, now: Instant, source: Link) -> None:
        subject = (message.claim.node_id,) if isinstance(message, Announce) else ()
        self._tell_all(message, now, (source.node_id, *subject))


def _key(message: Announce | Suspect) -> bytes:
    """Return what news replaces in a queue: each accuser's word counts beside the claim."""
    if isinstance(message, Announce):
        return b"M" + message.claim.node_id
    return b"M" + message.subject + message.accuser


def _manner(message: Announce | Suspect, receiver: bytes) -> tuple[int, bool]:
    """Return the class in which news leave, and whether they are patient: rumours of others are."""
    rumour = isinstance(message, Suspect) and message.subject != receiver
    return (PROMPT, True) if rumour else (URGENT, False)


def _crowd_factor(others: int) -> float:
    """Return how much longer a suspicion lasts, and how much more rarely each looks, among many."""
    return max(1.0, log10(others + 1))
