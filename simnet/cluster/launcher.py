"""The process from which all nodes are forked: it has imported everything and done nothing.

Owns the node processes: forks, signals and reaps them. Never decides when. Invariants: nothing runs
here that cannot be forked (LightGBM, ONNX Runtime, threads); no node outlives this process, and
this process does not outlive the controller's end of the socket: if the controller was killed, what
is temporary is removed here.
"""

import asyncio
import ctypes
import gc
import logging
import os
import resource
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import msgpack
import uvloop

from edge_node.daemon import Daemon
from simnet.cluster import child
from simnet.cluster.setting import unpacked

MOST_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1
_GRACE_S = 5.0
_MEETING_S = 2.0


class Launcher:
    """The nodes that run, by name."""

    def __init__(self, control: socket.socket, given: child.Given, wake: int) -> None:
        self._control, self._given, self._wake = control, given, wake
        self._pids: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._poll = select.poll()
        for descriptor in (control.fileno(), wake):
            self._poll.register(descriptor, select.POLLIN)

    def serve(self) -> bool:
        """Do what the controller says; tell whether it ended this, or is gone."""
        while True:
            self._poll.poll()
            self._drain_wake()
            self._reap()
            while (order := self._order()) is not None:
                if not order:
                    return False
                kind, *fields = order
                if kind == "end":
                    return True
                self._carry_out(kind, *fields)

    def end_all(self) -> None:
        """Kill every node, and see them gone."""
        for name in list(self._pids):
            self._signal(name, signal.SIGKILL)
        until_s = time.monotonic() + _GRACE_S
        while self._pids and time.monotonic() < until_s:
            self._poll.poll(50)
            self._drain_wake()
            self._reap()

    def _order(self) -> list[Any] | None:
        """Return the next order, empty if there will be none, None if there is none yet."""
        try:
            data = self._control.recv(MOST_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except ConnectionError:
            return []
        return list(msgpack.unpackb(data)) if data else []

    def _carry_out(self, kind: str, name: str, *fields: Any) -> None:
        if kind == "start":
            self._start(name, (fields[0], fields[1]), fields[2])
        elif kind == "signal":
            self._signal(name, fields[0])
        elif kind == "full" and name in self._pids:
            _, hard = resource.prlimit(self._pids[name], resource.RLIMIT_FSIZE)
            limits = (0 if fields[0] else hard, hard)
            resource.prlimit(self._pids[name], resource.RLIMIT_FSIZE, limits)

    def _start(self, name: str, versions: tuple[int, int], full: bool) -> None:
        assert name not in self._pids, f"{name} runs"
        pid = os.fork()
        if pid == 0:
            _become(
                self._control,
                self._wake,
                lambda: child.main(self._given, name, versions, full=full),
            )
        self._pids[name], self._names[pid] = pid, name
        self._tell("forked", name, pid)

    def _signal(self, name: str, number: int) -> None:
        if name in self._pids:
            os.kill(self._pids[name], number)

    def _reap(self) -> None:
        while self._pids:
            pid, status, used = os.wait4(-1, os.WNOHANG)
            if not pid:
                return
            name = self._names.pop(pid)
            del self._pids[name]
            cpu_s = used.ru_utime + used.ru_stime
            self._tell("ended", name, os.waitstatus_to_exitcode(status), cpu_s)

    def _tell(self, *fields: Any) -> None:
        try:
            self._control.send(msgpack.packb(fields))
        except ConnectionError:  # it is gone, which the next order will say
            pass

    def _drain_wake(self) -> None:
        try:
            os.read(self._wake, 4096)
        except BlockingIOError:
            pass


def _become(control: socket.socket, wake: int, run: Callable[[], int]) -> NoReturn:
    """Turn this copy of the launcher into a node."""
    status = 70
    try:
        launcher = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:
            os._exit(0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        control.close()
        os.close(wake)
        status = run()
    except Exception:  # noqa: BLE001 - whatever it is: it goes to the node's log
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def rehearse(given: child.Given) -> None:
    """Have two daemons meet once, on states that are thrown away, before any node is forked.

    What a process does for the first time (modules imported late, tables of libraries, specialised
    code) every node would do again, in memory of its own: done here, it is shared.

    Raises:
        AssertionError: a thread is left, so that this process must not be forked.
    """
    logging.disable(logging.CRITICAL)
    folder = given.setting.folder / "rehearsal"
    daemons = []
    for name in given.setting.names[:2]:
        config = given.configs[name]
        node = replace(config.node, state_dir=folder / name)
        daemons.append(Daemon(replace(config, node=node), lambda: None))
    try:
        uvloop.run(_meet(daemons))
    finally:
        logging.disable(logging.NOTSET)
        shutil.rmtree(folder, ignore_errors=True)
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"{len(threads)} threads are left"


async def _meet(daemons: list[Daemon]) -> None:
    try:
        for daemon in daemons:
            await daemon.start()
        async with asyncio.timeout(_MEETING_S):
            await asyncio.gather(*(daemon.writes.acquainted.wait() for daemon in daemons))
    except TimeoutError:  # one node alone, or a busy machine: less is shared then
        pass
    finally:
        for daemon in daemons:
            await daemon.stop()


def main(descriptor: int) -> None:
    """Serve the controller at the other end of a socket."""
    control = socket.socket(fileno=descriptor)
    setting = unpacked(msgpack.unpackb(control.recv(MOST_BYTES)))
    assert setting.plan is not None  # made once, for all
    given = child.Given(setting, child.configs(setting))
    rehearse(given)
    wake, woken = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken)
    gc.collect()
    gc.freeze()
    control.send(msgpack.packb(["ready", os.getpid()]))
    launcher = Launcher(control, given, wake)
    ordered = False
    try:
        ordered = launcher.serve()
    finally:
        launcher.end_all()
        if setting.temporary and not ordered:
            shutil.rmtree(setting.folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
