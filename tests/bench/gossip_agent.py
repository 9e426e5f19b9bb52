"""This project's node behind the benchmark's lines: `python -m tests.bench.gossip_agent NAME IP
PORT SEED|- [--model FILE]`.

Owns the wiring of a gossip-only process, in the daemon's order: key, journal, store, core, socket;
signatures, sealing and durability are those of the daemon. Never measures anything. The state is
kept in GOSSIP_STATE (a folder), or in one that is removed at the end; GOSSIP_KEY holds the fleet's
secret in base64. Beyond the lines of `tests.bench.peers` it reads

    HOLD s        do nothing at all for s seconds, as a handler that blocks the loop would
    BUSY 0|1      compute in a thread of the same interpreter (with --model: that model) or stop
    STATS         write the counters
"""

import asyncio
import base64
import contextlib
import json
import os
import random
import secrets
import sys
import time
from pathlib import Path

import uvloop

from crdt import HybridClock, Store
from edge_node import clock
from edge_node.fleet.identity import load_or_create_identity
from edge_node.fleet.journal import Journal, JournalError
from edge_node.fleet.writes import Writes
from edge_node.memory import release_unused
from edge_node.metrics import Counters
from gossip import (
    Event,
    GossipConfig,
    GossipNode,
    MemberDown,
    MemberLeft,
    MemberUp,
    StateChanged,
    verify,
)
from gossip.udp import UdpHost

KEY = "value"
GOODBYE_S = 0.3
SETTLED_S = 8.0  # as the daemon, which waits longer


def say(*words: object) -> None:
    """Write one line, stamped."""
    print(*words, time.time_ns(), flush=True)


class Agent:
    """One node and its way from lines to the core and back."""

    def __init__(self, address: tuple[str, int], folder: Path, secret: bytes) -> None:
        """Open the journal in `folder` and build the node; nothing is sent yet."""
        identity = load_or_create_identity(folder)
        self.journal = Journal.open(folder, origin=identity.node_id)
        start = self.journal.start
        self.store = Store(
            identity.node_id,
            epoch=start.epoch,
            sign=identity.sign,
            verify=verify,
            public_key=identity.public_key,
            clock=HybridClock(start.high_water),
        )
        for raw in start.batches:
            self.store.restore(raw, clock.now())
        boot = secrets.token_bytes(16)
        self.node = GossipNode(
            identity,
            secret,
            self.store,
            GossipConfig(),
            random.Random(boot),
            boot=boot,
            incarnation=start.incarnation,
            address=address,
            now=clock.now(),
        )
        self.udp = UdpHost()
        self.writes = Writes(self.store, self.journal, self.node, self.udp.kick, Counters())
        self._address, self._name = address, identity.node_id.hex()
        self._incarnation = start.incarnation
        self._busy: Load | None = None

    async def run(self, seed: str, model: str) -> None:
        """Serve until the input ends, then say goodbye."""
        say("I", self._name)
        await self.udp.start(
            self.node, self._address, self.writes.persist, self._on_event, clock.now
        )
        if seed != "-":
            host, _, port = seed.rpartition(":")
            self.node.join((host, int(port)), clock.now())
            self.udp.kick()
        acquainting = asyncio.create_task(self.writes.acquaint(seed != "-"))
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        asyncio.get_running_loop().call_later(SETTLED_S, release_unused)
        say("R")
        while words := (await reader.readline()).decode().split():
            self._command(words, model)
            await self._keep_incarnation()
        acquainting.cancel()
        self.node.leave(clock.now())
        self.udp.kick()
        await asyncio.sleep(GOODBYE_S)
        await self.udp.close()
        await self.journal.close()

    def _command(self, words: list[str], model: str) -> None:
        match words:
            case ["SET", value, *padding]:
                say("S", value)
                self.store.set_owner(KEY, [value, *padding])
                self.writes.commit()
            case ["N"]:
                living = ("self", "alive", "suspect")
                say("C", sum(one.state in living for one in self.node.members()))
            case ["STATS"]:
                say("STATS", json.dumps(self.node.counters, separators=(",", ":")))
            case ["HOLD", hold_s]:
                time.sleep(float(hold_s))
            case ["BUSY", "1"] if self._busy is None:
                self._busy = Load(model)
            case ["BUSY", "0"] if self._busy is not None:
                self._busy.stop()
                self._busy = None

    def _on_event(self, event: Event) -> None:
        match event:
            case StateChanged(changes=changes):
                for change in changes:
                    value = self.store.owner(change.origin, KEY)
                    if change.key == KEY and isinstance(value, list):
                        say("U", change.origin.hex(), value[0])
            case MemberUp(node_id=node_id):
                say("J", node_id.hex())
            case MemberDown(node_id=node_id) | MemberLeft(node_id=node_id):
                say("D", node_id.hex())

    async def _keep_incarnation(self) -> None:
        """Make an incarnation raised by a refutation durable, as the daemon does from time to time.

        Here it is done after each command, so that an idle agent has no timer of its own.
        """
        if self.node.incarnation > self._incarnation:
            with contextlib.suppress(JournalError):
                await self.journal.record_incarnation(self.node.incarnation)
                self._incarnation = self.node.incarnation


class Load:
    """A thread that computes without a pause, by turns in native code and in the interpreter."""

    def __init__(self, model: str) -> None:
        """Start; `model` is an ONNX file, or empty for products of matrices."""
        # Only here: a gossip-only process has neither numpy nor ONNX Runtime in memory.
        from threading import Thread

        self._running = True
        self._thread = Thread(target=self._run, args=(model,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the step under way."""
        self._running = False
        self._thread.join()

    def _run(self, model: str) -> None:
        try:
            infer = _inference(model) if model else _products()
            while self._running:
                infer()
                sum(number * number for number in range(50_000))
        finally:
            if self._running:  # it failed: better no agent than one that is idle unseen
                sys.excepthook(*sys.exc_info())
                os._exit(1)


def _inference(model: str):  # noqa: ANN202 - onnxruntime's edge
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (entry, *_) = session.get_inputs()
    feed = {entry.name: np.ones((1, 3, 224, 384), np.float32)}  # one picture of the zoo's size
    return lambda: session.run(None, feed)


def _products():  # noqa: ANN202 - numpy's edge
    import numpy as np

    block = np.random.default_rng(1).random((192, 192), np.float32)
    return lambda: block @ block


def main() -> None:
    """Read the arguments and run."""
    _, ip, port, seed, *options = sys.argv[1:]
    model = options[1] if options[:1] == ["--model"] else ""
    secret = base64.b64decode(os.environ["GOSSIP_KEY"])
    with contextlib.ExitStack() as ends:
        folder = os.environ.get("GOSSIP_STATE")
        if folder is None:
            from tempfile import TemporaryDirectory  # not for free: half a megabyte

            folder = ends.enter_context(TemporaryDirectory())

        async def run() -> None:
            await Agent((ip, int(port)), Path(folder), secret).run(seed, model)

        uvloop.run(run())


if __name__ == "__main__":
    main()
