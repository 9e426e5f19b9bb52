"""Owns the HTTP API between nodes: run this frame, give me that cache entry.

Never answers a request that is not authenticated, and reads no body before its header is.
Invariant: what reaches the `NodeView` was checked field by field.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import msgpack
from aiohttp import web

from crdt import DecodeError
from edge_node.api.errors import Busy, Handler, answer_errors
from edge_node.api.view import NodeView
from edge_node.fleet.auth import CHALLENGE_HEADER, HEADER, Verifier
from models.wire import EFFORTS

MAX_BODY_BYTES = 4 * 2**20
MAX_UNDER_WAY = 64
BODY_TIMEOUT_S = 10.0
MAX_BUDGET_MS = 60_000
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SENDER: ContextVar[bytes] = ContextVar("sender")  # of the request that the task handles
_BINARY = "application/msgpack"


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "agent": lambda v: isinstance(v, str) and 1 <= len(v) <= 128,
    "frame": lambda v: type(v) is int and v >= 0,
    "digest": lambda v: isinstance(v, str) and _DIGEST.fullmatch(v) is not None,
    "budget_ms": lambda v: type(v) in (int, float) and abs(v) <= MAX_BUDGET_MS,
    "tier": lambda v: type(v) is int and 1 <= v <= 3,
    "image": lambda v: isinstance(v, bytes) and len(v) > 0,
}


def peer_app(view: NodeView, verifier: Verifier) -> web.Application:
    """Build the API for peers; every request must be signed for this node."""
    gate = _Gate(verifier)
    app = web.Application(
        middlewares=[gate.tell_challenge, answer_errors, gate.authenticate],
        client_max_size=MAX_BODY_BYTES,
    )

    async def infer(request: web.Request) -> web.Response:
        fields = decode_infer(await request.read())
        answer = await view.peer_infer(_SENDER.get(), fields)
        return web.Response(body=msgpack.packb(answer), content_type=_BINARY)

    async def cache(request: web.Request) -> web.Response:
        agent, digest = request.match_info["agent"], request.match_info["digest"]
        if not _DIGEST.fullmatch(digest):
            raise DecodeError("digest: not 64 hex digits")
        entry = await view.peer_cache(agent, digest)
        if entry is None:
            raise KeyError(f"no cache entry of {agent} for this model")
        return web.Response(body=entry, content_type="application/octet-stream")

    async def artifact(request: web.Request) -> web.Response:
        digest = request.match_info["digest"]
        if not _DIGEST.fullmatch(digest):
            raise DecodeError("digest: not 64 hex digits")
        data = await view.peer_artifact(digest)
        if data is None:
            raise KeyError("this node does not hold that artifact")
        return web.Response(body=data, content_type="application/octet-stream")

    app.router.add_post("/peer/v1/infer", infer)
    app.router.add_get("/peer/v1/artifact/{digest}", artifact, allow_head=False)
    app.router.add_get("/peer/v1/cache/{agent}/{digest}", cache, allow_head=False)
    return app


class _Gate:
    """Let authenticated requests in, a bounded number at a time."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._under_way = 0

    @property
    def tell_challenge(self) -> Any:
        @web.middleware
        async def tell(request: web.Request, handler: Handler) -> web.StreamResponse:
            response = await handler(request)
            if response.status == 401:
                response.headers[CHALLENGE_HEADER] = self._verifier.challenge.hex()
            return response

        return tell

    @property
    def authenticate(self) -> Any:
        @web.middleware
        async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
            header = request.headers.get(HEADER)
            claim = self._verifier.check(request.method, request.raw_path, header)
            if self._under_way >= MAX_UNDER_WAY:
                raise Busy("too many requests of peers are under way")
            self._under_way += 1
            try:
                if "Content-Encoding" in request.headers:
                    raise web.HTTPUnsupportedMediaType(text="encoded bodies are not taken")
                async with asyncio.timeout(BODY_TIMEOUT_S):
                    body = await request.read()
                _SENDER.set(self._verifier.accept(claim, body))
                return await handler(request)
            finally:
                self._under_way -= 1

        return check


def decode_infer(body: bytes) -> dict[str, Any]:
    """Decode a request to run a frame: a MessagePack map, at most 4 MiB.

    Fields: agent (str, 1..128 characters), frame (int >= 0), digest (64 hex digits), budget_ms
    (-60,000..60,000; a past one is answered with the reason), tier (1..3), image (bytes, JPEG),
    bounced (bool: passed on already; left out: no), effort (full or half; left out: full).
    Unknown fields are left out. Raises DecodeError.
    """
    try:
        fields = msgpack.unpackb(
            body, raw=False, strict_map_key=True, max_map_len=32, max_array_len=0, max_ext_len=0
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise DecodeError(
            f"not MessagePack of this form: {error or type(error).__name__}"
        ) from error
    if not isinstance(fields, dict):
        raise DecodeError("not a map")
    for name, check in _CHECKS.items():
        if name not in fields:
            raise DecodeError(f"{name}: missing")
        if not check(fields[name]):
            raise DecodeError(f"{name}: wrong type or out of range")
    bounced, effort = fields.get("bounced", False), fields.get("effort", "full")
    if not isinstance(bounced, bool):
        raise DecodeError("bounced: wrong type")
    if effort not in EFFORTS:
        raise DecodeError("effort: not one of this version")
    return {**{name: fields[name] for name in _CHECKS}, "bounced": bounced, "effort": effort}
