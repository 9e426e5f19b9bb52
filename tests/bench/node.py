"""Measure a whole node as a user meets it, on real processes: `python -m tests.bench.node`.

Start of the command line, cost of idling, help under overload, takeover after a death.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.report import Figure, report
from tests.e2e.fleet import Node, busy_clip, wait_for

IDLE_S = 30.0
OVERLOAD_S = 10.0
KILLS = 3


def idle(folder: Path) -> list[Figure]:
    a = Node(folder, "idle-a")
    b = Node(folder, "idle-b", seeds=[a])
    try:
        a.start().ready()
        b.start().ready()
        wait_for("b alive", lambda: a.states().get("idle-b") == "alive")
        time.sleep(3)
        before_s = a.cpu_s()
        time.sleep(IDLE_S)
        resident_mb = a.resident_kb / 1e3
        percent = 100 * (a.cpu_s() - before_s) / IDLE_S
    finally:
        b.stop()
        a.stop()
    note = "daemon process of a two-node fleet, no camera; its worker not included"
    return [
        Figure("idle.rss_mb", resident_mb, "<=", 60, note),
        Figure("idle.cpu_percent", percent, "<", 1, f"of one core over {IDLE_S:.0f} s"),
    ]


def overload(folder: Path) -> list[Figure]:
    a = Node(folder, "load-a")
    b, c = Node(folder, "load-b", seeds=[a]), Node(folder, "load-c", seeds=[a])
    nodes = [a, b, c]
    a.sections["placement"] = "policy = 'local'"
    a.sections["model"] = "adapt = 'off'"
    a.camera("busy", str(busy_clip(folder / "busy.mp4")), fps=10, deadline_ms=400)
    a.accelerator(provider="cpu", share=0.05)
    for node in (b, c):
        node.accelerator(provider="cpu", share=0.3)
    try:
        for node in nodes:
            node.start()
        for node in nodes:
            node.ready()
        wait_for("answers", lambda: a.answered("busy") > 30)
        (service_ms,) = a.get("peers")[0]["load"]["service_ms"].values()
        a.arrays[0] = a.arrays[0].replace("fps = 10", f"fps = {2e3 / service_ms:.1f}")
        a.reload()
        wait_for("the reopened camera", lambda: a.agent("busy")["frames"] < 30)
        wait_for("its queue", lambda: a.agent("busy")["frames"] > 30)
        alone = a.deltas(OVERLOAD_S)
        a.sections["placement"] = "policy = 'affinity'"
        a.reload()
        wait_for("frames forwarded", lambda: a.get("stats")["forwarded"] > 0)
        helped = a.deltas(OVERLOAD_S)
    finally:
        for node in nodes:
            node.stop()
    met_alone, met_helped = (d["met"] / d["ended"] for d in (alone, helped))
    note = "one node offered twice its measured capacity; workers capped to 5, 30, 30 % of a core"
    return [
        Figure("overload.met_alone", met_alone, note=note),
        Figure("overload.met_with_peers", met_helped, note=note),
        Figure("overload.ratio", met_helped / max(met_alone, 0.01), ">", 1, "the two above"),
        Figure(
            "overload.forwarded", helped["forwarded"] / helped["ended"], ">", 0, "of all frames"
        ),
    ]


def takeover(folder: Path) -> list[Figure]:
    noticed_s, answered_s = [], []
    for attempt in range(KILLS):
        a = Node(folder, f"kill-a{attempt}")
        b = Node(folder, f"kill-b{attempt}", seeds=[a])
        c = Node(folder, f"kill-c{attempt}", seeds=[a])
        nodes = [a, b, c]
        b.camera("yard", "generated:2", deadline_ms=1000)
        try:
            for node in nodes:
                node.start()
            for node in nodes:
                node.ready()
            wait_for("yard answered", lambda b=b: b.answered("yard") > 5)
            wait_for("all see b", lambda a=a, b=b, c=c: all(n.states().get(b.name) for n in (a, c)))
            b.kill()
            killed_s = time.monotonic()
            wait_for(
                "down", lambda a=a, b=b, c=c: all(n.states()[b.name] == "down" for n in (a, c))
            )
            noticed_s.append(time.monotonic() - killed_s)
            wait_for(
                "yard answered by another",
                lambda a=a, c=c: any(n.answered("yard") for n in (a, c)),
            )
            answered_s.append(time.monotonic() - killed_s)
        finally:
            for node in nodes:
                node.stop()
    note = f"seconds after SIGKILL, median of {KILLS}; largest {max(answered_s):.1f}"
    return [
        Figure("kill.seen_by_all_s", statistics.median(noticed_s), note="median"),
        Figure("kill.camera_answered_again_s", statistics.median(answered_s), "<=", 15, note),
    ]


def start() -> list[Figure]:
    def elapsed_ms(*command: str) -> float:
        began_s = time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        return (time.monotonic() - began_s) * 1e3

    helps = [elapsed_ms(sys.executable, "-m", "edge_node.cli", "--help") for _ in range(11)]
    bare = [elapsed_ms(sys.executable, "-c", "pass") for _ in range(11)]
    note = f"median of 11; an empty Python program takes {statistics.median(bare):.0f}"
    return [Figure("cli.help_ms", statistics.median(helps), "<", 150, note)]


def main() -> None:
    """Measure, print, write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report("node", [*start(), *idle(folder), *overload(folder), *takeover(folder)])


if __name__ == "__main__":
    main()
