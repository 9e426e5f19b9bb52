"""What the world shows of the whole core: one seed in, counts out; tests and benchmarks share it.

All fleets here use the stand-in cryptography of simnet.standin: nothing in them is about security.
"""

from collections.abc import Iterable
from math import ceil
from typing import NamedTuple

from crdt.causal import NodeId
from gossip.config import GossipConfig
from gossip.events import MemberDown, StateChanged
from simnet.world import Host, World

BATCHING_S = 0.02


def fleet(
    seed: int, count: int, config: GossipConfig | None = None, *, settle_s: float = 8.0
) -> tuple[World, list[Host]]:
    """A fleet that has known itself for long, with the links that it wants to keep."""
    world = World(seed, config, standin=True)
    hosts = world.warm_fleet(count)
    world.run(settle_s)
    return world, hosts


def total(hosts: Iterable[Host], counter: str) -> int:
    return sum(host.running.counters.get(counter, 0) for host in hosts)


def clear(hosts: Iterable[Host]) -> None:
    for host in hosts:
        host.events.clear()


def seen_at(host: Host, origin: NodeId, key: str) -> float | None:
    """When a host first told of a change of an origin's record."""
    for when_s, event in host.events:
        if isinstance(event, StateChanged) and any(
            change.key == key and change.origin == origin for change in event.changes
        ):
            return when_s
    return None


class Reach(NamedTuple):
    """In rounds: one hop's greatest network delay and the 20 ms that batching may take."""

    rounds: list[float]
    missed: int
    copies: float  # of a batch that arrive, per node and update
    bytes_per_node: float  # sent for one update, acknowledgements included

    def percentile(self, share: float) -> float:
        ranked = sorted(self.rounds)
        return ranked[ceil(share * len(ranked)) - 1]


def reach(seed: int, count: int, loss: float, updates: int = 3, wait_s: float = 3.0) -> Reach:
    """Have some nodes write one record each; see when the change shows at all the others."""
    world, hosts = fleet(seed, count)
    network = world.network
    network.change(loss=loss)
    round_s = network.conditions.delay_s + network.conditions.jitter_s + BATCHING_S
    world.run(wait_s)
    before = total(hosts, "out_bytes")
    world.run(wait_s)
    idle_bytes = (total(hosts, "out_bytes") - before) * updates
    before = total(hosts, "out_bytes")
    arrived = sum(total(hosts, f"batches_{name}") for name in ("new", "duplicate", "stale"))
    rounds: list[float] = []
    missed = 0
    for number in range(updates):
        clear(hosts)
        writer = hosts[(seed * 31 + number * 7) % count]
        writer.set_owner("key", [number, "x" * 80])
        world.run(wait_s)
        begun_s = seen_at(writer, writer.node_id, "key")
        assert begun_s is not None
        for host in hosts:
            at_s = seen_at(host, writer.node_id, "key")
            if at_s is None:
                missed += 1
            elif host is not writer:
                rounds.append((at_s - begun_s) / round_s)
    arrived = (
        sum(total(hosts, f"batches_{name}") for name in ("new", "duplicate", "stale")) - arrived
    )
    sent = total(hosts, "out_bytes") - before - idle_bytes
    return Reach(rounds, missed, arrived / updates / (count - 1), sent / updates / count)


class Churn(NamedTuple):
    """What became of a fleet of which some crashed and came back."""

    false_downs: int  # reports of nodes that never were down
    back_s: float  # from the last restart until everybody sees everybody and holds the same


def churn(seed: int, count: int, share: float = 0.15, lasting_s: float = 40.0) -> Churn:
    """Crash a share of the nodes, each at its time, and restart them 2 to 15 s later."""
    world, hosts = fleet(seed, count)
    rng = world.rng("churn")
    victims = rng.sample(hosts[1:], round(share * count))
    for victim in victims:
        victim.seeds.append(hosts[0].address)
        at_s = world.now_s + rng.uniform(0, lasting_s - 15)
        world.at(at_s, victim.crash)
        world.at(at_s + rng.uniform(2, 15), victim.start)
    end_s = world.now_s + lasting_s
    while world.now_s < end_s:
        writer = rng.choice(hosts)
        if writer.node is not None:
            writer.set_owner(f"key/{rng.randrange(4)}", world.now_s)
        world.run(0.25)
    back_s = world.run_until(lambda: world.converged() and world.all_live(), 60)
    unlucky = {victim.node_id for victim in victims}
    downs = sum(
        isinstance(event, MemberDown) and event.node_id not in unlucky
        for host in hosts
        for _, event in host.events
    )
    return Churn(downs, back_s)


def partition(seed: int, count: int, cut_s: float = 30.0) -> float:
    """Cut a fleet in two that both write; return how long after the heal all are equal."""
    world, hosts = fleet(seed, count)
    names = [host.name for host in hosts]
    world.network.partition(names[: count // 2], names[count // 2 :])
    for number in range(int(cut_s)):
        writer = hosts[(number * 17 + seed) % count]
        writer.store.set_fleet(f"key/{number % 7}", [number, writer.name], writer.now())
        writer.store.add("names", writer.name)
        writer.commit()
        world.run(1)
    assert not world.converged()
    assert not world.all_live()
    world.network.heal()
    return world.run_until(lambda: world.converged() and world.all_live(), 60)


class Overload(NamedTuple):
    """What a fleet took in whose members all write far more than it can carry."""

    entries_per_s: float  # written by all, as each had to take in
    allowed_per_s: float
    settled_s: float  # from the last write until all hold the newest value of everything


def overload(seed: int, count: int, lasting_s: float = 20.0) -> Overload:
    """Everybody rewrites 20 records 20 times a second; then they stop."""
    config = GossipConfig(intake_entries_per_s=600.0)
    world, hosts = fleet(seed, count, config)
    steps = int(lasting_s * 20)
    for step in range(steps):
        for host in hosts:
            for index in range(20):
                host.store.set_owner(f"key/{index}", step * 100 + index)
            host.commit()
        world.run(0.05)
    burst = count * config.write_burst  # what may be written at once, and then saved up again
    per_s = (sum(host.written for host in hosts) - burst) / lasting_s
    last = [(steps - 1) * 100 + index for index in range(20)]

    def newest() -> bool:
        return world.converged() and all(
            hosts[0].store.owner(host.node_id, f"key/{index}") == value
            for host in hosts
            for index, value in enumerate(last)
        )

    settled_s = world.run_until(newest, 120)
    return Overload(per_s, config.intake_entries_per_s / 3, settled_s)


def clocks(seed: int, count: int) -> None:
    """Set half the clocks an hour off and let some jump by more than a day, forth and back.

    Owner records must be read everywhere at once. A register must stay writable for all but those
    whose own clock ran ahead: whatever they said, the others' next word is read by all others.
    """
    world, hosts = fleet(seed, count)
    rng = world.rng("clocks")
    for host in hosts[::2]:  # by more than all this lasts, or some of their words would come of age
        host.skew_ms = rng.choice((-1, 1)) * rng.randrange(200_000, 3_600_000)
    ahead = {host.name for host in hosts if host.skew_ms > 0}
    for number in range(30):
        if number in (10, 20):
            one = rng.choice(hosts)
            one.skew_ms += rng.choice((-1, 1)) * 100_000_000
            ahead.update([one.name] if one.skew_ms > 0 else [])
        writer = rng.choice(hosts)
        writer.store.set_fleet("shared", number, writer.now())
        writer.store.set_owner("own", number)
        writer.commit()
        world.run(2)
        assert {host.store.owner(writer.node_id, "own") for host in hosts} == {number}
    world.run_until(world.converged, 30)
    sound = [host for host in hosts if host.name not in ahead]
    for writer in sound:
        writer.store.set_fleet("shared", writer.name, writer.now())
        writer.commit()
        world.run(2)
        assert {host.store.fleet("shared", host.now()) for host in sound} == {writer.name}


def agree(seed: int, count: int, writers: int, settle_s: float = 5.0) -> float:
    """Have some of a fleet write within a second; return how long until all hold the same."""
    world, hosts = fleet(seed, count, settle_s=settle_s)
    for number in range(writers):
        hosts[number * count // writers].set_owner("key", number)
        world.run(1 / writers)
    took_s = world.run_until(world.converged, 60)
    assert len(hosts[1].store.owners("key")) == writers
    return took_s
