"""Show a running fleet to a person: a table that refreshes, or a block every few seconds.

Owns the screen. Never decides anything. Invariant: figures are of the last `SPAN_S` seconds, out
of what the daemons said.
"""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from collections.abc import Sequence
from typing import TextIO

from edge_node.demo.fleet import Camera
from edge_node.demo.report import Expectation, quantile
from edge_node.demo.watch import Answer, Watch

SPAN_S = 3.0
BLOCK_PERIOD_S = 4.0
REFRESH_PERIOD_S = 0.5

_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")
BOLD, DIM, RED, GREEN, YELLOW = "1", "2", "31", "32", "33"


class Screen:
    """Print lines, and below them a block that is redrawn in place where that is possible."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.live = out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._colour = self.live and not os.environ.get("NO_COLOR")
        self._drawn = 0
        self._blank = True

    def paint(self, text: str, *codes: str) -> str:
        """Return `text` in colour where the terminal has colours."""
        return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if self._colour and codes else text

    def say(self, *lines: str) -> None:
        """Print lines that stay, above the block."""
        self._erase()
        self._write(lines)

    def draw(self, lines: Sequence[str]) -> None:
        """Print the block; on a terminal it replaces the one before."""
        self._erase()
        if self.live:
            # A wrapped line would break the count of lines to erase.
            size = os.get_terminal_size(self._out.fileno())
            lines = [_cut(line, size.columns - 1) for line in lines[: max(1, size.lines - 2)]]
            self._drawn = len(lines)
            self._out.write("".join(f"{line}\n" for line in lines))
            self._out.flush()
        else:
            self._write(lines)

    def _write(self, lines: Sequence[str]) -> None:
        for line in lines:
            if line or not self._blank:  # never two empty lines in a row
                self._out.write(line + "\n")
            self._blank = not line
        self._out.flush()

    def _erase(self) -> None:
        if self._drawn:
            self._out.write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0


class View:
    """Turn what `watch` saw into lines."""

    def __init__(self, watch: Watch, screen: Screen, cameras: Sequence[Camera]) -> None:
        self._watch, self._screen, self._cameras = watch, screen, cameras
        self.chapter = "starting"
        self._history: deque[tuple[float, dict[str, dict[str, int]]]] = deque()

    def event(self, who: str, what: str) -> None:
        """Print one event with its time."""
        paint = self._screen.paint
        when = paint(f"{self._watch.now_s():6.1f} s", DIM)
        code = {"demo": [BOLD]}.get(who, [])
        self._screen.say(f"{when}  {paint(f'{who:5}', *code)}  {paint(what, *code)}")

    def block(self) -> list[str]:
        """Return the whole table as lines."""
        watch, now_s = self._watch, self._watch.now_s()
        recent = _last(watch.answers, now_s - SPAN_S)
        span_s = min(SPAN_S, max(0.5, now_s))
        return [
            "",
            self._title(now_s),
            *self._nodes(recent, span_s),
            *self._camera_rows(recent, span_s),
            "",
        ]

    def _title(self, now_s: float) -> str:
        watch, paint = self._watch, self._screen.paint
        hashes = set(watch.hashes.values())
        if watch.agreed():
            state = f"{len(watch.hashes)} nodes hold the same state ({min(hashes)[:8]})"
        else:
            state = paint(f"{len(hashes)} different states", YELLOW)
        return f"{paint(f'{now_s:6.1f} s', DIM)}  {paint(self.chapter, BOLD)}; {state}"

    def _nodes(self, recent: Sequence[Answer], span_s: float) -> list[str]:
        watch, paint = self._watch, self._screen.paint
        head = "  node   is       model            capped at   answers/s   for peers/s"
        lines = [paint(head, DIM)]
        for name, node in watch.fleet.nodes.items():
            state, code = self._member(name)
            done = [one for one in recent if one.node == name]
            variant = watch.variant_on(name) if node.alive else ""
            model = f"{variant} {watch.digest_of(variant)[:8]}" if variant else "-"
            own, peers = len(done) / span_s, sum(one.host != name for one in done) / span_s
            who = f"  {name:5}  {paint(f'{state:7}', code)}  {model:15}"
            lines.append(f"{who}  {node.plan.share:5.1%} core  {own:9.1f}  {peers:12.1f}")
        return lines

    def _member(self, name: str) -> tuple[str, str]:
        """Say what the others believe of a node, the worst belief first."""
        said = {
            states.get(name, "")
            for observer, states in self._watch.peers.items()
            if observer != name and observer in self._watch.living()
        }
        for state, code in (("left", RED), ("down", RED), ("suspect", YELLOW), ("alive", GREEN)):
            if state in said:
                return state, code
        return "unknown", DIM

    def _camera_rows(self, recent: Sequence[Answer], span_s: float) -> list[str]:
        paint, here = self._screen.paint, self._watch.here()
        head = "  camera  source     tier     due  runs on  frames/s   p50/p95 ms"
        lines = [paint(head + "  in time  cached  people  computed by, %", DIM)]
        for camera in self._cameras:
            row = here.get(camera.name)
            mine = [one for one in recent if one.agent == camera.name]
            source = "generated" if camera.generated else "footage"
            start = f"  {camera.name:6}  {source:9}  {camera.tier:4}  {camera.deadline_ms:3} ms"
            if row is None:
                lines.append(f"{start}  {paint('nowhere', RED)}")
                continue
            lines.append(f"{start}  {row['host']:7}  {self._figures(camera.name, mine)}")
        return lines

    def _figures(self, agent: str, mine: Sequence[Answer]) -> str:
        rate, ended, met = self._counted(agent)
        latencies = [one.latency_ms for one in mine]
        both = f"{_ms(quantile(latencies, 0.5))}/{_ms(quantile(latencies, 0.95))}"
        cached = sum(one.rung != "full" for one in mine)
        nodes = Counter(one.node for one in mine).most_common()
        where = ", ".join(f"{node} {100 * count / len(mine):.0f}" for node, count in nodes)
        in_time = f"{_percent(met, ended):>7}"
        if ended and met < 0.9 * ended:
            in_time = self._screen.paint(in_time, YELLOW if met > 0.7 * ended else RED)
        people = f"{sum(one.people for one in mine) / len(mine):.1f}" if mine else "-"
        return (
            f"{rate:8.1f}  {both:>11}  {in_time}  {_percent(cached, len(mine)):>6}  "
            f"{people:>6}  {where}"
        )

    def remember(self) -> None:
        """Note the counts as they are now; to be called often, for figures of the last seconds."""
        now_s = self._watch.now_s()
        rows = {
            agent: {
                key: int(row[key] or 0) for key in ("frames", "answered", "met", "shed", "lost")
            }
            for agent, row in self._watch.here().items()
        }
        self._history.append((now_s, rows))
        while len(self._history) > 2 and self._history[1][0] <= now_s - SPAN_S:
            self._history.popleft()

    def _counted(self, agent: str) -> tuple[float, int, int]:
        """Return frames/s, and how many frames ended and were in time, of the last seconds."""
        mine = [(at_s, rows[agent]) for at_s, rows in self._history if agent in rows]
        # Where it moved to another node, counts began anew: only those since then compare.
        starts = [i for i in range(1, len(mine)) if mine[i][1]["frames"] < mine[i - 1][1]["frames"]]
        mine = mine[starts[-1] if starts else 0 :]
        if len(mine) < 2:
            return 0.0, 0, 0
        (old_s, old), (new_s, new) = mine[0], mine[-1]
        step = {key: value - old[key] for key, value in new.items()}
        ended = step["answered"] + step["shed"] + step["lost"]
        return step["frames"] / (new_s - old_s), ended, step["met"]


def summary(screen: Screen, expectations: Sequence[Expectation]) -> list[str]:
    """Return the verdicts as lines."""
    lines = ["", screen.paint("What was promised, and what was measured", BOLD)]
    width = max(len(one.name) for one in expectations)
    for one in expectations:
        mark = screen.paint("ok  ", GREEN) if one.holds else screen.paint("FAIL", RED, BOLD)
        lines.append(f"  {mark}  {one.name:{width}}  {one.measured}")
    return lines


def _last(answers: deque[Answer], since_s: float) -> list[Answer]:
    found = []
    for one in reversed(answers):
        if one.at_s < since_s:
            break
        found.append(one)
    return found


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _cut(line: str, columns: int) -> str:
    """Return the line cut to so many columns; colours take none, and are switched off again."""
    parts, room = [], columns
    for part in _COLOUR.split(line):
        if _COLOUR.fullmatch(part):
            parts.append(part)
        else:
            parts.append(part[:room])
            room -= len(parts[-1])
    return "".join(parts)
