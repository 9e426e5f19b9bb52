"""Execute a plan with the C kernels of `models/native`, where they were built.

Owns the compiled program and the camera states given out; never decides what has changed.
Invariants: a state belongs to one program and one image size; it is warm only after a full pass
that gave finite values, and a run that did not makes it cold again, so that nothing stale or
broken is ever read as an answer. With thresholds of 0 the maps equal those of a full pass.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from models.delta.layers import Activation, Floats, Integers, Layer
from models.delta.library import CFrame, CMap, CStep, block_sums, copy_cells, kernels, library
from models.delta.plan import Plan
from models.wire import ModelError

__all__ = ["NativeProgram", "Pass", "State", "block_sums", "copy_cells", "library"]
Bytes = npt.NDArray[np.uint8]
DENSE_ABOVE = 0.9
LINE_BYTES = 64
TUNE_ROUNDS, LEAST_SHARE = 3, 0.3
_KINDS = {
    "conv": 0,
    "depthwise": 1,
    "max": 2,
    "pick": 3,
    "select": 4,
    "concat": 5,
    "add": 6,
    "multiply": 7,
    "affine": 8,
    "activate": 9,
}
_ACTIVATIONS = {
    "none": 0,
    "relu": 1,
    "silu": 2,
    "sigmoid": 3,
    "clip": 4,
    "leaky": 5,
    "hard_sigmoid": 6,
    "hard_swish": 7,
    "tanh": 8,
}


@dataclass(eq=False)
class State:
    """One camera's activations; `is_warm` says whether a sparse run may start from them."""

    floats: Floats
    is_warm: bool = False

    @property
    def size_bytes(self) -> int:
        return int(self.floats.nbytes)


@dataclass(frozen=True)
class Pass:
    """What one run did: positions computed and changed per step, work as a share of a full pass."""

    dirty: Integers
    changed: Integers
    work: float


@dataclass
class _Arena:
    """Keep alive what the structures point to."""

    arrays: list[npt.NDArray[np.generic]] = field(default_factory=list)

    def pointer(self, array: npt.NDArray[np.generic] | None, kind: type[np.generic]) -> int | None:
        if array is None:
            return None
        kept = np.ascontiguousarray(array, kind)
        self.arrays.append(kept)
        return int(kept.ctypes.data)


class NativeProgram:
    """A plan compiled for this processor. Not for concurrent use."""

    def __init__(self, plan: Plan, variant: str = "") -> None:
        """Pack a plan's weights; `variant` names an instruction set ("" is the best).

        Raises ModelError when the kernels are absent or lack the variant. O(weights).
        """
        found = kernels()
        if plan.state_floats >= 2**31:
            raise ModelError("the plan is too large for the native kernels: use a smaller input")
        self._library = found
        self.plan = plan
        self._program = None
        self._index = {name: index for index, name in enumerate(plan.places)}
        self._layers = [step.layer for step in plan.steps]
        self.scratch = _aligned(plan.scratch_floats)  # maps that no state holds
        arena = _Arena()
        maps, mask_bytes = self._maps()
        rows, owner = self._rows(arena)
        steps = (CStep * len(rows))(*rows)
        self._owner = np.array(owner, np.intp)
        self._macs = np.array([layer.macs for layer in self._layers], np.float64)
        self._positions = np.array(
            [plan.shapes[layer.output].positions for layer in self._layers], np.float64
        )
        self._program = found.delta_create(
            ctypes.addressof(maps),
            len(maps),
            ctypes.addressof(steps),
            len(steps),
            self._index[plan.input_name],
            mask_bytes,
            self.scratch.ctypes.data,
            variant.encode(),
        )
        if not self._program:
            raise ModelError(f"no native kernels {variant!r} on this processor, or no memory")
        self.variant: str = found.delta_variant(self._program).decode()
        self._thresholds = np.zeros(len(rows), np.float32)
        self.dense_above = np.full(len(rows), DENSE_ABOVE, np.float32)
        self.spent_ns: npt.NDArray[np.int64] | None = None  # set to an array to gather times
        self._dirty = np.zeros(len(rows), np.int32)
        self._changed = np.zeros(len(rows), np.int32)
        settled = (self._thresholds, self.dense_above, self._dirty, self._changed)
        self._settings = [array.ctypes.data for array in settled]

    def __del__(self) -> None:
        if getattr(self, "_program", None):
            self._library.delta_free(self._program)

    def _maps(self) -> tuple[ctypes.Array[CMap], int]:
        plan, mask_bytes, found = self.plan, 0, []
        watched = {plan.places[name].buffer for name in plan.frontier.values()}
        for name, place in plan.places.items():
            buffer, shape = plan.buffers[place.buffer], plan.shapes[name]
            start = buffer.ring[0] * buffer.pitch + buffer.ring[1]
            offset = buffer.offset + start * buffer.channels + place.column
            size = (buffer.pitch, buffer.channels, shape.height, shape.width, shape.channels)
            found.append(CMap(offset, mask_bytes, *size, place.buffer in watched, buffer.is_shared))
            mask_bytes += -(-shape.positions // 64) * 64
        return (CMap * len(found))(*found), mask_bytes

    def _rows(self, arena: _Arena) -> tuple[list[CStep], list[int]]:
        """Return the C steps and, for each, the index of the plan's step."""
        found: list[CStep] = []
        owner: list[int] = []
        for index, step in enumerate(self.plan.steps):
            layer = step.layer
            if layer.kind == "concat":
                for order, name in enumerate(layer.inputs):
                    joins = self._step(layer, arena)
                    joins.source, joins.second = self._index[name], order
                    joins.segment = step.segment
                    found.append(joins)
                    owner.append(index)
                continue
            made = self._step(layer, arena)
            made.chained, made.prunes, made.segment = step.chained, step.prunes, step.segment
            found.append(made)
            owner.append(index)
        return found, owner

    def _step(self, layer: Layer, arena: _Arena) -> CStep:
        shapes = self.plan.shapes
        step = CStep()
        step.kind = _KINDS[layer.kind]
        step.source = self._index.get(layer.inputs[0], -1)
        step.second = self._index[layer.inputs[1]] if len(layer.inputs) == 2 else -1
        step.residual = self._index[layer.residual] if layer.residual else -1
        step.target = self._index.get(layer.output, -1)
        step.kernel_y, step.kernel_x = layer.kernel
        step.stride_y, step.stride_x = layer.strides
        step.pad_y, step.pad_x = layer.pads[:2]
        step.dilation_y, step.dilation_x = layer.dilations
        step.inputs = shapes[layer.inputs[0]].channels
        step.outputs = shapes[layer.output].channels
        step.activation, step.low, step.high = _flat(layer.activation)
        step.after, step.after_low, step.after_high = _flat(layer.after)
        step.weight = arena.pointer(layer.weight, np.float32)
        step.bias = arena.pointer(layer.bias, np.float32)
        step.rows = arena.pointer(layer.rows, np.int32)
        step.columns = arena.pointer(layer.columns, np.int32)
        step.picked = arena.pointer(layer.channels, np.int32)
        return step

    def new_state(self) -> State:
        """Return a cold state for one camera. O(state)."""
        return State(_aligned(self.plan.state_floats))

    def set_thresholds(self, thresholds: Mapping[str, float]) -> None:
        """Let a row of a map count as unchanged up to a distance; unnamed maps are exact.

        Raises ValueError for a map that the plan does not prune, or a negative distance.
        """
        prunable = {step.layer.output for step in self.plan.steps if step.prunes}
        wrong = [name for name, limit in thresholds.items() if name not in prunable or limit < 0]
        if wrong:
            raise ValueError(f"no threshold can be set for {wrong[0]!r}")
        for row, index in enumerate(self._owner):
            self._thresholds[row] = thresholds.get(self._layers[index].output, 0.0)

    def tune(self) -> None:
        """Set `dense_above` by measuring this processor: what share of a segment is worth a whole.

        A segment that must compute more than this share computes all of it, without lists. Runs
        about ten full passes over noise. Raises ModelError when they give what is not finite.
        """
        shape = self.plan.shapes[self.plan.input_name]
        size = (shape.height, shape.width)
        noise = np.random.default_rng(0).integers(0, 256, (2, *size, shape.channels), np.uint8)
        state = self.new_state()
        self.run(state, noise[1])
        gathers, self.spent_ns = self.spent_ns, np.zeros(len(self._owner), np.int64)
        segments = np.array([self.plan.steps[index].segment for index in self._owner], np.intp)
        best = np.full((3, segments[-1] + 1), np.inf)
        masks = [np.full(size, kind > 0, np.uint8) for kind in range(3)]
        for turn in range(3 * TUNE_ROUNDS):
            kind = turn % 3  # nothing to do; everything, whole; everything, by lists
            self.dense_above[:] = (2, 0, 2)[kind]
            self.spent_ns[:] = 0
            self.run(state, noise[kind % 2], masks[kind])
            best[kind] = np.minimum(best[kind], np.bincount(segments, self.spent_ns))
        self.spent_ns = gathers
        nothing, whole, listed = best
        share = (whole - nothing) / np.maximum(1, listed - nothing)
        self.dense_above[:] = np.clip(share, LEAST_SHARE, 1)[segments]

    def run(
        self,
        state: State,
        pixels: Floats | Bytes,
        changed: Bytes | None = None,
        *,
        block: int = 1,
        mean: float = 0.0,
        scale: float = 1.0,
    ) -> Pass:
        """Bring a state up to a frame: all of it, or where `changed` is set.

        `pixels` float32 or uint8[h, w, channels] (the latter as (pixel - mean) * scale);
        `changed` uint8[h / block, w / block]. The state holds no pixels, and windows at the edge
        of a change read beyond it: where `changed` is not set, `pixels` must be what the state was
        computed from (the reference image, in which only changed cells were replaced). A cold
        state always gets a full pass. Raises ValueError for other shapes, ModelError when what
        comes out is not finite (the state is cold then).
        """
        shape = self.plan.shapes[self.plan.input_name]
        wanted = (shape.height, shape.width, shape.channels)
        if pixels.shape != wanted or pixels.dtype not in (np.float32, np.uint8):
            raise ValueError(f"pixels are {pixels.dtype}{list(pixels.shape)}, not {list(wanted)}")
        if state.floats.shape != (self.plan.state_floats,):
            raise ValueError("the state belongs to another model or another image size")
        compact: npt.NDArray[np.generic] = np.ascontiguousarray(pixels)
        full = changed is None or not state.is_warm
        mask = None
        if block < 1:
            raise ValueError(f"cells of {block} pixels are none")
        if changed is not None and not full:
            cells = (-(-shape.height // block), -(-shape.width // block))
            if changed.shape != cells or changed.dtype != np.uint8:
                raise ValueError(f"the mask is {changed.dtype}{list(changed.shape)}, not {cells}")
            changed = np.ascontiguousarray(changed)
            mask = changed.ctypes.data
        frame = CFrame(None, None, mean, scale, mask, block)
        if compact.dtype == np.uint8:
            frame.bytes = compact.ctypes.data
        else:
            frame.floats = compact.ctypes.data
        state.is_warm = False  # until this run has ended well
        broken = self._library.delta_run(
            self._program,
            state.floats.ctypes.data,
            ctypes.addressof(frame),
            *self._settings,
            None if self.spent_ns is None else self.spent_ns.ctypes.data,
        )
        if broken:
            state.floats.fill(0)  # the zeros around the maps too
            raise ModelError("the model gives values that are not finite: the state is dropped")
        state.is_warm = True
        return self._pass()

    def _pass(self) -> Pass:
        count = len(self._layers)
        dirty, changed = np.zeros(count, np.int32), np.zeros(count, np.int32)
        dirty[self._owner], changed[self._owner] = self._dirty, self._changed
        work = float((dirty / self._positions) @ self._macs) / max(1, self.plan.macs)
        return Pass(dirty, changed, work)

    def rows(self, state: State, name: str) -> Floats:
        """Return a map of a state, float32[positions, channels]; a view where it lies compactly.

        O(1), or O(positions) for a copy. Raises ValueError for a map that no state holds.
        """
        place, shape = self.plan.places[name], self.plan.shapes[name]
        buffer = self.plan.buffers[place.buffer]
        if buffer.is_shared:
            raise ValueError(f"no state holds {name!r}")
        whole = state.floats[buffer.offset : buffer.offset + buffer.floats]
        lines = whole.reshape(-1, buffer.pitch, buffer.channels)
        top, left = buffer.ring[:2]
        inside = lines[top : top + shape.height, left : left + shape.width]
        part = inside[..., place.column : place.column + shape.channels]
        rows: Floats = part.reshape(shape.positions, shape.channels)
        return rows


def _aligned(floats: int) -> Floats:
    # Vectors that straddle cache lines cost twice: numpy aligns to 16 bytes only.
    memory = np.zeros(4 * floats + LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % LINE_BYTES
    return memory[start : start + 4 * floats].view(np.float32)


def _flat(activation: Activation) -> tuple[int, float, float]:
    return _ACTIVATIONS[activation.kind], activation.low, activation.high
