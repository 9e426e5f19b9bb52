"""A city in the world: frames that nodes place and answer among themselves, as the daemon does.

Owns the course of a run: nodes that come and go, frames that come from their cameras. Gossip,
store and faults are the world's; decisions, plans, budgets, queues, views and load reports are the
daemon's own code. Never reads a clock, never measures anything: service times and watts are
declared, hence every figure that comes out is an emulated one. Invariants: every frame ends exactly
once, with a reason; the same scenario, seed and policy give the same trace hash; frames and chance
do not depend on the policy.

A camera that two nodes run for a while (a partition ends, a home comes back) gives its frames to
its home, or else to the first of them.
"""

from collections.abc import Callable, Sequence

from crdt.log import Batch
from edge_node.fleet.planner import type_of
from edge_node.fleet.published import Capacity
from edge_node.placement.budget import Budget
from edge_node.placement.epoch import TARGET, Seat, plan
from edge_node.placement.view import Option
from gossip.events import Event, MemberDown, MemberLeft
from simnet.city.accelerator import Accelerator, queue_of
from simnet.city.decide import Decider
from simnet.city.frame import Frame
from simnet.city.load import Camera, Load
from simnet.city.node import Node
from simnet.city.outcome import Outcome
from simnet.city.policy import OURS, Policy
from simnet.city.ways import Nobody, Watch, Ways
from simnet.host import Host
from simnet.outcome import Frames
from simnet.world import World

SEEN_BEFORE = 60
"""Frames of each camera that its home has answered before the run."""

RECONCILE_S = 0.05
"""How soon after a change a node looks which cameras it runs; the daemon's loop is as busy."""

Scheduler = Callable[[Sequence[Frame], "City"], tuple[Sequence[int], float]]
"""Places a batch: node indices, and how long it took."""


class City:
    """One run; also what the world has to tell of its machines (`simnet.host.Watch`)."""

    def __init__(
        self,
        world: World,
        hosts: Sequence[Host],
        load: Load,
        policy: Policy = OURS,
        *,
        watch: Watch | None = None,
        scheduler: Scheduler | None = None,
        batch_s: float = 0.02,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Settle on a world's machines, one for each of the load's sites, in order.

        Those that run tell each other of themselves from now on; frames come after `begin`.

        Args:
            scheduler: for ``centre="batch"``; asked every ``batch_s``, or when it is free again.
            clock: measures each decision, into ``decision_s``; the run does not depend on it.
        """
        self.world, self.load, self.policy, self.given = world, load, policy, load.city
        self.scheduler, self.batch_s, self.clock = scheduler, batch_s, clock
        self.decision_s: list[float] = []
        self.outcome = Outcome(self.given)
        self._throttle = [1.0] * len(hosts)
        self.nodes = [self._node(index, host) for index, host in enumerate(hosts)]
        self._of = {node.host.name: node for node in self.nodes}
        self.decider = Decider(policy, load, self.nodes)
        self.ways = Ways(world, load, policy, self.decider, self.outcome, watch or Nobody())
        self._waiting: list[Frame] = []  # for a batch
        for node in self.nodes:
            if node.host.node is not None:
                self.started(node.host)

    # The course of it.

    def begin(self) -> None:
        """Let the cameras send."""
        given, self.ways.begun_s = self.given, self.world.now_s
        for step, factors in enumerate(self.load.throttling()):
            self.world.after(step * given.throttle.every_s, self._wander, factors)
        if self.policy.centre:
            self._plan_all()
        if self.policy.centre == "batch":
            self.world.after(self.batch_s, self._batch)
        self._next(0)

    def end(self) -> Outcome:
        """Give up what is under way, and return what became of the frames."""
        for node in self.nodes:
            for frame in list(node.frames):
                self.ways.end(frame, "lost: not by the end")
        self.outcome.scopes = self.decider.scopes
        self.outcome.plans = sum(node.plans for node in self.nodes)
        self.outcome.moves = sum(node.moves for node in self.nodes)
        self.outcome.trace_hash = self.world.trace_hash()
        return self.outcome

    def frames(self) -> tuple[Frames, ...]:
        """Return what became of each tier's frames, the warm-up's included."""
        return self.outcome.frames()

    def _next(self, number: int) -> None:
        """Have the next frame come when it is time."""
        if number < len(self.load.arrivals):
            at_s = self.ways.begun_s + self.load.arrivals[number].at_s
            self.world.at(at_s, self._come, number)

    def _come(self, number: int) -> None:
        self._next(number + 1)
        arrival, now_s = self.load.arrivals[number], self.world.now_s
        camera = self.load.cameras[arrival.camera]
        home = self._home(camera)
        budget = Budget(camera.deadline_s * 1e3, now_s)
        frame = Frame(arrival, camera, home or self.nodes[camera.home], now_s, budget)
        self.outcome.came(frame)
        self.ways.watch.frame_came(self.ways.now_s, frame.name, camera.tier, camera.deadline_s)
        frame.home.frames[frame] = None
        if home is None:
            self.ways.end(frame, "lost: its node is dead")
        elif home.host.paused:
            self.ways.end(frame, "lost: its node stands still")
        elif self.policy.centre == "batch":
            self._waiting.append(frame)
        else:
            begun_s = self.clock() if self.clock else 0.0
            option = self.decider.option(frame, now_s)
            if self.clock:
                self.decision_s.append(self.clock() - begun_s)
            self.ways.send(frame, option)

    def _home(self, camera: Camera) -> Node | None:
        """Return who runs a camera: its home if that does. O(nodes) for one that was taken over."""
        home = self.nodes[camera.home]
        if home.runs(camera.name) and not home.host.paused:
            return home
        running = [node for node in self.nodes if node.runs(camera.name)]
        return min(running, key=lambda node: node.host.paused, default=None)

    def _wander(self, factors: Sequence[float]) -> None:
        self._throttle = list(factors)
        for node, factor in zip(self.nodes, factors, strict=True):
            if node.run:
                node.accelerator.throttle = factor

    def _batch(self) -> None:
        """Let the scheduler place what has come; it decides one batch after the other."""
        frames, self._waiting, took_s = [one for one in self._waiting if not one.reason], [], 0.0
        if frames:
            assert self.scheduler is not None, "a centre of batches needs one"
            targets, took_s = self.scheduler(frames, self)
            for frame, target in zip(frames, targets, strict=True):
                self.world.after(took_s, self._ordered, frame, self.nodes[target])
        self.world.after(max(self.batch_s, took_s), self._batch)

    def _ordered(self, frame: Frame, node: Node) -> None:
        wait_ms = node.accelerator.waits_ms[frame.camera.tier - 1]
        name = None if node is frame.home else node.id
        run_ms = self.decider.run_ms(frame, node, self.world.now_s)
        way_ms = self.load.way_ms(frame.home.index, node.index)
        self.ways.send(frame, Option(name, wait_ms, run_ms, way_ms))

    # The nodes.

    def _node(self, index: int, host: Host) -> Node:
        site, given = self.load.sites[index], self.given
        cameras = [one for one in self.load.cameras if one.home == index]
        times = dict(site.profile.service_ms)
        if not self.policy.affinity:
            times = dict.fromkeys(times, given.idle_service_ms)

        def accelerator() -> Accelerator:
            queue = queue_of(given.queue, tiered=self.policy.coordinated)
            found = Accelerator(site, queue, times, lambda: self.world.now_s)
            found.throttle = self._throttle[index]
            return found

        rng = self.load.rng(f"decide {index}")
        return Node(index, host, accelerator, cameras, given.cameras.rate_hz, rng, given.epoch_s)

    def started(self, host: Host) -> None:
        """Let a machine's node begin: it has its journal, and nothing else."""
        node = self._of[host.name]
        run = node.run + 1
        node.boot(lambda after_s: self.world.after(after_s, self._reconcile, node, run))
        if node.run == 1:
            self._look_back(node)
        if self.policy.centre:
            return
        rng = self.load.rng(f"phases {node.index} {node.run}")
        report_s, epoch_s = self.world.config.volatile_interval_s, self.given.epoch_s
        for period_s, action in ((report_s, node.exchange), (epoch_s, lambda: self._epoch(node))):
            self.world.after(rng.random() * period_s, self._tick, node, run, period_s, action)

    def stopped(self, host: Host) -> None:
        """Let a machine's node be gone, with all that it holds."""
        node = self._of[host.name]
        if node.up:
            node.crash()
            for frame in list(node.frames):
                self.ways.end(frame, "lost: its node is dead")

    def persisted(self, host: Host, batch: Batch) -> None:
        """Take that a batch is durable: nothing to do."""

    def told(self, host: Host, event: Event) -> None:
        """Let a node know what its gossip says."""
        node = self._of[host.name]
        if not node.up:
            return
        if isinstance(event, MemberDown | MemberLeft):
            node.view.forget(event.node_id)
        if not node.is_stale:
            node.is_stale = True
            self.world.after(RECONCILE_S, self._reconcile, node, node.run)

    def _look_back(self, node: Node) -> None:
        """Let a node know what the frames of its cameras took before the run."""
        for camera in self.load.cameras:
            if camera.home == node.index:
                for number in range(-SEEN_BEFORE, 0):
                    share = self.policy.share(camera, number)
                    node.warmth.answered(camera.name, None, share, node.now_s - 1.0)

    def _tick(self, node: Node, run: int, period_s: float, action: Callable[[], None]) -> None:
        if node.up and node.run == run:
            if not node.host.paused:
                action()
            self.world.after(period_s, self._tick, node, run, period_s, action)

    def _epoch(self, node: Node) -> None:
        node.claim()
        if self.policy.plans:
            node.plan()

    def _reconcile(self, node: Node, run: int) -> None:
        if node.is_awake(run, self._reconcile, node, run):
            node.reconcile()

    def _plan_all(self) -> None:
        """Plan for a centre, which knows what everybody knows."""
        rate_hz, living = self.given.cameras.rate_hz, dict[bytes, Capacity]()
        for node in self.nodes:
            if node.up:
                living.update(node.directory.capacities([node.id]))
        up = [node for node in self.nodes if node.id in living]
        seats = [
            Seat(node.id, type_of(living[node.id], times), living[node.id].zone, times, TARGET)
            for node in up
            for times in (node.accelerator.service_ms,)
        ]
        streams = [one for node in up for one in node.streams(rate_hz)]
        current = {
            one.agent: node.planner.planned(one.agent) or node.id
            for node in up
            for one in node.streams(rate_hz)
            if node.planner.plan.primary
        }
        made = plan(streams, seats, current)
        for node in up:
            node.follow(made, seats, living, current)
        self.world.after(self.given.epoch_s, self._plan_all)
