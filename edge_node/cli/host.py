"""Run and examine this device: `run`, `demo`, `doctor`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_node.cli.outcome import FAILED
from edge_node.cli.tables import cell, print_json

if TYPE_CHECKING:
    from edge_node.doctor import Finding

DEFAULT_CONFIG = "node.toml"


def add_verbs(verbs: Any) -> None:
    """Add the verbs to the parser."""
    start = verbs.add_parser("run", help="run the daemon until SIGTERM; SIGHUP reloads")
    _add_config(start)
    start.set_defaults(verb=run)
    # The demo reads its own arguments, --help too; --keep is here for completion.
    about = "watch three nodes share work on this machine"
    show = verbs.add_parser("demo", help=about, add_help=False)
    show.add_argument("--keep", action="store_true", help="stay up until interrupted")
    show.set_defaults(verb=demo, passes_rest=True)
    examine = verbs.add_parser("doctor", help="examine this device; no daemon needed")
    _add_config(examine)
    examine.add_argument("--json", action="store_true", help="print JSON instead of text")
    examine.set_defaults(verb=doctor)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        default=DEFAULT_CONFIG,
        help=f"the node's configuration (default: {DEFAULT_CONFIG}); make one with: edge-node init",
    )


def run(parsed: argparse.Namespace) -> int:
    """Run the daemon in this process; returns its exit status."""
    import signal

    from edge_node.config import load

    # Held back until the event loop takes them over. A handler that raised would not do: what is
    # raised inside a callback of a weak reference, of which an import runs many, is dropped.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGINT, signal.SIGTERM})
    path = Path(parsed.config)
    config = load(path)
    from edge_node.service import main

    return main(config)


def demo(parsed: argparse.Namespace) -> int:
    """Run the demo, which reads the rest of the arguments itself."""
    from edge_node.demo import main

    return main(["--keep"] * parsed.keep + parsed.rest)


def doctor(parsed: argparse.Namespace) -> int:
    """Print every finding; failed when one of them keeps the node from working."""
    from edge_node.doctor import examine

    broken, warned = 0, 0
    records = []
    for finding in examine(Path(parsed.config)):
        broken += finding.severity == "error"
        warned += finding.severity == "warning"
        if parsed.json:
            records.append(finding._asdict())
        else:
            _print_finding(finding)  # at once: probes take seconds
    if parsed.json:
        print_json(records)
    else:
        print(f"{broken} broken, {warned} to look at.")
    return FAILED if broken else 0


def _print_finding(finding: Finding) -> None:
    print(f"{finding.severity:<8} {finding.subject}: {_lines(finding.what)}")
    if finding.remedy:
        print(f"{'':<8} -> {_lines(finding.remedy)}", flush=True)


def _lines(text: str) -> str:
    return f"\n{'':<9}".join(cell(line) for line in text.splitlines())
