"""A node's key and the fleet's secret: made once, read strictly, errors that say what to do."""

import base64
import os
import stat
from pathlib import Path

import pytest

from edge_node.fleet.identity import IdentityError, load_or_create_identity, load_secret
from gossip.sealing import verify

SECRET = bytes(range(100, 132))


def test_a_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    old_umask = os.umask(0)
    try:
        first = load_or_create_identity(tmp_path / "state")
    finally:
        os.umask(old_umask)
    assert load_or_create_identity(tmp_path / "state").node_id == first.node_id
    assert verify(first.public_key, b"words", first.sign(b"words"))
    files = list((tmp_path / "state").iterdir())
    assert [(f.name, stat.S_IMODE(f.stat().st_mode)) for f in files] == [("node.key", 0o600)]
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    assert load_or_create_identity(tmp_path / "other").node_id != first.node_id


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    load_or_create_identity(tmp_path)
    (tmp_path / "node.key").chmod(mode)
    with pytest.raises(IdentityError, match=r"chmod 600 '.*node\.key'"):
        load_or_create_identity(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\n", b"ab" * 31, b"ab" * 33, b"zz" * 32, bytes(32)])
def test_a_damaged_key_is_reported_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "node.key"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(IdentityError, match=r"node\.key: damaged: .* restore it"):
        load_or_create_identity(tmp_path)
    assert path.read_bytes() == content


def test_a_folder_that_cannot_hold_a_key_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IdentityError, match="state_dir"):
        load_or_create_identity(tmp_path / "file")
    (tmp_path / "node.key").mkdir()
    with pytest.raises(IdentityError, match="can read"):
        load_or_create_identity(tmp_path)


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    "content",
    [
        SECRET.hex().encode(),
        SECRET.hex().upper().encode() + b"\r\n",
        b"  " + base64.b64encode(SECRET) + b"\n",
        base64.urlsafe_b64encode(SECRET),
    ],
)
def test_the_secret_is_the_same_however_it_is_written(tmp_path: Path, content: bytes) -> None:
    assert load_secret(write(tmp_path / "secret", content)) == SECRET


def test_any_other_content_is_the_secret_itself(tmp_path: Path) -> None:
    raw = bytes(range(246, 256)) + b"\n" + bytes(range(20))
    assert load_secret(write(tmp_path / "raw", raw)) == raw
    words = b"correct horse battery staple"
    assert load_secret(write(tmp_path / "words", words + b"\n")) == words
    assert load_secret(write(tmp_path / "group", words, 0o640)) == words


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "too short"),
        (b"0123456789abcdef", "too short"),  # as hex: 8 bytes
        (b"fifteen letters", "too short"),
        (bytes(range(15)), "too short"),
        (b"0" * 64, "placeholder"),
        (b"changechangechange!", "placeholder"),
        (bytes(range(250)) * 20, "wrong file"),
    ],
)
def test_a_weak_secret_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(IdentityError, match=words) as refusal:
        load_secret(write(tmp_path / "fleet.secret", content))
    assert "fleet.secret" in str(refusal.value)


def test_a_secret_that_everybody_may_read_or_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="chmod 640"):
        load_secret(write(tmp_path / "fleet.secret", SECRET, 0o644))
    with pytest.raises(IdentityError, match="copy it from a node"):
        load_secret(tmp_path / "missing")
