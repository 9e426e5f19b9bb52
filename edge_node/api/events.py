"""Owns server-sent events: the feeds that the daemon publishes into, and their streams.

Never lets a slow reader hold the daemon: a subscription keeps the newest items and drops the
oldest. Invariant: `publish` neither waits nor grows without bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from edge_node.api.errors import Busy
from edge_node.api.plain import to_json
from edge_node.api.view import Json

QUEUE_ITEMS = 256
MAX_STREAMS = 64
HEARTBEAT_S = 15.0

CLOSING = web.AppKey("closing", asyncio.Event)
STREAMS = web.AppKey("streams", set[asyncio.Task[None]])


class Subscription(AsyncIterator[Json]):
    """Iterate over what a feed publishes from now on; ends when the feed closes.

    One reader. Garbage collection unsubscribes it.
    """

    def __init__(self, capacity: int) -> None:
        self._items: deque[Json] = deque(maxlen=capacity)
        self._changed = asyncio.Event()
        self._ended = False

    def put(self, item: Json) -> bool:
        """Add an item; returns False if the oldest had to go."""
        full = len(self._items) == self._items.maxlen
        self._items.append(item)
        self._changed.set()
        return not full

    def end(self) -> None:
        """End the iteration after what is queued."""
        self._ended = True
        self._changed.set()

    async def __anext__(self) -> Json:
        while not self._items:
            if self._ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._items.popleft()


class Feed:
    """Publish items to any number of subscriptions. `dropped` counts what slow readers lost."""

    def __init__(self, capacity: int = QUEUE_ITEMS) -> None:
        self._capacity = capacity
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self._closed = False
        self.dropped = 0

    def publish(self, item: Json) -> None:
        """Hand `item` to every subscription. O(subscriptions)."""
        for subscription in self._subscriptions:
            self.dropped += not subscription.put(item)

    def tell(self, describe: Callable[[], Json]) -> None:
        """Publish what `describe` returns; it is not called while nobody follows."""
        if self._subscriptions:
            self.publish(describe())

    def subscribe(self) -> Subscription:
        """Begin to follow; what is published from now on will be seen."""
        subscription = Subscription(self._capacity)
        if self._closed:
            subscription.end()
        self._subscriptions.add(subscription)
        return subscription

    def close(self) -> None:
        """End every subscription, present and future."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.end()


def prepare(app: web.Application) -> None:
    """Give the app what `stream` needs; its streams end when it shuts down."""
    app[CLOSING] = asyncio.Event()
    app[STREAMS] = set()

    async def close(app: web.Application) -> None:
        app[CLOSING].set()

    app.on_shutdown.append(close)


async def stream(
    request: web.Request, items: AsyncIterator[Json], heartbeat_s: float = HEARTBEAT_S
) -> web.StreamResponse:
    """Send `items` as events until they end, the client goes or the app shuts down.

    A comment goes out when nothing else did for `heartbeat_s`, so that both ends notice a dead
    connection. Raises Busy beyond `MAX_STREAMS`.
    """
    streams, closing = request.app[STREAMS], request.app[CLOSING]
    if len(streams) >= MAX_STREAMS:
        raise Busy(f"{MAX_STREAMS} event streams are open already")
    stop = asyncio.create_task(_wait(closing))
    streams.add(stop)
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
        }
    )
    following = asyncio.ensure_future(anext(items))
    try:
        await response.prepare(request)
        await response.write(b": following\n\n")
        while not stop.done():
            await asyncio.wait(
                {following, stop}, timeout=heartbeat_s, return_when=asyncio.FIRST_COMPLETED
            )
            if following.done():
                event = f"data: {to_json(following.result())}\n\n".encode()
                following = asyncio.ensure_future(anext(items))
                await response.write(event)
            elif not stop.done():
                await response.write(b": still here\n\n")
    except StopAsyncIteration:
        pass
    except ConnectionError:
        return response  # the client went away: the usual end of a stream
    finally:
        if not following.cancel() and not following.cancelled():
            following.exception()  # an end that came with the shutdown needs no report
        stop.cancel()
        streams.discard(stop)
    with contextlib.suppress(ConnectionError):  # it may leave while the daemon stops
        await response.write_eof()
    return response


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
