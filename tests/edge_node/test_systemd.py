"""The units as systemd judges them, the sandbox as the kernel enforces it, and sd_notify."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edge_node.notify import Notifier

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "systemd"
EXPOSURE_LIMIT = 2.0

analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def run(*command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, **environ},
        timeout=120,
        check=False,
    )


@pytest.fixture(params=[(), ("cuda",), ("openvino",), ("cuda", "openvino")], ids="+".join)
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Install the unit with some of its drop-ins into an empty folder."""
    installed = tmp_path / "edge-node.service"
    shutil.copy(UNITS / "edge-node.service", installed)
    (tmp_path / "edge-node.service.d").mkdir()
    for name in request.param:
        shutil.copy(UNITS / f"{name}.conf", tmp_path / "edge-node.service.d")
    return installed


@analyze
def test_systemd_finds_nothing_wrong_with_the_unit(unit: Path) -> None:
    done = run("systemd-analyze", "verify", "--man=no", str(unit))
    assert (done.returncode, done.stderr) == (0, "")


@analyze
def test_the_unit_is_hardened(unit: Path) -> None:
    done = run("systemd-analyze", "security", "--offline=true", "--no-pager", str(unit))
    exposure = re.search(r"Overall exposure level for .*: ([\d.]+)", done.stdout)
    assert exposure is not None, done.stderr
    assert float(exposure[1]) <= EXPOSURE_LIMIT
    manual = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert f"{exposure[1]} " in manual.partition("0 is best): ")[2][:50]


@pytest.mark.skipif(
    shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed"
)
def test_the_user_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "etc/sysusers.d").mkdir(parents=True)
    shutil.copy(UNITS / "edge-node.sysusers.conf", tmp_path / "etc/sysusers.d/edge-node.conf")
    done = run("systemd-sysusers", f"--root={tmp_path}")
    assert done.returncode == 0, done.stderr
    groups = (tmp_path / "etc/group").read_text()
    assert re.search(r"(?m)^video:.*:edge-node$", groups)
    assert re.search(r"(?m)^render:.*:edge-node$", groups)


# Enters what the unit asks of the kernel, then becomes the command: only the listed system calls,
# only the listed socket families, no memory that is writable and executable.
SANDBOX = """
import ctypes, os, sys
calls, command = sys.argv[1].split(","), sys.argv[2:]
filters = ctypes.CDLL("libseccomp.so.2", use_errno=True)
filters.seccomp_init.restype = ctypes.c_void_p
class Compare(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64),
                ("b", ctypes.c_uint64)]
EQUAL, MASKED, ALLOW, EPERM = 4, 7, 0x7FFF0000, 0x00050001
context = ctypes.c_void_p(filters.seccomp_init(EPERM))
def allow(name, *compare):
    number = filters.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:
        array = (Compare * len(compare))(*compare)
        added = filters.seccomp_rule_add_array(context, ALLOW, number, len(compare), array)
        assert added == 0, name
for call in calls:
    if call == "socket":
        for family in (1, 2, 10):
            allow(call, Compare(0, EQUAL, family, 0))
    elif call == "mmap":
        for protection in (0, 2, 4):
            allow(call, Compare(2, MASKED, 6, protection))
    elif call in ("mprotect", "pkey_mprotect"):
        allow(call, Compare(2, MASKED, 4, 0))
    else:
        allow(call)
assert filters.seccomp_load(context) == 0
os.execv(command[0], command)
"""


def system_calls(name: str) -> set[str]:
    """Expand a set of system calls as this systemd knows it."""
    if not name.startswith("@"):
        return {name}
    text = run("systemd-analyze", "syscall-filter", "--no-pager", name).stdout
    members = re.findall(r"(?m)^ +([@a-z_][\w-]*)$", text)
    return {call for member in members for call in system_calls(member)}


@analyze
@pytest.mark.skipif(
    not any(Path("/usr").glob("lib*/**/libseccomp.so.2")), reason="libseccomp is not installed"
)
def test_the_nodes_parts_run_inside_the_sandbox() -> None:
    unit = (UNITS / "edge-node.service").read_text()
    assert "MemoryDenyWriteExecute=yes" in unit
    assert "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX" in unit
    (listed,) = re.findall(r"(?m)^SystemCallFilter=(@.*)$", unit)
    (denied,) = re.findall(r"(?m)^SystemCallFilter=~(.*)$", unit)
    calls = {call for name in listed.split() for call in system_calls(name)}
    calls -= {call for name in denied.split() for call in system_calls(name)}
    inside = (sys.executable, "-c", SANDBOX, ",".join(sorted(calls)), sys.executable)
    path = {"PYTHONPATH": str(ROOT)}
    holds = (
        "import mmap, socket\n"
        "for forbidden in (lambda: mmap.mmap(-1, 4096, prot=7), lambda: socket.socket(17, 3)):\n"
        "    try: forbidden()\n"
        "    except OSError: print('denied')\n"
    )
    held = run(*inside, "-c", holds)
    assert held.stdout == "denied\n" * 2, held.stderr
    daemon = "import edge_node.daemon, sqlite3, socket\nsocket.getaddrinfo('localhost', 80)"
    done = run(*inside, "-c", daemon, **path)
    assert done.returncode == 0, done.stderr
    worker = run(*inside, "-c", "import edge_node.worker_main, av, models.worker", **path)
    assert worker.returncode == 0, worker.stderr
    spec = '{"name": "cpu", "provider": "cpu"}'
    probe = run(*inside, "-m", "models.probe", "probe", spec, **path)
    assert '"ok": true' in probe.stdout, probe.stdout + probe.stderr


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_the_manager_hears_what_the_daemon_says(tmp_path: Path, abstract: bool) -> None:
    address = f"@edge-node-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if abstract else address)
        manager.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": address})
        assert notifier.ready("three\ncameras")
        assert manager.recv(1024) == b"READY=1\nSTATUS=three cameras"
        assert notifier.status("two peers")
        assert manager.recv(1024) == b"STATUS=two peers"
        assert notifier.watchdog()
        assert manager.recv(1024) == b"WATCHDOG=1"
        assert notifier.reloading()
        assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", manager.recv(1024))
        assert notifier.stopping()
        assert manager.recv(1024) == b"STOPPING=1"


def test_a_manager_that_is_gone_or_busy_holds_nothing_up(tmp_path: Path) -> None:
    assert Notifier({}).ready() is False
    address = str(tmp_path / "notify")
    assert Notifier({"NOTIFY_SOCKET": address}).ready() is False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        notifier = Notifier({"NOTIFY_SOCKET": address})
        sent = [notifier.watchdog() for _ in range(10_000)]
    assert sent[0] is True
    assert sent[-1] is False, "a full queue is not waited for"


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_wants_a_sign_twice_per_limit(
    environ: dict[str, str], interval_s: float | None
) -> None:
    assert Notifier(environ).watchdog_interval_s == interval_s
