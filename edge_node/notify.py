"""Tell the service manager how the daemon is doing (sd_notify, without its library).

Owns: the datagrams to `$NOTIFY_SOCKET` and the watchdog period that the manager asked for.
Never: blocks, raises on a manager that is gone, or decides when the daemon is ready.
Invariant: outside a service manager every call does nothing and returns False.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Send states to the manager named by the environment, if there is one."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # "@name" is Linux's abstract namespace, which the kernel writes with a leading NUL.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_interval_s = _watchdog_interval_s(environ)

    def ready(self, status: str = "") -> bool:
        """Say that start or reload is over."""
        return self._send("READY=1", status)

    def reloading(self) -> bool:
        """Say that a reload began; `ready` ends it."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        return self._send(f"RELOADING=1\nMONOTONIC_USEC={now_us}")

    def stopping(self, status: str = "") -> bool:
        """Say that the daemon began to stop."""
        return self._send("STOPPING=1", status)

    def status(self, text: str) -> bool:
        """Give the one line that `systemctl status` shows."""
        return self._send("", text)

    def watchdog(self) -> bool:
        """Say that the daemon is alive; due every `watchdog_interval_s`, when that is not None."""
        return self._send("WATCHDOG=1")

    def _send(self, state: str, status: str = "") -> bool:
        if not self._address:
            return False
        # A newline would begin another assignment.
        lines = [state] * bool(state) + [f"STATUS={' '.join(status.split())}"] * bool(status)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(lines).encode(), self._address)
        except OSError:
            return False
        return True


def _watchdog_interval_s(environ: Mapping[str, str]) -> float | None:
    """Return half the manager's limit, in seconds; None when it watches nobody or another."""
    limit_us = environ.get("WATCHDOG_USEC", "")
    pid = environ.get("WATCHDOG_PID", "")
    if not limit_us.isascii() or not limit_us.isdigit() or int(limit_us) == 0:
        return None
    if pid and pid != str(os.getpid()):
        return None
    return int(limit_us) / 2_000_000
