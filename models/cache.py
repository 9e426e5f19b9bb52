"""The ladders of a worker's cameras: found, bounded in memory, evicted, shared.

Owns one ladder per (agent, model digest, canvas geometry), the same one for all agents of one
camera, and the limit on what they hold together; never decides how a frame is answered.
Invariants: a ladder belongs to one digest, so a swapped model starts cold; at most one camera is
being calibrated at a time; what the others hold leaves room for it under `limit_bytes` after every
`settle`.

When memory is short, the ladder that is worth least lets go of its reference and activations (not
of its calibration): worth is the thread-CPU time it saves a frame, over the time to its predicted
next frame, per byte. A newcomer counts as what the others save on average until it has shown
what it saves. A camera that is being calibrated keeps what it has until the verdict.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from models import entries, scene
from models.calibration import STATES_BYTES, Calibration
from models.delta.differential import Differential
from models.images import Canvas
from models.ladder import Ladder
from models.sessions import Session
from models.track import CostModel
from models.wire import Box, CacheHolding, ModelError

LIMIT_BYTES = 256 << 20
FORGET_S = 600.0  # a ladder without frames for so long goes, its calibration too
CALIBRATE_AFTER = 256  # frames, in which the noise is learned and passers-by are not held up
RETELL_S = 60.0  # a scene is looked at again no sooner
MOVED_BITS = 8  # of its signature: what is worth telling

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

    `on_change` is called when a reference begins or ceases to exist, or its scene has become
    another, never for a mere refresh.
    """

    def __init__(
        self,
        *,
        limit_bytes: int = LIMIT_BYTES,
        on_change: Callable[[CacheHolding], None] = lambda holding: None,
        has_room: Callable[[], bool] = lambda: True,
    ) -> None:
        """Start empty; calibrations begin only while the accelerator `has_room` for them."""
        self.limit_bytes = limit_bytes
        self.stats: Counter[str] = Counter()
        self._on_change = on_change
        self._has_room = has_room
        self._ladders: dict[Key, Ladder] = {}
        self._costs: dict[tuple[str, tuple[int, int]], CostModel] = {}
        self._told: dict[tuple[str, str], tuple[CacheHolding, float]] = {}
        self._lock = threading.RLock()

    @property
    def size_bytes(self) -> int:
        """Return the bytes held by all ladders."""
        with self._lock:
            return sum(ladder.size_bytes for ladder in self._each())

    def counts(self) -> Counter[str]:
        """Return how frames were answered, summed over cameras: rungs, audits, breaches."""
        with self._lock:
            return sum((ladder.stats for ladder in self._each()), self.stats.copy())

    def ladder(
        self, agent: str, session: Session, canvas: Canvas, others: Sequence[str] = ()
    ) -> Ladder:
        """Return the ladder of an agent's canvases, a new one if need be (O(weights) then).

        It is that of the `others` too, who want the same frames answered.
        """
        height, width = canvas.pixels.shape[:2]
        digest = session.model.digest
        keys: list[Key] = [
            (one, digest, (height, width, canvas.width, canvas.height)) for one in (agent, *others)
        ]
        with self._lock:
            found = [one for key in keys if (one := self._ladders.get(key)) is not None]
        ladder = found[0] if found else self._made(keys[0], session, canvas)
        with self._lock:
            for key in keys:
                if self._ladders.get(key) is not ladder:
                    self._resized(key)
                    self._ladders[key] = ladder
        return ladder

    def part(self, agent: str) -> None:
        """Take an agent's part in ladders of others away: it leaves their camera. O(ladders)."""
        with self._lock:
            others = {id(one) for key, one in self._ladders.items() if key[0] != agent}
            for key, ladder in list(self._ladders.items()):
                if key[0] == agent and id(ladder) in others:
                    del self._ladders[key]
            self._withdraw()

    def _made(self, key: Key, session: Session, canvas: Canvas) -> Ladder:
        """Return a new ladder, or the one that another thread has made meanwhile."""
        (agent, digest, (height, width, _, _)) = key
        differential: Differential | None = None
        refusal = ""
        try:
            differential = session.differential((height, width))
        except ModelError as error:
            refusal = str(error)
        with self._lock:
            # What an accelerator does elsewhere is not in this thread's time.
            clock = time.thread_time if session.runs_here else time.monotonic
            costs = self._costs.setdefault((digest, (height, width)), CostModel(clock))
            made = Ladder(
                Fitted(session, canvas),
                differential,
                costs,
                (height, width),
                image=(canvas.width, canvas.height),
                refusal=refusal,
                seed=zlib.crc32(agent.encode()),
                calibrate=self._calibration,
            )
            self._resized(key)
            return self._ladders.setdefault(key, made)

    def _resized(self, key: Key) -> None:
        """Drop an agent's ladders of other sizes: its camera has another one now."""
        for other in [one for one in self._ladders if one[:2] == key[:2] and one != key]:
            del self._ladders[other]

    def _calibration(self, ladder: Ladder) -> Calibration | None:
        """Hand out a calibration if it is this ladder's turn."""
        if ladder.stats["frames"] < CALIBRATE_AFTER or not self._has_room():
            return None
        with self._lock:
            busy = any(one.mode == "calibrating" for one in self._each())
            room = max(self.limit_bytes // 2, self.limit_bytes - self.size_bytes)
        return None if busy else Calibration(ladder, states_bytes=min(STATES_BYTES, room))

    def settle(self, now_s: float) -> None:
        """Bring memory under the limit and tell of what has changed. O(ladders)."""
        with self._lock:
            over = self.size_bytes - self.limit_bytes
            if over > 0:
                self._evict(over, now_s)
            self._withdraw()
            self._announce(now_s)

    def _evict(self, over: int, now_s: float) -> None:
        rates = [rate for one in self._each() if (rate := one.saving(now_s)) is not None]
        usual = sum(rates) / len(rates) if rates else 0.0

        def worth(ladder: Ladder) -> float:
            rate = ladder.saving(now_s)
            return (usual if rate is None else rate) / max(1, ladder.size_bytes)

        # A calibration that is cut short would only begin anew.
        settled = [one for one in self._each() if one.mode != "calibrating"]
        for ladder in sorted(settled, key=worth):
            if over <= 0:
                return
            if (size_bytes := ladder.size_bytes) and ladder.let_go():
                over -= size_bytes
                self.stats["evicted"] += 1

    def _withdraw(self) -> None:
        """Tell of the references that are gone."""
        held = {key[:2] for key, ladder in self._ladders.items() if ladder.is_warm}
        for agent, digest in [one for one in self._told if one not in held]:
            del self._told[agent, digest]
            self._on_change(CacheHolding(agent, digest, False))

    def _announce(self, now_s: float) -> None:
        """Tell of references that are new, and now and then of those whose scene has changed."""
        for (agent, digest, (_, _, width, height)), ladder in self._ladders.items():
            image, calibrated = ladder.reference, ladder.mode == "calibrated"
            told, told_s = self._told.get((agent, digest), (None, 0.0))
            if image is None or (
                told is not None and told.calibrated == calibrated and now_s - told_s < RETELL_S
            ):
                continue
            signature = scene.signature(image[:height, :width])
            if (
                told is None
                or told.calibrated != calibrated
                or scene.distance(signature, told.signature) > MOVED_BITS
            ):
                size_bytes = entries.predicted_bytes(image)
                told = CacheHolding(agent, digest, True, signature, size_bytes, calibrated)
                self._on_change(told)
            self._told[agent, digest] = told, now_s

    def _each(self) -> list[Ladder]:
        """Return every ladder once, however many agents share it."""
        return list({id(ladder): ladder for ladder in self._ladders.values()}.values())

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
            self._withdraw()

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
            size = entry.pixels.shape[:2]
            ours = {key[2] for key, _ in self._of(agent, session.model.digest)}
            fits = session.check_fits(entry.width, entry.height) == size
            # Of two sizes the camera's own frames count: a ladder ends those of other sizes.
            if fits and ours <= {(*size, entry.width, entry.height)}:
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
