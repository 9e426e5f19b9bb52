"""What nodes and agents gain by sharing reuse state: `make bench-sharing`.

Two processes, each with a real worker, the one behind the real HTTP API between peers, over a
loopback of its own that the kernel limits to a rate (`unshare --net`, `tc`; needs root). A camera
moves from one to the other again and again, in turn with and without an entry to fetch. The quiet
clip; the product's detector, and YOLOX-nano as a heavier one. What calibration takes from cold is
counted on the clip's frames in one process. Needs the folder EDGE_NODE_ASSETS.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from edge_node.api.peer import peer_app
from edge_node.cameras.agents import Agents
from edge_node.cameras.sources import open_source
from edge_node.cameras.spec import LONG_SIDE_PX, AgentSpec
from edge_node.cameras.warm import WarmStarts
from edge_node.fleet.auth import Signer, Verifier
from edge_node.fleet.peers import Peers
from edge_node.metrics import Counters
from edge_node.placement.fetch import Holder
from edge_node.placement.view import FleetView
from edge_node.workers import WorkerHandle
from gossip import Keyring
from models import entries
from models.accelerators import AcceleratorSpec
from models.cache import ReuseCache
from models.delta.native import State
from models.entries import Entry
from models.images import Canvas, Scaler
from models.manifest import load_manifest
from models.scene import signature
from models.sessions import Session, open_warm
from models.wire import CameraSpec, ModelFile
from tests.bench.delta_clips import clip_named
from tests.bench.report import Figure, report
from tests.e2e.fleet import SECRET
from tests.edge_node.http_node import A, B, Node, serving
from tests.edge_node.test_warm_start import answer_here

CLIP = "videos/one-by-one-person-detection.mp4"
CPU = AcceleratorSpec("cpu0", "cpu")
KEY = bytes.fromhex(SECRET)
RATES_MBPS = (100, 1000)
PROMPT, SLOW = 7, 3  # trials of each kind: a camera that opens at once, one that opens late
CALIBRATED = (0.02, None, 0.5, 0.97)
PATIENCE_S = 20.0
REPEATS = 5
BLOCK = 4096  # activations that share a scale
FPS = 10.0


def models(assets: Path) -> dict[str, ModelFile]:
    """Return the measured models by name; YOLOX only where it is."""
    from tests.bench.delta import YOLOX, yolox_file  # which may import this module

    found = {"ours": load_manifest().variants["large"]}
    if (assets / YOLOX).is_file():
        found["yolox"] = yolox_file(assets / YOLOX)
    return found


def first_frame(clip: Path, session: Session) -> Canvas:
    """Return the clip's first frame as a node's worker sees it."""
    spec = CameraSpec("probe", str(clip), FPS, noise_sigma=0, long_side=LONG_SIDE_PX)
    _, pixels = next(open_source(spec, threading.Event(), lambda state, reason: None))
    return session.canvas(pixels, Scaler())


# The node that held the camera before.


class Former(Node):
    """The API of a node that holds what its worker holds."""

    def __init__(self, worker: WorkerHandle) -> None:
        super().__init__()
        self._worker = worker

    async def peer_cache(self, agent: str, digest: str) -> bytes | None:
        return await self._worker.export_cache(agent, digest)


async def hold(assets: Path, clip: Path) -> None:
    """Serve an entry for each trial, calibrated and fresh, until the standard input ends."""
    worker = WorkerHandle(CPU, on_frame=lambda frame: None, on_event=lambda event: None)
    await worker.start()
    for name, model in models(assets).items():
        await worker.load(model)
        session = open_warm(model, CPU)
        canvas = first_frame(clip, session)
        boxes = session.run(canvas)
        for trial in range(PROMPT + SLOW):
            size = canvas.width, canvas.height
            entry = Entry(canvas.pixels, *size, boxes, 0.0, 1.0, CALIBRATED)
            agent = agent_name(name, trial, warm=True)
            data = entries.encode(agent, model.digest, entry)
            assert await worker.import_cache(agent, model.digest, data)
    async with serving(peer_app(Former(worker), Verifier(B, Keyring(KEY)))) as client:
        print(client.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)
    await worker.stop(0.0)


def agent_name(model: str, trial: int, *, warm: bool) -> str:
    return f"{model}-{'warm' if warm else 'cold'}-{trial}"


# The node that the camera moves to.


class Latter:
    """A node that hosts agents and asks the other one for their entries."""

    def __init__(self, port: int) -> None:
        self.answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.peers = Peers(
            Signer(A, bytes(16), Keyring(KEY)), lambda node: ("127.0.0.1", port), lambda node: "b"
        )
        counters = Counters()
        self.agents = Agents(
            "a", (), answer_here, counters, lambda agent: 2, self.answers.put_nowait
        )
        self.warm = WarmStarts(A, self.agents, FleetView(), self.peers, counters)
        self.worker = WorkerHandle(
            CPU, on_frame=self.agents.frame_ready, on_event=lambda event: None
        )

    async def answer(self, agent: str) -> dict[str, Any]:
        """Return the next answer for an agent."""
        async with asyncio.timeout(PATIENCE_S):
            while (answer := await self.answers.get())["agent"] != agent:
                pass
        return answer

    def spec(self, agent: str, source: Path, fps: float = FPS) -> AgentSpec:
        return AgentSpec(agent, A, str(source), fps, "m", 5000, 2, True, 0, True, 0)

    async def trial(
        self, agent: str, model: ModelFile, clip: Path, holders: list[Holder], *, late: bool
    ) -> dict[str, float]:
        """Have a camera come here; it shows its first frame at once, or after the entry came."""
        source = clip.with_name(f"{agent}.mp4")
        if not late:
            source.symlink_to(clip)
        began_s = time.monotonic()
        await self.agents.host(self.spec(agent, source), self.worker, model.digest)
        hosted = self.agents.hosted[agent]

        async def fetch() -> int:
            await self.warm.begin(agent, holders)
            return hosted.frames

        fetching = asyncio.create_task(fetch())
        if late:
            await fetching
            source.symlink_to(clip)
        first = await self.answer(agent)
        found = {
            "first_s": time.monotonic() - began_s,
            "latency_ms": first["latency_ms"],
            "reused": float(first["rung"] != "full"),
        }
        found["frames_before"] = float(await fetching)
        await self.agents.release(agent)
        return found


async def move(assets: Path, clip: Path, rate_mbps: int) -> list[Figure]:
    """Move cameras here over a loopback of this rate; return the figures."""
    command = [sys.executable, "-m", "tests.bench.sharing", "hold", str(assets), str(clip)]
    former = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert former.stdout is not None
    port = int(await asyncio.to_thread(former.stdout.readline))
    here = Latter(port)
    figures: list[Figure] = []
    try:
        await here.worker.start()
        for name, model in models(assets).items():
            await here.worker.load(model)
            figures += await moved(here, name, model, clip, f"{rate_mbps}mbps")
        if rate_mbps == RATES_MBPS[-1]:
            figures += await consumers(here, models(assets)["ours"], clip)
    finally:
        await here.worker.stop(0.0)
        await here.peers.close()
        former.communicate()
    return figures


async def moved(here: Latter, name: str, model: ModelFile, clip: Path, rate: str) -> list[Figure]:
    """Measure one model's moves, those with and without an entry in turn."""
    probe, spent_s, size_bytes = agent_name(name, 0, warm=True), [], 0
    for _ in range(REPEATS):
        began_s = time.monotonic()
        data = await here.peers.cache(B, probe, model.digest, PATIENCE_S)
        spent_s.append(time.monotonic() - began_s)
        assert data is not None
        size_bytes = len(data)
    canvas = first_frame(clip, open_warm(model, CPU))
    scene = signature(canvas.pixels[: canvas.height, : canvas.width])
    holder = Holder(B, scene, size_bytes, True, 0)
    await here.trial(agent_name(name, 99, warm=False), model, clip, [], late=False)  # compiles
    runs: dict[tuple[bool, bool], list[dict[str, float]]] = {}
    for trial in range(PROMPT + SLOW):
        late = trial >= PROMPT
        for warm in (True, False):
            holders = [holder] if warm else []
            agent = agent_name(name, trial, warm=warm)
            run = await here.trial(agent, model, clip, holders, late=late)
            runs.setdefault((late, warm), []).append(run)

    def least(late: bool, warm: bool, key: str) -> float:
        return min(run[key] for run in runs[late, warm])

    first = [least(False, warm, "first_s") for warm in (True, False)]
    latency = [least(True, warm, "latency_ms") for warm in (True, False)]
    reused = sum(run["reused"] for run in runs[False, True])
    before = float(np.median([run["frames_before"] for run in runs[False, True]]))
    full_ms = here.worker.service_ms[model.digest]
    prefix = f"sharing.{rate}.{name}"
    return [
        Figure(
            f"{prefix}.first_answer", first[0] / first[1],
            note=f"warm over cold, a file opened to its first answer, {first[0] * 1e3:.0f} and "
            f"{first[1] * 1e3:.0f} ms; reused in {reused:.0f} of {PROMPT}",
        ),
        Figure(
            f"{prefix}.first_answer_late", latency[0] / latency[1], "<", 1,
            f"warm over cold, first frame to its answer where the entry came before it, "
            f"{latency[0]:.1f} and {latency[1]:.1f} ms",
        ),
        Figure(f"{prefix}.frames_to_calibrated", before, note="warm: frames before the entry"),
        Figure(f"{prefix}.entry_bytes", size_bytes, note=f"image {canvas.pixels.nbytes}"),
        Figure(
            f"{prefix}.transfer", min(spent_s) * 1e3 / full_ms,
            note=f"{min(spent_s) * 1e3:.1f} ms with both codecs, over a full pass",
        ),
    ]  # fmt: skip


async def consumers(here: Latter, model: ModelFile, clip: Path) -> list[Figure]:
    """Have two agents look through one camera; count what is done for each frame."""
    names = ("one", "two")
    for agent in names:
        await here.agents.host(here.spec(agent, clip), here.worker, model.digest)
    rungs: dict[int, list[str]] = {}
    async with asyncio.timeout(PATIENCE_S):
        while sum(len(both) == 2 for both in rungs.values()) < 40:
            answer = await here.answers.get()
            if answer["agent"] in names:
                rungs.setdefault(answer["captured_ms"], []).append(answer["rung"])
    for agent in names:
        await here.agents.release(agent)
    passes = [
        sum(rung in ("full", "sparse") for rung in both)
        for both in rungs.values()
        if len(both) == 2
    ]
    needed = sum(count > 0 for count in passes)
    return [
        Figure(
            "sharing.consumers", sum(passes) / max(1, needed), "<=", 1.0,
            f"passes for each frame that needed one, two agents, {needed} of {len(passes)} frames",
        )
    ]  # fmt: skip


# What does not travel, and why.


def least_s(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the least thread-CPU time of some runs."""
    spent = []
    for _ in range(repeats):
        began_s = time.thread_time()
        work()
        spent.append(time.thread_time() - began_s)
    return min(spent)


def activations(name: str, session: Session, canvas: Canvas) -> list[Figure]:
    """Compare sending the activations (8 bit, zstandard) with the full pass that makes them."""
    height, width = canvas.pixels.shape[:2]
    differential = session.differential((height, width))
    state = differential.new_state()
    differential.run(state, canvas.pixels)
    if not isinstance(state.held, State):
        return []
    flat = state.held.floats.ravel()
    blocks = np.zeros((-(-flat.size // BLOCK), BLOCK), np.float32)
    blocks.ravel()[: flat.size] = flat
    full_s = least_s(partial(session.run, canvas))

    def encode() -> tuple[bytes, Any]:
        scale = np.maximum(np.abs(blocks).max(axis=1, keepdims=True), 1e-9) / 127
        return zstandard.compress(np.rint(blocks / scale).astype(np.int8).tobytes(), 1), scale

    data, scale = encode()

    def decode() -> Any:
        whole = np.frombuffer(zstandard.decompress(data), np.int8).reshape(blocks.shape)
        return whole * scale

    codec_s = least_s(encode) + least_s(decode)
    times = [codec_s + len(data) * 8 / (rate * 1e6) for rate in RATES_MBPS]
    note = f"{len(data)} of {flat.nbytes} bytes; codec {codec_s * 1e3:.1f} ms, pass"
    note += f" {full_s * 1e3:.1f} ms at {height}x{width}; not sent for this reason"
    return [
        Figure(f"sharing.activations.{name}.{rate}mbps", spent_s / full_s, ">", 0.5, note)
        for rate, spent_s in zip(RATES_MBPS, times, strict=True)
    ]


def cold_calibration(assets: Path, session: Session) -> list[Figure]:
    """Count the frames of the quiet clip until its camera is calibrated."""
    clip = clip_named("quiet", assets)
    assert not isinstance(clip, list), "main has looked"
    cache, scaler, count = ReuseCache(), Scaler(), 0
    for at_s, frame in clip.cameras[0].read():
        count += 1
        canvas = session.canvas(frame.pixels[: frame.height, : frame.width], scaler)
        ladder = cache.ladder("cold", session, canvas)
        if ladder.look(canvas.pixels, at_s) is None:
            outcome = ladder.serve(canvas.pixels, at_s)
            if outcome.afterwards is not None:
                outcome.afterwards()
        if ladder.mode in ("calibrated", "off"):
            break
    note = f"cold: {ladder.mode}, {ladder.reason}"
    return [Figure("sharing.ours.frames_to_calibrated_cold", count, note=note)]


def limited(assets: Path, clip: Path, rate_mbps: int) -> list[Figure]:
    """Run the moves in a network of their own, whose loopback has this rate."""
    limit = (
        "ip link set lo up mtu 1500 && tc qdisc add dev lo root handle 1: htb default 1 r2q 1000"
        f" && tc class add dev lo parent 1: classid 1:1 htb rate {rate_mbps}mbit"
    )
    inner = f'{limit} && exec "$0" -m tests.bench.sharing move "$1" "$2" {rate_mbps}'
    command = ["unshare", "--net", "sh", "-c", inner, sys.executable, str(assets), str(clip)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"moving over {rate_mbps} Mb/s failed: {done.stderr.strip()[-2000:]}")
    return [Figure(*one) for one in json.loads(done.stdout.splitlines()[-1])]


def figures(assets: Path) -> list[Figure]:
    """Return every figure; those for which something is missing are named and left out."""
    if not (assets / CLIP).is_file():
        print(f"skipped sharing: there is no {assets / CLIP}")
        return []
    found: list[Figure] = []
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "ip", "tc"))):
        print("skipped moves of cameras: limiting a loopback needs root, unshare, ip and tc")
    else:
        for rate_mbps in RATES_MBPS:
            with tempfile.TemporaryDirectory() as folder:
                clip = Path(folder) / "clip.mp4"
                clip.symlink_to((assets / CLIP).resolve())
                found += limited(assets, clip, rate_mbps)
    for name, model in models(assets).items():
        session = open_warm(model, CPU)
        found += activations(name, session, first_frame(assets / CLIP, session))
        if name == "ours":
            found += cold_calibration(assets, session)
    return found


def main(arguments: list[str]) -> None:
    """Measure, print, write; or be one of the processes that take part."""
    match arguments:
        case ["hold", assets, clip]:
            asyncio.run(hold(Path(assets), Path(clip)))
        case ["move", assets, clip, rate_mbps]:
            print(json.dumps(asyncio.run(move(Path(assets), Path(clip), int(rate_mbps)))))
        case []:
            found = figures(Path(os.environ.get("EDGE_NODE_ASSETS", "")))
            if found:
                report("sharing", found)
        case _:
            sys.exit("it takes no arguments")


if __name__ == "__main__":
    main(sys.argv[1:])
