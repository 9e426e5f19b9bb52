"""The native kernels on 64-bit Arm, cross-compiled and run under user-mode emulation."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from models.delta.library import FOLDER
from models.delta.native import NativeProgram, _Arena, library
from models.delta.onnxfile import write_model
from tests.delta_nets import changed, random_net
from tests.models.test_delta_exact import ZOO, compiled

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the driver compiled for Arm, or skip with what is missing."""
    if library() is None:
        pytest.skip("the native kernels were not built here: nothing to compare with")
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (apt: gcc-aarch64-linux-gnu, qemu-user-static)")
    path = tmp_path_factory.mktemp("arm") / "driver"
    sources = [str(FOLDER / "delta.c"), str(Path(__file__).parent / "delta_driver.c")]
    flags = ["-std=gnu11", "-O2", "-ffp-contract=fast", "-static", f"-I{FOLDER}"]
    done = subprocess.run(
        [COMPILER, *flags, "-o", str(path), *sources, "-lm"],
        capture_output=True,
        text=True,
        check=False,
    )
    if "stdio.h" in done.stderr or "cannot find -lc" in done.stderr:
        pytest.skip("the cross compiler has no C library (apt: libc6-dev-arm64-cross)")
    assert done.returncode == 0, done.stderr
    return path


def written(program: NativeProgram, frames: list[np.ndarray], mask: np.ndarray) -> bytes:
    """Return a program and its input as the driver reads them."""
    arena = _Arena()
    maps, mask_bytes = program._maps()
    rows, _ = program._rows(arena)
    blob = b""
    places: dict[int, int] = {}
    for array in arena.arrays:
        places[array.ctypes.data] = len(blob) + 1
        blob += array.tobytes() + bytes(-array.nbytes % 16)
    for row in rows:
        for name in ("weight", "bias", "rows", "columns", "picked"):
            address = getattr(row, name)
            setattr(row, name, places[address] if address else None)
    steps = b"".join(bytes(row) for row in rows)
    plan = program.plan
    head = [len(maps), len(rows), program._index[plan.input_name], plan.state_floats]
    head += [mask_bytes, mask.size, len(blob), plan.scratch_floats]
    parts = [np.array(head, np.int64).tobytes(), bytes(maps), steps]
    parts += [frame.tobytes() for frame in frames]
    return b"".join([*parts, mask.tobytes(), blob])


@pytest.mark.parametrize("which", ["detector", "random 3", "random 8", "random 8 tight"])
def test_arm_computes_what_this_processor_does(which: str, driver: Path, tmp_path: Path) -> None:
    if which == "detector":
        data, size = (ZOO / "person-detector-small.onnx").read_bytes(), (64, 96)
    else:
        data, size = write_model(random_net(int(which.split()[1]))), (31, 42)
    _, _, plan = compiled(data, size, 0 if which.endswith("tight") else 1 << 30)
    program = NativeProgram(plan, "plain")
    program.dense_above[:] = 2
    rng = np.random.default_rng(5)
    first = rng.uniform(0, 255, (*size, 3)).astype(np.float32)
    mask = np.zeros(size, np.uint8)
    mask[:4, -9:] = mask[20:30, 10:30] = 1
    frames = [first, changed(first, mask, rng)]
    state = program.new_state()
    program.run(state, frames[0])
    program.run(state, frames[1], mask)
    case, result = tmp_path / "case", tmp_path / "result"
    case.write_bytes(written(program, frames, mask))
    done = subprocess.run(
        [EMULATOR, str(driver), str(case), str(result)],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done
    assert done.stdout.split() == [b"plain"]
    got = np.fromfile(result, np.float32)
    assert ctypes.sizeof(ctypes.c_void_p) == 8
    assert got.shape == state.floats.shape
    scale = np.abs(state.floats).max()
    assert np.abs(got - state.floats).max() <= 1e-5 * scale
