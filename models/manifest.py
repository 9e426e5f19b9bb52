"""The manifest of a model: its variants, their files, and how an image becomes their input.

Owns the reading and checking of manifest files; never opens a session. Invariant: every variant
of a loaded manifest names a file that exists and has the promised size; the bytes themselves
are checked against their sha256 when they are loaded (and here, unless told otherwise).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.wire import EFFORTS, ModelError, ModelFile

__all__ = ["Manifest", "ModelError", "load_manifest"]

PACKAGED = Path(__file__).parent / "zoo" / "person-detector.json"

_Kinds = Mapping[str, type | tuple[type, ...]]

_TOP: _Kinds = {"name": str, "task": str, "classes": list, "variants": list}
_VARIANT: _Kinds = {
    "variant": str,
    "version": str,
    "file": str,
    "sha256": str,
    "size_bytes": int,
    "input": dict,
    "strides": list,
    "score_threshold": (int, float),
    "nms_iou": (int, float),
}
_INPUT: _Kinds = {
    "name": str,
    "layout": str,
    "color": str,
    "range": list,
    "pad_value": int,
    "multiple": int,
    "long_side": int,
}
_OPTIONAL = {"agreement_f1", "quality", "training"}


@dataclass(frozen=True)
class Manifest:
    """Hold one model: its name, task, class names and the files of its variants."""

    name: str
    task: str
    classes: tuple[str, ...]
    variants: dict[str, ModelFile]


def load_manifest(path: Path | None = None, *, check_digests: bool = True) -> Manifest:
    """Read a manifest and check its files; None reads the packaged detector's.

    Raises ModelError naming the file, the field and the remedy. O(bytes of the files) with
    `check_digests`.
    """
    source = path or PACKAGED
    try:
        data = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{source}: no such manifest; name an existing file in [model] manifest"
        ) from None
    except OSError as error:
        raise ModelError(f"{source}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ModelError(f"{source}: not JSON ({error}); restore the file") from None
    _check(data, _TOP, source, "")
    if data["task"] != "detect":
        raise ModelError(f"{source}: task is {data['task']!r}; this version runs 'detect' only")
    variants: dict[str, ModelFile] = {}
    for index, spec in enumerate(data["variants"]):
        where = f"variants[{index}]"
        _check(spec, _VARIANT, source, where, _OPTIONAL)
        _check(spec["input"], _INPUT, source, f"{where}.input")
        _check_ranges(spec, source, where)
        if spec["variant"] in variants:
            raise ModelError(f"{source}: {where}.variant {spec['variant']!r} appears twice")
        file = source.parent / spec["file"]
        _check_file(file, spec, check_digests)
        model = ModelFile(
            data["name"], spec["variant"], spec["version"], str(file), spec["sha256"], spec
        )
        _check_quality(model, source, where)
        variants[model.variant] = model
    if not variants:
        raise ModelError(f"{source}: variants is empty; a model needs at least one")
    return Manifest(data["name"], data["task"], tuple(map(str, data["classes"])), variants)


def _check(
    data: object,
    wanted: _Kinds,
    source: Path,
    where: str,
    optional: set[str] | frozenset[str] = frozenset(),
) -> None:
    place = f" {where}" if where else ""
    if not isinstance(data, dict):
        raise ModelError(f"{source}:{place} must be an object, not {type(data).__name__}")
    for key, kind in wanted.items():
        if key not in data:
            raise ModelError(f"{source}:{place} lacks {key!r}; add it")
        if not isinstance(data[key], kind) or isinstance(data[key], bool):
            name = kind.__name__ if isinstance(kind, type) else "number"
            raise ModelError(f"{source}:{place} {key} must be {name}, not {data[key]!r}")
    unknown = sorted(set(data) - set(wanted) - optional)
    if unknown:
        raise ModelError(f"{source}:{place} has the unknown key {unknown[0]!r}; remove it")


def _check_ranges(spec: dict[str, Any], source: Path, where: str) -> None:
    shape = spec["input"]
    if shape["layout"] != "nchw" or shape["color"] != "bgr" or shape["range"] != [0, 255]:
        raise ModelError(
            f"{source}: {where}.input must be layout 'nchw', color 'bgr', range [0, 255]; "
            f"it is {shape['layout']!r}, {shape['color']!r}, {shape['range']}"
        )
    strides = spec["strides"]
    if not strides or any(not isinstance(s, int) or s < 1 for s in strides):
        raise ModelError(f"{source}: {where}.strides must be positive integers, not {strides}")
    multiple, long_side = shape["multiple"], shape["long_side"]
    if multiple < 1 or any(multiple % s for s in strides):
        raise ModelError(
            f"{source}: {where}.input.multiple is {multiple}; it must be a multiple of {strides}"
        )
    if not multiple <= long_side <= 4096:
        raise ModelError(
            f"{source}: {where}.input.long_side is {long_side}; it must be in {multiple}..4096"
        )
    for key in ("score_threshold", "nms_iou"):
        if not 0 < spec[key] < 1:
            raise ModelError(f"{source}: {where}.{key} is {spec[key]}; it must be in 0..1")


def _check_quality(model: ModelFile, source: Path, where: str) -> None:
    try:
        for effort in EFFORTS:
            model.quality(effort)
    except ModelError as error:
        raise ModelError(f"{source}: {where}: {error}") from None


def _check_file(file: Path, spec: dict[str, Any], check_digest: bool) -> None:
    try:
        size = file.stat().st_size
    except OSError:
        raise ModelError(
            f"{file}: missing model file of variant {spec['variant']!r}; "
            "reinstall the package or put the file there"
        ) from None
    if size != spec["size_bytes"]:
        raise ModelError(
            f"{file}: has {size} bytes, its manifest's size_bytes says {spec['size_bytes']}; "
            "the file is damaged or of another version: fetch it again"
        )
    if check_digest and (found := hashlib.sha256(file.read_bytes()).hexdigest()) != spec["sha256"]:
        raise ModelError(
            f"{file}: sha256 is {found}, its manifest says {spec['sha256']}; "
            "the file is damaged or of another version: fetch it again"
        )
