"""A node's key ring outlives the node, and whatever becomes of its file."""

import asyncio
import contextlib
import logging
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from crdt import Instant
from edge_node.fleet import keyring
from edge_node.fleet.keyring import NAME, FleetKeys

SECRET = bytes(range(100, 132))
NEW, NEWER = b"n" * 32, b"o" * 32
DAY_S = 86_400.0
A, B = bytes([1]) * 16, bytes([2]) * 16
RUNNER = asyncio.Runner()  # one loop for the calls of a test, as in a daemon


@pytest.fixture(autouse=True, scope="module")
def _end_the_loop() -> Iterator[None]:
    with RUNNER:
        yield


def at(days: float, mono_days: float | None = None) -> Instant:
    """Return a moment so many days after the beginning, by the wall clock and since the boot."""
    mono_s = (days if mono_days is None else mono_days) * DAY_S
    return Instant(mono_s, int(1.8e12 + days * DAY_S * 1e3))


def rotated(folder: Path) -> FleetKeys:
    """Keep a ring that was rotated to epoch 3, one day after the beginning, in A's company."""
    keys = FleetKeys.open(folder, SECRET, at(0))
    assert keys.ring.offer(3, NEW)
    keys.note([A], at(1))
    assert not keys.durable
    assert RUNNER.run(keys.save())
    assert keys.durable
    return keys


def held(keys: FleetKeys) -> list[tuple[int, bytes]]:
    return [(epoch.number, epoch.secret) for epoch in keys.ring.held]


def run_keep(keys: FleetKeys, keep_days: float, now: Instant) -> None:
    """Let a moment pass in which the ring is looked after."""

    async def one() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await keys.keep(lambda: keep_days * DAY_S, lambda: now)

    RUNNER.run(one())


def test_a_new_node_holds_the_configured_secret_and_no_file(tmp_path: Path) -> None:
    keys = FleetKeys.open(tmp_path, SECRET, at(0))
    assert held(keys) == [(0, SECRET)]
    assert (keys.problem, keys.durable, keys.age_s(at(9))) == ("", True, None)
    assert RUNNER.run(keys.save())
    assert not list(tmp_path.iterdir())


def test_a_ring_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    rotated(tmp_path)
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600
    again = FleetKeys.open(tmp_path, SECRET, at(3, 0))
    assert held(again) == [(3, NEW), (0, SECRET)]
    assert again.comrades == {A}
    assert again.durable
    assert again.age_s(at(3, 0)) == 2 * DAY_S
    assert again.previous_left_s(7 * DAY_S, at(3, 0)) == 5 * DAY_S
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_the_previous_key_is_forgotten_in_time_and_for_good(tmp_path: Path) -> None:
    keys = rotated(tmp_path)
    run_keep(keys, 7, at(7.9))
    assert len(held(keys)) == 2
    again = FleetKeys.open(tmp_path, SECRET, at(7.9, 0))
    run_keep(again, 7, at(8.1, 0.2))
    assert held(again) == [(3, NEW)]
    assert not again.comrades
    assert held(FleetKeys.open(tmp_path, SECRET, at(0, 0))) == [(3, NEW)], "whatever the clock says"


def test_a_clock_that_was_ahead_keeps_the_previous_key_for_its_time_only(tmp_path: Path) -> None:
    keys = FleetKeys.open(tmp_path, SECRET, at(5000, 0))
    assert keys.ring.offer(1, NEW)
    keys.note([], at(5000, 0))
    run_keep(keys, 7, at(1, 6.9))
    assert len(held(keys)) == 2
    run_keep(keys, 7, at(1, 7.1))
    assert held(keys) == [(1, NEW)]


def test_a_clock_that_is_set_while_the_node_runs_ends_no_previous_key(tmp_path: Path) -> None:
    unset = Instant(0.0, 5_000)
    keys = FleetKeys.open(tmp_path, SECRET, unset)
    assert keys.ring.offer(1, NEW)
    keys.note([], unset)
    run_keep(keys, 7, at(0, 0.01))
    assert len(held(keys)) == 2
    assert RUNNER.run(keys.save())
    again = FleetKeys.open(tmp_path, SECRET, at(1, 0))
    run_keep(again, 7, at(1, 0.01))
    assert len(held(again)) == 2, "nor after a restart"
    run_keep(again, 7, at(1, 7.01))
    assert held(again) == [(1, NEW)]


def test_a_key_that_was_just_replaced_is_not_judged_by_the_age_of_the_one_before(
    tmp_path: Path,
) -> None:
    keys = rotated(tmp_path)
    run_keep(keys, 7, at(9))
    assert keys.ring.offer(4, NEWER)  # gossip has it; its note is yet to come
    run_keep(keys, 7, at(9))
    assert held(keys) == [(4, NEWER), (3, NEW)]


def test_a_secret_changed_by_hand_wins_and_its_ring_is_not_destroyed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rotated(tmp_path)
    other = FleetKeys.open(tmp_path, SECRET[::-1], at(2))
    assert held(other) == [(0, SECRET[::-1])]
    assert other.problem == ""
    assert "beginning at key epoch 0 with the configured one" in caplog.text
    assert RUNNER.run(other.save())
    assert held(FleetKeys.open(tmp_path, SECRET, at(2)))[0] == (3, NEW), "set back by hand"
    assert other.ring.offer(1, NEWER)
    other.note([], at(2))
    assert RUNNER.run(other.save())
    assert held(FleetKeys.open(tmp_path, SECRET[::-1], at(2)))[0] == (1, NEWER)


def test_a_torn_or_damaged_file_is_never_taken_and_stays(tmp_path: Path) -> None:
    rotated(tmp_path)
    path = tmp_path / NAME
    whole = path.read_bytes()
    flipped = [whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :] for n in range(len(whole))]
    torn = [whole[:n] for n in range(len(whole))]
    for content in [*flipped, *torn, whole + b"\n", bytes(len(whole)), b"\n\n", b"[" * 5000]:
        path.write_bytes(content)
        keys = FleetKeys.open(tmp_path, SECRET, at(2))
        assert held(keys) == [(0, SECRET)]
        assert NAME in keys.problem
        assert "another node" in keys.problem
        assert RUNNER.run(keys.save())
        assert path.read_bytes() == content
    assert keys.ring.offer(3, NEW)  # a peer tells it: all is well again
    keys.note([], at(2))
    assert RUNNER.run(keys.save())
    assert keys.problem == ""
    assert held(FleetKeys.open(tmp_path, SECRET, at(2))) == [(3, NEW), (0, SECRET)]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_may_use_is_not_taken(tmp_path: Path, mode: int) -> None:
    rotated(tmp_path)
    (tmp_path / NAME).chmod(mode)
    keys = FleetKeys.open(tmp_path, SECRET, at(2))
    assert held(keys) == [(0, SECRET)]
    assert "chmod 600" in keys.problem


def test_what_is_no_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    assert "can read" in FleetKeys.open(tmp_path, SECRET, at(0)).problem
    (tmp_path / "file").write_text("")
    assert held(FleetKeys.open(tmp_path / "file", SECRET, at(0))) == [(0, SECRET)]


def test_a_failing_disk_is_reported_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keyring, "RETRY_S", 0.01)
    state = tmp_path / "state"
    state.mkdir()
    keys = FleetKeys.open(state, SECRET, at(0))
    assert keys.ring.offer(1, NEW)
    keys.note([B], at(0))
    shutil.rmtree(state)  # as an unmounted disk
    run_keep(keys, 7, at(0))
    assert "lost at the next restart" in keys.problem
    assert not keys.durable
    assert len([one for one in caplog.records if one.levelno == logging.ERROR]) == 1
    state.mkdir()
    run_keep(keys, 7, at(0))
    assert (keys.problem, keys.durable) == ("", True)
    assert held(FleetKeys.open(state, SECRET, at(0))) == [(1, NEW), (0, SECRET)]


def test_no_key_shows_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    run_keep(rotated(tmp_path), 0, at(9))
    (tmp_path / NAME).write_bytes(b"x")
    FleetKeys.open(tmp_path, SECRET, at(9))
    assert "no longer taken" in caplog.text
    assert "damaged" in caplog.text
    for secret in (SECRET, NEW):
        assert secret.hex() not in caplog.text
