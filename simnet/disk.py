"""A machine's disk: the journal's rules in memory, under a disk's faults.

Owns what a boot finds; never decides when anything is written. What is a transaction in
:mod:`edge_node.fleet.database` is one here. Invariant: a disk that is not told to lie keeps what it
has acknowledged.

After a crash a disk is ``whole``: what was acknowledged is there, what was under way is not;
``torn``: what was under way may be there, though nobody was told; ``tail``: it had acknowledged
commits that are gone; ``lost``: it is a new one, with or without the epoch's small file.
"""

import random
from collections import deque

from crdt.log import Batch
from edge_node.fleet.database import EPOCH_SALT_BITS, Saved, next_epoch

_IMAGES = 6  # commits that a lying disk may have kept in its cache


class DiskFull(Exception):
    """Nothing can be written."""


class Disk:
    """One node's journal."""

    def __init__(self, origin: bytes) -> None:
        self.saved = Saved(origin)
        self.full = False
        self.begun: tuple[Batch, int] | None = None  # a commit under way
        self._epoch_file = 0, 0  # epoch and incarnation, kept apart as the journal keeps them
        self._images: deque[Saved] = deque(maxlen=_IMAGES)

    def boot(self, wall_s: float, salt: int) -> Saved:
        """Begin a run: raise epoch and incarnation, durably if there is room.

        Raises:
            DiskFull: the journal is new, and there is no room for it.
        """
        saved = self.saved.copy()
        epoch, incarnation = self._epoch_file
        saved.epoch = next_epoch(max(saved.epoch, epoch), wall_s, salt)
        saved.incarnation = max(saved.incarnation, incarnation) + 1
        if self.full:
            if not self.saved.epoch:
                raise DiskFull
            return saved
        self._epoch_file = saved.epoch, saved.incarnation
        self._become(saved.copy())
        return saved

    def write(self, batch: Batch, high_water: int) -> None:
        """Make a batch durable. Raises DiskFull, and AssertionError for one out of order."""
        if self.full:
            raise DiskFull
        after = self.saved.copy()
        objection = after.objection(batch)
        assert objection is None, objection
        after.add(batch, high_water)
        self._epoch_file = max(after.epoch, self._epoch_file[0]), self._epoch_file[1]
        self._become(after)
        self.begun = None

    def raise_incarnation(self, incarnation: int) -> None:
        """Make an incarnation durable, if there is room."""
        if not self.full and incarnation > self.saved.incarnation:
            after = self.saved.copy()
            after.incarnation = incarnation
            self._epoch_file = self._epoch_file[0], incarnation
            self._become(after)

    def crash(self, kind: str, rng: random.Random) -> None:
        """Lose what a disk of this kind loses; ``kind`` is one of the four above."""
        begun, self.begun = self.begun, None
        if kind == "torn" and begun is not None and not self.full and rng.random() < 0.5:
            self.write(*begun)
        elif kind == "tail" and self._images:
            for _ in range(rng.randint(1, len(self._images))):
                self.saved = self._images.pop()
        elif kind == "lost":
            self.saved = Saved(self.saved.origin)
            self._images.clear()
            if rng.random() < 0.5:
                self._epoch_file = 0, 0

    def _become(self, after: Saved) -> None:
        self._images.append(self.saved)
        self.saved = after


def salt(rng: random.Random) -> int:
    """Draw what tells two lives of one disk image apart."""
    return rng.getrandbits(EPOCH_SALT_BITS)
