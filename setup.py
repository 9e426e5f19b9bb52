"""Builds the native delta kernels where a C compiler is at hand; elsewhere they stay absent.

Everything else is in pyproject.toml. The library has no Python in it: it is loaded with ctypes,
and chooses its instruction set when it is loaded, so one build serves every processor of a kind.
"""

from pathlib import Path

from setuptools import Extension, setup

DELTA = Extension(
    "models.native._delta",
    ["models/native/delta.c"],
    depends=[str(path) for path in sorted(Path("models/native").glob("*.h"))],
    extra_compile_args=["-std=gnu11", "-O3", "-ffp-contract=fast", "-Wno-psabi"],
    optional=True,
)

setup(ext_modules=[DELTA])
