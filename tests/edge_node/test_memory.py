"""Memory given back after the start: only what can be read again."""

import subprocess
import sys
from pathlib import Path

import pytest

from edge_node.memory import _clean_mappings

HEAD = "7f0000000000-7f0000003000 {access} 00000000 08:01 42   {file}\n"
TAIL = "Size: 12 kB\nAnonymous: {anonymous} kB\nSwap: {swap} kB\nLocked: 0 kB\nVmFlags: rd mr\n"


@pytest.mark.parametrize(
    ("access", "file", "anonymous", "swap", "clean"),
    [
        ("r-xp", "/lib/libc.so.6", 0, 0, True),
        ("r--p", "/lib/libc.so.6", 0, 0, True),
        ("r--p", "/lib/libc.so.6", 4, 0, False),  # relocated: its pages are in no file
        ("r--p", "/lib/libc.so.6", 0, 4, False),
        ("rw-p", "/lib/libc.so.6", 0, 0, False),
        ("r--p", "[vdso]", 0, 0, False),
        ("r--p", "", 0, 0, False),
    ],
)
def test_only_clean_pages_of_files_are_given_back(
    access: str, file: str, anonymous: int, swap: int, clean: bool
) -> None:
    smaps = HEAD.format(access=access, file=file) + TAIL.format(anonymous=anonymous, swap=swap)
    assert _clean_mappings(smaps) == ([(0x7F0000000000, 0x7F0000003000)] if clean else [])


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
def test_process_shrinks_and_goes_on() -> None:
    program = """
import asyncio, hashlib, json, sqlite3, ssl
import cryptography.hazmat.primitives.asymmetric.ed25519 as ed25519
from edge_node.memory import release_unused
def resident():
    return int(open("/proc/self/statm").read().split()[1])
before = resident()
assert release_unused() > 0
assert resident() < 0.9 * before, (before, resident())
key = ed25519.Ed25519PrivateKey.generate()
key.public_key().verify(key.sign(b"x"), b"x")
assert sqlite3.connect(":memory:").execute("select 1").fetchone() == (1,)
assert asyncio.run(asyncio.sleep(0, json.loads("[1]"))) == [1]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
