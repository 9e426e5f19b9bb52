"""The way of one task: decide where it runs, run or forward it, remember why.

Owns the decision for this node's own frames and what becomes of peers' frames. Never touches a
pixel but as JPEG. Invariants: a task is tried again only with what is left of its budget, and of
the answers that come the first counts; a peer's frame is passed on at most once.
"""

import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from edge_node import clock
from edge_node.adaptation import Adaptation, costs_there
from edge_node.cameras.spec import LONG_SIDE_PX
from edge_node.decisions import Decisions, Record, ended
from edge_node.fleet.peers import LATE, UNUSABLE, PeerError, Peers
from edge_node.fleet.planner import Planner
from edge_node.foresight import Foresight
from edge_node.metrics import Counters
from edge_node.placement.baselines import blind, round_robin
from edge_node.placement.budget import Budget, BudgetSpent, patience_ms
from edge_node.placement.choose import Decision, bounce, choose
from edge_node.placement.view import FleetView, Option
from edge_node.placement.warmth import Warmth
from edge_node.pool import WorkerPool
from edge_node.workers import Effort, Inference, ModelError, Shed, WorkerHandle
from models.wire import ALONE, SHORT

SUBMITTED = f"{ALONE}infer"
"""What stands for the agent of a task that came through the API."""


class Answer(NamedTuple):
    """What became of a submitted image."""

    node: str
    inference: Inference
    frame: int
    spent_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """A frame of this node's camera, to be answered; its pixels are in the worker."""

    agent: str
    frame: int
    digest: str
    tier: int
    deadline_s: float
    """CLOCK_MONOTONIC."""
    is_reusable: bool
    worker: WorkerHandle


class Dispatch:
    """Places this node's frames, and serves its peers'."""

    def __init__(
        self,
        name: str,
        view: FleetView,
        planner: Planner,
        peers: Peers,
        pool: WorkerPool,
        counters: Counters,
        rng: random.Random,
        quality: Callable[[str, Effort], float],
        foresight: Foresight,
    ) -> None:
        self.decisions = Decisions()
        self.warmth = Warmth()
        self.adaptation = Adaptation(quality)
        self.policy = "affinity"
        """One of ``[placement] policy``."""
        self._name = name
        self._view = view
        self._planner = planner
        self._peers = peers
        self._pool = pool
        self._counters = counters
        self._rng = rng
        self._foresight = foresight
        self._turn = 0
        self._submitted = 0

    async def answer(self, work: Work) -> tuple[str, Inference]:
        """Return which node ran a frame of this node's camera, and its answer.

        Raises:
            Shed: it is not answered, with the reason.
            ModelError: its model failed.
        """
        now_s = time.monotonic()
        budget_ms = (work.deadline_s - now_s) * 1e3
        record = self._record(work.agent, work.frame, work.digest, work.tier, budget_ms)
        try:
            node, inference = await self._place(work, record, Budget(budget_ms, now_s))
        except BudgetSpent as error:
            record.outcome = ended(error)
            raise Shed("deadline") from error
        except (Shed, ModelError) as error:
            record.outcome = ended(error)
            raise
        else:
            record.answered(inference, time.monotonic() - now_s)
            self._foresight.ended(record)
            self._note_work(record)
        finally:
            self.adaptation.ended(record)
        return node, inference

    async def _place(self, work: Work, record: Record, budget: Budget) -> tuple[str, Inference]:
        if not work.is_reusable:  # else the earlier answer holds, at no cost worth a decision
            record.decision = self._decide(record, work.worker)
            option = record.decision.option
            if option is None:
                raise Shed("nobody has the model")
            self._counters.add("placed", scope=record.decision.scope)
            costs_ms = work.worker.costs_ms
            if option.node is not None:
                costs_ms = costs_there(costs_ms, self._view.peers[option.node].service_ms)
            record.way = self.adaptation.choose(record, option, costs_ms)
            record.prior_ms = costs_ms.get(record.way, 0.0)
            if option.node is not None:
                node, reply = await self._forward(work, record, budget, option)
                if reply is not None:
                    return node, reply
        digest, effort = record.way
        return self._name, await _run(
            record,
            budget,
            lambda due_s: work.worker.infer_frame(
                work.agent, work.frame, digest, due_s, work.tier, effort
            ),
        )

    def _note_work(self, record: Record) -> None:
        """Learn where the agent's next frame finds something to reuse, and what that saves."""
        place = record.decision.option if record.decision else None
        inference = record.inference
        if inference is None:
            return
        if place is None:
            work = 0.0  # the earlier answer held
        elif inference.rung == "full" or place.service_ms <= 0:
            work = 1.0
        else:
            work = inference.service_ms / place.service_ms
        node = record.attempts[-1].node if record.attempts else None
        self.warmth.answered(record.agent, node, work, time.monotonic())

    def _decide(self, record: Record, worker: WorkerHandle | None) -> Decision:
        now_s, kind, tier = time.monotonic(), record.digest[:SHORT], record.tier
        here = None
        if worker is not None and (service_ms := worker.service_ms.get(record.digest)) is not None:
            here = self._at(Option(None, worker.waits_ms[tier - 1], service_ms), record, now_s)

        def ask(node: bytes) -> Option | None:
            option = self._view.option(node, kind, tier, now_s)
            if option is None:
                return None
            return self._foresight.foreseen(self._at(option, record, now_s), record.way)

        if self.policy == "affinity":
            here = self._foresight.foreseen(here, record.way) if here else None
            planned, reach = self._planner.planned(record.agent), self._planner.reach(kind)
            wanted = here if planned is None or self._planner.serves(kind) else None
            decision = choose(
                record.budget_ms,
                wanted,
                planned,
                reach,
                ask,
                self._rng,
                reuses=self.warmth.reuses(record.agent),
            )
            if decision.option is None and here is not None:
                decision = Decision(here, "here", (here,))
            if decision.option is not None and decision.scope != "plan":
                self._planner.moved(record.agent, decision.option.node)
            return decision
        if self.policy == "local":
            return Decision(here, "here", (here,) if here else ())
        peers = list(self._view.peers)
        if self.policy == "blind":
            return blind(here, peers, ask, self._rng)
        self._turn += 1
        return round_robin(self._turn, here, peers, ask)

    def _at(self, option: Option, record: Record, now_s: float) -> Option:
        """Return a place as it is for an agent's next frame, which may find something to reuse."""
        share = self.warmth.share(record.agent, option.node, now_s)
        return option if share == 1.0 else replace(option, share=share)

    async def _forward(
        self, work: Work, record: Record, budget: Budget, there: Option
    ) -> tuple[str, Inference | None]:
        """Return who answered and the answer, or None if the frame should run here after all."""
        jpeg = await work.worker.encode_frame(work.agent, work.frame, LONG_SIDE_PX)
        answer = await self._ask(record, jpeg, there, budget)
        if answer is None:
            return self._name, None
        self._counters.add("forwarded", agent=work.agent)
        return self._peers.name(answer[0]), answer[1]

    async def _ask(
        self, record: Record, jpeg: bytes, there: Option, budget: Budget, bounced: bool = False
    ) -> tuple[bytes, Inference] | None:
        """Send a task to a peer with what it may take of the budget; None if it did not answer."""
        node, sent_s = there.node, time.monotonic()
        digest, effort = record.way
        assert node is not None
        left_ms = budget.remaining_ms(sent_s)
        timeout_ms = patience_ms(there.finish_ms, left_ms)
        given = budget.split(sent_s, ms=min(timeout_ms, left_ms))
        request = {
            "agent": record.agent,
            "frame": record.frame,
            "digest": digest,
            "effort": effort,
            "budget_ms": given.for_wire(sent_s, there.network_ms),
            "tier": record.tier,
            "bounced": bounced,
            "image": jpeg,
        }
        factor = self.warmth.factor(record.agent)
        self._view.sent(node, digest[:SHORT], record.tier, sent_s, factor)
        attempt = record.attempt(node)
        try:
            answered_by, inference = await self._peers.infer(node, request, timeout_ms / 1e3)
        except PeerError as error:
            now_s = time.monotonic()
            attempt.outcome, attempt.spent_ms = error.reason, (now_s - sent_s) * 1e3
            self._counters.add("forward_failed", reason=error.reason)
            self._doubt(node, error, there, record, now_s)
            if not error.at_work:
                given.refused(now_s)
                budget.rejoin(given, now_s)
            return None
        now_s = time.monotonic()
        spent_ms = (now_s - sent_s) * 1e3
        attempt.outcome = "answered" if answered_by == node else "passed on"
        attempt.spent_ms = spent_ms
        way_ms = spent_ms - inference.wait_ms - inference.service_ms
        first, second, third = inference.waits_ms
        self._view.heard_reply(
            node, (first, second, third), way_ms, there.finish_ms, spent_ms, now_s
        )
        return answered_by, inference

    def _doubt(
        self, node: bytes, error: PeerError, there: Option, record: Record, now_s: float
    ) -> None:
        """Take into the view that a peer did not answer."""
        if error.silent:
            self._view.unanswered(node, now_s)
        elif error.reason in LATE:
            # Had it been answered, it would have been after the deadline.
            excess_ms = record.budget_ms - min(there.finish_ms, record.budget_ms)
            self._view.had_no_time(node, excess_ms, now_s)
        elif error.reason not in UNUSABLE or record.agent != SUBMITTED:
            # What somebody submitted may be no image: that is not for the peer to answer for.
            self._view.refused(node, record.budget_ms, now_s)

    async def receive(self, sender: bytes, request: Mapping[str, Any]) -> tuple[bytes, Inference]:
        """Answer a peer's frame here, or pass it on once; return who answered it (b"": this node).

        Args:
            request: what :func:`edge_node.api.peer.decode_infer` checked.

        Raises:
            BudgetSpent: its deadline has passed.
            Shed: it would not be in time, or this node does not run that model.
        """
        began_s = time.monotonic()
        record = self._record(
            request["agent"],
            request["frame"],
            request["digest"],
            request["tier"],
            request["budget_ms"],
            sender,
            request["effort"],
        )
        try:
            budget = Budget.from_wire(record.budget_ms, began_s)
            answer = await self._serve(record, request["image"], budget, request["bounced"])
        except (BudgetSpent, Shed, ModelError) as error:
            record.outcome = ended(error)
            raise
        record.answered(answer[1], time.monotonic() - began_s)
        if not answer[0]:
            self.warmth.answered(record.agent, None, 1.0, time.monotonic())
        self._counters.add("received")
        return answer

    async def submit(self, digest: str, tier: int, budget_ms: float, jpeg: bytes) -> Answer:
        """Answer an image that somebody gave this node, here or elsewhere.

        Raises:
            BudgetSpent: its deadline has passed.
            KeyError: no node has the model.
            Shed: it would not be in time.
            ModelError: the model failed.
        """
        began_s = time.monotonic()
        self._submitted += 1
        record = self._record(SUBMITTED, self._submitted, digest, tier, budget_ms)
        try:
            budget = Budget(budget_ms, began_s)
            worker = self._pool.least_loaded(digest, tier)
            record.decision = self._decide(record, worker)
            there = record.decision.option
            if there is None:
                raise KeyError(f"no living node has the model {digest[:SHORT]}")
            answer = await self._ask(record, jpeg, there, budget) if there.node else None
            if answer is None:
                answer = await self._serve(record, jpeg, budget, bounced=True)
        except (BudgetSpent, KeyError, Shed, ModelError) as error:
            record.outcome = ended(error)
            raise
        answered_by, inference = answer
        record.answered(inference, time.monotonic() - began_s)
        node = self._peers.name(answered_by) if answered_by else self._name
        return Answer(node, inference, record.frame, time.monotonic() - began_s)

    async def _serve(
        self, record: Record, jpeg: bytes, budget: Budget, bounced: bool
    ) -> tuple[bytes, Inference]:
        digest, effort = record.way
        worker = self._pool.least_loaded(digest, record.tier)
        if worker is None:
            raise Shed("model not loaded")
        if not bounced:
            passed_on = await self._bounce(record, jpeg, budget, worker)
            if passed_on is not None:
                # The sender learns of this node's waits, not of the other's.
                answered_by, inference = passed_on
                return answered_by, replace(inference, waits_ms=list(worker.waits_ms))
        return b"", await _run(
            record,
            budget,
            lambda due_s: worker.infer_image(
                record.agent, jpeg, digest, due_s, record.tier, effort
            ),
        )

    async def _bounce(
        self, record: Record, jpeg: bytes, budget: Budget, worker: WorkerHandle
    ) -> tuple[bytes, Inference] | None:
        """Pass a peer's frame on if it would be late here and in time elsewhere."""
        now_s, kind = time.monotonic(), record.way[0][:SHORT]
        ahead_ms = worker.waits_ms[record.tier - 1]
        if not self.warmth.is_warm(record.agent, None, now_s):  # else it needs little of its own
            ahead_ms += worker.costs_ms.get(record.way, 0.0)

        def ask(node: bytes) -> Option | None:
            known = node != record.sender
            return self._view.option(node, kind, record.tier, now_s) if known else None

        reach = self._planner.reach(kind)
        there = bounce(budget.remaining_ms(now_s), ahead_ms, reach, ask, self._rng)
        if there is None:
            return None
        self._counters.add("bounced")
        return await self._ask(record, jpeg, there, budget, bounced=True)

    def _record(
        self,
        agent: str,
        frame: int,
        digest: str,
        tier: int,
        budget_ms: float,
        sender: bytes | None = None,
        effort: Effort = "full",
    ) -> Record:
        wall_ms = clock.now().wall_ms
        record = Record(agent, frame, digest, (digest, effort), tier, budget_ms, wall_ms, sender)
        return self.decisions.add(record)


async def _run(
    record: Record, budget: Budget, infer: Callable[[float], Awaitable[Inference]]
) -> Inference:
    """Have a worker of this node answer a task by the end of its budget; note the attempt."""
    attempt, began_s = record.attempt(None), time.monotonic()
    try:
        inference = await infer(began_s + budget.remaining_ms(began_s) / 1e3)
    except (Shed, ModelError) as error:
        attempt.outcome = error.reason if isinstance(error, Shed) else "model failed"
        raise
    finally:
        attempt.spent_ms = (time.monotonic() - began_s) * 1e3
    attempt.outcome = "answered"
    return inference
