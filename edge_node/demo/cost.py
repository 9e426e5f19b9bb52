"""Measure what one full pass costs on this machine: `python -m edge_node.demo.cost`.

Owns one short measurement in a process of its own, so that the demo itself holds no runtime.
Never guesses: without a measurement there is no demo.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

from models.accelerators import worker_environment

RUNS = 25
PAUSE_S = 0.03
LIMIT_S = 60.0


class CostError(Exception):
    """Why nothing could be measured, in one line."""


def full_pass_s(model: str = "large") -> float:
    """Return the CPU seconds that one full pass of a variant takes here, in a subprocess.

    Raises CostError.
    """
    command = [sys.executable, "-m", "edge_node.demo.cost", model]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            env=worker_environment(),
        )
        return float(json.loads(done.stdout)["full_pass_s"])
    except subprocess.TimeoutExpired:
        raise CostError(f"the model did not finish {RUNS} passes in {LIMIT_S:.0f} s") from None
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CostError(f"the model does not run here: {reason}") from None


def _measure(variant: str) -> float:
    """Return the CPU seconds of a pass (lower quartile): a paced CPU worker counts the same."""
    from edge_node.cameras.scene import BUSY_SEED, Scene
    from models.accelerators import AcceleratorSpec
    from models.images import Scaler
    from models.manifest import load_manifest
    from models.sessions import open_warm

    model = load_manifest().variants[variant]
    session = open_warm(model, AcceleratorSpec("cpu", "cpu"))
    scene, scaler, times_s = Scene(BUSY_SEED, 362, 640), Scaler(), []
    for index in range(RUNS):
        time.sleep(PAUSE_S)  # as a paced worker does; the processor's caches go cold meanwhile
        canvas = session.canvas(scene.frame(5 * index, 10.0), scaler)
        started_s = time.thread_time()
        session.run(canvas)
        times_s.append(time.thread_time() - started_s)
    # The lower quartile: what runs beside it on the same core only ever adds to the time.
    return statistics.quantiles(times_s[RUNS // 5 :], n=4)[0]


if __name__ == "__main__":
    print(json.dumps({"full_pass_s": _measure(sys.argv[1])}))
