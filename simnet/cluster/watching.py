"""What the nodes of a cluster told, on its way to the checkers and into the report.

Owns the newest of what each node said, and the curve of the run. Decides nothing about right and
wrong: :mod:`simnet.checkers` does. Invariant: facts come to the checkers in the order in which they
were told, with their own times.
"""

from collections import Counter, defaultdict
from math import inf
from typing import NamedTuple

from crdt.codec import decode_batch
from simnet.checkers import Checkers, Sample
from simnet.cluster.processes import Fact
from simnet.link import Name
from simnet.outcome import Load, Sight
from simnet.workload import Reading

_JUDGED = ("event", "read_record", "read_set", "removing")
"""Facts that are for the checkers alone."""


class View(NamedTuple):
    """What a node last said that it holds and sees."""

    fingerprint: bytes
    members: bytes
    """Digest of the live members."""
    live: int
    whole: bool
    """Nothing that it knows of is missing, and nothing waits to be written."""


class Watching:
    """Everything that was told in one run."""

    def __init__(self, checkers: Checkers, zero_s: float) -> None:
        """Begin; ``zero_s`` is the run's zero (monotonic)."""
        self.checkers = checkers
        self.views: dict[Name, View] = {}
        """Of the nodes that are up."""
        self.readings: dict[Name, Reading] = {}
        self.sights: list[Sight] = []
        self._zero_s = zero_s
        self._viewed_s: dict[Name, float] = {}
        self._looks = defaultdict[Name, Reading](lambda: Reading({}, {}, {}, 0))
        self._restored: dict[Name, list[bytes]] = {}
        self._running: set[Name] = set()
        self._counters: dict[Name, dict[str, int]] = {}  # of each node's present run
        self._former: dict[Name, Counter[str]] = {}

    def take(self, fact: Fact) -> None:
        """Take a fact. Raises Broken."""
        if fact.kind in _JUDGED:
            handler = getattr(self.checkers, fact.kind)
        else:
            handler = getattr(self, f"_{fact.kind}", None)
        if handler is not None:
            handler(fact.mono_s - self._zero_s, fact.name, *fact.fields)

    def agreed(self, since_s: float = -inf) -> bool:
        """Tell whether all who run have said since then that they hold and see the same."""
        views = set(self.views.values())
        if len(views) != 1 or len(self.views) != len(self._running):
            return False
        if min(self._viewed_s.values()) < since_s:
            return False
        view = views.pop()
        return view.whole and view.live == len(self._running)

    def apart(self) -> list[Name]:
        """Return who does not hold, or see, what most do."""
        common = Counter(self.views.values()).most_common(1)
        return [
            name for name in self._running if not common or self.views.get(name) != common[0][0]
        ]

    def sight(self, at_s: float) -> Sight:
        """Return the fleet as it is now, and keep it for the curve."""
        count = max(1, len(self._running))
        replicas = Counter(view.fingerprint for view in self.views.values())
        most = replicas.most_common(1)[0][1] if replicas else 0
        seen = sum(min(view.live, count) for view in self.views.values()) / count / count
        sight = Sight(at_s, len(self._running), len(replicas), most / count, seen)
        self.sights.append(sight)
        return sight

    def counts(self) -> Counter[str]:
        """Return all counters of all nodes, added up, as far as they were told."""
        total: Counter[str] = Counter()
        for name in self._counters | self._former:
            total.update(self._counted(name))
        return total

    def load(self, counter: str, ran_s: float) -> Load:
        """Return a counter's increase per second, over the nodes."""
        return Load.over(
            {n: self._counted(n)[counter] for n in self._counters | self._former}, ran_s
        )

    def _counted(self, name: Name) -> Counter[str]:
        return self._former.get(name, Counter()) + Counter(self._counters.get(name, {}))

    # what is told

    def _restored_batch(self, at_s: float, name: Name, raw: bytes) -> None:
        self._restored.setdefault(name, []).append(raw)

    def _started(self, at_s: float, name: Name, node_id: bytes) -> None:
        self._running.add(name)
        self.checkers.started(at_s, name, node_id, self._restored.pop(name, []))

    def _stopped(self, at_s: float, name: Name, forgetful: bool) -> None:
        self._running.discard(name)
        self.views.pop(name, None)
        self._viewed_s.pop(name, None)
        self._restored.pop(name, None)
        self._former[name] = self._counted(name)
        self._counters.pop(name, None)
        self.checkers.stopped(at_s, name, forgetful=forgetful)

    def _persisted(self, at_s: float, name: Name, raw: bytes) -> None:
        self.checkers.persisted(at_s, name, decode_batch(raw))

    def _sample(
        self,
        at_s: float,
        name: Name,
        fingerprint: bytes,
        members: bytes,
        live: int,
        whole: bool,
        queued: int,
        counters: dict[str, int],
    ) -> None:
        self.views[name], self._viewed_s[name] = View(fingerprint, members, live, whole), at_s
        self._counters[name] = counters
        self.checkers.sampled(at_s, name, Sample.of(counters, queued))

    # the last look

    def _owners(self, at_s: float, name: Name, found: list[tuple[bytes, str, int]]) -> None:
        self._looks[name].owners.update({(origin, key): number for origin, key, number in found})

    def _register(
        self, at_s: float, name: Name, key: str, stamp: int, origin: bytes, number: int
    ) -> None:
        self._looks[name].registers[key] = stamp, origin, number

    def _elements(self, at_s: float, name: Name, key: str, numbers: list[int]) -> None:
        self._looks[name].elements[key] = frozenset(numbers)

    def _looked(self, at_s: float, name: Name, horizon: int, counters: dict[str, int]) -> None:
        self.readings[name] = self._looks[name]._replace(horizon=horizon)
        self._counters[name] = counters
