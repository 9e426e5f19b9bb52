"""What a task would take on each node, as learned from this node's own traces.

Owns the affinity model in the daemon: what it is told, what it is asked, and its training in a
process of its own. Never decides anything: without a model, a library or a disk the peers' own
words count, corrected by what was seen of them.
"""

import asyncio
import json
import logging
import math
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_node.decisions import Record, Way
from edge_node.placement.view import Option
from edge_node.workers import ModelFile
from models.accelerators import worker_environment
from models.affinity.affinity import Affinity
from models.affinity.features import Features
from models.affinity.traces import Traces
from models.energy import Meter

log = logging.getLogger(__name__)

EFFORT_SCALES = {"full": 1.0, "half": 0.5}
CHECK_S, LAST_CHECK_S = 30.0, 3_600.0
TRAINING_LIMIT_S = 300.0
MOST_QUEUE = 1_000


class Foresight:
    """Predicts, and learns from what became of its predictions."""

    def __init__(
        self,
        folder: Path,
        provider: Callable[[bytes], str],
        file: Callable[[str], ModelFile | None],
        temperature_c: Callable[[], float],
    ) -> None:
        """Prepare; nothing is read before :meth:`open`.

        Args:
            folder: for traces and models.
            provider: execution provider of a peer, "" if unknown.
            file: the release's file of a digest, if it has one.
        """
        self._folder = folder
        self._provider = provider
        self._file = file
        self._temperature_c = temperature_c
        self._own_provider = ""
        self._meter: Meter | None = None
        self._traces: Traces | None = None
        self._affinity: Affinity | None = None
        self.joules = 0.0
        """What this node's own answers have drawn."""

    def open(self, provider: str) -> None:
        """Take up what was learned before; ``provider`` is that of this node's accelerator."""
        self._own_provider, self._meter = provider, Meter(provider)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # nothing is stored then, which is shown
            log.error("%s: cannot be made (%s)", self._folder, error.strerror)
        self._traces = Traces(self._folder / "traces.db")
        for notice in self._traces.notices:
            log.warning("%s", notice)
        self._affinity = Affinity(
            self._folder, traces=self._traces, energy_source=self._meter.source
        )

    def measure(self, now_s: float) -> None:
        """Read the device's energy counters, if it has any; ``now_s`` is monotonic. Blocks."""
        if self._meter is not None:
            self._meter.advance(now_s, busy_s=0.0)

    def close(self) -> None:
        """Write what is not written yet."""
        if self._traces is not None:
            self._traces.close()

    def foreseen(self, option: Option, way: Way) -> Option:
        """Return an option with the service time that is predicted for it.

        ``option.service_ms`` is what the node itself makes believe.
        """
        features = self._features(option.node, way, option.wait_ms, option.service_ms)
        if self._affinity is None or features is None:
            return option
        return replace(option, service_ms=self._affinity.predict_ms((features,))[0])

    def ended(self, record: Record) -> None:
        """Learn from a task of this node's own that was answered where it was sent first."""
        inference, prior_ms = record.inference, record.prior_ms
        place = record.decision.option if record.decision else None
        if self._affinity is None or inference is None or place is None:
            return
        if len(record.attempts) != 1 or inference.rung != "full" or inference.service_ms <= 0:
            return
        if record.attempts[0].outcome != "answered":
            return  # it was passed on: the time is another node's
        if (inference.digest, inference.effort) != record.way:
            return
        features = self._features(place.node, record.way, place.wait_ms, prior_ms)
        if features is None or not 0 < prior_ms < math.inf:
            return
        energy_j = None
        if place.node is None and self._meter is not None:
            energy_j = self._meter.task_j(inference.service_ms) or None  # a counter may stand still
            self.joules += energy_j or 0.0
        self._affinity.observe(features, inference.service_ms, energy_j, now_s=time.time())

    def _features(
        self, node: bytes | None, way: Way, waiting_ms: float, prior_ms: float
    ) -> Features | None:
        digest, effort = way
        file = self._file(digest)
        if file is None or prior_ms <= 0:
            return None
        return Features(
            kind=file.name,
            variant=file.variant,
            effort=EFFORT_SCALES[effort],
            resolution=file.spec["input"]["long_side"],
            batch=1,
            queue=round(min(MOST_QUEUE, waiting_ms / prior_ms)),
            temperature_c=self._temperature_c() if node is None else math.nan,
            node="here" if node is None else node.hex()[:16],
            accelerator=self._own_provider if node is None else self._provider(node),
            prior_ms=prior_ms,
        )

    def state(self) -> dict[str, Any]:
        """Return what is known of the model, as plain data."""
        if self._affinity is None or self._meter is None:
            return {}
        energy = {"energy": self._meter.source, "joules": round(self.joules, 1)}
        return {**self._affinity.state(time.time()), **energy}

    async def keep_trained(self) -> None:
        """Train a model whenever there is enough that is new, in a process of its own."""
        pause_s = CHECK_S
        while True:
            await asyncio.sleep(pause_s)
            affinity = self._affinity
            if affinity is None or not affinity.wants_training():
                continue
            pause_s = min(LAST_CHECK_S, 2 * pause_s)  # what fails once will mostly fail again
            try:
                with tempfile.TemporaryDirectory(dir=self._folder) as name:
                    found = await _train(affinity.begin_training(Path(name)))
                    if found is not None and affinity.adopt(found):
                        log.info("a newly trained affinity model is on trial")
                        pause_s = CHECK_S
            except OSError as error:  # no room, no process: what is known still counts
                log.warning("the affinity model cannot be trained (%s)", error)


async def _train(command: list[str]) -> Path | None:
    """Run a training; return the model's path, None if it failed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env=worker_environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output = errors = b""
    try:
        async with asyncio.timeout(TRAINING_LIMIT_S):
            output, errors = await process.communicate()
    except TimeoutError:
        errors = b"it took too long"
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if process.returncode != 0:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        log.warning("training the affinity model failed: %s", *last or ["no word"])
        return None
    try:
        return Path(json.loads(output.decode().splitlines()[-1])["path"])
    except (ValueError, KeyError, IndexError, TypeError):
        log.warning("training the affinity model gave no path")
        return None
