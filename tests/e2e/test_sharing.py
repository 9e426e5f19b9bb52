"""A camera moves between two real daemons and goes on with what the first had found."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.clips import noisy, picture, write_clip
from tests.e2e.fleet import Node, wait_for


def metric(node: Node, name: str) -> float:
    lines = str(node.request("GET", "/metrics")[1]).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_a_camera_that_moves_is_answered_from_the_entry_of_its_last_host(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    clip = write_clip(tmp_path / "a.mp4", [noisy(picture(), 1.5, rng) for _ in range(40)], fps=10)
    a = make_node("a")
    b = make_node("b", seeds=[a])
    a.camera("gate", str(clip), fps=10, deadline_ms=2000)
    b.accelerator(provider="cpu", share=0.02)  # so slow that one full pass is worth a transfer
    for node in (a, b):
        node.start()
    for node in (a, b):
        node.ready()
    wait_for("reused answers", lambda: a.agent("gate")["hits"] >= 3)
    wait_for("b knows the holder", lambda: b.get("state?prefix=cache/gate")["sets"])
    a.arrays.clear()
    a.reload()
    wait_for("a has let go", lambda: all(row["agent"] != "gate" for row in b.get("agents")))
    # Its new home cannot open it at first, so that the entry is there before the first frame.
    later = tmp_path / "b.mp4"
    b.camera("gate", str(later), fps=10, deadline_ms=2000)
    b.reload()
    wait_for("the entry has come", lambda: metric(b, "edge_node_warm_starts_total") == 1)
    clip.rename(later)
    wait_for("answers", lambda: b.answered("gate") >= 3)
    lines = (b.folder / "out.jsonl").read_text().splitlines()
    assert {json.loads(line)["rung"] for line in lines[:3]} <= {"same", "gate"}
    assert metric(b, 'edge_node_entries_total{outcome="taken"}') == 1
