"""Well-signed nonsense under every key that a daemon reads, not only a replica.

Owns the values. Invariant: a member could send each of them; what the store itself refuses is left
out by it.
"""

from collections.abc import Callable
from itertools import cycle

from crdt.clock import Instant
from crdt.codec import Value
from crdt.store import Store
from simnet.poison import poison

_KINDS = 11
_HUGE = 2**63 - 1
_ODD: tuple[Value, ...] = (
    True,
    -_HUGE,
    float("nan"),
    float("inf"),
    "",
    "\u0000\u202e../../etc",
    b"\xff" * 200,
    "\ud7ff" * 200,
    [],
    {},
    [[[[[[["deep"]]]]]]],
    {"$artifact": 7},
    {"$artifact": "../../etc/passwd", "size_bytes": 1},
    {"$artifact": "0" * 64, "size_bytes": -1},
    {"variant": ["large"], "digest": {"a": 1}},
    {"variant": "large", "digest": "0" * 64, "version": _HUGE},
)
_AGENT: dict[str, Value] = {
    "source": "generated:1",
    "fps": 5.0,
    "task": "detect",
    "model": "person-detector",
    "deadline_ms": 200.0,
    "tier": 2,
    "loop": True,
    "noise_sigma": 2.0,
    "takeover": True,
    "safety": False,
    "since_ms": 1,
}
"""A sound one, so that what is said about it is read."""

_BROKEN: tuple[dict[str, Value], ...] = (
    {"fps": float("inf")},
    {"fps": "fast"},
    {"deadline_ms": float("nan")},
    {"tier": _HUGE},
    {"tier": 1.5},
    {"since_ms": -_HUGE},
    {"source": "\u0000"},
    {"source": "rtsp://[::1"},
    {"source": "file:" + "x" * 300},
    {"model": {}},
    {"noise_sigma": float("nan")},
)
_NODES: tuple[Value, ...] = (
    {"name": {"name": []}, "accelerators": 7, "capacity": "much", "zone": ["z"], "files": -1},
    {"name": "n0", "capacity": float("nan"), "key_epoch": _HUGE, "accelerators": [[], {}, 3]},
    {"name": "x" * 400, "capacity": float("inf"), "accelerators": [{"provider": {}}] * 20},
    {"name": "\u0000", "capacity": -1, "key_epoch": -_HUGE, "draining": "yes", "zone": "z" * 99},
    {"capacity": _HUGE, "takeover": 1, "key_epoch": True, "version": [], "hot": []},
)
REPORTS: tuple[Value, ...] = (
    7,
    [],
    {"waits_ms": [float("nan")] * 3, "service_ms": {"a": float("inf")}, "factor": "much"},
    {"waits_ms": ["a", "b", "c"], "service_ms": [1], "factor": -1, "n": []},
    {"waits_ms": [0, 0, _HUGE], "service_ms": {"": 0, "b": 1e-300}, "factor": 1e-300, "n": {}},
    {"waits_ms": {"0": 1}, "service_ms": {"c": True}, "factor": float("nan"), "frames": "all"},
    {"n": 1, "running": b"\xff", "queue": _HUGE, "answered": -1, "met": None, "frames": [1]},
)
"""What may stand in the place of a load report."""


def spread(store: Store, stage: Callable[..., bool], now: Instant) -> None:
    """Stage nonsense of every kind."""
    for number in range(_KINDS):
        poison(store, now, number)
    stage(store.set_owner, "node", _NODES[store.epoch % len(_NODES)])
    stage(store.set_owner, "agent/sound", _AGENT)
    for number, broken in enumerate(_BROKEN):
        stage(store.set_owner, f"agent/broken-{number}", {**_AGENT, **broken})
    stage(store.set_owner, "agent/", _AGENT)
    stage(store.set_owner, "agent/\u202e/../x", _AGENT)
    odd = cycle(_ODD)
    for key in ("tier/sound", "tier/broken-0", "tier/"):
        stage(store.set_owner, key, next(odd))
    for number, value in enumerate(_ODD):
        stage(store.set_fleet, f"app/odd-{number}", value, now)
        stage(store.add, f"cache/sound/{number}", value)
        stage(store.add, "artifact/" + "0" * 64, value)
    for key in ("host/sound", "tier/sound", "release/person-detector", "revoked/", "revoked/zz"):
        stage(store.set_fleet, key, next(odd), now)
    stage(store.add, "artifact/../../x", "y")
    stage(store.add, "cache/", [b"", {}, -1])
