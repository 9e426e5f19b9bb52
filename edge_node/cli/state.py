"""Show the replicated state: `state get`, `state watch`, `state hash`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from edge_node.cli.client import Client, add_client_arguments
from edge_node.cli.outcome import UNREACHABLE, USAGE, CliError
from edge_node.cli.tables import cell, print_json, print_table, short_id


def add_verbs(verbs: Any) -> None:
    """Add the verbs to the parser."""
    group = verbs.add_parser("state", help="read, follow or fingerprint the replicated state")
    kinds = group.add_subparsers(metavar="VERB", required=True)
    get = kinds.add_parser("get", help="list the values whose keys begin with a prefix")
    get.add_argument("prefix", metavar="KEY|PREFIX", nargs="?", default="", help="default: all")
    get.set_defaults(verb=get_state)
    watch = kinds.add_parser("watch", help="print changes as they arrive, until interrupted")
    watch.set_defaults(verb=watch_state)
    fingerprint = kinds.add_parser("hash", help="print the replica's hash: equal hash, equal state")
    fingerprint.set_defaults(verb=hash_state)
    cat = kinds.add_parser("cat", help="print an application's value, whatever its size")
    cat.add_argument("key", metavar="KEY")
    cat.set_defaults(verb=cat_value)
    put = kinds.add_parser("set", help="set an application's value for the whole fleet")
    put.add_argument("key", metavar="KEY")
    what = put.add_mutually_exclusive_group(required=True)
    what.add_argument("value", metavar="VALUE", nargs="?", help="JSON, or else taken as text")
    what.add_argument("--file", metavar="FILE", help="the bytes of a file, at most 4 MiB")
    put.set_defaults(verb=set_value)
    rm = kinds.add_parser("rm", help="delete an application's value")
    rm.add_argument("key", metavar="KEY")
    rm.set_defaults(verb=remove_value)
    for parser in (get, watch, fingerprint, cat, put, rm):
        add_client_arguments(parser)


def get_state(parsed: argparse.Namespace) -> int:
    """Print the entries under a prefix; failed when a prefix is given and nothing has it."""
    from urllib.parse import quote

    client = Client(parsed)
    answer = client.get(f"/edge/v1/state?prefix={quote(parsed.prefix, safe='')}")
    rows = list(_rows(answer))
    if parsed.prefix and not rows:
        raise CliError(f'no key begins with "{parsed.prefix}"; list all with: edge-node state get')
    if parsed.json:
        print_json(answer)
    else:
        print_table(("KIND", "KEY", "NODE", "VALUE"), rows, empty="The state is empty.")
    return 0


def _rows(answer: dict[str, Any]) -> Iterator[list[Any]]:
    for node, values in answer["owner"].items():
        for key, value in values.items():
            yield ["owner", key, short_id(node), json.dumps(value)]
    for key, value in answer["fleet"].items():
        yield ["fleet", key, None, json.dumps(value)]
    for key, elements in answer["sets"].items():
        for element in elements:
            yield ["set", key, None, json.dumps(element)]


def cat_value(parsed: argparse.Namespace) -> int:
    """Print a value: JSON as one line, bytes as they are."""
    value = Client(parsed).fetch(_value_path(parsed.key))
    if isinstance(value, bytes):
        import sys

        sys.stdout.buffer.write(value)
    else:
        print_json(value)
    return 0


def set_value(parsed: argparse.Namespace) -> int:
    """Set a value from the command line or from a file."""
    client = Client(parsed)
    if parsed.file is not None:
        try:
            with open(parsed.file, "rb") as file:
                data = file.read()
        except OSError as error:
            raise CliError(f"{parsed.file}: {error.strerror}") from None
        answer = client.put_bytes(_value_path(parsed.key), data)
    else:
        try:
            value = json.loads(parsed.value)
        except ValueError:
            value = parsed.value
        if value is None:
            raise CliError("null is no value; delete one with: edge-node state rm KEY", USAGE)
        answer = client.put(_value_path(parsed.key), value)
    if parsed.json:
        print_json(answer)
    else:
        print(f"{cell(answer['key'])}: set for the fleet.")
    return 0


def remove_value(parsed: argparse.Namespace) -> int:
    """Delete a value."""
    answer = Client(parsed).delete(_value_path(parsed.key))
    if parsed.json:
        print_json(answer)
    else:
        print(f"{cell(answer['key'])}: deleted.")
    return 0


def _value_path(key: str) -> str:
    from urllib.parse import quote

    return f"/edge/v1/values/{quote(key)}"


def watch_state(parsed: argparse.Namespace) -> int:
    """Print one line per change; ends well when interrupted, as unreachable when cut off."""
    client = Client(parsed)
    try:
        for change in client.events("/edge/v1/state/watch"):
            if parsed.json:
                print(json.dumps(change), flush=True)
                continue
            columns = (change["kind"], change["key"], short_id(change["origin"]))
            print(
                "  ".join(map(cell, columns)),
                cell(json.dumps(change["value"])),
                sep="  ",
                flush=True,
            )
    except KeyboardInterrupt:
        return 0
    raise CliError(f"the daemon at {client.address} closed the stream", UNREACHABLE)


def hash_state(parsed: argparse.Namespace) -> int:
    """Print the replica's hash, from how many origins it is, and whether any lacks batches."""
    answer = Client(parsed).get("/edge/v1/state/hash")
    if parsed.json:
        print_json(answer)
    else:
        complete = "complete" if answer["complete"] else "incomplete"
        origins = f"{cell(answer['origins'])} origin{'s' * (answer['origins'] != 1)}"
        print(f"{cell(answer['hash'])}  {origins}  {complete}")
    return 0
