"""Fault injection: a plan's steps, carried out on a world's machines and its network.

Owns who is to run and what holds each machine back; never draws a fault, and never judges.
Invariant: a machine runs while no fault wants it down, and what overlaps ends with the last fault
that wants it.
"""

from collections.abc import Callable
from contextlib import suppress
from operator import call
from typing import Any

from simnet import faults, poison
from simnet.faults import Step, names_of
from simnet.host import Host
from simnet.lasting import before, follow
from simnet.link import Name
from simnet.scenario import Scenario
from simnet.workload import FLOOD_S, flood
from simnet.world import World

_REBOOT_S = 0.5


class Injector:
    """What befalls one world."""

    def __init__(self, world: World, scenario: Scenario, seed: int) -> None:
        """Draw the plan; the world's machines need not be there yet."""
        self.plan = scenario.plan(seed)
        self._world = world
        self._lasting = before(self.plan, names_of(scenario.nodes))
        self._disk = "whole"  # of the machine that is ending

    def step(self, step: Step) -> None:
        """Carry out a fault's beginning or end."""
        follow(self._world.network, step)
        befall = getattr(self, f"_{step.fault.kind}", None)
        for name in step.names:
            self._lasting[name].step(step)
            if befall is not None:
                befall(self._world.hosts[name], step, step.fault)

    def start_if_wanted(self, host: Host) -> None:
        """Start a machine that is down, unless a fault wants it so."""
        if host.node is None and not self._lasting[host.name].down:
            host.start()

    def stopped(self, name: Name) -> bool:
        """Take that a node has ended; tell whether its disk drops what it had acknowledged."""
        self._lasting[name].forget(faults.Pause)
        return self._disk in ("tail", "lost")

    # ------------------------------------------------------------- whole machines

    def _crash(self, host: Host, step: Step, fault: faults.Crash) -> None:
        self._keep_down(host, step, fault.disk)

    def _leave(self, host: Host, step: Step, fault: faults.Leave) -> None:
        self._keep_down(host, step, None)

    def _join(self, host: Host, step: Step, fault: faults.Join) -> None:
        self.start_if_wanted(host)

    def _upgrade(self, host: Host, step: Step, fault: faults.Upgrade) -> None:
        host.versions = fault.lowest, fault.highest
        if host.node is not None:
            self._end(host, None)
            self._world.after(_REBOOT_S, self.start_if_wanted, host)

    def _keep_down(self, host: Host, step: Step, disk: str | None) -> None:
        if step.begins:
            self._end(host, disk)
        else:
            self.start_if_wanted(host)

    def _end(self, host: Host, disk: str | None) -> None:
        """Have a node end; ``disk`` None: in order, unless it stands still."""
        self._disk = disk or "whole"
        if disk is None:
            host.leave()
        if disk is not None or host.node is not None:
            host.crash(self._disk)

    def _pause(self, host: Host, step: Step, fault: faults.Pause) -> None:
        lasting = self._lasting[host.name]
        if host.node is None:
            lasting.forget(faults.Pause)
        elif step.begins:
            host.pause()
        elif not lasting.of(faults.Pause):
            host.resume()

    # ------------------------------------------------------------- their parts

    def _slow(self, host: Host, step: Step, fault: faults.Slow) -> None:
        host.slow_s = sum(one.each_s for one in self._lasting[host.name].of(faults.Slow))

    def _clock(self, host: Host, step: Step, fault: faults.Clock) -> None:
        lasting = self._lasting[host.name].of(faults.Clock)
        if fault.drift_ppm:
            host.drift(1.0 + sum(one.drift_ppm for one in lasting) / 1e6)
        gained_s = host.now().mono_s - self._world.now_s
        offset_s = sum(one.offset_s for one in lasting)
        host.skew_ms = round((offset_s - gained_s) * 1000)

    def _full(self, host: Host, step: Step, fault: faults.Full) -> None:
        host.disk.full = bool(self._lasting[host.name].of(faults.Full))

    # ------------------------------------------------------------- what they write

    def _poison(self, host: Host, step: Step, fault: faults.Poison) -> None:
        for round_ in range(poison.ROUNDS):
            self._world.after(round_ * poison.EACH_S, self._poison_on, host, round_)

    def _poison_on(self, host: Host, round_: int) -> None:
        if host.node is not None and not host.paused:
            poison.spread(host.store, _unless_refused, host.now(), round_)
            host.node.set_volatile("load", poison.report(round_), host.now())
            host.drain()
            host.commit()

    def _flood(self, host: Host, step: Step, fault: faults.Flood) -> None:
        if step.begins:
            self._flood_on(host, step.number, fault.per_s)

    def _flood_on(self, host: Host, number: int, per_s: float) -> None:
        if number not in self._lasting[host.name]:
            return
        if host.node is not None and not host.paused:
            flood(host.store, call, per_s, self._world.now_s)
            host.commit()
        self._world.after(FLOOD_S, self._flood_on, host, number, per_s)


def _unless_refused(write: Callable[..., None], *arguments: Any) -> None:
    with suppress(ValueError):
        write(*arguments)
