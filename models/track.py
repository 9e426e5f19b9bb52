"""One camera's reference, advanced frame by frame under one setting.

Owns the reference image, the answer to it and the activations for it, and what passes cost on this
device; never decides which setting to use. Invariants: image, answer and activations belong
together, cell by cell, so that slow drift adds up against the image instead of passing unseen; a
pass that fails leaves nothing behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from models.delta.differential import CameraState, Differential
from models.delta.layers import Floats
from models.delta.mask import Change, ChangeMask, Region, copy_cells
from models.images import Pixels
from models.wire import Box, ModelError, Rung

CELL_PX = 4
GATE_LEVEL = 8.0  # grey levels: a cell that counts against the gate
SEED_LEVEL = 4.0  # grey levels at level 1: a cell around which a sparse pass looks for more
FINE_LEVEL = 0.8  # grey levels at level 1: near such cells, one that it computes again
ASIDE, ABOVE = 0.2, 0.1  # of a box: by how much its surroundings count as it
REFRESH_PASSES = 16  # sparse passes before the next full one: what is a little stale adds up


@dataclass(frozen=True)
class Setting:
    """By what a camera's frames are reused.

    `gate`: share of cells that may have changed for the answer to be reused. `level`: how much
    sparse passes leave out (0 is nothing), None for full passes only. `domain`: share of changed
    cells beyond which nothing was calibrated. `contrast`: grey levels by which such a cell differs.
    """

    gate: float = 0.0
    level: float | None = None
    domain: float = 1.0
    contrast: float = GATE_LEVEL


STRICT = Setting(contrast=3.0)


class Runner(Protocol):
    """What a ladder needs of a loaded model at one canvas geometry."""

    def full(self, pixels: Pixels) -> list[Box]:
        """Return the answer of a full pass. Raises ModelError."""
        ...

    def decode(self, outputs: list[Floats], pixels: Pixels) -> list[Box]:
        """Return the answer in a model's outputs. Raises ModelError."""
        ...


class CostModel:
    """Seconds of passes on this device, learned as they happen.

    Sparse passes by the share of changed cells, in bins that double; shared by all cameras of a
    model and size. `clock` is thread-CPU time, which does not count what an accelerator does
    elsewhere: a monotonic clock suits that.
    """

    WEIGHT = 0.2
    FIRST = 1 / 512

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        self.clock = clock
        self.full_s = 0.0  # of the model's own session
        self.dense_s = 0.0  # of the differential executor
        self._sparse_s: dict[tuple[float, int], float] = {}

    def learn_full(self, spent_s: float) -> None:
        self.full_s += (self.WEIGHT if self.full_s else 1.0) * (spent_s - self.full_s)

    def learn_dense(self, spent_s: float) -> None:
        self.dense_s += (self.WEIGHT if self.dense_s else 1.0) * (spent_s - self.dense_s)

    def learn_sparse(self, level: float, share: float, spent_s: float) -> None:
        key = (level, self._bin(share))
        old = self._sparse_s.get(key, spent_s)
        self._sparse_s[key] = old + self.WEIGHT * (spent_s - old)

    def sparse_s(self, level: float, share: float) -> float:
        """Predict a sparse pass; unmeasured, that of the nearest smaller bin, else half a dense."""
        key = self._known(level, share)
        return self._sparse_s[key] if key else self.dense_s / 2

    def forget(self, level: float, share: float) -> None:
        """Let a prediction fade, so that what was slow once is tried again some day."""
        if key := self._known(level, share):
            self._sparse_s[key] *= 0.995

    def _known(self, level: float, share: float) -> tuple[float, int] | None:
        """Return the bin that a prediction comes from."""
        index = self._bin(share)
        return max(
            (one for one in self._sparse_s if one[0] == level and one[1] <= index), default=None
        )

    def _bin(self, share: float) -> int:
        index, edge = 0, self.FIRST
        while share > edge and edge < 1:
            index, edge = index + 1, edge * 2
        return index


class Track:
    """One reference with its answer and activations, advanced under one setting."""

    def __init__(
        self,
        setting: Setting,
        runner: Runner,
        differential: Differential | None,
        costs: CostModel,
        mask: ChangeMask,
        image: tuple[int, int],
    ) -> None:
        """Start without a reference; `image` (width, height) of what boxes refer to."""
        self.setting = setting
        self.boxes: list[Box] = []
        self.reference: Pixels | None = None
        self.state: CameraState | None = None
        self.work = 1.0  # share of the last pass's multiply-accumulates
        self._sparse_passes = 0  # since the last full one
        self._runner = runner
        self._differential = differential
        self._costs = costs
        self._mask = mask
        self._image = image

    @property
    def size_bytes(self) -> int:
        """Return the bytes of reference and activations."""
        return self.image_bytes + self.state_bytes

    @property
    def image_bytes(self) -> int:
        reference = self.reference
        return 0 if reference is None else int(reference.nbytes)

    @property
    def state_bytes(self) -> int:
        state = self.state
        return state.size_bytes if state is not None else 0

    def compare(self, pixels: Pixels) -> Change | None:
        """Return what changed against the reference by the gate's measure; None without one."""
        if self.reference is None:
            return None
        return self._mask.compare(pixels, self.reference, self.setting.contrast)

    def holds(self, change: Change | None) -> bool:
        """Return whether the answer may be given again."""
        return change is not None and (change.kind == "same" or change.share <= self.setting.gate)

    def step(self, pixels: Pixels, change: Change | None) -> Rung:
        """Answer a frame into `boxes`, by the cheapest rung that the setting allows."""
        if change is not None and self.holds(change):
            self.work = 0.0
            return "same" if change.kind == "same" else "gate"
        level = self.setting.level
        if (
            level is not None
            and change is not None
            and change.kind == "local"
            and change.share <= self.setting.domain
            and self.state is not None
            and self.state.is_warm
            and self._sparse_passes < REFRESH_PASSES
        ):
            seed, least = SEED_LEVEL * level, FINE_LEVEL * level * level
            fine = self._mask.around(seed, least, self._regions())
            if self._costs.sparse_s(level, fine.share) < self._costs.dense_s:
                return self._sparse(pixels, fine, level)
            self._costs.forget(level, fine.share)
        self.refresh(pixels)
        return "full"

    def refresh(self, pixels: Pixels) -> None:
        """Answer a frame by a full pass; it becomes the reference."""
        started_s = self._costs.clock()
        self.work, self._sparse_passes = 1.0, 0
        with self._dropped_if_it_fails():
            if self.setting.level is None or self._differential is None:
                self.state = None
                self.boxes = self._runner.full(pixels)
                self.reference = pixels
                self._costs.learn_full(self._costs.clock() - started_s)
            else:
                if self.state is None:
                    self.state = self._differential.new_state(self.setting.level)
                outputs, _ = self._differential.run(self.state, pixels)
                self.boxes = self._runner.decode(outputs, pixels)
                self.reference = pixels.copy()  # sparse passes write into it
                self._costs.learn_dense(self._costs.clock() - started_s)

    def _sparse(self, pixels: Pixels, change: Change, level: float) -> Rung:
        assert self.reference is not None, "step compared with it"
        assert self._differential is not None, "a state has an owner"
        assert self.state is not None, "step has looked"
        started_s = self._costs.clock()
        with self._dropped_if_it_fails():
            copy_cells(self.reference, pixels, change, CELL_PX)
            outputs, self.work = self._differential.run(
                self.state, self.reference, change.cells, CELL_PX
            )
            self.boxes = self._runner.decode(outputs, pixels)
        self._sparse_passes += 1
        self._costs.learn_sparse(level, change.share, self._costs.clock() - started_s)
        return "sparse"

    def _regions(self) -> list[Region]:
        """Return where the answer's boxes lie, a little larger: staleness shows there first."""
        wide, high = (side / CELL_PX for side in self._image)
        found = []
        for left, top, right, bottom, *_ in self.boxes:
            x, y = ASIDE * (right - left), ABOVE * (bottom - top)
            corners = ((top - y) * high, (left - x) * wide, (bottom + y) * high, (right + x) * wide)
            top_cell, left_cell, bottom_cell, right_cell = (max(0, int(c)) for c in corners)
            found.append((top_cell, left_cell, bottom_cell + 1, right_cell + 1))
        return found

    @contextmanager
    def _dropped_if_it_fails(self) -> Iterator[None]:
        """Forget everything when a pass fails: the reference may be ahead of the answer then."""
        try:
            yield
        except ModelError:
            self.drop()
            raise

    def drop(self) -> None:
        """Forget everything: the next frame gets a full pass."""
        self.reference, self.state, self.boxes = None, None, []
