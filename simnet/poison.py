"""Well-signed nonsense under every kind of key that daemons read.

Owns the values. Never commits anything. Invariant: a member could send each of them; what the store
itself refuses is for the caller to leave out.
"""

from crdt.clock import Instant
from crdt.codec import Value
from crdt.store import Store
from simnet.workload import Stage

EACH_S = 0.1
"""How long each round stands before the next; a load report is renewed every half second."""

_HUGE = 2**63 - 1
_ODD: tuple[Value, ...] = (
    None,
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
    [[[[[[[["deep"]]]]]]]],
    {"$artifact": 7},
    {"$artifact": "../../etc/passwd", "size_bytes": 1},
    {"$artifact": "0" * 64, "size_bytes": -1},
    {"variant": ["large"], "digest": {"a": 1}},
    {"variant": "large", "digest": "0" * 64, "version": _HUGE},
    {"tier": "none", "deadline_ms": -1, "fps": float("inf"), "digest": b"", "source": 3},
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
_REPORTS: tuple[Value, ...] = (
    7,
    [],
    {"waits_ms": [float("nan")] * 3, "service_ms": {"a": float("inf")}, "factor": "much"},
    {"waits_ms": ["a", "b", "c"], "service_ms": [1], "factor": -1, "n": []},
    {"waits_ms": [0, 0, _HUGE], "service_ms": {"": 0, "b": 1e-300}, "factor": 1e-300, "n": {}},
    {"waits_ms": {"0": 1}, "service_ms": {"c": True}, "factor": float("nan"), "frames": "all"},
    {"n": 1, "running": b"\xff", "queue": _HUGE, "answered": -1, "met": None, "frames": [1]},
)
_RECORDS = ("agent/poison", "tier/poison", "tier/sound", "tier/", "host/poison", "sim/poison")
_REGISTERS = (
    "app/poison",
    "host/poison",
    "host/sound",
    "tier/poison",
    "tier/sound",
    "release/person-detector",
    "revoked/poison",
    "revoked/",
    "revoked/zz",
    "sim/poison",
)
_SETS = (
    "artifact/poison",
    "artifact/" + "0" * 64,
    "artifact/../../x",
    "cache/",
    "cache/poison",
    "cache/poison/00",
    "sim/poison",
)
ROUNDS = len(_ODD)
"""After so many each value has stood under every kind of key."""


def spread(store: Store, stage: Stage, now: Instant, round_: int) -> None:
    """Stage one round of nonsense: other values under the same keys, and some keys of its own."""
    stage(store.set_owner, "node", _NODES[round_ % len(_NODES)])
    broken = {**_AGENT, **_BROKEN[round_ % len(_BROKEN)]}
    for key, agent in (
        ("agent/sound", _AGENT),
        ("agent/", _AGENT),
        ("agent/\u202e/../x", _AGENT),
        (f"agent/broken-{round_}", broken),
    ):
        stage(store.set_owner, key, agent)
    for place, key in enumerate(_RECORDS):
        stage(store.set_owner, key, _odd(round_ + place))
    for place, key in enumerate((f"app/odd-{round_}", *_REGISTERS)):
        stage(store.set_fleet, key, _odd(round_ + place), now)
    for place, key in enumerate((f"cache/sound/{round_}", *_SETS)):
        stage(store.add, key, _odd(round_ + place))


def report(round_: int) -> Value:
    """Return what takes the place of a load report in a round."""
    return _REPORTS[round_ % len(_REPORTS)]


def _odd(place: int) -> Value:
    return _ODD[place % len(_ODD)]
