"""Run the daemon as a process: signals, logging, exit status.

Owns the event loop's beginning and end. SIGTERM and SIGINT stop the node in order; SIGHUP reads
the configuration again.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable

import uvloop

from edge_node.config import Config
from edge_node.daemon import Daemon, StartError

log = logging.getLogger(__name__)


async def _run(config: Config) -> int:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    daemon = Daemon(config, on_failure=ended.set)
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = loop.create_task(daemon.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    handlers: dict[signal.Signals, Callable[[], None]] = {
        signal.SIGTERM: ended.set,
        signal.SIGINT: ended.set,
        signal.SIGHUP: reload,
    }
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        await daemon.start()
    except StartError as error:
        log.error("%s", error)
        return 1
    daemon.notifier.ready()
    await ended.wait()
    log.info("stopping")
    await daemon.stop()
    return 1 if daemon.failed else 0


def main(config: Config) -> int:
    """Run a node until SIGTERM or SIGINT; return the exit status."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(levelname).1s %(name)s: %(message)s"
    )
    return uvloop.run(_run(config))
