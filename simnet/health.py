"""Who has a right to be held alive, and how soon the dead were noticed.

Owns which faults touch which nodes; never looks into a node. Invariant: a node counts as healthy
only after nothing has touched it for as long as a suspicion from before may take to run out.
"""

from math import log10

from simnet.faults import (
    Clock,
    Cut,
    Fault,
    Flood,
    Full,
    Link,
    Partition,
    Poison,
    Slow,
    Step,
    names_of,
)
from simnet.lasting import Lasting
from simnet.link import Conditions, Name
from simnet.scenario import Scenario

_LOSS = 0.35
_DELAY_S = 0.1
_BYTES_PER_S = 50_000
_SLOW_S = 0.01
_REFUTED_INTERVALS = 6  # within which one that is reachable again has refuted


class Health:
    """The truth about the nodes' health, from the faults that are carried out."""

    def __init__(self, scenario: Scenario) -> None:
        gossip = scenario.gossip
        longest = gossip.suspicion_intervals * max(1.0, log10(scenario.nodes))
        longest *= gossip.suspicion_factor
        self.grace_s = (longest + _REFUTED_INTERVALS) * gossip.probe_interval_s
        self.hopeless = _hampers(scenario.network)
        """Whether the network is so bad that nobody counts as healthy."""
        self.down_rounds: list[float] = []
        """Probe intervals until all had noticed, one per crash that all could notice."""
        self._interval_s = gossip.probe_interval_s
        names = names_of(scenario.nodes)
        self._touched = {name: Lasting() for name in names}
        self._unsure = {name: Lasting() for name in names}
        self._well_s: dict[Name, float] = {}
        self._running: dict[Name, bytes] = {}
        self._names: dict[bytes, Name] = {}
        self._unnoticed: dict[Name, tuple[float, set[Name]]] = {}

    @property
    def running(self) -> dict[Name, bytes]:
        """The nodes that run, and their ids."""
        return self._running

    def name_of(self, node_id: bytes) -> Name:
        """Return what a node is called, or the beginning of its id."""
        return self._names.get(node_id) or node_id.hex()[:8]

    def healthy(self, name: Name, at_s: float) -> bool:
        """Tell whether a node runs, and nothing has touched it for long."""
        if self.hopeless or name not in self._running or self._touched.get(name):
            return False
        return at_s - self._well_s.get(name, at_s) >= self.grace_s

    def reachable(self, name: Name) -> bool:
        """Tell whether a node runs and no fault touches it now."""
        return name in self._running and not self._touched.get(name)

    def stepped(self, at_s: float, step: Step) -> None:
        """Take note of a fault's beginning or end."""
        if isinstance(step.fault, Slow):  # may err about others; others may not about it
            for name in step.names:
                self._unsure[name].step(step)
        if not _touches(step.fault):
            return
        touched = list(step.names)
        if isinstance(step.fault, Cut | Partition):
            touched += [name for side in step.others for name in side]
        for name in touched:
            self._touched[name].step(step)
            self._well_s[name] = at_s

    def started(self, at_s: float, name: Name, node_id: bytes) -> None:
        """Take note of a node that has come up."""
        self._running[name], self._names[node_id] = node_id, name
        self._well_s[name] = at_s
        self._unnoticed.pop(name, None)

    def stopped(self, at_s: float, name: Name) -> None:
        """Take note of a node that is gone."""
        self._running.pop(name, None)
        others = {one for one in self._running if self.reachable(one)}
        if others and all(self.healthy(one, at_s) for one in others):
            self._unnoticed[name] = at_s, others
        for gone, (begun_s, waiting) in list(self._unnoticed.items()):
            waiting.discard(name)
            self._settle(gone, begun_s, at_s)

    def noticed(self, at_s: float, observer: Name, node_id: bytes) -> bool:
        """Take note that one node holds another for dead; tell whether that is false."""
        name = self.name_of(node_id)
        if name in self._unnoticed:
            begun_s, waiting = self._unnoticed[name]
            waiting.discard(observer)
            self._settle(name, begun_s, at_s)
        sure = self.healthy(observer, at_s) and not self._unsure[observer]
        return sure and self.healthy(name, at_s)

    def _settle(self, name: Name, begun_s: float, at_s: float) -> None:
        if name in self._unnoticed and not self._unnoticed[name][1]:
            del self._unnoticed[name]
            self.down_rounds.append((at_s - begun_s) / self._interval_s)


def _touches(fault: Fault) -> bool:
    """Tell whether a fault excuses that a node is held for dead."""
    if isinstance(fault, Link):
        return _hampers(fault)
    if isinstance(fault, Slow):
        return fault.each_s > _SLOW_S
    if isinstance(fault, Clock):
        return abs(fault.drift_ppm) > 20_000
    return not isinstance(fault, Full | Flood | Poison)


def _hampers(met: Conditions) -> bool:
    return (
        met.loss + met.corrupt >= _LOSS
        or met.delay_s + met.jitter_s > _DELAY_S
        or 0 < met.bytes_per_s < _BYTES_PER_S
    )
