"""Two hosts on real loopback sockets, under both event loops."""

import asyncio
import random
import socket
import time
from collections.abc import Callable

import pytest
import uvloop

from crdt.clock import HybridClock, Instant
from crdt.log import Batch
from crdt.store import Store
from gossip import Event, GossipConfig, GossipNode, Identity, MemberLeft, MemberUp, StateChanged
from gossip.sealing import verify
from gossip.udp import UdpHost

SECRET = b"the fleet's own secret"
FAMILIES = [socket.AF_INET, socket.AF_INET6]
LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [
    asyncio.new_event_loop,
    uvloop.new_event_loop,
]


def clock() -> Instant:
    return Instant(time.monotonic(), time.time_ns() // 1_000_000)


class Process:
    """What a daemon would hold."""

    def __init__(self, incarnation: int = 1, address: str = "127.0.0.1", bind: str = "") -> None:
        identity = Identity.generate()
        self.store = Store(
            identity.node_id,
            epoch=1,
            sign=identity.sign,
            verify=verify,
            public_key=identity.public_key,
            clock=HybridClock(),
        )
        bind = bind or address
        with socket.socket(FAMILIES[":" in bind], socket.SOCK_DGRAM) as probe:
            probe.bind((bind, 0))
            port = probe.getsockname()[1]
        self.address, self.bind = (address, port), (bind, port)
        self.node = GossipNode(
            identity,
            SECRET,
            self.store,
            GossipConfig(),
            random.Random(),
            boot=random.randbytes(16),
            incarnation=incarnation,
            address=self.address,
            now=clock(),
        )
        self.host = UdpHost()
        self.journal: list[Batch] = []
        self.failures = 0
        self.events: asyncio.Queue[Event] = asyncio.Queue()

    async def start(self) -> None:
        await self.host.start(self.node, self.bind, self._persist, self.events.put_nowait, clock)

    async def _persist(self, batch: Batch) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError(28, "No space left on device")
        await asyncio.sleep(0)
        self.journal.append(batch)

    async def event(self, kind: type[Event]) -> Event:
        while True:
            event = await self.events.get()
            if isinstance(event, kind):
                return event


async def _meet_share_and_leave() -> None:
    one, two = Process(), Process()
    await one.start()
    await two.start()
    assert one.host.address == one.address
    two.node.join(one.address, clock())
    two.host.kick()
    await one.event(MemberUp)
    await two.event(MemberUp)
    for index in range(5):
        one.store.set_owner("key", index)
        one.node.commit(clock())
        one.host.kick()
    while two.store.owner(one.store.origin, "key") != 4:
        await two.event(StateChanged)
    assert [batch.sequence for batch in one.journal] == [1, 2, 3, 4, 5]
    two.node.leave(clock())
    two.host.kick()
    await one.event(MemberLeft)
    await two.host.close()
    await one.host.close()
    await one.host.close()


@pytest.mark.parametrize("make_loop", LOOPS, ids=["asyncio", "uvloop"])
def test_two_processes_meet_share_and_part(
    make_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(asyncio.wait_for(_meet_share_and_leave(), 20))


async def _taken_port() -> None:
    one, two = Process(), Process()
    await one.start()
    two.bind = one.bind
    with pytest.raises(OSError, match=f"cannot bind UDP 127.0.0.1:{one.address[1]}"):
        await two.start()
    await two.host.close()
    await one.host.close()


@pytest.mark.parametrize("make_loop", LOOPS, ids=["asyncio", "uvloop"])
def test_taken_port_is_a_clear_error(make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(asyncio.wait_for(_taken_port(), 20))


async def _full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossip.udp._PERSIST_RETRY_S", 0.01)
    one = Process()
    one.failures = 3
    await one.start()
    one.store.set_owner("key", "value")
    one.node.commit(clock())
    one.host.kick()
    await one.event(StateChanged)
    assert one.failures == 0
    assert one.store.owner(one.store.origin, "key") == "value"
    await one.host.close()


def test_full_disk_delays_a_batch_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(asyncio.wait_for(_full_disk(monkeypatch), 20))


async def _failing_listener() -> None:
    loop = asyncio.get_running_loop()
    reported: list[str] = []
    loop.set_exception_handler(lambda _, context: reported.append(str(context["exception"])))
    one, two = Process(), Process()

    def fail(event: Event) -> None:
        raise RuntimeError("listener")

    await one.host.start(one.node, one.address, one._persist, fail, clock)
    await two.start()
    two.node.join(one.address, clock())
    two.host.kick()
    await two.event(MemberUp)
    two.store.set_owner("key", 1)
    two.node.commit(clock())
    two.host.kick()
    while one.store.owner(two.store.origin, "key") != 1:
        await asyncio.sleep(0.01)
    assert "listener" in reported
    await two.host.close()
    await one.host.close()


def test_listener_that_raises_does_not_stop_the_node() -> None:
    asyncio.run(asyncio.wait_for(_failing_listener(), 20))


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def _both_families(caplog: pytest.LogCaptureFixture) -> None:
    both, four, six = Process(bind="::"), Process(), Process(address="::1")
    for process in (both, four, six):
        await process.start()
    both.node.join(four.address, clock())  # out to IPv4 ...
    both.host.kick()
    while (await both.event(MemberUp)).address != four.address:  # type: ignore[union-attr]
        pass
    six.node.join(("::1", both.address[1]), clock())  # ... and in from IPv6
    six.host.kick()
    await six.event(MemberUp)
    await both.event(MemberUp)
    links = {link.node_id: link.address for link in both.node._links}
    assert links == {four.store.origin: four.address, six.store.origin: six.address}
    four.store.set_owner("key", 1)
    four.node.commit(clock())
    four.host.kick()
    while six.store.owner(four.store.origin, "key") != 1:  # by way of the one that has both
        await six.event(StateChanged)
    assert "send_errors" not in both.node.counters
    four.node.join(six.address, clock())
    four.host.kick()
    await asyncio.sleep(0)
    while not four.node.counters.get("send_errors"):
        await asyncio.sleep(0.01)
    told = [record for record in caplog.records if "bind ::" in record.message]
    assert len(told) == 1, "an address that cannot be reached is no silent loss"
    for process in (both, four, six):
        await process.host.close()


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback")
@pytest.mark.parametrize("make_loop", LOOPS, ids=["asyncio", "uvloop"])
def test_wildcard_of_ipv6_serves_both_families(
    make_loop: Callable[[], asyncio.AbstractEventLoop], caplog: pytest.LogCaptureFixture
) -> None:
    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(asyncio.wait_for(_both_families(caplog), 30))


async def _core_that_fails() -> None:
    one = Process()
    failed = asyncio.Event()

    async def persist(batch: Batch) -> None:
        raise ValueError("no disk speaks like that")

    await one.host.start(
        one.node, one.bind, persist, one.events.put_nowait, clock, on_failure=failed.set
    )
    one.store.set_owner("key", 1)
    one.node.commit(clock())
    one.host.kick()
    await failed.wait()
    await one.host.close()
    two = Process()
    failed.clear()
    await two.host.start(
        two.node, two.bind, two._persist, two.events.put_nowait, clock, on_failure=failed.set
    )
    two.node.handle_timer = lambda now: 1 / 0  # type: ignore[method-assign, assignment]
    two.node.join(("127.0.0.1", 9), clock())  # so that there is something to wait for
    two.host.kick()
    await failed.wait()
    await two.host.close()


def test_failure_of_the_core_is_not_silent() -> None:
    asyncio.run(asyncio.wait_for(_core_that_fails(), 20))
