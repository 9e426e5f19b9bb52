"""What this node shows of itself and takes from outside: the daemon as HTTP sees it.

Owns no state: it reads the parts and shapes plain data (docs/operations.md lists the fields).
Invariant: a field missing from a peer's record is None here, never an error.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import edge_node
from crdt import Change, Value
from edge_node import clock, exposition, reuse
from edge_node.cameras.address import public_address
from edge_node.cameras.agents import HostedAgent
from edge_node.cameras.spec import AgentSpec
from edge_node.decisions import KEPT, explain
from edge_node.dispatch import SUBMITTED
from edge_node.fleet.journal import JournalFull
from edge_node.fleet.load import Capacity
from edge_node.fleet.shared import PREFIX
from edge_node.fleet.tiers import TIER
from edge_node.workers import ModelError

if TYPE_CHECKING:
    from edge_node.daemon import Daemon

Json = dict[str, Any]

VISIBLE_TIMEOUT_S = 3.0
CONTESTED = (
    "another process signs with this node's key, so peers may ignore this node: stop the copy of "
    "its state_dir; if they still ignore it, give this node an empty state_dir (it gets a new id)"
)


class Status:
    """Implements :class:`edge_node.api.view.NodeView` on a running daemon."""

    def __init__(self, daemon: "Daemon") -> None:
        self._daemon = daemon

    # This node

    def node(self) -> Json:
        """Describe this node."""
        d = self._daemon
        workers = {worker.spec.name: worker for worker in d.pool.workers}
        accelerators = []
        for probe in d.pool.probes:
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
            "draining": d.health.draining,
            "hot": d.health.hot,
            "degraded": self._problems(),
        }

    def _problems(self) -> list[str]:
        d = self._daemon
        problems = [d.writes.waiting, d.release.error, *d.trust.problems]
        problems += d.outputs.problems
        problems += d.pool.problems
        problems += d.writes.refused.values()
        if d.store.contested:
            problems.append(CONTESTED)
        if d.store.hidden:
            problems.append(
                f"{d.store.hidden} values are dated in the future and wait for their time: the "
                "fleet's clocks differ, check NTP on every node"
            )
        problems += d.hosts.problems.values()
        if d.health.hot:
            problems.append(f"this node is {d.health.temperature}: it gives its cameras away")
        problems += [
            f"camera {name} does not run: another node's camera has this name; rename one"
            for name in d.hosts.conflicts()
        ]
        return [problem for problem in problems if problem]

    def ready(self) -> tuple[bool, list[str]]:
        """Say whether frames can be answered."""
        d = self._daemon
        reasons = []
        if not d.pool.living:
            reasons.append("no accelerator works")
        elif not d.release.digest:
            reasons.append(d.release.error or "no model is loaded yet")
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
        d, now_s = self._daemon, time.monotonic()
        members = d.gossip.members()
        capacities = d.load.capacities(frozenset(member.node_id for member in members))
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
                "load": d.load.own() if member.state == "self" else d.load.of(member.node_id),
            }
            for member in sorted(
                members,
                key=lambda m: (m.state != "self", d.directory.name_of(m.node_id)),
            )
        ]

    def agents(self) -> list[Json]:
        """List the fleet's agents; counts only of those that run here."""
        d = self._daemon
        return [self._agent(spec) for _, spec in sorted(d.hosts.specs().items())]

    def _agent(self, spec: AgentSpec) -> Json:
        d = self._daemon
        hosted = d.agents.hosted.get(spec.name)
        host = d.hosts.host_of(spec)
        alive = host == d.identity.node_id or d.directory.address_of(host) is not None
        latest = d.agents.latest.get(spec.name) if hosted else None
        if spec.name in d.hosts.problems or (hosted and not hosted.worker.alive):
            state, reason = "waiting", d.hosts.problems.get(spec.name, "its worker is down")
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
            "tier": d.tiers.tier_of(spec.name),
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
        d, now_ms = self._daemon, clock.now().wall_ms
        rows = []
        for name, spec in sorted(d.hosts.specs().items()):
            hosted = d.agents.hosted.get(name)
            ended = hosted.answered + hosted.shed + hosted.lost if hosted else 0
            standing = d.tiers.standing(spec)
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
                    "host": d.directory.name_of(d.hosts.host_of(spec)),
                    "deadline_ms": spec.deadline_ms,
                    "met_ratio": round(hosted.met / ended, 4) if hosted and ended else None,
                }
            )
        return rows

    def cache(self) -> list[Json]:
        """List what this node's workers reuse of each camera, and who else holds an entry."""
        d = self._daemon

        def holders(agent: str, digest: str) -> list[Json]:
            return [
                {"id": holder.node, "name": d.directory.name_of(holder.node)}
                for holder in d.holdings.of(agent, digest)
                if d.directory.address_of(holder.node) is not None
            ]

        variants = {file.digest: file.variant for file in d.release.manifest.variants.values()}
        return reuse.records(d.pool.living, variants, d.agents.hosted.keys(), holders)

    def affinity(self) -> Json:
        """Describe what this node has learned of what tasks take where."""
        return self._daemon.foresight.state()

    def models(self) -> list[Json]:
        """List the models: what is desired, and what each living node says that it runs."""
        d = self._daemon
        entry = d.release.describe(d.store.fleet(d.release.key, clock.now()))
        running = {}
        for member in d.gossip.members():
            if member.state == "self":
                running[d.directory.name_of(member.node_id)] = d.load.own()["running"]
            elif member.state in ("alive", "suspect"):
                load = d.load.of(member.node_id)
                if load is not None:
                    running[d.directory.name_of(member.node_id)] = load.get("running")
        return [{**entry, "running": running}]

    def keys(self) -> Json:
        """Describe the fleet's keys, but no secret."""
        return self._daemon.trust.describe()

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
        return dict(self._daemon.agents.latest)

    def subscribe_changes(self) -> AsyncIterator[Json]:
        """Follow changes of the replica."""
        return self._daemon.changes.subscribe()

    def subscribe_detections(self) -> AsyncIterator[Json]:
        """Follow results as they come."""
        return self._daemon.detections.subscribe()

    # Requests that change or run something

    async def set_model(self, name: str, variant: str) -> Json:
        """Make ``variant`` the fleet's release of ``name``, after it loaded here.

        Raises:
            KeyError: there is no such model or variant.
            ModelError: it does not load here; the release is unchanged.
            JournalFull: the change could not be made durable yet; it waits for the disk.
        """
        d = self._daemon
        if name != d.release.manifest.name:
            raise KeyError(f"no model {name}; there is: {d.release.manifest.name}")
        if variant not in d.release.manifest.variants:
            known = ", ".join(sorted(d.release.manifest.variants))
            raise KeyError(f"{name} has no variant {variant}; it has: {known}")
        file = d.release.file(variant)
        await d.release.load(file)
        value: Value = {"variant": variant, "version": file.version, "digest": file.digest}
        await d.writes.acquainted.wait()
        before = d.store.fleet_entry(d.release.key, clock.now())
        if not d.writes.stage(d.store.set_fleet, d.release.key, value, clock.now()):
            raise JournalFull(d.writes.refused[d.release.key])
        d.writes.commit()
        now = await self._shown_after(d.release.key, before)
        if now is None or now[0] != value:
            raise ModelError("another node set this model at the same moment; that one counts")
        return self.models()[0]

    async def set_tier(self, agent: str, tier: int | None) -> Json:
        """Set an agent's tier for the whole fleet, None ends that; return its `tiers()` row.

        Raises:
            KeyError: there is no such agent.
            ValueError: there is no such tier.
            JournalFull: the change could not be made durable yet; it waits for the disk.
        """
        d = self._daemon
        await d.writes.acquainted.wait()
        register = TIER + agent
        before = d.store.fleet_entry(register, clock.now())
        if not d.tiers.override(agent, tier):
            raise JournalFull(d.writes.refused[register])
        d.writes.commit()
        await self._shown_after(register, before)
        return next((row for row in self.tiers() if row["agent"] == agent), {"agent": agent})

    async def drain(self, on: bool) -> Json:
        """Have this node give its agents away, or no longer; return what it still runs.

        Raises:
            JournalFull: the change could not be made durable yet; it waits for the disk.
        """
        d = self._daemon
        await d.writes.acquainted.wait()
        d.drain(on)

        def published() -> bool:
            record = d.store.owner(d.identity.node_id, "node")
            return isinstance(record, dict) and record.get("draining") is on

        await self._shown(published)
        return {"draining": on, "hot": d.health.hot, "agents": sorted(d.agents.hosted)}

    async def rotate_keys(self, epoch: int, force: bool) -> Json:
        """Give the fleet a new key; see :meth:`edge_node.fleet.trust.Trust.rotate`."""
        await self._daemon.trust.rotate(epoch, force)
        return self.keys()

    async def revoke(self, member: str, revoked: bool) -> Json:
        """Revoke a member, or take it back in; see :meth:`edge_node.fleet.trust.Trust.revoke`."""
        node = await self._daemon.trust.revoke(member, revoked)
        return {"id": node, "name": self._daemon.directory.name_of(node), "revoked": revoked}

    def why(self, agent: str, frame: int | None) -> Json:
        """Explain where a frame ran; see :func:`edge_node.decisions.explain`.

        Raises:
            KeyError: nothing is known of it here.
        """
        d = self._daemon
        record = d.dispatch.decisions.find(agent, frame)
        if record is None:
            which = f"{agent}/{frame}" if frame is not None else agent
            raise KeyError(
                f"no decision about {which} is known here: it is none of the last "
                f"{KEPT}, or another node's; edge-node agents says which node runs an agent"
            )
        own = d.config.node.name
        return explain(record, lambda node: own if node is None else d.directory.name_of(node))

    async def infer(self, variant: str, deadline_ms: float, tier: int, image: bytes) -> Json:
        """Answer one image, here or elsewhere; see :meth:`edge_node.dispatch.Dispatch.submit`."""
        d = self._daemon
        digest = d.release.digest
        if variant:
            if variant not in d.release.manifest.variants:
                known = ", ".join(sorted(d.release.manifest.variants))
                raise KeyError(f"no variant {variant}; there is: {known}")
            digest = d.release.manifest.variants[variant].digest
        if not digest:
            raise ModelError(d.release.error or "no model is loaded yet")
        answer = await d.dispatch.submit(digest, tier, deadline_ms, image)
        return {
            "frame": f"{SUBMITTED}/{answer.frame}",
            "node": answer.node,
            "variant": answer.inference.variant,
            "digest": answer.inference.digest,
            "effort": answer.inference.effort,
            "rung": answer.inference.rung,
            "latency_ms": round(answer.spent_s * 1e3, 2),
            "met": answer.spent_s * 1e3 <= deadline_ms,
            "boxes": [d.agents.box(*box) for box in answer.inference.boxes],
        }

    async def peer_infer(self, sender: bytes, request: Mapping[str, Any]) -> Json:
        """Answer one frame of a peer's camera; see :meth:`edge_node.dispatch.Dispatch.receive`."""
        answered_by, inference = await self._daemon.dispatch.receive(sender, request)
        return {
            "boxes": inference.boxes,
            "digest": inference.digest,
            "variant": inference.variant,
            "effort": inference.effort,
            "rung": inference.rung,
            "service_ms": inference.service_ms,
            "wait_ms": inference.wait_ms,
            "waits_ms": inference.waits_ms,
            "node": answered_by,
        }

    async def peer_artifact(self, digest: str) -> bytes | None:
        """Return the artifact of a digest, None if it is not held here."""
        return await self._daemon.shared.bytes_of(digest)

    async def value(self, key: str) -> Value:
        """Read an application's value, None if there is none.

        Raises:
            Unavailable: a large one whose holders do not answer.
        """
        return await self._daemon.shared.get(key)

    async def set_value(self, key: str, value: Value) -> None:
        """Set an application's value, None deletes it; return when it shows here.

        Raises:
            ValueError: the key or value is not one, or too large.
            ArtifactsFull: this node has no room for another large value.
            JournalFull: the change could not be made durable yet; it waits for the disk.
        """
        d = self._daemon
        register = PREFIX + key
        before = d.store.fleet_entry(register, clock.now())
        await d.shared.set(key, value)
        await self._shown_after(register, before)

    async def _shown_after(
        self, key: str, before: tuple[Value, int, bytes] | None
    ) -> tuple[Value, int, bytes] | None:
        """Wait until a register reads differently from `before`; return how it reads."""
        store = self._daemon.store
        await self._shown(lambda: store.fleet_entry(key, clock.now()) != before)
        return store.fleet_entry(key, clock.now())

    async def _shown(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + VISIBLE_TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline_s:
                waiting = self._daemon.writes.waiting
                raise JournalFull(waiting or "the change is not durable yet")
            await asyncio.sleep(0.01)

    async def peer_cache(self, agent: str, digest: str) -> bytes | None:
        """Export the reuse state of ``agent``, None if no worker holds it."""
        for worker in self._daemon.pool.living:
            if entry := await worker.export_cache(agent, digest):
                return entry
        return None


def _shown(value: object) -> object:
    """Hide the password that a camera's address may hold."""
    if isinstance(value, dict) and isinstance(value.get("source"), str):
        return {**value, "source": public_address(value["source"])}
    return value
