"""What this node shows of itself and takes from outside: the daemon as HTTP sees it.

Owns no state: it reads the parts and shapes plain data (docs/operations.md lists the fields).
Invariant: a field missing from a peer's record is None here, never an error.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import edge_node
from crdt import Change, Value
from edge_node import clock, exposition, reuse
from edge_node.cameras.address import public_address
from edge_node.cameras.agents import AgentSpec, HostedAgent
from edge_node.fleet.journal import JournalFull
from edge_node.fleet.shared import PREFIX
from edge_node.workers import ModelError, Shed

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
                    "backlog_ms": worker.backlog_ms if worker else None,
                }
            )
        return {
            "id": d.identity.node_id,
            "name": d.config.node.name,
            "version": edge_node.__version__,
            "uptime_s": round(time.monotonic() - d.started.mono_s, 1),
            "boot": d.boot,
            "accelerators": accelerators,
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
        return [
            {
                "id": member.node_id,
                "name": d.directory.name_of(member.node_id),
                "address": f"{member.address[0]}:{member.address[1]}",
                "state": member.state,
                "incarnation": member.incarnation,
                "rtt_ms": None if member.rtt_s is None else round(member.rtt_s * 1e3, 2),
                "since_s": round(now_s - member.since_mono_s, 1),
                "load": d.load.own() if member.state == "self" else d.load.of(member.node_id),
            }
            for member in sorted(
                d.gossip.members(),
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
            "tier": spec.tier,
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
        d = self._daemon
        rows = []
        for name, spec in sorted(d.hosts.specs().items()):
            hosted = d.agents.hosted.get(name)
            ended = hosted.answered + hosted.shed + hosted.lost if hosted else 0
            rows.append(
                {
                    "agent": name,
                    "tier": spec.tier,
                    "declared": spec.tier,
                    "reason": "declared criticality",
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

    async def rotate_keys(self, epoch: int, force: bool) -> Json:
        """Give the fleet a new key; see :meth:`edge_node.fleet.trust.Trust.rotate`."""
        await self._daemon.trust.rotate(epoch, force)
        return self.keys()

    async def revoke(self, member: str, revoked: bool) -> Json:
        """Revoke a member, or take it back in; see :meth:`edge_node.fleet.trust.Trust.revoke`."""
        node = await self._daemon.trust.revoke(member, revoked)
        return {"id": node, "name": self._daemon.directory.name_of(node), "revoked": revoked}

    async def peer_infer(self, sender: bytes, request: Mapping[str, Any]) -> Json:
        """Run one frame of a peer's camera on the least loaded worker.

        Raises:
            Shed: it would not be in time, or this node does not run that model.
        """
        d = self._daemon
        digest = request["digest"]
        worker = d.pool.least_loaded(digest)
        if worker is None:
            raise Shed("model not loaded")
        deadline_s = time.monotonic() + request["budget_ms"] / 1e3
        try:
            inference = await worker.infer_image(
                request["agent"], request["image"], digest, deadline_s, request["tier"]
            )
        except ModelError as error:
            raise Shed("model failed") from error
        d.counters.add("received")
        return {
            "boxes": inference.boxes,
            "digest": inference.digest,
            "variant": inference.variant,
            "rung": inference.rung,
            "service_ms": inference.service_ms,
            "wait_ms": inference.wait_ms,
            "backlog_ms": inference.backlog_ms,
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
        d = self._daemon
        deadline_s = time.monotonic() + VISIBLE_TIMEOUT_S
        while (now := d.store.fleet_entry(key, clock.now())) == before:
            if time.monotonic() > deadline_s:
                raise JournalFull(d.writes.waiting or "the change is not durable yet")
            await asyncio.sleep(0.01)
        return now

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
