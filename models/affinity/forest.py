"""Scoring of regression forests through LightGBM's C library, without its Python package.

Owns the library's handle and the memory that rows and results pass through; never trains and
never reads files. The package would cost 57 MB and has millisecond tails; the library alone costs
a few and has none. Invariant: the library never starts a thread (a process that forks later would
hang in it), and a forest that exists takes rows of the promised width.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import struct
from collections.abc import Sequence
from pathlib import Path

from models.wire import ModelError

MOST_ROWS = 64  # packed at once
_FLOAT64, _ROW_MAJOR, _NORMAL = 1, 1, 0
_ITEM_BYTES = 8
_POINTER = ctypes.c_void_p
_QUIET = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(lambda message: None)


@functools.cache
def library() -> ctypes.CDLL:
    """Load LightGBM's C library once, with one thread.

    Raises ModelError when it is not installed or does not load.
    """
    spec = importlib.util.find_spec("lightgbm")  # finds the folder, imports nothing
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = [
        path
        for folder in folders
        for path in (Path(folder, "lib", "lib_lightgbm.so"), Path(folder, "lib_lightgbm.so"))
        if path.is_file()
    ]
    if not found:
        raise ModelError("LightGBM's library lib_lightgbm.so is not installed: install lightgbm")
    try:
        loaded = ctypes.CDLL(str(found[0]))
        loaded.LGBM_GetLastError.restype = ctypes.c_char_p
        loaded.LGBM_BoosterPredictForMatSingleRowFast.argtypes = [_POINTER] * 4
        loaded.LGBM_FastConfigFree.argtypes = loaded.LGBM_BoosterFree.argtypes = [_POINTER]
        loaded.LGBM_SetMaxThreads(1)
    except (OSError, AttributeError) as error:
        raise ModelError(
            f"{found[0]} cannot be used ({error}); it needs libgomp (Debian: libgomp1) and "
            "lightgbm 4.5 or newer"
        ) from None
    return loaded


class Forest:
    """Hold one regression forest of `columns` inputs. Used by one thread at a time."""

    def __init__(self, text: bytes, columns: int) -> None:
        """Load a forest from LightGBM's model text. Raises ModelError. O(text).

        The text must be trusted (a digest says so): the library checks little.
        """
        self._booster = self._fast = _POINTER()
        self._library = library()
        self._library.LGBM_RegisterLogCallback(_QUIET)  # else it prints; it keeps one a thread
        booster, trees = _POINTER(), ctypes.c_int()
        self._check(
            self._library.LGBM_BoosterLoadModelFromString(
                ctypes.c_char_p(text), ctypes.byref(trees), ctypes.byref(booster)
            )
        )
        self._booster = booster
        width = ctypes.c_int()
        self._check(self._library.LGBM_BoosterGetNumFeature(booster, ctypes.byref(width)))
        if width.value != columns or trees.value < 1:
            raise ModelError(
                f"a forest of {trees.value} trees over {width.value} columns, not {columns}"
            )
        fast = _POINTER()
        self._check(
            self._library.LGBM_BoosterPredictForMatSingleRowFastInit(
                booster, _NORMAL, 0, -1, _FLOAT64, ctypes.c_int32(columns),
                ctypes.c_char_p(b"num_threads=1"), ctypes.byref(fast),
            )
        )  # fmt: skip
        self._fast = fast
        self._prepare(columns)

    def _prepare(self, columns: int) -> None:
        self._rows = (ctypes.c_double * (MOST_ROWS * columns))()
        self._results = (ctypes.c_double * MOST_ROWS)()
        self._length = ctypes.c_int64()
        rows, results = ctypes.addressof(self._rows), ctypes.addressof(self._results)
        size = columns * _ITEM_BYTES
        self._columns = columns
        self._packers = [struct.Struct(f"{count * columns}d") for count in range(MOST_ROWS + 1)]
        # The arguments of every call are known beforehand: making them costs as much as a tree.
        self._calls = [
            (self._fast.value, rows + row * size, ctypes.addressof(self._length),
             results + row * _ITEM_BYTES)
            for row in range(MOST_ROWS)
        ]  # fmt: skip
        self._score = self._library.LGBM_BoosterPredictForMatSingleRowFast

    def __del__(self) -> None:
        """Give the library's memory back."""
        if self._fast:
            self._library.LGBM_FastConfigFree(self._fast)
        if self._booster:
            self._library.LGBM_BoosterFree(self._booster)

    def predict(self, values: Sequence[float]) -> list[float]:
        """Return a prediction for each row of `columns` numbers in `values`; NaN is "unknown".

        Raises ModelError; about 1 us a row, O(rows x trees x depth).
        """
        size, score = MOST_ROWS * self._columns, self._score
        if len(values) > size:
            return self.predict(values[:size]) + self.predict(values[size:])
        count = len(values) // self._columns
        self._packers[count].pack_into(self._rows, 0, *values)
        for arguments in self._calls[:count]:
            if score(*arguments):
                self._check(-1)
        return self._results[:count]

    def _check(self, code: int) -> None:
        if code:
            reason = self._library.LGBM_GetLastError().decode(errors="replace")
            raise ModelError(f"LightGBM refuses the forest: {reason.strip()[:300]}")
