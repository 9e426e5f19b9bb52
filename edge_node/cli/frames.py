"""Ask about single frames: `why` explains where one ran, `infer` has an image answered."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from edge_node.cli.client import Client, add_client_arguments
from edge_node.cli.outcome import USAGE, CliError
from edge_node.cli.tables import cell, print_json, print_table


def add_verbs(verbs: Any) -> None:
    """Add the verbs to the parser."""
    why_ = verbs.add_parser(
        "why",
        help="explain where a frame ran: who was compared, what was predicted, what happened",
        description="Explain where a frame ran. Every result names its agent and frame; only the "
        "node that decided, the agent's host, knows why.",
    )
    why_.add_argument("frame", metavar="AGENT[/FRAME]", help="without FRAME: the newest")
    add_client_arguments(why_)
    why_.set_defaults(verb=why)
    infer_ = verbs.add_parser("infer", help="have one image answered, here or by a peer")
    infer_.add_argument("image", metavar="JPEG", type=Path)
    infer_.add_argument("--variant", default="", help="default: the fleet's")
    infer_.add_argument("--deadline-ms", metavar="MS", type=float, default=1000.0)
    infer_.add_argument("--tier", type=int, choices=(1, 2, 3), default=2)
    add_client_arguments(infer_)
    infer_.set_defaults(verb=infer)


def why(parsed: argparse.Namespace) -> int:
    """Print what is known of one frame."""
    parts = parsed.frame.split("/")
    if len(parts) > 2 or not all(parts):
        raise CliError(f'"{cell(parsed.frame)}" is no frame; write AGENT or AGENT/NUMBER', USAGE)
    path = "/".join(quote(part, safe="") for part in parts)
    found = Client(parsed).get(f"/edge/v1/why/{path}")
    if parsed.json:
        print_json(found)
        return 0
    print(f"{cell(found['agent'])}/{found['frame']} of {cell(found['of'])}, tier {found['tier']}")
    print(f"budget     {found['budget_ms']} ms")
    if found["scope"] is None:
        print("decision   none: the earlier answer holds, or the frame is a peer's")
    else:
        print(f"decision   {cell(found['chosen'] or 'nobody')}, scope {found['scope']}")
        rows = [
            [one["node"], one["network_ms"], one["wait_ms"], one["service_ms"], one["finish_ms"]]
            for one in found["candidates"]
        ]
        print_table(("CANDIDATE", "WAY ms", "WAIT ms", "SERVICE ms", "FINISH ms"), rows, empty="")
    if found["why_effort"]:
        asked = found["asked"]
        way = f"{asked['digest'][:12]} at {asked['effort']} effort"
        print(f"asked      {way}: {cell(found['why_effort'])}")
    for one in found["attempts"]:
        print(f"tried      {cell(one['node'])}: {cell(one['outcome'])}, {one['spent_ms']} ms")
    print(f"outcome    {cell(found['outcome'])}", end="")
    if found["latency_ms"] is not None:
        spent = f"{found['latency_ms']} ms (wait {found['wait_ms']}, service {found['service_ms']})"
        how = f"{found['effort']}, {found['rung']}"
        print(f" by {cell(found['variant'])} ({how}) in {spent}", end="")
    print()
    return 0


def infer(parsed: argparse.Namespace) -> int:
    """Print the boxes in one image."""
    try:
        image = parsed.image.read_bytes()
    except OSError as error:
        raise CliError(f"{parsed.image}: {error.strerror}", USAGE) from None
    query = urlencode(
        {"variant": parsed.variant, "deadline_ms": parsed.deadline_ms, "tier": parsed.tier}
    )
    answer = Client(parsed).post(f"/edge/v1/infer?{query}", image)
    if parsed.json:
        print_json(answer)
        return 0
    rows = [
        [box["label"], box["score"], box["x0"], box["y0"], box["x1"], box["y1"]]
        for box in answer["boxes"]
    ]
    print_table(("LABEL", "SCORE", "X0", "Y0", "X1", "Y1"), rows, empty="Nothing found.")
    print(
        f"{answer['frame']} by {cell(answer['node'])} ({cell(answer['variant'])}) in "
        f"{answer['latency_ms']} ms; edge-node why {answer['frame']}"
    )
    return 0
