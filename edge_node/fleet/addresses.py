"""Find out where this node and its seeds can be reached.

Owns name resolution and the choice of the advertised address; sends nothing to anybody.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator

from edge_node.config import FleetConfig
from edge_node.fields import Address

log = logging.getLogger(__name__)

RETRY_MAX_S = 60.0
ROUTE_TIMEOUT_S = 2.0


class AddressError(Exception):
    """An address cannot be used; the text says why and what to do."""


async def advertised(fleet: FleetConfig) -> tuple[str, int]:
    """Return the IP address and port that peers use: configured, bound, or of this host's route.

    Without any route it is loopback: cameras do not have to wait for a network. Call it again
    later; the network may have come.

    Raises:
        AddressError: a configured name does not resolve.
    """
    for address in (fleet.advertise, fleet.bind):
        if address is not None and not address.is_wildcard:
            try:
                return await _lookup(address)
            except OSError as error:
                raise AddressError(f"[fleet] {address}: {error}; give an IP address") from error
    six = ":" in fleet.bind.host
    for target in (*fleet.seeds, Address("192.0.2.1", 9), Address("2001:db8::1", 9)):
        with contextlib.suppress(OSError, TimeoutError):
            host, port = await asyncio.wait_for(_lookup(target), ROUTE_TIMEOUT_S)
            if six or ":" not in host:
                return _route(host, port), fleet.bind.port
    return ("::1" if six else "127.0.0.1"), fleet.bind.port


def _route(host: str, port: int) -> str:
    """Return this host's address on the way to ``host``; connecting a UDP socket sends nothing."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as route:
        route.connect((host, port))
        return str(route.getsockname()[0])


async def _lookup(address: Address) -> tuple[str, int]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(*address, type=socket.SOCK_DGRAM)
    # Most fleets are IPv4, and a dual-stack socket reaches both.
    found.sort(key=lambda info: info[0] != socket.AF_INET)
    host, port = found[0][4][:2]
    return str(host), int(port)


async def resolve(address: Address) -> tuple[str, int]:
    """Return the IP address and port of ``address``, however long its name takes to resolve."""
    retry_s = 1.0
    while True:
        try:
            return await _lookup(address)
        except OSError as error:
            log.warning("seed %s: %s; trying again in %.0f s", address, error, retry_s)
        await asyncio.sleep(retry_s)
        retry_s = min(2 * retry_s, RETRY_MAX_S)


@contextlib.contextmanager
def listening(what: str) -> Iterator[None]:
    """Name the configuration field when its address cannot be bound.

    Raises:
        AddressError: what the operating system said, and what to do.
    """
    try:
        yield
    except OSError as error:
        raise AddressError(
            f"{what}: {error.strerror or error}; stop what uses it (ss -lntup), or choose "
            "another address in the configuration"
        ) from error
