"""Charts as SVG text, drawn here so that a page needs nothing from elsewhere.

Owns geometry, axes and marks; never knows what is plotted. Colours are the page's style classes
(`c0` to `c3`, `bad`). Invariant: every text is escaped, and every series is named beside its line,
so that no colour must be told from another to read a chart.
"""

from collections.abc import Callable, Sequence
from html import escape
from math import ceil, floor, log10
from typing import NamedTuple

WIDTH = 940
_LEFT = 96
_RIGHT = 150  # room for the names beside the lines
_NAME_APART = 15.0
_MOST_POINTS = 600
_SKEWED = 25.0  # times the median

Point = tuple[float, float]


class Series(NamedTuple):
    """A line with its name; ``steps`` keeps the value until the next point."""

    name: str
    points: Sequence[Point]
    style: str
    steps: bool = False


class Bar(NamedTuple):
    """A span on a lane; what it says shows when pointed at."""

    begin: float
    end: float
    says: str
    endless: bool = False


class Axis:
    """A range of values and where they are drawn."""

    def __init__(self, low: float, high: float, begin: float, end: float) -> None:
        self.low, self.high = low, high if high > low else low + 1.0
        self.begin, self.end = begin, end

    def at(self, value: float) -> float:
        """Return the place of a value, in pixels."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self, about: int = 6) -> list[float]:
        """Return round values along it."""
        raw = (self.high - self.low) / about
        power = 10.0 ** floor(log10(raw))
        step = next(one * power for one in (1, 2, 5, 10) if one * power >= raw * 0.999)
        first = ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, floor(self.high / step + 1e-9) + 1)]


class LogAxis(Axis):
    """The same, logarithmic; what lies below `low`, 0 too, is drawn at the beginning."""

    def at(self, value: float) -> float:
        """Return the place of a value, in pixels."""
        share = log10(max(value, self.low) / self.low) / log10(self.high / self.low)
        return self.begin + min(share, 1.0) * (self.end - self.begin)

    def ticks(self, about: int = 6) -> list[float]:
        """Return the powers of ten along it."""
        first, last = ceil(log10(self.low) - 1e-9), floor(log10(self.high) + 1e-9)
        return [10.0**power for power in range(first, last + 1)]


def fitting(values: Sequence[float], begin: float, end: float) -> Axis:
    """Return an axis from 0 for all of these, or a logarithmic one if few are far away."""
    ranked = sorted(value for value in values if value > 0) or [1.0]
    high, middle = ranked[-1], ranked[len(ranked) // 2]
    if high < _SKEWED * middle:
        return Axis(0.0, high * 1.05, begin, end)
    low = max(ranked[len(ranked) // 10], high / 1e4)
    return LogAxis(10.0 ** floor(log10(low)), high * 1.3, begin, end)


def scale(axis: Axis, label: str) -> str:
    """Return a label that says if its axis is logarithmic."""
    return f"{label} (logarithmic)" if isinstance(axis, LogAxis) else label


def horizontal(low: float, high: float) -> Axis:
    """Return the x axis that all charts share, so that they stand exactly below each other."""
    return Axis(low, high, _LEFT, WIDTH - _RIGHT)


def plain(value: float) -> str:
    """Write a tick's value."""
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def percent(value: float) -> str:
    """Write a share as a percentage."""
    return f"{100 * value:.0f} %"


def svg(body: str, height: float, says: str) -> str:
    """Return a drawing of the page's width."""
    return (
        f'<div class="wide"><svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(says)}">'
        f"{body}</svg></div>"
    )


def text(x: float, y: float, what: str, style: str = "", anchor: str = "start") -> str:
    """Return a text."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">'
        f"{escape(what)}</text>"
    )


def x_axis(axis: Axis, y: float, label: str, top: float) -> str:
    """Return ticks below `y` with faint lines up to `top`, and the label with its unit."""
    parts = []
    for tick in axis.ticks(8):
        x = axis.at(tick)
        parts.append(_line(x, top, x, y, "grid") + text(x, y + 16, plain(tick), "tick", "middle"))
    middle = (axis.begin + axis.end) / 2
    parts.append(_line(axis.begin, y, axis.end, y, "axis"))
    return "".join(parts) + text(middle, y + 34, label, "label", "middle")


def panel(
    x: Axis,
    top: float,
    height: float,
    series: Sequence[Series],
    *,
    label: str,
    high: float | None = None,
    shown: Callable[[float], str] = plain,
    dots: bool = False,
) -> str:
    """Return lines over a time axis, named at their right ends; the label stands above."""
    values = [value for one in series for _, value in one.points]
    begin, end = top + height, top
    y = fitting(values, begin, end) if high is None else Axis(0.0, high, begin, end)
    parts = [text(_LEFT, top - 8, scale(y, label), "label")]
    for tick in y.ticks(4):
        at = y.at(tick)
        parts.append(_line(x.begin, at, x.end, at, "grid"))
        parts.append(text(x.begin - 8, at + 4, shown(tick), "tick", "end"))
    names: list[tuple[float, Series]] = []
    for one in series:
        if one.points:
            parts.append(_dots(x, y, one) if dots else _path(x, y, one))
            names.append((y.at(one.points[-1][1]), one))
    for at, one in _apart(names, top, top + height):
        parts.append(text(x.end + 10, at + 4, one.name, f"name {one.style}"))
    return "".join(parts)


def lanes(x: Axis, top: float, named: Sequence[tuple[str, Sequence[Bar]]], each: float) -> str:
    """Return one row of bars per name; a short one is drawn wide enough to be seen."""
    parts = []
    for index, (name, bars) in enumerate(named):
        y = top + index * each
        parts.append(text(x.begin - 8, y + each * 0.68, name, "tick", "end"))
        parts.append(_line(x.begin, y + each, x.end, y + each, "grid"))
        for bar in bars:
            begin = x.at(bar.begin)
            wide = max(x.at(bar.end) - begin, 2.5)
            style = "fault endless" if bar.endless else "fault"
            parts.append(
                f'<rect x="{begin:.1f}" y="{y + 3:.1f}" width="{wide:.1f}" '
                f'height="{each - 6:.1f}" rx="2" class="{style}">{_says(bar.says)}</rect>'
            )
    return "".join(parts)


def shades(x: Axis, top: float, bottom: float, spans: Sequence[tuple[float, float]]) -> str:
    """Return faint columns behind a chart; those that overlap are one."""
    merged: list[list[float]] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    return "".join(
        f'<rect x="{x.at(begin):.1f}" y="{top:.1f}" width="{max(x.at(end) - x.at(begin), 1):.1f}" '
        f'height="{bottom - top:.1f}" class="shade"/>'
        for begin, end in merged
    )


def columns(x: Axis, top: float, bottom: float, said: Sequence[tuple[float, str]]) -> str:
    """Return unseen columns that say what is there when pointed at, one around each value."""
    parts = []
    for index, (at, says) in enumerate(said):
        before = said[index - 1][0] if index else at
        after = said[index + 1][0] if index + 1 < len(said) else at
        begin, end = x.at((at + before) / 2), x.at((at + after) / 2)
        parts.append(
            f'<rect x="{begin:.1f}" y="{top:.1f}" width="{max(end - begin, 1):.1f}" '
            f'height="{bottom - top:.1f}" class="unseen">{_says(says)}</rect>'
        )
    return "".join(parts)


def moment(x: Axis, top: float, bottom: float, at: float, says: str) -> str:
    """Return a marked moment with its name above, clear of the panel's label."""
    place = x.at(at)
    left = place > (x.begin + x.end) / 2
    name = place + 4 if left else max(place - 4, x.begin + 170)
    anchor = "end" if left else "start"
    line = _line(place, top - 4, place, bottom, "moment")
    return line + text(name, top - 8, says, "name bad", anchor)


def ecdf(named: Sequence[tuple[str, Sequence[float], str]], *, label: str, of: str) -> str:
    """Return the share of values that are at most x, a line per name; `of` names the values."""
    x = fitting([one for _, values, _ in named for one in values], _LEFT, WIDTH - _RIGHT)
    top, height = 28.0, 170.0
    drawn = []
    for name, values, style in named:
        ranked = thinned(sorted(values))
        count = len(ranked)
        points = [(0.0, 0.0), *((one, (index + 1) / count) for index, one in enumerate(ranked))]
        drawn.append(Series(name, [*points, (x.high, 1.0)], style, steps=True))
    body = x_axis(x, top + height, scale(x, label), top)
    unnamed = [one._replace(name="") for one in drawn]
    body += panel(x, top, height, unnamed, label=f"share of {of}", high=1.0, shown=percent)
    for index, (name, values, style) in enumerate(named):  # all lines end at 100 %: a key
        y = top + 24 + 46 * index
        body += _line(x.end + 14, y - 4, x.end + 34, y - 4, f"line {style}")
        body += text(x.end + 40, y, name, f"name {style}")
        if values:
            middle = sorted(values)[(len(values) - 1) // 2]
            body += text(x.end + 40, y + 16, f"median {three(middle)}", "tick")
    return svg(body, top + height + 42, f"distribution of {label} over {of}")


def three(value: float) -> str:
    """Write a value with three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def bars(rows: Sequence[tuple[str, float, str]], *, says: str) -> str:
    """Return a horizontal bar per row with its value written at its end."""
    each, high = 24.0, max((value for _, value, _ in rows), default=1.0)
    x = Axis(0.0, high, 210, WIDTH - 210)
    parts = []
    for index, (name, value, shown) in enumerate(rows):
        y = index * each
        wide = max(x.at(value) - x.begin, 1.0)
        parts.append(text(x.begin - 10, y + 16, name, "tick", "end"))
        parts.append(
            f'<rect x="{x.begin}" y="{y + 4:.1f}" width="{wide:.1f}" height="{each - 9:.1f}" '
            f'rx="2" class="bar"/>' + text(x.begin + wide + 8, y + 16, shown, "tick")
        )
    return svg("".join(parts), len(rows) * each + 6, says)


def ranges(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], *, label: str) -> str:
    """Return per row its named values on one line, from the first to the last."""
    high = max((value for _, values in rows for _, value in values), default=1.0)
    x, each, top = horizontal(0.0, high * 1.02), 54.0, 4.0
    bottom = top + each * len(rows)
    parts = [x_axis(x, bottom, label, top)]
    for index, (name, values) in enumerate(rows):
        y = top + each * index + 27
        places = [x.at(value) for _, value in values]
        parts.append(text(x.begin - 8, y + 4, name, "tick", "end"))
        parts.append(_line(min(places), y, max(places), y, "stem"))
        ends = [-1e9, -1e9]
        for place, (what, value) in zip(places, values, strict=True):
            shown = f"{what} {three(value)}"
            wide = 6.2 * len(shown)
            row = 0 if place - wide / 2 > ends[0] else 1
            ends[row] = place + wide / 2 + 6
            parts.append(
                f'<circle cx="{place:.1f}" cy="{y:.1f}" r="4.5" class="dot c0">'
                f"{_says(shown)}</circle>"
            )
            parts.append(text(place, y + (18 if row else -9), shown, "tick", "middle"))
    return svg("".join(parts), bottom + 42, label)


def thinned(values: Sequence[float]) -> list[float]:
    """Return at most some hundreds of ranked values that keep their distribution and ends."""
    count = len(values)
    if count <= _MOST_POINTS:
        return list(values)
    return [values[round(n * (count - 1) / (_MOST_POINTS - 1))] for n in range(_MOST_POINTS)]


def _apart(
    names: list[tuple[float, Series]], top: float, bottom: float
) -> list[tuple[float, Series]]:
    """Return where names go so that none covers another."""
    found: list[tuple[float, Series]] = []
    for at, one in sorted(names, key=lambda item: item[0]):
        found.append((max(at, found[-1][0] + _NAME_APART) if found else max(at, top), one))
    over = found[-1][0] - bottom if found else 0.0
    return [(at - max(over, 0.0), one) for at, one in found]


def _path(x: Axis, y: Axis, one: Series) -> str:
    parts: list[str] = []
    for index, (across, up) in enumerate(one.points):
        if index and one.steps:
            parts.append(f"H{x.at(across):.1f}")
        parts.append(f"{'L' if index else 'M'}{x.at(across):.1f} {y.at(up):.1f}")
    return f'<path d="{"".join(parts)}" class="line {one.style}"/>'


def _dots(x: Axis, y: Axis, one: Series) -> str:
    return "".join(
        f'<circle cx="{x.at(across):.1f}" cy="{y.at(up):.1f}" r="2.6" class="dot {one.style}"/>'
        for across, up in one.points
    )


def _line(x: float, y: float, to_x: float, to_y: float, style: str) -> str:
    return f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" class="{style}"/>'


def _says(what: str) -> str:
    return f"<title>{escape(what)}</title>"
