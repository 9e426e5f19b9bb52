"""Which accelerators this node has, and whether each computes what the CPU computes.

Owns the description of an accelerator and the questions about the machine's inference set-up;
never imports ONNX Runtime: every question is answered by a subprocess (`models.probe`), so that
a driver that crashes or hangs costs an answer, not the daemon. Invariant: nothing here raises
because of a bad driver; a bad driver is a result with a reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
PROBE_LIMIT_S = 60.0
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class AcceleratorSpec:
    """Describe one execution provider on one device of this node.

    `device` is the provider's own name for it (CUDA: an index; OpenVINO: CPU, GPU, NPU), empty
    for its default. `share` is the part of one core that inference may use, 0 < share <= 1.
    `queue` is how many tasks may wait. `cache_mb` (10^6 bytes) limits what is held to reuse; with
    0 nothing is.
    """

    name: str
    provider: str
    device: str = ""
    share: float = 1.0
    queue: int = 32
    cache_mb: int = 256

    def __post_init__(self) -> None:
        if self.provider not in PROVIDERS:
            raise ValueError(
                f"accelerator {self.name}: provider {self.provider!r} is not one of "
                f"{', '.join(sorted(PROVIDERS))}"
            )
        if not 0 < self.share <= 1:
            raise ValueError(f"accelerator {self.name}: share is {self.share}; it must be in 0..1")
        if self.queue < 1:
            raise ValueError(f"accelerator {self.name}: queue is {self.queue}; it must be >= 1")
        if self.cache_mb < 0:
            raise ValueError(
                f"accelerator {self.name}: cache_mb is {self.cache_mb}; it must be >= 0"
            )


@dataclass(frozen=True)
class ProbeResult:
    """Say whether an accelerator can be used.

    `latency_ms` is the median full pass of the packaged small model at 192 x 320, `max_error`
    the greatest deviation from the CPU as a fraction of full scale; both 0 when it failed.
    """

    spec: AcceleratorSpec
    ok: bool
    reason: str
    latency_ms: float
    max_error: float


def probe(
    spec: AcceleratorSpec, *, python: str = sys.executable, limit_s: float = PROBE_LIMIT_S
) -> ProbeResult:
    """Run the packaged small model on an accelerator and compare it with the CPU.

    Blocks up to `limit_s`; never raises for a missing, broken or hanging driver. `python` is the
    interpreter whose wheels are probed.
    """
    answer, trouble = _ask(python, ["probe", json.dumps(asdict(spec))], limit_s)
    if not isinstance(answer, dict):
        return ProbeResult(spec, False, trouble, 0.0, 0.0)
    return ProbeResult(
        spec, answer["ok"], answer["reason"], answer["latency_ms"], answer["max_error"]
    )


def doctor_findings(
    *, python: str = sys.executable, limit_s: float = PROBE_LIMIT_S
) -> list[tuple[str, str, str]]:
    """Return what is wrong with the inference set-up: (severity, what is wrong, what to do).

    Severity is "error", "warning" or "info"; an empty list means nothing was found. Blocks up to
    `limit_s`.
    """
    answer, trouble = _ask(python, ["findings"], limit_s)
    if not isinstance(answer, list):
        return [("error", f"the inference set-up cannot be examined: {trouble}",
                 "reinstall edge-node with one of the extras cpu, cuda, openvino")]  # fmt: skip
    return [(severity, problem, remedy) for severity, problem, remedy in answer]


def worker_environment() -> dict[str, str]:
    """Return the environment of a process that imports `models` from where this file lies."""
    environment = dict(os.environ)
    paths = [str(_ROOT), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    # One process per accelerator is the unit of parallelism; numpy's own threads only contend.
    environment["OPENBLAS_NUM_THREADS"] = environment["OMP_NUM_THREADS"] = "1"
    # ONNX Runtime's own switch: without it, it writes telemetry files into the user's folders.
    environment["ORT_DISABLE_TELEMETRY"] = "1"
    return environment


def _ask(python: str, arguments: list[str], limit_s: float) -> tuple[object, str]:
    """Return (the subprocess's answer, "") or (None, what went wrong)."""
    try:
        done = subprocess.run(
            [python, "-m", "models.probe", *arguments],
            env=worker_environment(),
            capture_output=True,
            timeout=limit_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer within {limit_s:g} s: the driver hangs"
    except OSError as error:
        return None, f"{python} cannot be run: {error.strerror}"
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    try:
        return json.loads(lines[-1]), ""
    except (IndexError, ValueError):
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit {done.returncode}"
        return None, f"the probe died with {how}" + (f": {last[0]}" if last else "")
