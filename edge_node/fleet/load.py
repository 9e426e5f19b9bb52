"""What the nodes tell each other about their load.

Owns the shape of the volatile key ``load``. Never decides anything with it. Invariant: a malformed
report of a peer counts for nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any, Protocol

from crdt import Instant, Value
from edge_node.metrics import Counters
from edge_node.placement.view import IDLE, FleetView, Waits
from gossip import GossipNode
from models.wire import SHORT

MAX_MS = 1e9
LEAST_MS = 0.1
"""Reports are rounded to this; a service time below it would make sums of them lose their sense."""

LEAST_FACTOR = 0.02
"""Least mean work of a node's frames in full passes that counts."""

REFRESH_S = 4.0
"""After so long an unchanged report is told again, lest it count as stale (``placement.view``)."""

MAX_DIGESTS = 8
"""Models in a report, so that it always fits beside a probe."""


class Worker(Protocol):
    """What a report tells of an accelerator."""

    @property
    def waits_ms(self) -> Waits: ...
    @property
    def service_ms(self) -> Mapping[str, float]: ...
    @property
    def loaded(self) -> frozenset[str]: ...
    @property
    def queue_length(self) -> int: ...


class Pool(Protocol):
    """Where the accelerators are found."""

    @property
    def living(self) -> Sequence[Worker]: ...


class Load:
    """This node's report, and the peers' reports on their way into the view."""

    def __init__(
        self,
        gossip: GossipNode,
        pool: Pool,
        counters: Counters,
        digest: Callable[[], str],
    ) -> None:
        """Prepare; ``digest`` tells the model that this node runs, "" if none."""
        self._gossip = gossip
        self._pool = pool
        self._counters = counters
        self._digest = digest
        self._number = 0
        self._told: dict[str, Value] = {}
        self._told_s = -inf
        self.factor = 1.0
        """Mean work of this node's frames in full passes, told to the peers."""
        self.closed = False
        """Whether peers are to send nothing here: the report then names no model."""

    def own(self) -> dict[str, Value]:
        """Return what peers need to know to place frames here: the quickest worker's times."""
        current, count = self._digest(), self._counters.get
        worker = min(
            self._pool.living,
            key=lambda w: (current not in w.loaded, w.waits_ms[1] + w.service_ms.get(current, 0.0)),
            default=None,
        )
        times = worker.service_ms if worker and not self.closed else {}
        known = sorted(times.items(), key=lambda item: item[0] != current)
        return {
            "waits_ms": [round(ms, 1) for ms in worker.waits_ms] if worker else list(IDLE),
            "service_ms": {d[:SHORT]: round(ms, 1) for d, ms in known[:MAX_DIGESTS]},
            "queue": worker.queue_length if worker else 0,
            "running": current[:SHORT],
            "factor": round(self.factor, 2),
            "frames": int(count("frames")),
            "answered": int(count("answered")),
            "met": int(count("answered", met="yes")),
        }

    def of(self, node: bytes) -> dict[str, Any] | None:
        """Return the last report of a member, None if there is none."""
        load = self._gossip.volatile(node, "load")
        return load if isinstance(load, dict) else None

    def factor_of(self, node: bytes) -> float:
        """Return the mean work of a member's frames in full passes, 1 if it does not say."""
        value = (self.of(node) or {}).get("factor")
        if not isinstance(value, int | float) or not 0 < value <= 1:
            return 1.0
        return max(LEAST_FACTOR, float(value))

    def exchange(self, view: FleetView, now: Instant) -> None:
        """Give this node's report to gossip, and take the peers' reports into ``view``.

        What has not changed is told again only now and then, and never if there is nothing to do
        here: nobody asks such a node. O(news).
        """
        own = self.own()
        stale = bool(own["service_ms"]) and now.mono_s - self._told_s >= REFRESH_S
        if own != self._told or stale:
            self._number += 1
            self._told, self._told_s = own, now.mono_s
            self._gossip.set_volatile("load", {"n": self._number, **own}, now)
        for node in self._gossip.volatile_news():
            self._take(node, view, now)

    def _take(self, node: bytes, view: FleetView, now: Instant) -> None:
        """Take a member's report into the view, if there is a good one."""
        load, member = self.of(node), self._gossip.member(node)
        if load is None or member is None:
            return
        waits_ms, service_ms = waits_of(load.get("waits_ms")), times_of(load.get("service_ms"))
        if waits_ms is not None:
            number = (member.incarnation, load.get("n"))
            network_ms = (member.rtt_s or 0.0) * 1e3
            view.heard_load(node, number, waits_ms, service_ms, network_ms, now.mono_s)


def waits_of(value: object) -> Waits | None:
    """Read what a peer says of its waits; None unless they are three finite numbers."""
    if not isinstance(value, list | tuple) or len(value) != len(IDLE):
        return None
    if not all(is_time(one) for one in value):
        return None
    first, second, third = map(float, value)
    return first, second, third


def times_of(value: object) -> dict[str, float]:
    """Read what a peer says of its service times by kind; what is none is left out."""
    known = value.items() if isinstance(value, dict) else ()
    return {
        kind: max(LEAST_MS, float(ms))
        for kind, ms in known
        if isinstance(kind, str) and is_time(ms)
    }


def is_time(value: object) -> bool:
    """Tell whether a peer's value is a number of milliseconds that makes sense."""
    return isinstance(value, int | float) and 0 <= value <= MAX_MS
