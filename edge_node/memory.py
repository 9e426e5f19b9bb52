"""What a process that has started can do without: pages of code and tables that it read once.

Importing touches most pages of the libraries, running touches few. The kernel would take the rest
back only when memory is short; a node shares its device with others, so it gives them back at
once. What is needed again is mapped again from the page cache.

Owns nothing. Invariant: only unwritable mappings of files without private pages are touched, so
that nothing can be lost.
"""

import ctypes
import gc
from pathlib import Path

_MADV_DONTNEED = 4  # madvise(2), the same on all Linux architectures that Python runs on
_SMAPS = Path("/proc/self/smaps")


def release_unused() -> int:
    """Give back what start-up left behind; return how many bytes of mappings that concerned.

    Linux only: elsewhere, or where the kernel refuses, nothing happens. Takes about 10 ms.
    """
    gc.collect()
    gc.freeze()  # what start-up made lives on: later collections need not visit it
    try:
        libc = ctypes.PyDLL(None)  # holds the interpreter: no thread of ours unmaps meanwhile
        libc.malloc_trim(0)
        mappings = _clean_mappings(_SMAPS.read_text())
    except (OSError, AttributeError):  # no /proc, another libc
        return 0
    return sum(
        last - first
        for first, last in mappings
        if libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_DONTNEED) == 0
    )


def _clean_mappings(smaps: str) -> list[tuple[int, int]]:
    """Return first and last address of the mapped files that are unwritable and unchanged."""
    found = []
    first = last = 0
    of_file = changed = False
    for line in smaps.splitlines():
        words = line.split()
        if not words[0].endswith(":"):  # a mapping's head: range, permissions, ..., file
            first, last = (int(word, 16) for word in words[0].split("-"))
            name = words[5] if len(words) > 5 else ""
            of_file = words[1] in ("r--p", "r-xp") and words[4] != "0"
            of_file = of_file and name.startswith("/") and not name.startswith("/dev/")
            changed = False
        elif words[0] in ("Anonymous:", "Swap:", "Locked:"):
            changed = changed or int(words[1]) > 0
        elif words[0] == "VmFlags:" and of_file and not changed:
            found.append((first, last))
    return found
