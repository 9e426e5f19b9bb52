"""Small ONNX networks for tests of differential inference, and the reference that runs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnxruntime

from models.delta.graphexec import GraphProgram, GraphState
from models.delta.layers import Analysis
from models.delta.native import NativeProgram, State
from models.delta.onnxfile import Array, Attribute, Model, Node, Value, write_model
from models.delta.plan import Plan

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
TOLERANCE = 1e-4  # of full scale


class Net:
    """Writes a network node by node; every method returns the name of what it made."""

    def __init__(self, seed: int = 0, channels: int = 3) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = {}
        self.channels = {"image": channels}

    def constant(self, value: npt.ArrayLike, kind: type[np.generic] = np.float32) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = np.asarray(value, kind)
        return name

    def add(self, kind: str, *inputs: str, channels: int = 0, **attributes: Attribute) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(Node(kind, inputs, (name,), dict(attributes), name))
        self.channels[name] = channels or self.channels[inputs[0]]
        return name

    def conv(
        self,
        source: str,
        channels: int,
        kernel: int = 3,
        stride: int = 1,
        pads: tuple[int, int, int, int] | None = None,
        dilation: int = 1,
        groups: int = 1,
    ) -> str:
        inner = self.channels[source] // groups
        shape = (channels, inner, kernel, kernel)
        weight = self.rng.normal(0, (inner * kernel * kernel) ** -0.5, shape)
        edge = dilation * (kernel // 2)
        return self.add(
            "Conv",
            source,
            self.constant(weight),
            self.constant(self.rng.normal(0, 0.2, channels)),
            channels=channels,
            kernel_shape=(kernel, kernel),
            strides=(stride, stride),
            pads=pads or (edge,) * 4,
            dilations=(dilation, dilation),
            group=groups,
        )

    def model(self, *outputs: str, opset: int = 13) -> Model:
        image = Value("image", 1, ("n", self.channels["image"], "h", "w"))
        results = tuple(Value(name, 1, None) for name in outputs)
        return Model(tuple(self.nodes), self.constants, (image,), results, (), {"": opset}, 8)


def random_net(seed: int) -> Model:
    """Return a network of randomly chosen local layers with several outputs."""
    net = Net(seed)
    pick = net.rng.integers
    x = net.conv("image", int(pick(4, 20)), int(pick(2, 5)), int(pick(1, 3)), (1, 0, 0, 1))
    kinds = ("Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid")
    for _ in range(5):
        x = net.add(kinds[pick(len(kinds))], x)
        choice = pick(9)
        width = net.channels[x]
        if choice == 0:
            x = net.conv(x, int(pick(1, 40)), 3, int(pick(1, 3)), dilation=int(pick(1, 4)))
        elif choice == 1:
            x = net.conv(x, width, 3, 1, groups=width)
            x = net.conv(x, int(pick(5, 70)), 1)
        elif choice == 2:
            side = net.conv(x, width, 5, 1)
            x = net.add("Add", net.add("Mul", side, net.add("Sigmoid", side)), x)
        elif choice == 3:
            pools = [
                net.add("MaxPool", x, kernel_shape=(k, k), strides=(1, 1), pads=(k // 2,) * 4)
                for k in (5, 3)
            ]
            x = net.add("Concat", x, *pools, x, axis=1, channels=4 * width)
        elif choice == 4:
            x = net.add(
                "MaxPool", x, kernel_shape=(2, 2), strides=(2, 2), pads=(0, 0, 0, 0), ceil_mode=1
            )
        elif choice == 5:
            x = net.conv(x, 2 * int(pick(2, 9)), 1)
            half = net.channels[x] // 2
            starts, ends = net.constant([half], np.int64), net.constant([2 * half], np.int64)
            part = net.add("Slice", x, starts, ends, net.constant([1], np.int64), channels=half)
            x = net.add("Concat", net.conv(part, 7, 3), x, axis=1, channels=7 + 2 * half)
        elif choice == 6:
            none, scale = net.constant([]), net.constant([1, 1, 2, 2])
            how: dict[str, Attribute] = {
                "mode": b"nearest",
                "coordinate_transformation_mode": b"asymmetric",
                "nearest_mode": b"floor",
            }
            x = net.conv(net.add("Resize", x, none, scale, **how), 6, 3, 2)
        elif choice == 7:
            gain = net.constant(net.rng.normal(1, 0.2, (1, width, 1, 1)))
            x = net.add("Sub", net.add("Mul", x, gain), net.constant(0.25))
            x = net.add("Clip", x, net.constant(-0.3), net.constant(0.8))
        else:
            left, right = net.conv(x, 9, 3), net.conv(x, 9, 1)
            x = net.conv(net.add("Mul", left, right), int(pick(2, 12)), 2, 2, (0, 0, 0, 0))
    head = net.add("Sigmoid", net.conv(x, 3, 1))
    return net.model(x, head)


class Reference:
    """Runs the whole model, and reads the values where its local layers end."""

    def __init__(self, model: Model, analysis: Analysis) -> None:
        self.names = list(analysis.frontier)
        self._input = analysis.input_name
        wanted = tuple(Value(name, 1, None) for name in self.names)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            write_model(replace(model, outputs=wanted)), options, ["CPUExecutionProvider"]
        )

    def rows(self, pixels: Floats) -> dict[str, Floats]:
        """Return each local value's rows, float32[positions, channels]."""
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        values = self._session.run(None, {self._input: planes})
        return {
            name: value[0].reshape(value.shape[1], -1).T
            for name, value in zip(self.names, values, strict=True)
        }


def worst_error(
    plan: Plan,
    program: NativeProgram | GraphProgram,
    state: State | GraphState,
    expected: dict[str, Floats],
) -> float:
    """Return the largest difference over all frontier maps, as a share of each one's scale."""
    worst = 0.0
    for name, rows in expected.items():
        got = program.rows(state, plan.frontier[name])  # type: ignore[arg-type]
        assert got.shape == rows.shape
        worst = max(worst, float(np.abs(got - rows).max() / (np.abs(rows).max() + 1e-9)))
    return worst


def masks(size: tuple[int, int], seed: int = 0) -> Iterator[Mask]:
    """Yield changed pixels: a border, the corners, scattered ones, a block, none, all."""
    rng = np.random.default_rng(seed)
    height, width = size
    for kind in range(6):
        mask = np.zeros(size, np.uint8)
        if kind == 0:
            mask[:2] = mask[:, -1] = 1
        elif kind == 1:
            mask[0, 0] = mask[0, -1] = mask[-1, 0] = mask[-1, -1] = 1
        elif kind == 2:
            mask[rng.integers(0, height, 12), rng.integers(0, width, 12)] = 1
        elif kind == 3:
            top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
            mask[top : top + height // 3, left : left + width // 3] = 1
        elif kind == 5:
            mask[:] = 1
        yield mask


def changed(pixels: Floats, mask: Mask, rng: np.random.Generator) -> Floats:
    """Return pixels with new values under a mask."""
    fresh = rng.uniform(0, 255, pixels.shape).astype(np.float32)
    return np.where(mask[..., None] > 0, fresh, pixels)
