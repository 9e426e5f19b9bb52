"""What a node tells the controller: facts, each with its time on the clock that all share.

Owns a child's end of the connection. Never makes the daemon wait: what does not fit into the
socket waits here. Invariant: facts arrive in the order in which they were told.
"""

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgpack

MOST_BYTES = 65_536
"""Of one fact."""


class Reports:
    """The way to the controller."""

    def __init__(self, address: str, name: str, heard: Callable[[list[Any]], None]) -> None:
        """Connect to the controller; ``heard`` gets what it says. Raises OSError."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect("\0" + address)
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[bytes] = deque()
        self._socket.send(msgpack.packb(["hello", time.monotonic(), name]))
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._read)

    def tell(self, kind: str, *fields: Any) -> None:
        """Tell a fact that is true now."""
        data: bytes = msgpack.packb([kind, time.monotonic(), *fields])
        if self._waiting or not self._send(data):
            if not self._waiting:
                self._loop.add_writer(self._socket, self._send_waiting)
            self._waiting.append(data)

    def _send_waiting(self) -> None:
        while self._waiting and self._send(self._waiting[0]):
            self._waiting.popleft()
        if not self._waiting:
            self._loop.remove_writer(self._socket)

    def _send(self, data: bytes) -> bool:
        """Tell whether the socket took it; without a controller nothing matters any more."""
        try:
            self._socket.send(data)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def _read(self) -> None:
        try:
            data = self._socket.recv(MOST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._heard(msgpack.unpackb(data))
        else:  # the controller is gone; the launcher ends this process
            self._loop.remove_reader(self._socket)
