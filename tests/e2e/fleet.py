"""Real daemons as processes on loopback, for the end-to-end tests."""

import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np

SECRET = "3c91d7a05be2468f17c0a3955d2be84471fe0c6b82d93a64e5170fb82c4d9e03"


def free_port() -> int:
    """Return a port that was free for TCP and UDP a moment ago."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def wait_for(what: str, condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """Return the condition's first true value; fail naming ``what`` after ``timeout_s``."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline_s:
            raise AssertionError(f"waited {timeout_s:.0f} s in vain for: {what}")
        time.sleep(0.05)


class Node:
    """One ``edge-node run`` process with its folder, configuration and API."""

    def __init__(self, folder: Path, name: str, *, seeds: list["Node"] | None = None) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir()
        self.peer_port, self.api_port = free_port(), free_port()
        self.secret = SECRET
        self.sections: dict[str, str] = {}
        self.arrays: list[str] = []
        self.seeds = seeds or []
        self.process: subprocess.Popen[bytes] | None = None

    def camera(self, name: str, source: str = "generated:1", **fields: object) -> None:
        lines = [f"name = {json.dumps(name)}", f"source = {json.dumps(source)}"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in fields.items()]
        self.arrays.append("[[camera]]\n" + "\n".join(lines) + "\n")

    def accelerator(self, **fields: object) -> None:
        lines = [f"{key} = {json.dumps(value)}" for key, value in fields.items()]
        self.arrays.append("[[accelerator]]\n" + "\n".join(lines) + "\n")

    @property
    def config_path(self) -> Path:
        return self.folder / "node.toml"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def write_config(self) -> None:
        secret_path = self.folder / "fleet.secret"
        secret_path.write_text(self.secret)
        secret_path.chmod(0o600)
        seeds = json.dumps([f"127.0.0.1:{seed.peer_port}" for seed in self.seeds])
        sections = {
            "node": f"name = '{self.name}'\nstate_dir = 'state'",
            "fleet": f"bind = '127.0.0.1:{self.peer_port}'\nseeds = {seeds}",
            "api": f"bind = '127.0.0.1:{self.api_port}'",
            "output": "jsonl = 'out.jsonl'",
            **self.sections,
        }
        text = "\n".join(f"[{title}]\n{body}\n" for title, body in sections.items())
        self.config_path.write_text(text + "\n".join(self.arrays))

    def start(self, env: dict[str, str] | None = None) -> "Node":
        self.write_config()
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge_node.cli.main", "run", "-c", str(self.config_path)],
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {})},
            )
        return self

    def ready(self) -> "Node":
        wait_for(f"{self.name} ready\n{self.log}", lambda: self.status("/v2/health/ready") == 200)
        return self

    def handles(self, number: signal.Signals) -> bool:
        """Whether the process handles or holds back the signal by now, or has ended."""
        assert self.process is not None
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        except FileNotFoundError:
            return True
        masks = (int(line.split()[1], 16) for line in lines if line[:7] in ("SigBlk:", "SigCgt:"))
        return any(mask >> (number - 1) & 1 for mask in masks)

    def request(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.api_port, timeout=10)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text[:1] in b"{[" else text.decode()
        finally:
            connection.close()

    def status(self, path: str) -> int:
        try:
            return self.request("GET", path)[0]
        except OSError:
            assert self.process is not None
            assert self.process.poll() is None, f"{self.name} ended:\n{self.log}"
            return 0

    def get(self, path: str) -> Any:
        status, value = self.request("GET", f"/edge/v1/{path}")
        assert status == 200, value
        return value

    def agent(self, name: str) -> Any:
        """Return the row of an agent, as soon as this node knows of it."""
        rows = wait_for(
            f"{self.name} knows {name}",
            lambda: [row for row in self.get("agents") if row["agent"] == name],
        )
        return rows[0]

    def answered(self, name: str) -> int:
        """Return how many frames of an agent were answered since it runs here; else 0."""
        return self.agent(name)["answered"] or 0

    def states(self) -> dict[str, str]:
        return {row["name"]: row["state"] for row in self.get("peers")}

    def hash(self) -> str:
        return str(self.get("state/hash")["hash"])

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "edge_node.cli.main", *arguments,
             "--api", f"127.0.0.1:{self.api_port}"],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip

    def reload(self) -> None:
        """Write the configuration as it is now, and have the daemon read it."""
        self.write_config()
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def deltas(self, seconds: float) -> dict[str, float]:
        """Return what the counts of ``stats`` grew by within ``seconds``."""
        first = self.get("stats")
        time.sleep(seconds)
        last = self.get("stats")
        names = ("met", "answered", "shed", "lost", "forwarded", "hits")
        grown: dict[str, float] = {name: last[name] - first[name] for name in names}
        grown["ended"] = grown["answered"] + grown["shed"] + grown["lost"]
        return grown

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)

    def limit_file_size(self, size_bytes: int) -> None:
        """Make every write of the daemon beyond ``size_bytes`` fail, as on a full disk."""
        assert self.process is not None
        _, hard = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size_bytes, hard))

    def cpu_s(self) -> float:
        """Return the daemon's processor time so far, its workers' not included."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")")[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def resident_kb(self) -> int:
        """Return the daemon's resident memory, its workers' not included."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024 // 1000

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)


def same_hash(nodes: list[Node]) -> bool:
    """Tell whether all replicas are equal."""
    return len({node.hash() for node in nodes}) == 1


def busy_clip(path: Path) -> Path:
    """Encode a clip in which most of the picture moves in every frame: no cached answer holds."""
    rng = np.random.default_rng(5)
    texture = np.kron(rng.integers(0, 255, (46, 80, 3), np.uint8), np.ones((16, 16, 1), np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=60)
        stream.width, stream.height, stream.pix_fmt = 640, 368, "yuv420p"
        for i in range(120):
            image = np.ascontiguousarray(np.roll(texture, 24 * i, axis=1)[:368, :640])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))
    return path
