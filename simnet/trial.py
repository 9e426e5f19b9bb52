"""One scenario in the world: from a seed to an outcome.

Owns the order of a run: settle, faults and writes, heal, last look. Decides nothing about right and
wrong: :mod:`simnet.checkers` does. Invariant: an outcome's trace hash depends on scenario and seed
alone.
"""

import gc
import resource
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from operator import call

from crdt.log import Batch
from gossip.events import Event
from gossip.node import GossipNode
from simnet import plants
from simnet.checkers import Broken, Checkers, Sample
from simnet.city.city import City
from simnet.city.load import Load as CityLoad
from simnet.faults import Step, names_of, seeds_of
from simnet.host import Host
from simnet.injection import Injector
from simnet.ledger import Version
from simnet.link import Name
from simnet.outcome import Load, Outcome, Sight, Violation
from simnet.scenario import Scenario
from simnet.workload import Write, read, told, workload
from simnet.world import World

SAMPLE_S = 1.0
_COLLECT = 1_000_000, 50, 50
_SAMPLED = 64  # nodes that are looked into each time, in turn
_LOOKERS = 16  # nodes whose view of the others is sampled for the curve

Progress = Callable[[float, float], None]
"""Told how far a run is and how far it goes, in virtual seconds."""


def run(
    scenario: Scenario, seed: int, *, plant: str = "", progress: Progress | None = None
) -> Outcome:
    """Run a scenario; a failure is an outcome too. ValueError for an impossible plan.

    Args:
        plant: a deliberate defect, of ``simnet.plants``.
        progress: called about once a virtual second.
    """
    with plants.planted(plant) if plant else nullcontext():
        return Trial(scenario, seed, progress).run()


class Trial:
    """A run under way; the world's Watch."""

    def __init__(self, scenario: Scenario, seed: int, progress: Progress | None = None) -> None:
        self.scenario, self.seed = scenario, seed
        self.world = World(
            seed,
            scenario.gossip,
            conditions=scenario.network,
            standin=scenario.cryptography == "stand-in",
        )
        self.world.watch = self
        self.checkers = Checkers(scenario, self._holds)
        self._progress = progress
        self._injector = Injector(self.world, scenario, seed)
        self._begun_s = self.world.now_s + scenario.time.settle_s
        self._sights: list[Sight] = []
        self._nodes: dict[Name, GossipNode] = {}  # that run
        self._counts: Counter[str] = Counter()  # of those that have ended, as the next two
        self._sent: Counter[Name] = Counter()
        self._datagrams: Counter[Name] = Counter()
        self._heal_s = -1.0
        self._city: City | None = None

    def run(self) -> Outcome:
        """Run it all."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        violation, thresholds = None, gc.get_threshold()
        gc.set_threshold(*_COLLECT)  # nearly all that a world makes lives as long as it does
        try:
            self._settle()
            if self._city is not None:
                self._city.begin()
            self.world.run(self.scenario.time.duration_s)
            self._heal()
        except Broken as broken:
            violation = broken.violation
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            violation = self._fault_of_ours(error)
        finally:
            gc.set_threshold(*thresholds)
            gc.unfreeze()
        return self._outcome(violation, time.perf_counter() - wall_s, time.process_time() - cpu_s)

    @property
    def now_s(self) -> float:
        """Seconds since the settling was over; negative before."""
        return self.world.now_s - self._begun_s

    # ------------------------------------------------------------- the course of it

    def _settle(self) -> None:
        scenario, world = self.scenario, self.world
        if scenario.start == "warm":
            hosts = world.warm_fleet(scenario.nodes)
        else:
            hosts = [world.add(name) for name in names_of(scenario.nodes)]
        if scenario.city is not None:
            self._city = City(world, hosts, CityLoad(scenario, self.seed), watch=self.checkers)
        for index, host in enumerate(hosts):
            seeds = seeds_of(host.name, scenario.nodes)
            host.seeds = [world.hosts[one].address for one in seeds]
            world.at(world.now_s + index * 1e-4, self._injector.start_if_wanted, host)
        world.after(SAMPLE_S, self._sample)
        for step in self._injector.plan:
            world.at(self._begun_s + step.at_s, self._step, step)
        for write in workload(scenario, self.seed):
            world.at(self._begun_s + write.at_s, self._write, write)
        world.run(scenario.time.settle_s)

    def _heal(self) -> None:
        """Wait until all agree, and look at what they read."""
        world, limit_s = self.world, self.scenario.time.heal_s
        begun_s = world.now_s
        while not self._settled():
            if world.now_s - begun_s >= limit_s:
                self.checkers.unsettled(self.now_s, self._disagreement())
            world.run(0.05)
        self._heal_s = world.now_s - begun_s
        if self._city is not None:  # what was under way has to end by itself
            world.run(max(0.0, self._city.given.drain_s - self._heal_s))
        readings = {host.name: read(host.store, host.now()) for host in self._running()}
        self.checkers.agreed(self.now_s, readings)

    def _running(self) -> list[Host]:
        return [host for host in self.world.hosts.values() if host.node is not None]

    def _settled(self) -> bool:
        world = self.world
        return (
            world.converged()
            and world.all_live()
            and all(host.store.complete and not host.store.staged for host in self._running())
        )

    def _disagreement(self) -> str:
        running = self._running()
        replicas = Counter(host.store.fingerprint() for host in running)
        common = replicas.most_common(1)[0][0]
        apart = [host.name for host in running if host.store.fingerprint() != common]
        alive = {host.node_id for host in running}
        blind = [
            f"{host.name} ({len(alive - seen)} missing, {len(seen - alive)} too many)"
            for host in running
            if (seen := host.running.alive()) != alive
        ]
        incomplete = [host.name for host in running if not host.store.complete]
        return (
            f"after {self.scenario.time.heal_s:g} s: {len(replicas)} different replicas "
            f"(apart: {', '.join(apart[:8]) or 'none'}); who does not see exactly who runs: "
            f"{', '.join(blind[:8]) or 'none'}; incomplete: {', '.join(incomplete[:8]) or 'none'}"
        )

    def _step(self, step: Step) -> None:
        self.checkers.stepped(self.now_s, step)
        self._injector.step(step)

    def _write(self, write: Write) -> None:
        host = self.world.hosts[write.name]
        if host.node is not None and not host.paused:
            removing = partial(self.checkers.removing, self.now_s, host.name)
            write.put(host.store, call, host.now(), removing)
            host.commit()

    # ------------------------------------------------------------- what the machines tell

    def started(self, host: Host) -> None:
        """Tell the checkers of a start."""
        self._nodes[host.name] = host.running
        restored = [raw for _, raw in sorted(host.disk.saved.batches.items())]
        self.checkers.started(self.now_s, host.name, host.node_id, restored)
        if self._city is not None:
            self._city.started(host)

    def stopped(self, host: Host) -> None:
        """Tell the checkers of an end."""
        self._keep_counts(host.name)
        forgetful = self._injector.stopped(host.name)
        self.checkers.stopped(self.now_s, host.name, forgetful=forgetful)
        if self._city is not None:
            self._city.stopped(host)

    def persisted(self, host: Host, batch: Batch) -> None:
        """Tell the checkers of a durable batch."""
        self.checkers.persisted(self.now_s, host.name, batch)

    def told(self, host: Host, event: Event) -> None:
        """Tell the checkers of an event."""
        if self._city is not None:
            self._city.told(host, event)
        for fact, *fields in told(host.store, event):
            getattr(self.checkers, fact)(self.now_s, host.name, *fields)

    def _holds(self, name: Name, origin: bytes, version: Version) -> bool:
        host = self.world.hosts[name]
        return host.node is not None and host.store.batch(origin, *version) is not None

    # ------------------------------------------------------------- figures

    def _sample(self) -> None:
        world, checkers = self.world, self.checkers
        running = self._running()
        stride = 1 + len(running) // _SAMPLED
        for host in running[len(self._sights) % stride :: stride]:
            node = host.running
            sample = Sample.of(node.counters, node.longest_queue())
            checkers.sampled(self.now_s, host.name, sample)
        replicas = Counter(host.store.fingerprint() for host in running)
        agreed = replicas.most_common(1)[0][1] / len(running) if running else 0.0
        alive = {host.node_id for host in running}
        lookers = running[:: max(1, len(running) // _LOOKERS)]
        seen = [len(host.running.alive() & alive) / len(alive) for host in lookers]
        mean = sum(seen) / len(seen) if seen else 0.0
        self._sights.append(Sight(self.now_s, len(running), len(replicas), agreed, mean))
        if self._progress is not None:
            time_ = self.scenario.time
            self._progress(self.now_s + time_.settle_s, time_.settle_s + time_.duration_s)
        world.after(SAMPLE_S, self._sample)

    def _keep_counts(self, name: Name) -> None:
        """Add up what a node that ends has counted."""
        counters = self._nodes.pop(name).counters
        self._counts.update(counters)
        self._sent[name] += counters.get("out_bytes", 0)
        self._datagrams[name] += counters.get("out_datagrams", 0)

    def _fault_of_ours(self, error: Exception) -> Violation:
        """Return the violation that an exception out of the product is."""
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error} ({place.filename.rsplit('/', 2)[-1]}:{place.name})"
        return self.checkers.violation("sound", self.now_s, what)

    def _outcome(self, violation: Violation | None, wall_s: float, cpu_s: float) -> Outcome:
        for name in list(self._nodes):
            self._keep_counts(name)
        scenario = self.scenario
        ran_s = max(SAMPLE_S, self.now_s + scenario.time.settle_s)
        judged = self.checkers.outcome(
            self.seed, "world", scenario.cryptography, violation, self._counts
        )
        return replace(
            judged,
            trace_hash=self.world.trace_hash(),
            ran_s=ran_s,
            wall_s=wall_s,
            cpu_s=cpu_s,
            memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            emulated=self._city is not None,
            frames=self._city.frames() if self._city is not None else (),
            heal_s=self._heal_s,
            sights=tuple(self._sights),
            loads={
                "sent_bytes_per_s": Load.over(self._sent, ran_s),
                "datagrams_per_s": Load.over(self._datagrams, ran_s),
            },
        )
