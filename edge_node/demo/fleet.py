"""The demo's fleet: real daemons in a temporary folder, on loopback, each with its own key.

Owns the processes that it starts and their files; ends those and no others. Never reaches into
a daemon: what it wants of one goes through its configuration file, signals or command line.

Invariant: after `stop` no process of the fleet lives, however the demo came to its end; if the
demo itself is killed, the kernel ends its daemons.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edge_node.demo.footage import cache_folder

MODEL = "person-detector"
EPOCH_S = 1.0
STOP_LIMIT_S = 6.0
CLI_LIMIT_S = 20.0
_PR_SET_PDEATHSIG = 1


class FleetError(Exception):
    """Why the fleet cannot go on, in one line."""


@dataclass(frozen=True)
class Camera:
    """One camera of the demo; `generated` ones are not footage and are labelled so everywhere."""

    name: str
    source: str
    generated: bool
    tier: int
    deadline_ms: int
    fps: float


@dataclass(frozen=True)
class Plan:
    """One node of the demo: which share of a core it may use, and its own cameras."""

    name: str
    share: float
    cameras: tuple[Camera, ...]
    policy: str = "affinity"


class Node:
    """One daemon: its plan, folder, ports and process."""

    def __init__(self, plan: Plan, folder: Path, gossip_port: int, api_port: int) -> None:
        self.plan, self.folder = plan, folder
        self.gossip_port, self.api_port = gossip_port, api_port
        self.process: asyncio.subprocess.Process | None = None
        self.killed = False

    @property
    def name(self) -> str:
        """The node's name."""
        return self.plan.name

    @property
    def config(self) -> Path:
        """The node's configuration file."""
        return self.folder / "node.toml"

    @property
    def log(self) -> Path:
        """What the daemon wrote to standard output and error."""
        return self.folder / "log"

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.returncode is None

    def last_words(self) -> str:
        """Return the last line of the daemon's log that says something."""
        with contextlib.suppress(OSError):
            for line in reversed(self.log.read_text(errors="replace").splitlines()):
                if line.strip():
                    return line.strip()[:200]
        return "its log is empty"


class Fleet:
    """Start, reload, kill and stop the daemons of `plans`, the first of which is the seed."""

    def __init__(self, folder: Path, plans: Sequence[Plan]) -> None:
        self.folder = folder
        ports = free_ports(2 * len(plans))
        self.nodes: dict[str, Node] = {}
        for index, plan in enumerate(plans):
            node = Node(plan, folder / plan.name, ports[2 * index], ports[2 * index + 1])
            node.folder.mkdir()
            self.nodes[plan.name] = node
        secret = folder / "fleet.secret"
        secret.touch(0o600)
        secret.write_text(secrets.token_hex(32) + "\n")
        for node in self.nodes.values():
            self._configure(node)

    def _configure(self, node: Node) -> None:
        first = next(iter(self.nodes.values()))
        seeds = [] if node is first else [f"127.0.0.1:{first.gossip_port}"]
        text = config_text(node, seeds)
        partial = node.config.with_suffix(".partial")
        partial.write_text(text)
        partial.replace(node.config)

    async def start(self, name: str) -> None:
        """Start the daemon `name`; it comes up on its own time."""
        node = self.nodes[name]
        # A session of its own: Ctrl-C reaches the demo alone, which then ends its daemons.
        with node.log.open("ab") as log:
            node.process = await asyncio.create_subprocess_exec(
                *_edge_node("run", "-c", str(node.config)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=node.folder,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        node.killed = False

    def set_policy(self, name: str, policy: str) -> None:
        """Rewrite the node's configuration and have the daemon read it again (SIGHUP)."""
        node = self.nodes[name]
        node.plan = replace(node.plan, policy=policy)
        self._configure(node)
        assert node.process is not None
        node.process.send_signal(signal.SIGHUP)

    async def kill(self, name: str) -> None:
        """Kill the daemon without warning (SIGKILL) and see it gone."""
        node = self.nodes[name]
        assert node.process is not None
        node.killed = True
        node.process.send_signal(signal.SIGKILL)
        await node.process.wait()

    async def command(self, name: str, *arguments: str) -> str:
        """Run `edge-node ARGUMENTS -c CONFIG` as a person would; return what it printed.

        Raises FleetError with its own words if it fails.
        """
        node = self.nodes[name]
        process = await asyncio.create_subprocess_exec(
            *_edge_node(*arguments, "-c", str(node.config)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), CLI_LIMIT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        text = output.decode(errors="replace").strip()
        if process.returncode != 0:
            raise FleetError(f"edge-node {' '.join(arguments)} on {name}: {text[-200:]}")
        return text

    def check(self) -> None:
        """Raise FleetError if a daemon ended that was not killed."""
        for node in self.nodes.values():
            if node.process is not None and not node.alive and not node.killed:
                code = node.process.returncode
                raise FleetError(f"{node.name} ended (status {code}): {node.last_words()}")

    async def stop(self) -> None:
        """Ask every daemon to stop, and end whatever is left, workers of killed ones included."""
        living = [node for node in self.nodes.values() if node.alive]
        for node in living:
            assert node.process is not None
            with contextlib.suppress(ProcessLookupError):
                node.process.terminate()
        waits = [node.process.wait() for node in living if node.process is not None]
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*waits), STOP_LIMIT_S)
        finally:  # also when a second Ctrl-C ends the waiting
            for node in self.nodes.values():
                if node.process is not None:
                    # Each daemon leads a process group of its own, which its workers belong to.
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(node.process.pid, signal.SIGKILL)
        for node in self.nodes.values():
            if node.process is not None:
                await node.process.wait()


def config_text(node: Node, seeds: Sequence[str]) -> str:
    """Write a node's configuration file."""
    plan = node.plan
    lines = [
        "[node]",
        f"name = {_toml(plan.name)}",
        'state_dir = "state"',
        "[fleet]",
        f'bind = "127.0.0.1:{node.gossip_port}"',
        f"seeds = {_toml(list(seeds))}",
        'secret_file = "../fleet.secret"',
        "[api]",
        f'bind = "127.0.0.1:{node.api_port}"',
        "[placement]",
        f"policy = {_toml(plan.policy)}",
        f"epoch_s = {EPOCH_S}",
        f"files = {_toml(str(cache_folder()))}",
        "[model]",
        f"name = {_toml(MODEL)}",
        'variant = "large"',
        'adapt = "off"',
        "[[accelerator]]",
        'provider = "cpu"',
        f"share = {plan.share}",
    ]
    for camera in plan.cameras:
        lines += [
            "[[camera]]",
            f"name = {_toml(camera.name)}",
            f"source = {_toml(camera.source)}",
            f"fps = {camera.fps}",
            f"deadline_ms = {camera.deadline_ms}",
            f"criticality = {camera.tier}",
        ]
    return "\n".join(lines) + "\n"


def free_ports(count: int) -> list[int]:
    """Return loopback ports that are free for both TCP and UDP just now."""
    with contextlib.ExitStack() as held:  # all at once, so that none is handed out twice
        return [_free_port(held) for _ in range(count)]


def _free_port(held: contextlib.ExitStack) -> int:
    for _ in range(100):
        tcp = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        udp = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        tcp.bind(("127.0.0.1", 0))
        port: int = tcp.getsockname()[1]
        with contextlib.suppress(OSError):
            udp.bind(("127.0.0.1", port))
            return port
    raise FleetError("no port on loopback is free for both TCP and UDP")


def _edge_node(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "edge_node.cli", *arguments]


def _toml(value: str | bool | list[str]) -> str:
    # JSON's strings, booleans and lists of strings are TOML's too (save for DEL, never in a path).
    return json.dumps(value, ensure_ascii=False)


def _end_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
