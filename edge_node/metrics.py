"""Owns counting: counters with labels, latency quantiles, Prometheus' text format.

Never reads a clock (callers pass `now_s`) and never grows without bound: label values come from
configuration and code, not from peers. Invariant: a counter never decreases.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Labels = Mapping[str, str]
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*\Z")


@dataclass(frozen=True)
class Family:
    """Hold one metric and its samples: pairs of labels and value.

    Raises ValueError for a name that Prometheus would refuse.
    """

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    samples: Iterable[tuple[Labels, float]]

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise ValueError(f"{self.name!r} is not a metric name")


class Counters:
    """Count events by name and labels."""

    def __init__(self) -> None:
        self._values: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add `amount` (>= 0, else ValueError) to the counter `name` with these labels."""
        if amount < 0:
            raise ValueError(f"counter {name}: {amount} is negative")
        series = self._values.setdefault(name, {})
        key = tuple(sorted(labels.items()))
        series[key] = series.get(key, 0) + amount

    def get(self, name: str, **labels: str) -> float:
        """Return the sum over all series of `name` that carry at least these labels. O(series)."""
        wanted = set(labels.items())
        return sum(v for key, v in self._values.get(name, {}).items() if wanted <= set(key))

    def families(self, prefix: str, helps: Mapping[str, str]) -> list[Family]:
        """Return every counter as `{prefix}{name}_total`, with its text from `helps`."""
        return [
            Family(
                f"{prefix}{name}_total",
                "counter",
                helps.get(name, name.replace("_", " ")),
                [(dict(key), value) for key, value in sorted(series.items())],
            )
            for name, series in sorted(self._values.items())
        ]


class Latencies:
    """Keep the latencies of the last `window_s` seconds, at most `capacity` of them (the newest).

    With more than capacity / window_s samples per second the window is shorter, never the memory
    larger.
    """

    def __init__(self, window_s: float = 60.0, capacity: int = 8192) -> None:
        self._window_s = window_s
        self._samples: deque[tuple[float, float]] = deque(maxlen=capacity)

    def record(self, latency_ms: float, now_s: float) -> None:
        """Add one latency observed at `now_s` (monotonic)."""
        self._samples.append((now_s, latency_ms))

    def quantiles(self, now_s: float, *wanted: float) -> list[float | None]:
        """Return the `wanted` quantiles (0..1, nearest rank) in ms, None without samples.

        O(n log n), about 1 ms at full capacity.
        """
        oldest_s = now_s - self._window_s
        while self._samples and self._samples[0][0] < oldest_s:
            self._samples.popleft()
        ordered = sorted(value for _, value in self._samples)
        if not ordered:
            return [None for _ in wanted]
        last = len(ordered) - 1
        return [ordered[min(last, max(0, math.ceil(q * len(ordered)) - 1))] for q in wanted]


def render(families: Iterable[Family]) -> str:
    """Render metrics in the text exposition format 0.0.4; families without samples are left out.

    Raises ValueError for a label name that Prometheus would refuse or a family named twice.
    """
    lines: list[str] = []
    seen: set[str] = set()
    for family in families:
        if family.name in seen:
            raise ValueError(f"metric {family.name} is rendered twice: merge its samples")
        seen.add(family.name)
        samples = [_sample(family.name, labels, value) for labels, value in family.samples]
        if samples:
            text = family.help.replace("\\", r"\\").replace("\n", r"\n")
            lines += [f"# HELP {family.name} {text}", f"# TYPE {family.name} {family.kind}"]
            lines += samples
    return "".join(line + "\n" for line in lines)


def _sample(name: str, labels: Labels, value: float) -> str:
    for label in labels:
        if not _LABEL.match(label):
            raise ValueError(f"{label!r} is not a label name")
    inner = ",".join(f'{k}="{_escape(v)}"' for k, v in labels.items())
    return f"{name}{{{inner}}} {_number(value)}" if inner else f"{name} {_number(value)}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(value)
