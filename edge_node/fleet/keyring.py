"""Owns the fleet's keys across restarts: the file of the key ring, and when a previous key ends.

Never logs or shows a key, and never stops the node. Invariant: a file is used only if it is whole,
its owner's alone, and begins with the configured secret. What is not used stays as it is until the
fleet's keys change; until then the configured secret, key epoch 0, is all that this node holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from crdt import Instant
from crdt.clock import DAWN_MS
from edge_node.fleet.durable import write_atomically
from edge_node.fleet.identity import IdentityError, read_private
from gossip import Keyring

log = logging.getLogger(__name__)

NAME = "fleet.keys"
MAX_FILE_BYTES = 256 * 2**10
MAX_COMRADES = 4096  # ids in the file, 35 bytes each
RETRY_S = 5.0
LOOK_PERIOD_S = 600.0  # the wall clock may be set at any time
_FORMAT = 1


@dataclass(frozen=True)
class _Saved:
    ring: Keyring
    since_ms: int | None
    comrades: frozenset[bytes]


class FleetKeys:
    """The key ring of one node, kept durable. Made by `open`."""

    def __init__(self, path: Path, secret: bytes, saved: _Saved | None, now: Instant) -> None:
        self.ring = Keyring(secret) if saved is None else saved.ring
        """The one object that gossip and HTTP take their keys from."""
        self.comrades = frozenset[bytes]() if saved is None else saved.comrades
        """Who was a member when the previous key was replaced, and so may come under it."""
        self.problem = ""
        """Why the keys would not survive a restart; empty when they would."""
        self._path = path
        self._origin = _origin(secret)
        self._since_ms = None if saved is None else saved.since_ms or now.wall_ms
        self._age_s = 0.0  # of the current key, at the start of this run
        if self._since_ms is not None and self._since_ms >= DAWN_MS:
            self._age_s = max(0.0, (now.wall_ms - self._since_ms) / 1e3)
        if self._since_ms is not None:  # or a clock that was ahead, or not set, would stay in it
            self._since_ms = now.wall_ms - round(self._age_s * 1e3)
        self._noted_s = now.mono_s
        self._noted = self.ring.current
        self._durable = self._encode()
        self._lock = asyncio.Lock()
        self._look = asyncio.Event()

    @classmethod
    def open(cls, state_dir: Path, secret: bytes, now: Instant) -> FleetKeys:
        """Read the ring that follows from the configured secret, or begin anew at key epoch 0."""
        path = Path(state_dir) / NAME
        saved, problem = None, ""
        try:
            if path.exists():
                data = read_private(path, "the fleet's keys", 0o077, MAX_FILE_BYTES)
                saved = _decode(data, _origin(secret))
                if saved is None:
                    log.warning(
                        "%s follows from another secret than that of the configuration: beginning "
                        "at key epoch 0 with the configured one",
                        path,
                    )
        except IdentityError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{path}: {error.strerror or error}; make it a file that this user can read"
        except (ValueError, TypeError, KeyError, AttributeError):
            problem = f"{path}: damaged; put the {NAME} of another node in its place"
        keys = cls(path, secret, saved, now)
        if problem:
            keys.problem = f"{problem}, and restart; until then the configured secret is taken"
            log.error("%s", keys.problem)
        return keys

    @property
    def durable(self) -> bool:
        """Tell whether a restart would find the ring as it is."""
        return self._encode() == self._durable

    def note(self, members: Iterable[bytes], now: Instant) -> None:
        """Take note that the ring's current key has changed just now, in this company."""
        self._since_ms, self._age_s, self._noted_s = now.wall_ms, 0.0, now.mono_s
        self._noted = self.ring.current
        self.comrades = frozenset(sorted(members)[:MAX_COMRADES])
        self._look.set()

    def look(self) -> None:
        """Have `keep` look again: a setting has changed."""
        self._look.set()

    def age_s(self, now: Instant) -> float | None:
        """Return for how long the current key is held; None for the one of the configuration.

        While the node runs only the monotonic clock counts: the wall clock may yet be set.
        """
        if self.ring.current is not self._noted:  # changed a moment ago, and `note` comes yet
            return 0.0
        if self._since_ms is None:
            return None
        return self._age_s + now.mono_s - self._noted_s

    def previous_left_s(self, keep_s: float, now: Instant) -> float | None:
        """Return for how long the previous key is still held; None if there is none."""
        if self.ring.previous is None:
            return None
        return max(0.0, keep_s - (self.age_s(now) or 0.0))

    async def keep(self, keep_s: Callable[[], float], clock: Callable[[], Instant]) -> NoReturn:
        """Forget the previous key when its time is over, and save the ring whenever it changed."""
        while True:
            self._look.clear()
            left_s = self.previous_left_s(keep_s(), clock())
            if left_s == 0.0 and self.ring.previous is not None:
                log.info("the key of key epoch %d is no longer taken", self.ring.previous.number)
                self.ring.forget_previous()
                self.comrades = frozenset()
                left_s = None
            wait_s = LOOK_PERIOD_S if left_s is None else min(left_s, LOOK_PERIOD_S)
            if not await self.save():
                wait_s = min(wait_s, RETRY_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._look.wait()

    async def save(self) -> bool:
        """Make the ring durable if it is not; tell whether it is now."""
        return await asyncio.shield(self._save())  # a write under way ends before the next begins

    async def _save(self) -> bool:
        async with self._lock:
            data = self._encode()
            if data == self._durable:
                return True
            try:
                await asyncio.to_thread(write_atomically, self._path, data)
            except OSError as error:
                problem = (
                    f"{self._path}: {error.strerror or error}: the fleet's new key is lost at the "
                    "next restart; free space, or make the folder writable"
                )
                if self.problem != problem:
                    log.error("%s", problem)
                self.problem = problem
                return False
            if self.problem:
                log.warning("%s is written again", self._path)
            self._durable, self.problem = data, ""
            return True

    def _encode(self) -> bytes:
        fields = {
            "format": _FORMAT,
            "origin": self._origin,
            "since_ms": self._since_ms,
            "keys": [[epoch.number, epoch.secret.hex()] for epoch in self.ring.held],
            "comrades": sorted(node.hex() for node in self.comrades),
        }
        text = json.dumps(fields).encode()
        return b"%s\n%s\n" % (text, hashlib.sha256(text).hexdigest().encode())


def _origin(secret: bytes) -> str:
    """Name the secret that a ring begins with, without telling it."""
    return hashlib.sha256(b"edge-node key ring 1" + secret).hexdigest()


def _decode(data: bytes, origin: str) -> _Saved | None:
    """Read a file's content, None if it begins with another secret; raises for what is no ring."""
    text, check, rest = data.split(b"\n")
    if rest or hashlib.sha256(text).hexdigest().encode() != check:
        raise ValueError("not as it was written")
    fields = json.loads(text)
    if fields["format"] != _FORMAT:
        raise ValueError("another format")
    if fields["origin"] != origin:
        return None
    (number, secret), *former = [(int(n), bytes.fromhex(key)) for n, key in fields["keys"]]
    ring = Keyring(secret, number, former[0] if former else None)
    since_ms = None if fields["since_ms"] is None else int(fields["since_ms"])
    return _Saved(ring, since_ms, frozenset(map(bytes.fromhex, fields["comrades"])))
