"""A small node and real sockets for the tests of the HTTP APIs."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDictProxy

from edge_node.api.events import Feed
from edge_node.fleet.journal import JournalFull
from edge_node.fleet.trust import TrustError
from models.wire import ModelError, Shed

A, B = (bytes([n]) * 16 for n in (1, 2))
DIGEST = "ab" * 32
FRAME = {
    "agent": "door",
    "frame": 7,
    "digest": DIGEST,
    "budget_ms": 120.5,
    "tier": 1,
    "image": b"\xff\xd8jpeg",
}
ANSWER = {"boxes": [[0.1, 0.2, 0.3, 0.4, 0.9, 0]], "digest": DIGEST, "rung": "full"}


class Node:
    """A small node: plain data, two feeds, and the errors that a daemon raises."""

    def __init__(self) -> None:
        self.changes, self.detections = Feed(), Feed()
        self.reasons: list[str] = []
        self.values: dict[str, Any] = {}
        self.answer: dict[str, Any] = ANSWER
        self.frames: list[tuple[bytes, dict[str, Any]]] = []
        self.epoch = 0
        self.tier: int | None = None
        self.draining = False
        self.revoked: list[str] = []
        self.model = {"name": "person-detector", "desired": {"variant": "large"}}

    def node(self) -> dict[str, Any]:
        return {"id": A, "name": "porch", "boot": bytes(16), "uptime_s": 1.5, "degraded": []}

    def peers(self) -> list[dict[str, Any]]:
        return [{"id": A, "state": "self", "rtt_ms": None, "load": {"queue": float("nan")}}]

    def agents(self) -> list[dict[str, Any]]:
        return [{"agent": "door", "here": True}]

    def tiers(self) -> list[dict[str, Any]]:
        return [{"agent": "door", "tier": 1}]

    def cache(self) -> list[dict[str, Any]]:
        return [{"agent": "door", "mode": "strict", "holders": [{"id": B, "name": "shed"}]}]

    def affinity(self) -> dict[str, Any]:
        return {"stage": "prior", "rows": 0, "bias": {}}

    def models(self) -> list[dict[str, Any]]:
        return [self.model]

    def keys(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "previous": None}

    async def set_tier(self, agent: str, tier: int | None) -> dict[str, Any]:
        if agent != "door":
            raise KeyError(f"no agent {agent}")
        self.tier = tier
        return {"agent": agent, "tier": tier or 2}

    async def drain(self, on: bool) -> dict[str, Any]:
        self.draining = on
        return {"draining": on, "hot": False, "agents": []}

    async def rotate_keys(self, epoch: int, force: bool) -> dict[str, Any]:
        if epoch != self.epoch + 1 and not force:
            raise TrustError("does not follow")
        self.epoch = epoch
        return self.keys()

    async def revoke(self, member: str, revoked: bool) -> dict[str, Any]:
        if member == "nobody":
            raise KeyError("no node nobody")
        (self.revoked.append if revoked else self.revoked.remove)(member)
        return {"id": B, "name": member, "revoked": revoked}

    def state(self, prefix: str) -> dict[str, Any]:
        keys = {"host/door": A, "release/person-detector": {"digest": b"\xab"}}
        fleet = {key: value for key, value in keys.items() if key.startswith(prefix)}
        return {"hash": B, "owner": {}, "fleet": fleet, "sets": {"cache/door/ab": [A, B]}}

    def state_hash(self) -> dict[str, Any]:
        return {"hash": B, "origins": 3, "complete": True}

    def latest(self) -> dict[str, Any]:
        return {"door": {"frame": 7, "boxes": []}}

    def stats(self) -> dict[str, Any]:
        return {"frames": 3, "gossip": {"seal": 1}}

    def metrics_text(self) -> str:
        return "# HELP a A.\n# TYPE a gauge\na 1\n"

    def ready(self) -> tuple[bool, list[str]]:
        return not self.reasons, self.reasons

    async def set_model(self, name: str, variant: str) -> dict[str, Any]:
        if name != "person-detector":
            raise KeyError(f"no model {name}")
        if variant == "corrupt":
            raise ModelError("corrupt.onnx: not a model")
        if variant == "diskless":
            raise JournalFull("/state: free space")
        if variant == "bug":
            raise ZeroDivisionError("the secret of the house")
        self.epoch = 0
        self.revoked: list[str] = []
        self.model = {"name": name, "desired": {"variant": variant}}
        return self.model

    async def peer_infer(self, sender: bytes, request: dict[str, Any]) -> dict[str, Any]:
        self.frames.append((sender, request))
        if request["tier"] == 3:
            raise Shed("deadline")
        return self.answer

    async def peer_artifact(self, digest: str) -> bytes | None:
        return b"artifact" if digest == DIGEST else None

    async def value(self, key: str) -> Any:
        return self.values.get(key)

    async def set_value(self, key: str, value: Any) -> None:
        self.values[key] = value

    async def peer_cache(self, agent: str, digest: str) -> bytes | None:
        return b"\x00state" if agent == "door" else None

    def subscribe_changes(self) -> AsyncIterator[dict[str, Any]]:
        return self.changes.subscribe()

    def subscribe_detections(self) -> AsyncIterator[dict[str, Any]]:
        return self.detections.subscribe()


class Client:
    """Requests to one app; answers are (status, headers, bytes)."""

    def __init__(self, session: aiohttp.ClientSession, port: int, runner: web.AppRunner) -> None:
        self.session, self.port, self.runner = session, port, runner
        self.url = f"http://127.0.0.1:{port}"

    async def send(
        self, method: str, path: str, **options: Any
    ) -> tuple[int, CIMultiDictProxy[str], bytes]:
        async with self.session.request(method, self.url + path, **options) as response:
            return response.status, response.headers, await response.read()

    async def get(self, path: str, **options: Any) -> tuple[int, Any]:
        status, headers, body = await self.send("GET", path, **options)
        assert headers["Content-Type"].startswith("application/json")
        return status, json.loads(body)


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[Client]:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as session:
        try:
            yield Client(session, runner.addresses[0][1], runner)
        finally:
            await runner.cleanup()
