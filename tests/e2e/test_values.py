"""Applications' values of any size, through three real daemons and the command line."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.e2e.fleet import Node, wait_for


def cli(node: Node, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "edge_node.cli.main", "state", *arguments]
    command += ["--api", f"127.0.0.1:{node.api_port}"]
    return subprocess.run(command, check=False, capture_output=True)


def test_100_kb_value_travels_by_reference_and_outlives_its_author(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    a = make_node("a").start()
    b, c = make_node("b", seeds=[a]).start(), make_node("c", seeds=[a]).start()
    for node in (a, b, c):
        node.ready()
    for node in (a, b, c):
        wait_for("all are members", lambda node=node: len(node.get("peers")) == 3)
    large = os.urandom(100_000)
    (tmp_path / "large").write_bytes(large)
    assert cli(a, "set", "site/map", "--file", str(tmp_path / "large")).returncode == 0
    assert cli(a, "set", "site/limit", '{"people": 12}').returncode == 0
    for node in (a, b, c):
        wait_for("the value", lambda node=node: cli(node, "cat", "site/map").stdout == large)
        wait_for("it is kept", lambda node=node: any((node.folder / "state/artifacts").glob("*")))
        assert b'"people": 12' in cli(node, "cat", "site/limit").stdout
    register = b.get("state?prefix=app/")["fleet"]["app/site/map"]
    assert len(str(register)) < 200  # gossip carries the digest alone
    assert a.kill(signal.SIGKILL) == -signal.SIGKILL
    assert cli(c, "cat", "site/map").stdout == large
    assert cli(c, "rm", "site/map").returncode == 0
    wait_for("nobody keeps it", lambda: not any((b.folder / "state/artifacts").glob("*")), 100)
    missing = cli(b, "cat", "site/map")
    assert missing.returncode == 1
    assert b"no value site/map" in missing.stderr


def test_bad_values_are_refused_with_a_reason(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = make_node("a").start().ready()
    (tmp_path / "huge").write_bytes(bytes(5 * 2**20))
    for arguments, words in {
        ("set", "k", "--file", str(tmp_path / "huge")): "",
        ("set", "k", "--file", str(tmp_path / "none")): "No such file",
        ("set", "k" * 200, "1"): "a key has 1 to",
        ("set", "k", '{"$artifact": "x"}'): "reserved",
        ("rm", "nothing"): "",
    }.items():
        done = cli(node, *arguments)
        assert done.returncode == (0 if arguments[0] == "rm" else 1), done
        assert words.encode() in done.stderr
    for usage in (["k"], ["k", "null"]):
        assert cli(node, "set", *usage).returncode == 2
