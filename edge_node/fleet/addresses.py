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


class AddressError(Exception):
    """An address cannot be used; the text says why and what to do."""


def advertised(fleet: FleetConfig) -> tuple[str, int]:
    """Return the address that peers use: configured, bound, or of the route to the seeds.

    Raises:
        AddressError: none of them tells.
    """
    for address in (fleet.advertise, fleet.bind):
        if address is not None and not address.is_wildcard:
            return address.host, address.port
    target = fleet.seeds[0] if fleet.seeds else Address("192.0.2.1", 9)
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        route.connect(tuple(target))  # sends nothing: it only picks the route
        return route.getsockname()[0], fleet.bind.port
    raise AddressError("[fleet] advertise: no route shows this host's address; set it")


async def resolve(address: Address) -> tuple[str, int]:
    """Return the IP address and port of ``address``, however long its name takes to resolve."""
    loop, retry_s = asyncio.get_running_loop(), 1.0
    while True:
        try:
            found = await loop.getaddrinfo(*address, type=socket.SOCK_DGRAM)
            host, port = found[0][4][:2]
            return str(host), int(port)
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
