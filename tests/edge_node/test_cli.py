"""The command line as processes, against a small HTTP server that speaks the API's shapes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from edge_node import __version__
from edge_node.config import load

ROOT = Path(__file__).parents[2]
TOKEN = "let-me-in"
NODE_A, NODE_B = "aa" * 16, "bb" * 16
PEERS = [
    {
        "id": NODE_A,
        "name": "porch",
        "address": "10.0.0.1:7946",
        "state": "self",
        "incarnation": 1,
        "rtt_ms": None,
        "since_s": 7300.0,
        "load": {"queue": 2, "waits_ms": [0.0, 5.0, 12.34]},
    },
    {
        "id": NODE_B,
        "name": "ev\x1b[2Jil",
        "address": "10.0.0.2:7946",
        "state": "suspect",
        "draining": True,
        "hot": True,
        "incarnation": 3,
        "rtt_ms": 1.25,
        "since_s": 4.0,
        "load": {"queue": None, "waits_ms": {"0": "what a peer made up"}},
    },
]
AGENTS = [
    {
        "agent": "gate",
        "home": NODE_A,
        "host": "porch",
        "here": True,
        "source": "gate.mp4",
        "tier": 1,
        "fps": 9.96,
        "deadline_ms": 200,
        "state": "running",
        "reason": "",
        "variant": "small",
        "digest": "cd" * 32,
        "frames": 200,
        "answered": 190,
        "met": 150,
        "missed": 40,
        "shed": 10,
        "lost": 0,
        "forwarded": 7,
        "hits": 33,
        "p50_ms": 20.0,
        "p95_ms": None,
        "boxes": 2,
        "last_ms": 5,
    }
]
TIERS = [
    {
        "agent": "gate",
        "tier": 1,
        "declared": 2,
        "safety": False,
        "override": 1,
        "reason": "set for the fleet (else 2: declared)",
        "since_s": 300.0,
        "history": [{"at_ms": 1_700_000_000_000, "tier": 3, "reason": "nothing is seen"}],
        "host": "porch",
        "deadline_ms": 200,
        "met_ratio": 0.75,
    }
]
MODEL = {
    "name": "person-detector",
    "desired": {"variant": "small", "version": "1", "digest": "ab" * 32},
    "running": {"porch": "ab" * 8, "garden": "cd" * 32, "shed": None},
    "variants": [
        {"variant": "small", "version": "1", "digest": "ab" * 32, "size_bytes": 654_000},
        {"variant": "large", "version": "1", "digest": "cd" * 32, "size_bytes": 1_400_000},
    ],
    "error": "garden: digest differs",
}
STATE = {
    "hash": "12" * 16,
    "owner": {NODE_A: {"agent/gate": {"tier": 2}}},
    "fleet": {"host/gate": NODE_A},
    "sets": {"cache/gate/ab": [NODE_A, NODE_B]},
}
RECORD = {
    "agent": "gate",
    "digest": "ab" * 32,
    "canvas": [384, 640],
    "mode": "calibrated",
    "reason": "agrees to 0.991",
    "gate": 0.02,
    "level": 1.0,
    "executor": "native",
    "refusal": "",
    "target": 0.98,
    "audits": 12,
    "agreement": 0.9912,
    "breaches": 1,
    "rungs": {"full": 100, "sparse": 300, "gate": 500, "same": 100},
    "work_saved": 0.875,
    "size_bytes": 23_400_000,
    "age_s": 3.4,
    "accelerator": "cpu",
    "variant": "small",
    "here": True,
    "hit_ratio": 0.6,
    "holders": [{"id": NODE_B, "name": "ev\x1b[2Jil"}],
}
CACHE = [
    RECORD,
    RECORD
    | {
        "agent": "yard",
        "mode": "off",
        "reason": "off: reuse is no faster than full passes here",
        "level": None,
        "executor": "",
        "refusal": "62 % of its work comes after GlobalAveragePool",
        "audits": 0,
        "agreement": None,
        "rungs": {"full": 0, "sparse": 0, "gate": 0, "same": 0},
        "work_saved": None,
        "hit_ratio": None,
        "age_s": None,
        "variant": None,
        "here": False,
        "holders": [],
    },
]
KEYS = {
    "epoch": 4,
    "age_s": 7300.0,
    "previous": 3,
    "previous_left_s": 180_000.0,
    "durable": True,
    "current": ["porch", "ev\x1b[2Jil"],
    "behind": ["shed"],
}
CHANGE = {"kind": "fleet", "key": "host/gate", "origin": NODE_B, "value": NODE_B}


class Api:
    """Serve the shapes of the API on loopback, from a thread of its own."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.token = ""
        self.asked: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []
        self.keep_watching = False
        self.loop = asyncio.new_event_loop()
        self.ended = asyncio.Event()
        self.started = threading.Event()
        self.thread = threading.Thread(target=lambda: self.loop.run_until_complete(self._serve()))
        self.thread.start()
        assert self.started.wait(10)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.ended.set)
        self.thread.join()
        self.loop.close()

    async def _serve(self) -> None:
        app = web.Application(middlewares=[self._check])
        for path, answer in {
            "/edge/v1/peers": PEERS,
            "/edge/v1/agents": AGENTS,
            "/edge/v1/tiers": TIERS,
            "/edge/v1/cache": CACHE,
            "/edge/v1/models": [MODEL],
            "/edge/v1/keys": KEYS,
            "/edge/v1/state/hash": {"hash": "12" * 16, "origins": 2, "complete": True},
        }.items():
            app.router.add_get(path, self._always(answer))
        app.router.add_get("/edge/v1/state", self._state)
        app.router.add_get("/edge/v1/state/watch", self._watch)
        app.router.add_put("/edge/v1/models/{name}", self._set_model)
        app.router.add_put("/edge/v1/keys", self._rotate)
        app.router.add_put("/edge/v1/tiers/{agent}", self._always(TIERS[0]))
        app.router.add_delete("/edge/v1/tiers/{agent}", self._always(TIERS[0]))
        app.router.add_put("/edge/v1/drain", self._drain)
        revoked = {"id": NODE_B, "name": "shed", "revoked": True}
        app.router.add_put("/edge/v1/revoked/{member}", self._always(revoked))
        app.router.add_delete("/edge/v1/revoked/{member}", self._always(revoked))
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.SockSite(runner, self.listener).start()
        self.started.set()
        await self.ended.wait()
        await runner.cleanup()

    @web.middleware
    async def _check(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.asked.append((request.method, request.path_qs))
        if request.can_read_body:
            self.bodies.append(await request.read())
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"error": "the API wants a token"}, status=401)
        response: web.StreamResponse = await handler(request)
        return response

    def _always(self, answer: Any) -> Any:
        async def handler(request: web.Request) -> web.Response:
            return web.json_response(answer)

        return handler

    async def _state(self, request: web.Request) -> web.Response:
        found = request.query["prefix"] != "nothing/ here"
        empty = {"hash": "12" * 16, "owner": {}, "fleet": {}, "sets": {}}
        return web.json_response(STATE if found else empty)

    async def _set_model(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body != {"variant": "small"}:
            return web.json_response({"error": "no such variant; use small or large"}, status=404)
        return web.json_response(MODEL)

    async def _drain(self, request: web.Request) -> web.Response:
        on = (await request.json())["on"]
        return web.json_response({"draining": on, "hot": False, "agents": ["gate", "b"]})

    async def _rotate(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body != {"epoch": 5, "force": True}:
            return web.json_response({"error": "shed would be locked out"}, status=409)
        return web.json_response({**KEYS, "epoch": 5, "age_s": 0.0, "previous_left_s": None})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": hello\n\n")
        for _ in range(2):
            await response.write(f"data: {json.dumps(CHANGE)}\n\n".encode())
        if self.keep_watching:
            await self.ended.wait()
        return response


@pytest.fixture
def api() -> Iterator[Api]:
    server = Api()
    yield server
    server.close()


def environment(**extra: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("EDGE_NODE")}
    return {**clean, "PYTHONUNBUFFERED": "1", **extra}


def edge_node(*arguments: str, cwd: Path | None = None, **extra: str) -> tuple[int, str, str]:
    """Run the command; returns exit status, standard output and standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "edge_node.cli", *arguments],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=str(ROOT), **extra),
        cwd=cwd,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def table(text: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]


def test_help_names_every_verb_and_imports_nothing_heavy() -> None:
    done = subprocess.run(
        # -S: an editable installation's import hook imports things of its own.
        [sys.executable, "-S", "-X", "importtime", "-m", "edge_node.cli", "--help"],
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=True,
    )
    verbs = (
        "run demo init peers state models agents tiers drain cache keys members doctor completion"
    )
    for verb in verbs.split():
        assert re.search(rf"^    {verb}\b", done.stdout, re.MULTILINE), verb
    imported = {line.rsplit("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "edge_node.cli.main" in imported
    heavy = (
        "numpy onnxruntime av aiohttp cryptography asyncio uvloop socket dataclasses gossip crdt"
    )
    assert imported.isdisjoint(heavy.split())


def test_the_demo_reads_its_own_arguments() -> None:
    status, out, _ = edge_node("demo", "--keep", "--help")
    assert status == 0
    assert out.startswith("usage: edge-node demo ")
    assert "positional arguments" not in out
    assert edge_node("demo", "--no-such-option")[0] == 2


def test_version() -> None:
    assert edge_node("--version") == (0, f"edge-node {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "required"),
        (["peerz"], "invalid choice"),
        (["peers", "--jsn"], "unrecognized arguments: --jsn"),
        (["state"], "required"),
        (["models", "set", "x"], "required"),
        (["peers", "--api", "nowhere"], 'the API\'s address: "nowhere" is not HOST:PORT; write'),
        (["peers", "-c", "no.toml"], "no.toml: there is no such file; make one with: edge-node"),
        (["run", "-c", "no.toml"], "no.toml: there is no such file; make one with: edge-node"),
        (["init", "x", "--bind", "7946"], '--bind: "7946" is not HOST:PORT; write'),
        (["init", "x", "--seed", "a:1"], "copy fleet.secret from a node of it"),
        (
            ["init", "x", "--secret-file", "no"],
            "--secret-file: no: the fleet's secret: No such file or directory; copy",
        ),
    ],
)
def test_wrong_usage_is_status_2(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    status, out, err = edge_node(*arguments, cwd=tmp_path)
    assert (status, out) == (2, "")
    assert complaint in err
    assert list(tmp_path.iterdir()) == []


def test_run_refuses_a_wrong_configuration_by_line(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text("[fleet]\nbnd = 1\n")
    status, _, err = edge_node("run", cwd=tmp_path)
    assert status == 2
    assert err == "node.toml:2: [fleet] bnd: unknown field; did you mean bind?\n"


def test_nobody_there_is_status_3_and_says_where_was_looked() -> None:
    address = free_address()
    for arguments in (["peers"], ["state", "watch"], ["models", "set", "a", "b", "--json"]):
        status, out, err = edge_node(*arguments, EDGE_NODE_API=address)
        assert (status, out) == (3, "")
        assert err.startswith(f"edge-node: no daemon answers at {address} (connection refused); ")
        assert "edge-node run -c FILE" in err


def test_another_program_is_not_taken_for_a_daemon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(4096)
            connection.sendall(b"SSH-2.0-other\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        status, _, err = edge_node("peers", "--api", f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert status == 1
    assert "is not edge-node's API" in err


def test_peers(api: Api) -> None:
    status, out, _ = edge_node("peers", "--api", api.address)
    assert status == 0
    header, first, second = table(out)
    assert header == ["NODE", "ID", "ADDRESS", "STATE", "RTT ms", "SINCE", "QUEUE", "WAIT ms"]
    assert first == ["porch", "aaaaaaaa", "10.0.0.1:7946", "self", "-", "2 h", "2", "12.3"]
    assert second == [
        "ev?[2Jil",
        "bbbbbbbb",
        "10.0.0.2:7946",
        "suspect, draining, hot",
        "1.2",
        "4 s",
        "-",
        "-",
    ]
    assert "\x1b" not in out
    lines = out.splitlines()
    assert lines[0].index("STATE") == lines[1].index("self") == lines[2].index("suspect,")


def test_keys_are_shown_and_rotated(api: Api) -> None:
    status, out, _ = edge_node("keys", "--api", api.address)
    assert status == 0
    rows = dict(table(out)[1:])
    assert rows["key epoch"] == "4"
    assert rows["in use for"] == "2 h"
    assert rows["previous"] == "3, taken for 2 d more"
    assert rows["held by"] == "porch, ev?[2Jil"
    assert rows["not yet by"] == "shed"
    assert json.loads(edge_node("keys", "--json", "--api", api.address)[1]) == KEYS
    status, out, err = edge_node("keys", "rotate", "--api", api.address)
    assert (status, out) == (1, "")
    assert err == "edge-node: shed would be locked out\n"
    status, out, _ = edge_node("keys", "rotate", "--force", "--api", api.address)
    assert status == 0
    assert dict(table(out)[1:])["key epoch"] == "5"


def test_members_are_revoked_and_restored(api: Api) -> None:
    status, out, _ = edge_node("members", "revoke", "garden shed/2", "--api", api.address)
    assert (status, out[:26]) == (0, "shed (bbbbbbbb): revoked. ")
    assert "edge-node keys rotate" in out
    assert edge_node("members", "restore", "bbbb", "--api", api.address)[0] == 0
    assert api.asked == [
        ("PUT", "/edge/v1/revoked/garden%20shed%2F2"),
        ("DELETE", "/edge/v1/revoked/bbbb"),
    ]
    assert edge_node("members", "revoke", "--api", api.address)[0] == 2


def test_agents_and_tiers(api: Api) -> None:
    status, out, _ = edge_node("agents", "--api", api.address)
    assert status == 0
    row = dict(zip(*table(out), strict=True))
    assert row["AGENT"] == "gate"
    assert row["MET"] == "75 %"
    assert (row["HOST"], row["TIER"], row["P50 ms"], row["P95 ms"]) == ("porch", "1", "20.0", "-")
    status, out, _ = edge_node("tiers", "--api", api.address)
    assert status == 0
    reason = "set for the fleet (else 2: declared)"
    assert table(out) == [
        ["AGENT", "TIER", "DECLARED", "SINCE", "MET", "REASON"],
        ["gate", "1", "2", "5 min", "75 %", reason],
    ]
    status, out, _ = edge_node("tiers", "gate", "--api", api.address, TZ="UTC")
    assert status == 0
    assert table(out)[1] == ["gate", "1", "2", "5 min", "75 %", reason]
    assert table(out)[-1] == ["2023-11-14 22:13:20", "3", "nothing is seen"]


def test_a_tier_is_set_and_cleared(api: Api) -> None:
    for words, asked in (
        (["set", "gate/2", "3"], ("PUT", "/edge/v1/tiers/gate%2F2")),
        (["clear", "gate"], ("DELETE", "/edge/v1/tiers/gate")),
    ):
        api.asked.clear()
        status, out, _ = edge_node("tiers", *words, "--api", api.address)
        assert (status, table(out)[1][0]) == (0, "gate")
        assert api.asked == [asked]
    assert api.bodies[0] == b'{"tier": 3}'


@pytest.mark.parametrize(
    ("words", "status", "error"),
    [
        (["gaet"], 1, "no agent gaet; there is: gate"),
        (["set"], 2, "write: edge-node tiers set AGENT 1|2|3"),
        (["set", "gate"], 2, "write: edge-node tiers set AGENT 1|2|3"),
        (["set", "gate", "0"], 2, '"0" is not a tier; use 1, 2 or 3'),
        (["set", "gate", "high"], 2, '"high" is not a tier; use 1, 2 or 3'),
        (["set", "gate", "1", "2"], 2, "write: edge-node tiers set AGENT 1|2|3"),
        (["clear"], 2, "write: edge-node tiers clear AGENT"),
        (["gate", "1"], 2, "one AGENT at a time; or: tiers set AGENT 1|2|3"),
    ],
)
def test_wrong_words_after_tiers_are_answered_clearly(
    api: Api, words: list[str], status: int, error: str
) -> None:
    done = edge_node("tiers", *words, "--api", api.address)
    assert done == (status, "", f"edge-node: {error}\n")


@pytest.mark.parametrize("frame", ["", "/5", "gate/", "gate/5/6"])
def test_what_is_no_frame_is_not_asked_for(api: Api, frame: str) -> None:
    status, out, err = edge_node("why", frame, "--api", api.address)
    assert (status, out) == (2, "")
    assert "write AGENT or AGENT/NUMBER" in err
    assert api.asked == []


def test_a_node_is_drained_and_taken_back(api: Api) -> None:
    status, out, _ = edge_node("drain", "--api", api.address)
    assert (status, out.splitlines()[0][-19:]) == (0, "still runs: gate, b")
    assert "edge-node drain --undo" in out
    status, out, _ = edge_node("drain", "--undo", "--api", api.address)
    assert (status, "drains no longer" in out) == (0, True)
    assert api.asked == [("PUT", "/edge/v1/drain")] * 2
    assert api.bodies == [b'{"on": true}', b'{"on": false}']


def test_cache_shows_a_row_for_each_camera(api: Api) -> None:
    status, out, _ = edge_node("cache", "--api", api.address)
    assert status == 0
    header, gate, yard = table(out)
    assert dict(zip(header, gate, strict=True)) == {
        "AGENT": "gate",
        "MODEL": "small",
        "MODE": "calibrated",
        "HIT %": "60.0",
        "SPARSE %": "30.0",
        "SAVED %": "87.5",
        "AGREES": "0.991 / 0.980",
        "SETTING": "gate 2 %, level 1",
        "MB": "23.4",
        "AGE": "3 s",
        "WHY": "agrees to 0.991",
    }
    unknown = ["-"] * 3
    assert yard[:6] == ["yard", "abababababab", "off", *unknown]
    assert yard[6:] == ["- / 0.980", "-", "23.4", "-", CACHE[1]["reason"]]
    assert json.loads(edge_node("cache", "--json", "--api", api.address)[1]) == CACHE


def test_cache_tells_all_about_one_camera(api: Api) -> None:
    status, out, _ = edge_node("cache", "gate", "--api", api.address)
    assert status == 0
    assert "\x1b" not in out
    rows = dict(table(out)[1:])
    assert rows["model"] == "small, digest abababababab, at 640 x 384 pixels"
    assert rows["sparse passes"] == "possible, native executor"
    assert (rows["frames"], rows["gate"], rows["breaches"]) == ("1000", "500 (50 %)", "1")
    assert (rows["work saved"], rows["last full pass"]) == ("88 %", "3 s ago")
    assert rows["held elsewhere by"] == "ev?[2Jil"
    rows = dict(table(edge_node("cache", "yard", "--api", api.address)[1])[1:])
    assert rows["sparse passes"] == f"no: {CACHE[1]['refusal']}"
    assert rows["runs here"].startswith("no: ")
    assert (rows["full"], rows["work saved"], rows["held elsewhere by"]) == ("0", "-", "-")
    status, out, _ = edge_node("cache", "yard", "--json", "--api", api.address)
    assert (status, json.loads(out)) == (0, CACHE[1:])


def test_cache_says_why_there_is_nothing_of_a_camera(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(agent: str) -> str:
        status, out, err = edge_node("cache", agent, "--json", "--api", api.address)
        assert (status, out) == (1, "")
        return err

    assert refusal("gaet") == "edge-node: no agent gaet; there is: gate\n"
    monkeypatch.setitem(RECORD, "agent", "other")
    assert refusal("gate").startswith("edge-node: agent gate has had no frame here yet; ")
    monkeypatch.setitem(AGENTS[0], "here", False)
    assert refusal("gate").startswith("edge-node: agent gate runs on porch; ask that node")
    assert edge_node("cache", "a", "b", "--api", api.address)[0] == 2


def test_models(api: Api) -> None:
    status, out, _ = edge_node("models", "ls", "--api", api.address)
    assert status == 0
    lines = table(out)
    assert lines[1] == ["person-detector", "small", "1", "abababababab", "654.0", "*", "porch"]
    assert lines[2] == ["person-detector", "large", "1", "cdcdcdcdcdcd", "1400.0", "-", "garden"]
    assert lines[3] == ["person-detector: garden: digest differs"]
    status, out, _ = edge_node("models", "set", "person detector", "small", "--api", api.address)
    assert status == 0
    assert "small, version 1, digest abababababab" in out
    assert api.asked[-1] == ("PUT", "/edge/v1/models/person%20detector")
    status, out, err = edge_node("models", "set", "x", "tiny", "--api", api.address)
    assert (status, out, err) == (1, "", "edge-node: no such variant; use small or large\n")


def test_state(api: Api) -> None:
    status, out, _ = edge_node("state", "get", "--api", api.address)
    assert status == 0
    assert table(out)[1:] == [
        ["owner", "agent/gate", "aaaaaaaa", '{"tier": 2}'],
        ["fleet", "host/gate", "-", f'"{NODE_A}"'],
        ["set", "cache/gate/ab", "-", f'"{NODE_A}"'],
        ["set", "cache/gate/ab", "-", f'"{NODE_B}"'],
    ]
    status, out, err = edge_node("state", "get", "nothing/ here", "--api", api.address)
    assert (status, out) == (1, "")
    assert 'no key begins with "nothing/ here"' in err
    status, out, _ = edge_node("state", "hash", "--api", api.address)
    assert (status, out) == (0, f"{'12' * 16}  2 origins  complete\n")


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["peers"], PEERS),
        (["agents"], AGENTS),
        (["tiers"], TIERS),
        (["models", "ls"], [MODEL]),
        (["models", "set", "person-detector", "small"], MODEL),
        (["state", "get", "agent/"], STATE),
        (["state", "hash"], {"hash": "12" * 16, "origins": 2, "complete": True}),
    ],
)
def test_json_is_what_the_api_said(api: Api, arguments: list[str], answer: Any) -> None:
    status, out, err = edge_node(*arguments, "--json", EDGE_NODE_API=api.address)
    assert (status, err) == (0, "")
    assert json.loads(out) == answer


def test_watch_prints_each_change_until_the_daemon_ends(api: Api) -> None:
    status, out, err = edge_node("state", "watch", "--api", api.address)
    assert out == f'fleet  host/gate  bbbbbbbb  "{NODE_B}"\n' * 2
    assert (status, "closed the stream" in err) == (3, True)
    _, out, _ = edge_node("state", "watch", "--json", "--api", api.address)
    assert [json.loads(line) for line in out.splitlines()] == [CHANGE, CHANGE]


def test_watch_ends_well_when_interrupted(api: Api) -> None:
    api.keep_watching = True
    command = [sys.executable, "-m", "edge_node.cli", "state", "watch", "--api", api.address]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(PYTHONPATH=str(ROOT)),
        text=True,
    ) as watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        assert "host/gate" in watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 0
        assert watching.stderr.read() == ""


def test_the_token_comes_from_the_environment_or_the_configuration(
    api: Api, tmp_path: Path
) -> None:
    api.token = TOKEN
    status, _, err = edge_node("peers", "--api", api.address)
    assert status == 1
    assert "the API wants a token; give the API's token with -c FILE or EDGE_NODE_API_TOKEN" in err
    status, _, _ = edge_node("peers", "--api", api.address, EDGE_NODE_API_TOKEN=TOKEN)
    assert status == 0
    (tmp_path / "fleet.secret").write_text("00" * 32)
    (tmp_path / "api.token").write_text(TOKEN + "\n")
    port = api.address.rpartition(":")[2]
    (tmp_path / "node.toml").write_text(
        f'[api]\nbind = "0.0.0.0:{port}"\ntoken_file = "api.token"\n'
    )
    status, _, err = edge_node("peers", "-c", "node.toml", cwd=tmp_path)
    assert (status, err) == (0, "")


def test_a_reader_that_leaves_is_no_error(api: Api) -> None:
    command = f"{sys.executable} -m edge_node.cli state get --json --api {api.address}"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | true"],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=str(ROOT)),
        check=False,
    )
    assert done.stderr == ""


def test_init_makes_a_complete_folder(tmp_path: Path) -> None:
    status, out, err = edge_node("init", "one", "--name", "porch", cwd=tmp_path)
    assert (status, err) == (0, "")
    folder = tmp_path / "one"
    config = load(folder / "node.toml", {})
    assert config.node.name == "porch"
    secret = folder / "fleet.secret"
    assert re.fullmatch(r"[0-9a-f]{64}\n", secret.read_text())
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(config.node.state_dir.stat().st_mode) == 0o700
    assert any(config.node.state_dir.iterdir())
    assert "edge-node run -c one/node.toml" in out
    assert "--secret-file fleet.secret" in out


def test_init_never_overwrites(tmp_path: Path) -> None:
    edge_node("init", "one", cwd=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    status, out, err = edge_node("init", "one", "--name", "other", cwd=tmp_path)
    assert (status, out) == (1, "")
    assert "one/node.toml is there already, and nothing was changed" in err
    (tmp_path / "other.secret").write_bytes(bytes(range(32)))
    (tmp_path / "other.secret").chmod(0o600)
    (tmp_path / "one" / "node.toml").unlink()
    status, _, err = edge_node("init", "one", "--secret-file", "other.secret", cwd=tmp_path)
    assert status == 1
    assert "with another secret than other.secret" in err
    status, out, _ = edge_node("init", "one", cwd=tmp_path)
    assert status == 0
    assert "Kept one/fleet.secret" in out
    assert all(
        path.read_bytes() == content for path, content in before.items() if path.suffix != ".toml"
    )


def test_init_joins_with_a_copied_secret(tmp_path: Path) -> None:
    edge_node("init", "one", cwd=tmp_path)
    arguments = ["--seed", "10.0.0.1:7946", "--seed", "[fd00::1]:7946", "--bind", "127.0.0.1:7000"]
    arguments += ["--api", "0.0.0.0:8000", "--secret-file", "one/fleet.secret", "--json"]
    status, out, err = edge_node("init", "two", *arguments, cwd=tmp_path)
    assert (status, err) == (0, "")
    made = json.loads(out)
    assert re.fullmatch(r"[0-9a-f]{32}", made["node_id"])
    two = tmp_path / "two"
    assert (two / "fleet.secret").read_text() == (tmp_path / "one" / "fleet.secret").read_text()
    raw = tomllib.loads((two / "node.toml").read_text())
    assert raw["fleet"] == {
        "bind": "127.0.0.1:7000",
        "seeds": ["10.0.0.1:7946", "[fd00::1]:7946"],
    }
    token_file = load(two / "node.toml", {}).api.token_file
    assert token_file is not None
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600


def test_init_refuses_a_file_that_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("hello")
    status, out, err = edge_node("init", "two", "--secret-file", "bad", cwd=tmp_path)
    assert (status != 0, out) == (True, "")
    assert "secret" in err
    assert not (tmp_path / "two" / "node.toml").exists()


COMPLETE = """
source <({python} -m edge_node.cli completion bash)
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_edge_node; echo "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("edge-node do", "doctor"),
        ("edge-node state ''", "get watch hash cat set rm -h --help"),
        ("edge-node state get --js", "--json"),
        ("edge-node models s", "set"),
        ("edge-node completion z", "zsh"),
        ("edge-node tiers c", "clear"),
        ("edge-node drain --u", "--undo"),
    ],
)
def test_bash_completes_from_the_parser(words: str, offered: str) -> None:
    script = COMPLETE.format(python=sys.executable, words=words)
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=str(ROOT)),
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == (offered, "")


def test_zsh_and_fish_get_scripts_that_name_the_verbs() -> None:
    for shell, sign in (("zsh", "#compdef edge-node"), ("fish", "complete -c edge-node")):
        status, out, _ = edge_node("completion", shell)
        assert status == 0
        assert out.startswith(sign)
        assert all(verb in out for verb in ("doctor", "peers", "watch", "--secret-file"[2:]))
