"""Tasks for sweeps that fresh interpreters can import, and a sweep to be run by another one."""

import functools
import json
import os
import signal
import sys
from itertools import count
from pathlib import Path

from simnet import scenario, trial
from simnet.outcome import Outcome
from simnet.sweep import sweep

SMALL = scenario.parse(
    {
        "name": "small",
        "nodes": 4,
        "time": {"duration_s": 3, "settle_s": 3, "heal_s": 10},
        "fault": [{"kind": "link", "at_s": 0, "loss": 0.2}],
    }
)


def small(folder: Path, seed: int) -> Outcome:
    """A small fleet; seed 3 raises, and seeds 1 and 4 have their worker killed the first time."""
    outcome = trial.run(SMALL, seed)
    if seed == 3:
        raise KeyError("three")
    dead = folder / str(seed)
    if seed in (1, 4) and not dead.exists():
        dead.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return outcome


def deadly(seed: int) -> Outcome:
    """Seed 2 never comes back."""
    if seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return trial.run(SMALL, seed)


def main() -> None:
    """Sweep with an engine; a line of JSON per outcome. Endless without a number of seeds."""
    engine, folder, *number = sys.argv[1:]
    task = functools.partial(small, Path(folder))
    seeds = range(int(number[0])) if number else count()
    for outcome in sweep(task, seeds, engine=engine, workers=2):
        print(json.dumps([outcome.seed, outcome.verdict]), flush=True)


if __name__ == "__main__":
    main()
