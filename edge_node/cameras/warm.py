"""Give agents that are new here the reuse state that another node has of them.

Owns the asking. Never decides what is worth it (:mod:`edge_node.placement.fetch` does) and never
believes what it gets: the worker checks it, and audits follow. Invariant: each agent asks once.
"""

from collections.abc import Iterable

from edge_node.cameras.agents import Agents, HostedAgent
from edge_node.fleet.peers import PeerError, Peers
from edge_node.metrics import Counters
from edge_node.placement.fetch import Holder, Link, in_order, is_worth
from edge_node.placement.view import FleetView
from edge_node.workers import ModelError

FETCH_MIN_S = 0.6  # an entry is given at least this long


class WarmStarts:
    """Fetches entries for the agents hosted here."""

    def __init__(
        self, node_id: bytes, agents: Agents, view: FleetView, peers: Peers, counters: Counters
    ) -> None:
        self._node_id = node_id
        self._agents = agents
        self._view = view
        self._peers = peers
        self._counters = counters

    async def begin(self, name: str, holders: Iterable[Holder]) -> None:
        """Fetch the reuse state of an agent that is new here, once, where that is worth it.

        ``holders`` may include this node; without others nothing happens.
        """
        agent = self._agents.hosted.get(name)
        others = [holder for holder in holders if holder.node != self._node_id]
        if agent is None or not others or not agent.is_cold:
            return
        agent.asked = True
        scene = await agent.worker.scene(name)
        full_s = agent.worker.service_ms.get(agent.digest, 0.0) / 1e3
        for holder in in_order(others, scene):
            if self._agents.hosted.get(name) is not agent:
                return
            link = Link(self._peers.bandwidth_bps(holder.node), self._view.rtt_s(holder.node))
            outcome = "not worth it"
            if is_worth(holder, link, full_s, scene):
                outcome = await self._fetch(agent, holder, link.fetch_s(holder.size_bytes))
            self._counters.add("entries", outcome=outcome)
            if outcome == "taken":
                self._counters.add("warm_starts", agent=name)
                return

    async def _fetch(self, agent: HostedAgent, holder: Holder, predicted_s: float) -> str:
        """Ask a holder for its entry; return what became of it."""
        name, digest = agent.spec.name, agent.digest
        timeout_s = FETCH_MIN_S + 2 * predicted_s
        try:
            entry = await self._peers.cache(holder.node, name, digest, timeout_s)
            if entry is None:
                return "gone"
            return "taken" if await agent.worker.import_cache(name, digest, entry) else "refused"
        except (PeerError, ModelError) as error:
            return "unreachable" if isinstance(error, PeerError) else "refused"
