"""Well-signed nonsense under every kind of key that daemons read.

Owns the values. Invariant: the store takes each of them, so that they come to all.
"""

from crdt.clock import Instant
from crdt.codec import Value
from crdt.store import Store

_DEEP: Value = [[[[[[[["deep"]]]]]]]]
_HUGE = 2**63 - 1
_ODD: list[Value] = [
    None,
    True,
    -_HUGE,
    float("inf"),
    "",
    "\u0000\u202e../../etc",
    b"\xff" * 200,
    [],
    _DEEP,
    {"name": {"name": []}, "accelerators": 7, "capacity": "much", "zone": ["z"], "files": -1},
    {"tier": "none", "deadline_ms": -1, "fps": float("inf"), "digest": b"", "source": 3},
]
_RECORDS = ("node", "agent/poison", "tier/poison", "host/poison", "sim/poison")
_REGISTERS = (
    "host/poison",
    "tier/poison",
    "release/person-detector",
    "app/poison",
    "revoked/poison",
    "sim/poison",
)
_SETS = ("artifact/poison", "cache/poison", "cache/poison/00", "sim/poison")


def poison(store: Store, now: Instant, number: int) -> None:
    """Stage one nonsensical value of each kind; another for each number."""
    for place, key in enumerate(_RECORDS):
        store.set_owner(key, _value(number + place))
    for place, key in enumerate(_REGISTERS):
        store.set_fleet(key, _value(number + place), now)
    for place, key in enumerate(_SETS):
        store.add(key, _value(number + place))


def _value(number: int) -> Value:
    found = _ODD[number % len(_ODD)]
    return "nothing" if found is None else found
