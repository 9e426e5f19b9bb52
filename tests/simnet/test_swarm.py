"""Seeds that draw their own faults: fifty here, five hundred in `make soak`."""

import os
from functools import partial

import pytest

from simnet import runs
from simnet.sweep import sweep

SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
SEEDS = range(1, 501 if SOAK else 51)


@pytest.mark.timeout(3600 if SOAK else 420)
def test_the_swarm_finds_nothing() -> None:
    task = partial(runs.run, "swarm")
    failed = {
        outcome.seed: f"{outcome.violation}\n{outcome.replay}"
        for outcome in sweep(task, SEEDS)
        if not outcome.passed
    }
    assert not failed
