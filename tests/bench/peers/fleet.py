"""Owns the processes of one fleet of agents, and what is measured on them.

Never compares fleets. Invariant: whatever happens, `close` leaves no process behind.
"""

import asyncio
import os
import random
import shutil
import signal
import string
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.peers.lines import Ledger
from tests.bench.peers.network import Network
from tests.bench.peers.provide import environment

PORT = 7946
KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="  # 32 bytes; nothing here is secret
PADDING_CHARS = 96
_ALPHABET = string.ascii_letters + string.digits  # random: nobody's compression gains from it
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_SLOT_S = 1.0


@dataclass
class Row:
    """What was measured on one fleet; times of crashes in seconds, of updates in milliseconds."""

    agent: str
    n: int
    loss: int
    formed_s: float = 0.0
    to_all_ms: list[float] = field(default_factory=list)
    missed: int = 0
    idle_bytes: float = 0.0
    idle_packets: float = 0.0
    update_bytes: float = 0.0
    update_packets: float = 0.0
    copies: float = 0.0
    cpu_s: float = 0.0
    rss_mb: float = 0.0
    pss_mb: float = 0.0
    sigkill_s: list[float] = field(default_factory=list)
    blackhole_s: list[float] = field(default_factory=list)
    unnoticed: int = 0
    back_s: list[float] = field(default_factory=list)
    false_downs: int = 0


@dataclass
class Traffic:
    """Bytes and packets of a fleet over some time."""

    sent: tuple[int, int] = (0, 0)
    took_s: float = 0.0

    def add(self, before: tuple[int, int], after: tuple[int, int], took_s: float) -> None:
        """Add what was sent between two readings."""
        fresh = (after[0] - before[0], after[1] - before[1])
        self.sent = (self.sent[0] + fresh[0], self.sent[1] + fresh[1])
        self.took_s += took_s

    def per_second(self, nodes: int) -> tuple[float, float]:
        """Return (bytes, packets) per second and node."""
        return self.sent[0] / self.took_s / nodes, self.sent[1] / self.took_s / nodes


class Fleet:
    """N agents of one kind in a network of their own."""

    def __init__(
        self,
        agent: str,
        command: list[str],
        n: int,
        network: Network,
        folder: Path,
        options: tuple[str, ...] = (),
    ) -> None:
        """Prepare; `folder` takes the agents' state and complaints, `options` end each command."""
        self.agent, self.n, self.network, self.ledger = agent, n, network, Ledger()
        self._command, self._folder, self._options = command, folder, options
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._news = asyncio.Event()
        self._returning: list[asyncio.Task[float]] = []
        self._idle, self._sharing, self._idle_cpu_s = Traffic(), Traffic(), 0.0
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    async def start(self, limit_s: float = 120.0) -> float:
        """Start all agents and wait until each counts all; return how long that took.

        Raises RuntimeError when that does not happen.
        """
        began_s = time.monotonic()
        for number in range(self.n):
            self._spawn(number)
            await asyncio.sleep(1.0 if number == 0 else 0.05)
        everybody = range(self.n)

        def formed() -> bool:
            return all(self.ledger.counts.get(one) == self.n for one in everybody)

        while time.monotonic() < began_s + limit_s:
            self.ledger.counts.clear()
            self.tell(everybody, "N")
            if await self.until(formed, 1.0):
                self.ledger.false_downs = 0
                return time.monotonic() - began_s
        counts = sorted(self.ledger.counts.values()) or [0]
        raise RuntimeError(
            f"{self.agent}: {self.n} agents did not find each other in {limit_s:.0f} s: "
            f"they count {counts[0]} to {counts[-1]}, {counts[len(counts) // 2]} in the middle"
        )

    def close(self) -> None:
        """Kill what runs, wait for it, and remove its state."""
        for task in self._returning:
            task.cancel()
        for number in list(self._processes):
            self._kill(number)
        for state in self._folder.glob("state*"):
            shutil.rmtree(state)
        self.network.close()

    def tell(self, numbers: Iterable[int], line: str) -> None:
        """Write a line to agents; to those that are gone, nothing."""
        for number in numbers:
            try:
                self._processes[number].stdin.write(f"{line}\n".encode())
            except (BrokenPipeError, KeyError):
                continue

    async def until(self, holds: Callable[[], bool], limit_s: float) -> bool:
        """Wait until something holds, for as long as `limit_s`; return whether it does."""
        end_s = time.monotonic() + limit_s
        while not holds():
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), end_s - time.monotonic())
            except TimeoutError:
                return holds()
        return True

    def well(self) -> list[int]:
        """Return the agents that were not killed or cut off, or are back."""
        return [one for one in range(self.n) if one not in self.ledger.excused]

    # measurements

    async def idle(self, row: Row, length_s: float) -> None:
        """Measure what the fleet costs while nothing happens; a second time adds to the first."""
        before, cpu_s, began_s = self._traffic(), self._cpu_s(), time.monotonic()
        await asyncio.sleep(length_s)
        self._idle.add(before, self._traffic(), time.monotonic() - began_s)
        self._idle_cpu_s += self._cpu_s() - cpu_s
        row.idle_bytes, row.idle_packets = self._idle.per_second(self.n)
        row.cpu_s = self._idle_cpu_s * 60 / self._idle.took_s / self.n
        sizes = [_memory_mb(pid) for pid in self._living()]
        row.rss_mb = sum(rss for rss, _ in sizes) / len(sizes)
        row.pss_mb = sum(pss for _, pss in sizes) / len(sizes)

    async def updates(
        self, row: Row, count: int, slot: asyncio.Lock, rng: random.Random, limit_s: float = 15.0
    ) -> None:
        """Share `count` values, one after the other, each from a random agent.

        `slot` keeps fleets that are measured at the same time from sharing at the same moment.
        What has not reached everybody after `limit_s` counts as that late, and as missed.
        """
        before, began_s = self._traffic(), time.monotonic()
        copies = await self._copies()
        for number in range(count):
            origin, value = rng.choice(self.well()), f"{1000 + number}"
            others = [one for one in self.well() if one != origin]
            arrived = self._arrival(value, others)
            padding = "".join(rng.choices(_ALPHABET, k=PADDING_CHARS))
            async with slot:
                self.tell([origin], f"SET {value} {padding}")
                done = await self.until(arrived, _SLOT_S)
            done = done or await self.until(arrived, limit_s - _SLOT_S)
            delays = self.ledger.delays_ms(value, others)
            row.missed += len(others) - len(delays)
            row.to_all_ms.append(delays[-1] if done else limit_s * 1e3)
            await asyncio.sleep(0.2)
        await asyncio.sleep(1.0)  # for what is sent again
        row.copies = (await self._copies() - copies) / count / (self.n - 1)
        self._sharing.add(before, self._traffic(), time.monotonic() - began_s)

    def beyond_idle(self, row: Row) -> None:
        """Work out what an update costs a node beyond what idling costs it in that time."""
        bytes_, packets = self._sharing.per_second(self.n)
        each_s = self._sharing.took_s / len(row.to_all_ms)
        row.update_bytes = (bytes_ - row.idle_bytes) * each_s
        row.update_packets = (packets - row.idle_packets) * each_s

    async def crash(self, row: Row, victim: int, *, cut: bool, limit_s: float = 90.0) -> None:
        """Kill an agent, or cut it off, until all others have noticed; then start it anew."""
        ledger, observers = self.ledger, [one for one in self.well() if one != victim]
        ledger.excused.add(victim)
        since_ns = time.time_ns()
        if cut:
            self.network.cut_off(victim)
        else:
            self._kill(victim)

        def everybody() -> bool:
            return len(ledger.noticed_s(victim, since_ns, observers)) == len(observers)

        noticed = await self.until(everybody, limit_s)
        if cut:
            self._kill(victim)
            self.network.rejoin(victim)
        times = ledger.noticed_s(victim, since_ns, observers)
        row.unnoticed += len(observers) - len(times)
        (row.blackhole_s if cut else row.sigkill_s).append(times[-1] if noticed else limit_s)
        self._spawn(victim)
        self._returning.append(asyncio.create_task(self._back(victim, time.time_ns())))

    async def returned(self, row: Row, limit_s: float = 60.0) -> None:
        """Wait until those that were started anew are known to all again."""
        if self._returning:
            done, _ = await asyncio.wait(self._returning, timeout=limit_s)
            row.back_s += sorted(task.result() for task in done)

    def ended(self) -> list[int]:
        """Return the agents that ended by themselves."""
        return [one for one, process in self._processes.items() if process.poll() is not None]

    async def _back(self, victim: int, since_ns: int) -> float:
        ledger = self.ledger

        def known() -> bool:
            up = ledger.ready.get(victim, 0) >= since_ns
            return up and all(ledger.knows(one, victim, since_ns) for one in self.well())

        while not await self.until(known, 3600.0):
            pass
        ledger.excused.discard(victim)
        return (time.time_ns() - since_ns) / 1e9

    def _arrival(self, value: str, receivers: list[int]) -> Callable[[], bool]:
        return lambda: len(self.ledger.delays_ms(value, receivers)) == len(receivers)

    async def _copies(self) -> int:
        """Return how many batches have arrived, new or not; 0 for agents that do not count."""
        if self.agent != "ours":
            return 0
        self.ledger.stats.clear()
        self.tell(self.well(), "STATS")
        await self.until(lambda: set(self.well()) <= self.ledger.stats.keys(), 10.0)
        every = (counters.items() for counters in self.ledger.stats.values())
        return sum(value for one in every for name, value in one if name.startswith("batches_"))

    def _living(self) -> list[int]:
        living = [one.pid for one in self._processes.values() if one.poll() is None]
        if not living:
            raise RuntimeError(f"{self.agent}: all agents ended: see {self._folder}/stderr")
        return living

    def _traffic(self) -> tuple[int, int]:
        return self.network.traffic(self._living()[0])

    def _cpu_s(self) -> float:
        return sum(map(_cpu_s, self._living()))

    # processes

    def _spawn(self, number: int) -> None:
        network = self.network
        seed = f"{network.address(0)}:{PORT}" if number else "-"
        name, state = f"n{number}", self._folder / f"state{number}"
        words = [*self._command, name, network.address(number), str(PORT), seed, *self._options]
        with (self._folder / "stderr").open("ab") as complaints:
            process = subprocess.Popen(
                network.command(words),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                bufsize=0,
                env={**environment(), "GOSSIP_KEY": KEY, "GOSSIP_STATE": str(state)},
                start_new_session=True,  # Ctrl-C is this process's to handle
            )
        self._processes[number] = process
        self.ledger.name(number, name)
        assert process.stdout is not None
        output = process.stdout.fileno()
        os.set_blocking(output, False)
        rest = bytearray()
        asyncio.get_running_loop().add_reader(output, self._read, number, output, rest)

    def _read(self, number: int, output: int, rest: bytearray) -> None:
        try:
            data = os.read(output, 1 << 16)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(output)
            return
        rest += data
        *lines, last = rest.split(b"\n")
        rest[:] = last
        for line in lines:
            self.ledger.take(number, line.decode(errors="replace"))
        self._news.set()

    def _kill(self, number: int) -> None:
        process = self._processes.pop(number)
        process.send_signal(signal.SIGKILL)
        assert process.stdin is not None
        assert process.stdout is not None
        asyncio.get_running_loop().remove_reader(process.stdout.fileno())
        process.wait()
        process.stdin.close()
        process.stdout.close()


def _cpu_s(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) * _TICK_S


def _memory_mb(pid: int) -> tuple[float, float]:
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Rss", "Pss"):
            sizes[name] = int(rest.split()[0]) / 1024
    return sizes["Rss"], sizes["Pss"]
