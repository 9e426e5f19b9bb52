"""What a cluster of real daemons takes of this machine, and what it does there.

``python -m tests.bench.simnet_cluster [NODES]``: idle for half a minute, then 15 % killed at once.
"""

import os
import sys
from dataclasses import replace

from simnet import cluster
from simnet.faults import Crash
from simnet.link import IDEAL
from simnet.outcome import Outcome
from simnet.scenario import Scenario, Time, Writes
from tests.bench.report import Figure, report

NODES = 250
IDLE_CPU = 0.60
OWN_MIB = 8.0
ROUNDS = 15.0
KILLED = 0.15


def idle(nodes: int, *, duration_s: float = 30.0) -> Outcome:
    """Run daemons that know each other and have nothing to do; no delay but loopback's own."""
    return cluster.run(_scenario(nodes, duration_s), 1, progress=_say)


def kill(nodes: int, *, share: float = KILLED) -> Outcome:
    """Kill a share of the daemons at once, and wait until all others agree on who is left."""
    at_s = 25.0  # until then everybody counts as healthy
    crash = Crash(at_s=at_s, nodes=share)
    return cluster.run(replace(_scenario(nodes, at_s + 30.0), faults=(crash,)), 1, progress=_say)


def figures(nodes: int, quiet: Outcome, killed: Outcome) -> list[Figure]:
    """Return the rows of two such runs; a run that failed shows as infinite."""
    cores = len(os.sched_getaffinity(0))
    load = {name: one.mean for name, one in quiet.loads.items()}
    inf = float("inf")
    cpu = load["cpu_share"] * nodes / cores if quiet.passed else inf
    own = load["beyond_shared_mib"] if quiet.passed else inf
    rounds = max(killed.down_rounds, default=inf) if killed.passed else inf
    note = f"{load['cpu_share'] * 1e3:.1f} ms a second and node; PSS {load['pss_mib']:.1f} MiB"
    return [
        Figure(f"cluster.cpu{nodes}", cpu, "<=", IDLE_CPU, f"of {cores} processors, idle; {note}"),
        Figure(f"cluster.pss{nodes}", own, "<=", OWN_MIB, "MiB of a node beyond the shared pages"),
        Figure(
            "cluster.rounds_kill15", rounds, "<=", ROUNDS, f"until all knew; {killed.violation}"
        ),
    ]


def _scenario(nodes: int, duration_s: float) -> Scenario:
    return Scenario(
        name="bench",
        nodes=nodes,
        time=Time(duration_s=duration_s, settle_s=20.0, heal_s=60.0),
        start="warm",
        network=IDEAL,
        writes=Writes(per_s=0.0),
    )


def _say(words: str) -> None:
    print(words, file=sys.stderr)


def main() -> None:
    """Run both and print their rows."""
    nodes = int(sys.argv[1]) if len(sys.argv) > 1 else NODES
    report("simnet_cluster", figures(nodes, idle(nodes), kill(nodes)))


if __name__ == "__main__":
    main()
