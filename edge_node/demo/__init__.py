"""The demo: three real daemons on one machine, what they do, and whether it is as promised.

Owns the command line of `edge-node demo`; the rooms behind it are `footage` (what the cameras
see), `fleet` (the processes), `watch` (what they say), `view` (the screen), `report` (the
verdict) and `story` (what happens when).
"""

from __future__ import annotations

import argparse

INTERRUPTED = 130


def main(argv: list[str]) -> int:
    """Run the demo; return 0 if everything promised held, 1 if not, 130 if interrupted."""
    parser = argparse.ArgumentParser(
        prog="edge-node demo",
        description="Run three nodes on this machine, overload one, change the model, kill one.",
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=6.0,
        metavar="S",
        help="length of each measured window, without and with forwarding (default: %(default)g)",
    )
    parser.add_argument("--keep", action="store_true", help="stay up afterwards, until Ctrl-C")
    parser.add_argument(
        "--json", action="store_true", help="print the summary as JSON; the rest goes to stderr"
    )
    options = parser.parse_args(argv)
    from edge_node.demo.story import run  # heavy imports, not for --help

    try:
        return run(options.seconds, keep=options.keep, as_json=options.json)
    except KeyboardInterrupt:
        return INTERRUPTED


def _seconds(text: str) -> float:
    value = float(text)
    if not 2 <= value <= 600:
        raise argparse.ArgumentTypeError(f"{text}: must be in 2..600")
    return value
