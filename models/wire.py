"""The records and messages that the daemon and the worker of an accelerator exchange.

Owns their types and the framing of the local socket between the two; never decodes pixels and
never imports numpy, so the daemon stays small. Invariant: a message is one MessagePack map
behind a 4-byte big-endian length of at most `MAX_MESSAGE_BYTES`; both ends are the same program
on the same machine, so a malformed message is our own fault, not a peer's.
"""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import msgpack

MAX_MESSAGE_BYTES = 32 << 20
HEADER = struct.Struct(">I")
ALONE = "@"
"""An agent whose name begins so is no camera: its images have nothing to do with one another."""

SHORT = 16  # hex digits of a digest that tell models apart in load reports and keys

Message = dict[str, Any]
Rung = Literal["full", "sparse", "gate", "same"]
Effort = Literal["full", "half"]
"""At half effort a model sees its canvas at half of its sides, by a dense pass."""
EFFORTS: tuple[Effort, ...] = get_args(Effort)
QUALITY: dict[Effort, float] = {"full": 1.0, "half": 0.9}  # of a model that does not say
Box = list[float]  # x0, y0, x1, y1 (0..1 of the image), score, class index


class Shed(Exception):
    """Say that work was not done, and why; the work itself was fine.

    `reason` is one of "deadline", "queue full", "frame gone", "draining", "worker died".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ModelError(Exception):
    """Say that a model cannot be used: which file and field, and what to do about it."""


@dataclass(frozen=True)
class CameraSpec:
    """Describe one camera of this node.

    `source` is a file path, an `rtsp://` (or other network) address, `v4l2:/dev/videoN` or
    `generated:SEED`. `fps` counts frames per second of media time. Files start anew at their end
    when `loop` is set, and then carry Gaussian sensor noise of `noise_sigma` grey levels.
    `long_side` is in pixels.
    """

    agent: str
    source: str
    fps: float
    loop: bool = True
    noise_sigma: float = 2.0
    seed: int = 0
    long_side: int = 640

    def __post_init__(self) -> None:
        if not 0 < self.fps <= 240:
            raise ValueError(f"camera {self.agent}: fps is {self.fps}; it must be in 0..240")
        if not 32 <= self.long_side <= 4096:
            raise ValueError(
                f"camera {self.agent}: long_side is {self.long_side}; it must be in 32..4096"
            )
        if not 0 <= self.noise_sigma <= 40:
            raise ValueError(
                f"camera {self.agent}: noise_sigma is {self.noise_sigma}; it must be in 0..40"
            )
        if not self.source:
            raise ValueError(f"camera {self.agent}: source is empty; name a file, stream or device")


@dataclass(frozen=True)
class ModelFile:
    """Name one loadable model file; `spec` is the variant object of the model's manifest."""

    name: str
    variant: str
    version: str
    path: str
    digest: str  # sha256 of the file, hexadecimal
    spec: dict[str, Any] = field(default_factory=dict)

    def quality(self, effort: Effort) -> float:
        """Return how good the answers of an effort are, 0..1, as the release says.

        Raises ModelError when it says something else.
        """
        given = self.spec.get("quality", {})
        known = isinstance(given, dict) and set(given) <= set(EFFORTS)
        value = given.get(effort, QUALITY[effort]) if known else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ModelError(
                f"model {self.name}/{self.variant}: quality is {given!r}; it must be an object "
                f"with numbers in 0..1 for {' and '.join(EFFORTS)}"
            )
        return float(value)


@dataclass(frozen=True)
class FrameReady:
    """Say that a camera has a new frame; the pixels stay in the worker.

    `captured_ms` is wall time, `captured_s` CLOCK_MONOTONIC; `width` and `height` are those of
    the frame at the camera's long side. `reusable`: the cached answer of the agent's model holds.
    """

    agent: str
    frame: int
    captured_ms: int
    captured_s: float
    width: int
    height: int
    reusable: bool


@dataclass(frozen=True)
class Inference:
    """Carry one answer; boxes are relative to the image, times are milliseconds of wall time.

    `effort` is the one that answered: "full" also where half was asked for and an answer known.
    """

    boxes: list[Box]
    digest: str
    variant: str
    rung: Rung
    service_ms: float
    wait_ms: float
    waits_ms: list[float]
    """Predicted waits of a new task of tier 1, 2, 3 there; ascending."""
    effort: Effort = "full"


@dataclass(frozen=True)
class CameraState:
    """Say that a camera runs, is being retried, or has ended, and why."""

    agent: str
    state: Literal["running", "retrying", "ended"]
    reason: str


@dataclass(frozen=True)
class CacheHolding:
    """Say that the worker began or ceased to hold a cache entry for (agent, digest).

    Said again when what follows has changed: the entry's scene (see `models.scene`), its size on
    the way to a peer, and whether it tells what calibration found.
    """

    agent: str
    digest: str
    held: bool
    signature: int = 0
    size_bytes: int = 0
    calibrated: bool = False


@dataclass(frozen=True)
class WorkerDied:
    """Say that the worker process ended or hung; a new one follows after a pause."""

    reason: str


@dataclass(frozen=True)
class WorkerReady:
    """Say that a worker process serves, with all models and cameras it was told of."""


WorkerEvent = CameraState | CacheHolding | WorkerDied | WorkerReady


def pack(message: Message) -> bytes:
    """Return the framed bytes of one message.

    Raises ValueError when it is longer than `MAX_MESSAGE_BYTES`. O(size).
    """
    body: bytes = msgpack.packb(message)
    if len(body) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {len(body)} bytes exceeds {MAX_MESSAGE_BYTES}")
    return HEADER.pack(len(body)) + body


def unpack(body: bytes) -> Message:
    """Return the message of one frame's body (without its length)."""
    message: Message = msgpack.unpackb(body)
    return message


def fields(record: CameraSpec | ModelFile) -> Message:
    """Return a record as a plain map, to be sent; `CameraSpec(**fields(spec))` is its inverse."""
    return asdict(record)
