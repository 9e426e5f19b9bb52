"""One model at one image size, ready to be run in full or only where a frame changed.

Owns the compiled plan, its executor, the suffix session and the thresholds of each level; never
decides when to run what. Invariants: a state belongs to this object alone and is warm only after
a pass with finite values; at level 0 nothing is pruned, so the outputs are those of a full pass.

The executor is `native` (C kernels) on the CPU where they were built, else `graph` (stock
operators on the accelerator's own execution provider).

Thresholds are the level times a share of each map's standard deviation, coarser maps tolerating
more: truncating early layers costs the most accuracy, the neck and the deepest maps the least.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.accelerators import AcceleratorSpec
from models.delta.fuse import fuse
from models.delta.graph import analyse, at_size
from models.delta.graphexec import GraphProgram, GraphState
from models.delta.layers import Floats
from models.delta.library import library
from models.delta.native import NativeProgram, State
from models.delta.onnxfile import write_model
from models.delta.plan import LIMIT_BYTES, Plan, PlanTooLarge, compile_plan, work_left
from models.delta.suffix import stacked, suffix_model
from models.images import Pixels
from models.runtime import open_session
from models.wire import ModelError

Cells = npt.NDArray[np.uint8]
SHARES = {4: 0.02, 8: 0.05, 16: 0.1, 1 << 16: 0.3}  # up to this stride
NECK_SHARE, HEAD_SHARE = 0.15, 0.05
LEAST_LOCAL = 0.5
BYTES_PER_PIXEL = 97  # of a camera's state: 24 MB at 384 x 640


class Refused(ModelError):
    """A model keeps the output rungs only; the text says why."""


@dataclass(eq=False)
class CameraState:
    """One camera's activations, at one level, for one `Differential`."""

    owner: Differential
    level: float
    held: State | GraphState | None  # None until a graph with its thresholds can be compiled

    @property
    def is_warm(self) -> bool:
        return self.held is not None and self.held.is_warm

    @property
    def size_bytes(self) -> int:
        return self.held.size_bytes if self.held else 0


class Differential:
    """Run one model differentially at one size. Not for concurrent use."""

    def __init__(
        self,
        data: bytes,
        size: tuple[int, int],
        accelerator: AcceleratorSpec,
        *,
        limit_bytes: int = LIMIT_BYTES,
        executor: str = "",
    ) -> None:
        """Analyse and compile an ONNX file for images of `size` (height, width).

        `executor` is "native", "graph" or "" for the best. Raises Refused with the reason when
        the model cannot be run differentially (global operations, plan too large), ModelError
        when it cannot be read, ValueError for a size without area. O(weights).
        """
        if min(size) < 1:
            raise ValueError(f"an image of {size[1]} x {size[0]} pixels has no area")
        model = at_size(data, *size)
        analysis = fuse(analyse(model))
        if reason := analysis.outputs_only(LEAST_LOCAL):
            raise Refused(reason)
        budget_bytes = BYTES_PER_PIXEL * size[0] * size[1]
        try:
            self.plan = compile_plan(analysis, limit_bytes, budget_bytes)
        except PlanTooLarge as error:
            raise Refused(str(error)) from None
        suffix, self._taken = suffix_model(model, analysis)
        self._suffix = open_session(write_model(suffix), accelerator)
        self._held = tuple(dict.fromkeys(self._taken.values()))
        self._shares = _shares(self.plan)
        self._deviations: dict[str, float] = {}  # of the first image that thresholds applied to
        self._accelerator = accelerator
        self._graphs: dict[float, GraphProgram] = {}
        self._level = 0.0  # whose thresholds the native program has now
        self._native: NativeProgram | None = None
        wants_native = executor == "native" or (not executor and accelerator.provider == "cpu")
        if wants_native and (library() is not None or executor == "native"):
            self._native = NativeProgram(self.plan)
            self._native.tune()
        self.executor = "native" if self._native else "graph"
        # Of one camera's state; the graph's holds every map, whatever the plan's budget says.
        self.state_bytes = (
            self.plan.state_bytes if self._native else self._graph(0.0).new_state().size_bytes
        )

    def new_state(self, level: float = 0.0) -> CameraState:
        """Return a cold state for one camera whose maps are pruned at a level >= 0. O(state)."""
        return CameraState(self, level, self._native.new_state() if self._native else None)

    def run(
        self, state: CameraState, pixels: Pixels, changed: Cells | None = None, cell_px: int = 4
    ) -> tuple[list[Floats], float]:
        """Bring a state up to an image; return the model's outputs and the share of work done.

        `pixels` uint8[h, w, channels] must equal, outside of `changed` uint8[rows, columns], what
        the state was computed from. Without `changed`, or with a cold state: a full pass. Raises
        ValueError for a state of another model, level or size, ModelError when what comes out is
        not finite (the state is cold then).
        """
        if state.owner is not self:
            raise ValueError("the state belongs to another model or another image size")
        if state.level and not self._deviations:
            self._measure(pixels)
        mask = changed if state.is_warm else None
        if self._native is not None:
            rows, work = self._run_native(self._native, state, pixels, mask, cell_px)
        else:
            rows, work = self._run_graph(state, pixels, mask, cell_px)
        return self._outputs(rows), work

    def _outputs(self, rows: dict[str, Floats]) -> list[Floats]:
        try:
            outputs: list[Floats] = self._suffix.run(None, stacked(rows, self._taken))
        except Exception as error:  # noqa: BLE001 - ONNX Runtime raises its own unexported classes
            text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise ModelError(f"the model failed behind its local layers: {text}") from None
        return outputs

    def _measure(self, pixels: Pixels) -> None:
        """Learn how much each map varies, by an exact pass over one image. O(a full pass)."""
        state = self.new_state()
        self.run(state, pixels)
        self._deviations = {name: float(rows.std()) for name, rows in self._all(state)}

    def _run_native(
        self,
        program: NativeProgram,
        state: CameraState,
        pixels: Pixels,
        changed: Cells | None,
        cell_px: int,
    ) -> tuple[dict[str, Floats], float]:
        assert isinstance(state.held, State), "new_state gives the executor's own"
        if state.level != self._level:
            program.set_thresholds(self._thresholds(state.level))
            self._level = state.level
        done = program.run(state.held, pixels, changed, block=cell_px)
        return {name: program.rows(state.held, name) for name in self._held}, done.work

    def _run_graph(
        self, state: CameraState, pixels: Pixels, changed: Cells | None, cell_px: int
    ) -> tuple[dict[str, Floats], float]:
        program, mask = self._graph(state.level), None
        if state.held is None:
            state.held = program.new_state()
        assert isinstance(state.held, GraphState), "the executor's own"
        if changed is not None:
            wide = changed.repeat(cell_px, axis=0).repeat(cell_px, axis=1)
            mask = np.ascontiguousarray(wide[: pixels.shape[0], : pixels.shape[1]])
        program.run(state.held, pixels, mask)
        work = 1.0 if mask is None else work_left(self.plan, mask.view(np.bool_))
        return {name: program.rows(state.held, name) for name in self._held}, work

    def _all(self, state: CameraState) -> Iterator[tuple[str, Floats]]:
        """Yield every map that thresholds apply to."""
        for name in self._shares:
            if isinstance(state.held, State):
                assert self._native is not None, "its state is"
                yield name, self._native.rows(state.held, name)
            elif state.held is not None:
                yield name, self._graph(state.level).rows(state.held, name)

    def _graph(self, level: float) -> GraphProgram:
        if level not in self._graphs:
            thresholds = self._thresholds(level) if level else None
            self._graphs[level] = GraphProgram(self.plan, self._accelerator, thresholds)
        return self._graphs[level]

    def _thresholds(self, level: float) -> dict[str, float]:
        return {
            name: level * share * self._deviations.get(name, 0.0)
            for name, share in self._shares.items()
        }


def _shares(plan: Plan) -> dict[str, float]:
    """Return each prunable map's share of its deviation that one level of threshold is. O(n^2)."""
    depths = [plan.depth(step.layer.output) for step in plan.steps]
    deepest = max(depths)
    bottom = depths.index(deepest)
    ends = _ends(plan)
    found = {}
    for index, step in enumerate(plan.steps):
        name, depth = step.layer.output, depths[index]
        if not step.prunes:
            continue
        if index < bottom or depth == deepest or len(set(plan.frontier.values())) == 1:
            found[name] = next(s for stride, s in sorted(SHARES.items()) if depth <= stride)
        else:
            found[name] = HEAD_SHARE if len(ends[name]) == 1 else NECK_SHARE
    return found


def _ends(plan: Plan) -> dict[str, set[str]]:
    """Return the frontier maps that each map leads to."""
    ends: dict[str, set[str]] = {name: {name} for name in plan.frontier.values()}
    for step in reversed(plan.steps):
        mine = ends.setdefault(step.layer.output, set())
        for name in step.layer.reads:
            ends.setdefault(name, set()).update(mine)
    return ends
