"""The store as a whole: state is a function of the batches, whatever way they came."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from crdt import MAX_LIVE
from tests.crdt.replicas import NOW, Replica, exchange, later, reads, trio

keys = st.sampled_from(["k1", "k2", "k3"])
values = st.integers(0, 5) | st.just("x" * 240)
writes = st.tuples(
    st.integers(0, 2),  # who
    st.sampled_from(["set_owner", "delete_owner", "set_fleet", "delete_fleet", "add", "remove"]),
    keys,
    values,
)


def write(replica: Replica, action: str, key: str, value: Any, now: Any = NOW) -> None:
    store = replica.store
    match action:
        case "set_owner":
            store.set_owner(key, value)
        case "delete_owner":
            store.delete_owner(key)
        case "set_fleet":
            store.set_fleet(key, value, now)
        case "delete_fleet":
            store.set_fleet(key, None, now)
        case "add":
            store.add(key, value)
        case "remove":
            store.remove(key, value)


def history(script: list[tuple[int, str, str, Any]], data: Any) -> list[bytes]:
    """What three nodes publish while they partly hear of each other."""
    replicas, published = trio(), []
    for who, action, key, value in script:
        write(replicas[who], action, key, value)
        if data.draw(st.booleans()):
            published += [batch.raw for batch in replicas[who].flush()]
        if published and data.draw(st.booleans()):
            listener = replicas[data.draw(st.integers(0, 2))]
            listener.take([data.draw(st.sampled_from(published))])
    for replica in replicas:
        published += [batch.raw for batch in replica.flush()]
    return published


def reader() -> Replica:
    replica = Replica(9)
    replica.meet(trio())
    return replica


@settings(max_examples=100)
@given(script=st.lists(writes, max_size=25), data=st.data())
def test_order_duplication_and_interleaving_do_not_matter(script: Any, data: Any) -> None:
    batches = history(script, data)
    straight, shuffled = reader(), reader()
    straight.take(batches)
    again = data.draw(st.lists(st.sampled_from(batches))) if batches else []
    shuffled.take(data.draw(st.permutations(batches + again)))
    assert reads(shuffled.store) == reads(straight.store)
    assert shuffled.store.fingerprint() == straight.store.fingerprint()
    assert shuffled.store.knowledge() == straight.store.knowledge()
    assert shuffled.store.complete
    assert straight.store.complete


@settings(max_examples=40)
@given(script=st.lists(writes, max_size=20), data=st.data())
def test_replicas_with_parts_agree_once_they_exchange(script: Any, data: Any) -> None:
    batches = history(script, data)
    left, right, whole = reader(), reader(), reader()
    for batch in data.draw(st.permutations(batches)):
        data.draw(st.sampled_from((left, right))).take([batch])
    whole.take(batches)
    exchange([left, right])
    for part in (left, right):
        assert reads(part.store) == reads(whole.store)
        assert part.store.fingerprint() == whole.store.fingerprint()


@settings(max_examples=40)
@given(script=st.lists(writes, max_size=25), data=st.data())
def test_changes_tell_exactly_what_reads_differently(script: Any, data: Any) -> None:
    replica = reader()
    for batch in data.draw(st.permutations(history(script, data))):
        before = cells(replica)
        [merge] = replica.take([batch])
        after = cells(replica)
        told = {
            (change.kind, change.key, change.origin if change.kind == "owner" else b"")
            for change in merge.changes
        }
        assert told == {cell for cell in before | after if before.get(cell) != after.get(cell)}


def cells(replica: Replica) -> dict[tuple[str, str, bytes], Any]:
    store = replica.store
    found: dict[tuple[str, str, bytes], Any] = {
        ("owner", key, origin): value for origin, key, value in store.owners()
    }
    found |= {("fleet", key, b""): value for key, value in store.fleet_items("", NOW)}
    found |= {("set", key, b""): store.elements(key) for key in store.set_keys()}
    return found


class Fleet(RuleBasedStateMachine):
    """Three nodes that write, crash and hear each other badly; a model knows what they meant."""

    def __init__(self) -> None:
        super().__init__()
        self.replicas = trio()
        self.air: list[bytes] = []
        self.owners: dict[tuple[bytes, str], Any] = {}
        self.versions: dict[bytes, tuple[int, int]] = {}
        self.seconds = 0.0

    @property
    def now(self) -> Any:
        return later(self.seconds)

    @rule(write_=writes, skew_s=st.sampled_from([0, 0, 0, -3600, 3, 3600]))
    def writes(self, write_: tuple[int, str, str, Any], skew_s: float) -> None:
        who, action, key, value = write_
        replica = self.replicas[who]
        now = self.now._replace(wall_ms=self.now.wall_ms + skew_s * 1000)
        write(replica, action, key, value, now)
        for batch in replica.flush(now):
            assert batch.version > self.versions.get(replica.id, (0, 0))
            self.versions[replica.id] = batch.version
            self.air.append(batch.raw)
        if action == "set_owner":
            self.owners[replica.id, key] = value
        elif action == "delete_owner":
            self.owners.pop((replica.id, key), None)

    @rule(data=st.data(), who=st.integers(0, 2))
    def hears(self, data: Any, who: int) -> None:
        if self.air:
            heard = data.draw(st.lists(st.sampled_from(self.air), max_size=5))
            self.replicas[who].take(heard, self.now)

    @rule(data=st.data())
    def loses(self, data: Any) -> None:
        if self.air:
            del self.air[data.draw(st.integers(0, len(self.air) - 1))]

    @rule(who=st.integers(0, 2))
    def restarts(self, who: int) -> None:
        """The journal survives; of others' logs nothing does."""
        replica = self.replicas[who].restarted(self.now)
        replica.meet(self.replicas)
        self.replicas[who] = replica

    @rule(who=st.integers(0, 2), kept=st.integers(0, 5))
    def restarts_with_a_lost_tail(self, who: int, kept: int) -> None:
        """A peer that heard everything gives back what the journal lost."""
        old = self.replicas[who]
        other = self.replicas[who - 1]
        other.take(old.live(), self.now)
        replica = old.restarted(self.now, old.journal[:kept])
        replica.meet(self.replicas)
        replica.take(other.store.live_batches(old.id), self.now)
        replica.flush(self.now)
        self.replicas[who] = replica

    @rule(seconds=st.sampled_from([0.1, 10.0, 4000.0]))
    def waits(self, seconds: float) -> None:
        self.seconds += seconds

    @invariant()
    def own_records_are_as_written(self) -> None:
        for replica in self.replicas:
            mine = {(o, k): v for o, k, v in replica.store.owners() if o == replica.id}
            assert mine == {cell: v for cell, v in self.owners.items() if cell[0] == replica.id}
            assert len(replica.live()) <= MAX_LIVE

    def teardown(self) -> None:
        self.seconds += 10_000  # nothing is in the future any more
        for _ in range(3):
            exchange(self.replicas, self.now)
            for replica in self.replicas:
                replica.flush(self.now)
        exchange(self.replicas, self.now)
        first = self.replicas[0].store
        for replica in self.replicas:
            assert replica.store.complete
            assert replica.store.fingerprint() == first.fingerprint()
            assert reads(replica.store, self.now) == reads(first, self.now)
        assert {(o, k): v for o, k, v in first.owners()} == self.owners


Fleet.TestCase.settings = settings(max_examples=80, stateful_step_count=50)


class TestFleet(Fleet.TestCase):  # type: ignore[misc]
    pass
