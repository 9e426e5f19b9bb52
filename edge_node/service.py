"""Run the daemon as a process: signals, logging, exit status.

Owns the event loop's beginning and end. SIGTERM and SIGINT stop the node in order; SIGHUP reads
the configuration again.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from functools import partial

import uvloop

from edge_node.config import Config
from edge_node.daemon import Daemon, StartError

log = logging.getLogger(__name__)


async def serve(make: Callable[[Callable[[], None]], Daemon]) -> int:
    """Run the daemon that ``make`` returns, given its ``on_failure``; return the exit status."""
    loop = asyncio.get_running_loop()
    ended, reload_wanted = asyncio.Event(), asyncio.Event()
    daemon = make(ended.set)
    handled = {signal.SIGTERM: ended, signal.SIGINT: ended, signal.SIGHUP: reload_wanted}
    for number, wanted in handled.items():
        loop.add_signal_handler(number, wanted.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)  # one may have waited
    life = asyncio.create_task(_live(daemon, reload_wanted))
    end = asyncio.create_task(ended.wait())
    try:
        await asyncio.wait({life, end}, return_when=asyncio.FIRST_COMPLETED)
        if life.done():
            life.result()  # it ends only by failing
    except StartError as error:
        log.error("%s", error)
        return 1
    finally:
        end.cancel()
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
        log.info("stopping")
        await daemon.stop()
    return 1 if daemon.failed else 0


async def _live(daemon: Daemon, reload_wanted: asyncio.Event) -> None:
    """Start, then reload whenever asked to, one after the other."""
    await daemon.start()
    daemon.notifier.ready()
    while True:
        await reload_wanted.wait()
        reload_wanted.clear()
        await daemon.reload()


def main(config: Config) -> int:
    """Run a node until SIGTERM or SIGINT; return the exit status."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(levelname).1s %(name)s: %(message)s"
    )
    return uvloop.run(serve(partial(Daemon, config)))
