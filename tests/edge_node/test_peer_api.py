"""The HTTP API between nodes over real sockets: who is answered, and what bad input gets."""

import asyncio
import json
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt import DecodeError
from edge_node.api import peer
from edge_node.api.peer import decode_infer, peer_app
from edge_node.fleet.auth import CHALLENGE_HEADER, HEADER, Signer, Verifier
from edge_node.fleet.peers import PeerError, Peers
from gossip import Keyring
from tests.edge_node.http_node import ANSWER, DIGEST, FRAME, A, B, Client, Node, serving

SECRET = bytes(range(100, 132))


def with_peer(use: Callable[[Client, Node, Signer, Verifier], Awaitable[None]]) -> None:
    async def run() -> None:
        node, verifier = Node(), Verifier(B, Keyring(SECRET))
        signer = Signer(A, bytes(16), Keyring(SECRET))
        signer.learn(B, verifier.challenge.hex())
        async with serving(peer_app(node, verifier)) as client:
            await use(client, node, signer, verifier)

    asyncio.run(asyncio.wait_for(run(), 20))


async def signed(
    client: Client, signer: Signer, method: str, path: str, body: bytes = b""
) -> tuple[int, bytes]:
    headers = {HEADER: signer.sign(method, path, body, B)}
    status, _, answer = await client.send(method, path, data=body, headers=headers)
    return status, answer


def test_a_frame_is_run_for_a_peer() -> None:
    async def use(client: Client, node: Node, signer: Signer, _: Verifier) -> None:
        body = msgpack.packb({**FRAME, "later": "ignored"})
        status, answer = await signed(client, signer, "POST", "/peer/v1/infer", body)
        assert (status, msgpack.unpackb(answer)) == (200, ANSWER)
        assert node.frames == [(A, {**FRAME, "bounced": False, "effort": "full"})]
        body = msgpack.packb({**FRAME, "tier": 3})
        status, answer = await signed(client, signer, "POST", "/peer/v1/infer", body)
        assert (status, json.loads(answer)) == (503, {"error": "deadline", "reason": "deadline"})

    with_peer(use)


def test_requests_under_way_together_all_learn_the_challenge() -> None:
    async def run() -> None:
        node, verifier = Node(), Verifier(B, Keyring(SECRET))
        node.answer = {**ANSWER, "variant": "small", "service_ms": 9, "wait_ms": 1.5,
                       "waits_ms": [0, 0, 0], "effort": "full"}  # fmt: skip
        async with serving(peer_app(node, verifier)) as client:
            signer = Signer(A, bytes(16), Keyring(SECRET))
            peers = Peers(signer, lambda _: ("127.0.0.1", client.port), lambda node: node.hex())
            try:
                asked = (peers.infer(B, FRAME, timeout_s=5) for _ in range(8))
                answers = await asyncio.gather(*asked)
            finally:
                await peers.close()
        assert len(answers) == 8

    asyncio.run(asyncio.wait_for(run(), 20))


def test_the_client_of_a_node_is_understood_even_after_a_restart() -> None:
    full = {
        **ANSWER,
        "variant": "small",
        "service_ms": 9,
        "wait_ms": 1.5,
        "waits_ms": [0, 0, 0],
        "effort": "full",
    }

    async def ask(peers: Peers, ports: list[int]) -> None:
        node, verifier = Node(), Verifier(B, Keyring(SECRET))
        node.answer = full
        async with serving(peer_app(node, verifier)) as client:
            ports.append(client.port)
            for _ in range(2):
                answered_by, answer = await peers.infer(B, FRAME, timeout_s=5)
                assert answered_by == B
                assert (answer.boxes, answer.wait_ms) == (ANSWER["boxes"], 1.5)
            assert await peers.cache(B, "door", DIGEST, timeout_s=5) == b"\x00state"
            assert await peers.cache(B, "yard", DIGEST, timeout_s=5) is None
            with pytest.raises(PeerError, match="deadline"):
                await peers.infer(B, {**FRAME, "tier": 3}, timeout_s=5)
        assert verifier.counters == {"challenge": 1, "accepted": 5}

    async def run() -> None:
        ports: list[int] = []
        signer = Signer(A, bytes(16), Keyring(SECRET))
        peers = Peers(signer, lambda _: ("127.0.0.1", ports[-1]), lambda node: node.hex())
        try:
            await ask(peers, ports)
            await ask(peers, ports)  # a new verifier: as after a restart of the other node
        finally:
            await peers.close()

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_cache_entry_is_fetched_by_a_peer() -> None:
    async def use(client: Client, node: Node, signer: Signer, _: Verifier) -> None:
        async def get(path: str) -> tuple[int, bytes]:
            return await signed(client, signer, "GET", path)

        assert await get(f"/peer/v1/cache/door/{DIGEST}") == (200, b"\x00state")
        assert (await get(f"/peer/v1/cache/yard/{DIGEST}"))[0] == 404
        for wrong in ("ab", DIGEST.upper(), DIGEST + "00", "%00"):
            assert (await get(f"/peer/v1/cache/door/{wrong}"))[0] == 400

    with_peer(use)


def test_an_artifact_is_fetched_by_a_peer() -> None:
    async def use(client: Client, node: Node, signer: Signer, _: Verifier) -> None:
        path = f"/peer/v1/artifact/{DIGEST}"
        assert await signed(client, signer, "GET", path) == (200, b"artifact")
        assert (await signed(client, signer, "GET", f"/peer/v1/artifact/{'0' * 64}"))[0] == 404
        assert (await signed(client, signer, "GET", "/peer/v1/artifact/secret"))[0] == 400

    with_peer(use)


def test_what_is_not_signed_for_this_node_reaches_nothing() -> None:
    async def use(client: Client, node: Node, signer: Signer, verifier: Verifier) -> None:
        body, path = msgpack.packb(FRAME), "/peer/v1/infer"

        async def post(header: str | None, data: bytes = body, at: str = path) -> int:
            headers = {} if header is None else {HEADER: header}
            status, answered, answer = await client.send("POST", at, data=data, headers=headers)
            if status == 401:
                assert answered[CHALLENGE_HEADER] == verifier.challenge.hex()
                assert set(json.loads(answer)) == {"error"}
            return status

        good = signer.sign("POST", path, body, B)
        stranger = Signer(A, bytes(16), Keyring(SECRET[::-1]))
        stranger.learn(B, verifier.challenge.hex())
        tampered = body.replace(b"door", b"yard")
        assert await post(None) == 401
        assert await post(good[:-1]) == 401
        assert await post(good[:-1] + ("0" if good[-1] != "0" else "1")) == 401
        assert await post(stranger.sign("POST", path, body, B)) == 401
        assert await post(signer.sign("POST", path, body, A)) == 401
        assert await post(good, tampered) == 401
        assert await post(good, at=path + "?x") == 401
        assert await post(None, at="/nothing") == 401
        assert node.frames == []
        assert await post(good) == 200
        assert await post(good) == 401
        assert len(node.frames) == 1
        assert verifier.counters == {
            "missing": 2,
            "malformed": 1,
            "mac": 3,
            "target": 1,
            "body": 1,
            "replay": 1,
            "accepted": 1,
        }

    with_peer(use)


def test_bodies_are_bounded_and_plain() -> None:
    async def use(client: Client, node: Node, signer: Signer, verifier: Verifier) -> None:
        path = "/peer/v1/infer"
        large = msgpack.packb({**FRAME, "image": bytes(peer.MAX_BODY_BYTES)})
        assert (await signed(client, signer, "POST", path, large))[0] == 413
        body = msgpack.packb(FRAME)
        headers = {HEADER: signer.sign("POST", path, body, B), "Content-Encoding": "deflate"}
        status, _, _ = await client.send("POST", path, data=zlib.compress(body), headers=headers)
        assert status == 415
        assert node.frames == []
        assert (await signed(client, signer, "POST", path, body))[0] == 200

    with_peer(use)


def test_an_unsigned_body_is_not_read() -> None:
    async def use(client: Client, node: Node, signer: Signer, verifier: Verifier) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        head = "POST /peer/v1/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n"
        writer.write(head.encode())  # and not one byte of the body
        assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
        writer.close()
        await writer.wait_closed()

    with_peer(use)


def test_requests_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "MAX_UNDER_WAY", 0)

    async def use(client: Client, node: Node, signer: Signer, verifier: Verifier) -> None:
        body = msgpack.packb(FRAME)
        assert (await signed(client, signer, "POST", "/peer/v1/infer", body))[0] == 503

    with_peer(use)


BAD_FIELDS = [
    *[(name, None) for name in FRAME],
    ("agent", ""),
    ("agent", "a" * 129),
    ("frame", -1),
    ("frame", True),
    ("frame", 1.5),
    ("digest", "ab"),
    ("digest", "zz" * 32),
    ("bounced", 1),
    ("effort", "best"),
    ("budget_ms", float("nan")),
    ("budget_ms", float("inf")),
    ("budget_ms", 1e9),
    ("tier", 0),
    ("tier", 4),
    ("image", b""),
    ("image", "text"),
]


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS)
def test_a_bad_field_is_named(name: str, value: Any) -> None:
    with pytest.raises(DecodeError, match=name):
        decode_infer(msgpack.packb({**FRAME, name: value}))
    if name in FRAME:
        with pytest.raises(DecodeError, match=f"{name}: missing"):
            decode_infer(msgpack.packb({k: v for k, v in FRAME.items() if k != name}))


@given(st.binary(max_size=64), st.integers(0, 200))
def test_any_bytes_are_a_request_or_a_decode_error(noise: bytes, cut: int) -> None:
    whole = msgpack.packb(FRAME)
    candidates = [noise, whole[:cut], whole + noise, whole[:cut] + noise + whole[cut:]]
    for body in (*candidates, b"\x91" * 5000, b"\x81\xc0" * 2000, b"\xdf\xff\xff\xff\xff"):
        try:
            fields = decode_infer(body)
        except DecodeError:
            continue
        assert fields.keys() == {*FRAME, "bounced", "effort"}
