"""The worker process and its handle: real processes, the packaged model, real trouble."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from edge_node.workers import (
    CacheHolding,
    CameraSpec,
    CameraState,
    FrameReady,
    ModelError,
    ModelFile,
    Shed,
    WorkerDied,
    WorkerEvent,
    WorkerHandle,
    WorkerReady,
)
from models.accelerators import AcceleratorSpec
from models.images import Scaler, decode_jpeg, encode_jpeg
from models.manifest import load_manifest
from tests.clips import model_file, noisy, picture, tiny_detector, write_clip

SMALL, LARGE = (load_manifest().variants[name] for name in ("small", "large"))
PATIENCE_S = 20.0


class Bench:
    """One handle with everything it said."""

    def __init__(self, **options: object) -> None:
        spec = {"name": "cpu0", "provider": "cpu"} | {
            key: options.pop(key) for key in ("share", "queue", "device") if key in options
        }
        self.frames: asyncio.Queue[FrameReady] = asyncio.Queue()
        self.events: list[WorkerEvent] = []
        self.handle = WorkerHandle(
            AcceleratorSpec(**spec),  # type: ignore[arg-type]
            on_frame=self.frames.put_nowait,
            on_event=self.events.append,
            **options,  # type: ignore[arg-type]
        )

    async def frame(self) -> FrameReady:
        """Return the newest frame."""
        async with asyncio.timeout(PATIENCE_S):
            frame = await self.frames.get()
            while not self.frames.empty():
                frame = self.frames.get_nowait()
            return frame

    async def until(self, kind: type, count: int = 1, **wanted: object) -> list[WorkerEvent]:
        """Wait for so many events of a kind with these fields."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = [
                    event
                    for event in self.events
                    if isinstance(event, kind)
                    and all(getattr(event, key) == value for key, value in wanted.items())
                ]
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.01)


@asynccontextmanager
async def bench(*models: ModelFile, **options: object) -> AsyncIterator[Bench]:
    one = Bench(**options)
    await one.handle.start()
    try:
        for model in models:
            await one.handle.load(model)
        yield one
    finally:
        await one.handle.stop(0.0)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def moving_clip(path: Path) -> Path:
    """Write two seconds in which every frame differs everywhere."""
    return write_clip(path, [picture(seed=i) for i in range(60)], fps=30)


def still_clip(path: Path) -> Path:
    """Write four seconds of one scene with sensor noise."""
    rng = np.random.default_rng(3)
    return write_clip(path, [noisy(picture(), 1.5, rng) for _ in range(40)], fps=10)


def later(seconds: float) -> float:
    return time.monotonic() + seconds


def gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


async def idle(worker: WorkerHandle) -> None:
    """Wait until the worker predicts no wait for a new task."""
    async with asyncio.timeout(PATIENCE_S):
        while worker.waits_ms[2] or worker.queue_length:
            await asyncio.sleep(0.01)


async def is_kept(worker: WorkerHandle, agent: str, frame: int) -> bool:
    try:
        await worker.encode_frame(agent, frame, 160)
    except Shed as shed:
        return shed.reason != "frame gone"
    return True


def test_from_camera_to_answer(tmp_path: Path) -> None:
    clip = still_clip(tmp_path / "c.mp4")

    async def test() -> None:
        async with bench(SMALL, LARGE) as one:
            worker = one.handle
            assert set(worker.service_ms) == {SMALL.digest, LARGE.digest}
            assert 0 < worker.service_ms[SMALL.digest] < worker.service_ms[LARGE.digest]
            await worker.open_camera(CameraSpec("gate", str(clip), fps=10), LARGE.digest)
            rungs, numbers = [], []
            for _ in range(8):
                frame = await one.frame()
                assert (frame.width, frame.height) == (320, 192)
                assert abs(frame.captured_ms / 1000 - time.time()) < 5
                answer = await worker.infer_frame(
                    "gate", frame.frame, LARGE.digest, later(5), tier=1
                )
                assert (answer.digest, answer.variant) == (LARGE.digest, "large")
                assert not frame.reusable or answer.rung in ("same", "gate")
                rungs.append(answer.rung)
                numbers.append(frame.frame)
            assert numbers == sorted(set(numbers))
            assert rungs[0] == "full"
            assert rungs[-4:] == ["gate"] * 4  # noise alone needs no full pass
            # Another model has its own cache: nothing crosses, nor stays of frames it never saw.
            answer = await worker.infer_frame("gate", frame.frame, SMALL.digest, later(5), 1)
            assert (answer.rung, answer.variant) == ("full", "small")
            jpeg = await worker.encode_frame("gate", frame.frame, 160)
            assert decode_jpeg(jpeg, Scaler()).shape == (96, 160, 3)
            worker.drop_frame("gate", frame.frame)
            with pytest.raises(Shed, match="frame gone"):
                await worker.infer_frame("gate", frame.frame, LARGE.digest, later(5), 1)
            await worker.close_camera("gate")
            # Frames under way still end; a moment later they are gone.
            kept = numbers[-2]
            answer = await worker.infer_frame("gate", kept, LARGE.digest, later(5), 1)
            assert answer.digest == LARGE.digest
            async with asyncio.timeout(PATIENCE_S):
                while await is_kept(worker, "gate", kept):
                    await asyncio.sleep(0.05)
            held = [event for event in one.events if isinstance(event, CacheHolding)]
            assert [(one.agent, one.digest, one.held) for one in held] == [
                ("gate", LARGE.digest, True)
            ]
            assert all(one.size_bytes > 1000 and not one.calibrated for one in held)
            await worker.unload(LARGE.digest)
            await one.until(CacheHolding, digest=LARGE.digest, held=False)
            assert set(worker.service_ms) == {SMALL.digest}

    run(test)


def test_forwarded_images_climb_the_same_ladder(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(SMALL) as one:
            rng = np.random.default_rng(1)
            rungs = []
            for _ in range(6):
                jpeg = encode_jpeg(noisy(picture(), 1.0, rng))
                answer = await one.handle.infer_image("far", jpeg, SMALL.digest, later(5), 2)
                rungs.append(answer.rung)
            assert rungs[0] == "full"
            assert rungs[-2:] == ["gate", "gate"]
            again = await one.handle.infer_image("far", jpeg, SMALL.digest, later(5), 2)
            assert again.boxes == answer.boxes
            other = await one.handle.infer_image("near", jpeg, SMALL.digest, later(5), 2)
            assert other.rung == "full"
            with pytest.raises(ModelError, match="cannot be decoded"):
                await one.handle.infer_image("far", b"junk", SMALL.digest, later(5), 2)
            with pytest.raises(ModelError, match="no model with digest"):
                await one.handle.infer_image("far", jpeg, LARGE.digest, later(5), 2)

    run(test)


def test_half_effort_is_asked_for_answered_and_costed_by_itself(tmp_path: Path) -> None:
    clip = moving_clip(tmp_path / "c.mp4")

    async def test() -> None:
        async with bench(SMALL, LARGE) as one:
            worker = one.handle
            before_ms = worker.costs_ms
            assert set(before_ms) == {
                (model.digest, effort) for model in (SMALL, LARGE) for effort in ("full", "half")
            }
            assert before_ms[LARGE.digest, "half"] < before_ms[LARGE.digest, "full"]
            await worker.open_camera(CameraSpec("a", str(clip), fps=5), LARGE.digest)
            frame = await one.frame()
            # The camera's own model and another one, both on this frame.
            for model in (LARGE, SMALL):
                answer = await worker.infer_frame(
                    "a", frame.frame, model.digest, later(5), 2, "half"
                )
                assert (answer.effort, answer.rung) == ("half", "full")
                assert answer.variant == model.variant
            after_ms = worker.costs_ms
            for model in (LARGE, SMALL):
                assert after_ms[model.digest, "half"] != before_ms[model.digest, "half"]
                assert after_ms[model.digest, "full"] == worker.service_ms[model.digest]
                assert after_ms[model.digest, "full"] == before_ms[model.digest, "full"]
            full = await worker.infer_frame("a", frame.frame, LARGE.digest, later(5), 2)
            assert (full.effort, full.rung) == ("full", "full")
            known = await worker.infer_frame("a", frame.frame, LARGE.digest, later(5), 2, "half")
            assert (known.effort, known.rung, known.boxes) == ("full", "same", full.boxes)
            jpeg = encode_jpeg(picture(seed=7))
            far = await worker.infer_image("far", jpeg, SMALL.digest, later(5), 2, effort="half")
            assert (far.effort, far.rung) == ("half", "full")

    run(test)


def test_a_moved_agent_starts_warm(tmp_path: Path) -> None:
    clip = still_clip(tmp_path / "c.mp4")
    spec = CameraSpec("a", str(clip), fps=10)

    async def test() -> None:
        async with bench(SMALL) as old, bench(SMALL) as new:
            await old.handle.open_camera(spec, SMALL.digest)
            for _ in range(4):
                frame = await old.frame()
                await old.handle.infer_frame("a", frame.frame, SMALL.digest, later(5), 2)
            await old.handle.close_camera("a")
            data = await old.handle.export_cache("a", SMALL.digest)
            assert data is not None
            assert await old.handle.export_cache("b", SMALL.digest) is None
            assert not await new.handle.import_cache("b", SMALL.digest, data)
            assert not await new.handle.import_cache("a", SMALL.digest, data[:-9])
            with pytest.raises(ModelError):
                await new.handle.import_cache("a", LARGE.digest, data)
            assert await new.handle.import_cache("a", SMALL.digest, data)
            await new.until(CacheHolding, agent="a", held=True)
            await new.handle.open_camera(spec, SMALL.digest)
            frame = await new.frame()
            assert frame.reusable
            answer = await new.handle.infer_frame("a", frame.frame, SMALL.digest, later(5), 2)
            assert answer.rung in ("same", "gate")
            # The name stands for another camera now: what was learned goes.
            another = dataclasses.replace(spec, source=str(moving_clip(tmp_path / "d.mp4")))
            await new.handle.open_camera(another, SMALL.digest)
            assert await new.handle.export_cache("a", SMALL.digest) is None

    run(test)


def test_agents_of_one_camera_share_its_frames(tmp_path: Path) -> None:
    spec = CameraSpec("a", str(moving_clip(tmp_path / "c.mp4")), fps=10)
    other = dataclasses.replace(spec, agent="b")

    async def test() -> None:
        async with bench(SMALL) as one:
            worker = one.handle
            assert await worker.scene("a") is None
            await worker.open_camera(spec, SMALL.digest)
            await worker.open_camera(other, SMALL.digest)
            await one.until(CameraState, agent="b", state="running")
            seen: dict[float, list[str]] = {}
            async with asyncio.timeout(PATIENCE_S):
                while sum(len(rungs) == 2 for rungs in seen.values()) < 5:
                    frame = await one.frames.get()
                    answer = await worker.infer_frame(
                        frame.agent, frame.frame, SMALL.digest, later(5), 2
                    )
                    seen.setdefault(frame.captured_s, []).append(answer.rung)
            both = [rungs for rungs in seen.values() if len(rungs) == 2]
            assert all(rungs == ["full", "same"] for rungs in both)
            assert isinstance(await worker.scene("a"), int)
            await worker.close_camera("a")
            assert await worker.export_cache("b", SMALL.digest) is not None
            while not one.frames.empty():
                one.frames.get_nowait()
            assert (await one.frame()).agent == "b"
            # Opened with another rate it is a camera of its own, and so is its ladder.
            await worker.open_camera(dataclasses.replace(spec, fps=5), SMALL.digest)
            assert await worker.export_cache("a", SMALL.digest) is None

    run(test)


def test_a_killed_worker_is_replaced_with_all_it_had(tmp_path: Path) -> None:
    clip = moving_clip(tmp_path / "c.mp4")

    async def test() -> None:
        async with bench(SMALL, share=0.01) as one:
            worker = one.handle
            await worker.open_camera(CameraSpec("a", str(clip), fps=20), SMALL.digest)
            jpeg = encode_jpeg(picture())
            await worker.infer_image("b", jpeg, SMALL.digest, later(5), 2)
            await one.until(CacheHolding, held=True)
            waiting = [
                asyncio.create_task(worker.infer_image(f"w{i}", jpeg, SMALL.digest, later(30), 2))
                for i in range(6)
            ]
            before = (await one.frame()).frame
            pid = worker.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            died = (await one.until(WorkerDied))[0]
            assert died == WorkerDied("killed by SIGKILL")
            results = await asyncio.gather(*waiting, return_exceptions=True)
            lost = [result for result in results if isinstance(result, BaseException)]
            assert lost
            assert {getattr(error, "reason", error) for error in lost} == {"worker died"}
            assert not worker.alive
            with pytest.raises(Shed, match="worker died"):
                await worker.infer_image("b", jpeg, SMALL.digest, later(5), 2)
            withdrawn = await one.until(CacheHolding, held=False)
            assert withdrawn[0] == CacheHolding("b", SMALL.digest, False)
            await one.until(WorkerReady, count=2)
            assert worker.alive
            assert worker.pid != pid
            frame = await one.frame()
            while frame.frame <= before:
                frame = await one.frame()
            answer = await worker.infer_image("b", jpeg, SMALL.digest, later(5), 2)
            assert answer.rung == "full"  # a new process starts cold
            assert gone(pid)

    run(test)


def test_a_hung_worker_is_killed_and_replaced() -> None:
    async def test() -> None:
        async with bench(SMALL, heartbeat_s=0.1, hang_s=1.0) as one:
            pid = one.handle.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            jpeg = encode_jpeg(picture())
            with pytest.raises(Shed, match="worker died"):
                await one.handle.infer_image("a", jpeg, SMALL.digest, later(30), 2)
            assert "hung" in (await one.until(WorkerDied))[0].reason  # type: ignore[union-attr]
            await one.until(WorkerReady, count=2)
            await one.handle.infer_image("a", jpeg, SMALL.digest, later(5), 2)
            assert gone(pid)

    run(test)


def test_a_bad_model_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    clip = moving_clip(tmp_path / "c.mp4")
    corrupt = tmp_path / "corrupt.onnx"
    corrupt.write_bytes(Path(LARGE.path).read_bytes()[:5000])
    fixed = model_file(tmp_path / "fixed.onnx", tiny_detector([1, 3, 64, 64]), long_side=64)
    tall = model_file(tmp_path / "tall.onnx", tiny_detector([1, 3, 64, 320]))

    async def test() -> None:
        async with bench(SMALL, fixed, tall) as one:
            worker = one.handle
            with pytest.raises(ModelError, match=r"corrupt\.onnx: sha256 is"):
                await worker.load(dataclasses.replace(LARGE, path=str(corrupt)))
            with pytest.raises(ModelError, match="refuses it"):
                await worker.load(model_file(tmp_path / "junk.onnx", b"junk"))
            with pytest.raises(ModelError, match="no model with digest"):
                await worker.open_camera(CameraSpec("a", str(clip), fps=20), LARGE.digest)
            await worker.open_camera(CameraSpec("a", str(clip), fps=20), SMALL.digest)
            await one.frame()
            with pytest.raises(ModelError, match=r"takes 64 x 320 pixels .* need 192 x 320"):
                await worker.use("a", tall.digest)
            with pytest.raises(ModelError, match="no model with digest"):
                await worker.use("a", LARGE.digest)
            with pytest.raises(ModelError, match="has no camera"):
                await worker.use("nobody", SMALL.digest)
            frame = await one.frame()
            answer = await worker.infer_frame("a", frame.frame, SMALL.digest, later(5), 2)
            assert answer.variant == "small"
            with pytest.raises(ModelError, match="takes 64 x 320"):
                await worker.infer_frame("a", frame.frame, tall.digest, later(5), 2)
            await worker.use("a", fixed.digest)
            frame = await one.frame()
            answer = await worker.infer_frame("a", frame.frame, fixed.digest, later(5), 2)
            assert answer.boxes == []
            assert [event for event in one.events if isinstance(event, WorkerDied)] == []

    run(test)


def test_a_camera_that_is_not_there_leaves_the_worker_up(tmp_path: Path) -> None:
    clip = tmp_path / "late.mp4"

    async def test() -> None:
        async with bench(SMALL) as one:
            await one.handle.open_camera(CameraSpec("a", str(clip), fps=10), SMALL.digest)
            state = (await one.until(CameraState, state="retrying"))[0]
            assert "there is no such file" in state.reason  # type: ignore[union-attr]
            answer = await one.handle.infer_image(
                "b", encode_jpeg(picture()), SMALL.digest, later(5), 2
            )
            assert answer.rung == "full"
            moving_clip(tmp_path / "made.mp4").rename(clip)
            await one.until(CameraState, state="running")
            assert (await one.frame()).agent == "a"

    run(test)


def test_overload_is_shed_with_its_reason_and_the_backlog_tells() -> None:
    jpegs = [encode_jpeg(picture(seed=i)) for i in range(30)]

    async def test() -> None:
        async with bench(SMALL, share=0.02, queue=8) as one:
            worker = one.handle
            for _ in range(3):  # learn what a pass costs
                await worker.infer_image("a", jpegs[0], SMALL.digest, later(5), 2)
            cost_s = worker.service_ms[SMALL.digest] / 1000
            await idle(worker)
            budget_s = 4 * cost_s
            asked = [
                asyncio.create_task(
                    worker.infer_image("flood", jpeg, SMALL.digest, later(budget_s), 2)
                )
                for jpeg in jpegs
            ]
            await asyncio.sleep(0)
            assert worker.waits_ms[2] > 10 * cost_s * 1000  # what is on its way counts already
            quiet = asyncio.create_task(
                worker.infer_image("quiet", jpegs[0], SMALL.digest, later(30), 2)
            )
            results = await asyncio.gather(*asked, return_exceptions=True)
            answered = [r for r in results if not isinstance(r, BaseException)]
            reasons = {r.reason for r in results if isinstance(r, Shed)}
            assert answered
            assert len(answered) < len(jpegs) / 2
            assert reasons <= {"deadline", "queue full"}
            assert "queue full" in reasons
            assert (await quiet).rung == "full"
            with pytest.raises(Shed, match="deadline"):
                await worker.infer_image("a", jpegs[0], SMALL.digest, later(-1), 2)
            await idle(worker)

    run(test)


def test_share_paces_inference() -> None:
    jpegs = [encode_jpeg(picture(seed=i)) for i in range(12)]

    async def passes_s(share: float) -> tuple[float, float]:
        async with bench(LARGE, share=share) as one:
            started_s = time.monotonic()
            asked = [
                one.handle.infer_image("a", jpeg, LARGE.digest, later(60), 2) for jpeg in jpegs
            ]
            answers = await asyncio.gather(*asked)
            assert {answer.rung for answer in answers} == {"full"}
            return time.monotonic() - started_s, one.handle.service_ms[LARGE.digest]

    async def test() -> None:
        whole_s, whole_ms = await passes_s(1.0)
        part_s, part_ms = await passes_s(0.04)
        assert part_s > 3 * whole_s  # 25 times, were decoding and messages free
        assert part_ms > 3 * whole_ms  # the prediction includes the pacing

    run(test)


def test_stop_lets_work_under_way_end_and_refuses_new() -> None:
    jpegs = [encode_jpeg(picture(seed=i)) for i in range(3)]

    async def test() -> None:
        async with bench(SMALL, share=0.1) as one:
            pid = one.handle.pid
            assert pid is not None
            asked = [
                asyncio.create_task(one.handle.infer_image("a", jpeg, SMALL.digest, later(30), 2))
                for jpeg in jpegs
            ]
            await asyncio.sleep(0)
            await one.handle.stop(20.0)
            assert [(await task).rung for task in asked] == ["full"] * 3
            with pytest.raises(Shed, match="draining"):
                await one.handle.infer_image("a", jpegs[0], SMALL.digest, later(5), 2)
            assert gone(pid)
            assert [event for event in one.events if isinstance(event, WorkerDied)] == []

    run(test)


def test_a_worker_that_does_not_read_sheds_frames_and_nothing_else(tmp_path: Path) -> None:
    clip = moving_clip(tmp_path / "c.mp4")

    async def test() -> None:
        async with bench(SMALL, hang_s=60.0) as one:
            worker = one.handle
            await worker.open_camera(CameraSpec("a", str(clip), fps=10), SMALL.digest)
            await one.frame()
            pid = worker.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            flood = [
                asyncio.create_task(
                    worker.infer_image("x", bytes(1 << 20), SMALL.digest, later(20), 2)
                )
                for _ in range(12)
            ]
            await asyncio.sleep(0)
            with pytest.raises(Shed, match="queue full"):
                await worker.infer_frame("a", 0, SMALL.digest, later(5), 2)
            with pytest.raises(Shed, match="queue full"):
                await worker.encode_frame("a", 0, 160)
            control: list[Awaitable[object]] = [
                worker.load(LARGE),
                worker.use("a", SMALL.digest),
                worker.open_camera(CameraSpec("b", str(clip), fps=10), SMALL.digest),
                worker.close_camera("a"),
                worker.export_cache("a", SMALL.digest),
                worker.import_cache("a", SMALL.digest, b"junk"),
                worker.unload("0" * 64),
            ]
            asked = asyncio.gather(*control)
            worker.drop_frame("a", 0)
            await asyncio.sleep(0.05)
            assert not asked.done()
            os.kill(pid, signal.SIGCONT)
            assert await asked == [None] * 5 + [False, None]
            assert worker.loaded == {SMALL.digest, LARGE.digest}
            frame = await one.frame()
            while frame.agent != "b":
                frame = await one.frame()
            await asyncio.gather(*flood, return_exceptions=True)

    run(test)


def test_a_control_call_to_a_worker_that_dies_meanwhile_is_made_good(tmp_path: Path) -> None:
    clip = moving_clip(tmp_path / "c.mp4")

    async def test() -> None:
        async with bench(SMALL, LARGE) as one:
            worker = one.handle
            spec = CameraSpec("first", str(clip), fps=10)
            await worker.open_camera(spec, SMALL.digest)
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            await one.until(WorkerDied)
            await worker.use("first", LARGE.digest)
            await worker.close_camera("nobody")
            opened: list[str] = []
            turn = 0
            async with asyncio.timeout(PATIENCE_S):  # all the while its successor is being told
                while not worker.alive:
                    await asyncio.sleep(0.02)
                    turn += 1
                    opened.append(f"a{turn}")
                    again = dataclasses.replace(spec, agent=opened[-1])
                    await worker.open_camera(again, SMALL.digest)
                    await worker.close_camera(opened.pop(0) if turn > 3 else "nobody")
            while not one.frames.empty():
                one.frames.get_nowait()
            seen = set()
            async with asyncio.timeout(PATIENCE_S):
                while not seen >= {"first", *opened}:
                    seen.add((await one.frames.get()).agent)
            assert seen == {"first", *opened}

    run(test)


def test_loading_on_a_worker_that_is_down_is_refused_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(SMALL) as one:
            assert one.handle.loaded == {SMALL.digest}
            assert one.handle.pid is not None
            os.kill(one.handle.pid, signal.SIGKILL)
            await one.until(WorkerDied)
            for model in (SMALL, LARGE):
                with pytest.raises(ModelError, match="worker cpu0 is not up"):
                    await one.handle.load(model)
            assert one.handle.loaded == frozenset()
            assert one.handle.service_ms == {}
            await one.until(WorkerReady, count=2)
            assert one.handle.loaded == {SMALL.digest}

    run(test)


def test_a_model_lost_with_its_worker_is_seen_and_can_be_loaded_again(tmp_path: Path) -> None:
    clip = still_clip(tmp_path / "c.mp4")
    path = tmp_path / "small.onnx"
    shutil.copy(SMALL.path, path)
    model = dataclasses.replace(SMALL, path=str(path))

    async def test() -> None:
        async with bench(model, LARGE) as one:
            worker = one.handle
            await worker.open_camera(CameraSpec("a", str(clip), fps=10), model.digest)
            before = (await one.frame()).frame
            path.unlink()
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            await one.until(WorkerReady, count=2)
            assert worker.loaded == {LARGE.digest} == set(worker.service_ms)
            frame = await one.frame()
            while frame.frame <= before:
                frame = await one.frame()
            with pytest.raises(ModelError, match="no model with digest"):
                await worker.infer_frame("a", frame.frame, model.digest, later(5), 2)
            shutil.copy(SMALL.path, path)
            await worker.load(model)
            assert worker.loaded == {LARGE.digest, model.digest}
            async with asyncio.timeout(PATIENCE_S):
                while not frame.reusable:  # the camera uses it again by itself
                    frame = await one.frame()
                    await worker.infer_frame("a", frame.frame, model.digest, later(5), 2)

    run(test)


def test_supervision_survives_a_lack_of_descriptors() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def test() -> None:
        async with bench(SMALL) as one:
            assert one.handle.pid is not None
            os.kill(one.handle.pid, signal.SIGKILL)
            await one.until(WorkerDied)
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (4, before[1]))
                died = (await one.until(WorkerDied, count=2))[1]
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            assert "Too many open files" in died.reason  # type: ignore[union-attr]
            await one.until(WorkerReady, count=2)
            assert one.handle.loaded == {SMALL.digest}

    run(test)


def test_a_fault_of_ours_in_supervision_is_said_and_retried(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        one = Bench(device=b"0")
        await one.handle.start()
        try:
            died = await one.until(WorkerDied, count=2)
            assert "its supervision failed: TypeError" in died[0].reason  # type: ignore[union-attr]
        finally:
            await one.handle.stop(0.0)

    run(test)
    assert any(record.levelno == logging.CRITICAL for record in caplog.records)


def test_frame_numbers_ascend_however_often_a_camera_is_reopened(tmp_path: Path) -> None:
    clip = moving_clip(tmp_path / "c.mp4")

    async def test() -> None:
        async with bench(SMALL) as one:
            numbers: list[int] = []
            for turn in range(12):
                spec = CameraSpec("a", str(clip), fps=120, seed=turn)
                await one.handle.open_camera(spec, SMALL.digest)
                async with asyncio.timeout(PATIENCE_S):
                    numbers += [(await one.frames.get()).frame for _ in range(3)]
                if turn % 4 == 3:
                    await one.handle.close_camera("a")
            assert all(low < high for low, high in itertools.pairwise(numbers))

    run(test)


def test_what_the_queue_and_the_ladder_did_is_told(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(SMALL, heartbeat_s=0.05) as one:
            jpeg = encode_jpeg(picture())
            for _ in range(4):
                await one.handle.infer_image("a", jpeg, SMALL.digest, later(5), 2)
            async with asyncio.timeout(PATIENCE_S):
                while one.handle.ladder_counts.get("full") != 1:
                    await asyncio.sleep(0.01)
                while one.handle.ladder_counts.get("same") != 3:
                    await asyncio.sleep(0.01)
            assert one.handle.cache_bytes > 0

    run(test)


def test_signals_meant_for_the_daemon_do_not_end_the_worker() -> None:
    async def test() -> None:
        async with bench(SMALL) as one:
            pid = one.handle.pid
            assert pid is not None
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(pid, number)
            answer = await one.handle.infer_image(
                "a", encode_jpeg(picture()), SMALL.digest, later(5), 2
            )
            assert answer.rung == "full"
            assert one.handle.pid == pid

    run(test)


DAEMON = """
import asyncio, sys
from edge_node.workers import WorkerHandle
from models.accelerators import AcceleratorSpec

async def main():
    worker = WorkerHandle(
        AcceleratorSpec("cpu0", "cpu"), on_frame=lambda frame: None, on_event=lambda event: None
    )
    await worker.start()
    print(worker.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_the_worker_dies_with_the_daemon() -> None:
    with subprocess.Popen([sys.executable, "-c", DAEMON], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        pid = int(daemon.stdout.readline())
        assert not gone(pid)
        daemon.kill()
    deadline_s = later(PATIENCE_S)
    while not gone(pid) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert gone(pid)


def test_an_interpreter_that_cannot_serve_is_reported_and_retried(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no module named anything >&2\nexit 3\n")
    broken.chmod(0o755)

    async def test() -> None:
        one = Bench(python=str(broken))
        await one.handle.start()
        try:
            assert not one.handle.alive
            with pytest.raises(Shed, match="worker died"):
                await one.handle.infer_image("a", b"", "d", later(5), 2)
            died = await one.until(WorkerDied, count=2)
            assert died[0] == WorkerDied("exit status 3: no module named anything")
        finally:
            await one.handle.stop(0.0)

    run(test)


def test_a_worker_on_openvino_answers_like_the_cpu() -> None:
    python = os.environ.get("EDGE_NODE_OPENVINO_PYTHON", "")
    if not python:
        pytest.skip(
            "EDGE_NODE_OPENVINO_PYTHON names no interpreter with the packages of locks/openvino.txt"
        )
    jpeg = encode_jpeg(picture())

    async def test() -> None:
        async with bench(LARGE) as one:
            reference = await one.handle.infer_image("a", jpeg, LARGE.digest, later(30), 2)
        worker = WorkerHandle(
            AcceleratorSpec("ov0", "openvino", "CPU"),
            on_frame=lambda frame: None,
            on_event=lambda event: None,
            python=python,
        )
        await worker.start()
        try:
            await worker.load(LARGE)
            answer = await worker.infer_image("a", jpeg, LARGE.digest, later(30), 2)
        finally:
            await worker.stop(0.0)
        assert answer.rung == "full"
        assert len(answer.boxes) == len(reference.boxes)
        assert np.allclose(answer.boxes, reference.boxes, atol=1e-3)

    run(test)
