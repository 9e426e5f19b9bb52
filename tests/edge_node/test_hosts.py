"""Who runs a camera: real stores that exchange batches, real workers that open cameras."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdt import HybridClock, Instant, Store
from edge_node.cameras.agents import Agents, HostedAgent
from edge_node.cameras.hosts import Hosts
from edge_node.config import CameraConfig
from edge_node.dispatch import Work
from edge_node.fleet.published import Capacity
from edge_node.fleet.tiers import Tiers
from edge_node.metrics import Counters
from edge_node.workers import FrameReady, Inference, ModelFile, WorkerHandle
from gossip import Identity, verify
from models.accelerators import AcceleratorSpec
from models.manifest import load_manifest

ABLE = Capacity(passes_per_s=100.0, takeover=True, files="")


class Site:
    """One node's hosting, without a network."""

    def __init__(self, name: str) -> None:
        self.wall_ms = 1_000_000
        identity = Identity.generate()
        self.id = identity.node_id
        self.counters = Counters()
        self.store = Store(
            self.id,
            epoch=1,
            sign=identity.sign,
            verify=verify,
            public_key=identity.public_key,
            clock=HybridClock(),
        )
        self.results: list[dict[str, object]] = []
        self.agents = Agents(
            name, ("person",), self.answer, self.counters, lambda _: 2, self.results.append
        )
        self.worker = WorkerHandle(
            AcceleratorSpec("cpu", "cpu"),
            on_frame=self.agents.frame_ready,
            on_event=lambda _: None,
        )
        self.workers = [self.worker]
        self.hosts = Hosts(
            self.id,
            self.store,
            self.agents,
            lambda: self.workers,
            self.now,
            self.stage,
            self.counters,
            lambda _: None,
        )

    async def answer(self, work: Work) -> tuple[str, Inference]:
        """Run every frame here."""
        return "here", await work.worker.infer_frame(
            work.agent, work.frame, work.digest, work.deadline_s, work.tier
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

    def run(self) -> set[str]:
        """Take up and lay down agents as :meth:`reconcile` does, without cameras."""
        hosted, belonging = self.agents.hosted, self.hosts.belonging("")
        for name in hosted.keys() - belonging.keys():
            del hosted[name]
        for name, spec in belonging.items():
            hosted.setdefault(name, HostedAgent(spec, self.worker, ""))
        return set(hosted)

    async def reconcile(self, model: ModelFile) -> set[str]:
        await self.hosts.reconcile(model.digest, "")
        return set(self.agents.hosted)


def pass_epoch(*sites: Site) -> None:
    for site in sites:
        site.wall_ms += round(site.hosts.epoch_s * 1e3)


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


def test_a_claim_takes_effect_after_an_epoch_and_the_home_gets_its_camera_back() -> None:
    async def scenario(a: Site, b: Site, model: ModelFile) -> None:
        a.publish("door")
        tell(a, b)
        assert await a.reconcile(model) == {"door"}
        assert await b.reconcile(model) == set()
        assert b.hosts.claim(alive(b=(b, ABLE))) == {"door": "death"}
        tell(a, b)
        assert await b.reconcile(model) == set()
        pass_epoch(b)
        assert await b.reconcile(model) == {"door"}
        # The home is back: it runs its camera and says so at once; the successor stops.
        assert await a.reconcile(model) == {"door"}
        both = alive(a=(a, ABLE), b=(b, ABLE))
        assert a.hosts.claim(both) == {"door": "home"}
        assert b.hosts.claim(both) == {}
        tell(a, b)
        assert await b.reconcile(model) == set()
        assert a.hosts.claim(both) == {}
        assert a.counters.get("handovers", cause="home") == 1
        assert b.counters.get("handovers") == b.counters.get("handovers", cause="death") == 1

    with_sites(scenario)


def test_of_two_claims_that_cross_the_smaller_never_takes_effect() -> None:
    a, b, c = Site("a"), Site("b"), Site("c")
    a.publish("door")
    tell(a, b, c)
    for site in (b, c):  # each believes that it is alone
        assert site.hosts.claim(alive(own=(site, ABLE))) == {"door": "death"}
        site.commit()
        assert site.run() == set()
    tell(b, c)
    pass_epoch(b, c)
    winner = b.store.fleet("host/door", b.now())
    for _ in range(3):
        assert {site.id: site.run() for site in (b, c)} == {
            site.id: {"door"} if site.id == winner else set() for site in (b, c)
        }
        pass_epoch(b, c)


def test_a_claim_that_waits_for_the_disk_is_counted_once() -> None:
    a, b = Site("a"), Site("b")
    a.publish("door")
    tell(a, b)
    for _ in range(3):
        assert b.hosts.claim(alive(b=(b, ABLE))) == {"door": "death"}
    assert b.counters.get("handovers") == 1


@pytest.mark.parametrize(("flag", "cause"), [("draining", "drain"), ("hot", "hot")])
def test_a_node_that_leaves_hands_over_in_good_order(flag: str, cause: str) -> None:
    async def scenario(a: Site, b: Site, model: ModelFile) -> None:
        a.publish("door")
        tell(a, b)
        assert await a.reconcile(model) == {"door"}
        a.hosts.leaving = True
        view = alive(a=(a, replace(ABLE, **{flag: True})), b=(b, ABLE))
        assert a.hosts.claim(view) == {}
        assert b.hosts.claim(view) == {"door": cause}
        tell(a, b)
        # It runs there until the claim takes effect here.
        assert (await a.reconcile(model), await b.reconcile(model)) == ({"door"}, set())
        pass_epoch(a, b)
        assert (await a.reconcile(model), await b.reconcile(model)) == (set(), {"door"})
        assert a.hosts.claim(view) == b.hosts.claim(view) == {}
        # It stays: the home takes it back, at once and in good order.
        a.hosts.leaving = False
        view = alive(a=(a, ABLE), b=(b, ABLE))
        assert a.hosts.claim(view) == {"door": "home"}
        tell(a, b)
        assert (await a.reconcile(model), await b.reconcile(model)) == ({"door"}, set())
        assert a.counters.get("duplicates") == b.counters.get("duplicates") == 0

    with_sites(scenario)


def test_a_node_that_leaves_keeps_what_nobody_else_can_take() -> None:
    a, b = Site("a"), Site("b")
    kept = CameraConfig(name="desk", source="generated:1", takeover=False)
    device = CameraConfig(name="door", source="/dev/video0")
    a.hosts.publish([kept, device], "person-detector")
    tell(a, b)
    assert a.run() == {"desk", "door"}
    pass_epoch(a)
    a.hosts.leaving = True
    view = alive(a=(a, replace(ABLE, draining=True)), b=(b, ABLE))
    for _ in range(3):
        assert a.hosts.claim(view) == b.hosts.claim(view) == {}
        tell(a, b)
        assert (a.run(), b.run()) == ({"desk", "door"}, set())
        pass_epoch(a, b)


def test_answers_given_in_a_partition_beside_another_host_are_counted() -> None:
    a, b = Site("a"), Site("b")
    a.publish("door")
    tell(a, b)
    assert a.run() == {"door"}
    agent = a.agents.hosted["door"]
    b.wall_ms = a.wall_ms + 500
    assert b.hosts.claim(alive(b=(b, ABLE))) == {"door": "death"}
    b.commit()
    for _ in range(5):  # apart: each answers what it sees
        a.hosts.claim(alive(a=(a, ABLE)))
        agent.answered += 20
        pass_epoch(a, b)
    tell(a, b)
    assert a.run() == {"door"}
    # Since the other's claim took effect, after the first epoch.
    assert a.counters.get("duplicates", agent="door") == 80
    assert a.hosts.claim(alive(a=(a, ABLE), b=(b, ABLE))) == {"door": "home"}
    tell(a, b)
    assert (a.run(), b.run()) == ({"door"}, set())
    assert b.counters.get("duplicates") == 0


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_when_views_agree_every_agent_has_exactly_one_host(data: st.DataObject) -> None:
    sites = [Site(name) for name in "abcd"]
    for number, site in enumerate(sites[:3]):
        site.publish(f"cam{number}")
    tell(*sites)
    nodes = st.lists(st.sampled_from(sites), min_size=1, max_size=4, unique=True)
    leaving = st.sets(st.integers(0, 3), max_size=4)

    def seen(living: list[Site], left: set[int]) -> dict[bytes, Capacity]:
        return {
            site.id: replace(ABLE, draining=sites.index(site) in left, passes_per_s=10.0 + number)
            for number, site in enumerate(living)
        }

    for _ in range(data.draw(st.integers(0, 6))):  # views differ, and not all hear of all
        site = data.draw(st.sampled_from(sites))
        left = data.draw(leaving)
        site.hosts.leaving = sites.index(site) in left
        site.hosts.claim(seen([site, *(o for o in data.draw(nodes) if o is not site)], left))
        site.run()
        tell(site, *(other for other in data.draw(nodes) if other is not site))
        pass_epoch(*data.draw(nodes))
    living, left = data.draw(nodes), data.draw(leaving)
    for site in living:
        site.hosts.leaving = sites.index(site) in left
    for _ in range(3):
        for site in living:
            site.hosts.claim(seen(living, left))
        tell(*living)
        pass_epoch(*living)
        for site in living:
            site.run()
    at = {site.id: site.run() for site in living}
    homes = {f"cam{number}": site for number, site in enumerate(sites[:3])}
    for name, home in homes.items():
        hosts = [node for node, names in at.items() if name in names]
        stays = [site for site in living if sites.index(site) not in left]
        if home in stays:
            assert hosts == [home.id]
        elif stays:
            assert len(hosts) == 1
            assert hosts[0] in {site.id for site in stays}
        else:
            assert len(hosts) == 1 if home in living else len(hosts) <= 1


def test_agents_of_one_camera_go_to_one_accelerator() -> None:
    async def scenario(a: Site, b: Site, model: ModelFile) -> None:
        other = WorkerHandle(
            AcceleratorSpec("cpu1", "cpu"), on_frame=a.agents.frame_ready, on_event=lambda _: None
        )
        a.workers.append(other)
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
        b.hosts.claim(alive(b=(b, ABLE)))
        tell(a, b)
        assert await b.reconcile(model) == set()
        pass_epoch(a, b)
        assert await a.reconcile(model) == {"door", "desk"}
        assert all(a.agents.hosted[name] is agent for name, agent in running.items())

    with_sites(scenario)


def test_a_home_without_an_accelerator_leaves_its_cameras_to_others() -> None:
    async def scenario(a: Site, b: Site, model: ModelFile) -> None:
        a.publish("door")
        tell(a, b)
        broken = alive(a=(a, Capacity(0.0, True, "")), b=(b, ABLE))
        assert a.hosts.claim(broken) == {}
        assert b.hosts.claim(broken) == {"door": "death"}
        tell(a, b)
        assert await b.reconcile(model) == set()
        pass_epoch(a, b)
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
        assert a.hosts.claim(both) == b.hosts.claim(both) == {}

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
        b.hosts.claim(alive(b=(b, ABLE)))
        tell(a, b)
        assert await b.reconcile(model) == set()
        pass_epoch(a, b)
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


# Tiers, as the replica carries them


def test_a_frame_ends_also_when_answering_it_failed_in_a_way_that_nobody_foresaw() -> None:
    async def scenario() -> None:
        site = Site("a")

        async def fail(work: Work) -> tuple[str, Inference]:
            raise ZeroDivisionError(work.frame)

        site.agents._answer_to = fail
        site.publish("door")
        site.commit()
        (spec,) = site.hosts.specs().values()
        await site.agents.host(spec, site.worker, "")
        for frame in range(20):
            site.agents.frame_ready(FrameReady("door", frame, 0, 0.0, 8, 8, False))
        await site.agents.close(10.0)
        assert site.counters.get("frames") == 20
        assert site.counters.get("lost", reason="internal error") == 16
        assert site.counters.get("shed", reason="too many in flight") == 4

    asyncio.run(scenario())


def tiers_of(site: Site) -> Tiers:
    return Tiers(site.id, site.store, site.hosts, site.agents, site.now, site.stage)


def observe(site: Site, tiers: Tiers, name: str, *, seen: bool) -> None:
    """Have one epoch pass in which an agent that runs here answers ten frames in time."""
    agent = site.agents.hosted[name]
    for _ in range(10):
        agent.answered += 1
        agent.met += 1
        tiers.observe({"agent": name, "boxes": [{}] if seen else []})
    tiers.evaluate()


def test_a_tier_is_published_when_it_changes_and_read_from_the_current_host() -> None:
    a, b = Site("a"), Site("b")
    camera = CameraConfig(name="door", source="generated:1", deadline_ms=500)
    a.hosts.publish([camera], "person-detector")
    tell(a, b)
    a.run()
    here, there = tiers_of(a), tiers_of(b)
    here.evaluate()
    tell(a, b)
    before = a.store.fingerprint()
    for epoch in range(6):
        observe(a, here, "door", seen=False)
        tell(a, b)
        assert (a.store.fingerprint() != before) is (epoch == 2)
        before = a.store.fingerprint()
        assert here.tier_of("door") == there.tier_of("door") == (2 if epoch < 2 else 3)
    spec = b.hosts.specs()["door"]
    standing = there.standing(spec)
    assert (standing.tier, standing.declared, standing.reason) == (3, 2, "nothing is seen")
    assert [change.tier for change in standing.history] == [3]
    # It moves: the new host goes on from the same tier, and publishes it as its own.
    a.hosts.leaving = True
    b.hosts.claim(alive(b=(b, ABLE)))
    tell(a, b)
    assert (a.run(), b.run()) == ({"door"}, set())
    pass_epoch(b)
    assert b.run() == {"door"}
    there.evaluate()
    tell(a, b)
    assert here.tier_of("door") == there.tier_of("door") == 3
    pass_epoch(a)
    assert a.run() == set()
    here.evaluate()
    tell(a, b)
    assert [node for node, key, _ in a.store.owners("tier/")] == [b.id]
    assert here.tier_of("door") == 3
    observe(b, there, "door", seen=True)
    tell(a, b)
    assert here.tier_of("door") == there.tier_of("door") == 2


def test_an_override_wins_everywhere_until_it_is_cleared() -> None:
    a, b = Site("a"), Site("b")
    a.publish("door")
    tell(a, b)
    a.run()
    here, there = tiers_of(a), tiers_of(b)
    assert there.override("door", 1)
    tell(a, b)
    observe(a, here, "door", seen=False)
    assert here.tier_of("door") == there.tier_of("door") == 1
    standing = here.standing(a.hosts.specs()["door"])
    assert standing.override == 1
    assert standing.reason == "set for the fleet (else 2: declared)"
    assert here.override("door", None)
    tell(a, b)
    assert here.tier_of("door") == there.tier_of("door") == 2
    with pytest.raises(KeyError, match="no agent gate; there is: door"):
        here.override("gate", 1)
    with pytest.raises(ValueError, match="use 1, 2 or 3"):
        here.override("door", 4)
    # A camera that is removed leaves no override to the next of its name.
    assert here.override("door", 3)
    tell(a, b)
    a.publish()
    tell(a, b)
    assert a.store.fleet("tier/door", a.now()) is None


def test_without_tiers_everyone_is_in_the_middle() -> None:
    a, b = Site("a"), Site("b")
    cameras = [
        CameraConfig(name="door", source="generated:1", criticality=1),
        CameraConfig(name="gate", source="generated:1", criticality=3, safety=True),
        CameraConfig(name="yard", source="generated:1", criticality=2, deadline_ms=500),
    ]
    a.hosts.publish(cameras, "person-detector")
    tell(a, b)
    a.run()
    here, there = tiers_of(a), tiers_of(b)
    assert [there.tier_of(name) for name in ("door", "gate", "yard", "none")] == [1, 1, 2, 2]
    here.evaluate()
    for _ in range(3):
        observe(a, here, "yard", seen=False)
    tell(a, b)
    assert (here.tier_of("yard"), there.tier_of("yard")) == (3, 3)
    here.enabled = False
    assert [here.tier_of(name) for name in ("door", "gate", "yard")] == [2, 2, 2]
    assert "tiers = false" in here.standing(a.hosts.specs()["yard"]).reason
    here.evaluate()
    tell(a, b)
    assert there.tier_of("yard") == 2  # what it published, it takes back


def test_what_a_peer_made_up_of_a_tier_counts_for_nothing() -> None:
    a, b = Site("a"), Site("b")
    a.publish("door")
    a.store.set_owner("tier/door", {"tier": 0, "reason": "", "since_ms": 1, "history": []})
    b.store.set_owner("tier/door", {"tier": 1, "reason": "", "since_ms": 1, "history": []})
    b.store.set_fleet("tier/door", "high", b.now())
    tell(a, b)
    assert tiers_of(b).tier_of("door") == 2
