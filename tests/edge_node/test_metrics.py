"""Counters, quantiles and the text that Prometheus reads."""

import math
import re

import pytest

from edge_node.metrics import Counters, Family, Latencies, render

SAMPLE = re.compile(
    r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(\{(?P<labels>.*)\})? (?P<value>[-+0-9.eE]+|NaN|[-+]Inf)"
)
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(,|$)')
ESCAPES = {r"\n": "\n", r"\\": "\\", r"\"": '"'}


def parse(text: str) -> dict[str, tuple[str, list[tuple[dict[str, str], float]]]]:
    """Read the exposition format 0.0.4 strictly: {name: (type, samples)}."""
    assert text.endswith("\n")
    found: dict[str, tuple[str, list[tuple[dict[str, str], float]]]] = {}
    helped, current = "", ""
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("# HELP "):
            helped = line.split(" ", 3)[2]
        elif line.startswith("# TYPE "):
            _, _, current, kind = line.split(" ")
            assert current == helped
            assert current not in found
            assert kind in ("counter", "gauge")
            found[current] = (kind, [])
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match["name"] == current
            found[current][1].append((parse_labels(match["labels"] or ""), float(match["value"])))
    return found


def parse_labels(text: str) -> dict[str, str]:
    labels, at = {}, 0
    while at < len(text):
        match = LABEL.match(text, at)
        assert match, text
        labels[match[1]] = re.sub(r'\\[n"\\]', lambda m: ESCAPES[m[0]], match[2])
        at = match.end()
    return labels


def test_the_text_reads_back_as_it_was_counted() -> None:
    counters = Counters()
    nasty = 'a "quoted" \\ back\nslash {x="y"},'
    counters.add("frames", agent=nasty)
    counters.add("frames", 2, agent="door", met="yes")
    gauges = [
        Family("edge_lag_seconds", "gauge", "Late,\nhow \\ much.", [({}, 0.25)]),
        Family("edge_odd", "gauge", "Odd.", [({"of": "inf"}, math.inf), ({"of": "-"}, -math.inf)]),
        Family("edge_empty", "gauge", "Nothing yet.", []),
    ]
    found = parse(render([*counters.families("edge_", {"frames": "Frames."}), *gauges]))
    assert found == {
        "edge_frames_total": (
            "counter",
            [({"agent": nasty}, 1.0), ({"agent": "door", "met": "yes"}, 2.0)],
        ),
        "edge_lag_seconds": ("gauge", [({}, 0.25)]),
        "edge_odd": ("gauge", [({"of": "inf"}, math.inf), ({"of": "-"}, -math.inf)]),
    }
    assert parse(render([Family("n", "gauge", "", [({}, math.nan)])]))["n"][1][0][1] != 0


def test_nothing_renders_as_nothing() -> None:
    assert render([]) == ""


@pytest.mark.parametrize("name", ["", "9lives", "a-b", "a b", "ä", "a\n"])
def test_names_that_prometheus_refuses_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="metric name"):
        Family(name, "gauge", "", [])
    with pytest.raises(ValueError, match="label name"):
        render([Family("good", "gauge", "", [({name: "x"}, 1)])])


def test_a_metric_is_rendered_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        render([Family("a", "gauge", "", [({}, 1)])] * 2)


def test_counters_sum_over_labels_not_named() -> None:
    counters = Counters()
    counters.add("answered", met="yes", agent="a")
    counters.add("answered", 2, met="no", agent="a")
    counters.add("answered", 4, met="yes", agent="b")
    assert counters.get("answered") == 7
    assert counters.get("answered", met="yes") == 5
    assert counters.get("answered", met="yes", agent="b") == 4
    assert counters.get("answered", met="maybe") == counters.get("never") == 0
    with pytest.raises(ValueError, match="negative"):
        counters.add("answered", -1)
    assert counters.get("answered") == 7


def test_quantiles_are_nearest_ranks_of_the_window() -> None:
    latencies = Latencies(window_s=60)
    assert latencies.quantiles(0.0, 0.5, 0.95) == [None, None]
    for n in range(1, 101):
        latencies.record(float(n), now_s=n / 100)
    assert latencies.quantiles(1.0, 0, 0.5, 0.95, 1) == [1, 50, 95, 100]
    assert latencies.quantiles(60.505, 0, 0.5) == [51, 75]
    assert latencies.quantiles(100.0, 0.5) == [None]


def test_latencies_are_bounded_and_keep_the_newest() -> None:
    latencies = Latencies(window_s=60, capacity=10)
    for n in range(1000):
        latencies.record(float(n), now_s=0.0)
    assert latencies.quantiles(0.0, 0, 1) == [990, 999]
