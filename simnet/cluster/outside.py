"""What a node meets outside itself: the scenario's network between real sockets, and its clocks.

Owns what befalls datagrams on their way out, which peers cannot be called over TCP, and how far the
clocks are off; never changes what arrives. Invariants: sender and receiver agree on the rules
without a word, since both follow the same plan by the same clock; the monotonic clock never goes
back.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from crdt import Instant
from crdt.log import Batch
from gossip import Address, Event, GossipNode
from gossip.udp import UdpHost
from simnet.link import Name, Network

_AT_ONCE_S = 0.0005
"""Timers are no finer than this."""


class Wire:
    """One node's way to the others."""

    def __init__(self, own: Name, name_at: Callable[[int], Name | None], network: Network) -> None:
        """Prepare; ``name_at`` tells who listens at a port."""
        self.own = own
        self.network = network
        self.slow_s = 0.0
        """What each datagram that arrives takes."""
        self._name_at = name_at

    def sent(self, data: bytes, port: int, now_s: float) -> list[tuple[float, bytes]]:
        """Return (when, bytes) of every copy of a datagram that is to leave."""
        name = self._name_at(port)
        return [] if name is None else self.network.arrivals(self.own, name, data, now_s)

    def connects(self, port: int | None) -> bool:
        """Tell whether a TCP connection to a port works, which takes both ways."""
        name = None if port is None else self._name_at(port)
        if name is None:
            return True
        network = self.network
        return network.reaches(self.own, name) and network.reaches(name, self.own)


class _Socket(socket.socket):
    """A UDP socket on that wire."""

    wire: Wire

    def sendto(self, data: Any, address: Any) -> int:  # type: ignore[override]
        now_s = time.monotonic()
        for at_s, copy in self.wire.sent(data, address[1], now_s):
            if at_s - now_s < _AT_ONCE_S:
                super().sendto(copy, address)
            else:
                asyncio.get_running_loop().call_later(at_s - now_s, self._send, copy, address)
        return len(data)

    def recvfrom(self, size: int, flags: int = 0) -> tuple[bytes, Any]:
        found = super().recvfrom(size, flags)
        if self.wire.slow_s:
            time.sleep(self.wire.slow_s)
        return found

    def _send(self, data: bytes, address: Address) -> None:
        try:
            super().sendto(data, address)
        except OSError:  # closed meanwhile, or no room: lost on the way
            pass


class Host(UdpHost):
    """The daemon's UDP host on that wire, which tells what it sees."""

    def __init__(
        self, wire: Wire, durable: Callable[[Batch], None], told: Callable[[Event], None]
    ) -> None:
        """Prepare; ``durable`` hears of a batch before it leaves, ``told`` of every event."""
        super().__init__()
        self._wire, self._durable, self._told = wire, durable, told

    async def start(
        self,
        node: GossipNode,
        bind: Address,
        persist: Callable[[Batch], Awaitable[None]],
        on_event: Callable[[Event], None],
        clock: Callable[[], Instant],
        on_failure: Callable[[], None] | None = None,
    ) -> None:
        """Bind, and run the node until close()."""

        async def to_disk(batch: Batch) -> None:
            await persist(batch)
            self._durable(batch)

        def happened(event: Event) -> None:
            on_event(event)
            self._told(event)

        await super().start(node, bind, to_disk, happened, clock, on_failure)
        assert self._socket is not None
        self._loop.remove_reader(self._socket)
        ours = _Socket(fileno=self._socket.detach())
        ours.wire = self._wire
        self._socket = ours
        self._loop.add_reader(ours, self._guarded, self._read)


class Connector(aiohttp.TCPConnector):
    """TCP connections between daemons; where nothing gets through, nothing comes back."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    async def connect(
        self,
        req: Any,
        traces: Any,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
    ) -> aiohttp.connector.Connection:
        """Return a connection to where a request goes."""
        if not self._wire.connects(req.url.port):
            await asyncio.get_running_loop().create_future()
        return await super().connect(req, traces, timeout)


class Skew:
    """Read both clocks, the wall clock ahead by an offset, both too fast by a rate."""

    def __init__(self) -> None:
        self._rate = 1.0
        self._mono_base_s = self._base_s = time.monotonic()
        self._ahead_s = time.time() - self._base_s

    def turn(self, offset_s: float, drift_ppm: float) -> None:
        """Be wrong by so much from now on; what the monotonic clock gained before it keeps."""
        self._mono_base_s, self._base_s = self._mono_s(), time.monotonic()
        self._rate = 1 + drift_ppm / 1e6
        self._ahead_s = time.time() + offset_s - self._mono_base_s

    def now(self) -> Instant:
        """Return the time as this node's clocks show it."""
        mono_s = self._mono_s()
        return Instant(mono_s, int((mono_s + self._ahead_s) * 1000))

    def _mono_s(self) -> float:
        return self._mono_base_s + (time.monotonic() - self._base_s) * self._rate
