"""The subprocess behind `accelerators`: tries a provider, or examines the installation.

Owns nothing that outlives it; prints one line of JSON and exits. Run as
`python -m models.probe probe SPEC_JSON` or `python -m models.probe findings`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from models.accelerators import PROVIDERS, AcceleratorSpec
from models.manifest import ModelError, load_manifest

PROBE_SHAPE = (1, 3, 192, 320)
PROBE_RUNS = 7
ERROR_LIMIT = 0.02  # of full scale: leaves room for half precision, not for a wrong kernel

Finding = tuple[str, str, str]


def probe(spec: AcceleratorSpec) -> dict[str, Any]:
    """Return {ok, reason, latency_ms, max_error} of a provider against the CPU."""
    failed = {"ok": False, "latency_ms": 0.0, "max_error": 0.0}
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        return {**failed, "reason": f"{_import_trouble(error)[1]}; {_import_trouble(error)[2]}"}
    wanted = PROVIDERS[spec.provider]
    if wanted not in runtime.get_available_providers():
        return {
            **failed,
            "reason": f"{wanted} is not in the installed onnxruntime wheel; "
            f"install edge-node[{spec.provider}] in an environment of its own",
        }
    try:
        return {**failed, **_compare(spec)}
    except ModelError as error:
        return {**failed, "reason": str(error)}


def _compare(spec: AcceleratorSpec) -> dict[str, Any]:
    import numpy as np

    from models.runtime import open_session

    model = load_manifest().variants["small"]
    data = Path(model.path).read_bytes()
    pixels = np.random.default_rng(1).integers(0, 256, PROBE_SHAPE).astype(np.float32)
    feed = {model.spec["input"]["name"]: pixels}
    reference = open_session(data, AcceleratorSpec("reference", "cpu")).run(None, feed)[0]
    session = open_session(data, spec, strict=True)
    try:
        session.run(None, feed)
        times = []
        for _ in range(PROBE_RUNS):
            started = time.perf_counter()
            found = session.run(None, feed)[0]
            times.append((time.perf_counter() - started) * 1000)
    except Exception as error:  # noqa: BLE001 - whatever a driver raises is its answer
        raise ModelError(f"the first run failed: {_first_line(error)}") from None
    scale = float(np.abs(reference).max()) or 1.0
    error_share = float(np.abs(found - reference).max()) / scale
    right = bool(np.isfinite(found).all()) and error_share <= ERROR_LIMIT
    return {
        "ok": right,
        "reason": "" if right else f"differs from the CPU by {error_share:.1%} of full scale",
        "latency_ms": round(statistics.median(times), 3),
        "max_error": error_share if np.isfinite(error_share) else 1.0,
    }


def findings() -> list[Finding]:
    """Return what is wrong with the wheels and libraries of this interpreter."""
    found: list[Finding] = []
    owners = sorted(set(importlib.metadata.packages_distributions().get("onnxruntime", [])))
    if len(owners) > 1:
        found.append(
            (
                "error",
                f"{len(owners)} packages own the module onnxruntime: {', '.join(owners)}; "
                "their files overwrite each other",
                f"pip uninstall {' '.join(owners)}, then install exactly one extra of edge-node",
            )
        )
    providers: list[str] = []
    try:
        providers = importlib.import_module("onnxruntime").get_available_providers()
    except (ImportError, AttributeError) as error:
        found.append(_import_trouble(error))
    if providers:
        found += _hardware_without_provider(providers)
    if importlib.util.find_spec("av") is None:
        found.append(
            (
                "error",
                "PyAV is not installed: no camera can be opened",
                "install edge-node[video]",
            )
        )
    try:
        load_manifest()
    except ModelError as error:
        found.append(("error", f"the packaged model is unusable: {error}", "reinstall edge-node"))
    return found


def _hardware_without_provider(providers: list[str]) -> list[Finding]:
    found: list[Finding] = []
    nvidia = Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvhost-gpu").exists()
    if nvidia and PROVIDERS["cuda"] not in providers:
        found.append(
            (
                "warning",
                "an NVIDIA GPU is there, but the installed onnxruntime has no CUDA provider",
                "install edge-node[cuda] in an environment of its own and add "
                "[[accelerator]] provider = 'cuda'",
            )
        )
    if not nvidia and PROVIDERS["cuda"] in providers:
        found.append(
            (
                "info",
                "onnxruntime has the CUDA provider, but no NVIDIA driver is loaded",
                "load the driver, or use edge-node[cpu], which is far smaller",
            )
        )
    intel = any(
        path.read_text(encoding="ascii", errors="replace").strip() == "0x8086"
        for path in Path("/sys/class/drm").glob("renderD*/device/vendor")
    )
    if (intel or Path("/dev/accel/accel0").exists()) and PROVIDERS["openvino"] not in providers:
        found.append(
            (
                "info",
                "an Intel GPU or NPU is there, but the installed onnxruntime has no OpenVINO",
                "install edge-node[openvino] in an environment of its own and add "
                "[[accelerator]] provider = 'openvino'",
            )
        )
    return found


def _import_trouble(error: Exception) -> Finding:
    text = _first_line(error)
    if isinstance(error, ModuleNotFoundError):
        return ("error", "onnxruntime is not installed", "install edge-node[cpu]")
    if "libgomp" in text:
        return (
            "error",
            "the library libgomp is missing, onnxruntime cannot be loaded",
            "install the system package libgomp1 (Debian, Ubuntu) or libgomp (Fedora)",
        )
    return ("error", f"onnxruntime cannot be loaded: {text}", "reinstall one extra of edge-node")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def main(arguments: list[str]) -> None:
    """Answer one question on standard output as a line of JSON."""
    if arguments[0] == "probe":
        answer: object = probe(AcceleratorSpec(**json.loads(arguments[1])))
    else:
        answer = findings()
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
