"""Say who belongs to the fleet: `keys`, `keys rotate`, `members revoke`, `members restore`."""

from __future__ import annotations

import argparse
from typing import Any

from edge_node.cli.client import Client, add_client_arguments
from edge_node.cli.tables import cell, print_json, print_table, short_id, span


def add_verbs(verbs: Any) -> None:
    """Add the verbs to the parser."""
    about = "show the age of the fleet's key and who holds it; replace it"
    group = verbs.add_parser("keys", help=about, description=f"{about.capitalize()}.")
    add_client_arguments(group)
    group.set_defaults(verb=keys)
    kinds = group.add_subparsers(metavar="VERB")
    new = kinds.add_parser("rotate", help="give the whole fleet a new key")
    new.add_argument("--force", action="store_true", help="even if it locks members out")
    new.set_defaults(verb=rotate)
    group = verbs.add_parser("members", help="shut a node out of the fleet, or take it back in")
    kinds = group.add_subparsers(metavar="VERB", required=True)
    out = kinds.add_parser("revoke", help="shut a node out of the fleet")
    out.set_defaults(verb=revoke)
    back = kinds.add_parser("restore", help="take a revoked node back in")
    back.set_defaults(verb=restore)
    for parser in (out, back):
        parser.add_argument("member", metavar="ID", help="its id, the beginning of it, or its name")
    for parser in (new, out, back):
        add_client_arguments(parser)


def keys(parsed: argparse.Namespace) -> int:
    """Print the key epochs, and who holds the current key; never a key."""
    _print(parsed, Client(parsed).get("/edge/v1/keys"))
    return 0


def rotate(parsed: argparse.Namespace) -> int:
    """Have the daemon make the next key; it tells the fleet."""
    client = Client(parsed)
    epoch = client.get("/edge/v1/keys")["epoch"] + 1
    _print(parsed, client.put("/edge/v1/keys", {"epoch": epoch, "force": parsed.force}))
    return 0


def _print(parsed: argparse.Namespace, answer: dict[str, Any]) -> None:
    if parsed.json:
        print_json(answer)
        return
    previous, left_s = answer["previous"], answer["previous_left_s"]
    rows = [
        ["key epoch", answer["epoch"]],
        ["in use for", span(answer["age_s"]) or "since the configured secret"],
        ["previous", None if previous is None else f"{previous}, taken for {span(left_s)} more"],
        ["held by", ", ".join(answer["current"])],
        ["not yet by", ", ".join(answer["behind"])],
        ["survives a restart", answer["durable"]],
    ]
    print_table(("FLEET KEY", ""), [[name, cell(value)] for name, value in rows], empty="")


def revoke(parsed: argparse.Namespace) -> int:
    """Revoke a node; what it knows of the key is ended by a rotation only."""
    answer = Client(parsed).put(_path(parsed), {})
    if parsed.json:
        print_json(answer)
    else:
        print(f"{_shown(answer)}: revoked. It still knows the key: edge-node keys rotate")
    return 0


def restore(parsed: argparse.Namespace) -> int:
    """Take a revoked node back in."""
    answer = Client(parsed).delete(_path(parsed))
    if parsed.json:
        print_json(answer)
    else:
        print(f"{_shown(answer)}: no longer revoked. Restart it, so that it is met anew.")
    return 0


def _shown(answer: dict[str, Any]) -> str:
    return f"{cell(answer['name'])} ({short_id(answer['id'])})"


def _path(parsed: argparse.Namespace) -> str:
    from urllib.parse import quote

    return f"/edge/v1/revoked/{quote(parsed.member, safe='')}"
