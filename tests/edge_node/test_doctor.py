"""The doctor on a healthy set-up and on a broken one: real probes, ports, files."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edge_node.doctor import Finding, examine

ROOT = Path(__file__).parents[2]


def free_ports(kinds: tuple[socket.SocketKind, ...]) -> list[int]:
    taken = [socket.socket(socket.AF_INET, kind) for kind in kinds]
    for one in taken:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in taken]
    for one in taken:
        one.close()
    return ports


def of(findings: list[Finding], subject: str) -> Finding:
    return next(finding for finding in findings if finding.subject.startswith(subject))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "fleet.secret").write_bytes(bytes(range(32)))
    (tmp_path / "fleet.secret").chmod(0o600)
    return tmp_path


def test_a_healthy_device(folder: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs an extra that brings onnxruntime")
    fleet, api = free_ports((socket.SOCK_STREAM, socket.SOCK_STREAM))
    (folder / "node.toml").write_text(
        f'[fleet]\nbind = "127.0.0.1:{fleet}"\n[api]\nbind = "127.0.0.1:{api}"\n'
        '[[camera]]\nname = "a"\nsource = "generated:1"\n'
    )
    findings = list(examine(folder / "node.toml"))
    assert [finding for finding in findings if finding.severity == "error"] == []
    assert of(findings, "accelerator cpu").severity == "ok"
    assert "agrees with the CPU within 0.00%" in of(findings, "accelerator cpu").what
    assert of(findings, "accelerator cuda").what.startswith("not measured")
    for subject in ("python", "configuration", "fleet secret", "port [fleet] bind (UDP)"):
        assert of(findings, subject).severity == "ok"
    assert of(findings, "state folder").what.endswith("MB free")
    assert not (folder / "state").exists(), "the doctor changes nothing"


def test_a_broken_device_says_what_to_do_about_each_thing(folder: Path) -> None:
    (folder / "api.token").write_text("\n")
    (folder / "fleet.secret").chmod(0o644)
    (folder / "file").write_text("")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken,
        socket.create_server(("127.0.0.1", 0)) as foreign,
    ):
        taken.bind(("127.0.0.1", 0))
        (folder / "node.toml").write_text(
            f"""
            node = {{state_dir = "file/state"}}
            fleet = {{bind = "127.0.0.1:{taken.getsockname()[1]}"}}
            api = {{bind = "127.0.0.1:{foreign.getsockname()[1]}", token_file = "api.token"}}
            [[accelerator]]
            provider = "openvino"
            device = "NO-SUCH-DEVICE"
            [[camera]]
            name = "gone"
            source = "gone.mp4"
            [[camera]]
            name = "net"
            source = "rtsp://user:pass-word@127.0.0.1:{free_ports((socket.SOCK_STREAM,))[0]}/1"
            """
        )
        findings = list(examine(folder / "node.toml"))
    for subject, severity, what, remedy in (
        ("accelerator openvino", "error", "", "remove this [[accelerator]]"),
        ("fleet secret", "error", "can be read or changed by others", "chmod 600"),
        ("API token", "error", "is empty", "openssl rand"),
        ("state folder", "error", "file cannot be written", "[node] state_dir"),
        ("port [fleet] bind (UDP)", "error", "in use", "ss -lntup"),
        ("port [api] bind (TCP)", "error", "in use", "ss -lntup"),
        ("camera gone", "warning", "there is no", "keeps trying"),
        ("camera net", "warning", "does not answer", "check the camera"),
    ):
        finding = of(findings, subject)
        assert finding.severity == severity
        assert what in finding.what
        assert remedy in finding.remedy
    assert all(one.remedy for one in findings if one.severity in ("warning", "error"))
    assert not any("pass-word" in finding.what for finding in findings)


def test_without_a_configuration_the_device_is_examined_and_the_status_is_1(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edge_node.cli", "doctor", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    findings = [Finding(**record) for record in json.loads(done.stdout)]
    assert "there is no such file" in of(findings, "configuration").what
    assert of(findings, "accelerator cpu").severity in ("ok", "error")
