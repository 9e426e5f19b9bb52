"""What nodes take of this machine: how many fit, and what those that run use.

Owns the limits, what one node takes of them, and the reading of /proc. Never lowers a limit; raises
the soft one of open files. Invariants: what is refused is refused before anything was started, with
what would fit; a process that is gone used nothing any more.
"""

import os
import resource
from pathlib import Path
from typing import NamedTuple

from simnet.cluster.setting import HIGHEST_PORT, LOWEST_PORT
from simnet.scenario import Scenario

_NODE_MIB, _LAUNCHER_MIB = 17.0, 120.0
_NODE_CPU_S = 0.006
"""Per probe interval, when nothing happens."""
_NODE_TASKS = 10
_NODE_PORTS = 2
_SPARE_FILES = 64
_FREE_PART = 0.8
"""Of the memory that is free now."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def refuse_unfit(scenario: Scenario) -> None:
    """Raise ValueError saying why a scenario does not fit here, and how many nodes would."""
    reasons = [(fits, why) for fits, why in _limits(scenario.gossip.probe_interval_s) if fits >= 0]
    fits, why = min(reasons)
    if scenario.nodes > fits:
        raise ValueError(f"nodes = {scenario.nodes}: {why}; {fits} would fit")


def _limits(probe_interval_s: float) -> list[tuple[int, str]]:
    free_mib = _free_mib()
    cpus = len(os.sched_getaffinity(0))
    files, tasks = _files(), _tasks()
    ports = HIGHEST_PORT - LOWEST_PORT
    return [
        (
            int((free_mib * _FREE_PART - _LAUNCHER_MIB) / _NODE_MIB),
            f"a node takes about {_NODE_MIB:g} MiB of memory, and {free_mib:.0f} MiB are free",
        ),
        (
            int(cpus * probe_interval_s / _NODE_CPU_S),
            f"an idle node takes {_NODE_CPU_S * 1e3:g} ms of a processor every "
            f"{probe_interval_s:g} s, and there are {cpus}",
        ),
        (files - _SPARE_FILES, f"a process may open {files} files (ulimit -n)"),
        (tasks // _NODE_TASKS, f"{tasks} processes and threads may still start"),
        (ports // _NODE_PORTS, f"there are {ports} ports for them"),
    ]


def _free_mib() -> float:
    """Return what is free, of this machine or of the group that this process is confined to."""
    text = Path("/proc/meminfo").read_text()
    free = [float(text.partition("MemAvailable:")[2].split()[0]) / 1024]
    limit, used = _group("memory.max"), _group("memory.current")
    if limit is not None and used is not None:
        free.append((limit - used) / 2**20)
    return min(free)


def _files() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20


def _tasks() -> int:
    running = sum(1 for one in Path("/proc").iterdir() if one.name.isdigit())
    limits = [
        int(Path(f"/proc/sys/kernel/{name}").read_text()) for name in ("pid_max", "threads-max")
    ]
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    group = _group("pids.max")
    if group is not None:
        limits.append(group)
    return max(0, min(limits) - running)


def _group(name: str) -> int | None:
    """Return a number of this process' control group, None if it has none."""
    try:
        path = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
        return int((Path("/sys/fs/cgroup") / path / name).read_text())
    except (OSError, ValueError):
        return None


class Processors:
    """What part of their time all processors of this machine have been busy."""

    def __init__(self) -> None:
        self._seen = (0, 0)

    def busy(self) -> float:
        """Return the part since this was last called, from 0 to 1; the first time since boot."""
        ticks = [int(one) for one in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]]
        seen = sum(ticks), ticks[3] + ticks[4]
        all_, idle = (now - before for now, before in zip(seen, self._seen, strict=True))
        self._seen = seen
        return 1.0 - idle / all_ if all_ else 0.0


class Memory(NamedTuple):
    """A process' memory in MiB."""

    pss: float
    """Proportional: what it shares counts in parts."""
    own: float
    """What it shares with nobody."""


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def memory(pid: int) -> Memory:
    """Return what a process holds. The kernel walks all its pages: some milliseconds."""
    found = {"Pss": 0, "Private_Clean": 0, "Private_Dirty": 0}
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, rest = line.partition(":")
        if name in found:
            found[name] = int(rest.split()[0])
    own = found["Private_Clean"] + found["Private_Dirty"]
    return Memory(found["Pss"] / 1024, own / 1024)
