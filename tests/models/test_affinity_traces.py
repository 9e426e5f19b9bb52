"""The trace table: bounded, written behind the caller's back, and never the caller's trouble."""

from __future__ import annotations

import math
import resource
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from models.affinity.features import Features
from models.affinity.traces import MOST_PENDING, Trace, Traces, read_newest


def trace(number: int, **changes: object) -> Trace:
    features = Features("detector", "small", 0.5, 640, 1, 2, 55.5, "here", "cpu", 7.0)
    return Trace(float(number), features._replace(**changes), 5.0 + number, None)  # type: ignore[arg-type]


def test_what_was_appended_comes_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    rows = [trace(0), trace(1)._replace(energy_j=0.25), trace(2, node="there", queue=0)]
    traces = Traces(path)
    for row in rows:
        traces.append(row)
    assert traces.flush()
    assert (traces.rows, traces.trouble, traces.notices) == (3, "", [])
    assert read_newest(path, 10) == rows
    assert read_newest(path, 2) == rows[1:]
    traces.append(trace(3, temperature_c=math.nan))
    traces.close()  # stores what is pending
    assert math.isnan(read_newest(path, 1)[0].features.temperature_c)
    again = Traces(path)
    assert again.rows == 4
    again.close()


def test_only_the_newest_rows_are_kept(tmp_path: Path) -> None:
    traces = Traces(tmp_path / "traces.db", most_rows=100)
    for start in range(0, 1_000, 50):
        for number in range(start, start + 50):
            traces.append(trace(number))
        traces.flush()
    traces.close()
    assert traces.rows == 100
    kept = read_newest(traces.path, 1_000)
    assert [row.made_s for row in kept] == [float(number) for number in range(900, 1_000)]


def build(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


@pytest.mark.parametrize("spoilt", ["garbage", "header", "format", "columns", "middle"])
def test_a_bad_file_is_set_aside_and_a_new_one_begun(tmp_path: Path, spoilt: str) -> None:
    path = tmp_path / "traces.db"
    if spoilt == "garbage":
        path.write_bytes(b"no database at all" * 1_000)
    elif spoilt == "header":
        path.write_bytes(b"SQLite format 3\0" + bytes(5_000))
    elif spoilt == "format":
        build(path, "CREATE TABLE trace(id)", "PRAGMA user_version=99")
    elif spoilt == "columns":
        build(path, "CREATE TABLE trace(id INTEGER PRIMARY KEY, other)", "PRAGMA user_version=1")
    else:
        before = Traces(path)
        for number in range(1_000):
            before.append(trace(number))
        before.close()
        data = path.read_bytes()
        path.write_bytes(data[:4096] + bytes(len(data) - 4096))
    old = path.read_bytes()
    traces = Traces(path)
    traces.append(trace(1))
    assert traces.flush()
    traces.close()
    assert [row.made_s for row in read_newest(path, 10)] == [1.0]
    assert (tmp_path / "traces.db.bad").read_bytes()[:16] == old[:16]
    assert len(traces.notices) == 1
    assert "traces.db.bad" in traces.notices[0]


def test_a_full_disk_degrades_and_recovers(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    traces = Traces(path)
    traces.append(trace(0))
    assert traces.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))
    try:
        for number in range(1, 501):
            traces.append(trace(number))
        assert not traces.flush()
        assert "traces cannot be stored" in traces.trouble
        assert traces.rows == 501
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert traces.flush()
    assert (traces.trouble, traces.dropped) == ("", 0)
    traces.close()
    assert [row.made_s for row in read_newest(path, 1_000)] == [float(n) for n in range(501)]


def test_without_a_disk_the_oldest_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "absent"
    traces = Traces(folder / "traces.db")
    assert "cannot be stored" in traces.trouble
    for number in range(MOST_PENDING + 10):
        traces.append(trace(number))
    assert not traces.flush()
    assert (traces.dropped, traces.rows) == (10, MOST_PENDING)
    folder.mkdir()
    assert traces.flush()
    traces.close()
    assert read_newest(traces.path, 1)[0].made_s == MOST_PENDING + 9


def test_rows_that_a_hand_has_spoilt_are_not_learned_from(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    traces = Traces(path)
    for number in range(6):
        traces.append(trace(number))
    traces.close()
    build(
        path,
        "UPDATE trace SET actual_ms = 'soon' WHERE made_s = 0",
        "UPDATE trace SET actual_ms = -1 WHERE made_s = 1",
        "UPDATE trace SET prior_ms = 0 WHERE made_s = 2",
        "UPDATE trace SET resolution = NULL WHERE made_s = 3",
        "UPDATE trace SET actual_ms = 9e999 WHERE made_s = 4",
    )
    assert [row.made_s for row in read_newest(path, 10)] == [5.0]
    with pytest.raises(ValueError, match="cannot be read"):
        read_newest(tmp_path / "none.db", 10)
