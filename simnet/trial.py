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

from crdt.log import Batch
from gossip.events import Event, StateChanged
from simnet import faults, plants
from simnet.checkers import Broken, Checkers, Sample, waiting_bytes
from simnet.city.city import City
from simnet.city.load import Load as CityLoad
from simnet.faults import Step
from simnet.host import Host
from simnet.ledger import Reading, Version
from simnet.link import Name
from simnet.outcome import Episode, Load, Outcome, Sight, Violation, by_kind
from simnet.poison import poison
from simnet.scenario import Scenario
from simnet.workload import PREFIX, Write, number_of, value, workload
from simnet.world import World

SAMPLE_S = 1.0
SEEDS = 3
"""How many nodes everybody else calls."""
_FLOOD_S = 0.05
_NONSENSE = 11  # values, one after the other
_COLLECT = 100_000, 20, 50
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
        self._steps = scenario.plan(seed)
        self._begun_s = self.world.now_s + scenario.time.settle_s
        self._sights: list[Sight] = []
        self._episodes: dict[int, Episode] = {}
        self._counts: Counter[str] = Counter()
        self._sent: Counter[Name] = Counter()  # bytes of the runs that have ended
        self._datagrams: Counter[Name] = Counter()
        self._numbers: dict[tuple[bytes, str], int] = {}
        self._down: dict[Name, set[int]] = {}  # what keeps a node down
        self._disks: dict[Name, str] = {}
        self._floods: set[tuple[int, Name]] = set()
        self._pauses: dict[Name, set[int]] = {}
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
        absent = faults.absent(self._steps)
        if scenario.start == "warm":
            hosts = world.warm_fleet(scenario.nodes)
        else:
            hosts = [world.add(name) for name in faults.names_of(scenario.nodes)]
        if scenario.city is not None:
            self._city = City(world, hosts, CityLoad(scenario, self.seed), watch=self.checkers)
        for index, host in enumerate(hosts):
            seeds = [one for one in hosts[: SEEDS + 1] if one is not host][:SEEDS]
            host.seeds = [one.address for one in seeds]
            if host.node is None and host.name not in absent:
                world.at(world.now_s + index * 1e-4, host.start)
        for name in absent:
            self._down[name] = {0}
        world.after(SAMPLE_S, self._sample)
        for step in self._steps:
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
        running = [host for host in world.hosts.values() if host.node is not None]
        self.checkers.agreed(self.now_s, {host.name: self._reading(host) for host in running})

    def _settled(self) -> bool:
        world = self.world
        return (
            world.converged()
            and world.all_live()
            and all(
                host.store.complete and not host.store.staged
                for host in world.hosts.values()
                if host.node is not None
            )
        )

    def _disagreement(self) -> str:
        running = [host for host in self.world.hosts.values() if host.node is not None]
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

    # ------------------------------------------------------------- faults

    def _step(self, step: Step) -> None:
        self.checkers.stepped(self.now_s, step)
        if step.begins:
            what = str(step).removeprefix(f"{step.fault.kind} begins: ")
            kind, count = step.fault.kind, len(step.names)
            self._episodes[step.number] = Episode(step.at_s, -1.0, kind, count, what)
        elif step.number in self._episodes:
            episode = self._episodes[step.number]
            self._episodes[step.number] = episode._replace(end_s=step.at_s)
        getattr(self, f"_{step.fault.kind}")(step, step.fault)

    def _each(self, step: Step) -> list[Host]:
        return [self.world.hosts[name] for name in step.names]

    def _keep_down(self, step: Step, disk: str | None) -> None:
        """Have nodes down while any fault wants them so; ``disk`` None: they say goodbye."""
        for host in self._each(step):
            reasons = self._down.setdefault(host.name, set())
            if step.begins:
                reasons.add(step.number)
                if host.node is not None:
                    self._disks[host.name] = disk or "whole"
                    host.crash(disk) if disk else host.leave()
                    if host.node is not None:  # it stands still and cannot say anything
                        host.crash("whole")
            else:
                reasons.discard(step.number)
                if not reasons and host.node is None:
                    host.start()

    def _crash(self, step: Step, fault: faults.Crash) -> None:
        self._keep_down(step, fault.disk)

    def _leave(self, step: Step, fault: faults.Leave) -> None:
        self._keep_down(step, None)

    def _join(self, step: Step, fault: faults.Join) -> None:
        for host in self._each(step):
            self._down[host.name].discard(0)
            if not self._down[host.name] and host.node is None:
                host.start()

    def _upgrade(self, step: Step, fault: faults.Upgrade) -> None:
        for host in self._each(step):
            host.versions = fault.lowest, fault.highest
            if host.node is not None:
                self._disks[host.name] = "whole"
                host.leave()
                self.world.after(0.5, self._boot, host)

    def _boot(self, host: Host) -> None:
        if host.node is None and not self._down.get(host.name):
            host.start()

    def _pause(self, step: Step, fault: faults.Pause) -> None:
        for host in self._each(step):
            reasons = self._pauses.setdefault(host.name, set())
            if step.begins:
                reasons.add(step.number)
                host.pause()
            else:
                reasons.discard(step.number)
                if not reasons:
                    host.resume()

    def _slow(self, step: Step, fault: faults.Slow) -> None:
        for host in self._each(step):
            host.slow_s += fault.each_s if step.begins else -fault.each_s
            host.slow_s = max(0.0, round(host.slow_s, 9))

    def _clock(self, step: Step, fault: faults.Clock) -> None:
        for host in self._each(step):
            sign = 1 if step.begins else -1
            host.skew_ms += sign * int(fault.offset_s * 1000)
            if fault.drift_ppm:
                host.drift(1.0 + fault.drift_ppm / 1e6 if step.begins else 1.0)

    def _full(self, step: Step, fault: faults.Full) -> None:
        for host in self._each(step):
            host.disk.full = step.begins

    def _silence(self, step: Step, fault: faults.Silence) -> None:
        network = self.world.network
        network.silence(step.names, step.number) if step.begins else network.lift(step.number)

    def _cut(self, step: Step, fault: faults.Cut) -> None:
        network = self.world.network
        if step.begins:
            network.cut(step.names, step.others[0], step.number)
        else:
            network.lift(step.number)

    def _partition(self, step: Step, fault: faults.Partition) -> None:
        network = self.world.network
        if step.begins:
            network.partition(*step.others, key=step.number)
        else:
            network.lift(step.number)

    def _link(self, step: Step, fault: faults.Link) -> None:
        network = self.world.network
        if step.begins:
            network.worsen(step.names, fault.conditions, step.number)
        else:
            network.lift(step.number)

    def _poison(self, step: Step, fault: faults.Poison) -> None:
        for host in self._each(step):
            if host.node is not None and step.begins:
                for number in range(_NONSENSE):
                    poison(host.store, host.now(), number)
                    host.commit()

    def _flood(self, step: Step, fault: faults.Flood) -> None:
        for name in step.names:
            if step.begins:
                self._floods.add((step.number, name))
                self._flood_on(step.number, name, fault.per_s, 0)
            else:
                self._floods.discard((step.number, name))

    def _flood_on(self, number: int, name: Name, per_s: float, round_: int) -> None:
        if (number, name) not in self._floods:
            return
        host = self.world.hosts[name]
        if host.node is not None and not host.paused:
            for index in range(max(1, round(per_s * _FLOOD_S))):
                count = round_ * 1000 + index + 1
                host.store.set_owner(f"{PREFIX}flood/{index % 20}", value(count))
            host.commit()
        self.world.after(_FLOOD_S, self._flood_on, number, name, per_s, round_ + 1)

    # ------------------------------------------------------------- writes

    def _write(self, write: Write) -> None:
        host = self.world.hosts[write.name]
        if host.node is None or host.paused:
            return
        store, key, number = host.store, write.key, write.number
        if write.kind == "owner":
            store.set_owner(key, value(number))
        elif write.kind == "fleet":
            store.set_fleet(key, value(number), host.now())
        elif write.kind == "add":
            store.add(key, number)
        elif number in store.elements(key):
            self.checkers.removing(self.now_s, host.name, key, number)
            store.remove(key, number)
        host.commit()

    # ------------------------------------------------------------- what the machines tell

    def started(self, host: Host) -> None:
        """Tell the checkers of a start."""
        restored = [raw for _, raw in sorted(host.disk.saved.batches.items())]
        self.checkers.started(self.now_s, host.name, host.node_id, restored)
        if self._city is not None:
            self._city.started(host)

    def stopped(self, host: Host) -> None:
        """Tell the checkers of an end."""
        self._keep_counts(host)
        forgetful = self._disks.get(host.name, "whole") in ("tail", "lost")
        self.checkers.stopped(self.now_s, host.name, forgetful=forgetful)
        if self._city is not None:
            self._city.stopped(host)

    def persisted(self, host: Host, batch: Batch) -> None:
        """Tell the checkers of a durable batch."""
        self.checkers.persisted(self.now_s, host.name, batch)
        for entry in batch.entries:
            about = batch.origin, entry.key
            number = number_of(getattr(entry, "value", None))
            if entry.key.startswith(PREFIX + "owner") and number > self._numbers.get(about, 0):
                self._numbers[about] = number
                self.checkers.wrote(self.now_s, host.name, entry.key, number)

    def told(self, host: Host, event: Event) -> None:
        """Tell the checkers of an event."""
        now_s, checkers = self.now_s, self.checkers
        if self._city is not None:
            self._city.told(host, event)
        if not isinstance(event, StateChanged):
            checkers.event(now_s, host.name, event)
            return
        for change in event.changes:
            if not change.key.startswith(PREFIX):
                continue
            if change.kind == "owner":
                number = number_of(host.store.owner(change.origin, change.key))
                checkers.read_record(now_s, host.name, change.origin, change.key, number)
            elif change.kind == "set":
                checkers.read_set(now_s, host.name, change.key, _numbers(host, change.key))

    def _holds(self, name: Name, origin: bytes, version: Version) -> bool:
        host = self.world.hosts[name]
        return host.node is not None and host.store.batch(origin, *version) is not None

    def _reading(self, host: Host) -> Reading:
        store, now = host.store, host.now()
        registers = {}
        for key, found in store.fleet_items(PREFIX, now):
            entry = store.fleet_entry(key, now)
            assert entry is not None
            registers[key] = entry[1], entry[2], number_of(found)
        return Reading(
            {
                (origin, key): number_of(found)
                for origin, key, found in store.owners(PREFIX)
                if number_of(found)
            },
            registers,
            {key: frozenset(_numbers(host, key)) for key in store.set_keys(PREFIX)},
            store.clock.horizon(now),
        )

    # ------------------------------------------------------------- figures

    def _sample(self) -> None:
        world, checkers = self.world, self.checkers
        running = [host for host in world.hosts.values() if host.node is not None]
        stride = 1 + len(running) // _SAMPLED
        for host in running[len(self._sights) % stride :: stride]:
            node = host.running
            counters = node.counters
            forked = counters.get("batches_forked", 0)
            sample = Sample(waiting_bytes(counters), forked, node.longest_queue())
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

    def _keep_counts(self, host: Host) -> None:
        """Add up what a node that ends has counted."""
        if host.node is not None:
            counters = host.node.counters
            self._counts.update(counters)
            self._sent[host.name] += counters.get("out_bytes", 0)
            self._datagrams[host.name] += counters.get("out_datagrams", 0)

    def _fault_of_ours(self, error: Exception) -> Violation:
        """Return the violation that an exception out of the product is."""
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error} ({place.filename.rsplit('/', 2)[-1]}:{place.name})"
        return self.checkers.violation("sound", self.now_s, what)

    def _outcome(self, violation: Violation | None, wall_s: float, cpu_s: float) -> Outcome:
        scenario, world = self.scenario, self.world
        for host in world.hosts.values():
            self._keep_counts(host)
        ran_s = max(SAMPLE_S, self.now_s + scenario.time.settle_s)
        return Outcome(
            scenario=scenario.name,
            seed=self.seed,
            host="world",
            nodes=scenario.nodes,
            cryptography=scenario.cryptography,
            trace_hash=world.trace_hash(),
            violation=violation,
            ran_s=ran_s,
            wall_s=wall_s,
            cpu_s=cpu_s,
            memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            emulated=self._city is not None,
            frames=self._city.frames() if self._city is not None else (),
            round_s=scenario.round_s,
            heal_s=self._heal_s,
            down_rounds=tuple(self.checkers.health.down_rounds),
            spreads=tuple(self.checkers.spreads),
            sights=tuple(self._sights),
            episodes=tuple(self._episodes.values()),
            loads={
                "sent_bytes_per_s": _load(self._sent, ran_s),
                "datagrams_per_s": _load(self._datagrams, ran_s),
            },
            bytes_by_kind=by_kind(self._counts),
            counts=dict(sorted(self._counts.items())),
            notes=(f"batches that nobody could have kept: {self.checkers.ledger.exempted}",),
        )


def _numbers(host: Host, key: str) -> list[int]:
    return [one for one in host.store.elements(key) if isinstance(one, int)]


def _load(of_node: Counter[Name], ran_s: float) -> Load:
    if not of_node:
        return Load(0.0, 0.0)
    name, most = max(of_node.items(), key=lambda item: item[1])
    return Load(sum(of_node.values()) / len(of_node) / ran_s, most / ran_s, name)
