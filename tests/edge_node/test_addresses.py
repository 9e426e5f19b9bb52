"""Where a node says that it can be reached."""

import asyncio
import ipaddress

import pytest

from edge_node.config import FleetConfig
from edge_node.fields import Address
from edge_node.fleet.addresses import AddressError, advertised, resolve


def asked(**fields: object) -> tuple[str, int]:
    fleet = FleetConfig(**{"bind": Address("0.0.0.0", 7946), "seeds": (), **fields})  # type: ignore[arg-type]
    return asyncio.run(advertised(fleet))


def test_a_configured_or_bound_address_counts_and_names_become_numbers() -> None:
    assert asked(advertise=Address("10.1.2.3", 99)) == ("10.1.2.3", 99)
    assert asked(bind=Address("127.0.0.5", 7946)) == ("127.0.0.5", 7946)
    assert asked(bind=Address("localhost", 7946)) == ("127.0.0.1", 7946)


def test_a_wildcard_becomes_the_address_on_the_route_to_the_seed() -> None:
    assert asked(seeds=(Address("127.0.0.1", 7946),)) == ("127.0.0.1", 7946)


def test_a_seed_that_does_not_resolve_keeps_no_node_from_starting() -> None:
    host, port = asked(seeds=(Address("no-such-host.invalid", 7946),))
    assert ipaddress.ip_address(host)
    assert port == 7946


def test_an_address_that_does_not_resolve_is_named() -> None:
    with pytest.raises(AddressError, match="no-such-host"):
        asked(advertise=Address("no-such-host.invalid", 7946))


def test_a_seed_is_resolved_to_a_number() -> None:
    assert asyncio.run(resolve(Address("localhost", 5))) == ("127.0.0.1", 5)
