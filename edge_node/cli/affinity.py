"""Show what a node has learned of what tasks take where: `affinity`."""

from __future__ import annotations

import argparse
from typing import Any

from edge_node.cli.client import Client, add_client_arguments
from edge_node.cli.tables import cell, print_json, print_table, span


def add_verbs(verbs: Any) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser(
        "affinity",
        help="show what the node has learned of what tasks take where",
        description="Show the affinity model: its stage (prior, residual, direct), its rolling "
        "error beside the prior's, drift, the correction of each node, and where energy figures "
        "come from (ina, rapl, or a declared table).",
    )
    add_client_arguments(parser)
    parser.set_defaults(verb=affinity)


def affinity(parsed: argparse.Namespace) -> int:
    """Print the state of the affinity model."""
    found = Client(parsed).get("/edge/v1/affinity")
    if parsed.json:
        print_json(found)
        return 0
    shadow = found.get("shadow_error")
    rows = [
        ["stage", found.get("stage")],
        ["rows", found.get("rows")],
        ["model's rows", found.get("model_rows")],
        ["model's age", span(found.get("model_age_s"))],
        ["error", _share(found.get("error"))],
        ["the prior's", _share(found.get("prior_error"))],
        ["on trial", "none" if shadow is None else _share(shadow)],
        ["drift", f"{found.get('drift_kl', 0):.2f}" + " (alarm)" * bool(found.get("drifting"))],
        ["energy", f"{cell(found.get('energy'))}: {found.get('joules', 0)} J answered here"],
    ]
    rows += [[f"factor {place}", f"{2.71828**value:.2f}"] for place, value in _biases(found)]
    rows += [["trouble", text] for text in found.get("trouble", [])]
    print_table(("FIELD", "VALUE"), rows, empty="")
    return 0


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _biases(found: dict[str, Any]) -> list[tuple[str, float]]:
    return sorted(found.get("bias", {}).items())
