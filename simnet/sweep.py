"""The same task for many seeds: in this process, in several, or on a Ray cluster.

Owns the workers, and what becomes of a seed whose worker dies: it is run again, and counts as
failed after that. Never looks into an outcome. Invariant: each seed gives one outcome, the same
whichever engine ran it; and however the sweep ends, no worker outlives it.
"""

import os
import secrets
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from simnet.outcome import Outcome, Violation

Task = Callable[[int], Outcome]

ENGINES = ("processes", "ray")
MORE_TRIES = 2
"""So often a seed is run again whose worker died."""
RAY_WORKERS = 2
_STORE_BYTES = 100 << 20
_PACKAGES = ("crdt", "gossip", "models", "edge_node", "simnet")


def sweep(
    task: Task,
    seeds: Iterable[int],
    *,
    engine: str = "processes",
    workers: int | None = None,
    address: str | None = None,
) -> Iterator[Outcome]:
    """Run a task for each seed; yield what comes of it as it comes.

    Seeds are taken one by one as workers are free, so there may be endlessly many. A task that
    raises gives a failed outcome, as does a seed whose workers died ``MORE_TRIES`` + 1 times.

    Args:
        task: what a fresh interpreter can import, so no lambda; maybe a ``functools.partial``.
        seeds: each once.
        engine: ``processes`` of this machine, or ``ray``.
        workers: at once; by default one per processor, with Ray all that the cluster has. With
            ``processes``, 1 means in this process.
        address: of the Ray cluster; None for one on this machine that ends with the sweep.

    Raises:
        ValueError: unknown engine, no worker, an address without Ray, or Ray is not installed.
        RuntimeError: workers do not even start.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine = {engine!r}: must be one of {', '.join(ENGINES)}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers = {workers}: must be at least 1")
    if address is not None and engine != "ray":
        raise ValueError(f"address = {address!r}: only the engine 'ray' has one")
    if engine == "ray":
        return _on_ray(_ray(address), task, iter(seeds), workers, address)
    workers = workers or len(os.sched_getaffinity(0))
    if workers == 1:
        return (attempt(task, seed) for seed in seeds)
    return _in_processes(task, iter(seeds), workers)


def attempt(task: Task, seed: int) -> Outcome:
    """Run the task; what it raises is a violation named ``exception``."""
    try:
        return task(seed)
    except Exception as error:  # noqa: BLE001 - whatever it is, the seed found it
        what = "".join(traceback.format_exception_only(error)).strip()
        return _failed(seed, "exception", what, traceback.format_exception(error))


def _failed(seed: int, invariant: str, what: str, last: Iterable[str] = ()) -> Outcome:
    lines = tuple(line for block in last for line in block.splitlines())
    violation = Violation(invariant, -1.0, what, lines)
    return Outcome(scenario="", seed=seed, host="", nodes=0, cryptography="", violation=violation)


def _lost(seed: int, how: str) -> Outcome:
    return _failed(seed, "worker", f"died {MORE_TRIES + 1} times, the last time: {how}")


class _Worker:
    """A process, and the seed that it has."""

    def __init__(self, task: Task) -> None:
        context = get_context("spawn")
        self.connection: Connection[int | None, Outcome | None]
        self.connection, theirs = context.Pipe()
        self.seed: int | None = None
        self.process = context.Process(target=_serve, args=(task, theirs), daemon=True)
        # What is blocked now stays so over exec: Ctrl-C is for who sweeps, not for the workers.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def give(self, seed: int) -> None:
        """Send a seed; if the process is dead, its connection will say so."""
        self.seed = seed
        try:
            self.connection.send(seed)
        except OSError:
            pass

    def end(self) -> str:
        """End the process; return how it ended."""
        self.connection.close()
        self.process.kill()  # after a death of its own this changes nothing
        self.process.join()
        status = self.process.exitcode or 0
        self.process.close()
        if status >= 0:
            return f"exit status {status}"
        name = signal.Signals(-status).name
        return f"{name} (out of memory?)" if name == "SIGKILL" else name


def _serve(task: Task, connection: "Connection[Outcome | None, int]") -> None:
    """Be a worker: say that it runs, then answer each seed until the sweep closes its end."""
    try:
        connection.send(None)
        while True:
            connection.send(attempt(task, connection.recv()))
    except (EOFError, OSError):
        pass


def _in_processes(task: Task, seeds: Iterator[int], workers: int) -> Iterator[Outcome]:
    again: list[int] = []
    deaths: Counter[int] = Counter()
    crew: dict[Any, _Worker] = {}

    def hire() -> None:
        worker = _Worker(task)
        crew[worker.connection] = worker

    try:
        for _ in range(workers):
            hire()
        while crew:
            for connection in wait(list(crew)):
                worker = crew[connection]
                came = None
                try:
                    came = worker.connection.recv()
                except (EOFError, OSError):
                    del crew[connection]
                    how = worker.end()
                    if worker.seed is None:
                        raise RuntimeError(f"no worker can start: {how}") from None
                    deaths[worker.seed] += 1
                    if deaths[worker.seed] <= MORE_TRIES:
                        again.append(worker.seed)
                    else:
                        came = _lost(worker.seed, how)
                    hire()
                else:
                    seed = again.pop() if again else next(seeds, None)
                    if seed is None:
                        crew.pop(connection).end()
                    else:
                        worker.give(seed)
                if came is not None:
                    yield came
    finally:
        for worker in crew.values():
            worker.end()


def _ray(address: str | None) -> Any:
    """Return Ray, told to keep to itself; raise ValueError if it is not installed."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"] = "."  # else it prints each worker's death
    os.environ.setdefault("RAY_task_oom_retries", str(MORE_TRIES))
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # what keeps sockets to loopback
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else it keeps one in the home folder
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            "engine = 'ray': Ray is not installed; pip install edge-node[sweep], or leave "
            "--engine away"
        ) from error
    return ray


def _on_ray(
    ray: Any, task: Task, seeds: Iterator[int], workers: int | None, address: str | None
) -> Iterator[Outcome]:
    with tempfile.TemporaryDirectory(prefix="sweep", ignore_cleanup_errors=True) as folder:
        try:
            if address is None:
                _begin_cluster(ray, workers or RAY_WORKERS, folder)
            else:
                _join_cluster(ray, address)
            run = ray.remote(num_cpus=1, max_retries=MORE_TRIES)(attempt)
            # One more each waits at the workers, so that none idles.
            at_once = workers or 2 * int(ray.cluster_resources().get("CPU", 1))
            running = {run.remote(task, seed): seed for seed in islice(seeds, at_once)}
            while running:
                (done,), _ = ray.wait(list(running), num_returns=1)
                seed = running.pop(done)
                running.update((run.remote(task, one), one) for one in islice(seeds, 1))
                try:
                    outcome = ray.get(done)
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as how:
                    outcome = _lost(seed, str(how).strip().partition("\n")[0])
                yield outcome
        finally:
            ray.shutdown()


def _begin_cluster(ray: Any, workers: int, folder: str) -> None:
    """Start a cluster that only this machine sees; its workers are this interpreter."""
    path = os.pathsep.join(os.path.abspath(one) for one in sys.path)
    ray.init(
        address="local",
        num_cpus=workers,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=_STORE_BYTES,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
        **_QUIET,
    )


def _join_cluster(ray: Any, address: str) -> None:
    """Connect to a cluster; its workers get these packages, so that all run the same code."""
    here = Path(__file__).parents[1]
    modules = [str(here / name) for name in _PACKAGES]
    try:
        ray.init(address=address, runtime_env={"py_modules": modules}, **_QUIET)
    except ConnectionError as error:
        raise ValueError(
            f"address = {address!r}: {error}; a cluster that wants a token takes it from "
            f"RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        ) from error


_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
