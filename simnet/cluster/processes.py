"""The cluster's processes as the controller sees them: the launcher, and what the nodes tell.

Owns the launcher, the sockets and the folder. Never knows why a node starts or ends. Invariants:
after ``close`` nothing that was started here runs, and if this process is killed the launcher sees
to that; a node's last words come before its end is told.
"""

import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from struct import unpack
from typing import Any, NamedTuple

import msgpack

from simnet.cluster.setting import Setting
from simnet.link import Name

_BACKLOG = 4096
_MOST_BYTES = 1 << 18
_READY_S = 60.0
_END_S = 15.0
_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}
"""Threads of a node need no heaps of their own, and what was large and is gone leaves no hole."""


class ClusterError(Exception):
    """Why the cluster cannot go on; nothing is wrong with the nodes."""


class Fact(NamedTuple):
    """Something that a node, or the launcher about it, told."""

    name: Name
    kind: str
    mono_s: float
    fields: list[Any]


class Processes:
    """All processes of one run."""

    def __init__(self, setting: Setting) -> None:
        """Start the launcher. Raises ClusterError."""
        self.pids: dict[Name, int] = {}
        """The nodes that run."""
        self.cpu_s: dict[Name, float] = {}
        """What the processes that have ended used, by node."""
        self._setting = setting
        self._selector = selectors.DefaultSelector()
        self._connections: dict[Name, socket.socket] = {}
        self._names: dict[socket.socket, Name | None] = {}  # None: has not said who it is
        self._ended: dict[Name, int] = {}  # exit status, while last words may still come
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind("\0" + setting.reports)
        self._listener.listen(_BACKLOG)
        self._listener.setblocking(False)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "simnet.cluster.launcher", str(theirs.fileno())]
        # A session of its own: Ctrl-C reaches the controller alone.
        self._launcher = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **_ENVIRONMENT},
        )
        theirs.close()
        self._selector.register(self._control, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)

    @property
    def launcher_pid(self) -> int:
        """The process that the nodes are copies of."""
        return self._launcher.pid

    def prepare(self) -> None:
        """Wait until the launcher has imported everything. Raises ClusterError."""
        self._control.settimeout(_READY_S)
        try:
            self._control.send(msgpack.packb(self._setting.packed()))
            if not self._control.recv(_MOST_BYTES):
                raise ClusterError("the launcher ended before it was ready")
        except OSError as error:
            raise ClusterError(f"the launcher does not get ready ({error})") from error
        self._control.settimeout(None)

    def start(self, name: Name, versions: tuple[int, int], *, full: bool) -> None:
        """Start a node, on a full disk or not; it must not run."""
        self._order("start", name, *versions, full)

    def signal(self, name: Name, number: int) -> None:
        """Send a signal to a node, if it runs."""
        self._order("signal", name, number)

    def fill_disk(self, name: Name, full: bool) -> None:
        """Let every write of a node fail, or no longer."""
        self._order("full", name, full)

    def say(self, name: Name, *words: Any) -> None:
        """Tell a node something, if it hears."""
        connection = self._connections.get(name)
        if connection is not None:
            try:
                connection.send(msgpack.packb(words))
            except OSError:  # it ends just now, or stands still
                pass

    def facts(self, until_s: float) -> Iterator[Fact]:
        """Yield what is told until then (monotonic). Raises ClusterError without a launcher."""
        while True:
            left_s = until_s - time.monotonic()
            ready = [key.fileobj for key, _ in self._selector.select(max(0.0, left_s))]
            for one in ready:
                if one is self._control:
                    self._hear_launcher()
                elif one is self._listener:
                    self._accept()
                else:
                    yield from self._hear(one)  # type: ignore[arg-type]
            for name in [one for one in self._ended if one not in self._connections]:
                self._accept()  # it may have ended before it was ever heard
                for stranger in [one for one, who in self._names.items() if who is None]:
                    yield from self._hear(stranger)
                if name not in self._connections:
                    yield Fact(name, "gone", time.monotonic(), [self._ended.pop(name)])
            if left_s <= 0:
                return

    def close(self, *, keep: bool) -> None:
        """End everything; ``keep`` the folder. May be repeated."""
        if self._control.fileno() < 0:
            return
        try:
            self._control.send(msgpack.packb(["end"]))
        except OSError:  # it is gone, and its nodes with it
            pass
        self._control.close()
        for one in (self._listener, *self._names):
            one.close()
        self._selector.close()
        try:
            self._launcher.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._launcher.kill()  # its nodes die with it
            self._launcher.wait()
        if not keep:
            shutil.rmtree(self._setting.folder, ignore_errors=True)

    def _order(self, *words: Any) -> None:
        try:
            self._control.send(msgpack.packb(words))
        except OSError as error:
            raise ClusterError(f"the launcher is gone ({error})") from error

    def _hear_launcher(self) -> None:
        data = self._control.recv(_MOST_BYTES)
        if not data:
            raise ClusterError(f"the launcher ended ({how_ended(self._launcher.wait())})")
        kind, name, number, *more = msgpack.unpackb(data)
        if kind == "forked":
            self.pids[name] = number
        else:
            del self.pids[name]
            self.cpu_s[name] = self.cpu_s.get(name, 0.0) + more[0]
            self._ended[name] = number

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            if unpack("3i", credentials)[1] == os.getuid():
                connection.setblocking(False)
                self._names[connection] = None
                self._selector.register(connection, selectors.EVENT_READ)
            else:
                connection.close()

    def _hear(self, connection: socket.socket) -> Iterator[Fact]:
        """Take the facts that wait in a connection, whose first says who it is."""
        while True:
            try:
                data = connection.recv(_MOST_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                break
            kind, mono_s, *fields = msgpack.unpackb(data)
            name = self._names[connection]
            if name is not None:
                yield Fact(name, kind, mono_s, fields)
            elif kind == "hello":
                self._names[connection] = fields[0]
                self._connections[fields[0]] = connection
        self._selector.unregister(connection)
        connection.close()
        name = self._names.pop(connection)
        if name is not None:
            del self._connections[name]


def how_ended(status: int) -> str:
    """Say how a process ended."""
    return signal.Signals(-status).name if status < 0 else f"status {status}"
