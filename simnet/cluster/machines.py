"""Which nodes run, and what is done to their processes.

Owns the faults that befall a process as a whole: crash, leave, join, pause, upgrade, a full disk;
and what a crash does to the journal's files of a node that no longer runs. Never judges.
Invariants: a node runs while no fault wants it down; what it finds when it comes back a power cut
could leave: whole transactions, and behind them perhaps a part of one.

Source: SQLite's file format, section 4 (the write-ahead log).
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from pathlib import Path
from struct import unpack_from

from edge_node.fleet.database import EPOCH_NAME, FILE_NAME
from gossip.sealing import VERSIONS
from simnet.cluster.capacity import Processors
from simnet.cluster.processes import Processes, how_ended
from simnet.cluster.setting import Setting
from simnet.faults import Crash, Full, Join, Leave, Pause, Step, Upgrade
from simnet.lasting import before
from simnet.link import Name

_LEAVE_S = 15.0
_LINK_S = 0.015  # of a processor, generously: what two real daemons take to shake hands
_BUSY = 0.8  # of all processors: so busy, nobody more is started
_PATIENCE = 3  # pauses, after which it is others that keep the machine busy
_RETRY_S = 1.0
_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24
_MOST_LOST = 6
_CHECKPOINT_FRAMES = 64
"""From so many on the log is in the database as well: nothing of it can be lost any more."""


class Machines:
    """The nodes of a cluster, and what they are to do."""

    def __init__(self, setting: Setting, processes: Processes) -> None:
        self.unasked: list[tuple[Name, str]] = []
        """Who ended without being told to, and how."""
        self._setting, self._processes = setting, processes
        self._versions = dict.fromkeys(setting.names, VERSIONS)
        self._lasting = before(setting.plan, setting.names)
        self._disks: dict[Name, tuple[str, int]] = {}  # what a node that ends finds later
        self._told: set[Name] = set()  # to end
        self._alive: set[Name] = set()
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = 0

    @property
    def wanted(self) -> frozenset[Name]:
        """The nodes that are to run now."""
        return frozenset(name for name, lasting in self._lasting.items() if not lasting.down)

    def start_all(self) -> Iterator[float]:
        """Start every node that is there from the beginning; yield how long to wait in between.

        Each newcomer shakes hands with all that are there, on all their behalf: no faster than
        this machine can, and when it has come to rest. Daemons that get no processor time hold
        each other for dead, and that costs still more of it.
        """
        processors = Processors()
        for count, name in enumerate(sorted(self.wanted, key=self._setting.names.index)):
            pause_s = count * _LINK_S / len(os.sched_getaffinity(0))
            yield pause_s
            for _ in range(_PATIENCE):
                if processors.busy() < _BUSY:
                    break
                yield pause_s
            self._start(name)

    def forgets(self, name: Name) -> bool:
        """Tell whether the disk of a node that is ending drops what it acknowledged."""
        return self._disks.get(name, ("whole", 0))[0] in ("tail", "lost")

    def step(self, step: Step) -> None:
        """Carry out a step of the plan, as far as it is about processes."""
        fault = step.fault
        for name in step.names:
            self._lasting[name].step(step)
            if isinstance(fault, Crash):
                self._keep_down(name, step, fault.disk)
            elif isinstance(fault, Leave):
                self._keep_down(name, step, None)
            elif isinstance(fault, Join):
                self._start_if_wanted(name)
            elif isinstance(fault, Upgrade):
                self._versions[name] = fault.lowest, fault.highest
                if name in self._alive:
                    self._end(name, None, step.number)
            elif isinstance(fault, Pause):
                self._pause(name, step)
            elif isinstance(fault, Full):
                self._processes.fill_disk(name, self._is_full(name))

    def gone(self, name: Name, status: int) -> None:
        """Take that a process has ended; start it again if it is to run."""
        self._alive.discard(name)
        self._lasting[name].forget(Pause)
        disk, number = self._disks.pop(name, ("whole", 0))
        asked = name in self._told
        self._told.discard(name)
        if asked and status in (0, -signal.SIGKILL):
            rng = random.Random(f"{self._setting.seed} disk {name} {number}")
            damage(self._setting.state_of(name), disk, rng)
            self._start_if_wanted(name)
        elif status and self._is_full(name):
            # a new journal finds no room: as a service would, again
            self._at(time.monotonic() + _RETRY_S, self._start_if_wanted, name)
        else:
            self.unasked.append((name, how_ended(status)))

    def next_s(self) -> float:
        """Return when ``due`` is next to be called (monotonic)."""
        return self._agenda[0][0] if self._agenda else float("inf")

    def due(self) -> None:
        """Do what is due."""
        while self._agenda and self._agenda[0][0] <= time.monotonic():
            _, _, action, arguments = heappop(self._agenda)
            action(*arguments)

    def _keep_down(self, name: Name, step: Step, disk: str | None) -> None:
        if step.begins and name in self._alive:
            self._end(name, disk, step.number)
        else:
            self._start_if_wanted(name)

    def _end(self, name: Name, disk: str | None, number: int) -> None:
        """Have a node end: ``disk`` None: in order, unless it stands still."""
        self._told.add(name)
        self._disks.setdefault(name, (disk or "whole", number))
        if disk is None and not self._lasting[name].of(Pause):
            self._processes.signal(name, signal.SIGTERM)
            self._at(time.monotonic() + _LEAVE_S, self._overdue, name, number)
        else:
            self._processes.signal(name, signal.SIGKILL)

    def _overdue(self, name: Name, number: int) -> None:
        if name in self._told and self._disks.get(name) == ("whole", number):
            self.unasked.append((name, f"did not stop within {_LEAVE_S:g} s"))

    def _pause(self, name: Name, step: Step) -> None:
        lasting = self._lasting[name]
        if name not in self._alive or name in self._told:
            lasting.forget(Pause)
        elif step.begins:
            self._processes.signal(name, signal.SIGSTOP)
        elif not lasting.of(Pause):
            self._processes.signal(name, signal.SIGCONT)

    def _start_if_wanted(self, name: Name) -> None:
        if not self._lasting[name].down and name not in self._alive:
            self._start(name)

    def _is_full(self, name: Name) -> bool:
        return bool(self._lasting[name].of(Full))

    def _start(self, name: Name) -> None:
        self._alive.add(name)
        self._processes.start(name, self._versions[name], full=self._is_full(name))

    def _at(self, when_s: float, action: Callable[..., None], *arguments: object) -> None:
        self._order += 1
        heappush(self._agenda, (when_s, self._order, action, arguments))


def damage(state: Path, kind: str, rng: random.Random) -> None:
    """Do to a node's folder what a disk of a kind of :mod:`simnet.disk` does in a crash."""
    if kind == "lost":
        for name in (FILE_NAME, f"{FILE_NAME}-wal"):
            (state / name).unlink(missing_ok=True)
        if rng.random() < 0.5:
            (state / EPOCH_NAME).unlink(missing_ok=True)
    elif kind in ("torn", "tail"):
        wal = state / f"{FILE_NAME}-wal"
        data = wal.read_bytes() if wal.exists() else b""
        commits = _commits(data)
        if kind == "torn" and commits:
            frame_bytes = (commits[-1] - _HEADER_BYTES) // _frames(data, commits[-1])
            begun = data[_HEADER_BYTES : _HEADER_BYTES + rng.randrange(1, frame_bytes)]
            wal.write_bytes(data[: commits[-1]] + begun)
        elif commits and _frames(data, commits[-1]) < _CHECKPOINT_FRAMES:
            kept = max(1, len(commits) - rng.randint(1, _MOST_LOST))
            wal.write_bytes(data[: commits[kept - 1]])


def _commits(data: bytes) -> list[int]:
    """Return where the transactions of a log end."""
    if len(data) < _HEADER_BYTES:
        return []
    page_bytes, salts = unpack_from(">I", data, 8)[0], data[16:24]
    found = []
    frame_bytes = _FRAME_HEADER_BYTES + page_bytes
    for begin in range(_HEADER_BYTES, len(data) - frame_bytes + 1, frame_bytes):
        if data[begin + 8 : begin + 16] != salts:
            break  # of the log before, whose place this one takes
        if unpack_from(">I", data, begin + 4)[0]:
            found.append(begin + frame_bytes)
    return found


def _frames(data: bytes, end: int) -> int:
    """Return how many frames a log has up to a place."""
    page_bytes: int = unpack_from(">I", data, 8)[0]
    return (end - _HEADER_BYTES) // (_FRAME_HEADER_BYTES + page_bytes)
