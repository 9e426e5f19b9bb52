"""What whole fleets do in the virtual-time world: `make bench-world`.

Everything is virtual here: the core is the real one, the network, the clocks and (simnet.standin)
the cryptography are not. A round is one hop: its greatest network delay, 1.5 ms, and 20 ms of
batching; `make bench-simnet` says what large fleets cost.
`python -m tests.bench.world [--seeds 20]` prints the table and writes .bench/world.json.
"""

import argparse
from math import log2

from tests.bench.report import Figure, report
from tests.simnet import scenarios

LARGE = 250
VIRTUAL = "virtual time, stand-in cryptography"


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


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many worlds for each figure")
    given = parser.parse_args()
    seeds = range(1, given.seeds + 1)
    figures = [*reaches(seeds, 0.0), *reaches(seeds, 0.4), *calamities(seeds)]
    report("world", figures)


if __name__ == "__main__":
    main()
