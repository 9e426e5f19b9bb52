"""Owns where agents talk: a network namespace with a loopback of its own, its faults and counters.

Never starts an agent. Invariant: a namespace is deleted with `close`, and one that a killed run
left behind by the next run.
"""

import os
import shutil
import subprocess
from pathlib import Path

_PREFIX = "edgebench"
_NAMESPACES = Path("/run/netns")


def missing() -> list[str]:
    """Return what this machine lacks for namespaces and faults, each with what to do."""
    lacks = []
    if os.geteuid() != 0:
        lacks.append("not root: no namespace, so no bytes, no loss, no cut-off; run it with sudo")
    if shutil.which("ip") is None:
        lacks.append("no `ip`: no namespace, so no bytes, no loss; apt-get install iproute2")
    if shutil.which("nft") is None:
        lacks.append("no `nft`: no loss and no cut-off; apt-get install nftables")
    return lacks


def sweep() -> None:
    """Delete the namespaces of runs that are no more."""
    for path in sorted(_NAMESPACES.glob(f"{_PREFIX}-*")):
        pid = path.name.split("-")[1]
        if not Path(f"/proc/{pid}").exists():
            subprocess.run(["ip", "netns", "del", path.name], check=False)


class Network:
    """A place where addresses 127.x.y.z belong to one fleet alone, if the machine allows that."""

    def __init__(self, label: str, subnet: int, *, isolated: bool = True) -> None:
        """Make it; `subnet` (16 to 255) keeps fleets apart where namespaces cannot."""
        self.isolated = isolated and os.geteuid() == 0 and shutil.which("ip") is not None
        self.faulty = self.isolated and shutil.which("nft") is not None
        """Whether it can lose packets and cut agents off."""
        self._name = f"{_PREFIX}-{os.getpid()}-{label}"
        self._subnet = subnet
        self._path = _NAMESPACES / self._name
        if self.isolated:
            subprocess.run(["ip", "netns", "add", self._name], check=True)
            try:
                self._inside("ip", "link", "set", "lo", "up")
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Delete it; the agents in it must be gone."""
        if self.isolated and self._path.exists():
            subprocess.run(["ip", "netns", "del", self._name], check=False)

    def command(self, words: list[str]) -> list[str]:
        """Return the command that runs `words` in here (as the same process)."""
        return ["ip", "netns", "exec", self._name, *words] if self.isolated else words

    def address(self, number: int) -> str:
        """Return the IP address of an agent."""
        return f"127.{self._subnet}.{number // 250}.{number % 250 + 1}"

    def lose(self, percent: int) -> None:
        """Drop that share of all packets at random, from now on."""
        self._chain("loss", 0, f"numgen random mod 100 < {percent} drop")

    def cut_off(self, number: int) -> None:
        """Drop all packets from and to an agent: its host is gone without a word."""
        ip = self.address(number)
        self._chain(f"cut{number}", -1, f"ip saddr {ip} drop", f"ip daddr {ip} drop")

    def rejoin(self, number: int) -> None:
        """Undo `cut_off`."""
        self._inside("nft", "-f", "-", text=f"delete table inet cut{number}")

    def traffic(self, pid: int) -> tuple[int, int]:
        """Return (bytes, packets) sent in here so far; `pid` is any living agent's.

        Nothing is counted without a namespace. Bytes are those of whole frames.
        """
        if self.isolated:
            for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
                name, _, numbers = line.partition(":")
                if name.strip() == "lo":
                    words = numbers.split()
                    return int(words[8]), int(words[9])
        return 0, 0

    def _chain(self, table: str, priority: int, *rules: str) -> None:
        lines = "\n".join((f"type filter hook input priority {priority}", *rules))
        script = f"table inet {table} {{\nchain drops {{\n{lines}\n}}\n}}\n"
        self._inside("nft", "-f", "-", text=script)

    def _inside(self, *words: str, text: str = "") -> None:
        command = self.command(list(words))
        done = subprocess.run(command, capture_output=True, input=text, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
