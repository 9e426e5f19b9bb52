"""The node's own API over real sockets: routes, formats, who is answered, what bad input gets."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from edge_node.api import events, local
from edge_node.api.errors import STATUSES, status_of
from edge_node.api.events import Feed
from edge_node.api.local import local_app
from edge_node.api.plain import to_json
from edge_node.fleet.journal import JournalFull
from tests.edge_node.http_node import A, B, Client, Node, serving


def with_local(use: Callable[[Client, Node], Awaitable[None]], token: str | None = None) -> None:
    async def run() -> None:
        node = Node()
        async with serving(local_app(node, token)) as client:
            await use(client, node)

    asyncio.run(asyncio.wait_for(run(), 20))


# The node's own API


def test_every_resource_is_json_with_bytes_as_hex() -> None:
    async def use(client: Client, node: Node) -> None:
        expected = {
            "/edge/v1/node": {**node.node(), "id": A.hex(), "boot": "00" * 16},
            "/edge/v1/peers": [{**node.peers()[0], "id": A.hex(), "load": {"queue": None}}],
            "/edge/v1/agents": node.agents(),
            "/edge/v1/tiers": node.tiers(),
            "/edge/v1/cache": [{**node.cache()[0], "holders": [{"id": B.hex(), "name": "shed"}]}],
            "/edge/v1/models": node.models(),
            "/edge/v1/keys": node.keys(),
            "/edge/v1/state/hash": {"hash": B.hex(), "origins": 3, "complete": True},
            "/edge/v1/detections/latest": node.latest(),
            "/edge/v1/stats": node.stats(),
            "/v2/health/live": {"live": True},
            "/v2/health/ready": {"ready": True, "reasons": []},
        }
        for path, value in expected.items():
            assert await client.get(path) == (200, value)
        status, state = await client.get("/edge/v1/state")
        assert status == 200
        assert state["fleet"]["release/person-detector"] == {"digest": "ab"}
        assert state["sets"] == {"cache/door/ab": [A.hex(), B.hex()]}
        _, state = await client.get("/edge/v1/state", params={"prefix": "host/"})
        assert state["fleet"] == {"host/door": A.hex()}
        node.reasons = ["no accelerator works"]
        assert await client.get("/v2/health/ready") == (
            503,
            {"ready": False, "reasons": ["no accelerator works"]},
        )
        status, headers, body = await client.send("GET", "/metrics")
        assert (status, body.decode()) == (200, node.metrics_text())
        assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"

    with_local(use)


def test_a_model_is_set_or_the_reason_is_told() -> None:
    async def use(client: Client, node: Node) -> None:
        async def put(name: str, body: Any) -> tuple[int, Any]:
            data = body if isinstance(body, bytes) else json.dumps(body)
            status, _, answer = await client.send("PUT", f"/edge/v1/models/{name}", data=data)
            return status, json.loads(answer)

        name = "person-detector"
        status, model = await put(name, {"variant": "small"})
        assert (status, model) == (200, {"name": name, "desired": {"variant": "small"}})
        assert await put("other", {"variant": "small"}) == (404, {"error": "no model other"})
        status, answer = await put(name, {"variant": "corrupt"})
        assert (status, answer) == (409, {"error": "corrupt.onnx: not a model"})
        assert await put(name, {"variant": "diskless"}) == (507, {"error": "/state: free space"})
        status, answer = await put(name, {"variant": "bug"})
        assert status == 500
        assert "secret" not in answer["error"]
        for body in (
            b"",
            b"{",
            b"\xff",
            b"[" * 60_000,
            [],
            "small",
            {},
            {"variant": None},
            {"variant": ["small"]},
            {"variant": "small", "force": True},
        ):
            status, answer = await put(name, body)
            assert status == 400, body
            assert set(answer) == {"error"}
        status, answer = await put(name, b" " * (local.MAX_BODY_BYTES + 1))
        assert status == 413
        assert node.models()[0]["desired"] == {"variant": "small"}

    with_local(use)


def test_values_are_set_read_and_deleted() -> None:
    async def use(client: Client, node: Node) -> None:
        path = "/edge/v1/values/site/map"

        async def put(data: bytes, kind: str = "application/json") -> int:
            return (await client.send("PUT", path, data=data, headers={"Content-Type": kind}))[0]

        assert await put(b'{"a": [1]}') == 200
        assert json.loads((await client.send("GET", path))[2]) == {"a": [1]}
        assert await put(b"x" * 100_000, "application/octet-stream") == 200
        assert (await client.send("GET", path))[2] == b"x" * 100_000
        assert await put(bytes(5 * 2**20), "application/octet-stream") == 413
        for wrong in (b"", b"{", b"null", b"[" * 100_000, b'"' + b"x" * 300_000 + b'"'):
            assert await put(wrong) == 400
        assert (await client.send("DELETE", path))[0] == 200
        assert (await client.send("GET", path))[0] == 404

    with_local(use)


def test_a_tier_is_set_and_a_node_drained() -> None:
    async def use(client: Client, node: Node) -> None:
        async def ask(method: str, path: str, data: bytes = b"") -> int:
            return (await client.send(method, f"/edge/v1/{path}", data=data))[0]

        assert await ask("PUT", "tiers/door", b'{"tier": 1}') == 200
        assert node.tier == 1
        for wrong in (b"", b"{}", b"[]", b'{"tier": 0}', b'{"tier": 4}', b'{"tier": true}',
                      b'{"tier": 1.0}', b'{"tier": null}', b'{"tier": 1, "of": 2}'):  # fmt: skip
            assert await ask("PUT", "tiers/door", wrong) == 400, wrong
        assert await ask("PUT", "tiers/gate", b'{"tier": 1}') == 404
        assert node.tier == 1
        assert await ask("DELETE", "tiers/door") == 200
        assert node.tier is None
        for wrong in (b"", b"{}", b'{"on": 1}', b'{"on": true, "for": 5}'):
            assert await ask("PUT", "drain", wrong) == 400, wrong
        # a page of another site can have a browser send a POST without being asked
        assert await ask("POST", "drain", b'{"on": true}') == 405
        assert await ask("POST", "tiers/door", b'{"tier": 1}') == 405
        assert not node.draining
        assert await ask("PUT", "drain", b'{"on": true}') == 200
        assert node.draining

    with_local(use)


def test_the_key_is_rotated_and_members_are_revoked() -> None:
    async def use(client: Client, node: Node) -> None:
        async def ask(method: str, path: str, data: bytes = b"") -> int:
            return (await client.send(method, f"/edge/v1/{path}", data=data))[0]

        assert await ask("PUT", "keys", b'{"epoch": 1}') == 200
        assert await ask("PUT", "keys", b'{"epoch": 1}') == 409
        assert await ask("PUT", "keys", b'{"epoch": 9, "force": true}') == 200
        for wrong in (b"", b"{}", b"[]", b'{"epoch": true}', b'{"epoch": "1"}', b'{"epoch": 1.5}',
                      b'{"epoch": 1, "force": 1}', b'{"epoch": 1, "secret": "x"}'):  # fmt: skip
            assert await ask("PUT", "keys", wrong) == 400, wrong
        assert node.epoch == 9
        # a page of another site can have a browser send GET and POST without being asked
        assert await ask("POST", "keys", b'{"epoch": 10}') == 405
        assert await ask("POST", "revoked/shed") == 405
        assert await ask("PUT", "revoked/garden%20shed") == 200
        assert node.revoked == ["garden shed"]
        assert await ask("PUT", "revoked/nobody") == 404
        assert await ask("DELETE", "revoked/garden%20shed") == 200
        assert node.revoked == []

    with_local(use)


def test_unknown_paths_methods_and_queries_are_refused_in_json() -> None:
    async def use(client: Client, node: Node) -> None:
        status, answer = await client.get("/edge/v1/nothing")
        assert (status, set(answer)) == (404, {"error"})
        status, headers, body = await client.send("POST", "/edge/v1/node")
        assert (status, set(json.loads(body))) == (405, {"error"})
        assert headers["Allow"] == "GET,HEAD"
        status, answer = await client.get("/edge/v1/state", params={"prefix": "k" * 257})
        assert (status, answer["error"][:7]) == (400, "prefix:")

    with_local(use)


def test_without_a_token_only_loopback_names_are_answered() -> None:
    async def use(client: Client, node: Node) -> None:
        for good in (
            "localhost",
            "LocalHost:8470",
            "127.0.0.1",
            "127.8.8.8:1",
            "[::1]:80",
            "[::1]",
        ):
            status, _ = await client.get("/edge/v1/node", headers={"Host": good})
            assert status == 200, good
        for bad in (
            "evil.example",
            "evil.example:8470",
            "10.0.0.1",
            "localhost.evil.example",
            "",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "[fe80::1]:80",
            "0.0.0.0",
        ):
            for path in ("/edge/v1/node", "/metrics", "/v2/health/live", "/nothing"):
                status, answer = await client.get(path, headers={"Host": bad})
                assert status == 403, bad
                assert "token_file" in answer["error"]

    with_local(use)


def test_with_a_token_only_its_bearer_is_answered() -> None:
    token = "a long enough töken"

    async def use(client: Client, node: Node) -> None:
        async def ask(authorization: str | None, path: str = "/edge/v1/node") -> int:
            headers = {"Host": "porch.example"}
            if authorization is not None:
                headers["Authorization"] = authorization
            status, answer = await client.get(path, headers=headers)
            assert status == 200 or "Bearer" in answer["error"]
            return status

        assert await ask(f"Bearer {token}") == 200
        for wrong in (
            None,
            "",
            "Bearer",
            "Bearer ",
            token,
            f"Basic {token}",
            f"Bearer {token[:-1]}",
            f"Bearer {token}x",
            f"bearer {token.upper()}",
        ):
            assert await ask(wrong) == 401, wrong
        assert await ask(None, "/v2/health/ready") == 401
        assert await ask(None, "/nothing") == 401
        assert await ask(None, "/v2/health/live") == 200

    with_local(use, token)


@pytest.mark.parametrize("token", ["", "short"])
def test_a_weak_token_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="token"):
        local_app(Node(), token)


# Events


async def lines_of(response: aiohttp.ClientResponse, count: int) -> list[str]:
    """Read lines that are not empty."""
    found: list[str] = []
    while len(found) < count:
        line = await response.content.readline()
        assert line, "the stream ended early"
        if line.strip():
            found.append(line.decode().strip())
    return found


def test_changes_and_detections_are_streamed_until_the_node_stops() -> None:
    async def use(client: Client, node: Node) -> None:
        for path, feed in (
            ("/edge/v1/state/watch", node.changes),
            ("/edge/v1/detections", node.detections),
        ):
            async with client.session.get(client.url + path) as response:
                assert response.headers["Content-Type"] == "text/event-stream"
                assert await lines_of(response, 1) == [": following"]
                feed.publish({"key": "a\nb", "origin": A})
                feed.publish({"key": "next"})
                assert await lines_of(response, 2) == [
                    'data: {"key":"a\\nb","origin":"' + A.hex() + '"}',
                    'data: {"key":"next"}',
                ]
                feed.close()
                assert await response.content.read() == b"\n"  # of the last event
        status, _, _ = await client.send("HEAD", "/edge/v1/state/watch")
        assert status == 405

    with_local(use)


def test_a_shutdown_ends_open_streams() -> None:
    async def use(client: Client, node: Node) -> None:
        async with client.session.get(client.url + "/edge/v1/detections") as response:
            await lines_of(response, 1)
            await client.runner.cleanup()
            assert await response.content.read() == b"\n"

    with_local(use)


def test_a_silent_stream_is_kept_alive_and_a_gone_reader_is_noticed() -> None:
    async def run() -> None:
        feed = Feed()
        app = web.Application()
        events.prepare(app)

        async def handler(request: web.Request) -> web.StreamResponse:
            return await events.stream(request, feed.subscribe(), heartbeat_s=0.001)

        app.router.add_get("/", handler)
        async with serving(app) as client:
            async with client.session.get(client.url) as response:
                assert await lines_of(response, 3) == [": following", *[": still here"] * 2]
                assert len(app[events.STREAMS]) == 1
                response.close()
            while app[events.STREAMS]:
                await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(run(), 20))


def test_streams_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_STREAMS", 1)

    async def use(client: Client, node: Node) -> None:
        async with client.session.get(client.url + "/edge/v1/detections") as response:
            await lines_of(response, 1)
            status, answer = await client.get("/edge/v1/detections")
            assert (status, set(answer)) == (503, {"error"})

    with_local(use)


def test_a_slow_reader_loses_the_oldest_and_nobody_waits() -> None:
    async def run() -> None:
        feed = Feed(capacity=3)
        slow, idle = feed.subscribe(), feed.subscribe()
        del idle
        for n in range(10):
            feed.publish({"n": n})
        assert feed.dropped == 7
        feed.close()
        assert [item["n"] async for item in slow] == [7, 8, 9]
        assert [item async for item in feed.subscribe()] == []

    asyncio.run(run())


def test_nothing_is_described_while_nobody_follows() -> None:
    async def run() -> None:
        feed, described = Feed(), []

        def describe() -> dict[str, int]:
            described.append(len(described))
            return {"n": described[-1]}

        feed.tell(describe)
        assert described == []
        one, other = feed.subscribe(), feed.subscribe()
        feed.tell(describe)
        assert described == [0], "once for all"
        del other
        feed.tell(describe)
        assert [await anext(one), await anext(one)] == [{"n": 0}, {"n": 1}]
        del one
        feed.tell(describe)
        assert described == [0, 1]

    asyncio.run(run())


# The table


def test_the_table_prefers_the_special_case() -> None:
    for position, (kind, _) in enumerate(STATUSES):
        for earlier, _ in STATUSES[:position]:
            assert not issubclass(kind, earlier), f"{kind} can never match"
    assert status_of(JournalFull()) == 507
    assert status_of(UnicodeDecodeError("utf-8", b"", 0, 1, "")) == 400
    assert status_of(RuntimeError()) == 500


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_whatever_the_replica_holds_is_valid_json(value: Any) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(to_json(value).encode(), parse_constant=refuse)
