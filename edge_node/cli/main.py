"""Read the command line, run one verb, and turn its outcome into an exit status.

Owns: the parser's root, and the meaning of exit statuses: 0 done, 1 the operation failed,
2 wrong usage or configuration, 3 the daemon cannot be reached.
Never: does a verb's work, or shows a traceback for what a user can correct.
Invariant: importing this module imports neither an event loop nor any package from outside the
standard library, so that `--help` and completion are quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from edge_node import __version__
from edge_node.cli import (
    affinity,
    cache,
    completion,
    fleet,
    frames,
    host,
    init,
    models,
    state,
    tiers,
    trust,
)
from edge_node.cli.outcome import FAILED, USAGE, CliError


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all verbs; each sets `verb`, a function of the parsed arguments."""
    parser = argparse.ArgumentParser(
        prog="edge-node",
        description="Run camera models on this device and share their state with its peers.",
        epilog="Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 3 no daemon.",
    )
    parser.add_argument("--version", action="version", version=f"edge-node {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    host.add_verbs(verbs)
    init.add_verbs(verbs)
    fleet.add_verbs(verbs)
    tiers.add_verbs(verbs)
    cache.add_verbs(verbs)
    affinity.add_verbs(verbs)
    frames.add_verbs(verbs)
    state.add_verbs(verbs)
    trust.add_verbs(verbs)
    models.add_verbs(verbs)
    completion.add_verbs(verbs, parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that argv (default: the process's arguments) names; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        parsed, unknown = build_parser().parse_known_args(arguments)
        if unknown and not getattr(parsed, "passes_rest", False):
            build_parser().error(f"unrecognized arguments: {' '.join(unknown)}")
        parsed.rest = unknown
        status: int = parsed.verb(parsed)
        sys.stdout.flush()
        return status
    except CliError as error:
        print(f"edge-node: {error}", file=sys.stderr)
        return error.status
    except BrokenPipeError:
        # The reader (head, less) is gone; keep the interpreter's exit from complaining too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return 130
    except ValueError as error:
        if type(error).__name__ != "ConfigError":  # not imported: most verbs need no configuration
            raise
        print(error, file=sys.stderr)
        return USAGE


if __name__ == "__main__":
    sys.exit(main())
