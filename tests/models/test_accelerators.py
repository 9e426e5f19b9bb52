"""Probing real providers in subprocesses, and what is said when they are not there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from models.accelerators import AcceleratorSpec, doctor_findings, probe


def test_the_cpu_agrees_with_itself() -> None:
    result = probe(AcceleratorSpec("cpu0", "cpu"))
    assert (result.ok, result.reason, result.max_error) == (True, "", 0.0)
    assert result.latency_ms > 0


def test_a_provider_missing_from_the_wheel_names_the_extra() -> None:
    result = probe(AcceleratorSpec("gpu0", "cuda"))
    if result.ok or "is not in the installed" not in result.reason:
        pytest.skip("this environment has the CUDA provider")
    assert "edge-node[cuda]" in result.reason


def test_openvino_agrees_with_the_cpu() -> None:
    python = os.environ.get("EDGE_NODE_OPENVINO_PYTHON", "")
    if not python:
        pytest.skip(
            "EDGE_NODE_OPENVINO_PYTHON names no interpreter with the packages of locks/openvino.txt"
        )
    result = probe(AcceleratorSpec("ov0", "openvino", "CPU"), python=python)
    assert result.ok, result.reason
    assert result.max_error < 1e-3
    assert result.latency_ms > 0
    absent = probe(AcceleratorSpec("ov1", "openvino", "NPU"), python=python)
    if not absent.ok:
        assert absent.reason
    assert [f for f in doctor_findings(python=python) if f[0] == "error"] == []


def script(folder: Path, body: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_a_driver_that_crashes_hangs_or_babbles_is_a_reason_not_an_exception(
    tmp_path: Path,
) -> None:
    spec = AcceleratorSpec("cpu0", "cpu")
    crash = probe(spec, python=script(tmp_path, "kill -SEGV $$"))
    assert (crash.ok, "signal 11" in crash.reason) == (False, True)
    hang = probe(spec, python=script(tmp_path, "exec sleep 60"), limit_s=0.3)
    assert (hang.ok, "hangs" in hang.reason) == (False, True)
    babble = probe(spec, python=script(tmp_path, "echo '{oops'; echo trouble >&2; exit 3"))
    assert (babble.ok, "exit 3: trouble" in babble.reason) == (False, True)
    absent = probe(spec, python=str(tmp_path / "none"))
    assert (absent.ok, "cannot be run" in absent.reason) == (False, True)


def test_this_environment_is_healthy() -> None:
    assert [finding for finding in doctor_findings() if finding[0] == "error"] == []


def test_two_owners_of_onnxruntime_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnxruntime", "onnxruntime-gpu"):
        info = tmp_path / f"{name.replace('-', '_')}-9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9\n")
        (info / "top_level.txt").write_text("onnxruntime\n")
        (info / "RECORD").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    errors = [finding for finding in doctor_findings() if finding[0] == "error"]
    assert len(errors) == 1
    assert "onnxruntime, onnxruntime-gpu" in errors[0][1]
    assert "uninstall" in errors[0][2]


def test_a_broken_wheel_and_a_missing_library_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "onnxruntime"
    package.mkdir()
    text = "libgomp.so.1: cannot open shared object file: No such file or directory"
    (package / "__init__.py").write_text(f"raise ImportError({text!r})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    errors = [finding for finding in doctor_findings() if finding[0] == "error"]
    assert any("libgomp" in problem and "libgomp1" in remedy for _, problem, remedy in errors)
    result = probe(AcceleratorSpec("cpu0", "cpu"))
    assert (result.ok, "libgomp" in result.reason) == (False, True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"provider": "tpu"}, "provider 'tpu' is not one of cpu, cuda, openvino"),
        ({"share": 0.0}, "share is 0.0"),
        ({"share": 1.5}, "share is 1.5"),
        ({"queue": 0}, "queue is 0"),
        ({"cache_mb": -1}, "cache_mb is -1"),
    ],
)
def test_a_wrong_description_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AcceleratorSpec(**({"name": "x", "provider": "cpu"} | changes))  # type: ignore[arg-type]


def test_questions_load_nothing_heavy() -> None:
    import subprocess

    code = (
        "import sys, models.accelerators, models.manifest, models.queue, edge_node.workers;"
        "models.manifest.load_manifest();"
        "print(sorted({'numpy', 'onnxruntime', 'av'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
