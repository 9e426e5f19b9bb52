"""What the command line runs: a scenario by its name, with a seed, in a world.

Owns the way from names to outcomes, and the commands that do the same again. Invariant: a command
in an outcome's ``replay`` gives the same trace.
"""

import os
import shlex
from dataclasses import replace
from pathlib import Path

from simnet import plants, scenario, swarm, trial
from simnet.outcome import Outcome
from simnet.scenario import Scenario
from simnet.trial import Progress

PROGRAM = "python -m simnet"
_BASE_MIB, _NODE_MIB, _LINK_MIB = 60.0, 0.25, 0.0016
"""What a world's process, a node and each of its links take."""


class ScenarioError(ValueError):
    """The scenario cannot be run; the text says why and what could be."""


def find(name: str, seed: int, nodes: int | None = None, plant: str = "") -> Scenario:
    """Return the scenario of a name, a file, or of ``swarm`` and a seed.

    Raises:
        ScenarioError: there is none, it makes no sense, or this machine is too small for it.
    """
    try:
        found = swarm.draw(seed) if name == swarm.NAME else scenario.load(name)
        found = found.sized(nodes) if nodes is not None else found
        found.plan(seed)
        if plant and plant not in plants.PLANTS:
            raise ValueError(f"no plant {plant!r}; there are: {', '.join(plants.PLANTS)}")
    except ValueError as error:
        raise ScenarioError(str(error)) from error
    _fit(found)
    return found


def run(
    name: str,
    seed: int,
    nodes: int | None = None,
    plant: str = "",
    progress: Progress | None = None,
) -> Outcome:
    """Run a scenario by its name; a module-level function, so that sweeps can send it away."""
    found = find(name, seed, nodes, plant)
    outcome = trial.run(found, seed, plant=plant, progress=progress)
    return replace(outcome, replay=replay_command(name, outcome, nodes, plant))


def replay_command(name: str, outcome: Outcome, nodes: int | None = None, plant: str = "") -> str:
    """Return the command that runs the same again and compares the traces."""
    shown = name if not name.endswith(".toml") else os.path.relpath(name)
    words = ["replay", shown, "--seed", str(outcome.seed)]
    if nodes is not None:
        words += ["--nodes", str(nodes)]
    if plant:
        words += ["--plant", plant]
    return f"{PROGRAM} {shlex.join([*words, '--expect', outcome.trace_hash])}"


def memory_mib(found: Scenario) -> float:
    """Estimate what a world of this scenario takes."""
    links = min(found.nodes, found.gossip.links_kept, 100)
    return _BASE_MIB + found.nodes * (_NODE_MIB + links * _LINK_MIB)


def _fit(found: Scenario) -> None:
    free_mib = _free_mib()
    if free_mib is not None and memory_mib(found) > free_mib:
        each = (memory_mib(found) - _BASE_MIB) / found.nodes
        fits = max(0, int((free_mib - _BASE_MIB) / each))
        raise ScenarioError(
            f"nodes = {found.nodes}: a world of so many takes about {memory_mib(found):.0f} MiB, "
            f"and {free_mib:.0f} MiB are free; {fits} nodes would fit"
        )


def _free_mib() -> float | None:
    """Return how much memory is free, None where nobody tells."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = dict(line.split(":") for line in lines)
    return int(sizes["MemAvailable"].split()[0]) / 1024
