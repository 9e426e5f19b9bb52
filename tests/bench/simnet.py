"""What simulating large fleets costs, and whether worlds and clusters agree: `make bench-simnet`.

The world's rows: CPU and memory of a process that runs the scenario `steady` and nothing else, its
start included; virtual time, stand-in cryptography. The agreement rows run `kill15` in a world and
on real daemons, where a death is to be noticed by all; minutes of both processors.
`python -m tests.bench.simnet [--cluster 60] [--huge]` writes .bench/simnet.json.
"""

import argparse
import multiprocessing
import resource
import time
from dataclasses import replace
from math import inf

from simnet import cluster, trial
from simnet.scenario import Scenario, load
from tests.bench import simnet_cluster
from tests.bench.report import Figure, report

LARGE, THOUSAND, HUGE = 250, 1_000, 10_000
MINUTE_S = 60.0
AGREE = 0.25


def minute(nodes: int) -> Scenario:
    """Return the scenario that is measured: a virtual minute with loss and churn."""
    found = load("steady").sized(nodes)
    if nodes == HUGE:
        found = replace(found, time=replace(found.time, duration_s=16.0, settle_s=4.0), faults=())
    return found


def _measured(nodes: int) -> tuple[bool, float, float, float]:
    outcome = trial.run(minute(nodes), 1)
    memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return outcome.passed, time.process_time(), memory_mib, outcome.ran_s


def world(nodes: int) -> tuple[float, float, str]:
    """Return CPU seconds and MiB of a fresh process, infinite if an invariant did not hold."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        passed, cpu_s, memory_mib, ran_s = pool.apply(_measured, (nodes,))
    note = f"{ran_s:.0f} virtual s; stand-in cryptography"
    return cpu_s if passed else inf, memory_mib, note


def costs(huge: bool) -> list[Figure]:
    """Return what worlds cost."""
    figures = []
    for nodes, cpu_s in ((LARGE, 15.0), (THOUSAND, 60.0)):
        took_s, memory_mib, note = world(nodes)
        figures.append(Figure(f"world.cpu{nodes}", took_s, "<=", cpu_s, note))
        if nodes == THOUSAND:
            figures.append(Figure(f"world.rss{nodes}", memory_mib, "<=", 1024, "MiB"))
    if huge:
        took_s, memory_mib, note = world(HUGE)
        figures.append(Figure(f"world.cpu{HUGE}", took_s, note=note))
        figures.append(Figure(f"world.rss{HUGE}", memory_mib, note="MiB"))
    return figures


def agreement(nodes: int, real: list[float]) -> Figure:
    """Compare how soon a death is known to all in the world and among real daemons."""
    scenario = replace(simnet_cluster.killing(nodes), cryptography="stand-in")
    seen = trial.run(scenario, 1).down_rounds
    virtual = sum(seen) / len(seen) if seen else inf
    ratio = sum(real) / len(real) / virtual if real else inf
    note = f"of {virtual:.1f} probe intervals until all know a death, in the world"
    return Figure(f"agreement.rounds{nodes}", ratio - 1.0, "<=", AGREE, note)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cluster", type=int, default=60, help="how many real daemons; 0 for none")
    parser.add_argument("--huge", action="store_true", help=f"also {HUGE} nodes: minutes")
    given = parser.parse_args()
    figures = costs(given.huge)
    if given.cluster:
        killed = cluster.run(simnet_cluster.killing(given.cluster), 1)
        figures += simnet_cluster.figures(given.cluster, killed)
        figures.append(agreement(given.cluster, list(killed.down_rounds)))
    report("simnet", figures)


if __name__ == "__main__":
    main()
