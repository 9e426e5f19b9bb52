"""Show and choose the fleet's models: `models ls`, `models set`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from edge_node.cli.client import Client, add_client_arguments
from edge_node.cli.tables import cell, print_json, print_table


def add_verbs(verbs: Any) -> None:
    """Add the verbs to the parser."""
    group = verbs.add_parser("models", help="list models, or choose the variant the fleet runs")
    kinds = group.add_subparsers(metavar="VERB", required=True)
    ls = kinds.add_parser("ls", help="list models, their variants and which node runs which")
    ls.set_defaults(verb=list_models)
    choose = kinds.add_parser("set", help="choose the variant that every node shall run")
    choose.add_argument("name", metavar="NAME", help="for example person-detector")
    choose.add_argument("variant", metavar="VARIANT", help="for example small")
    choose.set_defaults(verb=set_variant)
    for parser in (ls, choose):
        add_client_arguments(parser)


def list_models(parsed: argparse.Namespace) -> int:
    """Print one row per variant; the desired one is marked."""
    answer = Client(parsed).get("/edge/v1/models")
    if parsed.json:
        print_json(answer)
        return 0
    rows = [row for model in answer for row in _rows(model)]
    header = ("MODEL", "VARIANT", "VERSION", "DIGEST", "SIZE kB", "DESIRED", "RUNS ON")
    print_table(header, rows, empty="No models.")
    for model in answer:
        if model["error"]:
            print(f"{cell(model['name'])}: {cell(model['error'])}")
    return 0


def _rows(model: dict[str, Any]) -> Iterator[list[Any]]:
    desired = (model["desired"] or {}).get("digest")
    for variant in model["variants"]:
        running = model["running"].items()
        nodes = [node for node, digest in running if _same(digest, variant["digest"])]
        yield [
            model["name"],
            variant["variant"],
            variant["version"],
            variant["digest"][:12],
            variant["size_bytes"] / 1000,
            "*" if _same(desired, variant["digest"]) else "",
            ", ".join(sorted(nodes)),
        ]


def _same(digest: str | None, whole: str) -> bool:
    """Tell whether a digest, which nodes publish shortened, is that of the whole one."""
    return bool(digest) and whole.startswith(str(digest))


def set_variant(parsed: argparse.Namespace) -> int:
    """Set the fleet's desired variant of a model and print what it became."""
    from urllib.parse import quote

    path = f"/edge/v1/models/{quote(parsed.name, safe='')}"
    answer = Client(parsed).put(path, {"variant": parsed.variant})
    if parsed.json:
        print_json(answer)
        return 0
    desired = answer["desired"]
    chosen = f"{desired['variant']}, version {desired['version']}, digest {desired['digest'][:12]}"
    print(f"{cell(answer['name'])}: the fleet shall run {cell(chosen)}.")
    return 0
