"""A real daemon and what goes wrong around it: it says what to do, and nothing is lost."""

import hashlib
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from models.manifest import PACKAGED
from tests.e2e.fleet import Node, busy_clip, wait_for

Make = Callable[..., Node]


def ends(node: Node) -> tuple[int, str]:
    assert node.process is not None
    status = node.process.wait(30)
    return status, node.log


def test_an_unknown_key_and_a_wrong_type_name_file_line_and_field(make_node: Make) -> None:
    node = make_node("a")
    node.sections["placement"] = "polciy = 'local'\nepoch_s = 'soon'"
    status, log = ends(node.start())
    assert status == 2
    text = node.config_path.read_text().splitlines()
    for key, hint in (("polciy", "policy"), ("epoch_s", "number")):
        line = next(i for i, row in enumerate(text, 1) if row.startswith(key))
        assert f"{node.config_path}:{line}: [placement] {key}" in log
        assert hint in log
    assert "Traceback" not in log


@pytest.mark.parametrize("kind", ["tcp", "udp", "api"])
def test_a_taken_port_is_named_with_what_to_do(make_node: Make, kind: str) -> None:
    node = make_node("a")
    port = node.api_port if kind == "api" else node.peer_port
    family = socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM
    with socket.socket(type=family) as taken:
        taken.bind(("127.0.0.1", port))
        if kind != "udp":
            taken.listen()
        status, log = ends(node.start())
    assert status == 1
    assert f"127.0.0.1:{port}" in log
    assert "choose another" in log
    assert "Traceback" not in log


def own_models(node: Node) -> Path:
    """Give the node a copy of the packaged models; return the manifest's path."""
    folder = node.folder / "models"
    shutil.copytree(PACKAGED.parent, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    node.sections["model"] = f"manifest = 'models/{PACKAGED.name}'"
    return folder / PACKAGED.name


def test_a_missing_model_file_is_named(make_node: Make) -> None:
    node = make_node("a")
    manifest = own_models(node)
    missing = manifest.parent / "person-detector-small.onnx"
    missing.unlink()
    status, log = ends(node.start())
    assert status == 1
    assert str(missing) in log
    assert "Traceback" not in log


def test_a_corrupt_model_keeps_the_old_one(make_node: Make) -> None:
    node = make_node("a")
    manifest_path = own_models(node)
    bad = manifest_path.parent / "person-detector-small.onnx"
    content = bytearray(bad.read_bytes())
    content[: len(content) // 2] = b"\x00" * (len(content) // 2)
    bad.write_bytes(content)
    manifest = json.loads(manifest_path.read_text())
    for variant in manifest["variants"]:
        if variant["variant"] == "small":
            variant["sha256"] = hashlib.sha256(content).hexdigest()
    manifest_path.write_text(json.dumps(manifest))
    node.camera("door")
    node.start().ready()
    wait_for("answers", lambda: node.answered("door"))
    before = node.agent("door")["digest"]
    result = node.cli("models", "set", "person-detector", "small")
    assert result.returncode == 1
    assert "small" in result.stderr
    assert "Traceback" not in result.stderr
    answered = node.answered("door")
    wait_for("more answers", lambda: node.answered("door") > answered)
    assert node.agent("door")["digest"] == before
    assert node.get("models")[0]["desired"]["variant"] == "large"


def test_a_camera_that_vanishes_is_retried_while_the_node_stays_up(make_node: Make) -> None:
    node = make_node("a")
    node.camera("later", "clip.mp4")
    node.camera("door", "generated:3")
    node.start().ready()
    row = wait_for(
        "the camera is retried",
        lambda: (r := node.agent("later"))["state"] == "retrying" and r,
    )
    assert "clip.mp4" in row["reason"]
    wait_for("the other camera works", lambda: node.answered("door"))
    busy_clip(node.folder / "clip.tmp.mp4").rename(node.folder / "clip.mp4")
    wait_for("the camera came", lambda: node.answered("later"), timeout_s=40)
    assert node.agent("later")["state"] == "running"


def test_a_bad_reload_keeps_the_old_configuration(make_node: Make) -> None:
    node = make_node("a")
    node.camera("door", "generated:3")
    node.start().ready()
    wait_for("answers", lambda: node.answered("door"))
    assert node.process is not None
    node.config_path.write_text("[camera\n")
    node.process.send_signal(signal.SIGHUP)
    wait_for("the error is logged", lambda: "configuration not changed" in node.log)
    answered = node.answered("door")
    wait_for("more answers", lambda: node.answered("door") > answered)
    node.camera("desk", "generated:4")
    node.write_config()
    node.process.send_signal(signal.SIGHUP)
    wait_for("the new camera", lambda: any(r["agent"] == "desk" for r in node.get("agents")))
    wait_for("answers of the new camera", lambda: node.answered("desk"))


def test_signals_during_the_start_neither_kill_nor_get_lost(make_node: Make) -> None:
    node = make_node("a")
    node.start()
    assert node.process is not None
    wait_for("the interpreter is up", lambda: node.handles(signal.SIGHUP))
    for _ in range(5):
        node.process.send_signal(signal.SIGHUP)
        time.sleep(0.15)
    node.ready()
    wait_for("the reload", lambda: "configuration reloaded" in node.log)
    assert node.kill(signal.SIGTERM) == 0
    node.start()
    wait_for("the interpreter is up", lambda: node.handles(signal.SIGTERM))
    assert node.kill(signal.SIGTERM) == 0
    node.start().ready()
    assert node.kill(signal.SIGTERM) == 0
    assert "Traceback" not in node.log


def test_two_nodes_with_one_name_can_be_told_apart(make_node: Make, tmp_path: Path) -> None:
    a = make_node("a")
    (tmp_path / "other").mkdir()
    twin = Node(tmp_path / "other", "a", seeds=[a])
    try:
        a.start().ready()
        twin.start().ready()
        names = wait_for("both are named", lambda: len(s := a.states()) == 2 and s)
        wait_for("they differ", lambda: all(name.startswith("a-") for name in a.states()))
        assert sorted(names.values()) == ["alive", "self"]
    finally:
        twin.stop()


def test_a_full_disk_degrades_and_recovers(make_node: Make) -> None:
    node = make_node("a")
    node.camera("door", "generated:3")
    node.start().ready()
    wait_for("answers", lambda: node.answered("door"))
    node.limit_file_size(0)
    status, answer = node.request("PUT", "/edge/v1/models/person-detector", {"variant": "small"})
    assert status == 507, answer
    assert node.get("node")["degraded"]
    assert node.get("models")[0]["desired"]["variant"] == "large"
    answered = node.answered("door")
    wait_for("frames are still answered", lambda: node.answered("door") > answered)
    node.limit_file_size(1 << 40)
    wait_for(
        "the change is made after all",
        lambda: node.get("models")[0]["desired"]["variant"] == "small",
    )
    wait_for("nothing is degraded", lambda: not node.get("node")["degraded"])


def test_a_killed_worker_is_replaced(make_node: Make) -> None:
    node = make_node("a")
    node.camera("door", "generated:3")
    node.start().ready()
    wait_for("answers", lambda: node.answered("door"))
    pid = node.get("node")["accelerators"][0]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(
        "another worker",
        lambda: node.get("node")["accelerators"][0]["pid"] not in (pid, None),
    )
    answered = node.answered("door")
    wait_for("answers again", lambda: node.answered("door") > answered)


def test_no_process_outlives_a_killed_daemon(make_node: Make) -> None:
    node = make_node("a")
    node.start().ready()
    pid = node.get("node")["accelerators"][0]["pid"]
    node.kill(signal.SIGKILL)
    wait_for("the worker is gone", lambda: not Path(f"/proc/{pid}").exists(), timeout_s=10)


def test_an_idle_daemon_is_small_and_quiet(make_node: Make) -> None:
    a = make_node("a")
    b = make_node("b", seeds=[a])
    a.start().ready()
    b.start().ready()
    wait_for("b alive", lambda: a.states().get("b") == "alive")
    used_s = a.cpu_s()
    time.sleep(10)
    used_s = a.cpu_s() - used_s
    wait_for("what start-up alone needed is given back", lambda: a.resident_kb <= 60_000)
    print(f"idle daemon: {a.resident_kb / 1e3:.1f} MB, {used_s * 10:.2f} % of a core")
    # Under 1 % on a quiet machine (see the README); the margin is for a busy one.
    assert used_s / 10 < 0.03
