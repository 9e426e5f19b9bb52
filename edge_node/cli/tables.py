"""Print records as an aligned table or as JSON.

Owns: how values look to people. Never: knows what a record means, or uses colours.
Invariant: text from other nodes cannot steer the terminal; what is not printable shows as `?`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any


def print_json(value: Any) -> None:
    """Print the value as indented JSON."""
    print(json.dumps(value, indent=2))


def cell(value: Any) -> str:
    """Show one value: `-` for none, one decimal for a fraction, yes and no, compact JSON."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}"
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return "".join(char if char.isprintable() else "?" for char in text)


def short_id(node: str) -> str:
    """Show a node's id by its first 8 digits; a name stays as it is."""
    return node[:8] if len(node) == 32 and set(node) <= set("0123456789abcdef") else node


def span(seconds: float | None) -> str | None:
    """Show a duration in its largest whole unit."""
    if seconds is None:
        return None
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Print aligned columns under a header, numbers to the right; `empty` when there is no row."""
    rows = list(rows)
    if not rows:
        print(empty)
        return
    texts = [list(header), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(line[column]) for line in texts) for column in range(len(header))]
    right = [
        all(isinstance(row[column], int | float | None) for row in rows)
        for column in range(len(header))
    ]
    for line in texts:
        padded = (
            text.rjust(width) if flush else text.ljust(width)
            for text, width, flush in zip(line, widths, right, strict=True)
        )
        print("  ".join(padded).rstrip())
