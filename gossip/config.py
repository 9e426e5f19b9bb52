"""The gossip core's tunables.

Owns their defaults and ranges; never reads a file or the environment. A value that exists has
been validated: no other module checks a setting again.
"""

from dataclasses import dataclass, fields

_RANGES: dict[str, tuple[float, float]] = {
    "probe_interval_s": (0.05, 60.0),
    "probe_timeout_s": (0.02, 30.0),
    "indirect_probes": (0, 16),
    "suspicion_intervals": (1.0, 60.0),
    "batching_s": (0.0, 0.02),
    "resend_floor_s": (0.01, 5.0),
    "resend_limit": (1, 32),
    "window_datagrams": (1, 1024),
    "queue_items": (16, 65536),
    "volatile_interval_s": (0.05, 60.0),
    "seed_interval_s": (0.1, 600.0),
    "reconnect_interval_s": (0.5, 3600.0),
    "fan_out": (1, 1024),
    "dead_members": (1, 65536),
    "handshakes_per_s": (1.0, 1e6),
}


@dataclass(frozen=True, slots=True)
class GossipConfig:
    """Hold every tunable of a node; raise ValueError for one that is out of range.

    Durations are in seconds. `probe_timeout_s` must be below `probe_interval_s`: what is left of
    the interval belongs to the indirect probes.
    """

    probe_interval_s: float = 1.0
    probe_timeout_s: float = 0.5
    indirect_probes: int = 3
    suspicion_intervals: float = 3.0  # times the probe interval, times max(1, log10(members))
    batching_s: float = 0.01  # least distance of two flushes of queued items to one peer
    resend_floor_s: float = 0.1  # least time before what is not acknowledged is sent again
    resend_limit: int = 8  # then repair takes over
    window_datagrams: int = 32  # unacknowledged datagrams to one peer
    queue_items: int = 1024  # waiting items to one peer; beyond it repair takes over
    volatile_interval_s: float = 0.5
    seed_interval_s: float = 2.0  # between two tries of a seed while nobody is there
    reconnect_interval_s: float = 5.0  # between two tries of a member that is down
    fan_out: int = 64  # peers a batch is sent to directly
    dead_members: int = 256  # claims kept of members that are down or left
    handshakes_per_s: float = 200.0  # HELLOs examined; half as many from one IP address

    def __post_init__(self) -> None:
        for field in fields(self):
            low, high = _RANGES[field.name]
            value = getattr(self, field.name)
            if not low <= value <= high:
                raise ValueError(f"{field.name}={value!r}: must be between {low:g} and {high:g}")
        if self.probe_timeout_s >= self.probe_interval_s:
            raise ValueError("probe_timeout_s must be below probe_interval_s")
