"""A city in virtual time: emulated nodes that place their frames with the daemon's own functions.

Owns the events of one run. Never reads a clock, never measures anything: service times and watts
are declared, hence every figure that comes out is an emulated one. Invariants: every frame ends
exactly once, with a reason; the same scenario, seed and policy give the same trace hash; frames
and chance do not depend on the policy.

Each node holds its own view of the others, fed by reports as old as an epidemic makes them and by
what rides on replies, its own queue, and its own plan of the epoch from what has reached it. Nodes
to which the same has come share the computation, as pure functions allow.
"""

import hashlib
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

from edge_node.placement import choose as choosing
from edge_node.placement.view import Option, Waits
from models.queue import Task
from models.wire import Shed
from simnet.city_decide import OURS, Decider, Policy
from simnet.city_load import Load
from simnet.city_news import News
from simnet.city_node import CameraState, Frame, Node, queue_of
from simnet.city_outcome import Outcome

PRIOR_WORK = {"delta": 0.5, "output": 0.7, "none": 1.0}
"""What a camera's frames are taken to cost before any was seen, in full passes."""

FULL = 1.0

WORK_GAIN = 0.05
RATE_GAIN = 0.2
"""Weights of the newest frame in a camera's mean work and interval."""


Scheduler = Callable[[Sequence[Frame], "City"], tuple[Sequence[int], float]]
"""Places a batch: node indices, and how long it took."""


class City:
    """One run."""

    def __init__(
        self,
        load: Load,
        policy: Policy = OURS,
        *,
        die: tuple[float, float] | None = None,
        scheduler: Scheduler | None = None,
        batch_s: float = 0.02,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Set the fleet up.

        Args:
            die: when which share of the nodes dies.
            scheduler: for ``centre="batch"``; asked every ``batch_s``, or when it is free again.
            clock: measures each decision, into ``decision_s``; the run does not depend on it.
        """
        self.load, self.policy, self.scenario = load, policy, load.scenario
        self.scheduler, self.batch_s, self.clock = scheduler, batch_s, clock
        self.decision_s: list[float] = []
        self.now_s = 0.0
        self.outcome = Outcome(self.scenario)
        fleet = self.scenario.fleet
        self.nodes = [
            Node(
                index,
                site,
                queue_of(fleet.queue, tiered=policy.coordinated),
                dict(site.profile.service_ms)
                if policy.affinity
                else dict.fromkeys(site.profile.service_ms, fleet.idle_service_ms),
                load.rng(f"decide {index}"),
            )
            for index, site in enumerate(load.sites)
        ]
        self._at = {node.site.node: node for node in self.nodes}
        work, interval_s = PRIOR_WORK[policy.cache], 1.0 / self.scenario.cameras.rate_hz
        self.cameras = [CameraState(one.home, interval_s, work) for one in load.cameras]
        self.news = News(load, self.nodes, self.cameras)
        self.decider = Decider(policy, self.news)
        self._waiting: list[Frame] = []  # for a batch
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._hash = hashlib.sha256()
        self._die = die

    # Time.

    def run(self) -> Outcome:
        """Let the whole scenario pass; return what became of the frames."""
        self._schedule()
        for arrival in self.load.arrivals:
            self._pass(arrival.at_s)
            camera, state = self.load.cameras[arrival.camera], self.cameras[arrival.camera]
            if arrival.number:
                state.interval_s += RATE_GAIN * (arrival.at_s - state.seen_s - state.interval_s)
            state.seen_s = arrival.at_s
            frame = Frame(arrival, camera, state.home, arrival.at_s + camera.deadline_s)
            self.outcome.arrived(frame)
            self._place(frame)
        self._pass(self.scenario.time.duration_s + self.scenario.time.drain_s)
        for frame in self._unfinished():
            self._end(frame, "late: not by the end")
        self.outcome.trace_hash = self._hash.hexdigest()
        self.outcome.scopes = self.decider.scopes
        self.outcome.plans, self.outcome.moves = self.news.plans_made, self.news.moves
        return self.outcome

    def _schedule(self) -> None:
        given = self.scenario
        self.news.plan(0.0)
        self._report()
        for step, factors in enumerate(self.load.throttling()):
            self._at_s(step * given.throttle.every_s, self._throttle, factors)
        epochs = int((given.time.duration_s + given.time.drain_s) / given.epoch.period_s)
        for number in range(1, epochs + 1):
            self._at_s(number * given.epoch.period_s - given.epoch.publish_s, self._publish)
            self._at_s(number * given.epoch.period_s, self._epoch)
        if self.policy.centre == "batch":
            self._at_s(self.batch_s, self._batch)
        if self._die is not None:
            self._at_s(self._die[0], self._kill, self._die[1])

    def _pass(self, until_s: float) -> None:
        """Let everything happen that is due."""
        queue = self._queue
        while queue and queue[0][0] <= until_s:
            self.now_s, _, action, args = heappop(queue)
            action(*args)
        self.now_s = until_s

    def _unfinished(self) -> list[Frame]:
        """Return the frames that are somewhere: on the way, in a queue, on an accelerator."""
        found = list(self._waiting)
        for _, _, _, args in sorted(self._queue, key=lambda event: event[:2]):
            found += [one for one in args if isinstance(one, Frame) and not one.ended]
        for node in self.nodes:
            found += [task.payload for task in node.queue.remove(lambda _: True)]
        return found

    def _report(self) -> None:
        self.news.report(self.now_s)
        self._at_s(self.now_s + self.scenario.gossip.period_ms / 1e3, self._report)

    def _publish(self) -> None:
        self.news.publish(self.now_s)

    def _epoch(self) -> None:
        self.news.take_over()
        self.news.plan(self.now_s)

    def _throttle(self, factors: Sequence[float]) -> None:
        for node, factor in zip(self.nodes, factors, strict=True):
            node.throttle = factor

    def _batch(self) -> None:
        """Let the scheduler place what has come; it decides one batch after the other."""
        frames, self._waiting, took_s = self._waiting, [], 0.0
        if frames:
            assert self.scheduler is not None, "a centre of batches needs one"
            targets, took_s = self.scheduler(frames, self)
            for frame, target in zip(frames, targets, strict=True):
                self._at_s(self.now_s + took_s, self._ordered, frame, self.nodes[target])
        self._at_s(self.now_s + max(self.batch_s, took_s), self._batch)

    def _ordered(self, frame: Frame, node: Node) -> None:
        home = self.nodes[frame.home]
        wait_ms = node.waits_ms(self.now_s)[frame.camera.tier - 1]
        name = None if node is home else node.site.node
        run_ms, way_ms = self.run_ms(frame, node), self.news.way_ms(home.index, node.index)
        self.send(frame, home, Option(name, wait_ms, run_ms, way_ms))

    def _kill(self, share: float) -> None:
        """Let nodes die at once, with all that they hold."""
        rng = self.load.rng("deaths")
        for index in sorted(rng.sample(range(len(self.nodes)), int(share * len(self.nodes)))):
            node = self.nodes[index]
            node.alive = False
            held = [task.payload for task in node.queue.remove(lambda _: True)]
            held += [node.running] if node.running is not None else []
            for frame in held:
                self._orphaned(frame, node)
            self._at_s(self.now_s + self.scenario.gossip.detect_ms / 1e3, self.news.died, index)

    def _orphaned(self, frame: Frame, node: Node) -> None:
        """Let what a dead node held be missed by whoever sent it."""
        if not self.nodes[frame.home].alive:
            self._end(frame, "lost: its node is dead")
            return
        given_up_s = max(self.now_s, frame.sent_s + frame.patience_s)
        self._at_s(given_up_s, self._unanswered, frame, node)

    def _at_s(self, when_s: float, action: Callable[..., None], *args: Any) -> None:
        self._order += 1
        heappush(self._queue, (when_s, self._order, action, args))

    def _end(self, frame: Frame, reason: str, late_ms: float = 0.0) -> None:
        """End a frame: ``answered`` (when: now plus the reply's way), or why not."""
        assert not frame.ended, "a frame ends once"
        frame.ended = True
        at_s = self.now_s + late_ms / 1e3
        self._hash.update(
            b"%d %d %s %.9f;" % (frame.arrival.camera, frame.arrival.number, reason.encode(), at_s)
        )
        self.outcome.ended(frame, reason, at_s)

    # Where a frame goes.

    def _place(self, frame: Frame) -> None:
        home = self.nodes[frame.home]
        if not home.alive:
            self._end(frame, "lost: its node is dead")
        elif self.now_s >= frame.deadline_s:
            self._end(frame, "lost: no time is left")
        elif self.policy.centre == "batch":
            self._waiting.append(frame)
        else:
            begun_s = self.clock() if self.clock else 0.0
            target = self.decider.option(frame, home, self.now_s)
            if self.clock:
                self.decision_s.append(self.clock() - begun_s)
            self.send(frame, home, target)

    def run_ms(self, frame: Frame, node: Node) -> float:
        """Predict a frame's time on a node's accelerator."""
        return self.decider.run_ms(frame, node, self.now_s)

    # The way of a frame.

    def send(self, frame: Frame, home: Node, target: Option) -> None:
        """Send a frame where it was decided."""
        node = home if target.node is None else self._at[target.node]
        frame.run_ms = self.run_ms(frame, node)
        if node is home:
            self._enqueue(frame, node)
            return
        if self.policy.corrected and self.policy.centre != "batch":
            kind = frame.camera.kind
            factor = frame.run_ms / node.service_ms[kind]
            home.view.sent(node.site.node, kind, frame.camera.tier, self.now_s, factor)
        frame.predicted_ms = target.finish_ms
        frame.sent_s = self.now_s
        frame.patience_s = max(self.scenario.forward.timeout_ms, 2.0 * target.finish_ms) / 1e3
        self._travel(frame, home, node, frame.arrival.ways[0])

    def _travel(self, frame: Frame, source: Node, node: Node, factor: float) -> None:
        node.coming_ms += frame.run_ms
        way_ms = self.news.way_ms(source.index, node.index) * factor
        self._at_s(self.now_s + way_ms / 1e3, self._arrive, frame, node)

    def _arrive(self, frame: Frame, node: Node) -> None:
        node.coming_ms = max(0.0, node.coming_ms - frame.run_ms)
        if not node.alive:
            self._orphaned(frame, node)
            return
        if self.policy.coordinated and not self.policy.centre and not frame.bounced:
            option = self._bounced(frame, node)
            if option is not None and option.node is not None:
                frame.bounced = True
                self.outcome.bounced += 1
                other = self._at[option.node]
                frame.run_ms = self.run_ms(frame, other)
                self.cameras[frame.arrival.camera].place = option.node
                self._travel(frame, node, other, frame.arrival.ways[1])
                return
        self._enqueue(frame, node)

    def _bounced(self, frame: Frame, node: Node) -> Option | None:
        remaining_ms = (frame.deadline_s - self.now_s) * 1e3 - self.scenario.network.reply_ms
        ahead_ms = node.waits_ms(self.now_s)[frame.camera.tier - 1] + frame.run_ms
        state = self.cameras[frame.arrival.camera]
        if ahead_ms <= remaining_ms or self.decider.is_warm(state, node, self.now_s):
            return None  # in time; or the next frame is as well off here as this one is not
        ask, reach = (
            self.decider.asker(frame, node, self.now_s),
            self.news.reach(node, frame.camera.kind),
        )
        return choosing.bounce(remaining_ms, ahead_ms, reach, ask, node.rng)

    def _unanswered(self, frame: Frame, node: Node) -> None:
        """Give a forward up; what is left of the budget goes to another try."""
        home = self.nodes[frame.home]
        if self.policy.corrected:
            home.view.unanswered(node.site.node, self.now_s)
        frame.bounced = False
        self._place(frame)

    def _enqueue(self, frame: Frame, node: Node) -> None:
        camera, run_s = frame.camera, frame.run_ms / 1e3
        task = Task(camera.name, frame.deadline_s, camera.tier, run_s, run_s, self.now_s, frame)
        try:
            victims = node.queue.push(task, self.now_s)
        except Shed as error:
            self._refuse(frame, node, str(error))
            return
        for victim in victims:
            self._refuse(victim.payload, node, "queue full")
        if node.running is None:
            self._start(node)

    def _refuse(self, frame: Frame, node: Node, reason: str) -> None:
        self._end(frame, f"shed: {reason}")
        if frame.home != node.index:
            late_s = self.scenario.network.reply_ms / 1e3
            waits = node.waits_ms(self.now_s)
            self._at_s(self.now_s + late_s, self._reply, frame, node, waits)

    def _start(self, node: Node) -> None:
        task, shed = node.queue.pop(self.now_s)
        for one in shed:
            self._refuse(one.payload, node, "deadline")
        if task is None:
            node.running = None
            return
        frame, camera = task.payload, task.payload.camera
        state = self.cameras[frame.arrival.camera]
        is_warm = self.decider.is_warm(state, node, self.now_s)
        state.last, state.last_s = node, self.now_s
        share = self._share(frame) if is_warm else FULL
        full_ms = node.true_ms(camera.kind) * camera.cost * frame.arrival.noise
        took_ms = full_ms * share
        node.running, node.free_s = frame, self.now_s + task.run_s
        energy_j = node.site.profile.active_w * took_ms / 1e3
        self.outcome.ran(self.now_s, energy_j, hit=share < FULL)
        done = (frame, node, is_warm, share, took_ms)
        self._at_s(self.now_s + took_ms / 1e3, self._finish, *done)

    def _share(self, frame: Frame) -> float:
        """Return what a warm frame takes, in full passes."""
        trace = frame.camera.trace
        place = (frame.camera.offset + frame.arrival.number) % len(trace.cost)
        rung = trace.rungs[place]
        if self.policy.cache == "none" or rung == "f":
            return FULL
        if self.policy.cache == "output" and rung == "d":
            return FULL
        return trace.cost[place]

    def _finish(
        self, frame: Frame, node: Node, is_warm: bool, share: float, took_ms: float
    ) -> None:
        if not node.alive:
            return  # what it ran died with it
        self._learn(frame, node, is_warm, share, took_ms)
        home, way_ms = self.nodes[frame.home], self.scenario.network.reply_ms
        if not home.alive:
            self._end(frame, "lost: its node is dead")
        else:
            self._end(frame, "answered", way_ms if node is not home else 0.0)
        self._start(node)
        if node is not home and home.alive:
            waits, at_s = node.waits_ms(self.now_s), self.now_s + way_ms / 1e3
            self._at_s(at_s, self._reply, frame, node, waits)

    def _learn(self, frame: Frame, node: Node, is_warm: bool, share: float, took_ms: float) -> None:
        """Let a node learn its speed from full passes, and a camera's home what its frames cost."""
        state, kind = self.cameras[frame.arrival.camera], frame.camera.kind
        if is_warm:
            state.work += WORK_GAIN * (took_ms / node.service_ms[kind] - state.work)
        if self.policy.affinity and share == FULL:
            node.learn(kind, took_ms)

    def _reply(self, frame: Frame, node: Node, waits: Waits) -> None:
        """Let what rode on a reply be heard."""
        if self.policy.corrected and not frame.bounced:
            self.nodes[frame.home].view.heard_reply(
                node.site.node,
                waits,
                self.news.way_ms(frame.home, node.index) + self.scenario.network.reply_ms,
                frame.predicted_ms,
                (self.now_s - frame.sent_s) * 1e3,
                self.now_s,
            )
