"""What the nodes tell each other about their load and capacity.

Owns the shape of the volatile key ``load`` and of the owner record ``node``. Never decides
anything with them. Invariant: a malformed report of a peer counts for nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from crdt import Instant, Store, Value
from edge_node.cameras.agents import SHORT
from edge_node.metrics import Counters
from edge_node.placement.view import FleetView
from edge_node.pool import WorkerPool
from gossip import GossipNode

MAX_DIGESTS = 8
"""Models in a report, so that it always fits beside a probe."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a living node can take: full passes per second, whether it takes cameras over."""

    passes_per_s: float
    takeover: bool
    files: str
    """Folder under which it opens other nodes' files; empty: none."""


class Load:
    """This node's report, and the peers' reports on their way into the view."""

    def __init__(
        self,
        store: Store,
        gossip: GossipNode,
        pool: WorkerPool,
        counters: Counters,
        digest: Callable[[], str],
    ) -> None:
        """Prepare; ``digest`` tells the model that this node runs, "" if none."""
        self._store = store
        self._gossip = gossip
        self._pool = pool
        self._counters = counters
        self._digest = digest
        self._number = 0

    def own(self) -> dict[str, Value]:
        """Return what peers need to know to place frames here: the quickest worker's times."""
        current, count = self._digest(), self._counters.get
        worker = min(
            self._pool.living,
            key=lambda w: (current not in w.loaded, w.backlog_ms + w.service_ms.get(current, 0.0)),
            default=None,
        )
        times = worker.service_ms if worker else {}
        known = sorted(times.items(), key=lambda item: item[0] != current)
        return {
            "backlog_ms": round(worker.backlog_ms, 1) if worker else 0.0,
            "service_ms": {d[:SHORT]: round(ms, 1) for d, ms in known[:MAX_DIGESTS]},
            "queue": worker.queue_length if worker else 0,
            "running": current[:SHORT],
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
        self._number += 1
        self._gossip.set_volatile("load", {"n": self._number, **self.own()}, now)
        for member in self._gossip.members():
            load = self.of(member.node_id) if member.state == "alive" else None
            if load is None:
                continue
            service_ms, backlog_ms = load.get("service_ms"), load.get("backlog_ms")
            if isinstance(service_ms, dict) and isinstance(backlog_ms, int | float):
                known = {k: float(v) for k, v in service_ms.items() if isinstance(v, int | float)}
                number = (member.incarnation, load.get("n"))
                network_ms = (member.rtt_s or 0.0) * 1e3
                view.heard_load(
                    member.node_id, number, float(backlog_ms), known, network_ms, now.mono_s
                )

    def capacities(self, living: frozenset[bytes]) -> dict[bytes, Capacity]:
        """Return what the ``living`` nodes published of their capacity."""
        found = {}
        for node, key, record in self._store.owners("node"):
            if key == "node" and node in living and isinstance(record, dict):
                found[node] = _capacity(record)
        return found


def _capacity(record: Mapping[str, object]) -> Capacity:
    passes_per_s, files = record.get("capacity"), record.get("files")
    return Capacity(
        passes_per_s=float(passes_per_s) if isinstance(passes_per_s, int | float) else 0.0,
        takeover=record.get("takeover") is True,
        files=files if isinstance(files, str) else "",
    )
