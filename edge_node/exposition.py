"""The node's counts and latencies, as JSON and in Prometheus' text format.

Owns names and help texts of the metrics; counts nothing itself.
"""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from edge_node import reuse
from edge_node.metrics import Family, render

if TYPE_CHECKING:
    from edge_node.daemon import Daemon

HELPS = {
    "frames": "Frames that came from cameras hosted here.",
    "answered": "Frames answered, by whether their deadline was met.",
    "shed": "Frames not run, by reason.",
    "lost": "Frames that failed, by reason.",
    "forwarded": "Frames answered by a peer.",
    "forward_failed": "Frames that a peer did not answer, by reason.",
    "received": "Frames run for peers.",
    "rung": "Answers by rung of the reuse ladder.",
    "handovers": "Agents of other hosts claimed here, by why their host changed.",
    "duplicates": "Frames answered here after another host's claim of their agent took effect.",
    "worker_deaths": "Worker processes that died and were replaced.",
    "writes_refused": "Changes that do not fit into what a node may share.",
    "entries": "Reuse states that others offered for agents here, by what became of them.",
    "warm_starts": "Agents that came here with their reuse state.",
}


def stats(d: "Daemon") -> dict[str, Any]:
    """Return this node's counts since its start, and latencies of the last minute."""
    count = d.counters.get
    p50_ms, p95_ms = d.station.agents.latencies.quantiles(time.monotonic(), 0.5, 0.95)
    return {
        "frames": count("frames"),
        "answered": count("answered"),
        "met": count("answered", met="yes"),
        "missed": count("answered", met="no"),
        "shed": count("shed"),
        "lost": count("lost"),
        "forwarded": count("forwarded"),
        "received": count("received"),
        "hits": count("rung") - count("rung", rung="full"),
        "p50_ms": p50_ms,
        "p95_ms": p95_ms,
        "loop_lag_ms": round(d.loop_lag_s * 1e3, 2),
        "hidden_registers": d.store.hidden,
        "gossip": dict(d.gossip.counters),
        "journal": dict(d.journal.counters),
        "peer_auth": dict(d.verifier.counters),
        "outputs": {name: list(counts) for name, counts in d.station.outputs.counts().items()},
        "ladder": {w.spec.name: dict(w.ladder_counts) for w in d.station.pool.living},
    }


def metrics_text(d: "Daemon", problems: int, cameras: Iterable[reuse.Json]) -> str:
    """Return the metrics in Prometheus' text format; `cameras` as `reuse.records` gives them."""
    p50_ms, p95_ms = d.station.agents.latencies.quantiles(time.monotonic(), 0.5, 0.95)
    families = d.counters.families("edge_node_", HELPS)
    families.append(
        Family(
            "edge_node_latency_milliseconds",
            "gauge",
            "Capture to answer over the last minute.",
            [
                ({"quantile": quantile}, value)
                for quantile, value in (("0.5", p50_ms), ("0.95", p95_ms))
                if value is not None
            ],
        )
    )
    families.append(
        Family(
            "edge_node_gossip_events_total",
            "counter",
            "Datagrams, bytes and drops of the gossip protocol, by kind.",
            [({"kind": kind}, value) for kind, value in sorted(d.gossip.counters.items())],
        )
    )
    families.append(
        Family(
            "edge_node_peer_requests_total",
            "counter",
            "Requests of other nodes, accepted or refused, by outcome.",
            [({"outcome": name}, n) for name, n in sorted(d.verifier.counters.items())],
        )
    )
    families.append(
        Family(
            "edge_node_output_results_total",
            "counter",
            "Results written to an output, and dropped because it could not keep up.",
            [
                ({"output": name, "outcome": outcome}, number)
                for name, counts in d.station.outputs.counts().items()
                for outcome, number in zip(("written", "dropped"), counts, strict=True)
            ],
        )
    )
    families.append(
        Family(
            "edge_node_reuse_state_bytes",
            "gauge",
            "Memory that workers hold to answer unchanged frames.",
            [({"accelerator": w.spec.name}, w.cache_bytes) for w in d.station.pool.living],
        )
    )
    return render(families + reuse.families(cameras) + _gauges(d, problems))


def _gauges(d: "Daemon", problems: int) -> list[Family]:
    gauges = {
        "loop_lag_seconds": (d.loop_lag_s, "How late the event loop last ran."),
        "members": (
            sum(m.state in ("self", "alive") for m in d.gossip.members()),
            "Nodes believed alive, this one included.",
        ),
        "agents_hosted": (len(d.station.agents.hosted), "Agents that run here."),
        "draining": (d.station.health.draining, "Whether an operator wants this node empty."),
        "hot": (d.station.health.hot, "Whether this node is too hot to keep its agents."),
        "degraded": (problems, "Problems that need an operator."),
    }
    return [
        Family(f"edge_node_{name}", "gauge", text, [({}, value)])
        for name, (value, text) in gauges.items()
    ]
