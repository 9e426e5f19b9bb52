"""Manifests and sessions: the packaged detector runs, anything unfit is refused in clear words."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.accelerators import AcceleratorSpec
from models.images import Canvas, Scaler, decode_jpeg, encode_jpeg, fitted
from models.manifest import PACKAGED, ModelError, load_manifest
from models.sessions import open_warm
from models.tasks import cell_count, decode_detections, preprocess, suppress
from models.wire import ModelFile
from tests.clips import model_file, picture, tiny_detector

CPU = AcceleratorSpec("cpu0", "cpu")


def manifest_with(folder: Path, change: Any) -> Path:
    """Copy the packaged zoo and let `change` edit the manifest's data."""
    for file in PACKAGED.parent.glob("*.onnx"):
        shutil.copy(file, folder)
    data = json.loads(PACKAGED.read_text())
    change(data)
    path = folder / "m.json"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("variant", ["small", "large"])
@pytest.mark.parametrize(("width", "height"), [(640, 368), (362, 640), (320, 240)])
def test_the_packaged_detector_runs_on_any_camera(variant: str, width: int, height: int) -> None:
    session = open_warm(load_manifest().variants[variant], CPU)
    canvas = session.canvas(picture(width, height), Scaler())
    rows, columns = canvas.pixels.shape[:2]
    assert max(canvas.width, canvas.height) == session.long_side
    assert not rows % session.multiple
    assert not columns % session.multiple
    boxes = session.run(canvas)
    assert boxes == session.run(canvas)
    for box in boxes:
        assert len(box) == 6
        assert 0 <= box[0] <= box[2] <= 1
        assert 0 <= box[1] <= box[3] <= 1
        assert session.model.spec["score_threshold"] < box[4] <= 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("name"), "lacks 'name'"),
        (lambda d: d.update(extra=1), "unknown key 'extra'"),
        (lambda d: d.update(task="caption"), "task is 'caption'"),
        (lambda d: d["variants"].clear(), "variants is empty"),
        (lambda d: d["variants"][0].update(strides="8"), r"variants\[0\] strides must be list"),
        (lambda d: d["variants"][0].update(strides=[0]), "strides must be positive"),
        (lambda d: d["variants"][1].update(file="gone.onnx"), "gone.onnx: missing model file"),
        (lambda d: d["variants"][0].update(size_bytes=1), "size_bytes says 1"),
        (lambda d: d["variants"][0].update(sha256="0" * 64), "sha256 is"),
        (lambda d: d["variants"][0]["input"].update(layout="nhwc"), "must be layout 'nchw'"),
        (lambda d: d["variants"][0]["input"].update(long_side=1), "long_side is 1"),
        (lambda d: d["variants"][0]["input"].update(multiple=20), "multiple is 20"),
        (lambda d: d["variants"][0].update(score_threshold=2), "score_threshold is 2"),
        (lambda d: d["variants"][1].update(variant="small"), "'small' appears twice"),
        (lambda d: d["variants"][0].update(quality=0.9), r"variants\[0\]: .* quality is 0.9"),
        (lambda d: d["variants"][1]["quality"].update(half=2), r"variants\[1\]: .*in 0..1"),
        (lambda d: d["variants"][1]["quality"].update(third=0.5), "for full and half"),
    ],
)
def test_a_wrong_manifest_names_file_and_field(tmp_path: Path, change: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        load_manifest(manifest_with(tmp_path, change))
    assert str(tmp_path) in str(caught.value)


def test_a_missing_or_unreadable_manifest_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such manifest"):
        load_manifest(tmp_path / "none.json")
    (tmp_path / "m.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        load_manifest(tmp_path / "m.json")


def test_a_damaged_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    model = load_manifest().variants["small"]
    damaged = tmp_path / "damaged.onnx"
    data = bytearray(Path(model.path).read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(ModelError, match="the file is damaged"):
        open_warm(dataclasses.replace(model, path=str(damaged)), CPU)
    with pytest.raises(ModelError, match="cannot be read"):
        open_warm(dataclasses.replace(model, path=str(tmp_path / "gone")), CPU)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"not a model at all", "refuses it"),
        (b"", "refuses it"),
        (tiny_detector(["n", 3, "h", "w"])[:200], "refuses it"),
        (tiny_detector(["n", 1, "h", "w"]), "refuses it|cameras give"),
        (tiny_detector([8, 3, "h", "w"]), "batches of 8"),
        (tiny_detector(["n", 3, "h", "w"], columns=3), r"needs \[1, .*, 4 \+ classes\]"),
        (tiny_detector(["n", 3, "h", "w"], fill=float("nan")), "not finite"),
    ],
)
def test_an_unfit_model_is_refused_at_load(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        open_warm(model_file(tmp_path / "unfit.onnx", data), CPU)
    assert "unfit.onnx" in str(caught.value)


def test_wrong_manifest_numbers_are_refused_at_load(tmp_path: Path) -> None:
    data = tiny_detector(["n", 3, "h", "w"])
    with pytest.raises(ModelError, match="its manifest says 'pixels'"):
        open_warm(model_file(tmp_path / "a.onnx", data, name="pixels"), CPU)
    model = model_file(tmp_path / "a.onnx", data)
    wrong = model.spec | {"strides": [32]}
    with pytest.raises(ModelError, match="correct its manifest"):
        open_warm(dataclasses.replace(model, spec=wrong), CPU)
    with pytest.raises(ModelError, match="manifest entry is unusable"):
        open_warm(ModelFile("x", "y", "1", model.path, model.digest, {}), CPU)


def test_a_fixed_input_takes_what_fits_and_refuses_the_rest(tmp_path: Path) -> None:
    model = model_file(tmp_path / "f.onnx", tiny_detector([1, 3, 224, 320]))
    session = open_warm(model, CPU)
    assert session.canvas(picture(640, 368), Scaler()).pixels.shape == (224, 320, 3)
    assert session.run(session.canvas(picture(640, 368), Scaler())) == []
    with pytest.raises(ModelError, match=r"takes 224 x 320 pixels .* need 320 x 192"):
        session.check_fits(368, 640)


def test_decoding_finds_planted_boxes_and_drops_doubles() -> None:
    canvas = Canvas(np.zeros((192, 320, 3), np.uint8), 320, 180)
    output = np.zeros((cell_count(192, 320, (16, 32)), 5), np.float32)
    output[3 * 20 + 5] = [0.5, 0.5, np.log(2), np.log(4), 0.9]  # stride 16, cell (5, 3)
    output[3 * 20 + 6] = [-0.4, 0.5, np.log(2), np.log(4), 0.8]  # nearly the same box
    output[240 + 2 * 10 + 7] = [0, 0, 0, 0, 0.7]  # stride 32, cell (7, 2)
    output[0] = [0, 0, 0, 0, 0.3]  # not above the threshold
    output[1] = [np.nan, 0, 0, 0, 0.99]
    boxes = decode_detections(output, canvas, (16, 32), 0.3, 0.5)
    assert np.allclose(boxes[0], [72 / 320, 24 / 180, 104 / 320, 88 / 180, 0.9, 0])
    assert np.allclose(boxes[1], [208 / 320, 48 / 180, 240 / 320, 80 / 180, 0.7, 0])
    assert len(boxes) == 2
    assert decode_detections(output[:0], canvas, (16, 32), 0.3, 0.5) == []


def test_suppression_spares_other_classes() -> None:
    corners = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]], np.float32)
    scores = np.array([0.5, 0.9, 0.7], np.float32)
    assert suppress(corners, scores, np.array([0, 0, 1]), 0.5) == [1, 2]


def test_pixels_survive_jpeg_scaling_and_preprocessing() -> None:
    scaler, pixels = Scaler(), picture(322, 190)
    data = encode_jpeg(pixels)
    back = decode_jpeg(data, scaler)
    assert len(data) < pixels.nbytes / 4
    assert back.shape == pixels.shape
    # Chroma is subsampled, so hard colour edges suffer: compare at a quarter of the size.
    small, small_back = scaler.resize(pixels, 80, 48), scaler.resize(back, 80, 48)
    assert np.abs(small_back.astype(int) - small).mean() < 4
    half = scaler.resize(pixels, 161, 95)
    assert np.abs(half.mean((0, 1)) - pixels.mean((0, 1))).max() < 1.5  # channels keep their order
    planes = preprocess(pixels)
    assert planes.shape == (1, 3, 190, 322)
    assert np.array_equal(planes[0, 2], pixels[..., 2])
    for garbage in (b"", b"\xff\xd8garbage", data[: len(data) // 8]):
        with pytest.raises(ValueError, match="the image"):
            decode_jpeg(garbage, scaler)


def test_a_size_without_area_is_refused() -> None:
    with pytest.raises(ValueError, match="no area"):
        fitted(0, 100, 640, enlarge=True)
    assert fitted(3000, 1, 640, enlarge=True) == (640, 1)
    assert fitted(100, 50, 640, enlarge=False) == (100, 50)
