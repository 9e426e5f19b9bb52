"""Two daemons that meet in the launcher, once, before any node is forked.

What a process does for the first time (modules imported late, tables of libraries, specialised
code) would be done by every node again, in memory of its own: done before, it is shared. Owns
nothing afterwards. Invariant: when it is over, this process has one thread, and may be forked.
"""

import asyncio
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import uvloop

from edge_node import config
from edge_node.daemon import Daemon
from simnet.cluster.setting import Setting

_LIMIT_S = 2.0


def rehearse(setting: Setting) -> None:
    """Run the first two nodes on states that are thrown away. AssertionError for threads left."""
    logging.disable(logging.CRITICAL)
    folder = setting.folder / "rehearsal"
    try:
        uvloop.run(_meet(setting, folder))
    finally:
        logging.disable(logging.NOTSET)
        shutil.rmtree(folder, ignore_errors=True)
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"{len(threads)} threads are left"


async def _meet(setting: Setting, folder: Path) -> None:
    daemons = []
    for name in setting.names[:2]:
        given = config.load(setting.config_of(name))
        node = replace(given.node, state_dir=folder / name)
        daemons.append(Daemon(replace(given, node=node, accelerators=()), lambda: None))
    try:
        for daemon in daemons:
            await daemon.start()
        async with asyncio.timeout(_LIMIT_S):
            await asyncio.gather(*(daemon.writes.acquainted.wait() for daemon in daemons))
    except TimeoutError:  # one node alone, or a busy machine: less is shared then
        pass
    finally:
        for daemon in daemons:
            await daemon.stop()
