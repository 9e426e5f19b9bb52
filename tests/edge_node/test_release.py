"""The model of a node: what is desired, what runs, and that a bad one changes nothing."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from edge_node.cameras.spec import AgentSpec
from edge_node.fleet.release import Release
from edge_node.workers import ModelError, WorkerHandle
from models.accelerators import AcceleratorSpec
from models.manifest import load_manifest


def with_release(scenario: Callable[[Release, WorkerHandle], Awaitable[None]]) -> None:
    """Run a scenario on a release with one real worker; which the scenario gets too."""

    async def run() -> None:
        worker = WorkerHandle(
            AcceleratorSpec("cpu", "cpu"), on_frame=lambda _: None, on_event=lambda _: None
        )
        await worker.start()
        in_use: set[str] = set()
        try:
            await scenario(Release(load_manifest(), "large", [worker], lambda: in_use), worker)
        finally:
            await worker.stop(0.0)

    asyncio.run(run())


def test_the_configured_variant_runs_until_the_fleet_desires_another() -> None:
    async def scenario(release: Release, worker: WorkerHandle) -> None:
        large, small = release.file("large"), release.file("small")
        await release.follow(None)
        assert release.current == large
        await release.follow({"variant": "small", "version": "1", "digest": small.digest})
        assert release.current == small
        assert release.digest == small.digest
        assert worker.loaded == {large.digest, small.digest}

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
    async def scenario(release: Release, worker: WorkerHandle) -> None:
        await release.follow(None)
        await release.follow(register)
        assert release.digest == release.file("large").digest
        assert says in release.error
        await release.follow(None)
        assert release.error == ""

    with_release(scenario)


def test_a_node_that_starts_with_other_files_than_the_fleet_still_answers() -> None:
    async def scenario(release: Release, worker: WorkerHandle) -> None:
        await release.follow({"variant": "small", "version": "9", "digest": "0" * 64})
        assert release.digest == release.file("small").digest
        assert "same version" in release.error

    with_release(scenario)


def test_a_worker_that_comes_back_gets_the_model_again() -> None:
    async def scenario(release: Release, worker: WorkerHandle) -> None:
        await release.follow(None)
        assert worker.pid is not None
        await worker.unload(release.file("large").digest)
        assert release.digest == ""
        await release.follow(None)
        assert release.digest == release.file("large").digest

    with_release(scenario)


def test_without_a_living_worker_nothing_runs_and_the_reason_is_said() -> None:
    async def run() -> None:
        worker = WorkerHandle(
            AcceleratorSpec("cpu", "cpu"), on_frame=lambda _: None, on_event=lambda _: None
        )
        release = Release(load_manifest(), "large", [worker], set)
        await release.follow(None)
        assert release.digest == ""
        assert "no accelerator works" in release.error

    asyncio.run(run())


def test_the_old_version_is_unloaded_when_nobody_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_node.fleet.release.UNLOAD_AFTER_S", 0.02)

    async def scenario(release: Release, worker: WorkerHandle) -> None:
        large, small = release.file("large"), release.file("small")
        to_small = {"variant": "small", "version": "1", "digest": small.digest}
        await release.follow(None)
        await release.follow(to_small)
        await release.follow(None)  # back before the old one was unloaded
        await release.follow(to_small)
        async with asyncio.timeout(10):
            while worker.loaded != {small.digest}:
                await asyncio.sleep(0.01)
        assert large.digest not in worker.loaded

    with_release(scenario)


def test_a_variant_that_does_not_exist_is_refused_at_once() -> None:
    with pytest.raises(ModelError, match="it has: large, small"):
        Release(load_manifest(), "huge", [], set)


RECORD = {
    "source": "rtsp://user:secret@10.0.0.9/stream",
    "fps": 10.0,
    "model": "person-detector",
    "deadline_ms": 200.0,
    "tier": 2,
    "loop": True,
    "noise_sigma": 2.0,
    "takeover": True,
    "since_ms": 1,
}


def test_an_agent_record_survives_the_way_through_the_replica() -> None:
    spec = AgentSpec.from_record("door", b"h" * 16, RECORD)
    assert AgentSpec.from_record("door", b"h" * 16, spec.record()) == spec
    assert spec.movable_to("")


@pytest.mark.parametrize(
    ("source", "files", "may"),
    [
        ("/dev/video0", "/", False),
        ("v4l2:/dev/video0", "/", False),
        ("generated:1", "", True),
        ("https://10.0.0.9/stream", "", True),
        ("tcp://10.0.0.9:22", "/", False),
        ("concat:/srv/a|/srv/b", "/", False),
        ("/srv/clips/a.mp4", "", False),
        ("/srv/clips/a.mp4", "/srv/clips", True),
        ("file:/srv/clips/a.mp4", "/srv/clips", True),
        ("/srv/clips/../../etc/a.mp4", "/srv/clips", False),
        ("/srv/clips-of-others/a.mp4", "/srv/clips", False),
    ],
)
def test_another_node_opens_only_what_it_can_reach_and_may(
    source: str, files: str, may: bool
) -> None:
    spec = AgentSpec.from_record("door", b"h" * 16, {**RECORD, "source": source})
    assert spec.movable_to(files) is may
    kept = AgentSpec.from_record("door", b"h" * 16, {**RECORD, "source": source, "takeover": False})
    assert not kept.movable_to(files)


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
        {**RECORD, "tier": float("inf")},
        {**RECORD, "deadline_ms": -1},
        {**RECORD, "source": ""},
        {key: value for key, value in RECORD.items() if key != "source"},
    ],
)
def test_a_malformed_agent_record_of_a_peer_is_refused(record: object) -> None:
    with pytest.raises(ValueError, match="agent door"):
        AgentSpec.from_record("door", b"h" * 16, record)
