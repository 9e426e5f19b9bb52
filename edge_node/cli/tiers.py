"""Show the cameras' tiers and set them for the whole fleet: `tiers`, `tiers set`, `tiers clear`."""

from __future__ import annotations

import argparse
from typing import Any

from edge_node.cli.client import Client, add_client_arguments
from edge_node.cli.fleet import percentage
from edge_node.cli.outcome import USAGE, CliError
from edge_node.cli.tables import cell, print_json, print_table, span

HEADER = ("AGENT", "TIER", "DECLARED", "SINCE", "MET", "REASON")
NO_ROWS = "No agents; add a [[camera]] to a node's configuration."


def add_verbs(verbs: Any) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser(
        "tiers",
        help="list each camera's tier and why it has it; set it for the whole fleet",
        usage="edge-node tiers [AGENT | set AGENT 1|2|3 | clear AGENT] [options]",
        description="List each camera's tier and why it has it, or one with its history. `set` "
        "gives a camera a tier whatever its host observes, `clear` ends that.",
    )
    parser.add_argument("words", nargs="*", metavar="AGENT", help=argparse.SUPPRESS)
    add_client_arguments(parser)
    parser.set_defaults(verb=tiers, completions=("set", "clear"))


def tiers(parsed: argparse.Namespace) -> int:
    """Print one row per agent, or all of one agent, or change one."""
    match parsed.words:
        case []:
            _show_all(parsed)
        case ["set", agent, "1" | "2" | "3" as tier]:
            _print(parsed, Client(parsed).put(_path(agent), {"tier": int(tier)}))
        case ["set", _, tier]:
            raise CliError(f'"{cell(tier)}" is not a tier; use 1, 2 or 3', USAGE)
        case ["set", *_]:
            raise CliError("write: edge-node tiers set AGENT 1|2|3", USAGE)
        case ["clear", agent]:
            _print(parsed, Client(parsed).delete(_path(agent)))
        case ["clear", *_]:
            raise CliError("write: edge-node tiers clear AGENT", USAGE)
        case [agent]:
            _show(parsed, agent)
        case _:
            raise CliError("one AGENT at a time; or: tiers set AGENT 1|2|3", USAGE)
    return 0


def _show_all(parsed: argparse.Namespace) -> None:
    answer = Client(parsed).get("/edge/v1/tiers")
    if parsed.json:
        print_json(answer)
    else:
        print_table(HEADER, [_row(one) for one in answer], empty=NO_ROWS)


def _show(parsed: argparse.Namespace, agent: str) -> None:
    answer = Client(parsed).get("/edge/v1/tiers")
    found = [one for one in answer if one["agent"] == agent]
    if not found:
        known = ", ".join(one["agent"] for one in answer) or "none"
        raise CliError(f"no agent {cell(agent)}; there is: {cell(known)}")
    _print(parsed, found[0])


def _print(parsed: argparse.Namespace, one: dict[str, Any]) -> None:
    if parsed.json:
        print_json(one)
        return
    if "tier" not in one:  # its camera has gone
        print(f"{cell(one['agent'])}: no longer set")
        return
    print_table(HEADER, [_row(one)], empty="")
    if one["history"]:
        print()
        rows = [[_local_time(c["at_ms"]), c["tier"], c["reason"]] for c in one["history"]]
        print_table(("AT", "TIER", "REASON"), rows, empty="")


def _row(one: dict[str, Any]) -> list[Any]:
    return [
        one["agent"],
        one["tier"],
        one["declared"],
        span(one["since_s"]),
        percentage(one["met_ratio"], 1),
        one["reason"],
    ]


def _local_time(wall_ms: int) -> str:
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall_ms / 1e3))


def _path(agent: str) -> str:
    from urllib.parse import quote

    return f"/edge/v1/tiers/{quote(agent, safe='')}"
