"""Owns how values of the node become JSON: bytes as hex, numbers that JSON lacks as null.

Never fails on what the replica may hold. Invariant: the result is valid JSON (RFC 8259).
"""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(value: Any) -> str:
    """Render plain data as compact JSON. O(size)."""
    return json.dumps(_plain(value), separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value


def _key(key: Any) -> str:
    return key.hex() if isinstance(key, bytes) else str(key)
