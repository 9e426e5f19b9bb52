"""The core's only IO: one UDP socket, one timer, and the order of persisting.

Owns the socket and when the core is called; never looks into a datagram. Invariant: batches are
persisted one at a time in the order in which the core yielded them, since a later sequence must
never be durable, or sent, before an earlier one.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from math import isfinite

from crdt.clock import Instant
from crdt.log import Batch
from gossip.events import Address, Event, Persist, Transmit
from gossip.node import GossipNode

_log = logging.getLogger("edge_node.gossip")
_BUFFER_BYTES = 4 << 20  # asked for; the system may grant less
_PERSIST_RETRY_S = 1.0
_LEAST_DELAY_S = 0.001  # a deadline in the past must not starve the socket
_MAX_BYTES = 65_535
_BURST_S = 0.002  # two datagrams so close together are followed by more
_BURST_DATAGRAMS = 32  # read at once; then the loop's other tasks have their turn
_MAPPED = "::ffff:"  # how an IPv6 socket names IPv4 peers (RFC 4291, section 2.5.5.2)


class UdpHost:
    """Run a GossipNode on an asyncio (or uvloop) event loop.

    The loop's own datagram transports would read once more after every datagram, only to find
    nothing: while a node idles, calls into the kernel are most of what it costs.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline_s = 0.0
        self._read_s = 0.0
        self._empty_s = 0.0  # when nothing waited in the socket any more
        self._more = False  # whether something probably waits there
        self._flush_handle: asyncio.Handle | None = None
        self._persister: asyncio.Task[None] | None = None
        self._to_persist: asyncio.Queue[Batch] = asyncio.Queue()
        self._maps = False  # the socket is IPv6 and reaches IPv4 peers under mapped addresses
        self._warned = False

    async def start(
        self,
        node: GossipNode,
        bind: Address,
        persist: Callable[[Batch], Awaitable[None]],
        on_event: Callable[[Event], None],
        clock: Callable[[], Instant],
        on_failure: Callable[[], None] | None = None,
    ) -> None:
        """Bind, and run the node until close().

        `persist` is awaited for one batch at a time; when it raises OSError the same batch is
        tried again a second later, because the ones after it must wait for it. `on_event` is
        called on the loop and must not block. Bound to "::" it serves IPv4 as well (unless
        net.ipv6.bindv6only is set), and the node sees plain IPv4 addresses. Raises OSError, naming
        the address, when the port is taken; the host can then be started again. When the core
        breaks one of its own rules that is logged, and `on_failure` is called if there is one: a
        node in an unknown state had better be started anew.
        """
        self._on_failure = on_failure
        self._node, self._persist, self._on_event, self._clock = node, persist, on_event, clock
        self._loop = asyncio.get_running_loop()
        self._socket = _bound(bind)
        self._maps = self._socket.family == socket.AF_INET6
        self._loop.add_reader(self._socket, self._guarded, self._read)
        self._persister = self._loop.create_task(self._persist_in_order())
        self._persister.add_done_callback(self._ended)
        self._flush()

    @property
    def address(self) -> Address:
        """Return the address that the socket is bound to."""
        assert self._socket is not None, "not started"
        name = self._socket.getsockname()
        return name[0], name[1]

    def kick(self) -> None:
        """Carry out what the core wants; call it after any call of the node."""
        if self._flush_handle is None and self._socket is not None:
            self._flush_handle = self._loop.call_soon(self._guarded, self._flush)

    async def close(self) -> None:
        """Send what is ready, stop the timer and close the socket; idempotent.

        Batches not yet persisted are dropped: they were visible to nobody.
        """
        if self._socket is None:
            return
        self._flush()
        sock, self._socket = self._socket, None
        self._loop.remove_reader(sock)
        for handle in (self._timer, self._flush_handle):
            if handle is not None:
                handle.cancel()
        self._timer = self._flush_handle = None
        if self._persister is not None:
            self._persister.cancel()
            await asyncio.gather(self._persister, return_exceptions=True)
        sock.close()

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:
            _log.exception("the gossip core failed")
            if self._on_failure is None:
                raise
            self._on_failure()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and self._on_failure is not None:
            _log.error("batches are no longer persisted", exc_info=task.exception())
            self._on_failure()

    def _read(self) -> None:
        """Take what has come: one datagram, or many where they come close together."""
        now = self._clock()
        if not self._more and now.mono_s - self._read_s >= _BURST_S:
            self._empty_s, count = now.mono_s, 1
        else:
            count = _BURST_DATAGRAMS
        burst = count > 1
        self._more = False
        while count and self._socket is not None:
            count -= 1
            try:
                data, addr = self._socket.recvfrom(_MAX_BYTES)
            except (BlockingIOError, InterruptedError):
                self._empty_s = now.mono_s
                break
            except OSError:  # what became of something sent earlier
                self._count_error()
                continue
            source = addr[0].removeprefix(_MAPPED), addr[1]
            self._node.receive_datagram(data, source, self._clock())
        else:
            self._more = burst
        now = self._clock()
        self._read_s = now.mono_s
        if self._more:  # what is read next has waited since nothing did, or nearly
            self._node.slow(now.mono_s - self._empty_s, now)
        self._flush()

    def _flush(self) -> None:
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        if self._socket is None:
            return
        while (output := self._node.poll()) is not None:
            if isinstance(output, Transmit):
                self._send(output)
            elif isinstance(output, Persist):
                self._to_persist.put_nowait(output.batch)
            else:  # by the loop, in order: a listener that raises must not stop the node
                self._loop.call_soon(self._on_event, output)
        self._arm()

    def _send(self, output: Transmit) -> None:
        assert self._socket is not None
        host, port = output.addr
        if self._maps and ":" not in host:
            host = _MAPPED + host
        elif not self._maps and ":" in host:
            self._count_error()
            if not self._warned:  # once; the counter tells of the rest
                self._warned = True
                _log.warning("cannot send to %s from an IPv4 socket: bind :: to serve both", host)
            return
        try:
            self._socket.sendto(output.data, (host, port))
        except (OSError, ValueError):  # no route, or no room: as good as lost on the way
            self._count_error()

    def _count_error(self) -> None:
        counters = self._node.counters
        counters["send_errors"] = counters.get("send_errors", 0) + 1

    def _arm(self) -> None:
        deadline_s = self._node.next_deadline()
        if self._timer is not None:
            if deadline_s == self._deadline_s:
                return
            self._timer.cancel()
            self._timer = None
        if isfinite(deadline_s) or deadline_s < 0:
            delay_s = max(_LEAST_DELAY_S, deadline_s - self._clock().mono_s)
            self._deadline_s = deadline_s
            self._timer = self._loop.call_later(delay_s, self._guarded, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._clock()
        # uvloop fires up to half a millisecond early; the core would then have nothing to do
        self._node.handle_timer(now._replace(mono_s=max(now.mono_s, self._deadline_s)))
        self._flush()

    async def _persist_in_order(self) -> None:
        while True:
            batch = await self._to_persist.get()
            while True:
                try:
                    await self._persist(batch)
                    break
                except OSError as error:
                    _log.warning("a batch could not be persisted, trying again: %s", error)
                    await asyncio.sleep(_PERSIST_RETRY_S)
            self._node.persisted(batch, self._clock())
            self.kick()


def _bound(bind: Address) -> socket.socket:
    """Return a socket at an IP address. Raises OSError naming the address."""
    try:
        family = socket.AF_INET6 if ":" in bind[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            if family == socket.AF_INET6 and bind[0] == "::":
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                sock.setsockopt(socket.SOL_SOCKET, buffer, _BUFFER_BYTES)
            sock.setblocking(False)
            sock.bind(bind)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        text = f"cannot bind UDP {bind[0]}:{bind[1]}: {error.strerror or error}"
        raise OSError(error.errno, text) from error
    return sock
