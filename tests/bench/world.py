"""What whole fleets do in the virtual-time world: `make bench-world`.

Everything is virtual here: the core is the real one, the network, the clocks and (simnet.standin)
the cryptography are not. A round is one hop: its greatest network delay, 1.5 ms, and 20 ms of
batching. CPU and memory are real, of a process that runs one scenario and nothing else.
`python -m tests.bench.world [--seeds 20] [--huge]` prints the table and writes .bench/world.json.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterable
from math import log2
from typing import Any

from tests.bench.report import Figure, report
from tests.simnet import scenarios

LARGE, THOUSAND, HUGE = 250, 1_000, 10_000
VIRTUAL = "virtual time, stand-in cryptography"


def alone(scenario: Callable[..., Any], *args: Any) -> tuple[Any, float, float]:
    """Run a scenario in a fresh process; return its result, CPU seconds and MiB at the most."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (scenario, args))


def _measured(scenario: Callable[..., Any], args: Iterable[Any]) -> tuple[Any, float, float]:
    result = scenario(*args)
    memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result, time.process_time(), memory_mib


def reaches(seeds: range, loss: float) -> list[Figure]:
    """Return how far news get in how many rounds, the worst seed's."""
    found = [scenarios.reach(seed, LARGE, loss) for seed in seeds]
    name = f"n{LARGE}_loss{loss * 100:.0f}"
    allowed = log2(LARGE) * (2 if loss else 1)
    updates = sum(len(one.rounds) for one in found) // (LARGE - 1)
    note = f"worst of {len(seeds)} seeds, {updates} updates; {VIRTUAL}"
    mean = f"mean of {len(seeds)} seeds; {VIRTUAL}"
    rounds = {
        "p50": max(one.percentile(0.5) for one in found),
        "p99": max(one.percentile(0.99) for one in found),
        "max": max(max(one.rounds) for one in found),
    }
    copies = sum(one.copies for one in found) / len(found)
    figures = [
        Figure(f"{name}_p50_rounds", rounds["p50"], note=note),
        Figure(f"{name}_p99_rounds", rounds["p99"], "<=", allowed, note),
        Figure(f"{name}_max_rounds", rounds["max"], "<=", 1.5 * allowed, note),
        Figure(f"{name}_missed", sum(one.missed for one in found), "<=", 0, note),
        Figure(f"{name}_copies", copies, "<=", 2, mean),
    ]
    if not loss:  # with it, what probes cost by chance is more than an update
        spent = sum(one.bytes_per_node for one in found) / len(found)
        figures.append(Figure(f"{name}_bytes", spent, note=mean))
    return figures


def calamities(seeds: range) -> list[Figure]:
    """Return what becomes of fleets that are cut, crash, or write too much; the worst seed's."""
    heal_s = max(scenarios.partition(seed, 100) for seed in seeds)
    churns = [scenarios.churn(seed, 100) for seed in seeds]
    loads = [scenarios.overload(seed, 30) for seed in seeds]
    back_s = max(one.back_s for one in churns)
    false_downs = sum(one.false_downs for one in churns)
    written = max(one.entries_per_s / one.allowed_per_s for one in loads)
    settled_s = max(one.settled_s for one in loads)
    note = f"worst of {len(seeds)} seeds; {VIRTUAL}"
    fifteen = f"100 nodes of which 15 crash and return, {note}"
    busy = f"30 nodes that write too much, {note}"
    return [
        Figure("heal_s", heal_s, "<=", 60, f"100 nodes cut in two, {note}"),
        Figure("churn_back_s", back_s, "<=", 60, fifteen),
        Figure("churn_false_downs", false_downs, "<=", 0, fifteen),
        Figure("write_law", written, "<=", 1, f"times the fleet's allowance, {busy}"),
        Figure("overload_settled_s", settled_s, "<=", 60, busy),
    ]


def costs(huge: bool) -> list[Figure]:
    """Return what large fleets cost the machine."""
    sent, cpu_s, memory_mib = alone(scenarios.steady, 1, LARGE, 60)
    per = f"{cpu_s / sent * 1e6:.0f} us a datagram, start of the process included; {VIRTUAL}"
    figures = [
        Figure(f"n{LARGE}_minute_cpu_s", cpu_s, "<=", 15, per),
        Figure(f"n{LARGE}_minute_mib", memory_mib, note=VIRTUAL),
    ]
    for count in (THOUSAND, HUGE) if huge else (THOUSAND,):
        took_s, cpu_s, memory_mib = alone(scenarios.agree, 1, count, 20)
        note = f"20 writers, warm start, one seed; {VIRTUAL}"
        figures += [
            Figure(f"n{count}_equal_s", took_s, "<=", 60, note),
            Figure(f"n{count}_cpu_s", cpu_s, note=note),
            Figure(f"n{count}_mib", memory_mib, note=note),
        ]
    return figures


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many worlds for each figure")
    parser.add_argument(
        "--huge", action="store_true", help=f"also {HUGE} nodes: minutes, gigabytes"
    )
    given = parser.parse_args()
    seeds = range(1, given.seeds + 1)
    figures = [*reaches(seeds, 0.0), *reaches(seeds, 0.4), *calamities(seeds), *costs(given.huge)]
    report("world", figures)


if __name__ == "__main__":
    main()
