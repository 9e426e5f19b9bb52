"""One node of the city: the daemon's own parts around the world's gossip and store.

Owns what a node believes, tells and plans; its accelerator is emulated, all else is the daemon's:
load reports, view, planner, the hosting of cameras. Never moves a frame. Invariant: it knows of the
others only what gossip brought; all is lost with a crash but what is in the journal.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from edge_node.cameras.agents import Agents
from edge_node.cameras.hosts import Hosts
from edge_node.cameras.spec import AgentSpec
from edge_node.fleet.directory import Directory
from edge_node.fleet.load import Load
from edge_node.fleet.planner import Planner
from edge_node.fleet.published import Capacity
from edge_node.metrics import Counters
from edge_node.placement.epoch import Plan, Seat, Stream, plan
from edge_node.placement.view import FleetView
from edge_node.placement.warmth import Warmth
from simnet.city.accelerator import Accelerator
from simnet.city.frame import Frame
from simnet.city.load import Camera
from simnet.host import Host

STANDSTILL_S = 0.02
"""How long a node that stands still is left alone before it is looked at again."""


@dataclass(slots=True)
class _Agent:
    """What `Hosts` wants of a camera that runs here."""

    answered: int = 0


@dataclass(slots=True)
class _Cameras:
    """The cameras that run here, where the daemon has `Agents`."""

    hosted: dict[str, _Agent] = field(default_factory=dict)


class Node:
    """A node; :meth:`boot` before anything else."""

    def __init__(
        self,
        index: int,
        host: Host,
        accelerator: Callable[[], Accelerator],
        cameras: Iterable[Camera],
        rate_hz: float,
        rng: random.Random,
        epoch_s: float,
    ) -> None:
        """Prepare; ``cameras`` are configured here, ``rng`` is for decisions."""
        self.index, self.host, self.rng = index, host, rng
        self.id = host.node_id
        self.frames: dict[Frame, None] = {}
        """Those of cameras that run here, not ended."""
        self.up = False
        self.is_stale = False
        """Whether something changed since it last looked which cameras it runs."""
        self.run = 0
        """Counts boots."""
        self.coming_ms = 0.0
        """Work on its way here; only a centre knows."""
        self.plans = self.moves = 0
        """Made here, and how many agents they moved."""
        self._accelerator = accelerator
        self._configured = list(cameras)
        self._rate_hz = rate_hz
        self._epoch_s = epoch_s

    def boot(self, reconcile: Callable[[float], object]) -> None:
        """Begin with nothing but what the journal gave back, and tell the fleet what is here.

        ``reconcile`` has :meth:`reconcile` called in so many seconds.
        """
        host, store, gossip = self.host, self.host.store, self.host.running
        self.up = True
        self.run += 1
        self.accelerator = self._accelerator()
        self.coming_ms = 0.0
        self.view, self.warmth, self.counters = FleetView(), Warmth(), Counters()
        self.load = Load(gossip, self.accelerator, self.counters, str)
        self.planner = Planner(self.id, self.load, self.view)
        self._cameras = _Cameras()
        self.directory = Directory(store, gossip)
        self.hosts = Hosts(
            self.id,
            store,
            cast(Agents, self._cameras),
            list,
            host.now,
            _stage,
            self.counters,
            reconcile,
        )
        self.hosts.epoch_s = self._epoch_s
        self._publish()
        self.reconcile()

    @property
    def now_s(self) -> float:
        """Return the time by its own clock, which is not the world's."""
        return self.host.now().mono_s

    @property
    def hosted(self) -> Iterable[str]:
        """Return the names of the cameras that run here."""
        return self._cameras.hosted

    def runs(self, camera: str) -> bool:
        """Tell whether a camera runs here."""
        return camera in self._cameras.hosted

    def is_awake(self, run: int, action: Callable[..., None], *args: Any) -> bool:
        """Tell whether a run goes on; while it stands still, try the action again later."""
        if not self.up or self.run != run:
            return False
        if self.host.paused:
            self.host.world.after(STANDSTILL_S, action, *args)
            return False
        return True

    def crash(self) -> None:
        """Forget everything."""
        self.up = self.is_stale = False
        self._cameras.hosted.clear()

    def exchange(self) -> None:
        """Give this node's report to gossip, and take the others' into the view."""
        self.load.exchange(self.view, self.host.now())
        self.host.drain()

    def claim(self) -> None:
        """Claim the cameras that should run here, as the daemon does once an epoch."""
        if self.host.running.acquainted and self.hosts.claim(self.living()):
            self.host.commit()

    def reconcile(self) -> None:
        """Run the cameras that the replica says should run here."""
        self.is_stale = False
        hosted = self._cameras.hosted
        belonging = self.hosts.belonging("")
        for name in [name for name in hosted if name not in belonging]:
            del hosted[name]
        for name in belonging:
            hosted.setdefault(name, _Agent())

    def answered(self, camera: str) -> None:
        """Count an answer of a camera that runs here."""
        agent = self._cameras.hosted.get(camera)
        if agent is not None:
            agent.answered += 1

    def living(self) -> dict[bytes, Capacity]:
        """Return what those published that gossip holds for alive, this node included."""
        return self.directory.capacities(self.directory.living())

    def plan(self) -> None:
        """Plan where the frames of the next epoch run."""
        living, specs = self.living(), self.hosts.specs()
        given = self.planner.inputs(
            specs,
            self.hosts.host_of,
            lambda name: specs[name].tier,
            self.warmth.factor,
            lambda spec: spec.model,
            living,
            self.now_s,
        )
        self.follow(plan(*given), given[1], living, given[2])

    def follow(
        self,
        made: Plan,
        seats: list[Seat],
        living: dict[bytes, Capacity],
        current: dict[str, bytes],
    ) -> None:
        """Follow a plan that was made from these."""
        self.planner.adopt(made, seats, living)
        self.plans += 1
        self.moves += sum(current.get(agent, at) != at for agent, at in made.primary.items())

    def streams(self, rate_hz: float) -> list[Stream]:
        """Return what the cameras configured here ask for, as a centre knows it."""
        return [
            Stream(
                one.name,
                one.kind,
                one.tier,
                rate_hz,
                one.deadline_s * 1e3,
                self.id,
                self.warmth.factor(one.name),
            )
            for one in self._configured
        ]

    def _publish(self) -> None:
        site, store = self.accelerator.site, self.host.store
        times = self.accelerator.service_ms
        profile = site.profile
        records: dict[str, Any] = {
            "node": {
                "name": self.host.name,
                "zone": f"zone {site.zone}",
                "takeover": True,
                "capacity": round(1e3 * len(times) / sum(times.values()), 2),
                "accelerators": [{"name": profile.name, "provider": profile.provider, "share": 1}],
            }
        }
        for one in self._configured:
            records[f"agent/{one.name}"] = AgentSpec(
                name=one.name,
                home=self.id,
                source="generated:0",
                fps=self._rate_hz,
                model=one.kind,
                deadline_ms=one.deadline_s * 1e3,
                tier=one.tier,
                loop=True,
                noise_sigma=0.0,
                takeover=True,
                since_ms=0,
            ).record()
        for key, record in records.items():
            if store.owner(self.id, key) != record:
                store.set_owner(key, record)
        self.host.commit()


def _stage(write: Callable[..., None], key: str, *arguments: Any) -> bool:
    write(key, *arguments)
    return True
