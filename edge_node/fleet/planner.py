"""The plan of each epoch: which node runs whose frames, from this node's own replica.

Owns the newest plan and how its inputs are read from the replica; the plan itself is
:func:`edge_node.placement.epoch.plan`, computed off the event loop. Never writes anything: nodes
whose replicas agree have the same plan without a word.
"""

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from edge_node.cameras.spec import AgentSpec
from edge_node.fleet.load import LEAST_FACTOR, Load, times_of
from edge_node.fleet.published import Capacity
from edge_node.placement.choose import Reach
from edge_node.placement.epoch import TARGET, Plan, Seat, Stream, plan, reach
from edge_node.placement.view import FleetView
from models.wire import SHORT

NO_PLAN = Plan({}, {}, {})


class Given(NamedTuple):
    """What a plan is made from: streams, seats, and the node that runs an agent's frames now."""

    streams: list[Stream]
    seats: list[Seat]
    current: dict[str, bytes]


class Planner:
    """Holds the plan that the next frames follow."""

    def __init__(self, node_id: bytes, load: Load, view: FleetView) -> None:
        self.plan = NO_PLAN
        self._node_id = node_id
        self._load = load
        self._view = view
        self._seats: list[Seat] | None = []  # None: not read yet
        self._own_type = ""
        self._living: Mapping[bytes, Capacity] = {}
        self._reach: dict[str, Reach] = {}
        self._moved: dict[str, bytes | None] = {}
        self._rested_s = 0.0

    def planned(self, agent: str) -> bytes | None:
        """Return the peer that should run an agent's frames, None for this node."""
        if agent in self._moved:
            return self._moved[agent]
        node = self.plan.primary.get(agent)
        return None if node == self._node_id else node

    def moved(self, agent: str, node: bytes | None) -> None:
        """Have an agent's next frames follow one that ran elsewhere, until the next plan.

        What they can reuse is there now.
        """
        self._moved[agent] = node

    def serves(self, kind: str) -> bool:
        """Tell whether the plan wants nodes like this one to serve a kind."""
        return self.plan.supports(kind, self._own_type)

    def provider(self, node: bytes) -> str:
        """Return the execution provider of a node's first accelerator, "" if unknown."""
        capacity = self._living.get(node)
        return capacity.providers[0] if capacity and capacity.providers else ""

    def reach(self, kind: str) -> Reach:
        """Return the peers that do a kind well; from the plan, kept until the next."""
        found = self._reach.get(kind)
        if found is None:
            if self._seats is None:
                self._seats = self._read_seats(self._living, self._rested_s)
            found = reach(self.plan, self._seats, self._node_id, kind)
            self._reach[kind] = found
        return found

    async def renew(self, given: Given, living: Mapping[bytes, Capacity]) -> None:
        """Make the plan of this epoch, off the event loop; see :meth:`inputs`."""
        self.adopt(await asyncio.to_thread(plan, *given), given.seats, living)

    def rest(self, living: Mapping[bytes, Capacity], now_s: float) -> None:
        """Follow no plan, as there is no agent; what :meth:`reach` needs is read when asked."""
        self._load.factor = 1.0
        self._moved.clear()
        self.plan, self._own_type = NO_PLAN, ""
        self._seats, self._reach, self._living = None, {}, living
        self._rested_s = now_s

    def inputs(
        self,
        specs: Mapping[str, AgentSpec],
        host_of: Callable[[AgentSpec], bytes],
        tier_of: Callable[[str], int],
        factor_of: Callable[[str], float],
        digest_of: Callable[[AgentSpec], str],
        living: Mapping[bytes, Capacity],
        now_s: float,
    ) -> Given:
        """Return what the plan of this epoch is made from.

        Args:
            host_of: the node that decodes an agent's camera.
            factor_of: mean work of an agent's frames in full passes, for agents of this node.
            digest_of: the model that answers an agent.
            living: what the nodes believed alive published, this one included.
        """
        hosts = {name: host_of(spec) for name, spec in specs.items()}
        own = [factor_of(name) for name, host in hosts.items() if host == self._node_id]
        self._load.factor = max(LEAST_FACTOR, sum(own) / len(own)) if own else 1.0
        seats = self._read_seats(living, now_s)
        told = {node: self._load.factor_of(node) for node in {*hosts.values()} & living.keys()}
        streams = [
            Stream(
                name,
                digest_of(spec)[:SHORT],
                tier_of(name),
                spec.fps,
                spec.deadline_ms,
                host,
                max(LEAST_FACTOR, factor_of(name)) if host == self._node_id else told[host],
            )
            for name, spec in specs.items()
            if (host := hosts[name]) in living
        ]
        current = dict(self.plan.primary)
        moved, self._moved = self._moved, {}
        for agent, node in moved.items():
            current[agent] = self._node_id if node is None else node
        return Given(streams, seats, current)

    def adopt(self, made: Plan, seats: list[Seat], living: Mapping[bytes, Capacity]) -> None:
        """Follow a plan from now on; ``seats`` and ``living`` are what it was made from."""
        self.plan = made
        self._seats, self._reach, self._living = seats, {}, living
        self._own_type = next((seat.type for seat in seats if seat.node == self._node_id), "")

    def _read_seats(self, living: Mapping[bytes, Capacity], now_s: float) -> list[Seat]:
        """Read what the living nodes say that they are, as far as this one believes them."""
        seats = []
        for node, capacity in living.items():
            times = {} if capacity.leaving else self._times(node)
            count = TARGET * max(1, len(capacity.providers))
            peer = self._view.peers.get(node)
            late_ms = peer.late_ms(now_s) if peer else 0.0
            seats.append(Seat(node, type_of(capacity, times), capacity.zone, times, count, late_ms))
        return seats

    def _times(self, node: bytes) -> dict[str, float]:
        """Return a node's service times in ms by kind, as it says itself."""
        if node == self._node_id:
            times: Mapping[str, float] = times_of(self._load.own()["service_ms"])
        else:
            times = self._view.peers[node].service_ms if node in self._view.peers else {}
        return {kind: ms for kind, ms in times.items() if ms > 0}


def type_of(capacity: Capacity, times: Mapping[str, float]) -> str:
    """Return what a node counts as: its provider, and how fast it is in steps of two."""
    provider = capacity.providers[0] if capacity.providers else "none"
    return f"{provider} {round(math.log2(min(times.values())))}" if times else provider
