"""What came of runs as one HTML page that needs nothing else and runs nothing.

Owns the page's order, words and style; charts come from :mod:`simnet.charts`, figures from
:mod:`simnet.report`. Invariant: whatever a run put into its outcome is shown as text, never as
markup, and the page loads nothing.
"""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from typing import Any

from simnet import charts, report
from simnet.charts import Bar, Series
from simnet.outcome import Episode, Outcome, Sight
from simnet.page_style import STYLE
from simnet.report import number, size

MOST_FAILURES = 12
"""So many failing seeds have their own section; all are in the table."""
_OPEN_ROWS = 40
_MOST_DOTS = 400
_LANE = 20.0
_SPREAD = (("average node", "c0"), ("slowest node", "c1"))


def page(outcomes: Sequence[Outcome]) -> str:
    """Return the page: of one run all it has, of many their verdicts and the failing ones."""
    if len(outcomes) == 1:
        outcome = outcomes[0]
        heading, body = report.title(outcome), _head(outcome) + _run(outcome)
    else:
        heading, body = f"{len(outcomes)} seeds", _many(outcomes)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>simnet: {escape(heading)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _head(outcome: Outcome) -> str:
    nodes = f", {outcome.nodes:,} nodes" if outcome.nodes else ""
    good = "good" if outcome.passed else "bad"
    facts = [("verdict", f'<span class="verdict {good}">{escape(report.verdict(outcome))}</span>')]
    if outcome.host:
        facts.append(("all agree again after", escape(report.heal(outcome))))
    if outcome.spreads:
        one = report.spread(outcome)
        facts.append(
            (
                "spread of a write",
                f"{number(one.mean)} <small>rounds on average</small>, {number(one.most)} "
                "<small>slowest</small>",
            )
        )
    if outcome.round_s:
        facts.append(("a round", f"{number(outcome.round_s * 1000)} ms"))
    return (
        f"<h1>{escape(report.title(outcome))}{nodes}</h1>\n<p>{_tags([outcome])}</p>\n<dl>"
        + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
        + "</dl>\n"
    )


def _run(outcome: Outcome) -> str:
    """Return the sections of one run, without those that it has no data for."""
    parts = [
        _violation(outcome),
        _agreement(outcome),
        _spread(outcome),
        _latency(outcome),
        _bytes(outcome),
        _loads(outcome),
        _again(outcome),
    ]
    return "\n".join(part for part in parts if part)


def _many(outcomes: Sequence[Outcome]) -> str:
    failed = [one for one in outcomes if not one.passed]
    shown = {one.seed for one in failed[:MOST_FAILURES]}
    good = f'<span class="verdict {"bad" if failed else "good"}">{len(failed)} failed</span>'
    names = dict.fromkeys(one.scenario for one in outcomes if one.scenario)
    parts = [
        f"<h1>{len(outcomes):,} seeds: {len(outcomes) - len(failed):,} passed, {good}</h1>",
        f'<p class="soft">{escape(", ".join(list(names)[:8]))}</p><p>{_tags(outcomes)}</p>',
        _squares(outcomes, shown),
        _invariants(outcomes),
        _over_seeds(outcomes),
        _verdicts(outcomes, shown),
    ]
    for one in failed[:MOST_FAILURES]:
        title = escape(report.title(one))
        parts.append(f'<h2 id="seed-{one.seed}">{title}: failed</h2>')
        parts.append(_violation(one) + _agreement(one) + _spread(one))
    if len(failed) > MOST_FAILURES:
        parts.append(f"<p>{len(failed) - MOST_FAILURES} more failing seeds: see the table.</p>")
    return "\n".join(part for part in parts if part)


def _tags(outcomes: Iterable[Outcome]) -> str:
    found = dict.fromkeys(label for one in outcomes for label in report.labels(one))
    return "".join(
        f'<span class="tag{" emulated" if one.startswith("emulated") else ""}">{escape(one)}</span>'
        for one in found
    )


def _violation(outcome: Outcome) -> str:
    violation = outcome.violation
    if violation is None:
        return ""
    at = f" at {violation.at_s:.3f} s" if violation.at_s >= 0 else ""
    last = "\n".join(map(escape, violation.last))
    return (
        f'<section class="violation"><h2>Violated: {escape(violation.invariant)}{at}</h2>'
        f"<p>{escape(violation.what)}</p>"
        + (f"<h3>What happened before</h3><pre>{last}</pre>" if last else "")
        + (f"<h3>The same again</h3><pre>{escape(outcome.replay)}</pre>" if outcome.replay else "")
        + "</section>"
    )


def _agreement(outcome: Outcome) -> str:
    """Return the curve of convergence above the timeline of faults, on one time axis."""
    sights, episodes = outcome.sights, outcome.episodes
    if not sights and not episodes:
        return ""
    last = max([one.at_s for one in sights] + [max(one.at_s, one.end_s) for one in episodes])
    last = max(last, outcome.violation.at_s if outcome.violation else 0.0)
    first = min([0.0, *(one.at_s for one in sights)])
    x = charts.horizontal(first, last)
    named = _lanes(episodes, last)
    seen_to = 310.0 if sights else 26.0
    top = seen_to + (34.0 if sights else 0.0)
    bottom = top + _LANE * len(named) if named else seen_to
    spans = [(one.at_s, one.end_s) for one in episodes if one.end_s >= 0]
    body = charts.shades(x, 26, seen_to, spans)
    body += charts.x_axis(x, bottom, f"{_time(outcome)}, s", 26)
    if sights:
        body += _curves(x, sights)
    if named:
        body += charts.text(x.begin, top - 8, "faults", "label")
        body += charts.lanes(x, top, named, _LANE)
    if outcome.violation and outcome.violation.at_s >= 0:
        body += charts.moment(x, 26, bottom, outcome.violation.at_s, outcome.violation.invariant)
    return (
        "<h2>Agreement and faults</h2>"
        f"<figure>{charts.svg(body, bottom + 42, 'convergence and faults over time')}<figcaption>"
        "Agreed: nodes that hold the commonest replica. Seen alive: of the nodes that run, how "
        "many the average node sees. Shaded: while a fault lasts; what was done for good is pale."
        "</figcaption></figure>" + _episodes(episodes)
    )


def _curves(x: charts.Axis, sights: Sequence[Sight]) -> str:
    shares = [
        Series("agreed", [(one.at_s, one.agreed) for one in sights], "c0"),
        Series("seen alive", [(one.at_s, one.seen) for one in sights], "c1"),
    ]
    copies = Series("replicas", [(one.at_s, float(one.replicas)) for one in sights], "c2", True)
    body = charts.panel(
        x, 26, 170, shares, label="share of running nodes", high=1.0, shown=charts.percent
    )
    body += charts.panel(x, 230, 80, [copies], label="different replicas")
    return body + charts.columns(x, 26, 310, [(one.at_s, _said(one)) for one in sights])


def _time(outcome: Outcome) -> str:
    return "virtual time" if outcome.host == "world" else "time"


def _said(sight: Sight) -> str:
    return (
        f"{sight.at_s:.1f} s: {charts.percent(sight.agreed)} agree, {charts.percent(sight.seen)} "
        f"seen alive, {sight.replicas} replicas, {sight.running} nodes running"
    )


def _lanes(episodes: Sequence[Episode], last: float) -> list[tuple[str, list[Bar]]]:
    lanes: dict[str, list[Bar]] = {}
    for one in episodes:
        end = one.end_s if one.end_s >= 0 else last
        until = f"to {one.end_s:.1f} s" if one.end_s >= 0 else "for good"
        says = f"{one.kind}, {one.at_s:.1f} s {until}: {one.what or f'{one.nodes} nodes'}"
        lanes.setdefault(one.kind, []).append(Bar(one.at_s, end, says, one.end_s < 0))
    return list(lanes.items())


def _episodes(episodes: Sequence[Episode]) -> str:
    rows = [
        [
            f"{one.at_s:.1f}",
            f"{one.end_s:.1f}" if one.end_s >= 0 else "for good",
            one.kind,
            one.nodes,
            one.what,
        ]
        for one in episodes
    ]
    if not rows:
        return ""
    told = _table(["from, s", "to, s", "kind", "nodes", "which"], rows, numbers=(0, 1, 3))
    return f"<details><summary>{len(rows)} faults carried out</summary>{told}</details>"


def _spread(outcome: Outcome) -> str:
    spreads = outcome.spreads
    if not spreads:
        return ""
    step = -(-len(spreads) // _MOST_DOTS)
    groups = [spreads[index : index + step] for index in range(0, len(spreads), step)]
    average = [(one[0].at_s, sum(each.mean for each in one) / len(one)) for one in groups]
    slowest = [(one[0].at_s, max(each.most for each in one)) for one in groups]
    x = charts.horizontal(0.0, max(spreads[-1].at_s, outcome.ran_s))
    series = [Series("slowest node", slowest, "c1"), Series("average node", average, "c0")]
    body = charts.panel(x, 26, 150, series, label="rounds until it arrived", dots=True)
    body += charts.x_axis(x, 176, f"{_time(outcome)} of the write, s", 26)
    values = ([one.mean for one in spreads], [one.most for one in spreads])
    named = [(*one, of) for one, of in zip(_SPREAD, values, strict=True)]
    curves = charts.ecdf(
        [(name, of, style) for name, style, of in named], label="rounds", of="writes"
    )
    missed = sum(one.missed for one in spreads)
    per = f" Each mark stands for up to {step} writes." if step > 1 else ""
    return (
        f"<h2>Spread of {len(spreads):,} writes</h2><figure>"
        f"{charts.svg(body, 218, 'spread per write over time')}<figcaption>A round is one hop: "
        f"{number(outcome.round_s * 1000)} ms. Nodes had missed a write when the next replaced it "
        f"{missed:,} times.{per}</figcaption>{curves}</figure>"
    )


def _latency(outcome: Outcome) -> str:
    if not outcome.frames:
        return ""
    said = " (emulated accelerators)" if outcome.emulated else ""
    rows = [
        (
            f"tier {one.tier}",
            [("p50", one.p50_ms), ("p90", one.p90_ms), ("p99", one.p99_ms)],
        )
        for one in outcome.frames
        if one.p50_ms >= 0
    ]
    chart = charts.ranges(rows, label=f"latency of answers, ms{said}") if rows else ""
    ends = sorted({end for one in outcome.frames for end in one.ends})
    table = _table(
        ["tier", "arrived", *ends],
        [
            [one.tier, f"{one.arrived:,}", *(f"{one.ends.get(end, 0):,}" for end in ends)]
            for one in outcome.frames
        ],
        numbers=range(2 + len(ends)),
        caption=f"What became of the frames{said}",
    )
    return f"<h2>Latency by tier{said}</h2><figure>{chart}</figure>{table}"


def _bytes(outcome: Outcome) -> str:
    total = sum(outcome.bytes_by_kind.values())
    rows = [
        (kind, float(count), f"{size(count)}, {100 * count / total:.1f} %")
        for kind, count in sorted(outcome.bytes_by_kind.items(), key=lambda item: -item[1])
        if count
    ]
    if not rows:
        return ""
    return f"<h2>{size(total)} sent, by kind</h2>" + charts.bars(rows, says="bytes sent by kind")


def _loads(outcome: Outcome) -> str:
    rows = [
        [
            one.name,
            one.unit,
            number(one.mean),
            number(one.most),
            f"{one.most / one.mean:.1f} x" if one.mean and one.most else "-",
            one.of,
        ]
        for one in report.figures(outcome)
    ]
    if not rows:
        return ""
    header = ["", "unit", "average", "slowest or worst", "ratio", ""]
    return "<h2>Average and worst</h2>" + _table(header, rows, numbers=(2, 3, 4))


def _again(outcome: Outcome) -> str:
    cost = report.cost(outcome)
    notes = "".join(f"<li>{escape(one)}</li>" for one in outcome.notes)
    counts = [[name, f"{count:,}"] for name, count in sorted(outcome.counts.items())]
    parts = [
        f"<p>{escape(cost)}</p>" if cost else "",
        f"<pre>{escape(outcome.replay)}</pre>" if outcome.replay and outcome.passed else "",
        f"<p>Trace <code>{escape(outcome.trace_hash)}</code></p>" if outcome.trace_hash else "",
        f"<ul>{notes}</ul>" if notes else "",
    ]
    if counts:
        told = _table(["counter", "all nodes"], counts, numbers=(1,))
        parts.append(f"<details><summary>{len(counts)} counters</summary>{told}</details>")
    return "<h2>The run</h2>" + "".join(parts) if any(parts) else ""


def _squares(outcomes: Sequence[Outcome], shown: set[int]) -> str:
    """Return a mark per seed; failing ones differ in sign as well as in colour."""
    parts = []
    for one in sorted(outcomes, key=lambda one: one.seed):
        says = escape(f"seed {one.seed}: {report.verdict(one)}")
        if one.passed:
            parts.append(f'<span title="{says}"></span>')
        elif one.seed in shown:
            parts.append(f'<a class="no" href="#seed-{one.seed}" title="{says}">&times;</a>')
        else:
            parts.append(f'<span class="no" title="{says}">&times;</span>')
    return f'<div class="seeds" role="img" aria-label="a mark per seed">{"".join(parts)}</div>'


def _invariants(outcomes: Sequence[Outcome]) -> str:
    rows = [
        [name, len(seeds), ", ".join(map(str, seeds[:20])) + (" ..." if len(seeds) > 20 else "")]
        for name, seeds in report.by_invariant(outcomes).items()
    ]
    if not rows:
        return ""
    return "<h2>What failed</h2>" + _table(["invariant", "seeds", "which"], rows, numbers=(1,))


def _over_seeds(outcomes: Sequence[Outcome]) -> str:
    parts = []
    found = report.distributions(outcomes)
    for key, group in groupby(found, key=lambda one: one[0].partition(",")[0]):
        several = list(group)
        named = [
            (name.partition(", ")[2] or key, [value for value, _ in values], f"c{index}")
            for index, (name, _, values) in enumerate(several)
        ]
        if named[0][1]:
            label = f"{key}, {several[0][1]}"
            parts.append(f"<h3>{escape(key.capitalize())}</h3>")
            parts.append(charts.ecdf(named, label=label, of="seeds"))
    return "<h2>Over all seeds</h2>" + "".join(parts) if parts else ""


def _verdicts(outcomes: Sequence[Outcome], shown: set[int]) -> str:
    rows = []
    for one in sorted(outcomes, key=lambda one: (one.passed, one.seed)):
        spread = report.spread(one)
        link = f'<a href="#seed-{one.seed}">{one.seed}</a>' if one.seed in shown else str(one.seed)
        rows.append(
            f'<tr><td class="n">{link}</td>'
            f'<td class="{"" if one.passed else "bad"}">{escape(report.verdict(one))}</td>'
            + "".join(
                f'<td class="n">{text}</td>'
                for text in (
                    number(one.heal_s) if one.heal_s >= 0 else "-",
                    number(spread.mean),
                    number(spread.most),
                    number(one.cpu_s),
                )
            )
            + f"<td><code>{escape(one.trace_hash[:12])}</code></td></tr>"
        )
    header = ["seed", "verdict", "heal, s", "spread, rounds", "slowest", "processor, s", "trace"]
    head = "".join(
        f'<th class="{"n" if index in (0, 2, 3, 4, 5) else ""}">{name}</th>'
        for index, name in enumerate(header)
    )
    table = f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
    if len(rows) > _OPEN_ROWS:
        table = f"<details><summary>all {len(rows):,} seeds</summary>{table}</details>"
    return f"<h2>Verdicts</h2>{table}"


def _table(
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    numbers: Iterable[int] = (),
    caption: str = "",
) -> str:
    right = set(numbers)

    def line(tag: str, cells: Sequence[Any]) -> str:
        return "".join(
            f"<{tag}{' class=n' if index in right else ''}>{escape(str(one))}</{tag}>"
            for index, one in enumerate(cells)
        )

    told = f"<caption>{escape(caption)}</caption>" if caption else ""
    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table>{told}<tr>{line("th", header)}</tr>{body}</table></div>'
