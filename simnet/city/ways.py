"""The way of a frame: from where it was decided to an accelerator, and back with its answer.

Owns forwards, queues, runs and replies, and the one end of each frame. Decides nothing but what a
receiver does with a frame that it cannot answer in time; whom it asks, how long it waits and what
is left of the budget then is the daemon's rule. Invariant: a frame ends exactly once, with a
reason; of the answers that come the first counts.
"""

from collections.abc import Hashable
from typing import Protocol

from edge_node.fleet.peers import LATE as LATE_REFUSALS
from edge_node.placement import choose as choosing
from edge_node.placement.budget import Budget, BudgetSpent, patience_ms
from edge_node.placement.view import Option, Waits
from models.queue import Task
from models.wire import Shed
from simnet.city.decide import Decider
from simnet.city.frame import Frame, Leg, Work
from simnet.city.load import Load
from simnet.city.node import Node
from simnet.city.outcome import ANSWERED, LATE, Outcome
from simnet.city.policy import FULL, Policy
from simnet.link import Name
from simnet.world import World


class Watch(Protocol):
    """Who is told what becomes of frames; times are from the beginning of the city."""

    def frame_came(self, at_s: float, frame: Hashable, tier: int, left_s: float) -> None: ...
    def frame_ended(self, at_s: float, frame: Hashable, reason: str) -> None: ...
    def forwarded(self, at_s: float, frame: Hashable, left_s: float, hops: int) -> None:
        """Take that a node sent a frame on with so much of its budget left, the hops-th time.

        ``at_s`` leaves out what the network took of its time: no budget counts that, for no two
        nodes have the same clock.
        """

    def queued(self, at_s: float, who: Name, what: str, length: int, limit: int) -> None: ...


class Nobody:
    """A watch that does not listen."""

    def frame_came(self, at_s: float, frame: Hashable, tier: int, left_s: float) -> None: ...
    def frame_ended(self, at_s: float, frame: Hashable, reason: str) -> None: ...
    def forwarded(self, at_s: float, frame: Hashable, left_s: float, hops: int) -> None: ...
    def queued(self, at_s: float, who: Name, what: str, length: int, limit: int) -> None: ...


class Ways:
    """Where the frames of a city are."""

    def __init__(
        self,
        world: World,
        load: Load,
        policy: Policy,
        decider: Decider,
        outcome: Outcome,
        watch: Watch,
    ) -> None:
        self.world, self.load, self.policy, self.given = world, load, policy, load.city
        self.decider, self.outcome, self.watch = decider, outcome, watch
        self.begun_s = world.now_s

    @property
    def now_s(self) -> float:
        """Return the time since the beginning."""
        return self.world.now_s - self.begun_s

    def send(self, frame: Frame, option: Option) -> None:
        """Send a frame where it was decided."""
        frame.option = option
        if option.node is None:
            self._serve(frame, frame.home, frame.budget, None)
        else:
            self._forward(frame, frame.home, option, frame.budget, None)

    def _forward(
        self, frame: Frame, source: Node, option: Option, account: Budget, before: Leg | None
    ) -> None:
        """Send a frame to a peer with what it may take of the budget."""
        now_s, camera = self.world.now_s, frame.camera
        assert option.node is not None
        target = self.decider.at[option.node]
        left_ms = account.remaining_ms(now_s)
        timeout_ms = patience_ms(option.finish_ms, left_ms)
        try:
            given = account.split(now_s, ms=min(timeout_ms, left_ms))
            wire_ms = given.for_wire(now_s, option.network_ms)
        except BudgetSpent:
            self.end(frame, "shed: deadline")
            return
        run_ms = self.decider.run_ms(frame, target, now_s)
        if self.policy.corrected and not self.policy.centre:
            factor = source.warmth.factor(camera.name)
            source.view.sent(target.id, camera.kind, camera.tier, source.now_s, factor)
        leg = Leg(frame, source, target, option, account, given, now_s, source.run, before, run_ms)
        frame.hops += 1
        self.watch.forwarded(self.now_s - frame.way_s, frame.name, wire_ms / 1e3, frame.hops)
        target.coming_ms += run_ms
        factor = frame.arrival.ways[0 if before is None else 1]
        way_s = self.load.way_ms(source.index, target.index) * factor / 1e3
        self.world.after(way_s, self._arrive, leg, wire_ms)
        self.world.after(timeout_ms / 1e3, self._silent, leg)

    def _arrive(self, leg: Leg, wire_ms: float) -> None:
        frame, target, now_s = leg.frame, leg.target, self.world.now_s
        target.coming_ms = max(0.0, target.coming_ms - leg.run_ms)
        frame.way_s += now_s - leg.sent_s
        if not target.up or target.host.paused or not self._reaches(leg.source, target):
            return
        account = Budget.from_wire(wire_ms, now_s)
        if leg.before is None and self.policy.coordinated and not self.policy.centre:
            option = self._bounced(leg, account)
            if option is not None:
                self.outcome.bounced += 1
                self._forward(frame, target, option, account, leg)
                return
        self._serve(frame, target, account, leg)

    def _bounced(self, leg: Leg, account: Budget) -> Option | None:
        """Return to whom a receiver passes a frame on that it cannot answer in time, or None."""
        frame, node, now_s = leg.frame, leg.target, self.world.now_s
        camera = frame.camera
        ahead_ms = node.accelerator.waits_ms[camera.tier - 1]
        if not node.warmth.is_warm(camera.name, None, node.now_s):  # else it needs little
            ahead_ms += node.accelerator.service_ms[camera.kind]
        remaining_ms = account.remaining_ms(now_s)
        if ahead_ms <= remaining_ms:
            return None
        ask = self.decider.asker(frame, node, now_s)
        return choosing.bounce(
            remaining_ms,
            ahead_ms,
            node.planner.reach(camera.kind),
            lambda peer: ask(peer) if peer != leg.source.id else None,
            node.rng,
        )

    def _serve(self, frame: Frame, node: Node, account: Budget, leg: Leg | None) -> None:
        """Run a frame at a node by the end of its budget there."""
        now_s, camera = self.world.now_s, frame.camera
        run_s = self.decider.run_ms(frame, node, now_s) / 1e3
        deadline_s = now_s + account.remaining_ms(now_s) / 1e3
        work, accelerator = Work(frame, leg, now_s), node.accelerator
        task = Task(camera.name, deadline_s, camera.tier, run_s, run_s, now_s, work)
        try:
            victims = accelerator.queue.push(task, now_s)
        except Shed as error:
            self._refuse(work, node, str(error))
            return
        for victim in victims:
            self._refuse(victim.payload, node, "queue full")
        if self.policy.coordinated:  # the baselines' queue has no bound
            length = accelerator.queue_length
            self.watch.queued(self.now_s, node.host.name, "frames", length, self.given.queue)
        if accelerator.running is None:
            self._start(node)

    def _start(self, node: Node) -> None:
        """Let an accelerator take the next of what waits for it."""
        now_s, accelerator = self.world.now_s, node.accelerator
        task, shed = accelerator.queue.pop(now_s)
        accelerator.running = task.payload if task is not None else None
        for one in shed:
            self._refuse(one.payload, node, "deadline")
        if task is None:
            return
        work = task.payload
        frame, camera = work.frame, work.frame.camera
        if self.decider.is_warm(frame, node, now_s):
            work.share = self.policy.share(camera, frame.arrival.number)
        self.decider.last[frame.arrival.camera] = node, now_s
        full_ms = accelerator.true_ms(camera.kind) * camera.cost * frame.arrival.noise
        work.took_ms = full_ms * work.share
        work.wait_ms = (now_s - work.came_s) * 1e3
        accelerator.free_s = now_s + task.run_s
        if self.now_s >= self.given.warmup_s:
            energy_j = accelerator.site.profile.active_w * work.took_ms / 1e3
            self.outcome.ran(energy_j, hit=work.share < FULL)
        self.world.after(work.took_ms / 1e3, self._finish, work, node, node.run)

    def _finish(self, work: Work, node: Node, run: int) -> None:
        if not node.is_awake(run, self._finish, work, node, run):
            return
        camera = work.frame.camera
        if self.policy.affinity and work.share == FULL:
            node.accelerator.learn(camera.kind, work.took_ms)
        self._start(node)
        if work.leg is None:
            self._answered(work.frame, node, None, work)
        else:
            node.warmth.answered(camera.name, None, FULL, node.now_s)
            self._reply(work.leg, work, "")

    def _refuse(self, work: Work, node: Node, reason: str) -> None:
        if work.leg is None:
            self.end(work.frame, f"shed: {reason}")
        else:
            self._reply(work.leg, work, reason)

    # Back to where it came from.

    def _reply(self, leg: Leg, work: Work, refusal: str) -> None:
        """Send an answer, or a refusal with its reason, back along a leg."""
        waits, way_s = leg.target.accelerator.waits_ms, self.given.ways.reply_ms / 1e3
        self.world.after(way_s, self._replied, leg, work, refusal, waits)

    def _replied(self, leg: Leg, work: Work, refusal: str, waits: Waits) -> None:
        source = leg.source
        again = (leg, work, refusal, waits)
        if leg.is_over or not source.is_awake(leg.run, self._replied, *again):
            return
        if not self._reaches(leg.target, source):
            return
        leg.is_over = True
        if refusal:
            self._refused(leg, refusal)
            return
        spent_ms = (self.world.now_s - leg.sent_s) * 1e3
        if self.policy.corrected:
            way_ms = spent_ms - work.wait_ms - work.took_ms
            finish_ms, target = leg.option.finish_ms, leg.target.id
            source.view.heard_reply(target, waits, way_ms, finish_ms, spent_ms, source.now_s)
        if leg.before is not None:
            self._reply(leg.before, work, "")
        else:
            self._answered(leg.frame, source, leg, work)

    def _refused(self, leg: Leg, reason: str) -> None:
        """Take the budget back, doubt the peer, and run the frame here after all."""
        now_s, source, frame = self.world.now_s, leg.source, leg.frame
        leg.given.refused(now_s)
        leg.account.rejoin(leg.given, now_s)
        if self.policy.corrected:
            whole_ms = frame.camera.deadline_s * 1e3
            if reason in LATE_REFUSALS:
                excess_ms = whole_ms - min(leg.option.finish_ms, whole_ms)
                source.view.had_no_time(leg.target.id, excess_ms, source.now_s)
            else:
                source.view.refused(leg.target.id, whole_ms, source.now_s)
        self._serve(frame, source, leg.account, leg.before)

    def _silent(self, leg: Leg) -> None:
        """Give a forward up; what is left of the budget goes to a try here."""
        source, now_s = leg.source, self.world.now_s
        if leg.is_over or not source.is_awake(leg.run, self._silent, leg):
            return
        if not self.policy.coordinated and leg.target.up and self._reaches(leg.target, source):
            return  # the baselines wait as long as it takes
        leg.is_over = True
        if self.policy.corrected:
            source.view.unanswered(leg.target.id, source.now_s)
        if leg.account.remaining_ms(now_s) > 0:
            self._serve(leg.frame, source, leg.account, leg.before)
        elif leg.before is None:
            self.end(leg.frame, "lost: no answer")

    def _reaches(self, source: Node, target: Node) -> bool:
        return self.world.network.reaches(source.host.name, target.host.name)

    def _answered(self, frame: Frame, home: Node, leg: Leg | None, work: Work) -> None:
        """Let an answer reach the frame's home, which learns from it what its frames take."""
        if frame.reason:
            return
        share = work.share
        if share < FULL and frame.option is not None:
            share = work.took_ms / max(1e-9, frame.option.service_ms)
        place = leg.target.id if leg is not None else None
        home.warmth.answered(frame.camera.name, place, share, home.now_s)
        home.answered(frame.camera.name)
        self.end(frame, ANSWERED if self.world.now_s <= frame.deadline_s else LATE)

    def end(self, frame: Frame, reason: str) -> None:
        """End a frame, if it has not ended: of the answers that come the first counts."""
        if frame.reason:
            return
        frame.reason = reason
        del frame.home.frames[frame]
        self.world.note("city", b"%d %d %s" % (*frame.name, reason.encode()))
        self.outcome.ended(frame, self.world.now_s)
        self.watch.frame_ended(self.now_s, frame.name, reason)
