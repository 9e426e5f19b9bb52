"""Fuzz with coverage (atheris): `python -m tests.fuzz TARGET [inputs]`; see `make fuzz`.

Ends with exit status 0, having said how many inputs ran and what memory they cost; with 1 if
resident memory grew by 16 MiB or more after the first tenth; and with the input that did it, as
libFuzzer says, if anything was raised.
"""

import os
import sys
import tempfile
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("atheris is missing: run `make fuzz`, which sets up an environment that has it")

with atheris.instrument_imports(include=["crdt", "gossip"]):
    from tests.fuzz.targets import TARGETS, Victim, seeds

_GROWTH_MIB = 16


def resident_mib() -> float:
    """Return this process's resident memory in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(target: str, inputs: int) -> None:
    """Run one target; does not return."""
    victim, run = Victim(), TARGETS[target]
    ran, base_mib = 0, 0.0

    def one(data: bytes) -> None:
        nonlocal ran, base_mib
        run(victim, data)
        ran += 1
        if ran == inputs // 10:
            base_mib = resident_mib()
        elif ran == inputs:
            grown_mib = resident_mib() - base_mib
            print(f"{target}: {ran} inputs, memory grew by {grown_mib:.1f} MiB", flush=True)
            os._exit(grown_mib >= _GROWTH_MIB)

    corpus = Path(tempfile.mkdtemp())
    for index, seed in enumerate(seeds(victim)[target]):
        (corpus / str(index)).write_bytes(seed)
    arguments = ["-max_len=1250", "-rss_limit_mb=0", "-verbosity=0", "-print_final_stats=0"]
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10_000_000)
