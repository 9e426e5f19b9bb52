"""What every benchmark reports: a table on the terminal and a file for programs."""

import json
from pathlib import Path
from typing import NamedTuple


class Figure(NamedTuple):
    """One measured value; ``target`` is None where there is none, ``op`` how to compare."""

    figure: str
    value: float
    op: str = ""
    target: float | None = None
    note: str = ""


def report(name: str, figures: list[Figure]) -> None:
    """Print the figures and write them to ``.bench/NAME.json``."""
    width = max(len(one.figure) for one in figures)
    for one in figures:
        target = "" if one.target is None else f"{one.op} {one.target:g}"
        print(f"{one.figure:<{width}}  {one.value:>10.3f}  {target:<9} {one.note}".rstrip())
    path = Path(".bench") / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([one._asdict() for one in figures], indent=1) + "\n")
