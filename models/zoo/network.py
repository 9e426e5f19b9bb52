"""The student network: built for training, folded and written as ONNX for running.

Owns the architecture and its deployed form; never sees data or labels. Invariant: what is
written holds only convolutions and ReLUs up to the heads, because batch norms, identity skips
and the input scaling are folded into the weights, so that a sparse executor has k x k layers
with plain inputs and no global path. The shape is a 4x4/4 patchify stem, a 1x1, and per level
a 2x2/2 downsampling followed by full 3x3 convolutions; heads are 1x1-ReLU-1x1.

Deployed contract: `images` float32[n, 3, h, w], BGR, 0..255, h and w multiples of 32; `output`
float32[n, cells, 5] = x offset, y offset, log w, log h (units of the stride) and score.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from models.zoo.footage import Floats

OPSET = 13
INPUT_SCALE = 1 / 64
INPUT_SHIFT = -2.0
BATCH_NORM_MOMENTUM = 0.05
PRIOR_SCORE_LOGIT = -4.0
PRIOR_SIZE_CELLS = (2.5, 6.0)  # a standing person, so that boxes start near their targets


@dataclass(frozen=True)
class Architecture:
    """Widths and depths of one variant; `heads` are the strides that predict."""

    stem: int
    levels: tuple[tuple[int, int, int], ...]  # (stride, channels, 3x3 convolutions)
    heads: tuple[int, ...]

    def receptive_fields_px(self) -> dict[int, int]:
        """Return the side in input pixels that one cell of each head sees."""
        seen, below, found = 4, 4, {}
        for stride, _, depth in self.levels:
            seen += below + 2 * stride * depth
            below = stride
            found[stride] = seen
        return {stride: found[stride] for stride in self.heads}


ARCHITECTURES = {
    "small": Architecture(24, ((8, 32, 1), (16, 48, 2), (32, 64, 2)), (16, 32)),
    "large": Architecture(32, ((8, 48, 2), (16, 72, 3), (32, 80, 2)), (16, 32)),
}


@dataclass
class Block:
    """One convolution with batch norm, an optional identity skip, and a ReLU."""

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d
    identity: bool

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        out = self.norm(self.convolution(features))
        return torch.relu(out + features if self.identity else out)

    def folded(self) -> tuple[Floats, Floats]:
        """Return (weight, bias) of the one convolution that equals norm and skip together."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None, "norms keep running statistics"
        assert variance is not None, "norms keep running statistics"
        gain = (self.norm.weight / torch.sqrt(variance + self.norm.eps)).detach()
        weight = self.convolution.weight.detach() * gain.view(-1, 1, 1, 1)
        bias = self.norm.bias.detach() - mean * gain
        if self.identity:
            centre = torch.arange(weight.shape[0])
            weight[centre, centre, 1, 1] += 1
        return weight.numpy().astype(np.float32), bias.numpy().astype(np.float32)


def block(channels_in: int, channels: int, kernel: int, stride: int = 1) -> Block:
    """Build one block; same-size 3x3 blocks carry the identity skip."""
    padding = kernel // 2 if stride == 1 else 0
    convolution = nn.Conv2d(channels_in, channels, kernel, stride, padding, bias=False)
    norm = nn.BatchNorm2d(channels, momentum=BATCH_NORM_MOMENTUM)
    return Block(convolution, norm, identity=kernel == 3 and channels == channels_in)


@dataclass
class Head:
    """The predictor of one stride: box (4 channels) and score logit (1) of every cell."""

    hidden: Block
    box: nn.Conv2d
    score: nn.Conv2d

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.hidden(features)
        return torch.cat([self.box(hidden), self.score(hidden)], 1)


def head(channels: int) -> Head:
    """Build one head that starts at a low score and a person-shaped box."""
    box, score = nn.Conv2d(channels, 4, 1), nn.Conv2d(channels, 1, 1)
    for convolution in (box, score):
        nn.init.normal_(convolution.weight, std=0.01)
    assert box.bias is not None
    assert score.bias is not None
    with torch.no_grad():
        box.bias.copy_(torch.tensor([0.0, 0.0, *np.log(PRIOR_SIZE_CELLS)]))
        score.bias.fill_(PRIOR_SCORE_LOGIT)
    return Head(block(channels, channels, 1), box, score)


class Network:
    """A student in training; call it for raw maps, `parts` holds everything with weights."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        width = architecture.stem
        self.stem = [block(3, width, 4, 4), block(width, width, 1)]
        self.levels: dict[int, list[Block]] = {}
        self.heads: dict[int, Head] = {}
        for stride, channels, depth in architecture.levels:
            self.levels[stride] = [block(width, channels, 2, 2)]
            self.levels[stride] += [block(channels, channels, 3) for _ in range(depth)]
            if stride in architecture.heads:
                self.heads[stride] = head(channels)
            width = channels
        self.parts = nn.ModuleList(self._modules())

    def _blocks(self) -> list[Block]:
        trunk = self.stem + [block for level in self.levels.values() for block in level]
        return trunk + [head.hidden for head in self.heads.values()]

    def _modules(self) -> list[nn.Module]:
        found: list[nn.Module] = []
        for each in self._blocks():
            found += [each.convolution, each.norm]
        for each_head in self.heads.values():
            found += [each_head.box, each_head.score]
        return found

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Map float32[n, 3, h, w] to raw float32[n, 5, h/s, w/s] per head (score as logit)."""
        features = images * INPUT_SCALE + INPUT_SHIFT
        for each in self.stem:
            features = each(features)
        maps = []
        for stride, level in self.levels.items():
            for each in level:
                features = each(features)
            if stride in self.heads:
                maps.append(self.heads[stride](features))
        return maps

    def parameter_count(self) -> int:
        """Return how many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parts.parameters())

    def averaged_copy(self) -> Network:
        """Return a copy to hold the moving average of this network's weights."""
        return copy.deepcopy(self)

    def follow(self, other: Network, decay: float) -> None:
        """Move every number towards `other`'s: new = decay * old + (1 - decay) * other."""
        with torch.no_grad():
            mine, theirs = self.parts.state_dict(), other.parts.state_dict()
            for name, value in mine.items():
                if value.dtype.is_floating_point:
                    value.lerp_(theirs[name], 1 - decay)
                else:
                    value.copy_(theirs[name])


class _Graph:
    """Collects nodes and weights of the ONNX graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def convolution(
        self, source: str, name: str, conv: nn.Conv2d, weight: Floats, bias: Floats
    ) -> str:
        pad = int(conv.padding[0])
        inputs = [
            source,
            self.constant(f"{name}.weight", weight),
            self.constant(f"{name}.bias", bias),
        ]
        return self.add(
            "Conv",
            inputs,
            name,
            kernel_shape=list(conv.kernel_size),
            strides=list(conv.stride),
            pads=[pad] * 4,
        )

    def block(self, source: str, name: str, each: Block, first: bool = False) -> str:
        weight, bias = each.folded()
        if first:  # a shift before zero padding would not fold, but the stem has no padding
            bias = bias + INPUT_SHIFT * weight.sum((1, 2, 3))
            weight = weight * np.float32(INPUT_SCALE)
        made = self.convolution(source, f"{name}.conv", each.convolution, weight, bias)
        return self.add("Relu", [made], f"{name}.relu")

    def plain(self, source: str, name: str, conv: nn.Conv2d, bias_shift: float = 0.0) -> str:
        weight = conv.weight.detach().numpy().astype(np.float32)
        assert conv.bias is not None, "heads carry a bias"
        bias = conv.bias.detach().numpy().astype(np.float32) + np.float32(bias_shift)
        return self.convolution(source, name, conv, weight, bias)


def deployed_bytes(network: Network, score_logit_shift: float = 0.0) -> bytes:
    """Return the folded network as ONNX bytes, its score logits moved by the given amount."""
    graph = _Graph()
    shape = graph.constant("cells_shape", np.array([0, 5, -1], np.int64))
    source = "images"
    for index, each in enumerate(network.stem):
        source = graph.block(source, f"stem{index}", each, first=index == 0)
    flat = []
    for stride, level in network.levels.items():
        for index, each in enumerate(level):
            source = graph.block(source, f"s{stride}.{index}", each)
        if stride in network.heads:
            head_ = network.heads[stride]
            hidden = graph.block(source, f"head{stride}.hidden", head_.hidden)
            box = graph.plain(hidden, f"head{stride}.box", head_.box)
            logit = graph.plain(hidden, f"head{stride}.logit", head_.score, score_logit_shift)
            score = graph.add("Sigmoid", [logit], f"head{stride}.score")
            joined = graph.add("Concat", [box, score], f"head{stride}.map", axis=1)
            flat.append(graph.add("Reshape", [joined, shape], f"head{stride}.cells"))
    cells = graph.add("Concat", flat, "cells", axis=2)
    graph.add("Transpose", [cells], "output", perm=[0, 2, 1])
    proto = helper.make_graph(
        graph.nodes,
        "person_detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", "cells", 5])],
        graph.weights,
    )
    model = helper.make_model(
        proto, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name=""
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def save_checkpoint(network: Network) -> bytes:
    """Return the training-time weights, to be exported again with another bias."""
    buffer = io.BytesIO()
    torch.save(network.parts.state_dict(), buffer)
    return buffer.getvalue()


def load_checkpoint(network: Network, data: bytes) -> None:
    """Fill `network` with the weights `save_checkpoint` returned."""
    network.parts.load_state_dict(torch.load(io.BytesIO(data), weights_only=True))
