"""Execute a plan as one ONNX graph of stock operators, on any execution provider.

Owns the session and its states; never decides what has changed. Invariants are those of
`native`: a state is warm only after a run that gave finite values, and a run that did not makes
it cold again. Its states hold every map, the image too, whatever the plan's budget says.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnxruntime

from models.accelerators import AcceleratorSpec
from models.delta.graphcode import AFTER, MASK, Compiler, compile_graph
from models.delta.layers import Floats
from models.delta.onnxfile import write_model
from models.delta.plan import Plan
from models.runtime import open_session
from models.wire import ModelError

Bytes = npt.NDArray[np.uint8]


class GraphState:
    """One camera's maps, bound to the graph in place; `is_warm` as in `native.State`."""

    def __init__(self, arrays: dict[str, Floats], binding: onnxruntime.IOBinding) -> None:
        self.arrays = arrays
        self.binding = binding
        self.is_warm = False

    @property
    def size_bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


class GraphProgram:
    """A plan as a session of an execution provider. Not for concurrent use."""

    def __init__(
        self,
        plan: Plan,
        accelerator: AcceleratorSpec,
        thresholds: Mapping[str, float] | None = None,
    ) -> None:
        """Compile and open the graph. Raises ModelError when the provider refuses it."""
        self.plan = plan
        self._compiler = Compiler(plan, None)
        model = compile_graph(plan, thresholds)
        self.node_count = len(model.nodes)
        self._session = open_session(write_model(model), accelerator)
        self._shapes = {value.name: value.shape for value in model.inputs}
        self._taken = {one.name for one in self._session.get_inputs()}
        self._pixels = self._compiler.lines(plan.input_name).numbers()
        self._joined = {
            step.layer.output: step.layer.inputs
            for step in plan.steps
            if step.layer.kind == "concat"
        }

    def new_state(self) -> GraphState:
        """Return a cold state for one camera, in host memory. O(state)."""
        arrays: dict[str, Floats] = {}
        binding = self._session.io_binding()
        for name, shape in self._shapes.items():
            assert shape is not None, "compile_graph names every shape"
            array: Floats = np.zeros([int(side or 0) for side in shape], np.float32)
            arrays[name] = array
            if name in self._taken:
                binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
            if name not in (MASK, self.plan.input_name):
                binding.bind_output(
                    name + AFTER, "cpu", 0, np.float32, array.shape, array.ctypes.data
                )
        return GraphState(arrays, binding)

    def run(self, state: GraphState, pixels: Floats | Bytes, changed: Bytes | None = None) -> None:
        """Bring a state up to a frame: all of it, or where `changed` uint8[h, w] is set.

        `pixels` float32 or uint8[h, w, channels]. Raises ValueError for other shapes,
        ModelError when the provider fails or gives what is not finite (the state is cold then).
        """
        shape = self.plan.shapes[self.plan.input_name]
        wanted = (shape.height, shape.width, shape.channels)
        if pixels.shape != wanted:
            raise ValueError(f"pixels are {list(pixels.shape)}, not {list(wanted)}")
        if changed is not None and changed.shape != wanted[:2]:
            raise ValueError(f"the mask is {list(changed.shape)}, not {list(wanted[:2])}")
        mask = state.arrays[MASK].reshape(-1)
        if changed is None or not state.is_warm:
            mask[:] = 1
            self._inside(state, self.plan.input_name)[:] = pixels
        else:
            # By index: a masked copy of the whole image costs more than a small sparse run.
            where = np.flatnonzero(changed != 0)  # of bool: ten times faster than of bytes
            mask[:] = 0
            mask[where] = 1
            flat = pixels.reshape(-1, shape.channels)
            state.arrays[self.plan.input_name][self._pixels[where]] = flat[where]
        state.is_warm = False
        try:
            self._session.run_with_iobinding(state.binding)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime raises its own unexported classes
            text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise ModelError(f"the delta graph failed: {text}") from None
        for name in dict.fromkeys(self.plan.frontier.values()):
            if not np.isfinite(self.rows(state, name).sum(dtype=np.float64)):
                raise ModelError("the model gives values that are not finite: the state is dropped")
        state.is_warm = True

    def _inside(self, state: GraphState, name: str) -> Floats:
        """Return a map's positions without the ring, float32[height, width, channels]."""
        lines = self._compiler.lines(name)
        whole = state.arrays[name].reshape(-1, lines.pitch, self.plan.shapes[name].channels)
        top, left = lines.ring[:2]
        return whole[top : top + lines.height, left : left + lines.width]

    def rows(self, state: GraphState, name: str) -> Floats:
        """Return a map of a state, float32[positions, channels]; a copy where it is joined."""
        if name in self._joined:
            return np.concatenate([self.rows(state, each) for each in self._joined[name]], axis=1)
        rows: Floats = self._inside(state, name).reshape(-1, self.plan.shapes[name].channels)
        return rows
