"""What a city does to its fleet: who stands where, when frames come, what each will take.

Owns everything that is drawn; never decides anything. Invariant: each purpose draws from a random
stream of its own, so that two runs of one seed get the same frames, noise, bursts and throttling
whatever is decided in them.
"""

import random
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log
from typing import TypeVar

from simnet.city.scenario import CityScenario, Profile, Trace, traces
from simnet.scenario import Scenario

Key = TypeVar("Key")


@dataclass(slots=True)
class Site:
    """A machine as it stands there."""

    zone: int
    profile: Profile
    speed: float
    """Factor on all its service times."""


@dataclass(slots=True)
class Camera:
    """A camera; ``home`` is the index of the node that it is configured at."""

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
    """From the beginning of the city."""
    camera: int
    number: int
    noise: float
    """Factor on its service time."""
    ways: tuple[float, float]
    """Factors on the network's time, there and, should it be passed on, from there."""


class Load:
    """Everything that a seed throws at a fleet."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        """Draw it. ValueError for a scenario without a city."""
        if scenario.city is None:
            raise ValueError(f"{scenario.name} is no city")
        self.scenario = scenario
        self.city: CityScenario = scenario.city
        self.seed = seed
        self.sites = self._sites()
        self.cameras = self._cameras()
        self._bursts = [self._burst(zone) for zone in range(scenario.zones)]
        self.arrivals = self._arrivals()

    def rng(self, purpose: str) -> random.Random:
        """Return a stream of random numbers of its own."""
        return random.Random(f"{self.seed} {purpose}")

    def way_ms(self, one: int, other: int) -> float:
        """Return the median time of an image from one node to another."""
        if one == other:
            return 0.0
        near = self.sites[one].zone == self.sites[other].zone
        return self.city.ways.zone_ms if near else self.city.ways.fleet_ms

    def throttling(self) -> list[list[float]]:
        """Return the factor on each node's service times, by step and node."""
        given, rng = self.city.throttle, self.rng("throttle")
        now = [1.0] * len(self.sites)
        steps = []
        total_s = self.scenario.time.duration_s + self.city.drain_s
        for _ in range(int(total_s / given.every_s) + 1):
            for index, factor in enumerate(now):
                shock = given.shock * rng.gauss(0.0, 1.0) * (rng.random() < given.chance)
                fresh = 1.0 + given.keep * (factor - 1.0) + shock
                now[index] = min(given.most, max(given.least, fresh))
            steps.append(list(now))
        return steps

    def _sites(self) -> list[Site]:
        nodes, rng = self.scenario.nodes, self.rng("sites")
        profiles: list[Profile] = []
        for profile in self.city.profile[:-1]:
            profiles += [profile] * max(1, round(profile.share * nodes))
        profiles += [self.city.profile[-1]] * (nodes - len(profiles))
        rng.shuffle(profiles)
        return [
            Site(
                index % self.scenario.zones,
                profile,
                exp(self.city.speed_spread * rng.gauss(0.0, 1.0)),
            )
            for index, profile in enumerate(profiles[:nodes])
        ]

    def _cameras(self) -> list[Camera]:
        given, tiers = self.city.cameras, self.city.tier
        rng, clips = self.rng("cameras"), self.rng("clips")
        clip_of = _portions(given.clips, given.count)
        clips.shuffle(clip_of)
        tier_of = _portions({number: one.share for number, one in enumerate(tiers, 1)}, given.count)
        rng.shuffle(tier_of)
        kinds, weights = list(given.mix), list(given.mix.values())
        return [
            Camera(
                f"camera{index:04d}",
                rng.choices(kinds, weights)[0],
                tier_of[index],
                tiers[tier_of[index] - 1].deadline_ms / 1e3,
                rng.randrange(self.scenario.nodes),
                exp(given.cost_spread * rng.gauss(0.0, 1.0)),
                traces()[clip_of[index]],
                clips.randrange(1 << 16),
            )
            for index in range(given.count)
        ]

    def _burst(self, zone: int) -> tuple[list[float], list[float]]:
        """Return when a zone's rate changes, and to what."""
        given, rng = self.city.bursts, self.rng(f"bursts {zone}")
        times, factors = [0.0], [1.0]
        at_s, busy = rng.random() * given.first_s, True
        while at_s < self.scenario.time.duration_s:
            times.append(at_s)
            factors.append(given.busy if busy else given.calm)
            at_s -= log(1.0 - rng.random()) * (given.busy_s if busy else given.calm_s)
            busy = not busy
        return times, factors

    def _arrivals(self) -> list[Arrival]:
        given, spread = self.city.cameras, self.city.ways.spread
        found: list[Arrival] = []
        for index, camera in enumerate(self.cameras):
            rng, chance = self.rng(f"arrivals {index}"), self.rng(f"frames {index}")
            times, factors = self._bursts[camera.home % len(self._bursts)]
            at_s, number = rng.random() / given.rate_hz, 0
            while at_s < self.scenario.time.duration_s:
                gauss = chance.gauss
                noise = exp(given.noise * gauss(0.0, 1.0))
                ways = exp(spread * gauss(0.0, 1.0)), exp(spread * gauss(0.0, 1.0))
                found.append(Arrival(at_s, index, number, noise, ways))
                rate_hz = given.rate_hz * factors[bisect_right(times, at_s) - 1]
                at_s += (1.0 + given.jitter * (2.0 * rng.random() - 1.0)) / rate_hz
                number += 1
        found.sort(key=lambda one: (one.at_s, one.camera))
        return found


def _portions(shares: Mapping[Key, float], count: int) -> list[Key]:
    """Return ``count`` keys in proportion to their shares, the rounding's rest to the last."""
    found: list[Key] = []
    total = 0.0
    for key, share in shares.items():
        total += share
        found += [key] * (round(total * count) - len(found))
    return found
