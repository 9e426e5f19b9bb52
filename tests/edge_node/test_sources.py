"""Camera sources on real files, a real network stream and real trouble."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from edge_node.cameras.address import public_address
from edge_node.cameras.sources import is_live, open_source
from models.images import Pixels, encode_jpeg
from models.wire import CameraSpec
from tests.clips import mark_of, marked, picture, write_clip
from tests.rtsp_camera import RtspCamera

LIMIT_S = 20.0


class Watched:
    """Read a source in this thread, noting states; ends after `count` frames or a state."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.states: list[tuple[str, str]] = []
        self.times: list[float] = []

    def take(self, spec: CameraSpec, count: int) -> list[Pixels]:
        frames: list[Pixels] = []
        for captured_s, pixels in open_source(spec, self.stop, self._on_state):
            frames.append(pixels)
            self.times.append(captured_s)
            if len(frames) >= count:
                break
        return frames

    def until(self, spec: CameraSpec, state: str) -> str:
        """Return the reason of the first report of a state."""
        found: list[str] = []

        def on_state(name: str, reason: str) -> None:
            self._on_state(name, reason)
            if name == state:
                found.append(reason)
                self.stop.set()

        for _ in open_source(spec, self.stop, on_state):
            pass
        return found[0]

    def _on_state(self, state: str, reason: str) -> None:
        self.states.append((state, reason))


@pytest.fixture
def watched() -> Iterator[Watched]:
    one = Watched()
    guard = threading.Timer(LIMIT_S, one.stop.set)
    guard.start()
    yield one
    guard.cancel()


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_sampling_follows_media_time(tmp_path: Path, watched: Watched, suffix: str) -> None:
    clip = write_clip(tmp_path / f"c{suffix}", [marked(i) for i in range(24)], fps=60)
    frames = watched.take(CameraSpec("a", str(clip), fps=10, loop=False), 99)
    assert [mark_of(pixels) for pixels in frames] == [0, 6, 12, 18]
    assert watched.states[0] == ("running", "")
    assert watched.states[-1][0] == "ended"
    # In real time, never early: the fourth frame is due .3 s after the first.
    assert watched.times[3] - watched.times[0] >= 0.29


def test_a_slow_file_gives_every_frame_once(tmp_path: Path, watched: Watched) -> None:
    clip = write_clip(tmp_path / "c.mkv", [marked(i) for i in range(6)], fps=20)
    frames = watched.take(CameraSpec("a", str(clip), fps=60, loop=False), 99)
    assert [mark_of(pixels) for pixels in frames] == list(range(6))


def test_frames_are_scaled_once_and_keep_their_shape(tmp_path: Path, watched: Watched) -> None:
    clip = write_clip(tmp_path / "c.mkv", [picture(400, 200)] * 3, fps=60)
    big = CameraSpec("a", str(clip), fps=60, loop=False, long_side=200)
    assert watched.take(big, 1)[0].shape == (100, 200, 3)
    small = CameraSpec("a", str(clip), fps=60, loop=False, long_side=640)
    assert np.array_equal(watched.take(small, 1)[0], picture(400, 200))


def test_loops_are_noisy_from_the_second_pass_and_never_equal(
    tmp_path: Path, watched: Watched
) -> None:
    still = picture()
    clip = write_clip(tmp_path / "c.mkv", [still] * 4, fps=120)
    spec = CameraSpec("a", str(clip), fps=120, noise_sigma=2.0, seed=7)
    frames = watched.take(spec, 16)
    assert all(np.array_equal(pixels, still) for pixels in frames[:4])
    looped = {pixels.tobytes() for pixels in frames[4:]}
    assert len(looped) == 12
    assert still.tobytes() not in looped
    deviation = np.std(np.stack(frames[4:]).astype(int) - still)
    assert 1.8 < deviation < 2.3
    again = Watched().take(spec, 16)  # seeded: the same noise in the same order
    assert all(np.array_equal(*pair) for pair in zip(frames, again, strict=True))
    other = Watched().take(CameraSpec("a", str(clip), fps=120, seed=8), 6)
    assert not np.array_equal(other[5], frames[5])


def test_loop_keeps_the_pace_across_passes(tmp_path: Path, watched: Watched) -> None:
    clip = write_clip(tmp_path / "c.mkv", [marked(i) for i in range(5)], fps=50)
    watched.take(CameraSpec("a", str(clip), fps=50, noise_sigma=0), 16)
    # Fifteen periods of 20 ms; passes may not come in a burst.
    assert watched.times[-1] - watched.times[0] >= 0.29


def test_a_missing_file_is_retried_and_found_when_it_appears(
    tmp_path: Path, watched: Watched
) -> None:
    clip = tmp_path / "later.mkv"
    spec = CameraSpec("a", str(clip), fps=60)
    first: list[tuple[str, str]] = []

    def on_state(state: str, reason: str) -> None:
        first.append((state, reason))
        if state == "retrying" and not clip.exists():
            write_clip(tmp_path / "made.mkv", [picture()] * 3, fps=60).rename(clip)

    frames = []
    for _, pixels in open_source(spec, watched.stop, on_state):
        frames.append(pixels)
        break
    assert len(frames) == 1
    assert first[0][0] == "retrying"
    assert f"{clip}: there is no such file" in first[0][1]
    assert "next try in 0.5 s" in first[0][1]
    assert first[-1] == ("running", "")


def test_the_pause_between_tries_doubles(tmp_path: Path, watched: Watched) -> None:
    spec = CameraSpec("a", str(tmp_path / "never.mp4"), fps=10)
    pauses: list[str] = []

    def on_state(_: str, reason: str) -> None:
        pauses.append(reason.rsplit("in ", 1)[1])
        if len(pauses) == 3:
            watched.stop.set()

    assert list(open_source(spec, watched.stop, on_state)) == []
    assert pauses == ["0.5 s", "1 s", "2 s"]


def test_a_file_that_vanishes_while_playing_is_retried(tmp_path: Path, watched: Watched) -> None:
    clip = write_clip(tmp_path / "c.mkv", [picture()] * 3, fps=60)
    seen = 0
    for _ in open_source(CameraSpec("a", str(clip), fps=60), watched.stop, watched._on_state):
        seen += 1
        clip.unlink(missing_ok=True)
        if seen == 3:
            threading.Timer(0.3, watched.stop.set).start()
    assert seen == 3
    assert [state for state, _ in watched.states] == ["running", "retrying"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p.write_bytes(b"no video at all" * 100), "Invalid data"),
        (lambda p: p.write_bytes(b""), "Invalid data|no frame|End of file"),
        (lambda p: p.mkdir(), "there is no such file"),
    ],
)
def test_an_unusable_file_is_retried_with_the_reason(
    tmp_path: Path, watched: Watched, make: object, words: str
) -> None:
    import re

    path = tmp_path / "bad.mp4"
    make(path)  # type: ignore[operator]
    reason = watched.until(CameraSpec("a", str(path), fps=10), "retrying")
    assert str(path) in reason
    assert re.search(words, reason), reason


def test_a_file_without_video_and_a_damaged_one(tmp_path: Path, watched: Watched) -> None:
    clip = write_clip(tmp_path / "c.avi", [picture(seed=i) for i in range(12)], fps=30)
    data = bytearray(clip.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    damaged = tmp_path / "damaged.avi"
    damaged.write_bytes(data)
    frames = watched.take(CameraSpec("a", str(damaged), fps=30, loop=False), 99)
    assert 3 <= len(frames) <= 12  # the rest of the file is still shown


def test_frames_may_change_size_midway(tmp_path: Path, watched: Watched) -> None:
    # MJPEG in a raw stream: each frame carries its own size.
    path = tmp_path / "c.mjpeg"
    jpegs = [encode_jpeg(picture(*size)) for size in ((320, 192), (320, 192), (192, 320))]
    path.write_bytes(b"".join(jpegs))
    frames = watched.take(CameraSpec("a", str(path), fps=60), 6)
    assert [pixels.shape[:2] for pixels in frames] == [(192, 320), (192, 320), (320, 192)] * 2


def test_the_generated_scene_is_a_source_like_any_other(watched: Watched) -> None:
    first = watched.take(CameraSpec("a", "generated:5", fps=30), 3)
    again = Watched().take(CameraSpec("a", "generated:5", fps=30), 3)
    assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))
    assert first[0].dtype == np.uint8
    small = Watched().take(CameraSpec("a", "generated:5", fps=30, long_side=320), 1)
    assert max(small[0].shape) == 320
    reason = Watched().until(CameraSpec("a", "generated:room", fps=30), "retrying")
    assert "integer seed" in reason


def test_a_missing_device_is_said_so() -> None:
    reason = Watched().until(CameraSpec("a", "v4l2:/dev/video-none", fps=10), "retrying")
    assert "/dev/video-none: there is no such device" in reason


def test_what_is_live() -> None:
    assert is_live("rtsp://camera/1")
    assert is_live("http://camera/video")
    assert is_live("/dev/video0")
    assert is_live("v4l2:/dev/video0")
    assert not is_live("/data/clip.mp4")
    assert not is_live("file:///data/clip.mp4")


@pytest.mark.parametrize(
    "change", [{"fps": 0}, {"fps": -1}, {"long_side": 0}, {"noise_sigma": -1}, {"source": ""}]
)
def test_a_camera_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="camera a"):
        CameraSpec(**({"agent": "a", "source": "x", "fps": 10} | change))  # type: ignore[arg-type]


class MjpegServer:
    """Serve motion JPEG over HTTP as IP cameras do: `rate` frames a second, then hang up."""

    def __init__(self, frames: list[bytes], rate: float) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}/video.mjpg"
        self._frames, self._rate = frames, rate
        self.connections = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with peer:
                try:
                    self._stream(peer)
                except OSError:
                    pass

    def _stream(self, peer: socket.socket) -> None:
        peer.recv(4096)
        peer.sendall(
            b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=cut\r\n\r\n"
        )
        for jpeg in self._frames:
            peer.sendall(
                b"--cut\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n"
                % (len(jpeg), jpeg)
            )
            time.sleep(1 / self._rate)

    def close(self) -> None:
        self._listener.close()


def test_a_live_stream_is_sampled_and_reopened_when_it_ends(watched: Watched) -> None:
    server = MjpegServer([encode_jpeg(marked(i)) for i in range(24)], rate=60)
    try:
        spec = CameraSpec("a", server.address, fps=10)
        frames = 0
        for _ in open_source(spec, watched.stop, watched._on_state):
            frames += 1
            if server.connections == 2:
                break
    finally:
        server.close()
    assert [state for state, _ in watched.states] == ["running", "retrying", "running"]
    assert server.address in watched.states[1][1]
    assert 2 <= frames - 1 <= 14  # 24 frames are .4 s at 60 or .96 s at the format's own 25


def test_an_rtsp_camera_is_sampled_and_reopened_when_it_hangs_up(watched: Watched) -> None:
    camera = RtspCamera(lambda i: picture(seed=i), fps=30, count=45)
    numbers = 0
    try:
        spec = CameraSpec("a", camera.address, fps=10, long_side=160)
        for _, pixels in open_source(spec, watched.stop, watched._on_state):
            assert pixels.shape == (96, 160, 3)
            numbers += 1
            if camera.connections == 2:
                break
    finally:
        camera.close()
    assert [state for state, _ in watched.states] == ["running", "retrying", "running"]
    assert 4 <= numbers - 1 <= 18  # 45 frames are 1.5 s: at most 16 slots of .1 s


def test_a_refused_stream_is_retried_with_the_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    reason = Watched().until(CameraSpec("a", f"rtsp://127.0.0.1:{port}/1", fps=10), "retrying")
    assert "refused" in reason


def test_motion_jpeg_at_any_rate_is_shown_at_that_rate(watched: Watched) -> None:
    server = MjpegServer([encode_jpeg(marked(i)) for i in range(30)], rate=12)
    try:
        frames = 0
        for _ in open_source(
            CameraSpec("a", server.address, fps=10), watched.stop, watched._on_state
        ):
            frames += 1
            if len(watched.states) > 1:
                break
            if frames == 15:
                break
    finally:
        server.close()
    assert frames == 15  # of at most 25 in 2.5 s, not one a second
    assert watched.states == [("running", "")]


class TransportServer:
    """Serve pieces of an MPEG transport stream over HTTP, each in its time, then nothing more."""

    def __init__(self, pieces: list[tuple[bytes, float]]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}/live.ts"
        self._pieces = pieces
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        try:
            peer, _ = self._listener.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: video/mp2t\r\n\r\n")
                for data, seconds in self._pieces:
                    steps = max(1, round(seconds / 0.05))
                    size = len(data) // steps + 1
                    for start in range(0, len(data), size):
                        peer.sendall(data[start : start + size])
                        time.sleep(seconds / steps)
        except OSError:
            pass

    def close(self) -> None:
        self._listener.close()


def transport(path: Path, start_s: float, seconds: float, fps: int = 20) -> bytes:
    """Return a transport stream whose clock begins at `start_s`."""
    with av.open(str(path), "w", format="mpegts") as container:
        stream: Any = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 320, 192, "yuv420p"
        stream.gop_size = 1
        for index in range(round(seconds * fps)):
            frame = av.VideoFrame.from_ndarray(picture(seed=index), format="bgr24")
            frame.pts, frame.time_base = round(start_s * fps) + index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("starts_s", "paced"), [((1000.0, 10.0, 5000.0), False), ((1000.0, 1001.6), True)]
)
def test_a_live_camera_whose_clock_jumps_goes_on(
    tmp_path: Path, watched: Watched, starts_s: tuple[float, ...], paced: bool
) -> None:
    seconds = 2.0 if paced else 3.0  # the paced one steps back by .4 s
    data = [transport(tmp_path / f"{start_s}.ts", start_s, seconds) for start_s in starts_s]
    server = TransportServer([(piece, seconds if paced else 0.0) for piece in data])
    frames = 0
    try:
        spec = CameraSpec("a", server.address, fps=10)
        for _ in open_source(spec, watched.stop, lambda state, _: _stop_at(watched, state)):
            frames += 1
    finally:
        server.close()
    wanted = 10 * seconds * len(starts_s)
    assert 0.7 * wanted <= frames <= wanted + len(starts_s)


def _stop_at(watched: Watched, state: str) -> None:
    if state == "retrying":
        watched.stop.set()


SECRETS = ("admin", "s3", "cr", "et@", "abc", "tok3n")


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("rtsp://admin:s3cret@10.0.0.9:554/1", "rtsp://***@10.0.0.9:554/1"),
        ("rtsp://admin:s3/cr@et@10.0.0.9/x", "rtsp://***@10.0.0.9/x"),
        ("rtsps:admin:s3cret@cam", "rtsps:***@cam"),
        ("http://cam/x.mjpg?token=tok3n&res=abc", "http://cam/x.mjpg?token=***&res=***"),
        ("http://cam/x?tok3n", "http://cam/x?***"),
        ("http://cam/x?mail=admin@abc", "http://***"),
        ("rtsp://admin:s3?cr@cam/1", "rtsp://***"),
        ("rtsp://cam/user=admin&password=s3/cr&channel=1", "rtsp://cam/user=***&password=***&"),
        ("rtsp://10.0.0.9:554/stream/1", "rtsp://10.0.0.9:554/stream/1"),
        ("/data/a@b=c?d.mp4", "/data/a@b=c?d.mp4"),
        ("v4l2:/dev/video0", "v4l2:/dev/video0"),
        ("generated:1", "generated:1"),
    ],
)
def test_an_address_is_shown_without_what_opens_it(source: str, shown: str) -> None:
    assert public_address(source).startswith(shown)
    assert "://" not in source or not any(secret in public_address(source) for secret in SECRETS)


@pytest.mark.parametrize("scheme", ["rtsp", "http", "tcp"])
def test_what_is_reported_holds_no_password(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    source = f"{scheme}://admin:s3/cr@et@127.0.0.1:{port}/x?token=tok3n"
    reason = Watched().until(CameraSpec("a", source, fps=10), "retrying")
    assert f"{scheme}://***@127.0.0.1:{port}/x?token=***" in reason
    assert not any(secret in reason for secret in SECRETS)


def test_a_source_opens_nothing_but_its_own_protocols() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        source = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        reason = Watched().until(CameraSpec("a", source, fps=10), "retrying")
        assert "cameras are reached by rtsp, rtsps, http, https" in reason
        with pytest.raises(TimeoutError):
            listener.accept()


def test_a_description_from_a_web_server_opens_no_other_ports() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1] & ~1
    session = (
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=t\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
        f"m=video {port} RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
    ).encode()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer:
                    peer.recv(4096)
                    peer.sendall(
                        b"HTTP/1.0 200 OK\r\nContent-Type: application/sdp\r\n"
                        b"Content-Length: %d\r\n\r\n%s" % (len(session), session)
                    )

        threading.Thread(target=serve, daemon=True).start()
        source = f"http://127.0.0.1:{listener.getsockname()[1]}/s.sdp"
        reason = Watched().until(CameraSpec("a", source, fps=10), "retrying")
        listener.shutdown(socket.SHUT_RDWR)
    assert "Invalid data" in reason  # it waited for no packets
