"""The ladders of a worker's cameras: found, bounded in memory, evicted, shared.

Owns one ladder per (agent, model digest, canvas geometry) and the limit on what they hold
together; never decides how a frame is answered. Invariants: a ladder belongs to one digest, so
a swapped model starts cold; what ladders hold stays under `limit_bytes` after every `settle`;
at most one camera is being calibrated at a time.

When memory is short, the ladder that is worth least lets go of its reference and activations (not
of its calibration): worth is the thread-CPU time it saves a frame, over the time to its predicted
next frame, per byte. A newcomer counts as what the others save on average until it has shown
what it saves.
"""

from __future__ import annotations

import threading
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

from models import entries
from models.calibration import Calibration
from models.delta.differential import Differential
from models.images import Canvas
from models.ladder import CostModel, Ladder
from models.sessions import Session
from models.wire import Box, ModelError

LIMIT_BYTES = 256 << 20
FORGET_S = 600.0  # a ladder without frames for so long goes, its calibration too
CALIBRATE_AFTER = 256  # frames, in which the noise is learned and passers-by are not held up

Key = tuple[str, str, tuple[int, int, int, int]]


class Fitted:
    """A session at one canvas geometry: what a ladder runs."""

    def __init__(self, session: Session, canvas: Canvas) -> None:
        self._session = session
        self._size = canvas.width, canvas.height

    def full(self, pixels: Any) -> list[Box]:
        """Return the answer of a full pass. Raises ModelError."""
        return self._session.run(Canvas(pixels, *self._size))

    def decode(self, outputs: Any, pixels: Any) -> list[Box]:
        """Return the answer in the model's outputs. Raises ModelError."""
        return self._session.decode(outputs, Canvas(pixels, *self._size))


class ReuseCache:
    """Hold the ladders of one worker. All methods may be called from any thread.

    `on_change(agent, digest, held)` is called when a reference begins or ceases to exist, never
    for a mere refresh.
    """

    def __init__(
        self,
        *,
        limit_bytes: int = LIMIT_BYTES,
        on_change: Callable[[str, str, bool], None] = lambda agent, digest, held: None,
    ) -> None:
        self.limit_bytes = limit_bytes
        self.stats: Counter[str] = Counter()
        self._on_change = on_change
        self._ladders: dict[Key, Ladder] = {}
        self._costs: dict[tuple[str, tuple[int, int]], CostModel] = {}
        self._held: set[tuple[str, str]] = set()
        self._lock = threading.RLock()

    @property
    def size_bytes(self) -> int:
        """Return the bytes held by all ladders."""
        with self._lock:
            return sum(ladder.size_bytes for ladder in self._ladders.values())

    def counts(self) -> Counter[str]:
        """Return how frames were answered, summed over cameras: rungs, audits, breaches."""
        with self._lock:
            return sum((ladder.stats for ladder in self._ladders.values()), self.stats.copy())

    def ladder(self, agent: str, session: Session, canvas: Canvas) -> Ladder:
        """Return the ladder of an agent's canvases, a new one if need be (O(weights) then)."""
        height, width = canvas.pixels.shape[:2]
        digest = session.model.digest
        key = (agent, digest, (height, width, canvas.width, canvas.height))
        with self._lock:
            if (found := self._ladders.get(key)) is not None:
                return found
        differential: Differential | None = None
        refusal = ""
        try:
            differential = session.differential((height, width))
        except ModelError as error:
            refusal = str(error)
        with self._lock:
            for other in [one for one in self._ladders if one[:2] == key[:2] and one != key]:
                del self._ladders[other]  # the camera has another size now
            costs = self._costs.setdefault((digest, (height, width)), CostModel())
            made = Ladder(
                Fitted(session, canvas),
                differential,
                costs,
                (height, width),
                refusal=refusal,
                seed=zlib.crc32(agent.encode()),
                calibrate=lambda ladder: self._calibration(ladder, (height, width)),
            )
            return self._ladders.setdefault(key, made)

    def _calibration(self, ladder: Ladder, size: tuple[int, int]) -> Calibration | None:
        """Hand out a calibration if it is this ladder's turn."""
        if ladder.stats["frames"] < CALIBRATE_AFTER:
            return None
        with self._lock:
            busy = any(one.mode == "calibrating" for one in self._ladders.values())
        return None if busy else Calibration(ladder, size)

    def settle(self, now_s: float) -> None:
        """Bring memory under the limit and tell of what has changed. O(ladders)."""
        with self._lock:
            over = self.size_bytes - self.limit_bytes
            if over > 0:
                self._evict(over, now_s)
            self._tell()

    def _evict(self, over: int, now_s: float) -> None:
        rates = [rate for one in self._ladders.values() if (rate := one.saving(now_s)) is not None]
        usual = sum(rates) / len(rates) if rates else 0.0

        def worth(ladder: Ladder) -> float:
            rate = ladder.saving(now_s)
            return (usual if rate is None else rate) / max(1, ladder.size_bytes)

        for ladder in sorted(self._ladders.values(), key=worth):
            if over <= 0:
                return
            if (size_bytes := ladder.size_bytes) and ladder.let_go():
                over -= size_bytes
                self.stats["evicted"] += 1

    def _tell(self) -> None:
        held = {key[:2] for key, ladder in self._ladders.items() if ladder.is_warm}
        for agent, digest in self._held ^ held:
            self._on_change(agent, digest, (agent, digest) in held)
        self._held = held

    def expire(self, now_s: float) -> None:
        """Drop references past their time and ladders long without frames. O(ladders)."""
        with self._lock:
            for key, ladder in list(self._ladders.items()):
                if ladder.idle_s(now_s) > FORGET_S:
                    del self._ladders[key]
                else:
                    ladder.expire(now_s)
            self.settle(now_s)

    def forget(self, *, agent: str | None = None, digest: str | None = None) -> None:
        """Drop the ladders of an agent, of a digest, or of both together. O(ladders)."""
        with self._lock:
            for key in list(self._ladders):
                if agent in (None, key[0]) and digest in (None, key[1]):
                    del self._ladders[key]
            for known in [one for one in self._costs if one[0] == digest]:
                del self._costs[known]
            self._tell()

    def export(self, agent: str, digest: str, now_s: float) -> bytes | None:
        """Return the entry of (agent, digest) for another node, None if invalid. O(pixels)."""
        for key, ladder in self._of(agent, digest):
            entry = ladder.entry(now_s, (key[2][2], key[2][3]))
            if entry is not None:
                return entries.encode(agent, digest, entry)
        return None

    def adopt(self, agent: str, session: Session, data: bytes, now_s: float) -> bool:
        """Take over an entry exported elsewhere; False (state unchanged) if it does not fit.

        It must be of this very agent and digest, well-formed and younger than the time to live,
        and does not replace a valid reference of our own. O(pixels).
        """
        entry = entries.decode(agent, session.model.digest, data)
        taken = False
        if entry is not None:
            canvas = Canvas(entry.pixels, entry.width, entry.height)
            if session.check_fits(entry.width, entry.height) == entry.pixels.shape[:2]:
                taken = self.ladder(agent, session, canvas).adopt(entry, now_s)
        self.stats["import" if taken else "import refused"] += 1
        self.settle(now_s)
        return taken

    def records(self, now_s: float) -> list[dict[str, Any]]:
        """Return what is known of each camera, for people. O(ladders)."""
        with self._lock:
            known = list(self._ladders.items())
        return [
            {"agent": agent, "digest": digest, "canvas": [height, width], **one.record(now_s)}
            for (agent, digest, (height, width, _, _)), one in known
        ]

    def _of(self, agent: str, digest: str) -> list[tuple[Key, Ladder]]:
        with self._lock:
            return [(key, one) for key, one in self._ladders.items() if key[:2] == (agent, digest)]
