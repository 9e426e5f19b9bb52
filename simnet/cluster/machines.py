"""Which nodes run, and what is done to their processes.

Owns the faults that befall a process as a whole: crash, leave, join, pause, upgrade, a full disk.
Never judges. Invariant: a node runs while no fault wants it down; what it finds when it comes back
is what the fault says.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from heapq import heappop, heappush

from gossip.sealing import VERSIONS
from simnet.cluster.damage import damage
from simnet.cluster.processes import Processes, how_ended
from simnet.cluster.setting import Setting
from simnet.faults import Crash, Full, Join, Leave, Pause, Step, Upgrade, absent
from simnet.link import Name

_LEAVE_S = 15.0
_LINK_S = 0.02  # of a processor, generously: what two real daemons take to shake hands
_RETRY_S = 1.0


class Machines:
    """The nodes of a cluster, and what they are to do."""

    def __init__(self, setting: Setting, processes: Processes) -> None:
        self.unasked: list[tuple[Name, str]] = []
        """Who ended without being told to, and how."""
        self._setting, self._processes = setting, processes
        self._versions = dict.fromkeys(setting.names, VERSIONS)
        self._down: dict[Name, set[int]] = {name: set() for name in setting.names}
        for name in absent(setting.plan):
            self._down[name].add(0)
        self._pauses: dict[Name, set[int]] = {name: set() for name in setting.names}
        self._full: dict[Name, set[int]] = {name: set() for name in setting.names}
        self._disks: dict[Name, tuple[str, int]] = {}  # what a node that ends finds later
        self._told: set[Name] = set()  # to end
        self._alive: set[Name] = set()
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = 0

    @property
    def wanted(self) -> frozenset[Name]:
        """The nodes that are to run now."""
        return frozenset(name for name, reasons in self._down.items() if not reasons)

    def start_all(self) -> Iterator[float]:
        """Start every node that is there from the beginning; yield how long to wait in between.

        Each newcomer shakes hands with all that are there, on all their behalf: no faster than
        this machine can.
        """
        for count, name in enumerate(sorted(self.wanted, key=self._setting.names.index)):
            yield count * _LINK_S / len(os.sched_getaffinity(0))
            self._start(name)

    def forgets(self, name: Name) -> bool:
        """Tell whether the disk of a node that is ending drops what it acknowledged."""
        return self._disks.get(name, ("whole", 0))[0] in ("tail", "lost")

    def paused(self, name: Name) -> bool:
        """Tell whether a node stands still."""
        return bool(self._pauses[name])

    def step(self, step: Step) -> None:
        """Carry out a step of the plan, as far as it is about processes."""
        fault = step.fault
        for name in step.names:
            if isinstance(fault, Crash):
                self._keep_down(name, step, fault.disk)
            elif isinstance(fault, Leave):
                self._keep_down(name, step, None)
            elif isinstance(fault, Join):
                self._down[name].discard(0)
                self._start_if_wanted(name)
            elif isinstance(fault, Upgrade):
                self._versions[name] = fault.lowest, fault.highest
                if name in self._alive:
                    self._end(name, None, step.number)
            elif isinstance(fault, Pause):
                self._pause(name, step)
            elif isinstance(fault, Full):
                _mark(self._full[name], step)
                self._processes.fill_disk(name, bool(self._full[name]))

    def gone(self, name: Name, status: int) -> None:
        """Take that a process has ended; start it again if it is to run."""
        self._alive.discard(name)
        self._pauses[name].clear()
        disk, number = self._disks.pop(name, ("whole", 0))
        asked = name in self._told
        self._told.discard(name)
        if asked and status in (0, -signal.SIGKILL):
            rng = random.Random(f"{self._setting.seed} disk {name} {number}")
            damage(self._setting.state_of(name), disk, rng)
            self._start_if_wanted(name)
        elif status and self._full[name]:  # a new journal finds no room: as a service would, again
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
        reasons = self._down[name]
        _mark(reasons, step)
        if step.begins and name in self._alive:
            self._end(name, disk, step.number)
        elif not reasons:
            self._start_if_wanted(name)

    def _end(self, name: Name, disk: str | None, number: int) -> None:
        """Have a node end: ``disk`` None: in order, unless it stands still."""
        self._told.add(name)
        self._disks.setdefault(name, (disk or "whole", number))
        if disk is None and not self._pauses[name]:
            self._processes.signal(name, signal.SIGTERM)
            self._at(time.monotonic() + _LEAVE_S, self._overdue, name, number)
        else:
            self._processes.signal(name, signal.SIGKILL)

    def _overdue(self, name: Name, number: int) -> None:
        if name in self._told and self._disks.get(name) == ("whole", number):
            self.unasked.append((name, f"did not stop within {_LEAVE_S:g} s"))

    def _pause(self, name: Name, step: Step) -> None:
        reasons = self._pauses[name]
        _mark(reasons, step)
        if name not in self._alive or name in self._told:
            reasons.clear()
        elif step.begins:
            self._processes.signal(name, signal.SIGSTOP)
        elif not reasons:
            self._processes.signal(name, signal.SIGCONT)

    def _start_if_wanted(self, name: Name) -> None:
        if not self._down[name] and name not in self._alive:
            self._start(name)

    def _start(self, name: Name) -> None:
        self._alive.add(name)
        self._processes.start(name, self._versions[name], full=bool(self._full[name]))

    def _at(self, when_s: float, action: Callable[..., None], *arguments: object) -> None:
        self._order += 1
        heappush(self._agenda, (when_s, self._order, action, arguments))


def _mark(reasons: set[int], step: Step) -> None:
    """Keep the faults that hold a node in a state."""
    if step.begins:
        reasons.add(step.number)
    else:
        reasons.discard(step.number)
