"""The tiers of the fleet's agents: evaluated by each agent's host, known to all.

Owns this node's records ``tier/<agent>`` and the reading of everybody's, and of the fleet registers
``tier/<agent>`` by which people override them. Never decides a tier: ``placement.tiers`` does.
Invariant: an agent's tier is the override, else what its current host published, else what was
declared; so two nodes with equal replicas name the same tier, but that the host is first to know.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from crdt import Instant, Store, Value
from edge_node.cameras.agents import Agents, HostedAgent
from edge_node.cameras.hosts import WALL_BITS, Hosts
from edge_node.cameras.spec import AgentSpec
from edge_node.fleet.records import Records
from edge_node.placement.tiers import (
    MIDDLE,
    Change,
    Signals,
    TierState,
    evaluate,
    from_record,
)

TIER = "tier/"
TIERS = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Standing:
    """An agent's tier as this node knows it, and where that comes from."""

    tier: int
    declared: int
    reason: str
    since_ms: int | None = None
    history: tuple[Change, ...] = ()
    override: int | None = None


@dataclass(slots=True)
class _Watched:
    """One agent that runs here: its state, and what was observed since the last evaluation."""

    state: TierState | None
    agent: HostedAgent
    met: int = 0
    ended: int = 0
    answers: int = 0
    seen: int = 0

    def signals(self) -> Signals:
        """Return what was observed since the last call."""
        spec, met = self.agent.spec, self.agent.met
        ended = self.agent.answered + self.agent.shed + self.agent.lost
        frames = ended - self.ended
        missed = 1.0 - (met - self.met) / frames if frames else None
        seen = self.seen / self.answers if self.answers else None
        self.met, self.ended, self.answers, self.seen = met, ended, 0, 0
        return Signals(spec.tier, spec.safety, spec.deadline_ms, seen, missed)


class Tiers:
    """Which tier every agent has; :meth:`tier_of` is what each frame asks."""

    def __init__(
        self,
        node_id: bytes,
        store: Store,
        hosts: Hosts,
        agents: Agents,
        clock: Callable[[], Instant],
        stage: Callable[..., bool],
    ) -> None:
        """Prepare; ``stage`` makes a write of the store and says whether it was taken."""
        self.enabled = True
        """Whether tiers are evaluated; without, every agent is of the middle tier here."""
        self._node_id = node_id
        self._store = store
        self._hosts = hosts
        self._agents = agents
        self._clock = clock
        self._stage = stage
        self._watched: dict[str, _Watched] = {}
        self._known: dict[str, int] = {}
        self._generation = -1
        self._records = Records(store, TIER, self._take)
        self._own: set[str] = set()
        """Keys of the records that are this node's."""

    def tier_of(self, name: str) -> int:
        """Return an agent's tier, the middle one of an agent that nobody configured.

        O(1) between two changes of the replica, and after one for agents that run here.
        """
        if not self.enabled:
            return MIDDLE
        if self._generation != self._store.generation:
            self._generation = self._store.generation
            self._known.clear()
        tier = self._known.get(name)
        if tier is None:
            hosted = self._agents.hosted.get(name)
            spec = hosted.spec if hosted is not None else self._hosts.specs().get(name)
            tier = MIDDLE if spec is None else self.standing(spec).tier
            self._known[name] = tier
        return tier

    def standing(self, spec: AgentSpec) -> Standing:
        """Return an agent's tier, why it has it, since when, and the tiers before."""
        watched = self._watched.get(spec.name)
        state = watched.state if watched is not None else self._published(spec)
        override = self._store.fleet(TIER + spec.name, self._clock())
        if state is None:
            standing = Standing(spec.tier, spec.tier, "declared")
            if spec.safety:
                standing = replace(standing, tier=1, reason="safety camera")
        else:
            since_ms = state.since_ms if state.history else None
            standing = Standing(state.tier, spec.tier, state.reason, since_ms, state.history)
        if not self.enabled:
            reason = "[placement] tiers = false on this node"
            return replace(standing, tier=MIDDLE, reason=reason, since_ms=None)
        if type(override) is not int or override not in TIERS:
            return standing
        entry = self._store.fleet_entry(TIER + spec.name, self._clock())
        since_ms = entry[1] >> WALL_BITS if entry is not None else None
        reason = f"set for the fleet (else {standing.tier}: {standing.reason})"
        return replace(standing, tier=override, reason=reason, since_ms=since_ms, override=override)

    def _published(self, spec: AgentSpec) -> TierState | None:
        host = self._hosts.host_of(spec)
        return from_record(self._store.owner(host, TIER + spec.name), spec.tier)

    def observe(self, result: Mapping[str, Any]) -> None:
        """Take an answer of an agent that runs here: whether it holds a box."""
        watched = self._watched.get(result["agent"])
        if watched is not None:
            watched.answers += 1
            watched.seen += bool(result["boxes"])

    def evaluate(self) -> None:
        """Evaluate the agents that run here, once an epoch; stage what changed."""
        for name in self._watched.keys() - self._agents.hosted.keys():
            del self._watched[name]
        self._withdraw()
        if not self.enabled:
            return
        now_ms = self._clock().wall_ms
        for name, hosted in self._agents.hosted.items():
            watched = self._watched.get(name)
            if watched is None:
                watched = self._watched[name] = _Watched(self._inherited(hosted.spec), hosted)
            elif watched.agent is not hosted:  # it was opened anew: its account begins anew
                watched.agent, watched.met, watched.ended = hosted, 0, 0
            watched.state = evaluate(watched.state, watched.signals(), now_ms)
            self._publish(name, watched.state)
        self._known.clear()

    def _inherited(self, spec: AgentSpec) -> TierState | None:
        """Return the newest state that any host published: a new host goes on from there."""
        key = TIER + spec.name
        states = [
            state
            for _, found, record in self._store.owners(key)
            if found == key and (state := from_record(record, spec.tier)) is not None
        ]
        return max(states, key=lambda state: state.since_ms, default=None)

    def _publish(self, name: str, state: TierState) -> None:
        record: Any = state.record()
        known = self._store.owner(self._node_id, TIER + name)
        # Who publishes nothing has the declared tier.
        if known != record and (known is not None or state.history):
            self._stage(self._store.set_owner, TIER + name, record)

    def _withdraw(self) -> None:
        """Take back the records of agents that have gone, or whose next host has its own."""
        self._records.look()
        specs = self._hosts.specs()
        for key in sorted(self._own):
            name = key.removeprefix(TIER)
            if self.enabled and name in self._agents.hosted:
                continue
            spec = specs.get(name)
            host = self._node_id if spec is None else self._hosts.host_of(spec)
            succeeded = host != self._node_id and self._store.owner(host, key) is not None
            if spec is None or succeeded or not self.enabled:
                self._stage(self._store.delete_owner, key)

    def _take(self, origin: bytes, key: str, record: Value) -> None:
        if origin == self._node_id and record is not None:
            self._own.add(key)
        elif origin == self._node_id:
            self._own.discard(key)

    def override(self, name: str, tier: int | None) -> bool:
        """Stage a tier for the whole fleet, None ends it; return whether the store took it.

        Raises:
            KeyError: no agent has that name (an override that is there can always be ended).
            ValueError: that is no tier.
        """
        specs = self._hosts.specs()
        if tier is not None and tier not in TIERS:
            raise ValueError(f"{tier} is not a tier; use 1, 2 or 3")
        if name not in specs and (tier is not None or self._override(name) is None):
            known = ", ".join(sorted(specs)) or "none"
            raise KeyError(f"no agent {name}; there is: {known}")
        return self._stage(self._store.set_fleet, TIER + name, tier, self._clock())

    def _override(self, name: str) -> Value:
        return self._store.fleet(TIER + name, self._clock())
