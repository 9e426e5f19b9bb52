"""What a city does to its fleet: who stands where, when frames come, what each will take.

Owns everything that is drawn; never decides anything. Invariant: each purpose draws from a random
stream of its own, so that two runs of one seed get the same frames, noise, bursts and throttling
whatever is decided in them.
"""

import random
from bisect import bisect_right
from dataclasses import dataclass
from math import exp, log
from typing import Any

from simnet.city_scenario import Profile, Scenario, Trace
from simnet.epidemic import hops


@dataclass(slots=True)
class Site:
    """A machine as it stands there."""

    node: bytes
    zone: int
    profile: Profile
    speed: float
    """Factor on all its service times."""


@dataclass(slots=True)
class Camera:
    """A camera; ``home`` is the index of the node that it is attached to."""

    name: str
    kind: str
    tier: int
    deadline_s: float
    home: int
    cost: float
    """Factor on its service times."""
    trace: Trace
    offset: int
    """Where in the trace it begins."""


@dataclass(slots=True)
class Arrival:
    """One frame: when it comes, and what chance does to it wherever it goes."""

    at_s: float
    camera: int
    number: int
    noise: float
    """Factor on its service time."""
    ways: tuple[float, float]
    """Factors on the network's time, there and, should it be passed on, from there."""


class Load:
    """Everything that a seed throws at a fleet."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.seed = seed
        self.sites = self._sites()
        self.cameras = self._cameras()
        fleet = scenario.fleet
        self.hops = hops(fleet.nodes, scenario.gossip.fan_out, self.rng("gossip"))
        self._bursts = [self._burst(zone) for zone in range(fleet.zones)]
        self.arrivals = self._arrivals()

    def rng(self, purpose: str) -> random.Random:
        """Return a stream of random numbers of its own."""
        return random.Random(f"{self.seed} {purpose}")

    def throttling(self) -> list[list[float]]:
        """Return the factor on each node's service times, by step and node."""
        given, rng = self.scenario.throttle, self.rng("throttle")
        now = [1.0] * len(self.sites)
        steps = []
        total_s = self.scenario.time.duration_s + self.scenario.time.drain_s
        for _ in range(int(total_s / given.every_s) + 1):
            for index, factor in enumerate(now):
                shock = given.shock * rng.gauss(0.0, 1.0) * (rng.random() < given.chance)
                fresh = 1.0 + given.keep * (factor - 1.0) + shock
                now[index] = min(given.most, max(given.least, fresh))
            steps.append(list(now))
        return steps

    def _sites(self) -> list[Site]:
        fleet, rng = self.scenario.fleet, self.rng("sites")
        profiles: list[Profile] = []
        for profile in self.scenario.profiles[:-1]:
            profiles += [profile] * max(1, round(profile.share * fleet.nodes))
        profiles += [self.scenario.profiles[-1]] * (fleet.nodes - len(profiles))
        rng.shuffle(profiles)
        return [
            Site(
                b"n%04d" % index,
                index % fleet.zones,
                profile,
                exp(fleet.speed_spread * rng.gauss(0.0, 1.0)),
            )
            for index, profile in enumerate(profiles)
        ]

    def _cameras(self) -> list[Camera]:
        given, reuse, tiers = self.scenario.cameras, self.scenario.reuse, self.scenario.tiers
        count, nodes = given.count, self.scenario.fleet.nodes
        rng, clips = self.rng("cameras"), self.rng("clips")
        traces = _portions(dict(reuse.mix), count)
        clips.shuffle(traces)
        tier_of = _portions({1: tiers[0].share, 2: tiers[1].share, 3: tiers[2].share}, count)
        rng.shuffle(tier_of)
        kinds, weights = list(given.mix), list(given.mix.values())
        return [
            Camera(
                f"camera{index:04d}",
                rng.choices(kinds, weights)[0],
                tier_of[index],
                tiers[tier_of[index] - 1].deadline_ms / 1e3,
                rng.randrange(nodes),
                exp(given.cost_spread * rng.gauss(0.0, 1.0)),
                self.scenario.traces[traces[index]],
                clips.randrange(1 << 16),
            )
            for index in range(count)
        ]

    def _burst(self, zone: int) -> tuple[list[float], list[float]]:
        """Return when a zone's rate changes, and to what."""
        given, rng = self.scenario.bursts, self.rng(f"bursts {zone}")
        times, factors = [0.0], [1.0]
        at_s, busy = rng.random() * given.first_s, True
        while at_s < self.scenario.time.duration_s:
            times.append(at_s)
            factors.append(given.busy if busy else given.calm)
            at_s -= log(1.0 - rng.random()) * (given.busy_s if busy else given.calm_s)
            busy = not busy
        return times, factors

    def _arrivals(self) -> list[Arrival]:
        given, network = self.scenario.cameras, self.scenario.network
        found: list[Arrival] = []
        for index, camera in enumerate(self.cameras):
            rng, chance = self.rng(f"arrivals {index}"), self.rng(f"frames {index}")
            times, factors = self._bursts[camera.home % len(self._bursts)]
            at_s, number = rng.random() / given.rate_hz, 0
            while at_s < self.scenario.time.duration_s:
                gauss = chance.gauss
                noise = exp(given.noise * gauss(0.0, 1.0))
                ways = exp(network.spread * gauss(0.0, 1.0)), exp(network.spread * gauss(0.0, 1.0))
                found.append(Arrival(at_s, index, number, noise, ways))
                rate_hz = given.rate_hz * factors[bisect_right(times, at_s) - 1]
                at_s += (1.0 + given.jitter * (2.0 * rng.random() - 1.0)) / rate_hz
                number += 1
        found.sort(key=lambda one: (one.at_s, one.camera))
        return found


def _portions(shares: dict[Any, float], count: int) -> list[Any]:
    """Return ``count`` keys in proportion to their shares, the rounding's rest to the last."""
    found: list[Any] = []
    total = 0.0
    for key, share in shares.items():
        total += share
        found += [key] * (round(total * count) - len(found))
    return found
