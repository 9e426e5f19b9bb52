"""Owns the interface through which HTTP sees the daemon.

Handlers know nothing but this protocol; it never exposes the store, the gossip node or a worker.
Invariant: what the synchronous methods return is plain data (None, bool, int, float, str, bytes,
list, dict with str keys), built for the caller, who may keep it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from crdt import Value

Json = dict[str, Any]


class NodeView(Protocol):
    """Answer what the API asks. Synchronous methods return in well under 5 ms: they read memory."""

    def node(self) -> Json:
        """Describe this node.

        {id, name, version, uptime_s, boot, accelerators, zone, draining, hot, degraded}.
        """

    def peers(self) -> list[Json]:
        """List members.

        [{id, name, address, state, incarnation, rtt_ms, since_s, zone, draining, hot, load}].
        """

    def agents(self) -> list[Json]:
        """List the fleet's agents with what this node knows of their results."""

    def tiers(self) -> list[Json]:
        """List agents' tiers.

        [{agent, tier, declared, safety, override, reason, since_s, history: [{at_ms, tier,
        reason}], host, deadline_ms, met_ratio}].
        """

    def cache(self) -> list[Json]:
        """List what is reused of each camera here: `edge_node.reuse.records`."""

    def affinity(self) -> Json:
        """Describe the affinity model."""

    def models(self) -> list[Json]:
        """List models: [{name, desired, running, variants, error}]."""

    def keys(self) -> Json:
        """Describe the fleet's keys, never a secret.

        {epoch, age_s, previous, previous_left_s, durable, current: [name], behind: [name]}.
        """

    def state(self, prefix: str) -> Json:
        """Read the replica where keys begin with `prefix`: {hash, owner, fleet, sets}."""

    def state_hash(self) -> Json:
        """Return {hash, origins, complete}."""

    def latest(self) -> dict[str, Json]:
        """Return the newest result of each agent, by agent."""

    def stats(self) -> Json:
        """Return this node's counters and latencies."""

    def metrics_text(self) -> str:
        """Return the metrics in Prometheus' text format (`edge_node.metrics.render`)."""

    def ready(self) -> tuple[bool, list[str]]:
        """Say whether work can be taken, and the reasons why not."""

    async def set_model(self, name: str, variant: str) -> Json:
        """Publish `variant` as the fleet's release of `name`; return the `models()` entry.

        Raises KeyError (no such model or variant) and ModelError (cannot be released); the release
        is unchanged then. Raises JournalFull if it could not be made durable.
        """

    async def set_tier(self, agent: str, tier: int | None) -> Json:
        """Set `agent`'s tier for the whole fleet, None ends that; return its `tiers()` row.

        Raises KeyError (no such agent), ValueError (no such tier), JournalFull.
        """

    async def drain(self, on: bool) -> Json:
        """Have this node give its agents away, or no longer: {draining, hot, agents: [name]}.

        Raises JournalFull.
        """

    async def rotate_keys(self, epoch: int, force: bool) -> Json:
        """Give the fleet a new key under `epoch`, the next number; return `keys()`.

        Raises TrustError (not the next, or it locks members out; nothing has changed), JournalFull.
        """

    async def revoke(self, member: str, revoked: bool) -> Json:
        """Revoke a member (id, its beginning, or name) or take it back: {id, name, revoked}.

        Raises KeyError, ValueError (several are meant), TrustError (this node), JournalFull.
        """

    def why(self, agent: str, frame: int | None) -> Json:
        """Explain where a frame ran (None: the agent's newest). Raises KeyError."""

    async def infer(self, variant: str, deadline_ms: float, tier: int, image: bytes) -> Json:
        """Answer one JPEG, here or elsewhere, with a variant ("": the fleet's).

        Raises BudgetSpent, KeyError (nobody has it), Shed, ModelError.
        """

    async def peer_infer(self, sender: bytes, request: Json) -> Json:
        """Run a frame for the node `sender` (16 bytes).

        `request` is what `peer.decode_infer` checked. Returns {boxes, digest, variant, effort,
        rung, service_ms, wait_ms, waits_ms, node (who answered, b"": this one)}. Raises
        BudgetSpent, Shed, ModelError.
        """

    async def peer_cache(self, agent: str, digest: str) -> bytes | None:
        """Export the reuse state of `agent` under the model `digest` (hex), None if not held."""

    async def peer_artifact(self, digest: str) -> bytes | None:
        """Return the artifact of a digest (64 hex digits), None if not held."""

    async def value(self, key: str) -> Value:
        """Read an application's value, None if there is none. Raises Unavailable."""

    async def set_value(self, key: str, value: Value) -> None:
        """Set an application's value, None deletes it; return when it shows here.

        Raises ValueError (what is wrong with key or value), ArtifactsFull, JournalFull.
        """

    def subscribe_changes(self) -> AsyncIterator[Json]:
        """Follow changes of the replica: {kind, key, origin, value}. See `events.Feed`."""

    def subscribe_detections(self) -> AsyncIterator[Json]:
        """Follow results as they come. See `events.Feed`."""
