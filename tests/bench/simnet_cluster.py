"""What a cluster of real daemons takes of this machine, and what it does there."""

import os

from simnet.faults import Crash
from simnet.link import IDEAL
from simnet.outcome import Outcome
from simnet.scenario import Scenario, Time, Writes
from tests.bench.report import Figure

IDLE_CPU = 0.60
OWN_MIB = 8.0
ROUNDS = 15.0
KILLED = 0.15
_AT_S = 25.0  # until then everybody counts as healthy


def killing(nodes: int) -> Scenario:
    """Return daemons that have nothing to do, and of which 15 % are killed at once."""
    return Scenario(
        name="bench",
        nodes=nodes,
        time=Time(duration_s=_AT_S + 20.0, settle_s=20.0, heal_s=60.0),
        start="warm",
        cryptography="real",
        network=IDEAL,
        writes=Writes(per_s=0.0),
        faults=(Crash(at_s=_AT_S, nodes=KILLED),),
    )


def figures(nodes: int, outcome: Outcome) -> list[Figure]:
    """Return the rows of such a run; a run that failed shows as infinite."""
    cores = len(os.sched_getaffinity(0))
    mean = {name: one.mean for name, one in outcome.loads.items()}
    inf = float("inf")
    cpu = mean["cpu_share"] * nodes / cores if outcome.passed else inf
    own = mean["beyond_shared_mib"] if outcome.passed else inf
    rounds = max(outcome.down_rounds, default=inf) if outcome.passed else inf
    note = f"{mean['cpu_share'] * 1e3:.1f} ms a second and node; PSS {mean['pss_mib']:.1f} MiB"
    return [
        Figure(f"cluster.cpu{nodes}", cpu, "<=", IDLE_CPU, f"of {cores} processors; {note}"),
        Figure(f"cluster.pss{nodes}", own, "<=", OWN_MIB, "MiB of a node beyond the shared pages"),
        Figure(f"cluster.rounds_kill15_{nodes}", rounds, "<=", ROUNDS, "until all others knew"),
    ]
