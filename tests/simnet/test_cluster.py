"""Real daemons under a scenario: what happens to them, and that nothing of them is left."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_node.fleet.database import EPOCH_NAME, FILE_NAME
from simnet import cluster
from simnet.checkers import Broken, Checkers
from simnet.cluster import capacity
from simnet.cluster.machines import Machines, damage
from simnet.cluster.outside import Skew, Wire
from simnet.cluster.processes import Fact
from simnet.cluster.setting import Setting, unpacked
from simnet.cluster.watching import Watching
from simnet.lasting import follow
from simnet.link import Conditions, Network
from simnet.outcome import Outcome, from_json, to_json
from simnet.scenario import Scenario, parse

TIMES = {"duration_s": 3.0, "settle_s": 0.5, "heal_s": 40.0}


def scenario(nodes: int, *faults: dict[str, Any], **more: Any) -> Scenario:
    """Return a short one."""
    table = {"name": "short", "nodes": nodes, "time": TIMES, "writes": {"per_s": 6.0}, **more}
    return parse({**table, "fault": list(faults)})


def gossip(probe_interval_s: float) -> dict[str, float]:
    """Return the settings of a quicker fleet."""
    return {"probe_interval_s": probe_interval_s, "probe_timeout_s": probe_interval_s / 2}


def processes_of(folder: Path) -> list[int]:
    """Return the processes that have a file of a run open, or their working folder there."""
    found = []
    for pid in (int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit()):
        try:
            links = [os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        if any(link.startswith(f"{folder}/") for link in links):
            found.append(pid)
    return found


def wait_until(reached: Callable[[], bool], limit_s: float) -> bool:
    """Look again and again; tell whether it came to be."""
    until_s = time.monotonic() + limit_s
    while not reached():
        if time.monotonic() > until_s:
            return False
        time.sleep(0.02)
    return True


def run(given: Scenario, seed: int, folder: Path) -> Outcome:
    """Run a scenario in a folder, and see that nothing of it is left running."""
    outcome = cluster.run(given, seed, folder=folder)
    assert processes_of(folder) == []
    assert outcome.violation is None, (outcome.violation, outcome.violation.last)
    assert from_json(to_json(outcome)) == outcome
    return outcome


def test_what_befalls_machines(tmp_path: Path) -> None:
    """Every fault of a process, side by side."""
    outcome = run(
        scenario(
            9,
            {"kind": "crash", "at_s": 0.5, "lasting_s": 1.5, "nodes": ["n3"], "disk": "torn"},
            {"kind": "crash", "at_s": 0.6, "lasting_s": 1.5, "nodes": ["n4"], "disk": "tail"},
            {"kind": "crash", "at_s": 0.7, "lasting_s": 1.5, "nodes": ["n5"], "disk": "lost"},
            {"kind": "leave", "at_s": 0.5, "lasting_s": 2.0, "nodes": ["n6"]},
            {"kind": "pause", "at_s": 1.0, "lasting_s": 1.0, "nodes": ["n7"]},
            {"kind": "full", "at_s": 0.0, "lasting_s": 2.0, "nodes": ["n1"]},
            {"kind": "join", "at_s": 1.0, "nodes": ["n8"]},
            {"kind": "upgrade", "at_s": 1.0, "nodes": ["n2"], "lowest": 1, "highest": 2},
            gossip=gossip(0.5),
        ),
        1,
        tmp_path / "run",
    )
    assert (outcome.host, outcome.cryptography, outcome.nodes) == ("cluster", "real", 9)
    assert outcome.heal_s >= 0
    assert [one.kind for one in outcome.episodes].count("crash") == 3
    assert min(sight.running for sight in outcome.sights) < 9
    assert outcome.sights[-1].running == 9
    assert outcome.counts["in_datagrams"] > 0
    assert sum(outcome.bytes_by_kind.values()) == outcome.counts["out_bytes"]
    assert outcome.bytes_by_kind["handshakes"] > 0
    assert {"pss_mib", "beyond_shared_mib", "cpu_share"} <= outcome.loads.keys()
    assert 0 < outcome.loads["beyond_shared_mib"].mean < outcome.loads["pss_mib"].mean
    log = (tmp_path / "run" / "n1" / "log").read_text()
    assert "changes wait until they are durable" not in log  # not even the log took anything
    for name in ("n2", "n3", "n4", "n5", "n6"):
        assert (tmp_path / "run" / name / "log").read_text().count(" up: peers ") == 2, name


def test_what_befalls_networks_clocks_and_records(tmp_path: Path) -> None:
    """Faults inside the processes; and nonsense under every key, which nobody minds."""
    outcome = run(
        scenario(
            8,
            {"kind": "poison", "at_s": 0.2, "nodes": ["n3"]},
            {"kind": "poison", "at_s": 0.6, "nodes": ["n4", "n5"]},
            {"kind": "flood", "at_s": 0.5, "lasting_s": 1.0, "nodes": ["n5"], "per_s": 60.0},
            {"kind": "slow", "at_s": 0.5, "lasting_s": 1.5, "nodes": ["n6"], "each_s": 0.002},
            {"kind": "clock", "at_s": 0.5, "offset_s": 20.0, "drift_ppm": 900.0, "nodes": ["n7"]},
            {"kind": "silence", "at_s": 0.5, "lasting_s": 2.0, "nodes": ["n1"]},
            {"kind": "cut", "at_s": 0.5, "nodes": ["n2"], "towards": ["n0"]},
            {"kind": "partition", "at_s": 1.0, "lasting_s": 1.5},
            {"kind": "link", "at_s": 0.0, "loss": 0.05, "corrupt": 0.05, "duplicate": 0.2},
            gossip=gossip(0.5),
        ),
        2,
        tmp_path / "run",
    )
    assert outcome.counts["dropped_seal"] > 0  # what was corrupted
    assert outcome.counts["dropped_replay"] > 0  # what was doubled
    assert len(outcome.spreads) > 0


def test_who_dies_is_noticed_by_all(tmp_path: Path) -> None:
    given = scenario(
        6,
        {"kind": "crash", "at_s": 3.0, "nodes": 1},
        start="warm",
        gossip={**gossip(0.3), "suspicion_factor": 1.0},
        time={"duration_s": 5.0, "settle_s": 0.5, "heal_s": 30.0},
        writes={"per_s": 0.0},
    )
    outcome = run(given, 3, tmp_path / "run")
    assert len(outcome.down_rounds) == 1
    assert 1 < outcome.down_rounds[0] < 60
    assert outcome.sights[-1].running == 5


def test_a_daemon_that_fails_is_a_finding(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_one(words: str) -> None:
        if "run," in words and not killed:
            log = tmp_path / "run" / "n1" / "log"
            for pid in processes_of(log.parent):
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)

    outcome = cluster.run(scenario(3), 4, progress=kill_one, folder=tmp_path / "run")
    assert len(killed) == 1
    assert outcome.violation is not None
    assert outcome.violation.invariant == "sound"
    assert outcome.violation.what.startswith("n1 failed: SIGKILL")
    assert str(tmp_path / "run") in outcome.notes[-1]
    assert processes_of(tmp_path / "run") == []


PROGRAM = """
import sys
from simnet import cluster
from simnet.scenario import parse
given = parse({"name": "long", "nodes": 3, "time": {"duration_s": 600}})
cluster.run(given, 1, progress=lambda words: print(words, flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_controller_ends_all(number: int, tmp_path: Path) -> None:
    """Ctrl-C, a polite end, and one that lets nothing be done any more."""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.getcwd()}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as controller:
        assert controller.stdout is not None
        assert "3 nodes are up" in controller.stdout.readline()
        controller.stdout.readline()
        (folder,) = tmp_path.glob("simnet-*")
        assert len(processes_of(folder)) == 3
        controller.send_signal(number)
        assert controller.wait(20) != 0
        assert wait_until(lambda: processes_of(folder) == [], 10)
        assert wait_until(lambda: not folder.exists(), 10)


def test_without_the_launcher_nothing_runs_on(tmp_path: Path) -> None:
    """The processes that are copies of it die with it; what they did is no finding."""
    killed: list[int] = []

    def kill_launcher(words: str) -> None:
        if not killed:
            (node, *_) = processes_of(tmp_path / "run")
            parent = int(Path(f"/proc/{node}/stat").read_text().rpartition(")")[2].split()[1])
            killed.append(parent)
            os.kill(parent, signal.SIGKILL)

    with pytest.raises(cluster.ClusterError, match=r"the launcher.*logs: "):
        cluster.run(scenario(3), 5, progress=kill_launcher, folder=tmp_path / "run")
    assert wait_until(lambda: processes_of(tmp_path / "run") == [], 10)


def test_more_than_fits_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"nodes = 20000: .*; \d+ would fit"):
        cluster.run(scenario(20_000), 1)
    monkeypatch.setattr(capacity, "_files", lambda: 70)
    with pytest.raises(ValueError, match=r"may open 70 files \(ulimit -n\); 6 would fit"):
        cluster.run(scenario(7), 1)
    with pytest.raises(ValueError, match="the scenario has 3"):
        cluster.run(scenario(3, {"kind": "crash", "at_s": 1.0, "nodes": 9}), 1)


# ------------------------------------------------------------------ the parts


def journal_of(folder: Path, commits: int) -> None:
    """Leave a journal's files as a killed process does, with so many transactions."""
    code = f"""
import os, sqlite3
db = sqlite3.connect({str(folder / FILE_NAME)!r}, isolation_level=None)
db.execute("PRAGMA locking_mode=EXCLUSIVE")
db.execute("PRAGMA journal_mode=WAL")
db.execute("PRAGMA wal_autocheckpoint=64")
db.execute("CREATE TABLE one(number)")
for number in range({commits}):
    db.execute("INSERT INTO one VALUES (?)", (number,))
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def numbers_in(folder: Path) -> list[int]:
    """Read such a journal."""
    with sqlite3.connect(folder / FILE_NAME) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [number for (number,) in db.execute("SELECT number FROM one ORDER BY number")]


def test_a_disk_loses_what_its_kind_loses(tmp_path: Path) -> None:
    for seed in range(3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        journal_of(folder, 9)
        wal = folder / f"{FILE_NAME}-wal"
        before = wal.read_bytes()
        damage(folder, "whole", random.Random(seed))
        assert wal.read_bytes() == before
        damage(folder, "torn", random.Random(seed))
        assert wal.read_bytes().startswith(before)
        assert len(wal.read_bytes()) > len(before)
        damage(folder, "tail", random.Random(seed))
        found = numbers_in(folder)
        assert found == list(range(len(found)))
        assert 3 <= len(found) < 9
    (folder / EPOCH_NAME).write_text("1 1\n")
    for seed in range(20):
        damage(folder, "lost", random.Random(seed))
    for name in (FILE_NAME, f"{FILE_NAME}-wal", EPOCH_NAME):
        assert not (folder / name).exists()


def test_what_is_in_the_database_already_is_not_lost(tmp_path: Path) -> None:
    journal_of(tmp_path, 63)
    damage(tmp_path, "tail", random.Random(1))
    assert len(numbers_in(tmp_path)) == 63


def test_a_torn_journal_reads_as_before(tmp_path: Path) -> None:
    journal_of(tmp_path, 5)
    damage(tmp_path, "torn", random.Random(1))
    assert numbers_in(tmp_path) == [0, 1, 2, 3, 4]


def test_sender_and_receiver_follow_one_plan() -> None:
    given = scenario(
        4,
        {"kind": "silence", "at_s": 1.0, "lasting_s": 1.0, "nodes": ["n1"]},
        {"kind": "cut", "at_s": 2.5, "nodes": ["n2"], "towards": ["n3"]},
    )
    network = Network(1, Conditions(delay_s=0.0, jitter_s=0.0))
    names = {1000: "n0", 1001: "n1", 1002: "n2", 1003: "n3"}
    wire = Wire("n2", names.get, network)
    assert wire.sent(b"x", 1001, 0.0) == [(0.0, b"x")]
    assert wire.sent(b"x", 999, 0.0) == []
    for step in given.plan(1):
        follow(network, step)
        silent = step.fault.kind == "silence" and step.begins
        one_way = step.fault.kind == "cut" and step.begins
        assert wire.sent(b"x", 1001, 0.0) == ([] if silent else [(0.0, b"x")])
        assert wire.connects(1001) != silent
        assert wire.connects(1003) != one_way
    assert wire.connects(None)


def test_a_clock_that_was_wrong_is_right_again_and_never_goes_back() -> None:
    skew = Skew()
    first = skew.now()
    skew.turn(30.0, 50_000.0)
    wrong = skew.now()
    assert wrong.wall_ms - first.wall_ms >= 30_000
    skew.turn(0.0, 0.0)
    right = skew.now()
    assert right.mono_s >= wrong.mono_s >= first.mono_s
    assert abs(right.wall_ms / 1e3 - time.time()) < 5.0


def test_only_what_waits_for_the_egress_counts_against_it() -> None:
    """A node that only answers pings may send more than the rate; state and repairs may not."""
    given = scenario(2, gossip={"egress_bytes_per_s": 20_000.0})

    def watch(counters: dict[str, int]) -> None:
        watching = Watching(Checkers(given), 0.0)
        watching.take(Fact("n0", "started", 0.0, [b"n0"]))
        watching.take(Fact("n0", "sample", 1.0, [b"", b"", 2, True, 0, counters]))

    watch({"out_bytes": 1_000_000, "bytes_urgent": 900_000, "bytes_state": 20_000})
    with pytest.raises(Broken, match="n0 sent 40000 bytes that could wait"):
        watch({"out_bytes": 60_000, "bytes_state": 30_000, "bytes_repair": 10_000})


def test_other_processes_make_the_same_of_a_setting(tmp_path: Path) -> None:
    given = scenario(3, {"kind": "crash", "at_s": 1.0, "nodes": 1})
    setting = Setting(given, 7, tmp_path, True, "name", ((1, 2), (3, 4), (5, 6)))
    assert unpacked(setting.packed()) == setting
    assert unpacked(setting.packed()).plan == setting.plan


def test_a_processor_that_works_shows_in_the_load() -> None:
    processors = capacity.Processors()
    assert 0.0 <= processors.busy() <= 1.0
    until_s = time.monotonic() + 0.5
    while time.monotonic() < until_s:
        pass
    assert processors.busy() > 0.8 / (os.cpu_count() or 1)


def test_nobody_is_started_while_the_machine_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    class Forks:
        def start(self, name: str, versions: tuple[int, int], *, full: bool) -> None:
            started.append(name)

    looks = iter([0.1, 0.95, 0.95, 0.2, *[0.95] * 9])
    monkeypatch.setattr(capacity.Processors, "busy", lambda _: next(looks))
    setting = Setting(scenario(3), 7, tmp_path, True, "name", ((1, 2), (3, 4), (5, 6)))
    pauses = Machines(setting, Forks()).start_all()  # type: ignore[arg-type]
    counts = [len(started) for _ in pauses]
    assert counts == [0, 1, 1, 1, 2, 2, 2, 2], (
        "the second waits for two busy looks, the third gives up"
    )
    assert len(started) == 3
