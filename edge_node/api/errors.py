"""Owns the one table from exceptions to HTTP statuses, and the shape of every error: JSON.

Never shows a traceback to a client. Invariant: whatever a handler raises, the client gets
{"error": text} with the table's status; what is not in the table is ours, logged, and a 500.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from crdt import DecodeError
from edge_node.api.plain import to_json
from edge_node.fleet.artifacts import ArtifactsFull
from edge_node.fleet.auth import PeerAuthError
from edge_node.fleet.journal import JournalError, JournalFull
from edge_node.fleet.shared import Unavailable
from edge_node.fleet.trust import TrustError
from models.wire import ModelError, Shed

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Forbidden(Exception):
    """The request may not be made this way; the text says how it may."""


class Unauthorized(Exception):
    """The request lacks the API's token."""


class Busy(Exception):
    """Too many requests of this kind are under way."""


# The first match counts, so a subclass stands before its base.
STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (DecodeError, 400),
    (Unauthorized, 401),
    (PeerAuthError, 401),
    (Forbidden, 403),
    (KeyError, 404),
    (TimeoutError, 408),
    (ModelError, 409),
    (TrustError, 409),
    (Shed, 503),
    (Busy, 503),
    (Unavailable, 503),
    (ArtifactsFull, 507),
    (JournalFull, 507),
    (JournalError, 503),
    (ValueError, 400),
)


def status_of(error: Exception) -> int:
    """Return the HTTP status of an exception: the table's, else 500."""
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a handler raises into a JSON response. The outermost middleware."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        kept = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
        return error_response(error.status, error.text or error.reason, kept)
    except ConnectionError:
        raise  # the client is gone: there is nobody to answer
    except Exception as error:
        status = status_of(error)
        if status == 500:
            log.exception("%s %s failed", request.method, request.path)
            return error_response(500, "internal error; the node's log has the details")
        headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorized) else {}
        fields = {"reason": error.reason} if isinstance(error, Shed) else {}
        return error_response(status, _text(error), headers, **fields)


def error_response(
    status: int, text: str, headers: dict[str, str] | None = None, **fields: str
) -> web.Response:
    """Return {"error": text} and further `fields` with this status."""
    return web.Response(
        status=status,
        text=to_json({"error": text, **fields}),
        content_type="application/json",
        headers=headers,
    )


def _text(error: Exception) -> str:
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])  # str() of a KeyError adds quotes
    return str(error) or type(error).__name__
