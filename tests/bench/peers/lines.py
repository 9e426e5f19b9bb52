"""Owns what a fleet's agents have said: `Ledger` takes their lines and answers questions.

Never starts, kills or waits for anything. Invariant: what an agent repeats changes nothing (the
first time counts), and a line that is none is counted and skipped.
"""

import json
from collections import defaultdict
from math import ceil


class Ledger:
    """What the agents of one fleet said; agents are numbers, times nanoseconds."""

    def __init__(self) -> None:
        """Begin with nothing said and nobody excused."""
        self.ready: dict[int, int] = {}
        self.counts: dict[int, int] = {}
        self.stats: dict[int, dict[str, int]] = {}
        self.sent: dict[str, int] = {}
        self.seen: dict[str, dict[int, int]] = defaultdict(dict)
        self.downs: dict[tuple[int, int], int] = {}
        """(observer, subject) -> when the observer last said that the subject is down."""
        self.ups: dict[tuple[int, int], int] = {}
        self.excused: set[int] = set()
        """Agents that were killed or cut off: a death that they tell of, or that is theirs, is none
        of the false ones."""
        self.false_downs = 0
        self.strange = 0
        self._numbers: dict[str, int] = {}

    def name(self, number: int, alias: str) -> None:
        """Say which agent others mean by `alias`."""
        self._numbers[alias] = number

    def take(self, speaker: int, line: str) -> None:
        """Take one line of an agent's."""
        words = line.split()
        try:
            self._take(speaker, words[:-1], int(words[-1]))
        except (IndexError, KeyError, ValueError):
            self.strange += 1

    def _take(self, speaker: int, words: list[str], at_ns: int) -> None:
        match words:
            case ["R"]:
                self.ready[speaker] = at_ns
            case ["I", alias]:
                self.name(speaker, alias)
            case ["S", value]:
                self.sent.setdefault(value, at_ns)
            case ["U", _, value]:
                self.seen[value].setdefault(speaker, at_ns)
            case ["J", alias]:
                if alias in self._numbers:  # else its own first line is still under way
                    self.ups[speaker, self._numbers[alias]] = at_ns
            case ["D", alias]:
                self._down(speaker, self._numbers[alias], at_ns)
            case ["C", count]:
                self.counts[speaker] = int(count)
            case ["STATS", text]:
                self.stats[speaker] = json.loads(text)
            case _:
                raise ValueError(words)

    def _down(self, observer: int, subject: int, at_ns: int) -> None:
        self.downs[observer, subject] = at_ns
        if not self.excused & {observer, subject}:
            self.false_downs += 1

    def delays_ms(self, value: str, receivers: list[int]) -> list[float]:
        """Return how long the value took to those of `receivers` that have it, ascending."""
        if value not in self.sent:
            return []
        seen, sent_ns = self.seen[value], self.sent[value]
        return sorted((seen[one] - sent_ns) / 1e6 for one in receivers if one in seen)

    def noticed_s(self, subject: int, since_ns: int, observers: list[int]) -> list[float]:
        """Return how long after `since_ns` those who noticed said that the subject is down."""
        told = [self.downs.get((observer, subject), 0) for observer in observers]
        return sorted((at_ns - since_ns) / 1e9 for at_ns in told if at_ns >= since_ns)

    def knows(self, observer: int, subject: int, since_ns: int) -> bool:
        """Tell whether the observer said after `since_ns` that the subject is there."""
        return self.ups.get((observer, subject), 0) >= since_ns


def quantile(values: list[float], part: float) -> float:
    """Return the value that `part` of all are not above (nearest rank); nan of nothing."""
    if not values:
        return float("nan")
    return sorted(values)[max(0, ceil(part * len(values)) - 1)]
