"""How this node's own changes go out: staged, signed, made durable, gossiped, in this order.

Owns what stands between a decision and its batch, and the problems on the way. Never loses a
change: one that the disk refuses waits for the disk. Invariant: the first batch of a run leaves
only after the peers had the chance to give back what this node wrote in former runs.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from crdt import Batch, Store
from edge_node import clock
from edge_node.fleet.journal import Journal, JournalError
from edge_node.metrics import Counters
from gossip import GossipNode

log = logging.getLogger(__name__)

RETRY_S = 1.0
ACQUAINT_S = 5.0


class Writes:
    """The way of this node's changes into its log."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        gossip: GossipNode,
        kick: Callable[[], None],
        counters: Counters,
    ) -> None:
        """Prepare; ``kick`` has the gossip host carry out what the core wants."""
        self.refused: dict[str, str] = {}
        """Keys whose value the store does not take, and why."""
        self.waiting = ""
        """Why changes wait until they are durable; empty when they do not."""
        self.acquainted = asyncio.Event()
        self._store = store
        self._journal = journal
        self._gossip = gossip
        self._kick = kick
        self._counters = counters

    def stage(self, write: Callable[..., None], key: str, *arguments: Any) -> bool:
        """Stage one write of the store; a refused one is a problem to show, not a failure."""
        try:
            write(key, *arguments)
        except ValueError as error:
            self._counters.add("writes_refused")
            problem = f"{key} is not shared with the fleet: {error}"
            if self.refused.get(key) != problem:
                log.error("%s", problem)
            self.refused[key] = problem
            return False
        self.refused.pop(key, None)
        return True

    def commit(self) -> None:
        """Sign what was staged and send it on its way, as soon as this node is acquainted."""
        if self.acquainted.is_set():
            self._gossip.commit(clock.now())
            self._kick()

    async def acquaint(self, has_seeds: bool) -> None:
        """Hold the first commit until a peer's replica equals ours, or none seems to be there.

        What this node wrote in former runs and its journal lost, peers give back until then. A
        node without seeds waits too if it has run before: it may be the others' seed.
        """
        if has_seeds or self._journal.start.incarnation > 1:
            limit_s = time.monotonic() + ACQUAINT_S
            while not self._gossip.acquainted:
                if time.monotonic() > limit_s:
                    log.info("no peer to compare with: going on with the journal's state")
                    break
                await asyncio.sleep(0.02)
        self.acquainted.set()

    async def persist(self, batch: Batch) -> None:
        """Make ``batch`` durable, however long the disk takes to come back."""
        while True:
            try:
                await self._journal.append(batch, self._store.clock.high_water)
            except JournalError as error:
                if not self.waiting:
                    log.error("changes wait until they are durable: %s", error)
                self.waiting = str(error)
                await asyncio.sleep(RETRY_S)
            else:
                if self.waiting:
                    log.warning("the journal takes changes again")
                self.waiting = ""
                return
