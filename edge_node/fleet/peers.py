"""Ask other nodes over HTTP: run this frame, give me that cache entry.

Owns one client session and the signing of its requests. Never decides whom to ask (placement
does) and never retries (a deadline is not spent twice), but for a peer that has just told its
challenge.
"""

import asyncio
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, get_args

import aiohttp
import msgpack
from yarl import URL

from edge_node.fleet.auth import CHALLENGE_HEADER, HEADER, Signer
from edge_node.fleet.load import is_time, waits_of
from edge_node.placement.fetch import PRIOR_BPS
from edge_node.workers import Inference
from gossip import Address
from models.wire import EFFORTS, Effort, Rung

MAX_REPLY_BYTES = 4 * 2**20
MAX_NAME_CHARS = 128
MEASURED_BYTES = 2**16  # shorter replies say nothing about bandwidth
BANDWIDTH_GAIN = 0.3
LATE = ("deadline", "queue full")
"""Refusals of a peer that has too much to do."""

UNUSABLE = ("refused with 409", "refused with 413")
"""Refusals of an image that is none or too large; or its model failed."""

RUNGS: Mapping[object, Rung] = {rung: rung for rung in get_args(Rung)}


class PeerError(Exception):
    """A peer did not answer a request; ``silent`` when nothing at all came back.

    ``at_work``: it may still be at it, which it is not when the connection broke.
    """

    def __init__(self, reason: str, *, silent: bool, at_work: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.silent = silent
        self.at_work = at_work


class Peers:
    """HTTP requests to members, authenticated with the fleet's secret."""

    def __init__(
        self,
        signer: Signer,
        address: Callable[[bytes], Address | None],
        name: Callable[[bytes], str],
    ) -> None:
        self._signer = signer
        self._address = address
        self.name = name
        self._session: aiohttp.ClientSession | None = None
        self._bit_s: dict[bytes, float] = {}

    def bandwidth_bps(self, node: bytes) -> float:
        """Return the moving average over what came from a peer, a prior before there was any."""
        return 1 / self._bit_s[node] if node in self._bit_s else PRIOR_BPS

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    async def infer(
        self, node: bytes, request: Mapping[str, Any], timeout_s: float
    ) -> tuple[bytes, Inference]:
        """Have ``node`` answer one frame; ``request`` as docs/protocol.md lists it.

        Returns who answered it, for ``node`` may have passed it on, and the answer.

        Raises:
            PeerError: no answer in ``timeout_s``, a refusal, or an answer that is no inference.
        """
        body = msgpack.packb(request)
        reply = await self._ask(node, "POST", "/peer/v1/infer", body, timeout_s)
        assert reply is not None
        try:
            fields = msgpack.unpackb(reply)
            answered_by = fields.get("node", b"")
            if not isinstance(answered_by, bytes) or len(answered_by) not in (0, len(node)):
                raise ValueError("node: not an id")
            return answered_by or node, Inference(
                boxes=[_box(box) for box in fields["boxes"]],
                digest=_name(fields["digest"]),
                variant=_name(fields["variant"]),
                effort=_effort(fields["effort"]),
                rung=RUNGS[fields["rung"]],
                service_ms=_time(fields["service_ms"]),
                wait_ms=_time(fields["wait_ms"]),
                waits_ms=_waits(fields["waits_ms"]),
            )
        except (ValueError, TypeError, KeyError, OverflowError, msgpack.UnpackException) as error:
            raise PeerError("malformed reply", silent=False) from error

    async def cache(self, node: bytes, agent: str, digest: str, timeout_s: float) -> bytes | None:
        """Fetch the reuse state of ``agent`` under the model ``digest``; None if not held.

        Raises:
            PeerError: as for :meth:`infer`.
        """
        return await self._ask(node, "GET", f"/peer/v1/cache/{agent}/{digest}", b"", timeout_s)

    async def artifact(self, node: bytes, digest: str, timeout_s: float) -> bytes | None:
        """Fetch the artifact of a digest (64 hex digits), unverified; None if not held.

        Raises:
            PeerError: as for :meth:`infer`.
        """
        return await self._ask(node, "GET", f"/peer/v1/artifact/{digest}", b"", timeout_s)

    async def _ask(
        self, node: bytes, method: str, path: str, body: bytes, timeout_s: float
    ) -> bytes | None:
        address = self._address(node)
        if address is None:
            raise PeerError("no address", silent=True)
        if self._session is None:
            self._session = aiohttp.ClientSession(auto_decompress=False)
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        url = f"http://{host}:{address[1]}{path}"
        try:
            async with asyncio.timeout(timeout_s):
                send = (self._session, node, method, url, body)
                status, reply, learnt = await self._exchange(*send)
                if learnt:
                    status, reply, _ = await self._exchange(*send)
            if status == 404 and method == "GET":
                return None
            if status != 200:
                raise PeerError(_refusal(status, reply), silent=False)
            return reply
        except TimeoutError as error:
            raise PeerError("no answer in time", silent=True, at_work=True) from error
        except (aiohttp.ClientError, ValueError, OSError) as error:  # ValueError: its address
            raise PeerError("unreachable", silent=True) from error

    async def _exchange(
        self, session: aiohttp.ClientSession, node: bytes, method: str, url: str, body: bytes
    ) -> tuple[int, bytes, bool]:
        """Send one signed request; return status, body, and whether a new challenge was learnt."""
        path = URL(url).raw_path_qs
        headers = {HEADER: self._signer.sign(method, path, body, node)}
        async with session.request(method, URL(url), data=body, headers=headers) as response:
            reply, began_s = bytearray(), time.monotonic()
            async for chunk in response.content.iter_chunked(2**16):
                reply += chunk
                if len(reply) > MAX_REPLY_BYTES:
                    raise PeerError("reply too large", silent=False)
            self._measure(node, len(reply), time.monotonic() - began_s)
            challenge = response.headers.get(CHALLENGE_HEADER)
            sent = headers[HEADER]
            learnt = response.status == 401 and self._signer.learn(node, challenge, sent)
            return response.status, bytes(reply), learnt

    def _measure(self, node: bytes, size_bytes: int, spent_s: float) -> None:
        """Learn from a body of so many bytes that took so long after its header.

        Times are averaged: a body that had arrived before it was read would be infinitely fast.
        """
        if size_bytes >= MEASURED_BYTES:
            now_s = max(1e-6, spent_s) / (size_bytes * 8)
            old_s = self._bit_s.get(node, now_s)
            self._bit_s[node] = old_s + BANDWIDTH_GAIN * (now_s - old_s)


def _refusal(status: int, reply: bytes) -> str:
    """Say why a peer refused: its reason if it gave one that is known here."""
    try:
        reason = json.loads(reply).get("reason")
    except (ValueError, AttributeError, RecursionError):
        reason = None
    return reason if reason in LATE else f"refused with {status}"


def _effort(value: object) -> Effort:
    found = next((effort for effort in EFFORTS if effort == value), None)
    if found is None:
        raise ValueError("not an effort")
    return found


def _name(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME_CHARS:
        raise ValueError("not a name")
    return value


def _time(value: object) -> float:
    """Check a time of a peer: what is learned from one that is none is never forgotten."""
    if not isinstance(value, int | float) or not is_time(value):
        raise ValueError("not a time")
    return float(value)


def _waits(value: object) -> list[float]:
    waits_ms = waits_of(value)
    if waits_ms is None:
        raise ValueError("not three waits")
    return list(waits_ms)


def _box(box: list[float]) -> list[float]:
    """Check one box of a peer: x0, y0, x1, y1, score, class index."""
    numbers = [float(number) for number in box]
    if len(numbers) != 6 or not all(map(math.isfinite, numbers)):
        raise ValueError("not a box")
    return numbers
