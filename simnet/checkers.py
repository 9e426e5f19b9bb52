"""What must hold whatever happens, checked all the time on facts that a world or a cluster tells.

Owns the invariants; never runs anything, and never looks into a node but through what it is told.
Invariant: the first violation ends the run, with what happened before it.

=================== ==================================================================
``convergence``     after the faults all who run hold the same and see each other, in time
``lost-write``      what a node acknowledged is read by all in the end
``resurrection``    what was removed stays removed
``sequence-reuse``  no number of an author's log stands for two batches
``false-death``     nobody healthy holds a healthy node for dead
``budgets``         no node sends, and no fleet writes, more than allowed; no frame's
                    time is spent twice
``frames``          every frame ends once: answered, late, shed or lost, with a reason
``queues``          nothing that waits exceeds its bound
``sound``           no node fails by itself
=================== ==================================================================
"""

from collections import deque
from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import NamedTuple

from crdt.log import Batch
from simnet.faults import Step
from simnet.health import Health
from simnet.ledger import Holds, Ledger
from simnet.link import Name
from simnet.outcome import Episode, Outcome, Spread, Violation, by_kind
from simnet.scenario import Scenario
from simnet.workload import Reading, counts_up, number_of

INVARIANTS = (
    "convergence",
    "lost-write",
    "resurrection",
    "sequence-reuse",
    "false-death",
    "budgets",
    "frames",
    "queues",
    "sound",
)
_KEPT = 40  # of what happened, for the report of a violation
_BURST_S = 0.25  # of the egress, which may leave at once; and be owed
_MOST_HOPS = 2
_CLOCK_S = 1e-6


class Broken(Exception):
    """An invariant does not hold; the argument is the Violation."""

    @property
    def violation(self) -> Violation:
        found: Violation = self.args[0]
        return found


class Sample(NamedTuple):
    """What a node says of itself from time to time, counted from its start."""

    sent_bytes: int
    """Of state, repairs and volatile values: what waits for the egress."""
    forked: int
    """Batches of others that it found in two versions."""
    queued: int
    """Items in the longest of its queues."""

    @classmethod
    def of(cls, counters: Mapping[str, int], queued: int) -> "Sample":
        """Return what a node's counters say."""
        sent = sum(counters.get(f"bytes_{kind}", 0) for kind in ("state", "repair", "volatile"))
        return cls(sent, counters.get("batches_forked", 0), queued)


class _Pending(NamedTuple):
    """A write on its way to all."""

    at_s: float
    number: int
    waiting: set[Name]
    arrived: list[float]


class Checkers:
    """All invariants of one run. Every fact comes with its time from the run's beginning."""

    def __init__(self, scenario: Scenario, holds: Holds | None = None) -> None:
        self.scenario = scenario
        self.health = Health(scenario)
        self.ledger = Ledger(holds)
        self.spreads: list[Spread] = []
        self.episodes: dict[int, Episode] = {}
        self._last: deque[str] = deque(maxlen=_KEPT)
        self._sent: dict[Name, tuple[float, int]] = {}
        self._entries = 0
        self._starts = 0
        self._vanished: dict[Name, dict[str, set[int]]] = {}
        self._shown: dict[tuple[Name, str], frozenset[int]] = {}
        self._pending: dict[tuple[bytes, str], _Pending] = {}
        self._numbers: dict[tuple[bytes, str], int] = {}  # of the newest durable records
        self._frames: dict[Hashable, str] = {}
        self._budgets: dict[Hashable, tuple[float, float, int]] = {}

    def note(self, at_s: float, what: str) -> None:
        """Remember what happened, for the report of a violation."""
        self._last.append(f"{at_s:9.3f} s  {what}")

    def violation(self, invariant: str, at_s: float, what: str) -> Violation:
        """Return what is wrong, with what happened before."""
        return Violation(invariant, at_s, what, tuple(self._last))

    def fail(self, invariant: str, at_s: float, what: str) -> None:
        """End the run. Raises Broken."""
        raise Broken(self.violation(invariant, at_s, what))

    # ------------------------------------------------------------- the machines

    def stepped(self, at_s: float, step: Step) -> None:
        """Take a fault's beginning or end."""
        self.note(at_s, str(step))
        self.health.stepped(at_s, step)
        if step.begins:
            what = str(step).removeprefix(f"{step.fault.kind} begins: ")
            kind, count = step.fault.kind, len(step.names)
            self.episodes[step.number] = Episode(step.at_s, -1.0, kind, count, what)
        else:
            self.episodes[step.number] = self.episodes[step.number]._replace(end_s=step.at_s)

    def started(self, at_s: float, name: Name, node_id: bytes, restored: Iterable[bytes]) -> None:
        """Take a node's start, and the signed batches that its journal held."""
        self.note(at_s, f"{name} starts")
        self.health.started(at_s, name, node_id)
        self._starts += 1
        self._sent[name] = at_s, 0
        self._vanished[name] = {}
        for key in [one for one in self._shown if one[0] == name]:
            del self._shown[key]
        self._judge_log(at_s, self.ledger.started(at_s, name, node_id, restored))

    def stopped(self, at_s: float, name: Name, *, forgetful: bool = False) -> None:
        """Take a node's end; ``forgetful`` if its disk drops what it had acknowledged."""
        self.note(at_s, f"{name} is gone")
        node_id = self.health.running.get(name)
        self.health.stopped(at_s, name)
        for pending in self._pending.values():
            pending.waiting.discard(name)
        if node_id is not None:
            self.ledger.stopped(at_s, node_id, forgetful=forgetful)

    def failed(self, at_s: float, name: Name, why: str) -> None:
        """Take that a node came to its end by itself."""
        self.fail("sound", at_s, f"{name} failed: {why}")

    def sampled(self, at_s: float, name: Name, sample: Sample) -> None:
        """Take what a node says of itself."""
        gossip = self.scenario.gossip
        if sample.forked:
            self.fail("sequence-reuse", at_s, f"{name} was shown two batches under one number")
        if sample.queued > gossip.queue_items:
            self.queued(at_s, name, "items for one peer", sample.queued, gossip.queue_items)
        then_s, before = self._sent.get(name, (at_s, 0))
        spent = sample.sent_bytes - before
        allowed = gossip.egress_bytes_per_s * (at_s - then_s + 2 * _BURST_S)
        if spent > allowed:
            what = f"{name} sent {spent} bytes that could wait, {allowed:.0f} were allowed"
            self.fail("budgets", at_s, what)
        self._sent[name] = at_s, sample.sent_bytes

    # ------------------------------------------------------------- what they say

    def event(self, at_s: float, name: Name, kind: str, node_id: bytes) -> None:
        """Take what a node has told about another: an event of :mod:`gossip.events`, by name."""
        about = self.health.name_of(node_id)
        if kind != "MemberUp":
            word = kind.removeprefix("Member").lower()
            self.note(at_s, f"{name} holds {about} for {word}")
        if kind == "MemberDown" and self.health.noticed(at_s, name, node_id):
            self.fail("false-death", at_s, f"{name} holds {about} for dead, which is healthy")

    def persisted(self, at_s: float, name: Name, batch: Batch) -> None:
        """Take a batch that has become durable, and so acknowledged."""
        self._judge_log(at_s, self.ledger.persisted(at_s, batch))
        self._entries += len(batch.entries)
        gossip = self.scenario.gossip
        elapsed_s = at_s + self.scenario.time.settle_s
        allowed = gossip.intake_entries_per_s / 3 * elapsed_s + self._starts * gossip.write_burst
        if self._entries > allowed * 1.01 + gossip.write_burst:
            what = f"{self._entries} entries were written, {allowed:.0f} were allowed"
            self.fail("budgets", at_s, what)
        for entry in batch.entries:
            number = number_of(getattr(entry, "value", None))
            if counts_up(entry.key) and number > self._numbers.get((batch.origin, entry.key), 0):
                self._numbers[batch.origin, entry.key] = number
                self._wrote(at_s, name, entry.key, number)

    def _wrote(self, at_s: float, name: Name, key: str, number: int) -> None:
        """Watch a node's own record on its way to all."""
        origin = self.health.running[name]
        self._close(origin, key)
        others = {one for one in self.health.running if self.health.reachable(one)} - {name}
        if self.health.reachable(name) and others:
            self._pending[origin, key] = _Pending(at_s, number, others, [])

    def removing(self, at_s: float, name: Name, key: str, number: int) -> None:
        """Take that a node is about to take an element back."""
        self.ledger.removing(self.health.running[name], key, number)

    def read_record(self, at_s: float, name: Name, origin: bytes, key: str, number: int) -> None:
        """Take that a node reads a record anew."""
        pending = self._pending.get((origin, key))
        if pending is not None and name in pending.waiting and number >= pending.number:
            pending.waiting.discard(name)
            pending.arrived.append(at_s - pending.at_s)
            if not pending.waiting:
                self._close(origin, key)

    def read_set(self, at_s: float, name: Name, key: str, numbers: Collection[int]) -> None:
        """Take that a node reads a set anew."""
        now = frozenset(numbers)
        vanished = self._vanished.setdefault(name, {}).setdefault(key, set())
        for number in sorted(now & vanished):
            if self.ledger.removed(key, number):
                what = f"{name} reads element {number} of {key} again, after its removal"
                self.fail("resurrection", at_s, what)
        gone = self._shown.get((name, key), frozenset()) - now
        for number in gone:
            self.ledger.vanished(self.health.running[name], key, number)
        vanished |= gone
        self._shown[name, key] = now

    # ------------------------------------------------------------- frames

    def frame_came(self, at_s: float, frame: Hashable, tier: int, left_s: float) -> None:
        """Take a new frame, and the time it has."""
        if frame in self._frames:
            self.fail("frames", at_s, f"frame {frame} came twice")
        self._frames[frame] = ""
        self._budgets[frame] = at_s, left_s, 0

    def frame_ended(self, at_s: float, frame: Hashable, reason: str) -> None:
        """Take a frame's end."""
        before = self._frames.get(frame)
        if before is None:
            self.fail("frames", at_s, f"frame {frame} ended ({reason}) and never came")
        if before:
            self.fail("frames", at_s, f"frame {frame} ended twice: {before}, then {reason}")
        if not reason:
            self.fail("frames", at_s, f"frame {frame} ended without a reason")
        self._frames[frame] = reason
        self._budgets.pop(frame, None)

    def forwarded(self, at_s: float, frame: Hashable, left_s: float, hops: int) -> None:
        """Take that a frame was sent on, with so much of its time left."""
        then_s, before_s, hops_before = self._budgets.get(frame, (at_s, left_s, 0))
        if left_s > before_s - (at_s - then_s) + _CLOCK_S:
            what = f"frame {frame} was sent on with {left_s:.3f} s left, more than it had"
            self.fail("budgets", at_s, what)
        if hops > _MOST_HOPS or hops < hops_before:
            self.fail("budgets", at_s, f"frame {frame} was sent on {hops} times")
        self._budgets[frame] = at_s, left_s, hops

    def queued(self, at_s: float, who: Name, what: str, length: int, limit: int) -> None:
        """Take how much waits somewhere."""
        if length > limit:
            self.fail("queues", at_s, f"{who}: {length} {what} wait, {limit} may")

    # ------------------------------------------------------------- the end

    def unsettled(self, at_s: float, why: str) -> None:
        """Take that the nodes did not agree in time."""
        self.fail("convergence", at_s, why)

    def agreed(self, at_s: float, readings: Mapping[Name, Reading]) -> None:
        """Take what all read once they agree."""
        for origin, key in list(self._pending):
            self._close(origin, key)
        for name, reading in readings.items():
            back = self.ledger.resurrected(reading)
            if back is not None:
                self.fail("resurrection", at_s, f"{name} has element {back[1]} of {back[0]} again")
        for objection in self.ledger.objections(readings):
            self.fail("lost-write", at_s, objection)
        for frame, reason in self._frames.items():
            if not reason:
                self.fail("frames", at_s, f"frame {frame} never ended")

    def outcome(
        self,
        seed: int,
        host: str,
        cryptography: str,
        violation: Violation | None,
        counts: Mapping[str, int],
    ) -> Outcome:
        """Return what is known here of a run that is over; ``counts`` are all nodes' counters."""
        return Outcome(
            scenario=self.scenario.name,
            seed=seed,
            host=host,
            nodes=self.scenario.nodes,
            cryptography=cryptography,
            violation=violation,
            round_s=self.scenario.round_s,
            down_rounds=tuple(self.health.down_rounds),
            spreads=tuple(self.spreads),
            episodes=tuple(self.episodes.values()),
            bytes_by_kind=by_kind(counts),
            counts=dict(sorted(counts.items())),
            notes=(f"batches that nobody could have kept: {self.ledger.exempted}",),
        )

    def _judge_log(self, at_s: float, problem: str | None) -> None:
        if problem is not None:
            invariant = "lost-write" if "restarts without" in problem else "sequence-reuse"
            self.fail(invariant, at_s, problem)

    def _close(self, origin: bytes, key: str) -> None:
        """Count how a write has spread."""
        pending = self._pending.pop((origin, key), None)
        if pending is None or not (pending.arrived or pending.waiting):
            return
        round_s = self.scenario.round_s
        rounds = [took_s / round_s for took_s in pending.arrived]
        missed = sum(self.health.reachable(name) for name in pending.waiting)
        mean = sum(rounds) / len(rounds) if rounds else 0.0
        self.spreads.append(Spread(pending.at_s, mean, max(rounds, default=0.0), missed))
