"""Show what a node reuses of its cameras' earlier frames, how often and how exactly: `cache`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from edge_node.cli.client import Client, add_client_arguments
from edge_node.cli.fleet import percentage
from edge_node.cli.outcome import CliError
from edge_node.cli.tables import cell, print_json, print_table, span

HEADER = ("AGENT", "MODEL", "MODE", "HIT %", "SPARSE %", "SAVED %", "AGREES", "SETTING", "MB")
NO_ROWS = "Nothing to reuse yet; a camera is listed after its first frame here."


def add_verbs(verbs: Any) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser(
        "cache",
        help="show what is reused of each camera's earlier frames, how often and how exactly",
        description="Show what this node reuses of its cameras' earlier frames: how often (HIT: "
        "the answer, SPARSE: the network's activations), the network's work SAVED, and how far "
        "audited answers AGREE with full passes (F1 / target).",
    )
    parser.add_argument("agent", metavar="AGENT", nargs="?", help="show all about one camera")
    add_client_arguments(parser)
    parser.set_defaults(verb=cache)


def cache(parsed: argparse.Namespace) -> int:
    """Print one row per camera and model, or all that is known of one camera."""
    client = Client(parsed)
    answer = client.get("/edge/v1/cache")
    if parsed.agent is not None:
        answer = [one for one in answer if one["agent"] == parsed.agent]
        if not answer:
            raise CliError(_missing(parsed.agent, client.get("/edge/v1/agents")))
    if parsed.json:
        print_json(answer)
    elif parsed.agent is None:
        rows = [_row(one) for one in answer]
        print_table((*HEADER, "AGE", "WHY"), rows, empty=NO_ROWS)
    else:
        for index, one in enumerate(answer):
            print("\n" * (index > 0), end="")
            print_table(("FIELD", "VALUE"), _details(one), empty="")
    return 0


def _missing(agent: str, agents: Sequence[dict[str, Any]]) -> str:
    """Say why there is no record of an agent, and what to do."""
    known = {one["agent"]: one for one in agents}
    if agent not in known:
        return f"no agent {agent}; there is: {cell(', '.join(sorted(known)))}"
    if known[agent]["here"]:
        return f"agent {agent} has had no frame here yet; its state: edge-node agents"
    return f"agent {agent} runs on {cell(known[agent]['host'])}; ask that node: --api HOST:PORT"


def _row(one: dict[str, Any]) -> list[Any]:
    rungs = one["rungs"]
    frames = sum(rungs.values())
    return [
        one["agent"],
        _model(one),
        one["mode"],
        _percent(one["hit_ratio"]),
        _percent(rungs["sparse"] / frames if frames else None),
        _percent(one["work_saved"]),
        _agreement(one),
        _setting(one),
        one["size_bytes"] / 1e6,
        span(one["age_s"]),
        one["reason"],
    ]


def _details(one: dict[str, Any]) -> list[list[Any]]:
    rungs, (height, width) = one["rungs"], one["canvas"]
    frames = sum(rungs.values())
    holders = ", ".join(holder["name"] for holder in one["holders"])
    no_sparse = f"no: {one['refusal']}" if one["refusal"] else ""
    return [
        ["agent", one["agent"]],
        ["runs here", one["here"] or "no: a peer forwards its frames, or it has moved"],
        ["accelerator", one["accelerator"]],
        ["model", f"{_model(one)}, digest {one['digest'][:12]}, at {width} x {height} pixels"],
        ["mode", one["mode"]],
        ["why", one["reason"]],
        ["setting", _setting(one)],
        ["sparse passes", no_sparse or f"possible, {one['executor']} executor"],
        ["frames", frames],
        *([f"  {rung}", _counted(rungs[rung], frames)] for rung in rungs),
        ["work saved", percentage(one["work_saved"], 1)],
        ["audits agree", _agreement(one)],
        ["audited frames", one["audits"]],
        ["breaches", one["breaches"]],
        ["memory", f"{one['size_bytes'] / 1e6:.1f} MB"],
        ["last full pass", f"{span(one['age_s'])} ago" if one["age_s"] is not None else None],
        ["held elsewhere by", holders],
    ]


def _model(one: dict[str, Any]) -> str:
    return str(one["variant"] or one["digest"][:12])


def _percent(share: float | None) -> float | None:
    return None if share is None else 100.0 * share


def _counted(part: int, whole: int) -> str:
    return f"{part} ({percentage(part, whole)})" if whole else str(part)


def _agreement(one: dict[str, Any]) -> str:
    agreed = "-" if one["agreement"] is None else f"{one['agreement']:.3f}"
    return f"{agreed} / {one['target']:.3f}"


def _setting(one: dict[str, Any]) -> str | None:
    """Show by what frames are reused: the share of cells that may change, sparse thresholds."""
    if one["mode"] in ("off", "calibrating"):
        return None
    sparse = "" if one["level"] is None else f", level {one['level']:.3g}"
    return f"gate {100 * one['gate']:.3g} %{sparse}"
