"""Placement on real processes with real networks: `python -m tests.bench.fleet`.

Five daemons on loopback, each worker capped to a share of a core, and one of them offered more than
it can do: what its frames gain by their peers, with each mechanism on and off, and what a SIGKILL
in the middle costs. DSR is the share of the overloaded node's frames answered in time.
"""

import itertools
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.report import Figure, report
from tests.e2e.fleet import Node, busy_clip, wait_for

SHARES = (0.03, 0.10, 0.06, 0.02, 0.015)
"""Of a core, one worker each; the first is the one that is overloaded."""

OVERLOAD = 4.5
SETTLE_S, WINDOW_S = 6.0, 12.0
QUIET = ("hall", "yard")
"""Cameras that hardly change; the others change everywhere in every frame."""

CAMERAS = (
    ("door", 1, 200), ("hall", 2, 350), ("road", 2, 350), ("yard", 3, 500), ("lot", 3, 500),
)  # fmt: skip
"""Name, criticality, deadline in ms."""


def fleet(
    folder: Path, tag: str, policy: str, fps: float, *, tiers: bool = True, cache: bool = True
) -> list[Node]:
    """Start the five, the first with all cameras at ``fps``; return when all serve."""
    folder = folder / tag
    folder.mkdir()
    clip = busy_clip(folder / "busy.mp4")
    nodes: list[Node] = []
    for index, share in enumerate(SHARES):
        node = Node(folder, f"n{index}", seeds=nodes[:1])
        node.accelerator(provider="cpu", share=share, cache_mb=256 if cache else 0)
        node.sections["placement"] = f"policy = '{policy}'\ntiers = {str(tiers).lower()}"
        nodes.append(node)
    for seed, (name, criticality, deadline_ms) in enumerate(CAMERAS):
        source = f"generated:{seed}" if name in QUIET else str(clip)
        nodes[0].camera(
            name, source, fps=round(fps, 2), deadline_ms=deadline_ms, criticality=criticality
        )
    for node in nodes:
        node.start()
    for node in nodes:
        node.ready()
    wait_for(
        "all alive", lambda: list(nodes[0].states().values()).count("alive") == len(SHARES) - 1
    )
    wait_for("answers", lambda: nodes[0].get("stats")["answered"] > 0, timeout_s=60)
    return nodes


def stop(nodes: list[Node]) -> None:
    for node in nodes:
        node.stop()


def service_ms(folder: Path) -> float:
    """Return what a full pass takes on the overloaded node, pacing included."""
    nodes = fleet(folder, "alone", "local", 1.0)
    try:
        (found,) = nodes[0].get("peers")[0]["load"]["service_ms"].values()
        return float(found)
    finally:
        stop(nodes)


def dsr(folder: Path, tag: str, policy: str, fps: float, **mechanisms: bool) -> dict[str, float]:
    """Return the overloaded node's counts in a window, and its DSR."""
    nodes = fleet(folder, tag, policy, fps, **mechanisms)
    try:
        time.sleep(SETTLE_S)
        counts = nodes[0].deltas(WINDOW_S)
    finally:
        stop(nodes)
    counts["dsr"] = counts["met"] / max(1, counts["ended"])
    print(f"  {tag}: {counts}", file=sys.stderr)
    return counts


def killed(folder: Path, fps: float) -> list[Figure]:
    """Kill the strongest peer in the middle; count what was lost."""
    nodes = fleet(folder, "kill", "affinity", fps)
    try:
        time.sleep(SETTLE_S)
        before = nodes[0].get("stats")
        in_flight = before["frames"] - sum(before[name] for name in ("answered", "shed", "lost"))
        nodes[1].kill()
        time.sleep(WINDOW_S)
        after = nodes[0].get("stats")
    finally:
        stop(nodes)
    lost = after["lost"] - before["lost"]
    grown = {name: after[name] - before[name] for name in ("met", "answered", "shed", "frames")}
    unaccounted = grown["frames"] - grown["answered"] - grown["shed"] - lost
    return [
        Figure("fleet.kill.lost", lost, "<=", in_flight, f"{in_flight} frames were in flight"),
        Figure("fleet.kill.unaccounted", unaccounted, "<=", 16 * len(CAMERAS), "still under way"),
        Figure("fleet.kill.dsr", grown["met"] / grown["frames"], note="the 12 s after SIGKILL"),
    ]


def main() -> None:
    """Measure, print, write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pass_ms = service_ms(folder)
        fps = OVERLOAD * 1e3 / pass_ms / len(CAMERAS)
        note = (
            f"{len(CAMERAS)} cameras at {fps:.1f}/s on a node whose pass takes {pass_ms:.0f} ms "
            f"({OVERLOAD:g} x); workers capped to {', '.join(f'{s:.0%}' for s in SHARES)} of a core"
        )
        ours = dsr(folder, "ours", "affinity", fps)
        local = dsr(folder, "local", "local", fps)
        turns = dsr(folder, "turns", "round-robin", fps)
        figures = [
            Figure("fleet.dsr", ours["dsr"], note=note),
            Figure("fleet.dsr_local", local["dsr"]),
            Figure("fleet.dsr_round_robin", turns["dsr"]),
            Figure("fleet.vs_local", ours["dsr"] / max(0.01, local["dsr"]), ">=", 1.3),
            Figure("fleet.vs_round_robin", ours["dsr"] / max(0.01, turns["dsr"]), ">", 1.0),
        ]
        for cache, tiers, affinity in itertools.product((False, True), repeat=3):
            tag = "".join(
                letter if on else "-"
                for letter, on in zip("cta", (cache, tiers, affinity), strict=True)
            )
            policy = "affinity" if affinity else "blind"
            found = dsr(folder, tag, policy, fps, tiers=tiers, cache=cache)
            figures.append(
                Figure(f"fleet.mechanisms.{tag}", found["dsr"], note="cache, tiers, affinity on")
            )
        figures += killed(folder, fps)
        report("fleet", figures)


if __name__ == "__main__":
    main()
