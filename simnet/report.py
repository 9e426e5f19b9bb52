"""What came of runs, for people at a terminal, and as JSON for what reads it later.

Owns which figures are shown and how they are written; never measures one, and never prints.
Invariant: wherever a slowest or worst one stands, the average stands beside it; a figure that is
not a measurement of the real thing says so.
"""

import json
from collections.abc import Iterable, Sequence
from math import ceil
from pathlib import Path
from typing import NamedTuple

from edge_node.cli.tables import cell, span
from simnet.outcome import Load, Outcome, from_json, to_json

SHARES = (0.5, 0.9, 0.99)

_LOADS = {
    "sent_bytes_per_s": ("sent", "B/s"),
    "datagrams_per_s": ("datagrams sent", "1/s"),
    "cpu_share": ("share of a processor", ""),
    "pss_mib": ("memory, proportional", "MiB"),
    "beyond_shared_mib": ("memory beyond shared pages", "MiB"),
}


class Figure(NamedTuple):
    """One line: the average, the slowest or worst, and of what they are."""

    name: str
    unit: str
    mean: float | None
    most: float | None
    of: str = ""


def read_json(path: str | Path) -> list[Outcome]:
    """Return the outcomes in a file. Raises ValueError naming the file and what is wrong."""
    try:
        table = json.loads(Path(path).read_text())
        return [from_json(one) for one in table["outcomes"]]
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a file of outcomes") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_json(path: str | Path, outcomes: Iterable[Outcome]) -> None:
    """Write outcomes for ``read_json``. Raises OSError."""
    table = {"outcomes": [to_json(outcome) for outcome in outcomes]}
    Path(path).write_text(json.dumps(table) + "\n")


def number(value: float | None) -> str:
    """Write a number with three digits that count, `-` for none."""
    if value is None:
        return "-"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.{1 if abs(value) >= 10 else 2}f}"


def size(count: float) -> str:
    """Write a number of bytes."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= scale:
            return f"{count / scale:.{1 if count < 100 * scale else 0}f} {unit}"
    return f"{count:.0f} B"


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that this share of them does not exceed."""
    ranked = sorted(values)
    return ranked[max(0, ceil(share * len(ranked)) - 1)]


def labels(outcome: Outcome) -> list[str]:
    """Return what a reader must know of how the figures came about."""
    hosts = {"world": "virtual time", "cluster": "real processes"}
    found = [hosts[outcome.host]] if outcome.host in hosts else []
    if outcome.cryptography:
        found.append(f"{outcome.cryptography} cryptography")
    if outcome.emulated:
        found.append("emulated accelerators")
    return found


def title(outcome: Outcome) -> str:
    """Return the scenario and its seed; of a seed that never gave a result, only that."""
    return (
        f"{outcome.scenario}, seed {outcome.seed}" if outcome.scenario else f"seed {outcome.seed}"
    )


def verdict(outcome: Outcome) -> str:
    """Return one word, or the invariant that did not hold."""
    return "passed" if outcome.violation is None else f"failed: {outcome.violation.invariant}"


def mean(values: Iterable[float]) -> float | None:
    """Return the average; None of nothing."""
    known = list(values)
    return sum(known) / len(known) if known else None


def spread(outcome: Outcome) -> Figure:
    """Return how writes spread: the average node's rounds, and the slowest one's of all writes."""
    spreads = outcome.spreads
    missed = sum(one.missed for one in spreads)
    most = max((one.most for one in spreads), default=None)
    of = f"{len(spreads)} writes, {missed} times missed"
    return Figure("spread of a write", "rounds", mean(one.mean for one in spreads), most, of)


def figures(outcome: Outcome) -> list[Figure]:
    """Return the figures that a run has: spread, heal, deaths, then loads over the nodes."""
    found = []
    if outcome.spreads:
        found.append(spread(outcome))
    if outcome.down_rounds:
        rounds = outcome.down_rounds
        of = f"{len(rounds)} crashes" if len(rounds) > 1 else "1 crash"
        found.append(Figure("death noticed by all", "probes", mean(rounds), max(rounds), of))
    return found + [_load(name, load) for name, load in outcome.loads.items()]


def heal(outcome: Outcome) -> str:
    """Return how long it took until all agreed, in seconds and rounds."""
    if outcome.heal_s < 0:
        return "never agreed" if outcome.sights else "-"
    if outcome.heal_s == 0:
        return "at once"
    rounds = f" ({number(outcome.heal_s / outcome.round_s)} rounds)" if outcome.round_s else ""
    return f"{number(outcome.heal_s)} s{rounds}"


def cost(outcome: Outcome) -> str:
    """Return what the run took."""
    time = "virtual" if outcome.host == "world" else "real"
    parts = [f"{number(outcome.ran_s)} s of {time} time"] if outcome.ran_s else []
    parts += [f"{number(outcome.wall_s)} s by the clock"] if outcome.wall_s else []
    parts += [f"{number(outcome.cpu_s)} s of processor"] if outcome.cpu_s else []
    parts += [f"{number(outcome.memory_mib)} MiB at most"] if outcome.memory_mib else []
    return ", ".join(parts)


def table(outcome: Outcome) -> str:
    """Return one run's report as lines of text."""
    named = {
        "round": f"{number(outcome.round_s * 1000)} ms" if outcome.round_s else "",
        "heal": heal(outcome) if outcome.host else "",
        "cost": cost(outcome),
        "trace": outcome.trace_hash,
        "replay": outcome.replay,
    }
    nodes = f", {outcome.nodes} nodes" if outcome.nodes else ""
    lines = [f"{title(outcome)}{nodes}: {verdict(outcome)}", f"({'; '.join(labels(outcome))})"]
    lines = lines if labels(outcome) else lines[:1]
    lines += [f"{name:<8}{value}" for name, value in named.items() if value]
    for block in (_figures, _frames, _bytes, _episodes):
        if rows := block(outcome):
            lines += ["", *rows]
    if outcome.violation:
        lines += ["", f"violation: {outcome.violation}"]
        lines += [f"  {one}" for one in outcome.violation.last]
    lines += ["", *(f"note: {note}" for note in outcome.notes)] if outcome.notes else []
    return "\n".join(_safe(line) for line in lines) + "\n"


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return the report of many seeds as lines of text."""
    failed = [one for one in outcomes if not one.passed]
    lines = [f"{len(outcomes)} seeds: {len(outcomes) - len(failed)} passed, {len(failed)} failed"]
    said = dict.fromkeys(label for one in outcomes for label in labels(one))
    lines += [f"({'; '.join(said)})"] if said else []
    if failed:
        rows = [
            [name, str(len(seeds)), ", ".join(map(str, seeds[:12])) + (" ..." * (len(seeds) > 12))]
            for name, seeds in by_invariant(outcomes).items()
        ]
        lines += ["", *_aligned(["invariant", "seeds", "which"], rows)]
    if rows := [row for figure in distributions(outcomes) if (row := _percentiles(*figure))]:
        header = ["over seeds", "unit", "mean", *(f"p{share * 100:.0f}" for share in SHARES)]
        lines += ["", *_aligned([*header, "most", "seed"], rows)]
    if failed:
        worst = failed[0]
        lines += ["", f"first failure: {title(worst)}: {worst.violation}"]
        lines += [f"  {worst.replay}"] if worst.replay else []
    cpu_s = sum(one.cpu_s for one in outcomes)
    if outcomes and cpu_s:
        ran_s = sum(one.ran_s for one in outcomes)
        most = max(outcomes, key=lambda one: one.cpu_s)
        lines += [
            "",
            f"processor: {span(cpu_s)}, {number(cpu_s / len(outcomes))} s a seed, at most",
        ]
        lines[-1] += f" {number(most.cpu_s)} s (seed {most.seed});"
        lines[-1] += f" {number(ran_s / cpu_s)} s simulated a second"
    return "\n".join(_safe(line) for line in lines) + "\n"


def by_invariant(outcomes: Iterable[Outcome]) -> dict[str, list[int]]:
    """Return the seeds that failed by invariant, the most frequent one first."""
    found: dict[str, list[int]] = {}
    for one in outcomes:
        if one.violation:
            found.setdefault(one.violation.invariant, []).append(one.seed)
    ranked = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return {name: sorted(seeds) for name, seeds in ranked}


def distributions(outcomes: Iterable[Outcome]) -> list[tuple[str, str, list[tuple[float, int]]]]:
    """Return name, unit, and each seed's value with the seed, of what is compared over seeds."""
    known = list(outcomes)
    return [
        ("heal", "s", [(one.heal_s, one.seed) for one in known if one.heal_s >= 0]),
        *_two("spread", "rounds", [(spread(one), one.seed) for one in known if one.spreads]),
        *_two(
            "death noticed",
            "probes",
            [
                (Figure("", "", mean(one.down_rounds), max(one.down_rounds)), one.seed)
                for one in known
                if one.down_rounds
            ],
        ),
    ]


def _two(
    name: str, unit: str, found: list[tuple[Figure, int]]
) -> list[tuple[str, str, list[tuple[float, int]]]]:
    return [
        (f"{name}, average", unit, [(figure.mean or 0.0, seed) for figure, seed in found]),
        (f"{name}, slowest", unit, [(figure.most or 0.0, seed) for figure, seed in found]),
    ]


def _percentiles(name: str, unit: str, values: list[tuple[float, int]]) -> list[str]:
    if not values:
        return []
    plain = [value for value, _ in values]
    most, seed = max(values)
    ranked = [number(percentile(plain, share)) for share in SHARES]
    return [name, unit, number(mean(plain)), *ranked, number(most), str(seed)]


def _load(name: str, load: Load) -> Figure:
    label, unit = _LOADS.get(name, (name.replace("_", " "), ""))
    return Figure(label, unit, load.mean, load.most, f"worst: {load.who}" if load.who else "")


def _figures(outcome: Outcome) -> list[str]:
    rows = [
        [one.name, one.unit, number(one.mean), number(one.most), one.of] for one in figures(outcome)
    ]
    return _aligned(["figure", "unit", "average", "slowest", ""], rows) if rows else []


def _frames(outcome: Outcome) -> list[str]:
    if not outcome.frames:
        return []
    ends = sorted({end for one in outcome.frames for end in one.ends})
    rows = [
        [
            str(one.tier),
            number(one.arrived),
            *(number(one.ends.get(end, 0)) for end in ends),
            *(number(ms) if ms >= 0 else "-" for ms in (one.p50_ms, one.p90_ms, one.p99_ms)),
        ]
        for one in outcome.frames
    ]
    said = " (emulated accelerators)" if outcome.emulated else ""
    header = ["tier", "arrived", *ends, "p50 ms", "p90 ms", "p99 ms"]
    return [f"frames and their latency by tier{said}", *_aligned(header, rows)]


def _bytes(outcome: Outcome) -> list[str]:
    total = sum(outcome.bytes_by_kind.values())
    rows = [
        [kind, size(count), f"{100 * count / total:.1f} %"]
        for kind, count in sorted(outcome.bytes_by_kind.items(), key=lambda item: -item[1])
        if count
    ]
    return _aligned(["sent by kind", size(total), "share"], rows) if rows else []


def _episodes(outcome: Outcome) -> list[str]:
    rows = [
        [
            f"{one.at_s:.1f}",
            f"{one.end_s:.1f}" if one.end_s >= 0 else "for good",
            one.kind,
            str(one.nodes),
            one.what,
        ]
        for one in outcome.episodes[:40]
    ]
    if len(outcome.episodes) > 40:
        rows.append(["", "", f"and {len(outcome.episodes) - 40} more", "", ""])
    return _aligned(["fault, s", "until", "kind", "nodes", ""], rows) if rows else []


def _aligned(header: list[str], rows: list[list[str]]) -> list[str]:
    """Return lines of columns, those of numbers to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    right = [
        any(row[column] for row in rows)
        and all(row[column][:1].isdigit() or row[column][:1] in ("-", "") for row in rows)
        for column in range(len(header))
    ]
    return [
        "  ".join(
            text.rjust(width) if flush else text.ljust(width)
            for text, width, flush in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in (header, *rows)
    ]


def _safe(line: str) -> str:
    """Return text that cannot steer the terminal."""
    return cell(line) if line else ""
