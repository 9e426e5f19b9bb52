"""The demo, run as a person runs it, and the parts of it that can be wrong without showing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge_node import config
from edge_node.demo import report
from edge_node.demo.fleet import Fleet, free_ports
from edge_node.demo.plan import OVERLOAD, generated_sources, plan
from edge_node.demo.report import Measured, Window, judge
from edge_node.demo.view import Screen

GOOD = Measured(
    full_pass_ms=4.0,
    footage="footage",
    up_s=5.0,
    overloaded="hall",
    off=Window(7.0, 210, 208, 105, 104, 0, 150.0, 190.0),
    on=Window(7.0, 210, 209, 209, 205, 90, 60.0, 120.0),
    model="small",
    model_by_node_s={"hall": 0.4, "yard": 0.5, "gate": 0.2},
    killed="yard",
    killed_s=20.0,
    death_seen_s={"hall": 3.0, "gate": 3.5},
    takeover_s={"cam04": 6.0},
    returned_s=6.0,
    agreed_after_s={"start": 0.2, "models set": 0.3, "takeover": 0.1, "return": 0.0},
    longest_disagreement_s=0.4,
    answers={"cam01": 300, "quiet": 300},
    people={"cam01": 900, "quiet": 0},
    quiet_answers=300,
    quiet_hits=200,
    total_s=40.0,
)


def test_a_good_run_passes() -> None:
    assert [one.name for one in judge(GOOD) if not one.holds] == []
    summary = report.as_json(GOOD, judge(GOOD))
    assert summary["passed"] is True
    assert json.loads(json.dumps(summary))["measured"]["off"]["met_ratio"] == 0.5


@pytest.mark.parametrize(
    "flaw",
    [
        {"up_s": None},
        {"off": None},
        {"off": Window(7.0, 210, 208, 105, 104, 1, 150.0, 190.0)},
        {"off": Window(7.0, 210, 208, 205, 204, 0, 150.0, 190.0)},
        {"off": Window(7.0, 0, 0, 0, 0, 0, None, None)},
        {"on": Window(7.0, 210, 209, 209, 205, 0, 60.0, 120.0)},
        {"on": Window(7.0, 210, 209, 104, 104, 9, 60.0, 120.0)},
        {"model_by_node_s": {"hall": 0.4, "gate": 0.2}},
        {"model_by_node_s": {"hall": 0.4, "yard": None, "gate": 0.2}},
        {"death_seen_s": {"hall": 3.0}},
        {"death_seen_s": {"hall": 3.0, "gate": None}},
        {"takeover_s": {}},
        {"returned_s": None},
        {"takeover_s": {"cam04": report.TAKEOVER_LIMIT_S + 0.1}},
        {"agreed_after_s": {"start": 0.2}},
        {"agreed_after_s": {**GOOD.agreed_after_s, "models set": None}},
        {"longest_disagreement_s": report.AGREE_LIMIT_S + 0.1},
        {"longest_disagreement_s": None},
        {"quiet_hits": 0},
        {"answers": {"cam01": 300, "quiet": 0}},
        {"people": {"cam01": 0, "quiet": 0}},
    ],
    ids=str,
)
def test_each_flaw_fails_one_run(flaw: dict[str, object]) -> None:
    verdicts = judge(replace(GOOD, **flaw))  # type: ignore[arg-type]
    assert len(verdicts) == len(judge(GOOD))
    assert any(not one.holds for one in verdicts)


def test_nothing_measured_is_nothing_held() -> None:
    verdicts = judge(Measured(1.0, "generated", "hall", "small", "yard"))
    assert [one.name for one in verdicts if one.holds] == []


@pytest.mark.parametrize(
    ("samples", "longest_s"),
    [
        ([], None),
        ([(1.0, True)], 0.0),
        ([(1.0, True), (2.0, False), (2.5, False), (3.0, True)], 1.0),
        ([(1.0, False), (1.2, True), (5.0, False), (9.0, False)], 4.0),
        ([(0.1, False), (1.0, True), (99.0, False)], 0.0),  # outside of the span
    ],
)
def test_the_longest_disagreement(
    samples: list[tuple[float, bool]], longest_s: float | None
) -> None:
    assert report.longest_disagreement_s(samples, 1.0, 10.0) == longest_s


@pytest.mark.parametrize(
    ("pass_s", "cores"), [(0.0005, 2), (0.0035, 2), (0.012, 2), (0.06, 4), (0.2, 1)]
)
def test_the_first_node_is_offered_twice_what_it_can_do(pass_s: float, cores: int) -> None:
    first, *others = plan(generated_sources(), pass_s, cores)
    offered = sum(camera.fps for camera in first.cameras)
    assert offered * pass_s / first.share == pytest.approx(OVERLOAD, rel=0.01)
    assert sum(one.share for one in (first, *others)) <= 1.5 * cores + 1
    room = sum(one.share / pass_s - sum(c.fps for c in one.cameras) for one in others)
    assert room > offered / 2
    assert all(1 <= camera.fps <= 10 for one in (first, *others) for camera in one.cameras)


def test_configurations_are_valid_and_only_differ_where_they_should(tmp_path: Path) -> None:
    plans = plan(['/a b/cam"1.mp4', "/ü.mp4", "/c.mp4", "/d.mp4"], 0.0005, 2)
    fleet = Fleet(tmp_path, plans)
    loaded = [config.load(node.config, {}) for node in fleet.nodes.values()]
    assert [one.node.name for one in loaded] == [one.name for one in plans]
    assert [one.placement.policy for one in loaded] == ["local", "affinity", "affinity"]
    assert loaded[0].cameras[0].source == '/a b/cam"1.mp4'
    assert [one.cameras[0].deadline_ms for one in loaded] == [200, 250, 400]
    assert [len(one.fleet.seeds) for one in loaded] == [0, 1, 1]
    assert {one.fleet.secret_file.resolve() for one in loaded} == {tmp_path / "fleet.secret"}
    assert (tmp_path / "fleet.secret").stat().st_mode & 0o077 == 0
    assert len({one.node.state_dir.resolve() for one in loaded}) == 3
    assert all(one.api.bind.is_loopback and one.fleet.bind.is_loopback for one in loaded)


def test_free_ports_are_all_different() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20


def test_without_a_terminal_nothing_is_erased_or_coloured() -> None:
    out = io.StringIO()
    screen = Screen(out)
    screen.draw(["one", screen.paint("two", "31")])
    screen.say("three")
    assert out.getvalue() == "one\ntwo\nthree\n"


def test_on_a_terminal_a_block_replaces_the_last_and_never_wraps() -> None:
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (6, 20))
    with open(theirs, "w") as out, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.delenv("NO_COLOR", raising=False)
        screen = Screen(out)
        screen.draw([screen.paint("a long line of words", "31") + " and more"] + ["x"] * 9)
        screen.say("event")
        written = b""
        while not written.endswith(b"event\r\n"):  # a terminal hands out what it has, not all of it
            written += os.read(ours, 4096)
    os.close(ours)
    shown = written.decode().replace("\r\n", "\n")
    block = "\x1b[31ma long line of word\x1b[0m\n" + "x\n" * 3
    assert shown == block + "\x1b[4A\x1b[J" + "event\n"


# The real thing


def _environment(folder: Path) -> dict[str, str]:
    """Keep the demo from the network, from footage of earlier runs and from other folders."""
    (folder / "tmp").mkdir()
    own = {"XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(folder / "tmp")}
    return {**os.environ, **own, "EDGE_NODE_DEMO_OFFLINE": "1"}


def _processes_in(folder: Path) -> list[str]:
    """List the processes that work in `folder` or name it on their command line."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and int(process.name) != os.getpid():
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                place = os.readlink(process / "cwd")
                if str(folder) in words or place.startswith(str(folder)):
                    found.append(words)
    return found


@pytest.fixture
def empty_after(tmp_path: Path) -> Iterator[Path]:
    """A temporary folder that no process may still be in, afterwards."""
    yield tmp_path
    assert _processes_in(tmp_path) == []


@pytest.mark.timeout(150)
def test_the_demo_holds_what_it_promises(empty_after: Path) -> None:
    command = [sys.executable, "-m", "edge_node.cli", "demo", "--json", "--seconds", "4"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=_environment(empty_after), check=False
    )
    shown = done.stdout + done.stderr
    assert done.stdout, shown
    summary = json.loads(done.stdout)
    failed = [one for one in summary["expectations"] if not one["holds"]]
    assert (failed, done.returncode, summary["passed"]) == ([], 0, True), shown
    measured = summary["measured"]
    assert measured["footage"] == "generated"
    assert "generated scenes take its place" in done.stderr
    assert measured["killed_s"] >= 20
    assert set(measured["model_by_node_s"]) == {"hall", "yard", "gate"}
    assert measured["on"]["forwarded"] > 0 == measured["off"]["forwarded"]
    assert measured["on"]["met_ratio"] > measured["off"]["met_ratio"]
    assert list((empty_after / "tmp").glob("edge-node-*")) == []  # a good run leaves nothing


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_demo_leaves_no_process(empty_after: Path, signum: int) -> None:
    command = [sys.executable, "-m", "edge_node.cli", "demo"]
    demo = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=_environment(empty_after)
    )
    try:
        assert demo.stdout is not None
        for line in demo.stdout:  # until daemons are at work
            if "every camera is answered" in line:
                break
        else:
            pytest.fail("no daemon ran a camera")
        assert len(_processes_in(empty_after)) >= 3
        demo.send_signal(signum)
        demo.stdout.read()
        assert demo.wait(20) in (130, -signum)
    finally:
        demo.kill()
        demo.wait()
    deadline_s = time.monotonic() + 10  # the kernel told the daemons; they drain and go
    while _processes_in(empty_after) and time.monotonic() < deadline_s:
        time.sleep(0.1)
