"""The model of a node: what is desired, what runs, and that a bad one changes nothing."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from edge_node.cameras.agents import AgentSpec, without_password
from edge_node.fleet.release import Release
from edge_node.workers import ModelError, WorkerHandle
from models.accelerators import AcceleratorSpec
from models.manifest import load_manifest


def with_release(scenario: Callable[[Release, list[str]], Awaitable[None]]) -> None:
    """Run a scenario on a release with one real worker; ``used`` lists the switches."""

    async def run() -> None:
        worker = WorkerHandle(
            AcceleratorSpec("cpu", "cpu"), on_frame=lambda _: None, on_event=lambda _: None
        )
        await worker.start()
        used: list[str] = []

        async def use(digest: str) -> None:
            used.append(digest)

        try:
            await scenario(Release(load_manifest(), "large", [worker], use), used)
        finally:
            await worker.stop(0.0)

    asyncio.run(run())


def test_the_configured_variant_runs_until_the_fleet_desires_another() -> None:
    async def scenario(release: Release, used: list[str]) -> None:
        large, small = release.file("large"), release.file("small")
        await release.follow(None)
        assert release.current == large
        await release.follow({"variant": "small", "version": "1", "digest": small.digest})
        assert release.current == small
        assert used == [large.digest, small.digest]
        await release.follow({"variant": "small", "version": "1", "digest": small.digest})
        assert used == [large.digest, small.digest]

    with_release(scenario)


@pytest.mark.parametrize(
    ("register", "says"),
    [
        ({"variant": "huge", "digest": "0" * 64}, "no variant huge"),
        ({"variant": "small", "digest": "0" * 64}, "same version"),
        ("small", "set it again"),
    ],
)
def test_a_release_that_this_node_cannot_run_keeps_the_old_one(register: object, says: str) -> None:
    async def scenario(release: Release, used: list[str]) -> None:
        await release.follow(None)
        await release.follow(register)
        assert release.current == release.file("large")
        assert len(used) == 1
        assert says in release.error
        await release.follow(None)
        assert release.error == ""

    with_release(scenario)


def test_a_variant_that_does_not_exist_is_refused_at_once() -> None:
    with pytest.raises(ModelError, match="it has: large, small"):
        Release(load_manifest(), "huge", [], lambda _: asyncio.sleep(0))


RECORD = {
    "source": "rtsp://user:secret@10.0.0.9/stream",
    "fps": 10.0,
    "model": "person-detector",
    "deadline_ms": 200.0,
    "tier": 2,
    "loop": True,
    "noise_sigma": 2.0,
    "takeover": True,
}


def test_an_agent_record_survives_the_way_through_the_replica() -> None:
    spec = AgentSpec.from_record("door", b"h" * 16, RECORD)
    assert AgentSpec.from_record("door", b"h" * 16, spec.record()) == spec
    assert spec.movable
    assert without_password(spec.source) == "rtsp://***@10.0.0.9/stream"


@pytest.mark.parametrize("source", ["/dev/video0", "v4l2:/dev/video0"])
def test_a_device_of_its_home_cannot_move(source: str) -> None:
    assert not AgentSpec.from_record("door", b"h" * 16, {**RECORD, "source": source}).movable


@pytest.mark.parametrize(
    "record",
    [
        None,
        [],
        {},
        {**RECORD, "fps": "fast"},
        {**RECORD, "fps": 0},
        {**RECORD, "fps": float("nan")},
        {**RECORD, "tier": 4},
        {**RECORD, "deadline_ms": -1},
        {**RECORD, "source": ""},
        {key: value for key, value in RECORD.items() if key != "source"},
    ],
)
def test_a_malformed_agent_record_of_a_peer_is_refused(record: object) -> None:
    with pytest.raises(ValueError, match="agent door"):
        AgentSpec.from_record("door", b"h" * 16, record)
