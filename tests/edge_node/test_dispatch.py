"""The way of one task: real HTTP to peers that behave well or badly, a real worker here."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from edge_node.api.peer import peer_app
from edge_node.config import AcceleratorConfig
from edge_node.decisions import Decisions, Record, explain
from edge_node.dispatch import SUBMITTED, Dispatch
from edge_node.fleet.auth import Signer, Verifier
from edge_node.fleet.peers import Peers
from edge_node.foresight import Foresight
from edge_node.metrics import Counters
from edge_node.placement import budget
from edge_node.placement.budget import FORWARD_MIN_MS, BudgetSpent
from edge_node.placement.choose import Reach
from edge_node.placement.view import IDLE, FleetView
from edge_node.pool import WorkerPool
from gossip import Keyring
from models.images import encode_jpeg
from models.manifest import load_manifest
from models.wire import SHORT, ModelError, Shed
from tests.clips import picture
from tests.edge_node.http_node import A, Node, serving

SMALL = load_manifest().variants["small"]
SECRET = bytes(range(100, 132))
HERE, PEER, OTHER = (bytes([n]) * 16 for n in (9, 1, 2))
JPEG = encode_jpeg(picture())
NAMES = {PEER: "peer", OTHER: "other"}


class Peer(Node):
    """A peer that answers after a while, or refuses."""

    def __init__(
        self, *, late_s: float = 0.0, error: Exception | None = None, **told: object
    ) -> None:
        super().__init__()
        self.late_s, self.error, self.told = late_s, error, told
        self.requests: list[Mapping[str, Any]] = []

    async def peer_infer(self, sender: bytes, request: Mapping[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        await asyncio.sleep(self.late_s)
        return {
            "boxes": [], "digest": request["digest"], "variant": "small", "rung": "full",
            "effort": request["effort"],
            "service_ms": 1.0, "wait_ms": 0.0, "waits_ms": IDLE, "node": b"", **self.told,
        }  # fmt: skip


class Planned:
    """The plan of an epoch, as a test wants it."""

    def __init__(self, agents: Mapping[str, bytes], reach: Reach) -> None:
        self.agents, self._reach = agents, reach

    def planned(self, agent: str) -> bytes | None:
        return self.agents.get(agent)

    def reach(self, kind: str) -> Reach:
        return self._reach

    def serves(self, kind: str) -> bool:
        return True

    def moved(self, agent: str, node: bytes | None) -> None:
        """A test's plan stays as it is."""


class Site:
    """One node: its dispatch, what it believes, and what it counted."""

    def __init__(self, dispatch: Dispatch, view: FleetView, counters: Counters) -> None:
        self.dispatch, self.view, self.counters = dispatch, view, counters
        self._number = 0

    def hear(self, node: bytes, wait_ms: float = 0.0, service_ms: float = 1.0) -> None:
        """Take a load report of a peer, true or not."""
        self._number += 1
        now_s = asyncio.get_running_loop().time()
        kinds = {SMALL.digest[:SHORT]: service_ms}
        self.view.heard_load(node, self._number, (wait_ms,) * 3, kinds, 1.0, now_s)

    async def submit(self, budget_ms: float = 5_000.0) -> str:
        return (await self.dispatch.submit(SMALL.digest, 2, budget_ms, JPEG)).node


@asynccontextmanager
async def site(
    peers: Mapping[bytes, Peer], *, planned: bytes | None = None, loaded: bool = True
) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        ports = {
            node: (await stack.enter_async_context(
                serving(peer_app(peer, Verifier(node, Keyring(SECRET))))
            )).port
            for node, peer in peers.items()
        }  # fmt: skip
        client = Peers(
            Signer(A, bytes(16), Keyring(SECRET)),
            lambda node: ("127.0.0.1", ports.get(node, 9)),
            lambda node: NAMES[node],
        )
        stack.push_async_callback(client.close)
        pool = WorkerPool(
            [AcceleratorConfig(name="cpu")], lambda frame: None, lambda worker, event: None
        )
        if loaded:
            stack.push_async_callback(pool.stop, 0.0)
            await pool.start()
            await pool.workers[0].load(SMALL)
        view, counters = FleetView(), Counters()
        plan = Planned({SUBMITTED: planned} if planned else {}, Reach((PEER, OTHER)))
        dispatch = Dispatch(
            "here",
            view,
            plan,
            client,
            pool,
            counters,
            random.Random(1),
            lambda digest, effort: 1.0 if effort == "full" else 0.9,
            Foresight(Path(), lambda node: "cpu", lambda digest: SMALL, lambda: 40.0),
        )
        yield Site(dispatch, view, counters)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_task_runs_here_while_that_will_do_and_the_record_says_why() -> None:
    async def test() -> None:
        async with site({PEER: Peer()}) as here:
            here.hear(PEER)
            assert await here.submit() == "here"
            record = here.dispatch.decisions.find(SUBMITTED, None)
            assert record is not None
            told = explain(record, lambda node: "here" if node is None else NAMES[node])
            assert (told["scope"], told["chosen"], told["outcome"]) == ("plan", "here", "answered")
            assert [one["node"] for one in told["attempts"]] == ["here"]
            assert told["latency_ms"] >= told["service_ms"] > 0

    run(test)


def test_a_peer_that_answers_later_than_it_says_loses_its_traffic_within_seconds() -> None:
    liar = Peer(late_s=0.25)

    async def test() -> None:
        async with site({PEER: liar}, planned=PEER) as here:
            where: Counter[str] = Counter()
            for turn in range(20):
                here.hear(PEER)  # it goes on saying that it is idle and quick
                node = await here.submit(budget_ms=300.0)
                where[node] += turn >= 10
            assert where["peer"] == 0
            assert len(liar.requests) <= 5

    run(test)


def test_a_peer_without_the_accelerator_it_advertises_loses_its_traffic() -> None:
    liar = Peer(error=Shed("model not loaded"))

    async def test() -> None:
        async with site({PEER: liar}, planned=PEER) as here:
            for _ in range(30):
                here.hear(PEER, service_ms=20.0)
                assert await here.submit(budget_ms=300.0) == "here"  # what is left is enough
            assert 1 <= len(liar.requests) <= 8
            record = here.dispatch.decisions.find(SUBMITTED, 1)
            assert record is not None
            outcomes = [(one.node, one.outcome) for one in record.attempts]
            assert outcomes == [(PEER, "refused with 503"), (None, "answered")]

    run(test)


def test_a_peer_that_is_gone_costs_one_attempt() -> None:
    async def test() -> None:
        async with site({}, planned=PEER) as here:
            for _ in range(3):
                here.hear(PEER)
                assert await here.submit() == "here"
            assert here.counters.get("forward_failed", reason="unreachable") == 1

    run(test)


def test_a_task_whose_model_nobody_has_ends_at_once_with_the_reason() -> None:
    async def test() -> None:
        async with site({PEER: Peer()}, loaded=False) as here:
            with pytest.raises(KeyError, match="no living node has the model"):
                await here.submit()
            here.hear(PEER)
            assert await here.submit() == "peer"

    run(test)


@pytest.mark.parametrize("budget_ms", [0.0, -20.0])
def test_a_zero_or_past_deadline_is_answered_with_the_reason_and_not_queued(
    budget_ms: float,
) -> None:
    async def test() -> None:
        async with site({PEER: Peer()}) as here:
            with pytest.raises(BudgetSpent, match="the deadline passed"):
                await here.submit(budget_ms)
            record = here.dispatch.decisions.find(SUBMITTED, None)
            assert record is not None
            assert record.attempts == []
            assert "the deadline passed" in record.outcome

    run(test)


def request(budget_ms: float, *, bounced: bool, agent: str = "door") -> dict[str, Any]:
    return {
        "agent": agent, "frame": 1, "digest": SMALL.digest, "budget_ms": budget_ms, "tier": 2,
        "image": JPEG, "bounced": bounced, "effort": "full",
    }  # fmt: skip


def test_what_would_be_late_here_is_passed_on_once_and_the_sender_is_told_by_whom() -> None:
    third = Peer()

    async def test() -> None:
        async with site({OTHER: third}) as here:
            (worker,) = here.dispatch._pool.workers
            tight_ms = worker.service_ms[SMALL.digest] / 2
            here.view.forget(PEER)
            for _ in range(20):  # the two that are drawn may both be the unknown one
                here.hear(OTHER, service_ms=0.0)
                here.view.peers[OTHER].network_ms = 0.0
                answered_by, inference = await here.dispatch.receive(
                    PEER, request(1e3 * tight_ms, bounced=False)
                )
                assert answered_by == b""
                try:
                    answered_by, inference = await here.dispatch.receive(
                        PEER, request(tight_ms, bounced=False, agent="yard")
                    )
                except (Shed, BudgetSpent):
                    continue
                if answered_by == OTHER:
                    break
            assert answered_by == OTHER
            assert inference.waits_ms == list(worker.waits_ms)
            assert third.requests[-1]["bounced"] is True
            count = len(third.requests)
            with pytest.raises((Shed, BudgetSpent)):
                await here.dispatch.receive(PEER, request(tight_ms / 10, bounced=True))
            assert len(third.requests) == count

    run(test)


def test_a_peer_is_told_that_the_model_is_not_here_or_the_image_is_none() -> None:
    async def test() -> None:
        async with site({}, loaded=False) as here:
            with pytest.raises(Shed, match="model not loaded"):
                await here.dispatch.receive(PEER, request(1_000.0, bounced=False))
        async with site({}) as here:
            broken = request(1_000.0, bounced=False) | {"image": b"\xff\xd8 no picture"}
            with pytest.raises(ModelError, match="door"):
                await here.dispatch.receive(PEER, broken)
            record = here.dispatch.decisions.find("door", 1)
            assert record is not None
            assert record.outcome.startswith("model failed")

    run(test)


@pytest.mark.parametrize(
    "told",
    [
        {"service_ms": float("nan")}, {"service_ms": float("inf")}, {"service_ms": -1.0},
        {"wait_ms": float("nan")}, {"wait_ms": -1e300}, {"variant": 7}, {"digest": "a" * 10_000},
        {"node": b"x"},
    ],
)  # fmt: skip
def test_an_answer_that_makes_no_sense_teaches_nothing(told: dict[str, object]) -> None:
    async def test() -> None:
        async with site({PEER: Peer(**told)}, planned=PEER) as here:
            here.hear(PEER)
            assert await here.submit() == "here"
            assert here.counters.get("forward_failed", reason="malformed reply") == 1

    run(test)


def test_a_peer_that_cannot_be_reached_costs_none_of_the_budget() -> None:
    async def test() -> None:
        async with site({}, planned=PEER) as here:
            here.hear(PEER)
            # Less than any peer is given: what was meant for it is all there is.
            assert await here.submit(FORWARD_MIN_MS / 2) == "here"
            record = here.dispatch.decisions.find(SUBMITTED, 1)
            assert record is not None
            assert [one.node for one in record.attempts] == [PEER, None]

    run(test)


def test_a_peer_that_makes_believe_that_it_takes_for_ever_is_not_waited_for_so_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "FORWARD_MAX_MS", FORWARD_MIN_MS)
    mute = Peer(late_s=60.0)

    async def test() -> None:
        async with site({PEER: mute}, planned=PEER, loaded=False) as here:
            here.hear(PEER, wait_ms=1e9)
            with pytest.raises(Shed):
                await asyncio.wait_for(here.submit(budget_ms=100.0), 10.0)
            assert here.view.peers[PEER].silence_s > 0

    run(test)


def test_a_peer_has_the_time_that_is_left_when_it_has_the_request() -> None:
    far = Peer()

    async def test() -> None:
        async with site({PEER: far}, planned=PEER) as here:
            here.hear(PEER)
            here.view.peers[PEER].network_ms = 200.0
            assert await here.submit(budget_ms=5_000.0) == "peer"
            assert far.requests[0]["budget_ms"] <= 4_800.0

    run(test)


def test_a_place_counts_for_what_a_frame_takes_that_finds_something_to_reuse() -> None:
    async def test() -> None:
        async with site({PEER: Peer(), OTHER: Peer()}, planned=PEER, loaded=False) as here:
            for _ in range(200):
                here.dispatch.warmth.answered(SUBMITTED, PEER, 0.1, time.monotonic())
            for _ in range(10):
                here.hear(PEER, service_ms=200.0)
                here.hear(OTHER, service_ms=60.0)  # quicker for a frame that finds nothing
                assert await here.submit(budget_ms=600.0) == "peer"

    run(test)


def test_an_image_that_is_none_is_not_held_against_a_peer() -> None:
    strict = Peer(error=ModelError("the image cannot be decoded"))

    async def test() -> None:
        async with site({PEER: strict}, planned=PEER) as here:
            here.hear(PEER)
            with pytest.raises(ModelError):
                await here.dispatch.submit(SMALL.digest, 2, 60_000.0, b"no picture")
            record = here.dispatch.decisions.find(SUBMITTED, 1)
            assert record is not None
            outcomes = [(one.node, one.outcome) for one in record.attempts]
            assert outcomes == [(PEER, "refused with 409"), (None, "model failed")]
            assert here.view.peers[PEER].lateness_ms == 0.0

    run(test)


def test_a_refusal_for_lack_of_time_is_no_reason_for_trust() -> None:
    busy = Peer(error=Shed("queue full"))

    async def test() -> None:
        async with site({PEER: busy}, loaded=False) as here:
            here.hear(PEER, wait_ms=400.0)
            here.view.peers[PEER].was_late(1_000.0, 1.0, asyncio.get_running_loop().time())
            with pytest.raises(Shed):
                await here.submit(budget_ms=300.0)
            assert len(busy.requests) == 1
            assert here.view.peers[PEER].lateness_ms > 980.0  # what is less is the time since

    run(test)


def test_an_answer_that_was_passed_on_is_known_as_such() -> None:
    broker = Peer(node=OTHER)

    async def test() -> None:
        async with site({PEER: broker}, planned=PEER) as here:
            here.hear(PEER)
            assert await here.submit() == "other"
            record = here.dispatch.decisions.find(SUBMITTED, 1)
            assert record is not None
            assert [one.outcome for one in record.attempts] == ["passed on"]

    run(test)


def test_the_newest_record_of_an_agent_is_found_after_its_frames_are_counted_anew() -> None:
    decisions = Decisions()
    for frame in (1, 2, 1):
        decisions.add(Record("door", frame, "", ("", "full"), 2, 1.0, 0))
    newest = decisions.find("door", None)
    assert newest is not None
    assert newest.frame == 1
