"""What the nodes tell each other about their load and capacity.

Owns the shape of the volatile key ``load`` and of the capacity in the owner record ``node``.
Never decides anything with them. Invariant: a malformed report of a peer counts for nothing.
"""

from collections.abc import Callable
from typing import Any

from crdt import Instant, Store, Value
from edge_node.cameras.agents import SHORT
from edge_node.metrics import Counters
from edge_node.placement.view import FleetView
from edge_node.pool import WorkerPool
from gossip import GossipNode


class Load:
    """This node's report, and the peers' reports on their way into the view."""

    def __init__(
        self,
        store: Store,
        gossip: GossipNode,
        pool: WorkerPool,
        counters: Counters,
        running: Callable[[], str],
    ) -> None:
        """Prepare; ``running`` tells the digest of the model that this node runs, or ""."""
        self._store = store
        self._gossip = gossip
        self._pool = pool
        self._counters = counters
        self._running = running

    def own(self) -> dict[str, Value]:
        """Return what peers need to know to place frames here."""
        living = self._pool.living
        service_ms: dict[str, float] = {}
        for worker in living:
            for digest, value in worker.service_ms.items():
                short = digest[:SHORT]
                service_ms[short] = round(min(value, service_ms.get(short, value)), 1)
        count = self._counters.get
        return {
            "backlog_ms": round(min((w.backlog_ms for w in living), default=0.0), 1),
            "service_ms": dict(service_ms),
            "queue": sum(worker.queue_length for worker in living),
            "running": self._running()[:SHORT],
            "frames": int(count("frames")),
            "answered": int(count("answered")),
            "met": int(count("answered", met="yes")),
        }

    def of(self, node: bytes) -> dict[str, Any] | None:
        """Return the last report of a member, None if there is none."""
        load = self._gossip.volatile(node, "load")
        return load if isinstance(load, dict) else None

    def exchange(self, view: FleetView, now: Instant) -> None:
        """Give this node's report to gossip, and take the peers' reports into ``view``."""
        self._gossip.set_volatile("load", self.own(), now)
        for member in self._gossip.members():
            load = self.of(member.node_id) if member.state == "alive" else None
            if load is None:
                continue
            service_ms, backlog_ms = load.get("service_ms"), load.get("backlog_ms")
            if isinstance(service_ms, dict) and isinstance(backlog_ms, int | float):
                known = {k: float(v) for k, v in service_ms.items() if isinstance(v, int | float)}
                network_ms = (member.rtt_s or 0.0) * 1e3
                view.heard_load(member.node_id, float(backlog_ms), known, network_ms, now.mono_s)

    def capacities(self, living: frozenset[bytes]) -> dict[bytes, float]:
        """Return full passes per second of the ``living`` nodes that take agents over."""
        found = {}
        for node, key, record in self._store.owners("node"):
            if key == "node" and node in living and isinstance(record, dict):
                capacity = record.get("capacity")
                if record.get("takeover") and isinstance(capacity, int | float):
                    found[node] = float(capacity)
        return found
