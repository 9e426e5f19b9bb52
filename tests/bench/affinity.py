"""How well the affinity model chooses, on real traces of this machine, and what it costs.

The packaged detector is run for real on ONNX Runtime's CPU provider and on OpenVINO's (a second
environment, `make openvino`): two variants x sizes x efforts x loads (idle, and sharing its core
with a busy process). Half of the measured times train the model, half are the truth: the oracle
knows the mean of each (accelerator, load, task) cell. What is emulated: a task chooses between
eight candidates, two with each accelerator and load, and their queue waits are drawn at random.
Regret is the time of the choices over the time of the oracle's, waits included, less one.
About two minutes.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from models.accelerators import AcceleratorSpec, probe, worker_environment
from models.affinity.affinity import Affinity
from models.affinity.features import Features
from models.affinity.traces import Traces
from models.energy import Meter
from models.manifest import load_manifest
from tests.bench.report import Figure, report

VARIANTS = ("small", "large")
LONG_SIDES = (640, 960, 1280)  # a shorter run is over before it must share
EFFORTS = (1.0, 0.5)
LOADS = (0, 1)  # busy processes on the worker's core, what the model sees as the queue
SAMPLES = 120  # of a cell; half to train, half to judge
CHUNK = 20  # samples in one go, so that what else the machine does hits all cells
WARM_UP = 3
TRIMMED = 0.2  # of the judged samples, at either end
PRIOR_MS = {"small": 7.0, "large": 12.5}  # declared: at 640 px, the same for all accelerators
TASKS = 4_000
TASKS_PER_S = 12.0
SLOWDOWN = 2.0
DRIFT_RUNS = 10
STAGES = {"prior": 150, "residual": 500, "direct": 10**9}  # rows of the training half
CONTEST = 200  # tasks after which a new model has been promoted
OPENVINO = os.environ.get("EDGE_NODE_OPENVINO_PYTHON", ".venv-openvino/bin/python")
EMULATED = "real service times, emulated queue waits"

Task = tuple[str, int, float]  # variant, long side, effort
Cell = tuple[str, int, Task]  # accelerator, load, task
Times = dict[Cell, list[float]]
TASK_KINDS: list[Task] = list(product(VARIANTS, LONG_SIDES, EFFORTS))


# -- the traces


def serve(provider: str) -> None:
    """Time full passes on an accelerator as the lines on stdin ask; answer in milliseconds."""
    import numpy as np

    from models.runtime import open_session

    manifest = load_manifest()
    spec = AcceleratorSpec("bench", provider, "CPU" if provider == "openvino" else "")
    sessions = {}
    for name in VARIANTS:
        model = manifest.variants[name]
        session = open_session(Path(model.path).read_bytes(), spec)
        sessions[name] = session, model.spec["input"]["name"]
    for line in sys.stdin:
        variant, long_side, count = json.loads(line)
        session, name = sessions[variant]
        height = -(-long_side * 9 // 16 // 32) * 32
        pixels = np.random.default_rng(0).uniform(0, 255, (1, 3, height, long_side))
        feed, times_ms = {name: pixels.astype(np.float32)}, []
        for _ in range(WARM_UP + count):
            started_s = time.perf_counter()
            session.run(None, feed)
            times_ms.append((time.perf_counter() - started_s) * 1e3)
        sys.stdout.write(json.dumps(times_ms[WARM_UP:]) + "\n")
        sys.stdout.flush()


class Tracer:
    """A process that serves one accelerator, on the last core."""

    def __init__(self, python: str, provider: str) -> None:
        self._process = subprocess.Popen(
            [python, "-m", "tests.bench.affinity", "serve", provider],
            env=worker_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        pin(self._process.pid)

    def measure(self, task: Task, count: int) -> list[float]:
        variant, long_side, effort = task
        assert self._process.stdin
        assert self._process.stdout
        side = round(long_side * effort / 32) * 32
        self._process.stdin.write(json.dumps([variant, side, count]) + "\n")
        answer: list[float] = json.loads(self._process.stdout.readline() or "null")
        if answer is None:
            raise RuntimeError("the tracer died")
        return answer

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def pin(process: int) -> None:
    """Let a process run on the last core only."""
    os.sched_setaffinity(process, {max(os.sched_getaffinity(0))})


@contextmanager
def competitor(load: int) -> Iterator[None]:
    """Keep the last core busy with this many processes."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(load)]
    for process in spinning:
        pin(process.pid)
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def trace() -> tuple[Times, str]:
    """Measure every cell on every accelerator there is; say what is missing."""
    times: Times = {}
    openvino = probe(AcceleratorSpec("bench", "openvino", "CPU"), python=OPENVINO)
    with ExitStack() as stack:
        tracers = {"cpu": Tracer(sys.executable, "cpu")}
        if openvino.ok:
            tracers["openvino"] = Tracer(OPENVINO, "openvino")
        for tracer in tracers.values():
            stack.callback(tracer.close)
        for _, load in product(range(SAMPLES // CHUNK), LOADS):
            with competitor(load):
                for task, (name, tracer) in product(TASK_KINDS, tracers.items()):
                    times.setdefault((name, load, task), []).extend(tracer.measure(task, CHUNK))
    missing = "" if openvino.ok else f"; NO SECOND ACCELERATOR (make openvino): {openvino.reason}"
    return times, missing


# -- the choices


def features(cell: Cell) -> Features:
    accelerator, load, (variant, long_side, effort) = cell
    prior_ms = PRIOR_MS[variant] * (long_side * effort / 640) ** 2
    return Features("person-detector", variant, effort, long_side, 1, load, math.nan, "here",
                    accelerator, prior_ms)  # fmt: skip


class Sums:
    """Time taken and time of the oracle."""

    def __init__(self) -> None:
        self._taken_ms = self._best_ms = 0.0

    def add(self, services_ms: list[float], waits_ms: list[float], chosen: int) -> None:
        finish_ms = [service + wait for service, wait in zip(services_ms, waits_ms, strict=True)]
        self._taken_ms += finish_ms[chosen]
        self._best_ms += min(finish_ms)

    @property
    def regret(self) -> float:
        return self._taken_ms / self._best_ms - 1


class World:
    """The judged half of the times, and the tasks that choose by them."""

    def __init__(self, times: Times) -> None:
        self.judged = {cell: samples[1::2] for cell, samples in times.items()}
        self.truth_ms = {cell: trimmed_mean(samples) for cell, samples in self.judged.items()}
        self.accelerators = sorted({cell[0] for cell in times})
        places = list(product(self.accelerators, LOADS))
        self.places = places * (8 // len(places))
        self.features = {cell: features(cell) for cell in times}
        # As long as the services: much longer ones would decide alone, and hide a bad model.
        self.wait_ms = statistics.fmean(self.truth_ms.values())

    def offer(self, rng: random.Random) -> tuple[list[Cell], list[float]]:
        """Return the candidates of a random task and their emulated waits in ms."""
        task = rng.choice(TASK_KINDS)
        waits_ms = [rng.expovariate(1 / self.wait_ms) for _ in self.places]
        return [(name, load, task) for name, load in self.places], waits_ms

    def regret(self, score: Callable[[list[Cell]], Sequence[float]]) -> float:
        """Return the regret of choosing by least score + wait, over the same random tasks."""
        rng, sums = random.Random(5), Sums()
        for _ in range(TASKS):
            cells, waits_ms = self.offer(rng)
            services_ms = [self.truth_ms[cell] for cell in cells]
            sums.add(services_ms, waits_ms, least(score(cells), waits_ms))
        return sums.regret

    def fixed(self, accelerator: str, load: int | None = None) -> float:
        """Return the regret of always taking one accelerator, at its place with the least wait."""
        return self.regret(
            lambda cells: [
                0.0 if name == accelerator and load in (None, at) else math.inf
                for name, at, _ in cells
            ]
        )


def trimmed_mean(samples: Sequence[float]) -> float:
    """Return the mean without the extremes: a stall of the machine is no property of a cell."""
    cut = int(len(samples) * TRIMMED)
    return statistics.fmean(sorted(samples)[cut : len(samples) - cut])


def least(scores: Sequence[float], waits_ms: Sequence[float]) -> int:
    return min(range(len(scores)), key=lambda index: scores[index] + waits_ms[index])


def learn(times: Times, rows: int, folder: Path) -> dict[str, Any]:
    """Observe the training half in random order, train, adopt and promote as the daemon does.

    Leaves the model in `folder`; returns what the training said, {} if there was none.
    """
    folder.mkdir()
    traces = Traces(folder / "traces.db")
    affinity = Affinity(folder, traces=traces)
    pool = [(cell, spent) for cell, samples in times.items() for spent in samples[::2]]
    random.Random(7).shuffle(pool)
    for number, (cell, spent_ms) in enumerate(pool[:rows]):
        affinity.observe(features(cell), spent_ms, now_s=number / TASKS_PER_S)
        if number % 1_000 == 999:
            traces.flush()  # all at once would be more than waits for the disk
    answer: dict[str, Any] = {}
    if traces.flush() and affinity.wants_training():
        answer = json.loads(subprocess.check_output(affinity.begin_training(folder)))
        if not affinity.adopt(Path(answer["path"])):
            raise RuntimeError(affinity.trouble)
        for number, (cell, spent_ms) in enumerate(random.Random(8).choices(pool, k=CONTEST)):
            affinity.observe(features(cell), spent_ms, now_s=(rows + number) / TASKS_PER_S)
    traces.close()
    return answer


def play(
    world: World, affinity: Affinity, rng: random.Random, tasks: range, sums: Sums, slowed: str = ""
) -> None:
    """Choose and observe, task after task; `slowed` takes `SLOWDOWN` times as long."""
    for number in tasks:
        cells, waits_ms = world.offer(rng)
        pace = [SLOWDOWN if cell[0] == slowed else 1.0 for cell in cells]
        chosen = least(affinity.predict_ms([world.features[cell] for cell in cells]), waits_ms)
        services_ms = [world.truth_ms[c] * slower for c, slower in zip(cells, pace, strict=True)]
        sums.add(services_ms, waits_ms, chosen)
        spent_ms = rng.choice(world.judged[cells[chosen]]) * pace[chosen]
        affinity.observe(world.features[cells[chosen]], spent_ms, now_s=number / TASKS_PER_S)


def choices(times: Times, world: World, folder: Path) -> list[Figure]:
    """Return the regrets of the model at each stage and over the best fixed choice's."""
    fixed = {f"always {name}": world.fixed(name) for name in world.accelerators}
    fixed |= {f"always {name} idle": world.fixed(name, 0) for name in world.accelerators}
    trained_ms = {cell: trimmed_mean(samples[::2]) for cell, samples in times.items()}
    found: list[Figure] = []
    for stage, rows in STAGES.items():
        answer, sums = learn(times, rows, folder / stage), Sums()
        affinity = Affinity(folder / stage)
        play(world, affinity, random.Random(5), range(TASKS), sums)
        note = f"{EMULATED}; stage {affinity.state(0.0)['stage']}, {answer.get('rows', 0)} rows"
        if stage != "direct":
            found.append(Figure(f"affinity.regret_{stage}", sums.regret, note=note))
    listed = ", ".join(f"{name} {value:.3f}" for name, value in fixed.items())
    best = min(fixed.values())
    return [
        Figure("affinity.regret", sums.regret, "<=", 0.02, note),
        Figure("affinity.regret_ratio", sums.regret / best, "<=", 0.5,
               f"over the best fixed choice's ({listed}; each at its least wait)"),
        *found,
        Figure("affinity.regret_floor", world.regret(lambda cells: [trained_ms[c] for c in cells]),
               note="of each cell's mean in the training half: the noise of the judging"),
        Figure("affinity.train_s", answer["trained_s"], note="without its start"),
    ]  # fmt: skip


def drift(world: World, folder: Path) -> list[Figure]:
    """Slow one accelerator down under way; return the regret before and in the tasks after."""
    before, first, after = Sums(), Sums(), Sums()
    for run, slowed in product(range(DRIFT_RUNS), world.accelerators):
        affinity, rng = Affinity(folder), random.Random(run)
        play(world, affinity, rng, range(400), before)
        play(world, affinity, rng, range(400, 500), first, slowed)
        play(world, affinity, rng, range(500, 800), after, slowed)
    note = f"{EMULATED}, injected x{SLOWDOWN:g} of each accelerator in turn, {DRIFT_RUNS} runs"
    return [
        Figure("affinity.drift", after.regret, "<=", 0.02, f"tasks 101 to 400 after it; {note}"),
        Figure("affinity.drift_first100", first.regret, note="tasks 1 to 100 after it"),
        Figure("affinity.drift_before", before.regret, note="400 tasks before it"),
    ]


# -- the cost


def cost(world: World, folder: Path) -> list[Figure]:
    """Time the scoring of eight candidates, each call's other than the last; measure memory."""
    affinity, rng = Affinity(folder), random.Random(3)
    offers = [[world.features[cell] for cell in world.offer(rng)[0]] for _ in range(500)]
    offers = [
        [
            one._replace(queue=rng.randrange(6), temperature_c=float(rng.randrange(40, 90)))
            for one in offer
        ]
        for offer in offers
    ]
    rounds = []
    for _ in range(5):
        spent_us = []
        for offer in offers * 4:
            started_ns = time.perf_counter_ns()
            affinity.predict_ms(offer)
            spent_us.append((time.perf_counter_ns() - started_ns) / 1e3)
        spent_us.sort()
        rounds.append((spent_us[len(spent_us) // 2], spent_us[len(spent_us) * 99 // 100]))
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.affinity", "rss", str(folder)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    slowest = tuple(max(column) for column in zip(*rounds, strict=True))
    worst = f"wall, worst of {len(rounds)} rounds of {len(offers) * 4}"
    best = f"wall, best of the rounds (worst {slowest[0]:.1f})"
    return [
        Figure("affinity.us8", min(one[0] for one in rounds), "<=", 20.0, best),
        Figure("affinity.p99_us", slowest[1], "<", 1_000.0, worst),
        Figure("affinity.rss_mb", float(done.stdout), "<=", 10.0, "library, models, trace table"),
    ]


def rss(folder: Path) -> None:
    """Print what taking up the model adds to a process that has what a daemon has."""
    import aiohttp  # noqa: F401
    import msgpack  # noqa: F401

    def resident_mb() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 1e6

    with tempfile.TemporaryDirectory() as fresh:
        before_mb = resident_mb()
        traces = Traces(Path(fresh, "traces.db"))
        affinity = Affinity(folder, traces=traces)
        one = features(("cpu", 0, TASK_KINDS[0]))
        for _ in range(1_000):
            affinity.observe(one, affinity.predict_ms([one] * 8)[0], now_s=1.0)
        traces.flush()
        print(resident_mb() - before_mb)
        assert affinity.state(1.0)["stage"] != "prior"
        assert not {"numpy", "lightgbm"} & set(sys.modules)
        traces.close()


def figures() -> list[Figure]:
    """Trace this machine, train and judge; return all figures."""
    times, missing = trace()
    world = World(times)
    runs = sum(len(samples) for samples in times.values())
    note = f"runs on {', '.join(world.accelerators)}; energy would be {Meter().source}{missing}"
    with tempfile.TemporaryDirectory() as name:
        rows = choices(times, world, Path(name))
        model = Path(name, "direct")
        rows += [*drift(world, model), *cost(world, model)]
    return [*rows, Figure("affinity.traced", float(runs), note=note)]


def main() -> int:
    """Run all of it, or be one of the processes it starts."""
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2])
    elif sys.argv[1:2] == ["rss"]:
        rss(Path(sys.argv[2]))
    else:
        report("affinity", figures())
    return 0


if __name__ == "__main__":
    sys.exit(main())
