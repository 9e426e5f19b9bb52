"""Measure this project's gossip beside memberlist's and kinship's: `python -m tests.bench.gossip`.

Owns the plan: which fleets run side by side, what is done to them, which ratios are targets. The
fleets of a row run at the same moment, each in a network namespace of its own, so that all have
the same noise; only ratios of one row mean anything. Never uses a network beyond loopback. Without
root, ip or nftables it measures what is left, and says what that lacks.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from tests.bench.peers import network as networks
from tests.bench.peers.fleet import Fleet, Row
from tests.bench.peers.lines import quantile
from tests.bench.peers.network import Network
from tests.bench.peers.provide import AGENTS, Missing, provide
from tests.bench.report import Figure, report

MODEL = Path("models/zoo/person-detector-small.onnx")
FOLDER = Path(".bench/gossip").absolute()
ALONE = 100  # from so many on only our own agents are started
BUSY_N = 10
HOLD_S = 2.0


def options(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line. Exits for what makes no sense."""

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",") if word]

    parser = argparse.ArgumentParser(prog="make bench-gossip", description=__doc__)
    add = parser.add_argument
    add("--n", type=numbers, default=[10, 30, 60, 100], help="sizes of fleets; none with --n ''")
    add("--loss", type=numbers, default=[0, 20], help="percentages of packets lost")
    add("--agents", type=lambda text: text.split(","), default=list(AGENTS))
    add("--updates", type=int, default=100, help="a row")
    add("--kills", type=int, default=5, help="a row, and as many that are cut off")
    add("--idle-s", type=float, default=30.0, help="how long idling is measured")
    add("--settle-s", type=float, default=8.0, help="between forming and measuring")
    add("--busy-minutes", type=float, default=10.0, help="with every interpreter busy")
    add("--no-busy", action="store_true")
    add("--quick", action="store_true", help="N=10 and 30, less of everything")
    if "--quick" in arguments:
        parser.set_defaults(n=[10, 30], updates=20, kills=1, idle_s=10.0, no_busy=True)
    chosen = parser.parse_args(arguments)
    if unknown := [agent for agent in chosen.agents if agent not in AGENTS]:
        parser.error(f"no such agent: {', '.join(unknown)} (there are {', '.join(AGENTS)})")
    good = all(4 <= n <= 250 for n in chosen.n)
    if not good or chosen.updates < 1 or chosen.kills < 0:
        parser.error("n is 4 to 250, updates at least 1, kills at least 0")
    return chosen


def duration_s(chosen: argparse.Namespace) -> float:
    """Estimate how long it will take."""
    total_s = 0.0
    for n in chosen.n:
        alone = n >= ALONE or len(chosen.agents) == 1
        each_s = (0.5, 6.0) if alone else (1.4, 10.0)
        forming_s = 5 + n * (0.1 if alone else 0.2)
        measuring_s = chosen.idle_s + chosen.updates * each_s[0] + 2 * chosen.kills * each_s[1]
        total_s += len(chosen.loss) * (forming_s + chosen.settle_s + measuring_s)
    return total_s + (0 if chosen.no_busy else chosen.busy_minutes * 60 + 100)


# rows


@contextlib.contextmanager
def fleets(commands: dict[str, list[str]], n: int, label: str, *more: str) -> Iterator[list[Fleet]]:
    """Prepare one fleet for each agent, and leave nothing of them behind."""
    with contextlib.ExitStack() as ends:
        made = []
        for index, (agent, command) in enumerate(commands.items()):
            network = Network(f"{agent}-{label}", 16 + index)
            ends.callback(network.close)
            made.append(Fleet(agent, command, n, network, FOLDER / f"{agent}-{label}", more))
            ends.callback(made[-1].close)
        yield made


async def formed(fleet: Fleet, row: Row) -> bool:
    """Start a fleet; return whether it formed."""
    try:
        row.formed_s = await fleet.start()
    except RuntimeError as error:
        print(f"  {error}", flush=True)
        fleet.close()
        return False
    return True


async def measure(
    commands: dict[str, list[str]], n: int, loss: int, chosen: argparse.Namespace
) -> list[Row]:
    """Run one row: every agent's fleet, side by side, phase by phase."""
    with fleets(commands, n, f"n{n}-loss{loss}") as made:
        rows = [Row(fleet.agent, n, loss) for fleet in made]
        there = await asyncio.gather(*map(formed, made, rows))
        pairs = [
            pair for pair, good in zip(zip(made, rows, strict=True), there, strict=True) if good
        ]
        if loss:
            for fleet, _ in pairs:
                fleet.network.lose(loss)
        await asyncio.sleep(chosen.settle_s)
        await asyncio.gather(*(fleet.idle(row, chosen.idle_s / 2) for fleet, row in pairs))
        slot = asyncio.Lock()
        await asyncio.gather(
            *(
                fleet.updates(row, chosen.updates, slot, random.Random(n + loss))
                for fleet, row in pairs
            )
        )
        await asyncio.gather(*(fleet.idle(row, chosen.idle_s / 2) for fleet, row in pairs))
        await asyncio.gather(*(crashes(fleet, row, chosen.kills) for fleet, row in pairs))
        for fleet, row in pairs:
            fleet.beyond_idle(row)
            row.false_downs = fleet.ledger.false_downs
            if strange := fleet.ledger.strange:
                print(f"  {fleet.agent}: {strange} lines were not understood")
            if ended := fleet.ended():
                print(f"  {fleet.agent}: agents {ended} ended by themselves: see {FOLDER}")
        return rows


async def crashes(fleet: Fleet, row: Row, kills: int) -> None:
    """Kill one agent after the other, then cut off one after the other; never the seed."""
    order = [1 + index % (fleet.n - 1) for index in range(2 * kills)]
    for index, victim in enumerate(order):
        cut = index >= kills
        if cut and not fleet.network.faulty:
            break
        if await fleet.until(lambda victim=victim: victim in fleet.well(), 60.0):
            await fleet.crash(row, victim, cut=cut)
    await fleet.returned(row)


async def busy(command: list[str], minutes: float) -> list[Figure]:
    """Keep every interpreter busy, then hold event loops; count members wrongly given up."""
    model = ["--model", str(MODEL.absolute())] if MODEL.exists() else []
    with fleets({"ours": command}, BUSY_N, "busy", *model) as (fleet,):
        row = Row("ours", BUSY_N, 0)
        if not await formed(fleet, row):
            return []
        everybody, began_s = range(BUSY_N), time.monotonic()
        fleet.tell(everybody, "BUSY 1")
        await asyncio.sleep(5)
        before = processor_time()
        await fleet.idle(row, minutes * 60)
        unused, whole = (new - old for new, old in zip(processor_time(), before, strict=True))
        busy_downs, busy_s = fleet.ledger.false_downs, time.monotonic() - began_s
        part = row.cpu_s / 60 * BUSY_N / (os.cpu_count() or 1)
        await fleet.updates(row, 20, asyncio.Lock(), random.Random(1))
        fleet.tell(everybody, "BUSY 0")
        await asyncio.sleep(5)
        if fleet.ended():
            print(f"  the load failed: see {FOLDER}")
            return []
        fleet.ledger.false_downs = 0
        for number in everybody:
            fleet.tell([number], f"HOLD {HOLD_S}")
            await asyncio.sleep(HOLD_S + 2)
        for _ in range(3):
            fleet.tell(everybody, f"HOLD {HOLD_S}")
            await asyncio.sleep(HOLD_S + 5)
        load = "a model and pure Python" if model else "products of matrices and pure Python"
        return [
            Figure("busy.false_down", busy_downs, "<=", 0, f"{load}, N=10, {busy_s:.0f} s"),
            Figure("busy.cores", 1 - unused / whole, ">=", 0.9, f"in use; by the nodes {part:.2f}"),
            Figure(
                "busy.to_all_p50_ms",
                quantile(row.to_all_ms, 0.5),
                note="20 updates under that load",
            ),
            Figure("busy.missed", row.missed, "<=", 0, "the same 20 updates"),
            Figure(
                "hold.false_down",
                fleet.ledger.false_downs,
                "<=",
                0,
                f"each loop held for {HOLD_S:.0f} s, then all at once, three times",
            ),
        ]


def processor_time() -> tuple[int, int]:
    """Return (time in which this machine did nothing, time in all), in ticks of all cores."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


# figures

_COLUMNS = (
    ("to all p50/p99/max ms", 21, lambda r: _spread(r.to_all_ms, 0.5, 0.99, 1)),
    ("missed", 6, lambda r: f"{r.missed}"),
    ("idle B/s, pkt/s", 15, lambda r: f"{r.idle_bytes:.0f}, {r.idle_packets:.2f}"),
    ("update B, pkt", 13, lambda r: f"{r.update_bytes:.0f}, {r.update_packets:.2f}"),
    ("copies", 6, lambda r: f"{r.copies:.2f}" if r.copies else "-"),
    ("CPU s/min", 9, lambda r: f"{r.cpu_s:.3f}"),
    ("RSS/PSS MB", 10, lambda r: f"{r.rss_mb:.1f}/{r.pss_mb:.1f}"),
    ("SIGKILL p50/max s", 17, lambda r: _spread(r.sigkill_s, 0.5, 1)),
    ("cut off p50/max s", 17, lambda r: _spread(r.blackhole_s, 0.5, 1)),
    ("back s", 6, lambda r: _spread(r.back_s, 1)),
    ("false", 5, lambda r: f"{r.false_downs}"),
)


def _spread(values: list[float], *parts: float) -> str:
    return "/".join(f"{quantile(values, part):.1f}" for part in parts) if values else "-"


def table(rows: list[Row]) -> str:
    """Lay one row's measurements out, an agent a line."""
    lines = ["  ".join([f"{'agent':<10}", *(f"{name:>{width}}" for name, width, _ in _COLUMNS)])]
    for row in (row for row in rows if row.formed_s):
        cells = [f"{shown(row):>{width}}" for _, width, shown in _COLUMNS]
        lines.append("  ".join([f"{row.agent:<10}", *cells]))
    return "\n".join(lines)


def figures(rows: list[Row]) -> list[Figure]:
    """Return every value measured, and the ratios that have targets."""
    made: list[Figure] = []
    for row in rows:
        if row.formed_s:
            made += _values(row)
        else:
            made.append(Figure(f"{_label(row)}.{row.agent}.formed", 0, ">=", 1, "in 120 s"))
    rows = [row for row in rows if row.formed_s]
    for own in (row for row in rows if row.agent == "ours"):
        for peer in rows:
            if peer.agent != "ours" and (peer.n, peer.loss) == (own.n, own.loss):
                made += _ratios(own, peer)
    return made + _own_ratios({(row.n, row.loss): row for row in rows if row.agent == "ours"})


def _label(row: Row) -> str:
    return f"n{row.n}.loss{row.loss}" if row.loss else f"n{row.n}"


def _values(row: Row) -> list[Figure]:
    """Return what was measured on one fleet; ours has targets of its own."""
    ours, known = row.agent == "ours", row.idle_packets > 0
    values: dict[str, tuple[float, float | None]] = {
        "formed_s": (row.formed_s, None),
        "to_all_p50_ms": (quantile(row.to_all_ms, 0.5), None),
        "to_all_p99_ms": (quantile(row.to_all_ms, 0.99), None),
        "missed": (row.missed, 0),
        "false_down": (row.false_downs, 0),
        "cpu_s_per_min": (row.cpu_s, None),
        "rss_mb": (row.rss_mb, 30),
        "pss_mb": (row.pss_mb, None),
        "sigkill_p50_s": (quantile(row.sigkill_s, 0.5), None),
        "blackhole_p50_s": (quantile(row.blackhole_s, 0.5), None),
        "unnoticed": (row.unnoticed, 0),
        "back_max_s": (quantile(row.back_s, 1), 60),
    }
    if known:
        for name in ("idle_bytes", "idle_packets", "update_bytes", "update_packets"):
            values[name] = getattr(row, name), None
    if ours:
        values["copies"] = row.copies, 2
    return [
        Figure(
            f"{_label(row)}.{row.agent}.{name}",
            value,
            *(("<=", target) if ours and target is not None else ()),
        )
        for name, (value, target) in values.items()
        if value == value  # nan: there was nothing to measure
    ]


def _ratios(own: Row, peer: Row) -> list[Figure]:
    """Return our values in those of a peer, with the targets of a quiet or a lossy network."""
    kinship = peer.agent == "kinship"
    p50, p99 = (quantile(own.to_all_ms, part) for part in (0.5, 0.99))
    theirs50, theirs99 = (quantile(peer.to_all_ms, part) for part in (0.5, 0.99))
    late = 0.25 if not own.loss else 0.5 if kinship else 0.05
    quiet = not own.loss
    pairs: list[tuple[str, float, float, float | None]] = [
        ("to_all_p50", p50, theirs50, 0.25 if quiet else None),
        ("to_all_p99", p99, theirs99, late),
        ("update_bytes", own.update_bytes, peer.update_bytes, 0.4 if quiet else None),
        ("idle_bytes", own.idle_bytes, peer.idle_bytes, 0.9 if kinship and quiet else None),
        ("idle_packets", own.idle_packets, peer.idle_packets, 0.9 if kinship and quiet else None),
        ("sigkill", quantile(own.sigkill_s, 0.5), quantile(peer.sigkill_s, 0.5), 0.7),
        ("blackhole", quantile(own.blackhole_s, 0.5), quantile(peer.blackhole_s, 0.5), 0.7),
        (
            "cpu",
            own.cpu_s,
            peer.cpu_s,
            (2.5 if kinship else 0.6) if own.n == 30 and quiet else None,
        ),
    ]
    return [
        Figure(
            f"{_label(own)}.{name}.vs_{peer.agent}", ours / theirs, "<=" if target else "", target
        )
        for name, ours, theirs, target in pairs
        if theirs > 0 and ours == ours
    ]


def _own_ratios(rows: dict[tuple[int, int], Row]) -> list[Figure]:
    """Return what our idle traffic does as the fleet grows, and as packets are lost."""
    made = []
    for name in ("idle_bytes", "idle_packets"):
        small, large = rows.get((10, 0)), rows.get((60, 0))
        if small and large and small.idle_packets:
            ratio = getattr(large, name) / getattr(small, name)
            made.append(
                Figure(f"{name}.n60_to_n10", max(ratio, 1 / ratio), "<=", 1.2, f"{ratio:.2f}")
            )
        for (n, loss), row in rows.items():
            quiet = rows.get((n, 0))
            if loss and quiet and quiet.idle_packets:
                ratio = getattr(row, name) / getattr(quiet, name)
                made.append(Figure(f"n{n}.loss{loss}.{name}.vs_quiet", ratio, "<=", 2))
    return made


# the whole


def available(agents: list[str]) -> dict[str, list[str]]:
    """Return the commands of the agents that run here; say what the others lack."""
    commands = {}
    for agent in agents:
        try:
            commands[agent] = provide(agent)
        except Missing as missing:
            print(f"missing: {missing}")
    return commands


async def run(chosen: argparse.Namespace) -> list[Figure]:
    """Go through the plan."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    for lack in networks.missing():
        print(f"missing: {lack}")
    networks.sweep()
    commands = available(chosen.agents)
    faulty = not networks.missing()
    rows: list[Row] = []
    print(f"plan: {chosen}\nabout {duration_s(chosen) / 60:.0f} minutes", flush=True)
    for n in chosen.n:
        for loss in chosen.loss:
            taken = {a: c for a, c in commands.items() if a == "ours" or n < ALONE}
            if not taken or (loss and not faulty):
                continue
            began_s = time.monotonic()
            fresh = await measure(taken, n, loss, chosen)
            took_s = time.monotonic() - began_s
            print(f"\nN={n}, {loss} % loss ({took_s:.0f} s)\n{table(fresh)}", flush=True)
            rows += fresh
    made = figures(rows)
    if not chosen.no_busy and "ours" in commands:
        made += await busy(commands["ours"], chosen.busy_minutes)
    return made


def main() -> None:
    """Measure, print, write; exit with 1 if nothing could be measured."""
    chosen = options(sys.argv[1:])
    try:
        made = uvloop.run(run(chosen))
    except asyncio.CancelledError:
        sys.exit("stopped; every process and namespace of this run is gone")
    if not made:
        sys.exit("nothing could be measured")
    print()
    report("gossip", made)


if __name__ == "__main__":
    main()
