"""The entry of a worker process: `python -m edge_node.worker_main --fd N --accelerator JSON`.

Owns the wiring of `models.worker` with this daemon's camera sources, and the rules of dying:
the worker ends when its socket ends, is killed by the kernel when the daemon dies, and leaves
Ctrl-C and the service manager's SIGTERM to the daemon, which drains first.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import socket
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve one accelerator until the daemon says stop or is gone."""
    parser = argparse.ArgumentParser(description="worker process of an edge-node daemon")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--accelerator", required=True)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _die_with(arguments.parent)
    connection = socket.socket(fileno=arguments.fd)
    connection.setblocking(True)

    # Imported late, so that a daemon that died meanwhile does not leave this behind.
    from edge_node.cameras.sources import open_source
    from models.accelerators import AcceleratorSpec
    from models.worker import Worker

    spec = AcceleratorSpec(**json.loads(arguments.accelerator))
    Worker(connection, spec, open_source).serve()
    sys.stderr.flush()
    os._exit(0)  # daemon threads may be inside a driver or a decoder that never returns


def _die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL at the daemon's death; the socket's end covers other systems."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)


if __name__ == "__main__":
    main()
