"""A smaller scenario that fails in the same way.

Owns the search; never judges: a candidate counts if the same invariant does not hold. Invariant:
what is returned failed when it was last run.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from simnet import trial
from simnet.link import Conditions
from simnet.outcome import Outcome
from simnet.scenario import Scenario

_MARGIN_S = 1.0
_SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 100, 150, 250)


def shrink(
    scenario: Scenario,
    seed: int,
    *,
    plant: str = "",
    most_runs: int = 100,
    progress: Callable[[str], None] = lambda line: None,
) -> tuple[Scenario, Outcome]:
    """Return the smallest failing scenario found, and its outcome.

    Each step tries to leave out a fault, nodes, time, a condition; the first that still fails is
    kept. The search ends when nothing more can go, or after so many runs.

    Raises:
        ValueError: the scenario does not fail with this seed.
    """
    outcome = trial.run(scenario, seed, plant=plant)
    if outcome.violation is None:
        raise ValueError(f"scenario {scenario.name}, seed {seed} does not fail")
    runs = 1
    again = True
    while again:
        again = False
        for what, candidate in _smaller(scenario, outcome):
            if runs >= most_runs:
                return scenario, outcome
            runs += 1
            found = trial.run(candidate, seed, plant=plant)
            if found.violation and found.violation.invariant == outcome.violation.invariant:
                progress(f"{runs} runs: {what}")
                scenario, outcome, again = candidate, found, True
                break
    return scenario, outcome


def _smaller(scenario: Scenario, outcome: Outcome) -> Iterator[tuple[str, Scenario]]:
    """Yield what may be left out, the most first."""
    for what, change in _candidates(scenario, outcome):
        try:
            yield what, replace(scenario, **change)
        except ValueError:
            continue  # a fault asks for more than is left


def _candidates(scenario: Scenario, outcome: Outcome) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield fields that make a scenario smaller, if they make one."""
    faults, time, writes = scenario.faults, scenario.time, scenario.writes
    half = len(faults) // 2
    if half:
        yield "half of the faults", {"faults": faults[:half]}
        yield "half of the faults", {"faults": faults[half:]}
    for size in _SIZES:
        if size < scenario.nodes:
            yield f"{size} nodes", {"nodes": size}
    for index, fault in enumerate(faults):
        yield f"no {fault.kind}", {"faults": faults[:index] + faults[index + 1 :]}
    assert outcome.violation is not None
    needed_s = max((fault.at_s for fault in faults), default=0.0)
    for duration_s in (outcome.violation.at_s + _MARGIN_S, needed_s + _MARGIN_S):
        if _MARGIN_S <= duration_s < time.duration_s - _MARGIN_S:
            yield "less time", {"time": replace(time, duration_s=round(duration_s, 1))}
    if scenario.network != Conditions():
        yield "a clean network", {"network": Conditions()}
    if writes.per_s > 0:
        for per_s in (0.0, writes.per_s / 4):
            yield f"{per_s:g} writes/s", {"writes": replace(writes, per_s=per_s)}
    for index, fault in enumerate(faults):
        if fault.spread_s or fault.times > 1:
            plain = replace(fault, spread_s=0.0, times=1)
            yield (
                f"a plain {fault.kind}",
                {"faults": (*faults[:index], plain, *faults[index + 1 :])},
            )
    if scenario.zones > 1:
        yield "one zone", {"zones": 1}
