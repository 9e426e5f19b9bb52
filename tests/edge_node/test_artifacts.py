"""The folder of artifacts: what is read is what was put, or nothing."""

from hashlib import sha256
from pathlib import Path

import pytest

from edge_node.fleet.artifacts import MAX_ARTIFACT_BYTES, Artifacts, ArtifactsFull


def test_bytes_come_back_by_their_digest(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path / "artifacts")
    assert artifacts.digests() == []
    digest = artifacts.put(b"hello" * 1000)
    assert digest == sha256(b"hello" * 1000).hexdigest()
    assert Artifacts(tmp_path / "artifacts").get(digest) == b"hello" * 1000
    assert artifacts.put(b"hello" * 1000) == digest
    assert artifacts.digests() == [digest]
    artifacts.drop(digest)
    artifacts.drop(digest)
    assert artifacts.get(digest) is None


def test_damaged_bytes_are_not_given_out(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path)
    digest = artifacts.put(b"whole")
    (tmp_path / digest).write_bytes(b"whol")
    assert artifacts.get(digest) is None
    assert artifacts.digests() == []
    assert artifacts.put(b"whole") == digest
    assert artifacts.get(digest) == b"whole"


def test_names_that_are_no_digests_name_nothing(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    artifacts = Artifacts(tmp_path / "artifacts")
    for name in ("../secret", "", "a" * 63, "A" * 64):
        assert artifacts.get(name) is None
        artifacts.drop(name)
    assert (tmp_path / "secret").exists()


def test_bounds_are_kept_and_said(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path, limit_bytes=1000)
    with pytest.raises(ValueError, match="at most"):
        artifacts.put(bytes(MAX_ARTIFACT_BYTES + 1))
    artifacts.put(b"a" * 900)
    with pytest.raises(ArtifactsFull, match="holds 900 of 1000 bytes"):
        artifacts.put(b"b" * 101)
    artifacts.put(b"b" * 100)
