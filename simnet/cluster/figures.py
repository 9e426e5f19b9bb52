"""What processes use, as the kernel says.

Owns the reading of /proc. Invariant: a process that is gone used nothing any more.
"""

import os
from pathlib import Path
from typing import NamedTuple

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


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
