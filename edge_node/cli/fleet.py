"""Show the fleet as this node sees it, and empty a node: `peers`, `agents`, `drain`."""

from __future__ import annotations

import argparse
from typing import Any

from edge_node.cli.client import Client, add_client_arguments
from edge_node.cli.tables import cell, print_json, print_table, short_id, span

Verbs = Any  # argparse's type for add_subparsers() is private


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs to the parser."""
    for name, help_text, verb in (
        ("peers", "list the fleet's nodes", peers),
        ("agents", "list the fleet's cameras: host, tier, latency, deadlines", agents),
    ):
        parser = verbs.add_parser(name, help=help_text, description=f"{help_text.capitalize()}.")
        add_client_arguments(parser)
        parser.set_defaults(verb=verb)
    about = "give this node's cameras to the others, and take no work of theirs"
    parser = verbs.add_parser("drain", help=about, description=f"{about.capitalize()}.")
    parser.add_argument("--undo", action="store_true", help="keep and take cameras again")
    add_client_arguments(parser)
    parser.set_defaults(verb=drain)


def peers(parsed: argparse.Namespace) -> int:
    """Print one row per member, this node included."""
    answer = Client(parsed).get("/edge/v1/peers")
    if parsed.json:
        print_json(answer)
        return 0
    rows = []
    for peer in answer:
        load = peer.get("load") or {}
        waits_ms = load.get("waits_ms")
        rows.append(
            [
                peer["name"],
                short_id(peer["id"]),
                peer["address"],
                _state(peer),
                peer["rtt_ms"],
                span(peer["since_s"]),
                load.get("queue"),
                waits_ms[-1] if isinstance(waits_ms, list) and waits_ms else None,
            ]
        )
    header = ("NODE", "ID", "ADDRESS", "STATE", "RTT ms", "SINCE", "QUEUE", "WAIT ms")
    print_table(header, rows, empty="No nodes.")
    return 0


def _state(peer: dict[str, Any]) -> str:
    """Show whether a node is there, and why it gives its cameras away."""
    reasons = [reason for reason in ("draining", "hot") if peer.get(reason)]
    return ", ".join([peer["state"], *reasons])


def agents(parsed: argparse.Namespace) -> int:
    """Print one row per agent of the fleet; figures are of the node that is asked."""
    answer = Client(parsed).get("/edge/v1/agents")
    if parsed.json:
        print_json(answer)
        return 0
    rows = [
        [
            agent["agent"],
            agent["host"],
            agent["state"],
            agent["tier"],
            agent["fps"],
            agent["variant"],
            agent["answered"],
            percentage(agent["met"], agent["frames"]),
            agent["forwarded"],
            agent["hits"],
            agent["p50_ms"],
            agent["p95_ms"],
            agent["reason"],
        ]
        for agent in answer
    ]
    header = ["AGENT", "HOST", "STATE", "TIER", "FPS", "VARIANT", "ANSWERS", "MET", "FORWARDED"]
    header += ["HITS", "P50 ms", "P95 ms", "REASON"]
    print_table(header, rows, empty="No agents; add a [[camera]] to a node's configuration.")
    return 0


def drain(parsed: argparse.Namespace) -> int:
    """Have the node give its cameras away, or keep and take some again."""
    answer = Client(parsed).put("/edge/v1/drain", {"on": not parsed.undo})
    if parsed.json:
        print_json(answer)
    elif not answer["draining"]:
        hot = " It is too hot, and gives its cameras away until it has cooled." * answer["hot"]
        print(f"This node drains no longer: its own cameras come back to it.{hot}")
    else:
        runs = cell(", ".join(answer["agents"]))
        print(f"This node drains, also after a restart. It still runs: {runs}")
        print("See them go with: edge-node agents. Undo with: edge-node drain --undo")
    return 0


def percentage(part: float | None, whole: float | None) -> str | None:
    """Show part of whole in percent; None where nothing was counted."""
    return f"{100 * part / whole:.0f} %" if part is not None and whole else None
