"""The shipped detectors: their files keep the contract, and still agree with their teacher."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="no ONNX Runtime: install one of [cpu], [cuda], ...")
pytest.importorskip("av", reason="no PyAV: install [video]")

from models.zoo.evaluate import MANIFEST, ZOO, measure, open_session, pooled, shipped

SIZE_LIMIT_BYTES = 1_500_000
ALLOWED_NODES = {
    *("Conv", "Relu", "Sigmoid", "Concat"),
    *("Reshape", "Flatten", "Transpose", "Slice"),
}
F1_FLOORS = {"small": 0.87, "large": 0.89}  # a little below MODEL_CARD.md
UNSEEN_FLOOR = 0.80
ENTRIES = {
    entry["variant"]: entry
    for entry in json.loads(MANIFEST.read_text(encoding="utf-8"))["variants"]
}
VARIANTS = pytest.mark.parametrize("entry", list(ENTRIES.values()), ids=list(ENTRIES))


def fields(data: bytes, wanted: int) -> Iterator[bytes]:
    """Yield the length-delimited fields numbered `wanted` of one protobuf message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            varint()
        elif key & 7 == 2:
            size = varint()
            if key >> 3 == wanted:
                yield data[at : at + size]
            at += size
        else:
            at += {1: 8, 5: 4}[key & 7]


def node_kinds(model: bytes) -> set[str]:
    """Return the operators of an ONNX file, read without the onnx package."""
    graph_field, node_field, kind_field = 7, 1, 4
    (graph,) = fields(model, graph_field)
    nodes = fields(graph, node_field)
    return {kind.decode() for node in nodes for kind in fields(node, kind_field)}


def file_of(entry: dict[str, Any]) -> Path:
    return ZOO / str(entry["file"])


def test_two_variants_are_shipped() -> None:
    assert list(ENTRIES) == ["small", "large"]


@VARIANTS
def test_manifest_describes_the_file(entry: dict[str, Any]) -> None:
    data = file_of(entry).read_bytes()
    assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    assert len(data) == entry["size_bytes"] <= SIZE_LIMIT_BYTES
    assert entry["training"], "the shipped weights are trained"
    assert entry["agreement_f1"] >= F1_FLOORS[entry["variant"]]


@VARIANTS
def test_only_plain_operators(entry: dict[str, Any]) -> None:
    kinds = node_kinds(file_of(entry).read_bytes())
    assert {"Conv", "Relu", "Sigmoid"} <= kinds <= ALLOWED_NODES


@VARIANTS
@pytest.mark.parametrize("shape", [(1, 192, 320), (2, 416, 256)])
def test_any_size_and_batch(entry: dict[str, Any], shape: tuple[int, int, int]) -> None:
    count, height, width = shape
    session = open_session(file_of(entry))
    images = np.random.default_rng(0).uniform(0, 255, (count, 3, height, width))
    (output,) = session.run(["output"], {entry["input"]["name"]: images.astype(np.float32)})
    cells = sum((height // stride) * (width // stride) for stride in entry["strides"])
    assert output.dtype == np.float32
    assert output.shape == (count, cells, 5)
    assert np.isfinite(output).all()
    assert ((output[..., 4] >= 0) & (output[..., 4] <= 1)).all()


@VARIANTS
def test_images_of_a_batch_do_not_touch(entry: dict[str, Any]) -> None:
    session = open_session(file_of(entry))
    images = np.random.default_rng(1).uniform(0, 255, (2, 3, 96, 128)).astype(np.float32)
    (both,) = session.run(["output"], {"images": images})
    (second,) = session.run(["output"], {"images": images[1:]})
    np.testing.assert_allclose(both[1:], second, rtol=1e-4, atol=1e-5)


def test_agrees_with_the_teacher_on_held_out_footage(assets: Path) -> None:
    """Every fifth held-out frame: enough to see damage; MODEL_CARD.md has all of them."""
    detectors, own = shipped()
    table = measure(assets, detectors, {name: [own[name]] for name in own}, every=5)
    everything = pooled(table, table)
    for name, floor in F1_FLOORS.items():
        got = everything[name, own[name]]
        assert got.expected > 50
        assert got.f1 >= floor, f"{name}: {got}"
        (unseen,) = (row[name, own[name]] for split, row in table.items() if "unseen" in split)
        assert unseen.f1 >= UNSEEN_FLOOR, f"{name}: {unseen}"
