"""The output rungs of the reuse ladder: answer a frame with the last full pass's boxes.

Owns the reference frame and answer per (agent, model digest) and the estimate of each camera's
noise; never runs a model and never reads a clock (`now_s` is CLOCK_MONOTONIC). Invariants: an
answer is reused only for the same agent, the same digest and the same canvas geometry, at most
`ttl_s` after the full pass that made it, and only if no 8 x 8 block changed by more than the
camera's noise explains; the reference is always a frame that was really inferred, so slow drift
adds up against it instead of passing unseen. Memory stays under `limit_bytes`.

A block has changed when the mean of |difference| exceeds `ABSOLUTE_FLOOR + ABSOLUTE_GAIN x
noise`, or the difference of its means (a far finer measure of a smooth change: noise averages
out) exceeds `MEAN_FLOOR + MEAN_GAIN x noise` in any colour channel. Noise is the mean
|difference| of consecutive frames in their quietest quarter of blocks, and of the last 16
measurements again the lower quartile: motion can only raise single measurements, so it does not
blind the gate. Above `NOISE_LIMIT` grey levels nothing is reused.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgpack
import numpy as np
import numpy.typing as npt
import zstandard

from models.images import Canvas, Pixels
from models.wire import Box, Rung

BLOCK = 8
ABSOLUTE_FLOOR, ABSOLUTE_GAIN = 3.0, 1.5
MEAN_FLOOR, MEAN_GAIN = 3.0, 0.6
THUMBNAIL_RMS_SHARE = 0.5  # of the mean threshold, over all blocks: many small changes together
NOISE_LIMIT = 5.0
MAX_IMPORT_SIDE_PX = 4096
EXPORT_FORMAT = 1

Floats = npt.NDArray[np.float32]
Key = tuple[str, str]

_PER_CHANNEL = np.kron(np.ones((BLOCK, 1)), np.eye(3)).astype(np.float32) / BLOCK**2
_OVER_CHANNELS = np.ones(BLOCK * 3, np.float32) / (BLOCK**2 * 3)


@dataclass(frozen=True, eq=False)
class View:
    """Hold a canvas as the ladder sees it: `means` float32[h/8, w/8, 3] and the noise then."""

    canvas: Canvas
    means: Floats
    noise: float | None


@dataclass(frozen=True, eq=False)
class Entry:
    """Hold the answer of one full pass and the view it was computed from."""

    view: View
    boxes: list[Box]
    made_s: float

    @property
    def size_bytes(self) -> int:
        return int(self.view.canvas.pixels.nbytes + self.view.means.nbytes) + 64 * len(self.boxes)


@dataclass
class _Noise:
    """Keep what is known of one camera's noise at one canvas geometry."""

    last: Pixels
    measured: deque[float] = field(default_factory=lambda: deque(maxlen=16))

    def level(self) -> float | None:
        if len(self.measured) < 2:
            return None
        return sorted(self.measured)[len(self.measured) // 4]


class OutputCache:
    """Decide whether a frame needs a full pass, and remember what full passes said.

    All methods may be called from any thread. `on_change(agent, digest, held)` is called when an
    entry begins or ceases to exist, never for a mere refresh.
    """

    def __init__(
        self,
        *,
        ttl_s: float = 30.0,
        limit_bytes: int = 64 << 20,
        on_change: Callable[[str, str, bool], None] = lambda agent, digest, held: None,
    ) -> None:
        self.ttl_s = ttl_s
        self.limit_bytes = limit_bytes
        self.stats: Counter[str] = Counter()
        self._on_change = on_change
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self._noise: OrderedDict[tuple[str, tuple[int, ...]], _Noise] = OrderedDict()
        self._size_bytes = 0
        self._lock = threading.RLock()
        self._scratch = threading.local()

    @property
    def size_bytes(self) -> int:
        """Return the bytes held by entries and by the last frame of each camera."""
        with self._lock:
            return self._size_bytes + sum(noise.last.nbytes for noise in self._noise.values())

    def observe(self, agent: str, canvas: Canvas) -> View:
        """Return the view of an agent's next canvas and learn its noise from it. O(pixels)."""
        pixels = canvas.pixels
        key = (agent, pixels.shape)
        with self._lock:
            noise = self._noise.get(key)
            if noise is None:
                noise = self._noise[key] = _Noise(pixels)
                while len(self._noise) > 64:
                    self._noise.popitem(last=False)
            else:
                self._noise.move_to_end(key)
            last, noise.last = noise.last, pixels
        if last is not pixels:
            # Every fourth row of blocks is enough for a quantile and costs a quarter.
            changes = self._block_changes(last, pixels, every=4).ravel()
            quarter = len(changes) // 4
            level = float(np.partition(changes, quarter)[quarter])
            with self._lock:
                noise.measured.append(level)
        with self._lock:
            return View(canvas, block_means(pixels), noise.level())

    def lookup(
        self, agent: str, digest: str, view: View, now_s: float
    ) -> tuple[Entry, Rung] | None:
        """Return the entry that answers this view and by which rung, or None. O(pixels).

        Misses are counted by reason in `stats` as "miss: ...".
        """
        with self._lock:
            entry = self._entries.get((agent, digest))
        if entry is None:
            self.stats["miss: no entry"] += 1
            return None
        rung, why = self._compare(entry, view, now_s)
        if rung is None:
            self.stats[f"miss: {why}"] += 1
            return None
        return entry, rung

    def _compare(self, entry: Entry, view: View, now_s: float) -> tuple[Rung | None, str]:
        """Return the rung by which an entry answers a view, or None and why not. O(pixels)."""
        if not 0 <= now_s - entry.made_s < self.ttl_s:
            return None, "expired"
        old, new = entry.view.canvas, view.canvas
        if (old.width, old.height, old.pixels.shape) != (new.width, new.height, new.pixels.shape):
            return None, "geometry"
        if old.pixels is new.pixels or np.array_equal(old.pixels, new.pixels):
            return "same", ""
        if view.noise is None:
            return None, "noise unknown"
        if view.noise > NOISE_LIMIT:
            return None, "noise too high"
        limit = MEAN_FLOOR + MEAN_GAIN * view.noise
        difference = (view.means - entry.view.means).ravel()
        if max(float(difference.max()), -float(difference.min())) > limit:
            return None, "change"
        if float(difference @ difference) > (THUMBNAIL_RMS_SHARE * limit) ** 2 * len(difference):
            return None, "thumbnail"
        changes = self._block_changes(old.pixels, new.pixels)
        if float(changes.max()) > ABSOLUTE_FLOOR + ABSOLUTE_GAIN * view.noise:
            return None, "change"
        return "gate", ""

    def holds(self, agent: str, digest: str, entry: Entry, now_s: float) -> bool:
        """Return whether an entry found before is still the one that answers."""
        with self._lock:
            current = self._entries.get((agent, digest))
        return current is entry and 0 <= now_s - entry.made_s < self.ttl_s

    def store(self, agent: str, digest: str, view: View, boxes: list[Box], now_s: float) -> None:
        """Make the answer of a full pass the reference of (agent, digest). Amortised O(1)."""
        self._put((agent, digest), Entry(view, boxes, now_s))

    def forget(self, *, agent: str | None = None, digest: str | None = None) -> None:
        """Drop the entries of an agent, of a digest, or of both together. O(entries)."""
        with self._lock:
            for key in list(self._entries):
                if agent in (None, key[0]) and digest in (None, key[1]):
                    self._drop(key)
            if digest is None:
                for place in [place for place in self._noise if agent in (None, place[0])]:
                    del self._noise[place]

    def expire(self, now_s: float) -> None:
        """Drop entries twice as old as the time to live: nothing refreshes them. O(entries)."""
        with self._lock:
            for key, entry in list(self._entries.items()):
                if now_s - entry.made_s > 2 * self.ttl_s:
                    self._drop(key)

    def export(self, agent: str, digest: str, now_s: float) -> bytes | None:
        """Return the entry of (agent, digest) for another node, lossless; None if none is valid.

        O(pixels); about half the size of the raw canvas.
        """
        with self._lock:
            entry = self._entries.get((agent, digest))
            if entry is None or not 0 <= now_s - entry.made_s < self.ttl_s:
                return None
            canvas = entry.view.canvas
            known = self._noise.get((agent, canvas.pixels.shape))
            noise = known.level() if known else entry.view.noise
        shifted = np.diff(canvas.pixels, axis=1, prepend=np.uint8(0))
        data: bytes = msgpack.packb(
            {
                "format": EXPORT_FORMAT,
                "agent": agent,
                "digest": digest,
                "age_s": now_s - entry.made_s,
                "noise": noise,
                "size": [canvas.width, canvas.height],
                "canvas": list(canvas.pixels.shape[:2]),
                "boxes": entry.boxes,
                "pixels": zstandard.compress(shifted.tobytes(), 1),
            }
        )
        return data

    def adopt(self, agent: str, digest: str, data: bytes, now_s: float) -> bool:
        """Take over an entry exported elsewhere; False (state unchanged) if it does not fit.

        It must be of this very agent and digest, well-formed and younger than the time to live,
        and does not replace a valid entry of our own. O(pixels).
        """
        entry = _decode_entry(agent, digest, data, now_s, self.ttl_s)
        if entry is None:
            self.stats["import refused"] += 1
            return False
        with self._lock:
            own = self._entries.get((agent, digest))
            if own is not None and 0 <= now_s - own.made_s < self.ttl_s:
                return False
            self._put((agent, digest), entry)
            key = (agent, entry.view.canvas.pixels.shape)
            if entry.view.noise is not None and key not in self._noise:
                self._noise[key] = _Noise(entry.view.canvas.pixels)
                self._noise[key].measured.extend([entry.view.noise] * 2)
        self.stats["import"] += 1
        return True

    def _put(self, key: Key, entry: Entry) -> None:
        with self._lock:
            if entry.size_bytes > self.limit_bytes:
                return
            before = self._entries.pop(key, None)
            self._entries[key] = entry
            self._size_bytes += entry.size_bytes - (before.size_bytes if before else 0)
            while self._size_bytes > self.limit_bytes:
                self._drop(next(iter(self._entries)))
                self.stats["evicted"] += 1
            if before is None:
                self._on_change(*key, True)

    def _drop(self, key: Key) -> None:
        self._size_bytes -= self._entries.pop(key).size_bytes
        self._on_change(*key, False)

    def _block_changes(self, old: Pixels, new: Pixels, every: int = 1) -> Floats:
        """Return the mean |difference| per block, float32[rows, w/8], of every n-th block row."""
        height, width = new.shape[:2]
        shape = (height // BLOCK, BLOCK, width * 3)
        first, second = old.reshape(shape)[::every], new.reshape(shape)[::every]
        high, low = self._scratch_pair(first.shape)
        np.maximum(first, second, out=high)
        np.minimum(first, second, out=low)
        np.subtract(high, low, out=high)
        sums = high.sum(axis=1, dtype=np.uint16).astype(np.float32)
        changes: Floats = sums.reshape(len(first), width // BLOCK, BLOCK * 3) @ _OVER_CHANNELS
        return changes

    def _scratch_pair(self, shape: tuple[int, ...]) -> tuple[Pixels, Pixels]:
        """Return two reused arrays: fresh ones cost more in page faults than the arithmetic."""
        pairs = self._scratch.__dict__.setdefault("pairs", {})
        if shape not in pairs:
            if len(pairs) >= 4:
                pairs.clear()
            pairs[shape] = (np.empty(shape, np.uint8), np.empty(shape, np.uint8))
        pair: tuple[Pixels, Pixels] = pairs[shape]
        return pair


def block_means(pixels: Pixels) -> Floats:
    """Return the mean of each 8 x 8 block and channel, float32[h/8, w/8, 3]. O(pixels)."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height // BLOCK, BLOCK, width * 3).sum(axis=1, dtype=np.uint16)
    blocks = rows.astype(np.float32).reshape(height // BLOCK, width // BLOCK, BLOCK * 3)
    means: Floats = blocks @ _PER_CHANNEL
    return means


def _decode_entry(agent: str, digest: str, data: bytes, now_s: float, ttl_s: float) -> Entry | None:
    """Return the entry in exported bytes, or None when anything about them is wrong."""
    try:
        record = msgpack.unpackb(data)
        if (record["format"], record["agent"], record["digest"]) != (EXPORT_FORMAT, agent, digest):
            return None
        age_s, noise = float(record["age_s"]), record["noise"]
        (width, height), (rows, columns) = record["size"], record["canvas"]
        sane = 0 < width <= columns <= MAX_IMPORT_SIDE_PX and 0 < height <= rows
        if not sane or rows > MAX_IMPORT_SIDE_PX or rows % BLOCK or columns % BLOCK:
            return None
        if not 0 <= age_s < ttl_s or not (noise is None or 0 <= float(noise) <= 255):
            return None
        size_bytes = rows * columns * 3
        packed = record["pixels"]
        if zstandard.frame_content_size(packed) != size_bytes:
            return None
        shifted = np.frombuffer(zstandard.decompress(packed), np.uint8).reshape(rows, columns, 3)
        boxes = [[*map(float, box[:5]), int(box[5])] for box in record["boxes"]]
        if any(len(box) != 6 or not all(0 <= v <= 1 for v in box[:5]) for box in boxes):
            return None
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        msgpack.UnpackException,
        zstandard.ZstdError,
    ):
        return None
    pixels: Pixels = np.cumsum(shifted, axis=1, dtype=np.uint8)
    view = View(Canvas(pixels, width, height), block_means(pixels), noise)
    return Entry(view, boxes, now_s - age_s)
