"""What nodes have acknowledged, and what must therefore be read in the end.

Owns the durable batches of all runs of all nodes, as their journals said; never reads a replica.
Invariant: what is expected was acknowledged by a disk that kept it, or held by another node all the
time until its author had it back; nothing else is.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import NamedTuple

from crdt.codec import decode_batch
from crdt.entries import AddEntry, OwnerEntry, RegisterEntry
from crdt.log import Batch, sequences
from simnet.link import Name
from simnet.workload import PREFIX, Reading, number_of

Version = tuple[int, int]
Holds = Callable[[Name, bytes, Version], bool]
"""Tells whether a node that runs holds a batch."""


class Ledger:
    """Everybody's acknowledged writes."""

    def __init__(self, holds: Holds | None) -> None:
        """Begin; without ``holds`` whatever a disk has forgotten is expected no more."""
        self.exempted = 0
        """Batches that nobody can be blamed for having lost."""
        self._holds = holds
        self._acked: dict[bytes, dict[Version, Batch]] = {}
        self._digests: dict[tuple[bytes, Version], bytes] = {}
        self._exempt: set[tuple[bytes, Version]] = set()
        self._endangered: dict[bytes, set[Version]] = {}  # by author: lost by its disk
        self._names: dict[bytes, Name] = {}
        self._forgetful: set[bytes] = set()  # whose disk was told to lie, until it is up again
        self._gone_s: dict[bytes, float] = {}
        self._acked_s: dict[tuple[bytes, Version], float] = {}
        self._removing: dict[tuple[str, int], bytes] = {}
        self._removed: dict[tuple[str, int], tuple[bytes, Version]] = {}

    def persisted(self, at_s: float, batch: Batch) -> str | None:
        """Take a batch that has become durable; say what is wrong with it."""
        problem = self._numbered(batch)
        if self._endangered.pop(batch.origin, None):
            # what its author goes on without, nobody can give back any more
            for version in self._acked[batch.origin]:
                if not self._held_by(self._names.get(batch.origin), batch.origin, version):
                    self._forgo(batch.origin, version)
        self._add(at_s, batch)
        return problem

    def started(
        self, at_s: float, name: Name, origin: bytes, restored: Iterable[bytes]
    ) -> str | None:
        """Take what a node found in its journal; say what is wrong with it."""
        self._names[origin] = name
        self._gone_s.pop(origin, None)
        found = {batch.version: batch for batch in map(decode_batch, restored)}
        for batch in found.values():
            if problem := self._numbered(batch):
                return problem
            if batch.version not in self._acked.get(origin, {}):
                self._add(at_s, batch)  # it was under way when the node crashed
        missing = [version for version in self._expected(origin) if version not in found]
        forgetful = origin in self._forgetful
        self._forgetful.discard(origin)
        if missing and not forgetful:
            return f"{name} restarts without its acknowledged batch {missing[0]}"
        if missing:
            self._endangered.setdefault(origin, set()).update(missing)
            self._review()
        return None

    def stopped(self, at_s: float, origin: bytes, *, forgetful: bool) -> None:
        """Take note that a node is gone, and whether its disk keeps what it acknowledged."""
        self._gone_s[origin] = at_s
        if forgetful:
            self._forgetful.add(origin)
        self._review()

    def removing(self, origin: bytes, key: str, number: int) -> None:
        """Take note that a node takes an element back; it need not be there any more."""
        self._removing[key, number] = origin

    def vanished(self, origin: bytes, key: str, number: int) -> None:
        """Take note that a node no longer reads an element."""
        if self._removing.get((key, number)) == origin and (key, number) not in self._removed:
            self._removed[key, number] = origin, max(self._acked[origin])

    def removed(self, key: str, number: int) -> bool:
        """Tell whether an element's removal was acknowledged and is expected to last."""
        where = self._removed.get((key, number))
        return where is not None and where not in self._exempt

    def objections(self, readings: Mapping[Name, Reading]) -> Iterator[str]:
        """Yield what the nodes should read in the end, and one does not."""
        self._forgive_the_dead()
        expected = self._expectations()
        for name, reading in readings.items():
            yield from self._missed(name, reading, expected)

    def resurrected(self, reading: Reading) -> tuple[str, int] | None:
        """Return an element that is there although its removal was acknowledged."""
        for (key, number), where in self._removed.items():
            if where not in self._exempt and number in reading.elements.get(key, ()):
                return key, number
        return None

    # ---------------------------------------------------------------- internal

    def _numbered(self, batch: Batch) -> str | None:
        """Say whether a version was used for something else before."""
        digest = blake2b(batch.raw, digest_size=16).digest()
        known = self._digests.setdefault((batch.origin, batch.version), digest)
        if known != digest:
            return f"{self._name(batch.origin)} has used {batch.version} for two different batches"
        return None

    def _add(self, at_s: float, batch: Batch) -> None:
        self._acked.setdefault(batch.origin, {})[batch.version] = batch
        self._acked_s[batch.origin, batch.version] = at_s

    def _expected(self, origin: bytes) -> list[Version]:
        """Return the batches that a journal has to keep."""
        acked = self._acked.get(origin)
        if not acked:
            return []
        last = acked[max(acked)]
        live = {(last.epoch, number) for number in sequences(last.live)} | {last.version}
        live -= self._endangered.get(origin, set())  # peers have them, and give them back
        exempt = self._exempt
        return sorted(one for one in live if one in acked and (origin, one) not in exempt)

    def _held_by(self, name: Name | None, origin: bytes, version: Version) -> bool:
        return name is not None and self._holds is not None and self._holds(name, origin, version)

    def _review(self) -> None:
        """Forgo what a disk has forgotten and nobody who runs holds."""
        for origin, versions in self._endangered.items():
            for version in sorted(versions):
                if not any(self._held_by(one, origin, version) for one in self._names.values()):
                    versions.discard(version)
                    self._forgo(origin, version)

    def _forgo(self, origin: bytes, version: Version) -> None:
        if (origin, version) not in self._exempt:
            self.exempted += 1
            self._exempt.add((origin, version))

    def _forgive_the_dead(self) -> None:
        """Forgo what a node that is gone for good had no time to tell anybody."""
        for origin, gone_s in self._gone_s.items():
            for version in self._acked.get(origin, {}):
                if self._holds is None:
                    told = self._acked_s[origin, version] < gone_s - 5.0
                else:
                    told = any(self._held_by(one, origin, version) for one in self._names.values())
                if not told:
                    self._forgo(origin, version)

    def _expectations(self) -> "_Expected":
        """Return what everybody should read. O(entries)."""
        owners: dict[tuple[bytes, str], int] = {}
        # the newest alone: its author may have let go of earlier ones, though others, whose clocks
        # are behind, do not show it yet
        registers: dict[str, tuple[int, bytes]] = {}
        elements: set[tuple[str, int]] = set()
        for origin, batches in self._acked.items():
            for version, batch in batches.items():
                if (origin, version) in self._exempt:
                    continue
                for entry in batch.entries:
                    if not entry.key.startswith(PREFIX):
                        continue
                    if isinstance(entry, OwnerEntry):
                        about = origin, entry.key
                        owners[about] = max(number_of(entry.value), owners.get(about, 0))
                    elif isinstance(entry, RegisterEntry):
                        stamp = entry.timestamp, origin
                        registers[entry.key] = max(stamp, registers.get(entry.key, stamp))
                    elif isinstance(entry, AddEntry) and isinstance(entry.element, int):
                        elements.add((entry.key, entry.element))
        return _Expected(owners, registers, sorted(elements - self._removing.keys()))

    def _missed(self, name: Name, reading: Reading, expected: "_Expected") -> Iterator[str]:
        for (origin, key), number in expected.owners.items():
            found = reading.owners.get((origin, key), 0)
            if found < number:
                yield f"{name} reads {key} of {self._name(origin)} as {found}, not {number}"
        for key, (timestamp, origin) in expected.registers.items():
            shown = reading.registers.get(key, (0, b"", 0))
            if timestamp <= reading.horizon and shown[:2] < (timestamp, origin):
                later = f"{self._name(origin)} wrote a later one"
                yield f"{name} reads {key} as number {shown[2]}, {later}"
        for key, number in expected.elements:
            if number not in reading.elements.get(key, ()):
                yield f"{name} misses element {number} of {key}"

    def _name(self, origin: bytes) -> str:
        return self._names.get(origin) or origin.hex()[:8]


class _Expected(NamedTuple):
    """What must be read at least: numbers, timestamps, elements."""

    owners: Mapping[tuple[bytes, str], int]
    registers: Mapping[str, tuple[int, bytes]]
    elements: list[tuple[str, int]]
