"""Who runs a camera: real stores that exchange batches, real workers that open cameras."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from crdt import HybridClock, Instant, Store
from edge_node.cameras.agents import Agents
from edge_node.cameras.hosts import Hosts
from edge_node.config import CameraConfig
from edge_node.fleet.auth import Signer
from edge_node.fleet.load import Capacity
from edge_node.fleet.peers import Peers
from edge_node.metrics import Counters
from edge_node.placement.hosting import CLAIM_EPOCHS
from edge_node.placement.view import FleetView
from edge_node.workers import ModelFile, WorkerHandle
from gossip import Identity, Keyring, verify
from models.accelerators import AcceleratorSpec
from models.manifest import load_manifest

ABLE = Capacity(passes_per_s=100.0, takeover=True, files="")


class Site:
    """One node's hosting, without a network."""

    def __init__(self, name: str) -> None:
        self.wall_ms = 1_000_000
        identity = Identity.generate()
        self.id = identity.node_id
        self.store = Store(
            self.id,
            epoch=1,
            sign=identity.sign,
            verify=verify,
            public_key=identity.public_key,
            clock=HybridClock(),
        )
        self.results: list[dict[str, object]] = []
        signer = Signer(self.id, bytes(16), Keyring(bytes(32)))
        peers = Peers(signer, lambda _: None, lambda n: n.hex())
        self.agents = Agents(
            self.id,
            name,
            ("person",),
            FleetView(),
            peers,
            Counters(),
            random.Random(1),
            self.results.append,
        )
        self.worker = WorkerHandle(
            AcceleratorSpec("cpu", "cpu"),
            on_frame=self.agents.frame_ready,
            on_event=lambda _: None,
        )
        self.hosts = Hosts(
            self.id, self.store, self.agents, lambda: [self.worker], self.now, self.stage
        )

    @staticmethod
    def stage(write: Callable[..., None], *arguments: object) -> bool:
        write(*arguments)
        return True

    def now(self) -> Instant:
        self.wall_ms += 10
        return Instant(self.wall_ms / 1e3, self.wall_ms)

    def publish(self, *names: str) -> None:
        cameras = [CameraConfig(name=name, source="generated:1") for name in names]
        self.hosts.publish(cameras, "person-detector")

    def commit(self) -> None:
        for batch in self.store.commit(self.now()):
            self.store.persisted(batch, self.now())

    async def reconcile(self, model: ModelFile) -> set[str]:
        await self.hosts.reconcile(model.digest, "")
        return set(self.agents.hosted)


def tell(*sites: Site) -> None:
    """Make all replicas equal."""
    for site in sites:
        site.commit()
    for giver in sites:
        for taker in sites:
            for origin in giver.store.knowledge():
                key = giver.store.key_of(origin)
                assert key is not None
                for raw in giver.store.live_batches(origin):
                    taker.store.merge(raw, taker.now(), key)
    assert len({site.store.fingerprint() for site in sites}) == 1


def with_sites(scenario: Callable[[Site, Site, ModelFile], Awaitable[None]]) -> None:
    async def run() -> None:
        a, b = Site("a"), Site("b")
        model = load_manifest().variants["small"]
        try:
            for site in (a, b):
                await site.worker.start()
                await site.worker.load(model)
            await scenario(a, b, model)
        finally:
            for site in (a, b):
                await site.agents.close(1.0)
                await site.worker.stop(0.0)

    asyncio.run(run())


def alive(**capacities: tuple[Site, Capacity]) -> Mapping[bytes, Capacity]:
    return {site.id: capacity for site, capacity in capacities.values()}


def test_a_successor_waits_its_epochs_and_gives_the_camera_back() -> None:
    async def scenario(a: Site, b: Site, model: ModelFile) -> None:
        a.publish("door")
        tell(a, b)
        assert await a.reconcile(model) == {"door"}
        assert await b.reconcile(model) == set()
        only_b = alive(b=(b, ABLE))
        for _ in range(CLAIM_EPOCHS - 1):
            assert b.hosts.claim(only_b) == []
        assert b.hosts.claim(only_b) == ["door"]
        tell(a, b)
        assert await b.reconcile(model) == {"door"}
        # The home is back: it runs its camera and says so at once; the successor stops.
        assert await a.reconcile(model) == {"door"}
        both = alive(a=(a, ABLE), b=(b, ABLE))
        assert a.hosts.claim(both) == ["door"]
        assert b.hosts.claim(both) == []
        tell(a, b)
        assert await b.reconcile(model) == set()
        assert a.hosts.claim(both) == []

    with_sites(scenario)


def test_agents_of_one_camera_go_to_one_accelerator() -> None:
    async def scenario(a: Site, b: Site, model: ModelFile) -> None:
        other = WorkerHandle(
            AcceleratorSpec("cpu1", "cpu"), on_frame=a.agents.frame_ready, on_event=lambda _: None
        )
        a.hosts = Hosts(a.id, a.store, a.agents, lambda: [a.worker, other], a.now, a.stage)
        try:
            await other.start()
            await other.load(model)
            sources = {"desk": "generated:1", "door": "generated:1", "yard": "generated:2"}
            cameras = [CameraConfig(name=name, source=source) for name, source in sources.items()]
            a.hosts.publish(cameras, "person-detector")
            tell(a, b)
            assert await a.reconcile(model) == set(sources)
            hosted = a.agents.hosted
            assert hosted["desk"].worker is hosted["door"].worker is not hosted["yard"].worker
        finally:
            await a.agents.close(1.0)
            await other.stop(0.0)

    with_sites(scenario)


def test_no_claim_of_another_closes_a_camera_at_home() -> None:
    async def scenario(a: Site, b: Site, model: ModelFile) -> None:
        a.publish("door", "desk")
        tell(a, b)
        await a.reconcile(model)
        running = dict(a.agents.hosted)
        for _ in range(CLAIM_EPOCHS):
            b.hosts.claim(alive(b=(b, ABLE)))
        tell(a, b)
        assert await a.reconcile(model) == {"door", "desk"}
        assert all(a.agents.hosted[name] is agent for name, agent in running.items())

    with_sites(scenario)


def test_a_home_without_an_accelerator_leaves_its_cameras_to_others() -> None:
    async def scenario(a: Site, b: Site, model: ModelFile) -> None:
        a.publish("door")
        tell(a, b)
        broken = alive(a=(a, Capacity(0.0, True, "")), b=(b, ABLE))
        for _ in range(CLAIM_EPOCHS):
            assert a.hosts.claim(broken) == []
            b.hosts.claim(broken)
        tell(a, b)
        assert await b.reconcile(model) == {"door"}

    with_sites(scenario)


def test_of_two_cameras_with_one_name_the_elder_keeps_running() -> None:
    async def scenario(a: Site, b: Site, model: ModelFile) -> None:
        a.publish("door")
        tell(a, b)
        await a.reconcile(model)
        b.wall_ms = a.wall_ms + 60_000
        b.publish("door", "desk")
        tell(a, b)
        assert await a.reconcile(model) == {"door"}
        assert await b.reconcile(model) == {"desk"}
        assert a.hosts.conflicts() == []
        assert b.hosts.conflicts() == ["door"]
        both = alive(a=(a, ABLE), b=(b, ABLE))
        assert a.hosts.claim(both) == b.hosts.claim(both) == []

    with_sites(scenario)


def test_a_camera_that_cannot_be_opened_hinders_no_other_and_is_tried_again() -> None:
    async def scenario(a: Site, b: Site, model: ModelFile) -> None:
        a.publish("desk", "door")
        tell(a, b)
        unknown = ModelFile("person-detector", "none", "1", str(Path("/none")), "0" * 64)
        assert await a.reconcile(unknown) == set()
        assert set(a.hosts.problems) == {"desk", "door"}
        assert await a.reconcile(model) == {"desk", "door"}
        assert a.hosts.problems == {}
        # A model that is not there: what ran before still runs, and answers.
        assert await a.reconcile(unknown) == {"desk", "door"}
        assert a.agents.digests == {model.digest}
        before = len(a.results)
        async with asyncio.timeout(20):
            while len(a.results) < before + 5:
                await asyncio.sleep(0.02)
        assert {result["digest"] for result in a.results} == {model.digest}

    with_sites(scenario)


def test_a_removed_camera_ends_everywhere_and_leaves_no_claim() -> None:
    async def scenario(a: Site, b: Site, model: ModelFile) -> None:
        a.publish("door")
        tell(a, b)
        for _ in range(CLAIM_EPOCHS):
            b.hosts.claim(alive(b=(b, ABLE)))
        tell(a, b)
        assert await b.reconcile(model) == {"door"}
        a.publish()
        tell(a, b)
        assert await b.reconcile(model) == set()
        assert a.store.fleet("host/door", a.now()) is None

    with_sites(scenario)


def test_every_frame_ends_exactly_once_across_reopening_and_closing() -> None:
    async def scenario(a: Site, b: Site, model: ModelFile) -> None:
        seen = []
        a.publish("door")
        tell(a, b)
        for _ in range(3):
            await a.reconcile(model)
            agent = a.agents.hosted["door"]
            seen.append(agent)
            async with asyncio.timeout(20):
                while agent.answered < 5:
                    await asyncio.sleep(0.02)
            await a.agents.release("door")
        await a.agents.close(5.0)
        for agent in seen:
            assert agent.frames == agent.answered + agent.shed + agent.lost
            assert agent.in_flight == 0
        numbers = [result["frame"] for result in a.results]
        assert len(numbers) == len(set(numbers)) == sum(agent.answered for agent in seen)

    with_sites(scenario)
