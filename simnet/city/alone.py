"""A city by itself: a world of its own, warm and quiet, for tests and benchmarks.

Owns the order of such a run: all get to know each other, cameras send, what is under way comes to
its end. Never judges it.
"""

from collections.abc import Callable

from simnet.city.city import City, Scheduler
from simnet.city.load import Load
from simnet.city.outcome import Outcome
from simnet.city.policy import OURS, Policy
from simnet.city.ways import Watch
from simnet.world import World

ACQUAINT_S = 0.1
"""How long before its frames a fleet without gossip begins."""


def settle(
    load: Load,
    policy: Policy = OURS,
    *,
    watch: Watch | None = None,
    scheduler: Scheduler | None = None,
    clock: Callable[[], float] | None = None,
) -> City:
    """Return a city whose nodes know each other; with a centre, nobody gossips."""
    scenario = load.scenario
    world = World(
        load.seed,
        scenario.gossip,
        conditions=scenario.network,
        standin=scenario.cryptography == "stand-in",
    )
    if policy.centre:
        hosts = [world.add(f"n{index}") for index in range(scenario.nodes)]
        for host in hosts:
            host.start()
    else:
        hosts = world.warm_fleet(scenario.nodes)
    city = City(world, hosts, load, policy, watch=watch, scheduler=scheduler, clock=clock)
    world.watch = city
    world.run(ACQUAINT_S if policy.centre else scenario.time.settle_s)
    return city


def run(city: City, die: tuple[float, float] | None = None) -> Outcome:
    """Let a settled city's frames pass. ``die``: when which share of the nodes dies for good."""
    city.begin()
    if die is not None:
        at_s, share = die
        chosen = city.load.rng("deaths").sample(city.nodes, int(share * len(city.nodes)))
        for node in chosen:
            city.world.after(at_s, node.host.crash)
    city.world.run(city.load.scenario.time.duration_s + city.given.drain_s)
    return city.end()
