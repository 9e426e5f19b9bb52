"""Find the daemon's API and ask it, over the standard library's HTTP client.

Owns: where the daemon is (`--api`, `-c`, `EDGE_NODE_API`, the default), the token, and how a
refusal reads. Never: interprets an answer's content.
Invariant: every failure is a `CliError`: status 3 where nobody answers, 1 where the daemon refuses.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edge_node.cli.outcome import FAILED, UNREACHABLE, USAGE, CliError

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

    from edge_node.fields import Address

DEFAULT_API = "127.0.0.1:8470"
ANSWER_TIMEOUT_S = 10.0
_BINARY = "application/octet-stream"
_WHERE = "say where it is with --api HOST:PORT, -c FILE or EDGE_NODE_API"


def add_client_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --json and the arguments that say where the daemon is."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--api", metavar="HOST:PORT", help=f"the daemon's API ({DEFAULT_API})")
    parser.add_argument("-c", "--config", metavar="FILE", help="take API and token from this file")


class Client:
    """Ask one daemon; made from the parsed arguments, opens a connection per request."""

    def __init__(self, parsed: argparse.Namespace) -> None:
        token = os.environ.get("EDGE_NODE_API_TOKEN", "").strip()
        text = parsed.api or os.environ.get("EDGE_NODE_API", "") or DEFAULT_API
        self.address = _address(text)
        if parsed.config:
            bind, file_token = _from_config(parsed.config)
            token = token or file_token
            if not parsed.api:
                self.address = bind
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def get(self, path: str) -> Any:
        """Return the JSON that GET answers."""
        return self._json("GET", path, None)

    def put(self, path: str, body: Any) -> Any:
        """Return the JSON that PUT of a JSON body answers."""
        return self._json("PUT", path, body)

    def post(self, path: str, body: Any) -> Any:
        """Return the JSON that POST of a JSON body, or of bytes, answers."""
        return self._json("POST", path, body)

    def delete(self, path: str) -> Any:
        """Return the JSON that DELETE answers."""
        return self._json("DELETE", path, None)

    def put_bytes(self, path: str, body: bytes) -> Any:
        """Return the JSON that PUT of bytes answers."""
        return self._json("PUT", path, body)

    def fetch(self, path: str) -> Any:
        """Return what GET answers: bytes if it says that they are, else JSON."""
        response = self._request("GET", path, None)
        try:
            if response.headers.get_content_type() == _BINARY:
                return response.read()
            return self._parsed(response)
        except OSError as error:
            raise self._lost(error) from None
        finally:
            response.close()

    def events(self, path: str) -> Iterator[Any]:
        """Yield the JSON of each server-sent event, until the daemon closes the stream."""
        import json

        response = self._request("GET", path, None)
        data: list[str] = []
        try:
            if response.fp is not None:
                # Events may be hours apart: only the connection and its headers have a limit.
                response.fp.raw._sock.settimeout(None)  # type: ignore[attr-defined]
            for raw in response:
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                if line.startswith("data:"):
                    data.append(line[5:].removeprefix(" "))
                elif not line and data:
                    yield json.loads("\n".join(data))
                    data = []
        except json.JSONDecodeError:
            raise self._foreign() from None
        except OSError as error:
            raise self._lost(error) from None
        finally:
            response.close()

    def _parsed(self, response: HTTPResponse) -> Any:
        import json

        try:
            return json.loads(response.read())
        except ValueError:
            raise self._foreign() from None

    def _json(self, method: str, path: str, body: Any) -> Any:
        response = self._request(method, path, body)
        try:
            return self._parsed(response)
        except OSError as error:
            raise self._lost(error) from None
        finally:
            response.close()

    def _request(self, method: str, path: str, body: Any) -> HTTPResponse:
        import http.client
        import json

        raw = isinstance(body, bytes)
        kind = _BINARY if raw else "application/json"
        headers = {**self._headers, "Content-Type": kind}
        payload = body if body is None or raw else json.dumps(body)
        connection = http.client.HTTPConnection(*self.address, timeout=ANSWER_TIMEOUT_S)
        try:
            connection.request(method, path, payload, headers)
            response = connection.getresponse()
        except http.client.HTTPException:
            raise self._foreign() from None
        except OSError as error:
            raise self._lost(error) from None
        if response.status >= 400:
            raise self._refused(response, connection)
        return response

    def _refused(self, response: HTTPResponse, connection: HTTPConnection) -> CliError:
        import json

        try:
            text = str(json.loads(response.read())["error"])
        except (ValueError, KeyError, TypeError, OSError):
            text = f"HTTP {response.status} {response.reason}"
        connection.close()
        if response.status in (401, 403):
            text += "; give the API's token with -c FILE or EDGE_NODE_API_TOKEN"
        return CliError(text, FAILED)

    def _lost(self, error: OSError) -> CliError:
        why = error.strerror or str(error) or type(error).__name__
        return CliError(
            f"no daemon answers at {self.address} ({why.lower()}); "
            f"start one with: edge-node run -c FILE, or {_WHERE}",
            UNREACHABLE,
        )

    def _foreign(self) -> CliError:
        return CliError(f"what answers at {self.address} is not edge-node's API; {_WHERE}")


def _address(text: str) -> Address:
    from edge_node.fields import parse_address

    try:
        return parse_address(text)
    except ValueError as error:
        raise CliError(f"the API's address: {error}", USAGE) from None


def _from_config(path: str) -> tuple[Address, str]:
    from pathlib import Path

    from edge_node.config import load

    api = load(Path(path)).api
    bind = api.bind
    if bind.is_wildcard:
        bind = bind._replace(host="::1" if ":" in bind.host else "127.0.0.1")
    if api.token_file is None:
        return bind, ""
    try:
        return bind, api.token_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        what = f"cannot read the API's token {api.token_file} ({error.strerror})"
        raise CliError(f"{what}; run as a user who may, or set EDGE_NODE_API_TOKEN") from None
