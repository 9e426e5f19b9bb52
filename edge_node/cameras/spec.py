"""What an agent is: one camera with its task, as its home node publishes it.

Owns the shape of the owner record ``agent/<name>``. Never trusts one: what another node published
is checked as a whole before it counts.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_node.workers import CameraSpec

MAX_DEADLINE_MS = 60_000
LONG_SIDE_PX = 640
"""Frames are kept and forwarded at this size; models scale down from it."""


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """One camera with its task, as its home node publishes it (owner record ``agent/<name>``)."""

    name: str
    home: bytes
    source: str
    fps: float
    model: str
    deadline_ms: float
    tier: int
    loop: bool
    noise_sigma: float
    takeover: bool
    since_ms: int
    """Wall time of its first publication: of two agents with one name the elder counts."""
    safety: bool = False

    @classmethod
    def from_record(cls, name: str, home: bytes, record: object) -> "AgentSpec":
        """Read a record from the replica.

        Raises:
            ValueError: the record is not an agent of this version.
        """
        if not isinstance(record, dict):
            raise ValueError(f"agent {name}: not a table")
        try:
            spec = cls(
                name=name,
                home=home,
                source=str(record["source"]),
                fps=float(record["fps"]),
                model=str(record["model"]),
                deadline_ms=float(record["deadline_ms"]),
                tier=int(record["tier"]),
                since_ms=int(record["since_ms"]),
                loop=bool(record["loop"]),
                noise_sigma=float(record["noise_sigma"]),
                takeover=bool(record["takeover"]),
                safety=record.get("safety") is True,
            )
            spec.camera()  # checks what the worker will want
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"agent {name}: {error!r}") from error
        if not (0 < spec.deadline_ms <= MAX_DEADLINE_MS and spec.tier in (1, 2, 3)):
            raise ValueError(f"agent {name}: deadline_ms or tier out of range")
        return spec

    def record(self) -> dict[str, Any]:
        """Return what :meth:`from_record` reads."""
        return {
            "source": self.source,
            "fps": self.fps,
            "task": "detect",
            "model": self.model,
            "deadline_ms": self.deadline_ms,
            "tier": self.tier,
            "loop": self.loop,
            "noise_sigma": self.noise_sigma,
            "takeover": self.takeover,
            "safety": self.safety,
            "since_ms": self.since_ms,
        }

    def movable_to(self, files: str) -> bool:
        """Tell whether another node may open the source.

        A device of its home cannot be reached. A file can only under ``files``, the folder that the
        other node names for this (empty: none), since any member could publish any path.
        """
        if not self.takeover or self.source.startswith(("/dev/", "v4l2:")):
            return False
        scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", self.source)
        if scheme is not None and scheme[1] != "file":
            return scheme[1] in ("rtsp", "rtsps", "http", "https", "generated")
        path = Path(self.source.removeprefix("file:"))
        return bool(files) and ".." not in path.parts and path.is_relative_to(files)

    def camera(self) -> CameraSpec:
        """Return what the worker needs to open the camera."""
        return CameraSpec(
            agent=self.name,
            source=self.source,
            fps=self.fps,
            loop=self.loop,
            noise_sigma=self.noise_sigma,
            long_side=LONG_SIDE_PX,
        )
