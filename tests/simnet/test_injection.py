"""Faults that overlap, on the world's machines."""

from typing import Any

import pytest

from crdt.log import Batch
from gossip.events import Event
from simnet.injection import Injector
from simnet.scenario import parse
from simnet.world import Host, World


class Plan:
    """Three machines, and faults that all befall n1; also the world's watch."""

    def __init__(self, *faults: dict[str, Any]) -> None:
        befall = [{"nodes": ["n1"], **fault} for fault in faults]
        given = {"name": "plan", "nodes": 3, "time": {"duration_s": 20.0}, "fault": befall}
        self.world = World(1, standin=True)
        self.world.fleet(3)
        self.world.watch = self
        self.host = self.world.hosts["n1"]
        self.injector = Injector(self.world, parse(given), 1)
        self.begun_s = self.world.now_s
        for step in self.injector.plan:
            self.world.at(self.begun_s + step.at_s, self.injector.step, step)

    def at(self, at_s: float) -> Host:
        """Return n1 so long after the beginning."""
        self.world.run(self.begun_s + at_s - self.world.now_s)
        return self.host

    def started(self, host: Host) -> None: ...
    def persisted(self, host: Host, batch: Batch) -> None: ...
    def told(self, host: Host, event: Event) -> None: ...
    def stopped(self, host: Host) -> None:
        self.injector.stopped(host.name)


def test_a_disk_is_full_until_the_last_fault_ends() -> None:
    plan = Plan(
        {"kind": "full", "at_s": 1.0, "lasting_s": 4.0},
        {"kind": "full", "at_s": 3.0, "lasting_s": 5.0},
    )
    assert [plan.at(at_s).disk.full for at_s in (0.5, 2, 4, 6, 9)] == [0, 1, 1, 1, 0]


def test_what_slows_a_node_adds_up_and_leaves_nothing() -> None:
    plan = Plan(
        {"kind": "slow", "at_s": 1.0, "lasting_s": 4.0, "each_s": 0.1},
        {"kind": "slow", "at_s": 3.0, "lasting_s": 5.0, "each_s": 0.2},
    )
    found = [plan.at(at_s).slow_s for at_s in (2, 4, 6, 9)]
    assert found == pytest.approx([0.1, 0.3, 0.2, 0.0])
    assert found[-1] == 0.0


def test_clocks_are_off_by_all_that_lasts_and_right_afterwards() -> None:
    plan = Plan(
        {"kind": "clock", "at_s": 1.0, "lasting_s": 6.0, "drift_ppm": 50_000.0},
        {"kind": "clock", "at_s": 2.0, "lasting_s": 2.0, "offset_s": 30.0, "drift_ppm": 10_000.0},
    )

    def ahead_s(at_s: float) -> tuple[float, float]:
        """Return how far n1's monotonic and wall clocks are ahead of n0's."""
        one, right = plan.at(at_s).now(), plan.world.hosts["n0"].now()
        return one.mono_s - right.mono_s, (one.wall_ms - right.wall_ms) / 1e3

    assert ahead_s(2.0 - 1e-6) == pytest.approx((0.05, 0.05), abs=2e-3)
    assert ahead_s(3.0) == pytest.approx((0.11, 30.06), abs=2e-3)  # set to the offset at 2 s
    assert ahead_s(5.0) == pytest.approx((0.22, 0.05), abs=2e-3)  # the first goes on
    assert ahead_s(9.0) == pytest.approx((0.32, 0.0), abs=2e-3)


def test_a_pause_ends_with_its_process() -> None:
    plan = Plan(
        {"kind": "pause", "at_s": 1.0, "lasting_s": 12.0},
        {"kind": "crash", "at_s": 2.0, "lasting_s": 1.0},
        {"kind": "pause", "at_s": 5.0, "lasting_s": 1.0},
    )
    assert [plan.at(at_s).paused for at_s in (1.5, 4, 5.5, 7)] == [True, False, True, False]


def test_who_waits_for_its_disk_stays_down_while_a_fault_wants_it() -> None:
    plan = Plan(
        {"kind": "full", "at_s": 0.5, "lasting_s": 4.5},
        {"kind": "crash", "at_s": 1.0, "lasting_s": 1.0, "disk": "lost"},
        {"kind": "crash", "at_s": 3.0, "lasting_s": 6.0},
    )
    assert [plan.at(at_s).node is not None for at_s in (0.7, 2.5, 4, 8, 10)] == [1, 0, 0, 0, 1]


def test_who_stands_still_is_upgraded_all_the_same() -> None:
    plan = Plan(
        {"kind": "pause", "at_s": 1.0, "lasting_s": 4.0},
        {"kind": "upgrade", "at_s": 2.0, "lowest": 1, "highest": 2},
    )
    before = plan.at(1.5).running
    assert plan.at(3.0).running is not before
    assert plan.host.versions == (1, 2)
    assert not plan.host.paused


def test_what_is_over_before_it_begins_does_not_happen() -> None:
    assert Plan({"kind": "silence", "at_s": 20.0}).injector.plan == []
    assert Plan({"kind": "full", "at_s": 3.0, "lasting_s": 0.0}).injector.plan == []
