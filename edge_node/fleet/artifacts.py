"""Files named by the SHA-256 of their content: what is too large for gossip.

Owns the folder; never knows what the bytes mean or who else has them. Invariant: what is read is
what was put, or nothing: a file whose bytes do not match its name is removed.
"""

import re
from hashlib import sha256
from pathlib import Path

from edge_node.fleet.durable import write_atomically

MAX_ARTIFACT_BYTES = 4 * 2**20
_NAME = re.compile(r"[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Tell whether a text may name an artifact."""
    return _NAME.fullmatch(text) is not None


class ArtifactsFull(Exception):
    """The folder has no room for another artifact."""


class Artifacts:
    """A bounded folder of artifacts. All methods block on the disk: call them off the loop."""

    def __init__(self, folder: Path, limit_bytes: int = 256 * 2**20) -> None:
        """Use `folder`, made when the first artifact comes."""
        self._folder = folder
        self._limit_bytes = limit_bytes

    def put(self, data: bytes) -> str:
        """Store bytes durably; return their digest (64 hex digits).

        Raises ValueError (too long), ArtifactsFull, or OSError; nothing is stored then.
        """
        if len(data) > MAX_ARTIFACT_BYTES:
            raise ValueError(f"{len(data)} bytes are too many: at most {MAX_ARTIFACT_BYTES}")
        digest = sha256(data).hexdigest()
        if self.get(digest) is not None:
            return digest
        held = sum(path.stat().st_size for path in self._paths())
        if held + len(data) > self._limit_bytes:
            raise ArtifactsFull(f"{self._folder} holds {held} of {self._limit_bytes} bytes")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        write_atomically(self._folder / digest, data)
        return digest

    def get(self, digest: str) -> bytes | None:
        """Return an artifact's bytes, None if it is not held."""
        if not is_digest(digest):
            return None
        path = self._folder / digest
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        if sha256(data).hexdigest() != digest:
            path.unlink(missing_ok=True)  # the disk lost some of it: another holder has it
            return None
        return data

    def drop(self, digest: str) -> None:
        """Remove an artifact, if it is held."""
        if is_digest(digest):
            (self._folder / digest).unlink(missing_ok=True)

    def digests(self) -> list[str]:
        """Return the digests of what is held, sorted."""
        return sorted(path.name for path in self._paths())

    def _paths(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        return [path for path in self._folder.iterdir() if is_digest(path.name)]
