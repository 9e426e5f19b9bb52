"""Nodes that write, delete, retire each other and come back, under any order of delivery."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from crdt import Dot, Instant
from crdt.codec import encode_value
from crdt.entries import RegisterEntry, RemoveEntry
from crdt.ranges import RangeTree, child_scopes, in_scope
from crdt.retirement import PREFIX
from crdt.store import SWEEP_S
from tests.crdt.replicas import Replica, exchange, later, reads

COUNT = 4
whom = st.integers(0, COUNT - 1)
names = st.sampled_from(["k1", "k2", "k3"])
elements = st.integers(0, 3)
Shown = tuple[str, int | Dot]


class Forgetting(RuleBasedStateMachine):
    """The last of four may be away, be retired meanwhile, and come back in several ways.

    The model knows what was dead when the whole fleet, as far as it is not forgotten, was at one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.replicas = [Replica(seed) for seed in range(1, COUNT + 1)]
        for replica in self.replicas:
            replica.meet(self.replicas)
        self.air: list[bytes] = []
        self.seconds = 0.0
        self.away = self.retired = False
        self.written: dict[str, list[int]] = {}  # the values of each key so far; all differ
        self.dead_values: dict[str, set[int]] = {}
        self.dead_elements: set[tuple[str, int]] = set()
        # What each replica has shown, and does no more.
        self.shown: list[set[Shown]] = [set() for _ in range(COUNT)]
        self.outlived: list[set[Shown]] = [set() for _ in range(COUNT)]

    @property
    def now(self) -> Instant:
        return later(self.seconds)

    @property
    def present(self) -> list[Replica]:
        return self.replicas[: COUNT - self.away]

    def flush(self, replica: Replica) -> None:
        self.air += [batch.raw for batch in replica.flush(self.now)]

    @rule(who=whom, key=names, skew_ms=st.sampled_from([0, 0, -4000, 4000]))
    def sets(self, who: int, key: str, skew_ms: int) -> None:
        value = sum(map(len, self.written.values()))
        self.written.setdefault(key, []).append(value)
        now = self.now._replace(wall_ms=self.now.wall_ms + skew_ms)
        self.replicas[who].store.set_fleet(key, value, now)
        self.flush(self.replicas[who])

    @rule(who=whom, key=names)
    def deletes(self, who: int, key: str) -> None:
        self.replicas[who].store.set_fleet(key, None, self.now)
        self.flush(self.replicas[who])

    @rule(who=whom, key=names, element=elements)
    def adds(self, who: int, key: str, element: int) -> None:
        self.dead_elements.discard((key, element))
        self.replicas[who].store.add(key, element)
        self.flush(self.replicas[who])

    @rule(who=whom, key=names, element=elements)
    def removes(self, who: int, key: str, element: int) -> None:
        self.replicas[who].store.remove(key, element)
        self.flush(self.replicas[who])

    @rule(who=whom, value=st.integers(0, 9))
    def says_of_itself(self, who: int, value: int) -> None:
        self.replicas[who].store.set_owner("node", value)
        self.flush(self.replicas[who])

    @rule(data=st.data(), who=whom)
    def hears(self, data: Any, who: int) -> None:
        if self.air and self.replicas[who] in self.present:
            heard = data.draw(st.lists(st.sampled_from(self.air), max_size=6))
            self.replicas[who].take(heard, self.now)

    @rule(who=whom, other=whom, about=whom)
    def hears_all_of_one(self, who: int, other: int, about: int) -> None:
        if self.replicas[who] in self.present and self.replicas[other] in self.present:
            raws = self.replicas[other].store.live_batches(self.replicas[about].id)
            self.replicas[who].take(raws, self.now)

    @rule(who=whom)
    def sweeps(self, who: int) -> None:
        if self.replicas[who].store.sweep(self.now):
            self.flush(self.replicas[who])

    @rule()
    def exchanges(self) -> None:
        exchange(self.present, self.now)

    @rule(seconds=st.sampled_from([1.0, SWEEP_S]))
    def waits(self, seconds: float) -> None:
        self.seconds += seconds

    @precondition(lambda self: self.retired or not self.away)
    @rule()
    def settles(self) -> None:
        for _ in range(2):
            exchange(self.present, self.now)
        assert len({replica.store.fingerprint() for replica in self.present}) == 1
        for replica in self.present:
            assert replica.store.complete
            replica.store.settled(replica.store.generation)
        store = self.present[0].store
        if store.hidden:
            return
        for key, values in self.written.items():
            shown = store.fleet(key, self.now)
            self.dead_values[key] = {value for value in values if value != shown}
        for key in ("k1", "k2", "k3"):
            for element in range(4):
                if element not in store.elements(key):
                    self.dead_elements.add((key, element))

    @precondition(lambda self: not self.away)
    @rule()
    def leaves(self) -> None:
        self.away = True

    @precondition(lambda self: self.away)
    @rule(who=st.integers(0, COUNT - 2))
    def is_retired(self, who: int) -> None:
        exchange(self.present, self.now)
        exchange(self.present, self.now)
        before = shared(self.replicas[who], self.now)
        self.replicas[who].store.retire(self.replicas[-1].id, self.now)
        self.flush(self.replicas[who])
        exchange(self.present, self.now)
        for replica in self.present:
            assert shared(replica, self.now) == before
        store = self.replicas[who].store
        self.retired = store.retired(self.replicas[-1].id) > 0
        assert self.replicas[-1].id not in store.knowledge() or not self.retired

    @precondition(lambda self: self.away)
    @rule(value=st.integers(10, 19))
    def restarts_alone(self, value: int) -> None:
        """It says anew whatever it has said, under another epoch."""
        self.replicas[-1] = self.replicas[-1].restarted(self.now)
        self.replicas[-1].meet(self.replicas)
        self.shown[-1], self.outlived[-1] = set(), set()
        self.replicas[-1].store.set_owner("node", value)
        self.flush(self.replicas[-1])

    @precondition(lambda self: self.away)
    @rule(restarted=st.booleans(), kept=st.integers(0, 5))
    def comes_back(self, restarted: bool, kept: int) -> None:
        if restarted:
            old = self.replicas[-1]
            journal = old.journal if kept else []
            self.replicas[-1] = old.restarted(self.now, journal)
            self.replicas[-1].meet(self.replicas)
        self.away = self.retired = False
        self.shown[-1], self.outlived[-1] = set(), set()
        # It hears the others out before it says anything new, as a starting node does.
        self.replicas[-1].take([raw for one in self.replicas[:-1] for raw in held(one)], self.now)
        for _ in range(2):
            exchange(self.replicas, self.now)
        self.flush(self.replicas[-1])
        for _ in range(2):
            exchange(self.replicas, self.now)

    @invariant()
    def nothing_dead_is_shown(self) -> None:
        for replica in self.present:
            for key, value in replica.store.fleet_items("k", self.now):
                assert value not in self.dead_values.get(key, ())
            for key, element in sorted(self.dead_elements):
                assert element not in replica.store.elements(key)

    @invariant()
    def nothing_outlived_is_shown_again(self) -> None:
        for index, replica in enumerate(self.replicas):
            now = shown_by(replica, self.now)
            self.outlived[index] |= self.shown[index] - now
            self.shown[index] = now
            assert not now & self.outlived[index]

    @invariant()
    def the_tree_sums_the_logs(self) -> None:
        store = self.replicas[0].store
        again = RangeTree()
        for origin, log in store._logs.items():
            again.change(origin, log.digest, count=1)
        assert again._nodes == store.tree._nodes
        for scope in child_scopes(1):
            members = [origin for origin in store.knowledge() if in_scope(origin, scope)]
            assert store.tree.count(scope) == len(members)

    def teardown(self) -> None:
        if self.away:
            self.comes_back(restarted=False, kept=0)
        self.seconds += 100
        for _ in range(12):
            exchange(self.replicas, self.now)
            for replica in self.replicas:
                replica.store.settled(replica.store.generation)
                if replica.store.sweep(self.now):
                    self.flush(replica)
            exchange(self.replicas, self.now)
            self.seconds += SWEEP_S
        first = self.replicas[0].store
        for replica in self.replicas:
            store = replica.store
            assert store.complete
            assert store.fingerprint() == first.fingerprint()
            assert store.knowledge() == first.knowledge()
            assert reads(store, self.now) == reads(first, self.now)
            for entry in store._writer.current.values():  # and nothing deleted is kept
                assert not isinstance(entry, RemoveEntry)
                assert not isinstance(entry, RegisterEntry) or entry.value is not None


def shared(replica: Replica, now: Instant) -> list[Any]:
    """All that is read of the fleet's registers and sets, but for who was retired."""
    found = reads(replica.store, now)
    fleet: Any = found["fleet"]
    return [found["sets"], [item for item in fleet if not item[0].startswith(PREFIX)]]


def shown_by(replica: Replica, now: Instant) -> set[Shown]:
    """The values of registers (no two are the same) and the dots of elements."""
    store = replica.store
    found: set[Shown] = {(key, value) for key, value in store.fleet_items("k", now)}  # type: ignore[misc]
    for key in store.set_keys():
        for element in store.elements(key):
            dots = store._state.set_at(key).visible(encode_value(element))
            found |= {(key, dot) for dot in dots}
    return found


def held(replica: Replica) -> list[bytes]:
    store = replica.store
    return [raw for origin in store.knowledge() for raw in store.live_batches(origin)]


Forgetting.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)


class TestForgetting(Forgetting.TestCase):  # type: ignore[misc,valid-type]
    pass
