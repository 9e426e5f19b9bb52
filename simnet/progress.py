"""Says on a stream how far a run or a sweep has come.

Owns one line, rewritten on a terminal, repeated now and then elsewhere; never writes anything that
is needed later. Invariant: on a terminal nothing of it remains.
"""

import time
from collections.abc import Callable
from shutil import get_terminal_size
from types import TracebackType
from typing import TextIO

from edge_node.cli.tables import cell, span
from simnet.outcome import Outcome
from simnet.report import number

_TERMINAL_EVERY_S = 0.1
_PLAIN_EVERY_S = 5.0
_SHOWN = 5


class Progress:
    """What is done of so many seeds, each of so many seconds. A context manager."""

    def __init__(
        self,
        stream: TextIO,
        name: str,
        *,
        seeds: int | None = 1,
        each_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin; `seeds` None is endless, `each_s` the simulated seconds of one seed, if known."""
        self._stream = stream
        self._name = name
        self._seeds = seeds
        self._each_s = each_s
        self._clock = clock
        self._terminal = stream.isatty()
        self._begun_s = clock()
        self._said_s = self._begun_s
        self._failed: list[int] = []
        self._done = 0
        self._ran_s = 0.0
        self._now_s = 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def reached(self, at_s: float) -> None:
        """Say how far the seed that runs has come, in simulated seconds."""
        self._now_s = at_s
        self._say(_TERMINAL_EVERY_S if self._terminal else _PLAIN_EVERY_S)

    def done(self, outcome: Outcome) -> None:
        """Count a seed; a failed one is said at once."""
        self._done += 1
        self._ran_s += outcome.ran_s
        self._now_s = 0.0
        if not outcome.passed:
            self._failed.append(outcome.seed)
        every_s = _TERMINAL_EVERY_S if self._terminal else _PLAIN_EVERY_S
        self._say(every_s if outcome.passed else 0.0)

    def line(self) -> str:
        """Return the line as it would be now."""
        passed_s = max(self._clock() - self._begun_s, 1e-9)
        ran_s = self._ran_s + self._now_s
        parts = []
        if self._seeds != 1:
            of = "" if self._seeds is None else f" of {self._seeds:,}"
            parts.append(f"{self._done:,}{of} seeds")
        elif self._each_s:
            parts.append(f"{self._now_s:.0f} of {self._each_s:.0f} s")
        if self._failed:
            shown = ", ".join(map(str, self._failed[:_SHOWN]))
            more = ", ..." if len(self._failed) > _SHOWN else ""
            parts.append(f"{len(self._failed)} failed ({shown}{more})")
        if ran_s:
            parts.append(f"{number(ran_s / passed_s)} s simulated a second")
        if share := self._share():
            parts.append(f"{span(passed_s * (1 - share) / share)} left")
        return cell(f"{self._name}: {', '.join(parts) or 'begun'}")

    def _share(self) -> float:
        """Return how much of the whole is done, 0 if nobody knows."""
        if not self._seeds:
            return 0.0
        part = min(self._now_s / self._each_s, 1.0) if self._each_s else 0.0
        return min((self._done + part) / self._seeds, 1.0)

    def _say(self, every_s: float) -> None:
        now_s = self._clock()
        if now_s - self._said_s < every_s:
            return
        self._said_s = now_s
        if self._terminal:
            room = get_terminal_size().columns - 1
            self._stream.write(f"\r{self.line()[:room]}\x1b[K")
        else:
            self._stream.write(f"{self.line()}\n")
        self._stream.flush()
