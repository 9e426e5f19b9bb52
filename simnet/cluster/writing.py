"""What a node of a cluster writes: its share of the workload, a flood, poison.

Owns the timing of these writes; they go the way of the daemon's own. Invariant: all of it goes
through the store's public door, so that other nodes get what any member could send them.
"""

import asyncio
import time
from collections.abc import Callable

from edge_node import clock
from edge_node.daemon import Daemon
from simnet.cluster.poison import REPORTS, spread
from simnet.cluster.setting import Setting
from simnet.link import Name
from simnet.workload import PREFIX, Write, value, workload

_FLOOD_S = 0.05
_FLOODED_KEYS = 20
_REPORT_S = 0.2
"""How often nonsense takes the place of the load report, which is renewed every half second."""


class Writing:
    """One node's writes."""

    def __init__(
        self, daemon: Daemon, loop: asyncio.AbstractEventLoop, removing: Callable[[str, int], None]
    ) -> None:
        """Prepare; ``removing`` hears of a set and an element before it is taken back."""
        self._daemon, self._loop, self._removing = daemon, loop, removing
        self._flood_per_s = 0.0
        self._round = 0

    def begin(self, setting: Setting, name: Name, zero_s: float) -> None:
        """Write this node's share of the workload, from now on."""
        now_s = time.monotonic()
        for write in workload(setting.scenario, setting.seed):
            wait_s = zero_s + write.at_s - now_s
            if write.name == name and wait_s >= 0:
                self._loop.call_later(wait_s, self._write, write)

    def _write(self, write: Write) -> None:
        store, stage = self._daemon.store, self._daemon.writes.stage
        key, number = write.key, write.number
        if write.kind == "owner":
            stage(store.set_owner, key, value(number))
        elif write.kind == "fleet":
            stage(store.set_fleet, key, value(number), clock.now())
        elif write.kind == "add":
            stage(store.add, key, number)
        elif number in store.elements(key):
            self._removing(key, number)
            stage(store.remove, key, number)
        self._daemon.writes.commit()

    def flood(self, per_s: float) -> None:
        """Write so many records a second from now on."""
        before, self._flood_per_s = self._flood_per_s, per_s
        if per_s and not before:
            self._flood_on()

    def _flood_on(self) -> None:
        if not self._flood_per_s:
            return
        self._round += 1
        daemon = self._daemon
        for index in range(max(1, round(self._flood_per_s * _FLOOD_S))):
            key = f"{PREFIX}flood/{index % _FLOODED_KEYS}"
            daemon.writes.stage(daemon.store.set_owner, key, value(self._round * 1000 + index))
        daemon.writes.commit()
        self._loop.call_later(_FLOOD_S, self._flood_on)

    def poison(self) -> None:
        """Write nonsense of every kind, and tell nonsense for a load report a while longer."""
        spread(self._daemon.store, self._daemon.writes.stage, clock.now())
        self._daemon.writes.commit()
        for index, report in enumerate(REPORTS):
            self._loop.call_later(index * _REPORT_S, self._report, report)

    def _report(self, report: object) -> None:
        self._daemon.gossip.set_volatile("load", report, clock.now())  # type: ignore[arg-type]
        self._daemon.udp.kick()
