"""Camera sources: files, network streams, video devices and the generated scene, one code path.

Owns PyAV containers and the clock of playback; never runs a model and runs in worker processes
only. Invariants: `open_source` never raises because of a source, it reports and retries with a
pause that doubles from 0.5 to 30 s; frames come at most `fps` times per second of media time, in
order, at the camera's long side; a looped pass of a file is never byte-identical to another; what
is reported holds no password; a source opens nothing but files, or nothing but the network
protocols of its own scheme, whatever a playlist in it names.

Files are played in real time. When decoding falls behind by more than a frame the playback clock
slips, so there is never a burst. Live sources are read as fast as they come; frames older than a
period (by media time against arrival) are decoded but dropped, so the newest is what is seen. When
their clock steps back or leaps ahead, both begin anew.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from edge_node.cameras.address import public_address
from edge_node.cameras.scene import Scene
from models.images import Pixels, Scaler, fitted
from models.wire import CameraSpec

OnState = Callable[[str, str], None]

FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 30.0
OPEN_LIMIT_S, READ_LIMIT_S = 10.0, 5.0
MAX_BAD_PACKETS = 250
NOISE_PLANES = 4
NOISE_SLACK = 1 << 16
STALE_LIMIT_S = 1.0  # however late, a live camera shows at least a frame a second
CLOCK_DRIFT = 1e-3
TIME_STAMP_SLACK_S = 1e-3
NO_TIME_STAMPS = 0x80  # FFmpeg's AVFMT_NOTIMESTAMPS
LEAP_S = 10.0  # media time may be ahead of the last frame by this much

PROTOCOLS = {
    "rtsp": "rtsp,rtp,udp,tcp",
    "rtsps": "rtsp,rtsps,rtp,udp,tcp,tls",
    "http": "http,https,tcp,tls",
    "https": "http,https,tcp,tls",
}


class SourceTrouble(Exception):
    """Say why a source gives no frames, in words for its owner."""


def open_source(
    spec: CameraSpec, stop: threading.Event, on_state: OnState
) -> Iterator[tuple[float, Pixels]]:
    """Yield (CLOCK_MONOTONIC seconds, uint8[h, w, 3] BGR) until `stop` is set or a file ends.

    Reports "running", "retrying" with the reason, and "ended" (a file that does not loop).
    """
    pause_s, passes = FIRST_PAUSE_S, 0
    sink = _Sink(spec)
    where = public_address(spec.source)
    running = False
    while not stop.is_set():
        reason = ""
        seen = 0
        try:
            for captured_s, pixels in _one_pass(spec, sink, stop, passes):
                seen += 1
                pause_s = FIRST_PAUSE_S
                if not running:
                    on_state("running", "")
                    running = True
                yield captured_s, pixels
            if not seen and not stop.is_set():
                reason = f"{where}: no frame in it can be decoded"
        except SourceTrouble as trouble:
            reason = str(trouble)
        if stop.is_set():
            return
        passes += bool(seen)
        if not reason and is_live(spec.source):
            reason = f"{where}: the stream ended"
        if not reason and not spec.loop:
            on_state("ended", "the file is at its end and loop is off")
            return
        if reason:
            running = False
            on_state("retrying", f"{reason}; next try in {pause_s:g} s")
            stop.wait(pause_s)
            pause_s = min(LAST_PAUSE_S, pause_s * 2)
            sink.clock.restart()


def is_live(source: str) -> bool:
    """Return whether a source goes on by itself, unlike a file."""
    return ("://" in source and not source.startswith("file://")) or _is_device(source)


def _is_device(source: str) -> bool:
    return source.startswith(("v4l2:", "/dev/video"))


class _Playback:
    """Map media time to the monotonic clock, slipping when we are late."""

    def __init__(self) -> None:
        self.origin_s: float | None = None

    def restart(self) -> None:
        self.origin_s = None

    def wait(self, media_s: float, period_s: float, stop: threading.Event) -> float | None:
        """Sleep until a media time is due and return the time; None when stopped."""
        now_s = time.monotonic()
        if self.origin_s is None or now_s - (self.origin_s + media_s) > period_s:
            self.origin_s = now_s - media_s
        due_s = self.origin_s + media_s
        while (rest_s := due_s - time.monotonic()) > 0:
            if stop.wait(rest_s):
                return None
        return max(due_s, time.monotonic())


class _Sink:
    """What survives from one pass to the next: scaler, noise and the playback clock."""

    def __init__(self, spec: CameraSpec) -> None:
        self.scaler = Scaler()
        self.clock = _Playback()
        self.media_s = 0.0  # where the current pass begins on the playback clock
        self._spec = spec
        self._random = np.random.default_rng(spec.seed)
        self._noise: dict[int, list[Any]] = {}

    def with_noise(self, pixels: Pixels) -> Pixels:
        """Return an image with fresh Gaussian sensor noise. O(pixels).

        The noise is a few seeded planes read at a random offset: drawing it anew for each frame
        would cost more than decoding the frame.
        """
        if not self._spec.noise_sigma:
            return pixels
        if pixels.size not in self._noise:
            self._noise.clear()
            length = pixels.size + NOISE_SLACK
            self._noise[pixels.size] = [
                np.clip(
                    np.rint(
                        self._random.standard_normal(length, np.float32) * self._spec.noise_sigma
                    ),
                    -127,
                    127,
                ).astype(np.int8)
                for _ in range(NOISE_PLANES)
            ]
        plane = self._noise[pixels.size][int(self._random.integers(NOISE_PLANES))]
        start = int(self._random.integers(NOISE_SLACK))
        noise = plane[start : start + pixels.size].reshape(pixels.shape)
        total = np.add(pixels, noise, dtype=np.int16)
        noisy: Pixels = np.clip(total, 0, 255, out=total).astype(np.uint8)
        return noisy


def _one_pass(
    spec: CameraSpec, sink: _Sink, stop: threading.Event, passes: int
) -> Iterator[tuple[float, Pixels]]:
    """Yield the frames of one opening of the source. Raises SourceTrouble."""
    if spec.source.startswith("generated:"):
        yield from _generated(spec, sink, stop)
        return
    try:
        with _open(spec.source) as container:
            frames = _decoded(container, spec, stop)
            if is_live(spec.source):
                yield from _live(spec, sink, frames)
            else:
                yield from _played(spec, sink, frames, stop, noisy=passes > 0)
    except (av.error.FFmpegError, OSError) as error:  # their full text names the address
        what = error.strerror or type(error).__name__
        raise SourceTrouble(f"{public_address(spec.source)}: {what}") from None


def _open(source: str) -> Any:
    """Open a container; raises SourceTrouble or FFmpegError with the reason."""
    limits = (OPEN_LIMIT_S, READ_LIMIT_S)
    if _is_device(source):
        path = source.removeprefix("v4l2:")
        if not Path(path).exists():
            raise SourceTrouble(f"{path}: there is no such device; is the camera plugged in?")
        return av.open(path, format="v4l2", timeout=limits)
    if is_live(source):
        scheme = source.partition("://")[0].lower()
        if scheme not in PROTOCOLS:
            known = ", ".join(PROTOCOLS)
            raise SourceTrouble(f"{public_address(source)}: cameras are reached by {known}")
        options = {"protocol_whitelist": PROTOCOLS[scheme]}
        if scheme.startswith("rtsp"):
            options |= {"rtsp_transport": "tcp", "fflags": "nobuffer"}
        return av.open(source, options=options, timeout=limits)
    path = source.removeprefix("file://")
    if not Path(path).is_file():
        raise SourceTrouble(f"{path}: there is no such file; put it there or correct source")
    return av.open(f"file:{path}", options={"protocol_whitelist": "file"}, timeout=limits)


def _decoded(
    container: Any, spec: CameraSpec, stop: threading.Event
) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yield (media seconds, frame); damaged packets are passed over.

    Media time is that from the first frame; a live source whose format has none, such as motion
    JPEG (FFmpeg makes one up, 25 frames a second), gets the time of arrival instead.

    Frames that will not be sampled and that no other frame refers to are not decoded at all: on
    a 60 fps camera sampled at 10 fps that saves 40 % of the work, the largest part of a camera's.
    """
    if not container.streams.video:
        raise SourceTrouble(f"{public_address(spec.source)}: holds no video stream")
    stream = container.streams.video[0]
    context = stream.codec_context
    context.thread_count = 1  # cameras are many, cores are few
    period_s = float(1 / stream.average_rate) if stream.average_rate else 1 / 25
    stamped = not (is_live(spec.source) and int(container.format.flags) & NO_TIME_STAMPS)
    first_s: float | None = None
    last_s = -period_s
    damaged = 0
    for packet in container.demux(stream):
        if stop.is_set():
            return
        needed = True
        if stamped and first_s is not None and packet.pts is not None:
            at_s = float(packet.pts * packet.time_base) - first_s
            needed = _slot(at_s, spec.fps) != _slot(at_s - period_s, spec.fps)
        context.skip_frame = "DEFAULT" if needed else "NONREF"
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            damaged += 1
            if damaged > MAX_BAD_PACKETS:
                raise
            continue
        for frame in frames:
            damaged = 0
            if frame.width < 1 or frame.height < 1:
                raise SourceTrouble(
                    f"{public_address(spec.source)}: frames of {frame.width} x {frame.height} "
                    "pixels"
                )
            at_s = frame.time if stamped else time.monotonic()
            if at_s is None:
                at_s = (first_s or 0.0) + last_s + period_s
            if first_s is None:
                first_s = at_s
            last_s = at_s - first_s
            yield last_s, frame


def _slot(media_s: float, fps: float) -> int:
    """Return the sampling slot of a media time, whose stamp may be rounded to milliseconds."""
    return math.floor((media_s + TIME_STAMP_SLACK_S) * fps)


def _scaled(spec: CameraSpec, sink: _Sink, frame: av.VideoFrame) -> Pixels:
    width, height = fitted(frame.width, frame.height, spec.long_side, enlarge=False)
    return sink.scaler.to_bgr(frame, width, height)


def _played(
    spec: CameraSpec,
    sink: _Sink,
    frames: Iterator[tuple[float, av.VideoFrame]],
    stop: threading.Event,
    *,
    noisy: bool,
) -> Iterator[tuple[float, Pixels]]:
    """Play a file in real time, one frame per sampling slot of its media time."""
    slot, last_s, count = -1, 0.0, 0
    for media_s, frame in frames:
        last_s, count = max(last_s, media_s), count + 1
        if _slot(media_s, spec.fps) <= slot:
            continue
        slot = _slot(media_s, spec.fps)
        # Scale before waiting: the frame is then announced the moment it is due.
        pixels = _scaled(spec, sink, frame)
        if noisy:
            pixels = sink.with_noise(pixels)
        due_s = sink.clock.wait(sink.media_s + media_s, 1 / spec.fps, stop)
        if due_s is None:
            return
        yield due_s, pixels
    if count:
        # The next pass begins one sampling period, or one frame if longer, after the last.
        step_s = last_s / (count - 1) if count > 1 else 0.0
        sink.media_s += max(last_s + step_s, (slot + 1) / spec.fps)


def _live(
    spec: CameraSpec, sink: _Sink, frames: Iterator[tuple[float, av.VideoFrame]]
) -> Iterator[tuple[float, Pixels]]:
    """Show a live source: the newest frame whenever the next one is due."""
    tolerance_s = max(1 / spec.fps, 0.1)  # of frames that come late
    slot = -1
    fastest_s = math.inf  # least (arrival - media time) seen: what a frame without delay has
    shown_s, checked_s, newest_s = -math.inf, time.monotonic(), -math.inf
    for media_s, frame in frames:
        now_s = time.monotonic()
        # Frames come in the order of their time: a step back is the camera's clock. Left alone,
        # a long one would show nothing, a short one take all that follows for late.
        if not -min(tolerance_s, 1.0) <= media_s - newest_s <= LEAP_S:
            fastest_s = math.inf
            early = now_s - shown_s < 1 / spec.fps
            slot = _slot(media_s, spec.fps) - (not early)
            newest_s = media_s
        newest_s = max(newest_s, media_s)
        fastest_s = min(now_s - media_s, fastest_s + CLOCK_DRIFT * (now_s - checked_s))
        checked_s = now_s
        late_s = now_s - media_s - fastest_s
        if late_s > tolerance_s and now_s - shown_s < STALE_LIMIT_S:
            continue
        if _slot(media_s, spec.fps) <= slot:
            continue
        slot = _slot(media_s, spec.fps)
        shown_s = now_s
        yield now_s, _scaled(spec, sink, frame)


def _generated(
    spec: CameraSpec, sink: _Sink, stop: threading.Event
) -> Iterator[tuple[float, Pixels]]:
    """Play the generated scene of a seed; it never ends."""
    text = spec.source.removeprefix("generated:")
    try:
        scene = Scene(int(text))
    except ValueError:
        raise SourceTrouble(f"{spec.source}: write generated:SEED with an integer seed") from None
    index = 0
    while not stop.is_set():
        pixels = scene.frame(index, spec.fps)
        height, width = pixels.shape[:2]
        width, height = fitted(width, height, spec.long_side, enlarge=False)
        pixels = sink.scaler.resize(pixels, width, height)
        due_s = sink.clock.wait(index / spec.fps, 1 / spec.fps, stop)
        if due_s is None:
            return
        yield due_s, pixels
        index += 1
