"""An agent that is new on a node asks others for its reuse state: real HTTP, a real worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from crdt import HybridClock, Store
from edge_node import clock
from edge_node.api.peer import peer_app
from edge_node.cameras.agents import Agents
from edge_node.cameras.spec import AgentSpec
from edge_node.cameras.warm import WarmStarts
from edge_node.dispatch import Work
from edge_node.fleet.auth import Signer, Verifier
from edge_node.fleet.holdings import Holdings
from edge_node.fleet.peers import Peers
from edge_node.metrics import Counters
from edge_node.placement.fetch import PRIOR_BPS, Holder
from edge_node.placement.view import FleetView
from edge_node.workers import CacheHolding, Inference, WorkerHandle
from gossip import Identity, Keyring, verify
from models import entries
from models.accelerators import AcceleratorSpec
from models.entries import Entry
from models.images import Scaler
from models.manifest import load_manifest
from models.sessions import open_warm
from models.wire import SHORT
from tests.clips import picture
from tests.edge_node.http_node import A, Node, serving

SMALL = load_manifest().variants["small"]
SECRET = bytes(range(100, 132))
HERE, NEAR, FAR, GONE = (bytes([n]) * 16 for n in (9, 1, 2, 3))
DOOR = AgentSpec("door", HERE, "/nowhere.mp4", 10, "m", 200, 2, True, 0, True, 0)


def entry(agent: str = "door") -> bytes:
    session = open_warm(SMALL, AcceleratorSpec("cpu0", "cpu"))
    canvas = session.canvas(picture(), Scaler())
    calibrated = (0.02, None, 0.5, 0.97)
    found = Entry(canvas.pixels, canvas.width, canvas.height, [], 1.0, 1.0, calibrated)
    return entries.encode(agent, SMALL.digest, found)


class Peer(Node):
    """A node that holds whatever bytes a test gives it."""

    def __init__(self, data: bytes | None) -> None:
        super().__init__()
        self.data = data
        self.asked = 0

    async def peer_cache(self, agent: str, digest: str) -> bytes | None:
        self.asked += 1
        assert (agent, digest) == ("door", SMALL.digest)
        return self.data


class Site:
    """One node that hosts the agent, and what it counted."""

    def __init__(self, agents: Agents, peers: Peers, counters: Counters, warm: WarmStarts) -> None:
        self.agents, self.peers, self.counters, self.warm = agents, peers, counters, warm

    def outcomes(self) -> dict[str, float]:
        known = ("taken", "refused", "gone", "unreachable", "not worth it")
        counts = {name: self.counters.get("entries", outcome=name) for name in known}
        return {name: count for name, count in counts.items() if count}


async def answer_here(work: Work) -> tuple[str, Inference]:
    return "here", await work.worker.infer_frame(
        work.agent, work.frame, work.digest, work.deadline_s, work.tier
    )


@asynccontextmanager
async def site(holders: Iterable[tuple[bytes, Peer]], cache_mb: int = 256) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        ports = {
            node: (await stack.enter_async_context(
                serving(peer_app(peer, Verifier(node, Keyring(SECRET))))
            )).port
            for node, peer in holders
        }  # fmt: skip
        peers = Peers(
            Signer(A, bytes(16), Keyring(SECRET)),
            lambda node: ("127.0.0.1", ports[node]) if node in ports else None,
            lambda node: node.hex(),
        )
        stack.push_async_callback(peers.close)
        counters = Counters()
        agents = Agents("here", (), answer_here, counters, lambda agent: 2, lambda result: None)
        worker = WorkerHandle(
            AcceleratorSpec("cpu0", "cpu", cache_mb=cache_mb),
            on_frame=agents.frame_ready,
            on_event=lambda _: None,
        )
        stack.push_async_callback(worker.stop, 0.0)
        await worker.start()
        await worker.load(SMALL)
        await agents.host(DOOR, worker, SMALL.digest)
        yield Site(agents, peers, counters, WarmStarts(HERE, agents, FleetView(), peers, counters))


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def holder(node: bytes, since_ms: int, *, size_bytes: int = 50_000, known: bool = True) -> Holder:
    return Holder(node, 0, size_bytes, known, since_ms)


def test_a_wrong_entry_is_counted_and_the_next_holder_asked() -> None:
    wrong, right = Peer(entry("yard")), Peer(entry())

    async def test() -> None:
        async with site([(NEAR, wrong), (FAR, right)]) as here:
            assert here.peers.bandwidth_bps(FAR) == PRIOR_BPS
            holders = [holder(FAR, 1), holder(NEAR, 2), holder(GONE, 3), holder(HERE, 4)]
            await here.warm.begin("door", holders)
            assert here.outcomes() == {"unreachable": 1, "refused": 1, "taken": 1}
            assert here.counters.get("warm_starts", agent="door") == 1
            assert here.peers.bandwidth_bps(FAR) != PRIOR_BPS  # learnt from the transfer
            # It is asked for once.
            await here.warm.begin("door", holders)
            assert (wrong.asked, right.asked) == (1, 1)
            data = await here.agents.hosted["door"].worker.export_cache("door", SMALL.digest)
            assert data is not None
            found = entries.decode("door", SMALL.digest, data)
            assert found is not None
            assert found.calibrated is not None

    run(test)


def test_where_nothing_is_reused_nobody_is_asked() -> None:
    right = Peer(entry())

    async def test() -> None:
        async with site([(NEAR, right)], cache_mb=0) as here:
            await here.warm.begin("door", [holder(NEAR, 2)])
            assert (right.asked, here.agents.cold, here.outcomes()) == (0, {}, {})

    run(test)


def test_a_body_that_waited_to_be_read_does_not_make_a_link_infinitely_fast() -> None:
    peers = Peers(Signer(A, bytes(16), Keyring(SECRET)), lambda node: None, lambda node: node.hex())
    for spent_s in (0.1, 0.0, 0.1):
        peers._measure(FAR, 10**6, spent_s)
    assert 80e6 <= peers.bandwidth_bps(FAR) < 120e6


def test_what_costs_more_than_it_saves_is_left_where_it_is() -> None:
    near, far = Peer(entry()), Peer(None)

    async def test() -> None:
        async with site([(NEAR, near), (FAR, far)]) as here:
            large = holder(NEAR, 1, size_bytes=1 << 31)
            bare = holder(NEAR, 2, size_bytes=1 << 22, known=False)
            await here.warm.begin("door", [large, bare, holder(FAR, 0)])
            assert here.outcomes() == {"not worth it": 2, "gone": 1}
            assert near.asked == 0
            assert here.counters.get("warm_starts") == 0

    run(test)


def test_without_others_it_stays_cold_and_may_ask_later() -> None:
    peer = Peer(entry())

    async def test() -> None:
        async with site([(NEAR, peer)]) as here:
            assert here.agents.cold == {"door": SMALL.digest}
            await here.warm.begin("door", [])
            await here.warm.begin("door", [holder(HERE, 1)])
            await here.warm.begin("yard", [holder(NEAR, 1)])
            assert here.agents.cold == {"door": SMALL.digest}
            await here.warm.begin("door", [holder(NEAR, 1)])
            assert here.agents.cold == {}
            assert here.outcomes() == {"taken": 1}

    run(test)


def test_the_index_holds_one_element_of_each_node() -> None:
    identity = Identity.generate()
    store = Store(
        identity.node_id, epoch=1, sign=identity.sign, verify=verify,
        public_key=identity.public_key, clock=HybridClock(),
    )  # fmt: skip

    def stage(write: Callable[..., None], *arguments: object) -> bool:
        write(*arguments)
        for batch in store.commit(clock.now()):
            store.persisted(batch, clock.now())
        return True

    key = f"cache/door/{SMALL.digest[:SHORT]}"
    index = Holdings(identity.node_id, store, stage)
    for foreign in (NEAR, [NEAR], [NEAR, 1, "large", False, 1], holder(FAR, 1).element()):
        stage(store.add, key, foreign)
    told = CacheHolding("door", SMALL.digest, True, (1 << 64) - 1, 1000)
    for holding in (told, told, replace(told, calibrated=True)):
        index.take(holding)
    (mine,) = (one for one in index.of("door", SMALL.digest) if one.node == identity.node_id)
    assert (mine.signature, mine.size_bytes, mine.calibrated) == ((1 << 64) - 1, 1000, True)
    assert [one.node for one in index.of("door", SMALL.digest) if one != mine] == [FAR]
    index.withdraw_former()
    assert mine in index.of("door", SMALL.digest)
    # After a restart what was announced before is not so any more.
    stage(store.add, key, identity.node_id)  # as the first version did
    Holdings(identity.node_id, store, stage).withdraw_former()
    assert [one.node for one in index.of("door", SMALL.digest)] == [FAR]
    assert identity.node_id not in store.elements(key)
    index.take(replace(told, held=False))
    index.take(replace(told, held=False))
