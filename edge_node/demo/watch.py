"""Watch a running fleet over its HTTP API, as any other client could.

Owns what was observed and when, in seconds since the demo's start. Never concludes anything
(`report` does) and never steers.

Invariant: everything here was said by a daemon; a node that does not answer leaves no trace.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from edge_node.demo.fleet import Fleet, Node

HASH_PERIOD_S = 0.2
TABLE_PERIOD_S = 0.5
MOST_ANSWERS = 50_000  # kept: --keep may last for days
REQUEST_LIMIT_S = 1.5
_GONE = (aiohttp.ClientError, TimeoutError, OSError, ValueError)
COUNTS = ("frames", "answered", "met", "shed", "lost", "forwarded", "hits")


@dataclass(frozen=True)
class Answer:
    """One answer of the fleet, received at `at_s`; `host` runs the camera, `node` ran the model."""

    at_s: float
    agent: str
    host: str
    node: str
    digest: str
    rung: str
    met: bool
    latency_ms: float
    people: int


@dataclass(frozen=True)
class Change:
    """Something that came to be seen at `at_s`, by `observer`, about `subject`."""

    at_s: float
    kind: str  # "member": a state; "host": "here" or "gone"
    observer: str
    subject: str
    value: str


@dataclass
class Watch:
    """Observe the daemons of `fleet` from a start time on."""

    fleet: Fleet
    tell: Callable[[str, str], None] = lambda who, what: None
    started_s: float = field(default_factory=time.monotonic)
    members: set[str] = field(default_factory=set)  # those who must agree; the story says who
    answers: deque[Answer] = field(default_factory=lambda: deque(maxlen=MOST_ANSWERS))
    changes: list[Change] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    agreement: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=MOST_ANSWERS))
    peers: dict[str, dict[str, str]] = field(default_factory=dict)
    agents: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    _seen: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def now_s(self) -> float:
        """Return the seconds since the demo's start."""
        return time.monotonic() - self.started_s

    async def run(self) -> None:
        """Observe until cancelled."""
        limit = aiohttp.ClientTimeout(total=REQUEST_LIMIT_S)
        async with aiohttp.ClientSession(timeout=limit) as session, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_hashes(session))
            for node in self.fleet.nodes.values():
                tasks.create_task(self._follow_tables(session, node))
                tasks.create_task(self._follow_answers(session, node))

    def forget(self, name: str) -> None:
        """Drop the tables of a node that is about to start anew."""
        for tables in (self.peers, self.agents, self.models):
            tables.pop(name, None)
        self._seen = {key: value for key, value in self._seen.items() if key[1] != name}

    # What can be asked of it

    def living(self) -> list[str]:
        """List the nodes whose process runs."""
        return [name for name, node in self.fleet.nodes.items() if node.alive]

    def here(self) -> dict[str, dict[str, Any]]:
        """Return each camera's row from the living node that runs it."""
        return {
            agent: row
            for name in self.living()
            for agent, row in self.agents.get(name, {}).items()
            if row["here"]
        }

    def counts(self, agents: Iterable[str]) -> dict[str, int]:
        """Sum the frame counts of these cameras where they run now."""
        rows = self.here()
        return {
            key: sum(int(rows[agent][key] or 0) for agent in agents if agent in rows)
            for key in COUNTS
        }

    def agreed(self) -> bool:
        """Whether all members gave the same state hash when last asked."""
        return bool(self.agreement) and self.agreement[-1][1]

    def digest_of(self, variant: str) -> str:
        """Return the digest of a variant, as the first node that answers lists it."""
        for name in self.living():
            for entry in self.models.get(name, {}).get("variants", []):
                if entry["variant"] == variant:
                    return str(entry["digest"])
        return ""

    def variant_on(self, name: str) -> str:
        """Return the variant that the node says it runs, or an empty text."""
        model = self.models.get(name, {})
        running = (model.get("running") or {}).get(name) or ""
        for entry in model.get("variants", []):
            if running and str(entry["digest"]).startswith(running):
                return str(entry["variant"])
        return ""

    # How it observes

    async def _get(self, session: aiohttp.ClientSession, node: Node, path: str) -> Any:
        async with session.get(f"http://127.0.0.1:{node.api_port}/edge/v1/{path}") as response:
            response.raise_for_status()
            return await response.json()

    async def _follow_hashes(self, session: aiohttp.ClientSession) -> None:
        while True:
            names = sorted(self.members)
            asked = [self._get(session, self.fleet.nodes[name], "state/hash") for name in names]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            found = {}
            for name, answer in zip(names, answers, strict=True):
                if isinstance(answer, dict):
                    found[name] = str(answer["hash"])
                elif not isinstance(answer, _GONE):
                    raise answer
            # Who was killed while it was asked is no witness.
            if names and names == sorted(self.members):
                self.hashes = found
                same = len(found) == len(names) and len(set(found.values())) == 1
                self.agreement.append((self.now_s(), same))
            await asyncio.sleep(HASH_PERIOD_S)

    async def _follow_tables(self, session: aiohttp.ClientSession, node: Node) -> None:
        while True:
            if node.alive:
                with contextlib.suppress(*_GONE):
                    peers = await self._get(session, node, "peers")
                    agents = await self._get(session, node, "agents")
                    models = await self._get(session, node, "models")
                    self.peers[node.name] = {peer["name"]: peer["state"] for peer in peers}
                    self.agents[node.name] = {row["agent"]: row for row in agents}
                    self.models[node.name] = models[0] if models else {}
                    self._note_changes(node.name)
            await asyncio.sleep(TABLE_PERIOD_S)

    def _note_changes(self, observer: str) -> None:
        for peer, state in self.peers[observer].items():
            if peer in self.fleet.nodes and peer != observer:
                # That everybody is alive at first goes without saying.
                quiet = ("member", observer, peer) not in self._seen and state == "alive"
                self._note("member", observer, peer, state, f"says {peer} is {state}", quiet)
        for agent, row in self.agents[observer].items():
            if row["here"]:
                home = row["home"]
                words = f"runs camera {agent}, whose home is {home}"
                self._note("host", observer, agent, "here", words, home == observer)
            elif ("host", observer, agent) in self._seen:
                words = f"no longer runs camera {agent}"
                self._note("host", observer, agent, "gone", words, False)

    def _note(
        self, kind: str, observer: str, subject: str, value: str, words: str, quiet: bool
    ) -> None:
        key = (kind, observer, subject)
        if self._seen.get(key) == value:
            return
        self._seen[key] = value
        self.changes.append(Change(self.now_s(), kind, observer, subject, value))
        if not quiet:
            self.tell(observer, words)

    async def _follow_answers(self, session: aiohttp.ClientSession, node: Node) -> None:
        url = f"http://127.0.0.1:{node.api_port}/edge/v1/detections"
        endless = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_LIMIT_S)
        while True:
            if node.alive:
                with contextlib.suppress(*_GONE):
                    async with session.get(url, timeout=endless) as response:
                        response.raise_for_status()
                        async for line in response.content:
                            if line.startswith(b"data:"):
                                self._take_answer(json.loads(line[5:]))
            await asyncio.sleep(HASH_PERIOD_S)

    def _take_answer(self, result: dict[str, Any]) -> None:
        self.answers.append(
            Answer(
                self.now_s(),
                result["agent"],
                result["host"],
                result["node"],
                result["digest"],
                result["rung"],
                result["met"],
                result["latency_ms"],
                len(result["boxes"]),
            )
        )
