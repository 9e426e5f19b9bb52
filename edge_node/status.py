"""What this node shows of itself and of the fleet: the daemon as HTTP reads it.

Owns no state: it reads the parts and shapes plain data (docs/operations.md lists the fields).
Never changes anything; what does is in :mod:`edge_node.requests`.
Invariant: a field missing from a peer's record is None here, never an error.
"""

import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import edge_node
from crdt import Change
from edge_node import clock, exposition, reuse
from edge_node.cameras.address import public_address
from edge_node.cameras.agents import HostedAgent
from edge_node.cameras.spec import AgentSpec
from edge_node.decisions import KEPT, explain
from edge_node.fleet.published import Capacity

if TYPE_CHECKING:
    from edge_node.daemon import Daemon

Json = dict[str, Any]

CONTESTED = (
    "another process signs with this node's key, so peers may ignore this node: stop the copy of "
    "its state_dir; if they still ignore it, give this node an empty state_dir (it gets a new id)"
)


class Status:
    """The part of :class:`edge_node.api.view.NodeView` that reads a running daemon."""

    def __init__(self, daemon: "Daemon") -> None:
        self._daemon = daemon

    # This node

    def node(self) -> Json:
        """Describe this node."""
        d, station = self._daemon, self._daemon.station
        workers = {worker.spec.name: worker for worker in station.pool.workers}
        accelerators = []
        for probe in station.pool.probes:
            worker = workers.get(probe.spec.name)
            accelerators.append(
                {
                    "name": probe.spec.name,
                    "provider": probe.spec.provider,
                    "share": probe.spec.share,
                    "ok": probe.ok,
                    "reason": probe.reason,
                    "latency_ms": probe.latency_ms,
                    "max_error": probe.max_error,
                    "pid": worker.pid if worker else None,
                    "alive": worker.alive if worker else False,
                    "waits_ms": worker.waits_ms if worker else None,
                }
            )
        return {
            "id": d.identity.node_id,
            "name": d.config.node.name,
            "version": edge_node.__version__,
            "uptime_s": round(time.monotonic() - d.started.mono_s, 1),
            "boot": d.boot,
            "accelerators": accelerators,
            "zone": d.config.node.zone,
            "draining": station.health.draining,
            "hot": station.health.hot,
            "degraded": self._problems(),
        }

    def _problems(self) -> list[str]:
        d, station = self._daemon, self._daemon.station
        problems = [d.writes.waiting, station.release.error, *d.trust.problems]
        problems += station.outputs.problems
        problems += station.pool.problems
        problems += d.writes.refused.values()
        if d.store.contested:
            problems.append(CONTESTED)
        if d.store.hidden:
            problems.append(
                f"{d.store.hidden} values are dated in the future and wait for their time: the "
                "fleet's clocks differ, check NTP on every node"
            )
        problems += station.hosts.problems.values()
        if station.health.hot:
            problems.append(f"this node is {station.health.temperature}: it gives its cameras away")
        problems += [
            f"camera {name} does not run: another node's camera has this name; rename one"
            for name in station.hosts.conflicts()
        ]
        return [problem for problem in problems if problem]

    def ready(self) -> tuple[bool, list[str]]:
        """Say whether frames can be answered."""
        station = self._daemon.station
        reasons = []
        if not station.pool.living:
            reasons.append("no accelerator works")
        elif not station.release.digest:
            reasons.append(station.release.error or "no model is loaded yet")
        return not reasons, reasons

    def stats(self) -> Json:
        """Return this node's counts since its start, and latencies of the last minute."""
        return exposition.stats(self._daemon)

    def metrics_text(self) -> str:
        """Return the metrics in Prometheus' text format."""
        return exposition.metrics_text(self._daemon, len(self._problems()), self.cache())

    # The fleet

    def peers(self) -> list[Json]:
        """List the members that this node knows, itself first."""
        d, load, now_s = self._daemon, self._daemon.station.load, time.monotonic()
        members = d.gossip.members()
        capacities = d.directory.capacities(member.node_id for member in members)
        unknown = Capacity(0.0, False, "")
        return [
            {
                "id": member.node_id,
                "name": d.directory.name_of(member.node_id),
                "address": f"{member.address[0]}:{member.address[1]}",
                "state": member.state,
                "incarnation": member.incarnation,
                "rtt_ms": None if member.rtt_s is None else round(member.rtt_s * 1e3, 2),
                "since_s": round(now_s - member.since_mono_s, 1),
                "zone": (capacity := capacities.get(member.node_id, unknown)).zone,
                "draining": capacity.draining,
                "hot": capacity.hot,
                "load": load.own() if member.state == "self" else load.of(member.node_id),
            }
            for member in sorted(
                members,
                key=lambda m: (m.state != "self", d.directory.name_of(m.node_id)),
            )
        ]

    def agents(self) -> list[Json]:
        """List the fleet's agents; counts only of those that run here."""
        station = self._daemon.station
        return [self._agent(spec) for _, spec in sorted(station.hosts.specs().items())]

    def _agent(self, spec: AgentSpec) -> Json:
        d, station = self._daemon, self._daemon.station
        hosted = station.agents.hosted.get(spec.name)
        host = station.hosts.host_of(spec)
        alive = host == d.identity.node_id or d.directory.address_of(host) is not None
        latest = station.agents.latest.get(spec.name) if hosted else None
        if spec.name in station.hosts.problems or (hosted and not hosted.worker.alive):
            state, reason = "waiting", station.hosts.problems.get(spec.name, "its worker is down")
        elif hosted:
            state, reason = hosted.state, hosted.reason
        else:
            state, reason = ("remote", "") if alive else ("orphaned", "its host is down")
        return {
            "agent": spec.name,
            "home": d.directory.name_of(spec.home),
            "host": d.directory.name_of(host),
            "here": hosted is not None,
            "source": public_address(spec.source),
            "tier": station.tiers.tier_of(spec.name),
            "fps": spec.fps,
            "deadline_ms": spec.deadline_ms,
            "state": state,
            "reason": reason,
            "variant": latest["variant"] if latest else None,
            "digest": latest["digest"] if latest else None,
            **self._counts(hosted),
            "boxes": len(latest["boxes"]) if latest else None,
            "last_ms": latest["captured_ms"] if latest else None,
        }

    @staticmethod
    def _counts(hosted: HostedAgent | None) -> Json:
        names = ("frames", "answered", "met", "shed", "lost", "forwarded", "hits")
        counts: Json = {name: getattr(hosted, name) if hosted else None for name in names}
        counts["missed"] = hosted.answered - hosted.met if hosted else None
        quantiles = (
            hosted.latencies.quantiles(time.monotonic(), 0.5, 0.95) if hosted else (None, None)
        )
        counts["p50_ms"], counts["p95_ms"] = quantiles
        return counts

    def tiers(self) -> list[Json]:
        """List every agent's tier and where it comes from."""
        d, station, now_ms = self._daemon, self._daemon.station, clock.now().wall_ms
        rows = []
        for name, spec in sorted(station.hosts.specs().items()):
            hosted = station.agents.hosted.get(name)
            ended = hosted.answered + hosted.shed + hosted.lost if hosted else 0
            standing = station.tiers.standing(spec)
            since_ms = standing.since_ms
            rows.append(
                {
                    "agent": name,
                    "tier": standing.tier,
                    "declared": standing.declared,
                    "safety": spec.safety,
                    "override": standing.override,
                    "reason": standing.reason,
                    "since_s": None if since_ms is None else round((now_ms - since_ms) / 1e3, 1),
                    "history": [asdict(change) for change in standing.history],
                    "host": d.directory.name_of(station.hosts.host_of(spec)),
                    "deadline_ms": spec.deadline_ms,
                    "met_ratio": round(hosted.met / ended, 4) if hosted and ended else None,
                }
            )
        return rows

    def cache(self) -> list[Json]:
        """List what this node's workers reuse of each camera, and who else holds an entry."""
        d, station = self._daemon, self._daemon.station

        def holders(agent: str, digest: str) -> list[Json]:
            return [
                {"id": holder.node, "name": d.directory.name_of(holder.node)}
                for holder in station.holdings.of(agent, digest)
                if d.directory.address_of(holder.node) is not None
            ]

        variants = {
            file.digest: file.variant for file in station.release.manifest.variants.values()
        }
        return reuse.records(station.pool.living, variants, station.agents.hosted.keys(), holders)

    def affinity(self) -> Json:
        """Describe what this node has learned of what tasks take where."""
        return self._daemon.station.foresight.state()

    def models(self) -> list[Json]:
        """List the models: what is desired, and what each living node says that it runs."""
        d, station = self._daemon, self._daemon.station
        entry = station.release.describe(d.store.fleet(station.release.key, clock.now()))
        running = {}
        for member in d.gossip.members():
            if member.state == "self":
                running[d.directory.name_of(member.node_id)] = station.load.own()["running"]
            elif member.state in ("alive", "suspect"):
                load = station.load.of(member.node_id)
                if load is not None:
                    running[d.directory.name_of(member.node_id)] = load.get("running")
        return [{**entry, "running": running}]

    def keys(self) -> Json:
        """Describe the fleet's keys, but no secret."""
        return self._daemon.trust.describe()

    def why(self, agent: str, frame: int | None) -> Json:
        """Explain where a frame ran; see :func:`edge_node.decisions.explain`.

        Raises:
            KeyError: nothing is known of it here.
        """
        d, station = self._daemon, self._daemon.station
        record = station.dispatch.decisions.find(agent, frame)
        if record is None:
            which = f"{agent}/{frame}" if frame is not None else agent
            raise KeyError(
                f"no decision about {which} is known here: it is none of the last "
                f"{KEPT}, or another node's; edge-node agents says which node runs an agent"
            )
        own = d.config.node.name
        return explain(record, lambda node: own if node is None else d.directory.name_of(node))

    # The replica

    def state(self, prefix: str) -> Json:
        """Read the replica where keys begin with ``prefix``."""
        d = self._daemon
        owner: dict[str, Json] = {}
        for node, key, value in d.store.owners(prefix):
            owner.setdefault(d.directory.name_of(node), {})[key] = _shown(value)
        return {
            "hash": d.store.fingerprint(),
            "owner": owner,
            "fleet": dict(d.store.fleet_items(prefix, clock.now())),
            "sets": {key: d.store.elements(key) for key in d.store.set_keys(prefix)},
        }

    def state_hash(self) -> Json:
        """Return the replica's fingerprint: equal ones mean equal replicas."""
        d = self._daemon
        return {
            "hash": d.store.fingerprint(),
            "origins": len(d.store.knowledge()),
            "complete": d.store.complete,
        }

    def change(self, change: Change) -> Json:
        """Describe one change of the replica, with the value as it is now."""
        store = self._daemon.store
        value: object
        if change.kind == "owner":
            value = _shown(store.owner(change.origin, change.key))
        elif change.kind == "fleet":
            value = store.fleet(change.key, clock.now())
        else:
            value = store.elements(change.key)
        return {
            "kind": change.kind,
            "key": change.key,
            "origin": self._daemon.directory.name_of(change.origin),
            "value": value,
        }

    def latest(self) -> dict[str, Json]:
        """Return the newest result of each agent that ran here, by agent."""
        return dict(self._daemon.station.agents.latest)

    def subscribe_changes(self) -> AsyncIterator[Json]:
        """Follow changes of the replica."""
        return self._daemon.changes.subscribe()

    def subscribe_detections(self) -> AsyncIterator[Json]:
        """Follow results as they come."""
        return self._daemon.station.detections.subscribe()


def _shown(value: object) -> object:
    """Hide the password that a camera's address may hold."""
    if isinstance(value, dict) and isinstance(value.get("source"), str):
        return {**value, "source": public_address(value["source"])}
    return value
