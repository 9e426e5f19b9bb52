"""Owns which agents can run here: builds memberlist's, installs kinship into a place of its own.

Never touches the project's environment or its locks. Invariant: `provide` either returns a command
that runs, or says in words what is missing and what to do.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BUILT = Path(".bench/peers").absolute()
GO_SOURCES = Path("/usr/share/gocode")  # where Debian's packages of Go libraries go
AGENTS = ("ours", "memberlist", "kinship")


class Missing(Exception):
    """An agent cannot run here; the text says why and what to do."""


def provide(agent: str) -> list[str]:
    """Return the command that starts an agent, made if need be. Raises Missing."""
    BUILT.mkdir(parents=True, exist_ok=True)
    made = {"ours": _ours, "memberlist": _memberlist, "kinship": _kinship}[agent]
    try:
        return made()
    except subprocess.CalledProcessError as error:
        raise Missing(f"{agent}: {error.stderr.strip()[-600:]}") from error


def environment() -> dict[str, str]:
    """Return what agents find in their environment: that of this process, as usual as can be.

    Without compiled modules on disk every start of ours would compile them, and keep what that
    took in memory.
    """
    unusual = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
    return {name: text for name, text in os.environ.items() if name not in unusual}


def _ours() -> list[str]:
    _run([sys.executable, "-c", "import tests.bench.gossip_agent"])
    return [sys.executable, "-m", "tests.bench.gossip_agent"]


def _memberlist() -> list[str]:
    source, binary = HERE / "memberlist_agent.go", BUILT / "memberlist_agent"
    install = "apt-get install golang-go golang-github-hashicorp-memberlist-dev"
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        if shutil.which("go") is None:
            raise Missing(f"memberlist: no Go compiler: {install}")
        if not (GO_SOURCES / "src/github.com/hashicorp/memberlist").is_dir():
            raise Missing(f"memberlist: its source is not in {GO_SOURCES}: {install}")
        go = {"GO111MODULE": "off", "GOPATH": str(GO_SOURCES), "GOCACHE": str(BUILT / "go-cache")}
        _run(["go", "build", "-o", str(binary), str(source)], **go)
    return [str(binary)]


def _kinship() -> list[str]:
    wanted, folder = HERE / "kinship.txt", BUILT / "kinship"
    python, stamp = folder / "bin/python", folder / "made"
    if not stamp.exists() or stamp.read_bytes() != wanted.read_bytes():
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        try:
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            _run([*pip, "--require-hashes", "--only-binary=:all:", "-r", str(wanted)])
        except subprocess.CalledProcessError as error:
            reason = error.stderr.strip()[-400:]
            raise Missing(
                f"kinship: not installed (is a package index in reach?): {reason}"
            ) from error
        stamp.write_bytes(wanted.read_bytes())
    return [str(python), str(HERE / "kinship_agent.py")]


def _run(command: list[str], **more: str) -> None:
    subprocess.run(
        command, check=True, capture_output=True, text=True, env={**environment(), **more}
    )
