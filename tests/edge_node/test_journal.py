"""The journal keeps what it acknowledged, through kills, full disks and damaged files."""

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from crdt import Batch, HybridClock, Instant, Store
from edge_node.fleet.journal import Journal, JournalError, JournalFull
from gossip.sealing import Identity, verify

ORIGIN = bytes(range(16))
WALL_S = 1_700_000_000.0


def make(
    journal: Journal, sequence: int, live: tuple[tuple[int, int], ...] = (), size: int = 200
) -> Batch:
    raw = raw_of(sequence, size)
    live = live or ((1, sequence),)
    return Batch(ORIGIN, journal.start.epoch, sequence, live, (), raw)


def raw_of(sequence: int, size: int = 200) -> bytes:
    return sequence.to_bytes(4, "big") * (size // 4)


def raws(*sequences: int) -> tuple[bytes, ...]:
    return tuple(raw_of(sequence) for sequence in sequences)


def start(folder: Path, **options: Any) -> Journal:
    return Journal.open(folder, **{"origin": ORIGIN, "wall_s": WALL_S, **options})


def session(
    folder: Path, use: Callable[[Journal], Coroutine[Any, Any, None]] | None = None, **options: Any
) -> Any:
    """Open, use and close a journal; return its start."""

    async def run() -> Any:
        journal = start(folder, **options)
        try:
            if use is not None:
                await use(journal)
        finally:
            await journal.close()
        return journal.start

    return asyncio.run(run())


def append_all(count: int) -> Callable[[Journal], Any]:
    async def use(journal: Journal) -> None:
        for sequence in range(1, count + 1):
            await journal.append(make(journal, sequence), sequence << 16)

    return use


def test_a_restart_finds_everything_and_higher_numbers(tmp_path: Path) -> None:
    first = session(tmp_path, append_all(5))
    assert (first.epoch >> 16, first.incarnation, first.batches) == (int(WALL_S), 1, ())
    again = session(tmp_path, wall_s=WALL_S - 3600)
    assert (again.epoch >> 16, again.incarnation) == (int(WALL_S) + 1, 2)
    assert again.batches == raws(*range(1, 6))
    assert again.high_water == 5 << 16
    assert again.notices == ()


def test_a_store_comes_back_as_it_was(tmp_path: Path) -> None:
    identity, now = Identity.generate(), Instant(1.0, int(WALL_S * 1000))

    def store_of(journal: Journal) -> Store:
        start = journal.start
        store = Store(
            identity.node_id,
            epoch=start.epoch,
            sign=identity.sign,
            verify=verify,
            public_key=identity.public_key,
            clock=HybridClock(start.high_water),
        )
        for raw in start.batches:
            store.restore(raw, now)
        return store

    async def write(journal: Journal) -> None:
        store = store_of(journal)
        for round_number in range(40):
            store.set_owner("node", {"round": round_number})
            store.set_fleet(f"host/{round_number % 5}", round_number, now)
            for batch in store.commit(now):
                await journal.append(batch, store.clock.high_water)
                store.persisted(batch, now)
        fingerprints.append(store.fingerprint())

    async def read(journal: Journal) -> None:
        store = store_of(journal)
        assert store.owner(identity.node_id, "node") == {"round": 39}
        assert store.fleet("host/4", now) == 39
        fingerprints.append(store.fingerprint())

    fingerprints: list[bytes] = []
    session(tmp_path, write, origin=identity.node_id)
    session(tmp_path, read, origin=identity.node_id)
    assert fingerprints[0] == fingerprints[1]


def test_dropped_batches_are_deleted_and_the_newest_is_kept(tmp_path: Path) -> None:
    async def use(journal: Journal) -> None:
        await append_all(6)(journal)
        await journal.append(make(journal, 7, ((2, 3), (5, 5), (7, 7))), 0)
        assert journal.counters["held"] == 4

    session(tmp_path, use)
    found = session(tmp_path)
    assert found.batches == raws(2, 3, 5, 7)
    assert found.high_water == 6 << 16, "the clock's high-water never falls"


def test_a_new_epoch_replaces_the_old_one_only_as_a_whole(tmp_path: Path) -> None:
    def first(count: int) -> Callable[[Journal], Any]:
        async def use(journal: Journal) -> None:
            for sequence in range(11, 11 + count):
                await journal.append(make(journal, sequence, ((11, 13),)), 0)

        return use

    session(tmp_path, append_all(3))
    assert session(tmp_path, first(2)).batches == raws(1, 2, 3)
    assert session(tmp_path, first(3)).batches == raws(1, 2, 3, 11, 12)
    assert session(tmp_path).batches == raws(11, 12, 13)


def test_what_queues_up_is_committed_together(tmp_path: Path) -> None:
    async def use(journal: Journal) -> None:
        await asyncio.gather(*(journal.append(make(journal, n), n) for n in range(1, 101)))
        assert journal.counters["batches"] == 100
        assert journal.counters["commits"] < 100

    session(tmp_path, use)
    assert len(session(tmp_path).batches) == 100


def test_a_sequence_is_never_used_twice(tmp_path: Path) -> None:
    async def use(journal: Journal) -> None:
        await append_all(3)(journal)
        await journal.append(make(journal, 3), 0)  # a repetition is harmless
        older = make(journal, 4)._replace(epoch=journal.start.epoch - 1)
        for wrong in (make(journal, 3, size=400), make(journal, 2), older):
            with pytest.raises(JournalError, match="comes after"):
                await journal.append(wrong, 0)

    session(tmp_path, use)
    assert session(tmp_path).batches == raws(1, 2, 3)


def test_an_epoch_that_peers_raised_is_kept(tmp_path: Path) -> None:
    async def use(journal: Journal) -> None:
        await journal.append(make(journal, 1)._replace(epoch=journal.start.epoch + (9 << 16)), 0)

    first = session(tmp_path, use)
    (tmp_path / "journal.db").unlink()
    assert session(tmp_path).epoch > first.epoch + (9 << 16)


def test_lives_of_one_image_differ_even_without_a_clock(tmp_path: Path) -> None:
    session(tmp_path / "image", append_all(1))
    epochs = set()
    for life in range(8):
        shutil.copytree(tmp_path / "image", tmp_path / str(life))
        epochs.add(session(tmp_path / str(life), append_all(1), wall_s=0).epoch)
    assert len(epochs) > 5
    assert min(epochs) > int(WALL_S) << 16


def test_a_raised_incarnation_is_kept(tmp_path: Path) -> None:
    session(tmp_path, lambda journal: journal.record_incarnation(41))
    assert session(tmp_path).incarnation == 42


def test_a_closed_journal_says_so(tmp_path: Path) -> None:
    async def run() -> None:
        journal = start(tmp_path)
        await journal.close()
        await journal.close()
        with pytest.raises(JournalError, match="closed"):
            await journal.append(make(journal, 1), 0)

    asyncio.run(run())


def python(program: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    head = (
        "import asyncio, os, sys\nfrom pathlib import Path\n"
        "from tests.edge_node.test_journal import append_all, make, start\n"
        "from edge_node.fleet.journal import JournalFull\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(program), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        **options,
    )


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    program = """
        async def run():
            journal = start(Path(sys.argv[1]))
            n = 0
            while True:
                n += 1
                await journal.append(make(journal, n, ((max(1, n - 20), n),)), n)
                print(n, flush=True)
        asyncio.run(run())
    """
    with python(program, str(tmp_path)) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) == 150:
                child.send_signal(signal.SIGKILL)
                break
        acknowledged = max([150, *(int(line) for line in child.stdout if line.endswith("\n"))])
    found = session(tmp_path)
    last = int.from_bytes(found.batches[-1][:4], "big")
    assert last >= acknowledged
    assert found.batches == raws(*range(last - 20, last + 1))


async def append_until_full(journal: Journal, stored: int) -> tuple[int, str]:
    """Append batches that all stay live; return how many are stored and what ended it."""
    while stored < 10_000:
        try:
            await journal.append(make(journal, stored + 1, size=1000), 0)
        except JournalFull as error:
            return stored, str(error)
        stored += 1
    raise AssertionError("the journal was never full")


def test_a_full_journal_is_refused_and_takes_appends_again(tmp_path: Path) -> None:
    async def use(journal: Journal) -> None:
        stored, refusal = await append_until_full(journal, 0)
        assert "SQLITE_FULL" in refusal
        assert str(tmp_path) in refusal
        assert stored > 10
        assert journal.counters["full"] == 1
        assert journal.counters["held"] == stored
        # The same batch again, now dropping old ones: their pages are what it needs.
        await journal.append(make(journal, stored + 1, ((stored, stored + 1),), size=1000), 0)
        assert journal.counters["full"] == 0

    session(tmp_path, use, max_bytes=64 * 1024)
    found = session(tmp_path)
    numbers = [int.from_bytes(raw[:4], "big") for raw in found.batches]
    assert len(numbers) == 2
    assert numbers[1] == numbers[0] + 1


def test_a_file_size_limit_counts_as_full(tmp_path: Path) -> None:
    program = """
        import resource
        async def run():
            journal = start(Path(sys.argv[1]))
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
            n = 0
            try:
                while n < 1000:
                    await journal.append(make(journal, n + 1, size=1000), 0)
                    n += 1
            except JournalFull as error:
                assert "SQLITE_IOERR_WRITE" in str(error), error
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            await journal.append(make(journal, n + 1, size=1000), 0)
            print(n + 1)
        asyncio.run(run())
    """
    with python(program, str(tmp_path)) as child:
        output, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    assert 1 < int(output) < 1000
    assert len(session(tmp_path).batches) == int(output)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 256 KiB, or skip with the reason."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode != 0:
        pytest.skip(f"cannot mount a small file system here: {mount.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1024))
        except OSError:
            return ballast


def test_a_full_disk_loses_nothing(small_disk: Path) -> None:
    state = small_disk / "state"
    stored = 0

    async def use(journal: Journal) -> None:
        nonlocal stored
        await append_all(3)(journal)
        stored = 3
        ballast = fill(small_disk)
        stored, refusal = await append_until_full(journal, stored)
        assert "free space" in refusal
        ballast.unlink()
        await journal.append(make(journal, stored + 1, size=1000), 0)
        stored += 1

    session(state, use)
    assert len(session(state).batches) == stored


def test_a_node_with_a_journal_starts_on_a_full_disk(small_disk: Path) -> None:
    state = small_disk / "state"
    session(state, append_all(3))

    async def use(journal: Journal) -> None:
        assert journal.start.incarnation == 2
        assert len(journal.start.batches) == 3
        assert "free space" in journal.start.notices[0]
        with pytest.raises(JournalFull):
            await journal.append(make(journal, 4, ((4, 4),)), 0)
        ballast.unlink()
        await journal.append(make(journal, 4, ((4, 4),)), 0)

    ballast = fill(small_disk)
    began = session(state, use)
    found = session(state)
    assert found.batches == raws(4)
    assert found.incarnation == 3
    assert found.epoch > began.epoch


def test_a_new_journal_on_a_full_disk_says_so(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(JournalFull, match="free space"):
        start(small_disk / "state")


def damage_header(path: Path) -> None:
    path.write_bytes(b"not a database, nor anything" * 100)


def damage_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:8192] = b"\xff" * 4096
    path.write_bytes(data)


def damage_batch(path: Path) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(raw_of(2)[:100])
    data[at + 50] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def damage_meta(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE meta SET value='soon' WHERE key='epoch'")


def drop_table(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DROP TABLE batch")


@pytest.mark.parametrize(
    "damage", [damage_header, damage_page, damage_batch, truncate, damage_meta, drop_table]
)
@pytest.mark.parametrize("epoch_file_lost", [False, True])
def test_a_damaged_database_is_set_aside(
    tmp_path: Path, damage: Callable[[Path], None], epoch_file_lost: bool
) -> None:
    before = session(tmp_path, append_all(5))
    damage(tmp_path / "journal.db")
    if epoch_file_lost:
        (tmp_path / "epoch").unlink()
    found = session(tmp_path, wall_s=WALL_S + 60)
    assert found.epoch > before.epoch
    assert found.batches == ()
    assert "journal.db.corrupt-1" in found.notices[0]
    assert (tmp_path / "journal.db.corrupt-1").exists()
    if not epoch_file_lost:
        assert found.incarnation > before.incarnation
    later = session(tmp_path)
    assert later.epoch > found.epoch
    assert later.notices == ()


def test_few_damaged_databases_are_kept(tmp_path: Path) -> None:
    epochs = []
    for _ in range(6):
        epochs.append(session(tmp_path).epoch)
        damage_header(tmp_path / "journal.db")
    assert epochs == sorted(set(epochs))
    kept = sorted(path.name for path in tmp_path.glob("*.corrupt-*"))
    assert kept == [f"journal.db.corrupt-{n}" for n in (3, 4, 5)]


def test_a_lost_epoch_file_is_written_anew(tmp_path: Path) -> None:
    before = session(tmp_path, append_all(2))
    (tmp_path / "epoch").unlink()
    after = session(tmp_path, wall_s=WALL_S + 60)
    assert (after.epoch > before.epoch, len(after.batches)) == (True, 2)
    assert (tmp_path / "epoch").read_text() == f"{after.epoch} 2\n"


def test_a_lost_database_is_reported_and_an_old_one_is_used(tmp_path: Path) -> None:
    before = session(tmp_path, append_all(2))
    shutil.move(tmp_path / "journal.db", tmp_path / "old copy")
    after = session(tmp_path)
    assert after.epoch > before.epoch
    assert "lost" in after.notices[0]
    shutil.move(tmp_path / "old copy", tmp_path / "journal.db")
    restored = session(tmp_path)
    assert restored.epoch > after.epoch
    assert (len(restored.batches), restored.notices) == (2, ())


def test_a_journal_of_another_key_is_set_aside(tmp_path: Path) -> None:
    before = session(tmp_path, append_all(2))
    after = session(tmp_path, origin=bytes(16))
    assert after.batches == ()
    assert after.epoch > before.epoch
    assert ORIGIN.hex() in after.notices[0]


def test_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    session(tmp_path)
    with closing(sqlite3.connect(tmp_path / "journal.db")) as db:
        db.execute("PRAGMA user_version=2")
    with pytest.raises(JournalError, match="upgrade"):
        start(tmp_path)
    assert not list(tmp_path.glob("*.corrupt-*"))


def test_a_folder_belongs_to_one_daemon(tmp_path: Path) -> None:
    async def use(journal: Journal) -> None:
        with pytest.raises(JournalError, match=rf"process {os.getpid()}\).*state_dir"):
            start(tmp_path)

    session(tmp_path, use)
    session(tmp_path)


def test_a_database_held_by_another_program_is_reported(tmp_path: Path) -> None:
    session(tmp_path)
    other = sqlite3.connect(tmp_path / "journal.db")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(JournalError, match="another program"):
        start(tmp_path)
    other.close()
    session(tmp_path)


def test_a_folder_that_cannot_be_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="state_dir"):
        start(tmp_path / "file" / "state")
