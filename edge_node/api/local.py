"""Owns the node's own HTTP API: what people, dashboards and the command line ask.

Never decides anything: handlers call the `NodeView`. Invariant: without a token only programs on
this machine are answered, and no web page can reach the API through a name that it controls.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import math
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from edge_node.api import events
from edge_node.api.errors import Forbidden, Handler, Unauthorized, answer_errors
from edge_node.api.plain import to_json
from edge_node.api.view import NodeView
from edge_node.cameras.spec import MAX_DEADLINE_MS

MAX_BODY_BYTES = 4 * 2**20
MAX_JSON_BYTES = 256 * 2**10  # parsed on the event loop
MAX_PREFIX_CHARS = 256
MIN_TOKEN_CHARS = 16
LIVE = "/v2/health/live"
_BINARY = "application/octet-stream"
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def local_app(view: NodeView, token: str | None) -> web.Application:
    """Build the API. With a `token` every request but `LIVE` must carry it (Bearer).

    Raises ValueError for a token under 16 characters.
    """
    if token is not None and len(token) < MIN_TOKEN_CHARS:
        raise ValueError(f"the API's token has {len(token)} characters; use {MIN_TOKEN_CHARS} up")
    guard = _host_guard() if token is None else _token_guard(token)
    app = web.Application(middlewares=[answer_errors, guard], client_max_size=MAX_BODY_BYTES)
    events.prepare(app)
    handlers = _Handlers(view)
    for path, read in {
        "/edge/v1/node": view.node,
        "/edge/v1/peers": view.peers,
        "/edge/v1/agents": view.agents,
        "/edge/v1/tiers": view.tiers,
        "/edge/v1/cache": view.cache,
        "/edge/v1/affinity": view.affinity,
        "/edge/v1/models": view.models,
        "/edge/v1/keys": view.keys,
        "/edge/v1/state/hash": view.state_hash,
        "/edge/v1/detections/latest": view.latest,
        "/edge/v1/stats": view.stats,
    }.items():
        app.router.add_get(path, _reader(read))
    app.router.add_get("/edge/v1/state", handlers.state)
    app.router.add_get("/edge/v1/why/{agent}", handlers.why)
    app.router.add_get("/edge/v1/why/{agent}/{frame}", handlers.why)
    app.router.add_post("/edge/v1/infer", handlers.infer)
    app.router.add_put("/edge/v1/models/{name}", handlers.set_model)
    app.router.add_put("/edge/v1/tiers/{agent}", handlers.set_tier)
    app.router.add_delete("/edge/v1/tiers/{agent}", handlers.clear_tier)
    app.router.add_put("/edge/v1/drain", handlers.drain)
    app.router.add_put("/edge/v1/keys", handlers.rotate_keys)
    app.router.add_put("/edge/v1/revoked/{member}", handlers.revoke)
    app.router.add_delete("/edge/v1/revoked/{member}", handlers.restore)
    app.router.add_get("/edge/v1/values/{key:.+}", handlers.value)
    app.router.add_put("/edge/v1/values/{key:.+}", handlers.set_value)
    app.router.add_delete("/edge/v1/values/{key:.+}", handlers.delete_value)
    app.router.add_get("/edge/v1/state/watch", handlers.watch_state, allow_head=False)
    app.router.add_get("/edge/v1/detections", handlers.watch_detections, allow_head=False)
    app.router.add_get("/metrics", handlers.metrics)
    app.router.add_get(LIVE, handlers.live)
    app.router.add_get("/v2/health/ready", handlers.ready)
    return app


class _Handlers:
    def __init__(self, view: NodeView) -> None:
        self._view = view

    async def state(self, request: web.Request) -> web.Response:
        prefix = request.query.get("prefix", "")
        if len(prefix) > MAX_PREFIX_CHARS:
            raise ValueError(f"prefix: {len(prefix)} characters; at most {MAX_PREFIX_CHARS}")
        return _answer(self._view.state(prefix))

    async def why(self, request: web.Request) -> web.Response:
        number = request.match_info.get("frame")
        if number is not None and not (number.isascii() and number.isdecimal()):
            raise ValueError(f"{number} is not the number of a frame; write AGENT or AGENT/NUMBER")
        frame = None if number is None else int(number[:18])
        return _answer(self._view.why(request.match_info["agent"], frame))

    async def infer(self, request: web.Request) -> web.Response:
        query = request.query
        if unknown := query.keys() - {"variant", "deadline_ms", "tier"}:
            raise ValueError(
                f"{', '.join(sorted(unknown))}: unknown; use variant, deadline_ms, tier"
            )
        deadline_ms = _number(query.get("deadline_ms", "1000"), "deadline_ms", -MAX_DEADLINE_MS)
        tier = _number(query.get("tier", "2"), "tier", 1)
        if tier not in (1, 2, 3) or deadline_ms > MAX_DEADLINE_MS:
            raise ValueError(f"tier is 1, 2 or 3, and deadline_ms at most {MAX_DEADLINE_MS}")
        # A page of somewhere else cannot send these types unasked.
        if request.content_type not in ("image/jpeg", _BINARY):
            raise web.HTTPUnsupportedMediaType(text="send the JPEG as image/jpeg")
        image = await request.read()
        if not image:
            raise ValueError("the body is empty; send a JPEG")
        variant = query.get("variant", "")
        return _answer(await self._view.infer(variant, deadline_ms, int(tier), image))

    async def set_model(self, request: web.Request) -> web.Response:
        body = _object(await request.read())
        variant = body.get("variant")
        if not isinstance(variant, str) or body.keys() != {"variant"}:
            raise ValueError('the body must be {"variant": NAME}')
        return _answer(await self._view.set_model(request.match_info["name"], variant))

    async def set_tier(self, request: web.Request) -> web.Response:
        body = _object(await request.read())
        tier = body.get("tier")
        if type(tier) is not int or tier not in (1, 2, 3) or body.keys() != {"tier"}:
            raise ValueError('the body must be {"tier": 1}, 2 or 3')
        return _answer(await self._view.set_tier(request.match_info["agent"], tier))

    async def clear_tier(self, request: web.Request) -> web.Response:
        return _answer(await self._view.set_tier(request.match_info["agent"], None))

    async def drain(self, request: web.Request) -> web.Response:
        body = _object(await request.read())
        if type(body.get("on")) is not bool or body.keys() != {"on"}:
            raise ValueError('the body must be {"on": true} or {"on": false}')
        return _answer(await self._view.drain(body["on"]))

    async def rotate_keys(self, request: web.Request) -> web.Response:
        body = _object(await request.read())
        epoch, force = body.get("epoch"), body.get("force", False)
        if type(epoch) is not int or type(force) is not bool or body.keys() - {"epoch", "force"}:
            raise ValueError('the body must be {"epoch": NEXT} or {"epoch": NEXT, "force": true}')
        return _answer(await self._view.rotate_keys(epoch, force))

    async def revoke(self, request: web.Request) -> web.Response:
        return _answer(await self._view.revoke(request.match_info["member"], True))

    async def restore(self, request: web.Request) -> web.Response:
        return _answer(await self._view.revoke(request.match_info["member"], False))

    async def value(self, request: web.Request) -> web.Response:
        key = request.match_info["key"]
        value = await self._view.value(key)
        if value is None:
            raise KeyError(f"no value {key}")
        if isinstance(value, bytes):
            return web.Response(body=value, content_type=_BINARY)
        return _answer(value)

    async def set_value(self, request: web.Request) -> web.Response:
        body = await request.read()
        value = body if request.content_type == _BINARY else _json(body)
        if value is None:
            raise ValueError("the body is null; to delete a value, use DELETE")
        await self._view.set_value(request.match_info["key"], value)
        return _answer({"key": request.match_info["key"], "size_bytes": len(body)})

    async def delete_value(self, request: web.Request) -> web.Response:
        key = request.match_info["key"]
        await self._view.set_value(key, None)
        return _answer({"key": key, "deleted": True})

    async def watch_state(self, request: web.Request) -> web.StreamResponse:
        return await events.stream(request, self._view.subscribe_changes())

    async def watch_detections(self, request: web.Request) -> web.StreamResponse:
        return await events.stream(request, self._view.subscribe_detections())

    async def metrics(self, request: web.Request) -> web.Response:
        text = self._view.metrics_text()
        return web.Response(body=text.encode(), headers={"Content-Type": _METRICS_TYPE})

    async def live(self, request: web.Request) -> web.Response:
        return _answer({"live": True})

    async def ready(self, request: web.Request) -> web.Response:
        ready, reasons = self._view.ready()
        return _answer({"ready": ready, "reasons": reasons}, status=200 if ready else 503)


def _reader(read: Callable[[], Any]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(request: web.Request) -> web.Response:
        return _answer(read())

    return handler


def _answer(value: Any, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        text=to_json(value),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def _number(text: str, name: str, least: float) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{name}: {text!r} is not a number") from None
    if not math.isfinite(number) or number < least:
        raise ValueError(f"{name}: {text} is out of range")
    return number


def _json(body: bytes) -> Any:
    if len(body) > MAX_JSON_BYTES:
        raise ValueError(
            f"{len(body)} bytes of JSON are too many (at most {MAX_JSON_BYTES}): "
            f"send them as {_BINARY}"
        )
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not JSON: {error}") from error


def _object(body: bytes) -> dict[str, Any]:
    value = _json(body)
    if not isinstance(value, dict):
        raise ValueError("the body must be a JSON object")
    return value


def _token_guard(token: str) -> Any:
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if request.path != LIVE and not hmac.compare_digest(given, expected):
            raise Unauthorized("send the node's token: Authorization: Bearer TOKEN")
        return await handler(request)

    return guard


def _host_guard() -> Any:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        # A page whose name is made to resolve to 127.0.0.1 (DNS rebinding) still sends its name.
        host = request.headers.get("Host", "")
        if not _is_loopback(host):
            raise Forbidden(
                f"the API answers only to a loopback name, not {host[:64]!r}; ask for 127.0.0.1, "
                f"or set [api] token_file"
            )
        return await handler(request)

    return guard


def _is_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if name.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
