"""Our own agent, run as the benchmark runs it: real processes on loopback, lines in and out."""

import asyncio
import random
from pathlib import Path

import uvloop

from tests.bench.peers.fleet import Fleet, Row
from tests.bench.peers.network import Network
from tests.bench.peers.provide import provide


def test_agents_find_each_other_share_notice_a_death_and_return(tmp_path: Path) -> None:
    row = Row("ours", 3, 0)

    async def run() -> list[int]:
        network = Network("test", 200, isolated=False)
        fleet = Fleet("ours", provide("ours"), 3, network, tmp_path / "fleet")
        try:
            row.formed_s = await fleet.start()
            await fleet.updates(row, 3, asyncio.Lock(), random.Random(1))
            fleet.tell([1], "BUSY 1")
            fleet.tell([1], "HOLD 0.3")
            fleet.tell([1], "BUSY 0")
            await fleet.crash(row, 2, cut=False)
            await fleet.returned(row)
            return fleet.ended()
        finally:
            fleet.close()

    assert uvloop.run(run()) == []
    assert row.missed == 0
    assert row.unnoticed == 0
    assert len(row.to_all_ms) == 3
    assert len(row.back_s) == 1
    assert row.copies >= 1
    assert not list((tmp_path / "fleet").glob("state*"))
