"""Replicas with real Ed25519 keys, and the little that a host does for them."""

from collections.abc import Iterable
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from crdt import Batch, Change, HybridClock, Instant, Merge, Store, node_id_of
from crdt.codec import origin_of

WALL_MS = 1_700_000_000_000
NOW = Instant(1000.0, WALL_MS)


def later(seconds: float, now: Instant = NOW) -> Instant:
    return Instant(now.mono_s + seconds, now.wall_ms + round(seconds * 1000))


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except InvalidSignature:
        return False
    return True


class Acquainted(Store):
    """A store that is offered the keys of those it has met, as gossip does."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.met: dict[bytes, bytes] = {}
        super().__init__(*args, **options)

    def merge(self, raw: bytes, now: Instant, key: bytes = b"") -> Merge:
        return super().merge(raw, now, key or self.met.get(origin_of(raw), b""))

    def testify(self, raw: bytes, now: Instant, key: bytes = b"") -> Merge:
        return super().testify(raw, now, key or self.met.get(origin_of(raw), b""))


class Replica:
    """A store whose journal is a list."""

    def __init__(self, seed: int, epoch: int = 1, high_water: int = 0) -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        self.key = self.private.public_key().public_bytes_raw()
        self.id = node_id_of(self.key)
        self.seed = seed
        self.journal: list[bytes] = []
        self.changes: list[Change] = []
        self.store = Acquainted(
            self.id,
            epoch=epoch,
            sign=self.private.sign,
            verify=verify,
            public_key=self.key,
            clock=HybridClock(high_water),
        )

    def meet(self, others: Iterable["Replica"]) -> None:
        for other in others:
            self.store.met[other.id] = other.key

    def flush(self, now: Instant = NOW) -> list[Batch]:
        """Commit and make durable at once."""
        batches = self.store.commit(now)
        for batch in batches:
            self.journal.append(batch.raw)
            self.changes += self.store.persisted(batch, now)
        return batches

    def restarted(self, now: Instant = NOW, journal: list[bytes] | None = None) -> "Replica":
        """A new process with the same journal (or what is left of it) and clock mark."""
        fresh = Replica(self.seed, self.store.epoch + 1, self.store.clock.high_water)
        fresh.journal = list(self.journal if journal is None else journal)
        for raw in fresh.journal:
            fresh.store.restore(raw, now)
        return fresh

    def take(self, batches: Iterable[Batch | bytes], now: Instant = NOW) -> list[Merge]:
        raws = [batch if isinstance(batch, bytes) else batch.raw for batch in batches]
        return [self.store.merge(raw, now) for raw in raws]

    def live(self) -> list[bytes]:
        return self.store.live_batches(self.id)


def trio() -> list[Replica]:
    replicas = [Replica(seed) for seed in (1, 2, 3)]
    for replica in replicas:
        replica.meet(replicas)
    return replicas


def exchange(replicas: list[Replica], now: Instant = NOW) -> None:
    """Give everybody everything, as repair would."""
    for giver in replicas:
        for taker in replicas:
            for origin in list(giver.store.knowledge()):
                taker.take(giver.store.live_batches(origin), now)


def settle(replicas: list[Replica], now: Instant = NOW) -> None:
    """What gossip does where everybody is at one: say so, and let go what nobody needs."""
    exchange(replicas, now)
    assert len({replica.store.fingerprint() for replica in replicas}) == 1
    for replica in replicas:
        replica.store.settled(replica.store.generation)
    for replica in replicas:
        if replica.store.sweep(now):
            replica.flush(now)
    exchange(replicas, now)


def reads(store: Store, now: Instant = NOW) -> dict[str, object]:
    """All that can be read."""
    return {
        "owners": store.owners(),
        "fleet": store.fleet_items("", now),
        "sets": {key: store.elements(key) for key in store.set_keys()},
    }
