"""What this node does when it is asked: changes of the fleet's state, frames, values, reuse state.

Owns no state: each request goes to the part that does it. Invariant: a change is answered once it
shows here, which is after it is durable; where that takes too long the answer is ``JournalFull``,
and the change waits for the disk.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from crdt import Value
from edge_node import clock
from edge_node.dispatch import SUBMITTED
from edge_node.fleet.journal import JournalFull
from edge_node.fleet.shared import PREFIX
from edge_node.fleet.tiers import TIER
from edge_node.status import Json, Status
from edge_node.workers import ModelError

VISIBLE_TIMEOUT_S = 3.0


class Requests(Status):
    """Implements :class:`edge_node.api.view.NodeView`: what is read, and what is done."""

    # From clients

    async def set_model(self, name: str, variant: str) -> Json:
        """Make ``variant`` the fleet's release of ``name``, after it loaded here.

        Raises:
            KeyError: there is no such model or variant.
            ModelError: it does not load here; the release is unchanged.
            JournalFull: the change could not be made durable yet; it waits for the disk.
        """
        d, release = self._daemon, self._daemon.station.release
        if name != release.manifest.name:
            raise KeyError(f"no model {name}; there is: {release.manifest.name}")
        if variant not in release.manifest.variants:
            known = ", ".join(sorted(release.manifest.variants))
            raise KeyError(f"{name} has no variant {variant}; it has: {known}")
        file = release.file(variant)
        await release.load(file)
        value: Value = {"variant": variant, "version": file.version, "digest": file.digest}
        await d.writes.acquainted.wait()
        before = d.store.fleet_entry(release.key, clock.now())
        if not d.writes.stage(d.store.set_fleet, release.key, value, clock.now()):
            raise JournalFull(d.writes.refused[release.key])
        d.writes.commit()
        now = await self._shown_after(release.key, before)
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
        d, station = self._daemon, self._daemon.station
        await d.writes.acquainted.wait()
        register = TIER + agent
        before = d.store.fleet_entry(register, clock.now())
        if not station.tiers.override(agent, tier):
            raise JournalFull(d.writes.refused[register])
        d.writes.commit()
        await self._shown_after(register, before)
        return next((row for row in self.tiers() if row["agent"] == agent), {"agent": agent})

    async def drain(self, on: bool) -> Json:
        """Have this node give its agents away, or no longer; return what it still runs.

        Raises:
            JournalFull: the change could not be made durable yet; it waits for the disk.
        """
        d, station = self._daemon, self._daemon.station
        await d.writes.acquainted.wait()
        station.drain(on)

        def published() -> bool:
            record = d.store.owner(d.identity.node_id, "node")
            return isinstance(record, dict) and record.get("draining") is on

        await self._shown(published)
        return {"draining": on, "hot": station.health.hot, "agents": sorted(station.agents.hosted)}

    async def rotate_keys(self, epoch: int, force: bool) -> Json:
        """Give the fleet a new key; see :meth:`edge_node.fleet.trust.Trust.rotate`."""
        await self._daemon.trust.rotate(epoch, force)
        return self.keys()

    async def revoke(self, member: str, revoked: bool) -> Json:
        """Revoke a member, or take it back in; see :meth:`edge_node.fleet.trust.Trust.revoke`."""
        node = await self._daemon.trust.revoke(member, revoked)
        return {"id": node, "name": self._daemon.directory.name_of(node), "revoked": revoked}

    async def infer(self, variant: str, deadline_ms: float, tier: int, image: bytes) -> Json:
        """Answer one image, here or elsewhere; see :meth:`edge_node.dispatch.Dispatch.submit`."""
        station = self._daemon.station
        release = station.release
        digest = release.digest
        if variant:
            if variant not in release.manifest.variants:
                known = ", ".join(sorted(release.manifest.variants))
                raise KeyError(f"no variant {variant}; there is: {known}")
            digest = release.manifest.variants[variant].digest
        if not digest:
            raise ModelError(release.error or "no model is loaded yet")
        answer = await station.dispatch.submit(digest, tier, deadline_ms, image)
        return {
            "frame": f"{SUBMITTED}/{answer.frame}",
            "node": answer.node,
            "variant": answer.inference.variant,
            "digest": answer.inference.digest,
            "effort": answer.inference.effort,
            "rung": answer.inference.rung,
            "latency_ms": round(answer.spent_s * 1e3, 2),
            "met": answer.spent_s * 1e3 <= deadline_ms,
            "boxes": [station.agents.box(*box) for box in answer.inference.boxes],
        }

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

    # From peers

    async def peer_infer(self, sender: bytes, request: Mapping[str, Any]) -> Json:
        """Answer one frame of a peer's camera; see :meth:`edge_node.dispatch.Dispatch.receive`."""
        answered_by, inference = await self._daemon.station.dispatch.receive(sender, request)
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

    async def peer_cache(self, agent: str, digest: str) -> bytes | None:
        """Export the reuse state of ``agent``, None if no worker holds it."""
        for worker in self._daemon.station.pool.living:
            if entry := await worker.export_cache(agent, digest):
                return entry
        return None

    async def peer_artifact(self, digest: str) -> bytes | None:
        """Return the artifact of a digest, None if it is not held here."""
        return await self._daemon.shared.bytes_of(digest)

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
