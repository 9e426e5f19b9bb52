"""Who is there: one probe per interval, round robin in shuffled order (SWIM, sections 3 and 4.3).

Owns the inquiries under way: this node's own probe, those done for others, and about members that
it has only heard of. Never judges (suspicion does). Invariant: every member with a link is probed
once per round, whatever the chance; an inquiry ends, answered or not.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from crdt.clock import Instant
from gossip.broadcast import Link, Links
from gossip.config import GossipConfig
from gossip.events import Address
from gossip.members import ALIVE, HEARD, SUSPECT, Member, Members
from gossip.messages import Ack, IndirectAck, PingRequest
from gossip.pings import Pings, Sent
from gossip.suspicion import Suspicion

_MAX_HEALTH = 7
_INQUIRIES_LIMIT = 256  # beside this node's own probe
_ASKERS_LIMIT = 64
_JUDGED = 0.8  # of the interval; what is left keeps probes apart
_UNMET = 3  # times as long for a target without a link: it has to be met first
_CALLED = 0.6  # of the interval: a target so long silent may have restarted
_RELAY = 0.35  # of the interval: how long a helper waits before it suspects the target, too
_DIRECT_TRIES = 3  # before others are asked: with a fifth of all datagrams lost 1 in 20 are
_STRANGE = 0.1  # share of the members without a link that are probed in a round


@dataclass(slots=True)
class _Inquiry:
    """What is done to hear from a member, and when; inf is never."""

    target: bytes
    begun_s: float
    end_s: float
    ping_s: float = inf
    ask_s: float = inf  # others
    call_s: float = inf  # with a handshake
    judge_s: float = inf  # this node's own probe
    doubt_s: float = inf  # if it is suspected, join in
    number: int = 0  # of the request to the helpers
    helpers: list[bytes] = field(default_factory=list)
    asked: int = 0  # of the helpers
    askers: dict[bytes, int] = field(default_factory=dict)  # who waits, for which number

    @property
    def due_s(self) -> float:
        """Return when the next of these is due."""
        return min(self.end_s, self.ping_s, self.ask_s, self.call_s, self.judge_s, self.doubt_s)


class Probing:
    """Probe members in turn, and others' targets for them."""

    def __init__(
        self,
        config: GossipConfig,
        rng: random.Random,
        members: Members,
        links: Links,
        suspicion: Suspicion,
        pings: Pings,
        call: Callable[[Address, Instant], None],
    ) -> None:
        self._config = config
        self._rng = rng
        self._members = members
        self._links = links
        self._suspicion = suspicion
        self._pings = pings
        self._call = call  # starts a handshake with an address
        self._inquiries: dict[bytes, _Inquiry] = {}
        self._order: list[bytes] = []
        self._begin_s = inf  # when the next probe begins
        self._due_s = inf  # nothing is due before
        self._requests = 0
        self._health = 0
        self._heard = False
        self._target = b""
        self._lag_s = 0.0
        self._slowed = False

    def deadline(self) -> float:
        """Return when this wants the timer, maybe a little too early; inf while nobody is known."""
        if self._begin_s == inf and self._members.live():
            return -inf
        return self._due_s

    def tick(self, now: Instant) -> None:
        """Do what the inquiries want, and begin the next probe."""
        if now.mono_s < self.deadline():
            return
        for inquiry in list(self._inquiries.values()):
            if inquiry.due_s <= now.mono_s:
                self._pursue(inquiry, now)
        if self._begin_s == inf and self._members.live():
            # nodes that were started together need not probe together
            self._begin_s = now.mono_s + self._rng.random() * self._config.probe_interval_s
        if self._begin_s <= now.mono_s:
            self._begin(now)
        self._plan()

    def on_link(self, link: Link, now: Instant) -> None:
        """Ping a new link; that answers those who waited for it."""
        self._pings.send(link, now)
        self._join_round(link.node_id)
        inquiry = self._inquiries.get(link.node_id)
        if inquiry is not None:
            inquiry.ping_s = now.mono_s + self._pings.retry_s(link, now)

    def on_ack(self, link: Link, message: Ack, now: Instant) -> tuple[Sent, Ack] | None:
        """Take an answer; return the ping and the answer in full, None if it answers none."""
        answer = self._pings.on_ack(link, message, now)
        if answer is not None:
            self._suspicion.vouch(link.node_id, now)
            self._answered(link.node_id)
        return answer

    def on_request(self, link: Link, message: PingRequest, now: Instant) -> None:
        """Probe a target for another member; of who is unknown here, say nothing."""
        member = self._members.get(message.target)
        if member is None or not member.live or message.target == link.node_id:
            return
        inquiry = self._inquiries.get(message.target)
        if inquiry is None:
            if len(self._inquiries) >= _INQUIRIES_LIMIT:
                return
            if self._links.get(message.target) is None:
                self._call(member.address, now)
            span_s = self._config.probe_interval_s * (1 + self._health)
            inquiry = self._open(message.target, now, now.mono_s + span_s)
            inquiry.doubt_s = now.mono_s + _RELAY * span_s
            self._pursue(inquiry, now)
        if len(inquiry.askers) < _ASKERS_LIMIT:
            inquiry.askers[link.node_id] = message.number

    def on_indirect(self, link: Link, message: IndirectAck, now: Instant) -> None:
        """Take the word of a helper that was asked that the target answered."""
        for inquiry in list(self._inquiries.values()):
            asked = inquiry.helpers[: inquiry.asked]
            if inquiry.number == message.number and link.node_id in asked:
                member = self._members.get(inquiry.target)
                if member is not None and member.state == HEARD:
                    self._members.vouch(member, now)
                self._answered(inquiry.target)

    def introduce(self, node_id: bytes, now: Instant) -> None:
        """Take a member with a new claim into this round.

        Of one that was only heard of find out whether it is there, if need be by others. O(live).
        """
        self._join_round(node_id)
        member = self._members.get(node_id)
        if member is None or member.state != HEARD or node_id in self._inquiries:
            return
        if len(self._inquiries) >= _INQUIRIES_LIMIT:
            self._members.forget(node_id)
            return
        interval_s = self._config.probe_interval_s
        inquiry = _Inquiry(
            node_id, now.mono_s, now.mono_s + 3 * interval_s, ask_s=now.mono_s + interval_s
        )
        self._inquiries[node_id] = inquiry
        self._schedule(inquiry.ask_s)

    def hasten(self, node_id: bytes) -> None:
        """Probe a member next that does not answer calls: all may think that another has met it."""
        if node_id in self._order:
            self._order.remove(node_id)
        self._order.append(node_id)

    def heard(self, node_id: bytes) -> None:
        """Note that somebody other than the target was heard: the silence is not ours."""
        if node_id != self._target:
            self._heard = True

    def slow(self, lag_s: float) -> None:
        """Widen this node's timeouts after its host was late by `lag_s` seconds."""
        if lag_s > self._config.probe_timeout_s / 2 and not self._slowed:
            self._slowed = True  # once a probe, however often the host reports
            self._worsen(1)
        self._lag_s = max(self._lag_s, min(lag_s, 2 * self._config.probe_interval_s))

    def defer(self, lag_s: float, now: Instant) -> None:
        """Give everybody the time for which this node was held up, and half of it to be heard."""
        least_s = now.mono_s + lag_s / 2
        for inquiry in self._inquiries.values():
            inquiry.end_s = max(inquiry.end_s + lag_s, least_s)
            inquiry.judge_s = max(inquiry.judge_s + lag_s, least_s)
            inquiry.doubt_s = max(inquiry.doubt_s + lag_s, least_s)
            inquiry.ask_s += lag_s
            inquiry.call_s += lag_s
        self._begin_s = max(self._begin_s + lag_s, least_s)

    def _plan(self) -> None:
        dues = (inquiry.due_s for inquiry in self._inquiries.values())
        self._due_s = min(self._begin_s, min(dues, default=inf))

    def _schedule(self, due_s: float) -> None:
        self._due_s = min(self._due_s, due_s)

    def _worsen(self, by: int) -> None:
        self._health = max(0, min(_MAX_HEALTH, self._health + by))
        self._suspicion.patience = 1.0 + self._health / 2

    def _begin(self, now: Instant) -> None:
        """Begin the probe of an interval."""
        member = self._next_target()
        self._heard, self._slowed, self._begin_s = False, False, inf
        if member is None:
            return
        self._target = member.node_id
        factor = 1.0 + self._health
        interval_s = self._config.probe_interval_s * factor + self._lag_s
        self._begin_s = now.mono_s + interval_s
        link = self._links.get(member.node_id)
        patience = 1 if link is not None else _UNMET
        judge_s = now.mono_s + _JUDGED * interval_s * patience
        inquiry = self._inquiries.get(member.node_id) or self._open(member.node_id, now, judge_s)
        inquiry.end_s, inquiry.judge_s = max(inquiry.end_s, judge_s), judge_s
        direct_s = _DIRECT_TRIES * self._pings.retry_s(link, now)
        timeout_s = min(self._config.probe_timeout_s, direct_s) * factor + self._lag_s
        inquiry.ask_s, inquiry.call_s = now.mono_s + timeout_s, now.mono_s + _CALLED * interval_s
        if link is None:
            self._call(member.address, now)
        else:
            self._suspicion.remind(link)
        self._pursue(inquiry, now)

    def _open(self, target: bytes, now: Instant, end_s: float) -> _Inquiry:
        inquiry = _Inquiry(target, now.mono_s, end_s, ping_s=now.mono_s)
        self._inquiries[target] = inquiry
        return inquiry

    def _next_target(self) -> Member | None:
        for _ in range(2):
            while self._order:
                member = self._members.get(self._order.pop())
                if member is not None and member.live:
                    return member
            self._order = sorted(self._round())
            self._rng.shuffle(self._order)
        return None

    def _join_round(self, node_id: bytes) -> None:
        """Give a newcomer a place in this round; only the next would probe it late. O(live)."""
        member = self._members.get(node_id)
        if member is not None and member.live and node_id not in self._order:
            self._order.insert(self._rng.randint(0, len(self._order)), node_id)

    def _round(self) -> list[bytes]:
        """Choose whom to probe in the next round: all, in a large fleet mostly neighbours."""
        live = self._members.live()
        if self._members.small:
            return [member.node_id for member in live]
        return [
            member.node_id
            for member in live
            if self._links.get(member.node_id) is not None or self._rng.random() < _STRANGE
        ] or [member.node_id for member in live]

    def _pursue(self, inquiry: _Inquiry, now: Instant) -> None:
        """Do what is due for an inquiry."""
        member = self._members.get(inquiry.target)
        if member is None or inquiry.end_s <= now.mono_s or inquiry.judge_s <= now.mono_s:
            self._give_up(inquiry, now)
            return
        link = self._links.get(inquiry.target)
        if inquiry.ping_s == inf and member.state != HEARD:  # introduced, and believed meanwhile
            del self._inquiries[inquiry.target]
            return
        if inquiry.ask_s <= now.mono_s:
            inquiry.ask_s = now.mono_s + self._pings.retry_s(link, now)
            self._ask(inquiry, now)
        if inquiry.call_s <= now.mono_s:
            # a new boot does not understand the link's seals
            inquiry.call_s = inf
            self._call(member.address, now)
        if inquiry.ping_s <= now.mono_s:
            inquiry.ping_s = now.mono_s + self._pings.retry_s(link, now)
            if link is not None:
                self._pings.send(link, now)
        if inquiry.doubt_s <= now.mono_s:
            inquiry.doubt_s = inquiry.ping_s
            if member.state == SUSPECT:
                inquiry.doubt_s = inf
                self._suspicion.accuse(inquiry.target, now)
        self._schedule(inquiry.due_s)

    def _ask(self, inquiry: _Inquiry, now: Instant) -> None:
        """Ask one other for help, and all of them if that takes long; then again."""
        if inquiry.number == 0:
            self._requests += 1
            inquiry.number = self._requests
            inquiry.helpers = self._choose_helpers(inquiry.target)
        known = inquiry.asked
        inquiry.asked = len(inquiry.helpers) if known else min(1, len(inquiry.helpers))
        for index, helper in enumerate(inquiry.helpers[: inquiry.asked]):
            link = self._links.get(helper)
            if link is not None:
                self._links.post(link, PingRequest(inquiry.number, inquiry.target))
                if index >= known:  # its own answer tells whether the silence is this node's fault
                    self._pings.send(link, now)

    def _choose_helpers(self, target: bytes) -> list[bytes]:
        able = [
            member.node_id
            for member in self._members.live()
            if member.node_id != target
            and member.state == ALIVE
            and self._links.get(member.node_id) is not None
        ]
        return self._rng.sample(able, min(self._config.indirect_probes, len(able)))

    def _answered(self, target: bytes) -> None:
        """End an inquiry well, and tell those who asked."""
        inquiry = self._inquiries.pop(target, None)
        if inquiry is None:
            return
        self._plan()
        for asker, number in inquiry.askers.items():
            link = self._links.get(asker)
            if link is not None:
                self._links.post(link, IndirectAck(number))
        if inquiry.judge_s != inf:
            self._lag_s = self._lag_s / 2 if self._lag_s > 0.01 else 0.0
            self._worsen(-1)

    def _give_up(self, inquiry: _Inquiry, now: Instant) -> None:
        """End an inquiry, or this node's own part in it, without an answer."""
        own, inquiry.judge_s = inquiry.judge_s, inf
        member = self._members.get(inquiry.target)
        if inquiry.end_s <= now.mono_s or member is None:
            del self._inquiries[inquiry.target]
        if member is None:
            return
        if member.state == HEARD:
            self._members.forget(inquiry.target)
        elif own != inf and not self._heard_of_late(inquiry):
            if not self._heard and len(self._members.live()) > 1:
                self._worsen(1)
            self._suspicion.accuse(inquiry.target, now)

    def _heard_of_late(self, inquiry: _Inquiry) -> bool:
        """Tell whether anything has come from the target since: then only answers were lost."""
        link = self._links.get(inquiry.target)
        return link is not None and link.heard_s >= inquiry.begun_s
