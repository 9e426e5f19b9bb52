"""Show the fleet as this node sees it: `peers`, `agents`, `tiers`."""

from __future__ import annotations

import argparse
from typing import Any

from edge_node.cli.client import Client, add_client_arguments
from edge_node.cli.tables import print_json, print_table, short_id, span

Verbs = Any  # argparse's type for add_subparsers() is private


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs to the parser."""
    for name, help_text, verb in (
        ("peers", "list the fleet's nodes", peers),
        ("agents", "list the fleet's cameras: host, tier, latency, deadlines", agents),
        ("tiers", "list each agent's tier and why it has it", tiers),
    ):
        parser = verbs.add_parser(name, help=help_text, description=f"{help_text.capitalize()}.")
        add_client_arguments(parser)
        parser.set_defaults(verb=verb)


def peers(parsed: argparse.Namespace) -> int:
    """Print one row per member, this node included."""
    answer = Client(parsed).get("/edge/v1/peers")
    if parsed.json:
        print_json(answer)
        return 0
    rows = []
    for peer in answer:
        load = peer.get("load") or {}
        rows.append(
            [
                peer["name"],
                short_id(peer["id"]),
                peer["address"],
                peer["state"],
                peer["rtt_ms"],
                span(peer["since_s"]),
                load.get("queue"),
                load.get("backlog_ms"),
            ]
        )
    header = ("NODE", "ID", "ADDRESS", "STATE", "RTT ms", "SINCE", "QUEUE", "BACKLOG ms")
    print_table(header, rows, empty="No nodes.")
    return 0


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


def tiers(parsed: argparse.Namespace) -> int:
    """Print one row per agent: its tier, the declared one, and the reason."""
    answer = Client(parsed).get("/edge/v1/tiers")
    if parsed.json:
        print_json(answer)
        return 0
    rows = [
        [
            one["agent"],
            one["tier"],
            one["declared"],
            one["deadline_ms"],
            None if one["met_ratio"] is None else f"{100 * one['met_ratio']:.0f} %",
            one["reason"],
        ]
        for one in answer
    ]
    header = ("AGENT", "TIER", "DECLARED", "DEADLINE ms", "MET", "REASON")
    print_table(header, rows, empty="No agents; add a [[camera]] to a node's configuration.")
    return 0


def percentage(part: float | None, whole: float | None) -> str | None:
    """Show part of whole in percent; None where nothing was counted."""
    return f"{100 * part / whole:.0f} %" if part is not None and whole else None
