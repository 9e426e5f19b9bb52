"""The gossip core's tunables.

Owns their defaults and ranges; never reads a file or the environment. A value that exists has
been validated: no other module checks a setting again.
"""

from dataclasses import dataclass

_RANGES: dict[str, tuple[float, float]] = {
    "probe_interval_s": (0.05, 60.0),
    "probe_timeout_s": (0.02, 30.0),
    "indirect_probes": (0, 16),
    "probe_retry_s": (0.01, 10.0),
    "suspicion_intervals": (1.0, 60.0),
    "suspicion_factor": (1.0, 60.0),
    "batching_s": (0.0, 0.02),
    "ack_delay_s": (0.0, 0.1),
    "resend_floor_s": (0.01, 5.0),
    "resend_limit": (1, 32),
    "window_datagrams": (1, 1024),
    "queue_items": (16, 65536),
    "volatile_interval_s": (0.05, 60.0),
    "seed_interval_s": (0.1, 600.0),
    "reconnect_interval_s": (0.5, 3600.0),
    "direct_members": (1, 1024),
    "leaf_members": (1, 1024),
    "lazy_peers": (0, 16),
    "lazy_delay_s": (0.0, 10.0),
    "links_kept": (16, 65536),
    "link_idle_s": (1.0, 86400.0),
    "egress_bytes_per_s": (1000.0, 1e9),
    "intake_entries_per_s": (1.0, 1e6),
    "write_burst": (16, 65536),
    "dead_members": (1, 65536),
    "retire_after_s": (60.0, 1e8),
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
    probe_retry_s: float = 0.15  # before an unanswered ping is sent again
    suspicion_intervals: float = 1.8  # least, times the probe interval, times max(1, log10(n))
    suspicion_factor: float = 3.0  # a suspicion that nobody confirms lasts so much longer
    batching_s: float = 0.01  # least distance of two flushes of queued items to one peer
    ack_delay_s: float = 0.01  # how long an acknowledgement waits for company
    resend_floor_s: float = 0.04  # least time before what is not acknowledged is sent again
    resend_limit: int = 10  # tries of an item, within 5 s; then repair takes over
    window_datagrams: int = 32  # unacknowledged datagrams to one peer
    queue_items: int = 1024  # of one priority that wait for one peer; beyond it repair takes over
    volatile_interval_s: float = 0.5
    seed_interval_s: float = 2.0  # between two tries of a seed while nobody is there
    reconnect_interval_s: float = 5.0  # between two tries of a member that is down
    direct_members: int = 64  # live peers up to which news go straight to all
    leaf_members: int = 32  # in a range of ids up to which its head sends straight to all
    lazy_peers: int = 2  # who are told of a batch's number when it travels by the tree
    lazy_delay_s: float = 0.06  # before a batch heard of is asked for
    links_kept: int = 256  # beyond it, links unused for link_idle_s are closed
    link_idle_s: float = 60.0
    egress_bytes_per_s: float = 2e6  # of datagrams; the least urgent wait, or are shed, first
    intake_entries_per_s: float = 1500.0  # a node's; the fleet writes a third of it at most
    write_burst: int = 64  # entries a node may write at once after a rest
    retire_after_s: float = 86400.0  # a member away for so long is forgotten by all
    dead_members: int = 256  # claims kept of members that are down or left
    priorities: tuple[tuple[str, int], ...] = (  # of a key's beginning, gossip.broadcast; else 2
        ("revoked/", 0),
        ("member/", 0),
        ("release/", 1),
        ("model/", 1),
        ("host/", 1),
    )
    handshakes_per_s: float = 200.0  # HELLOs examined; half as many from one IP address

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name}={value!r}: must be between {low:g} and {high:g}")
        for prefix, priority in self.priorities:
            if not prefix or priority not in (0, 1, 2):
                raise ValueError(f"priorities: {prefix!r} {priority!r} is no prefix with 0, 1 or 2")
        if self.probe_timeout_s >= self.probe_interval_s:
            raise ValueError("probe_timeout_s must be below probe_interval_s")
