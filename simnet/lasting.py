"""Faults that last: what a plan's steps leave behind, in the world and in a cluster alike.

Owns what is in force; never draws a fault, and never touches a machine. Invariant: faults of one
kind may overlap, and a state ends with the last fault that wants it.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from simnet.faults import Crash, Cut, Fault, Join, Leave, Link, Partition, Silence, Step, absent
from simnet.link import Name, Network

F = TypeVar("F", bound=Fault)


class Lasting:
    """The faults that are in force for one node."""

    def __init__(self, *, absent: bool = False) -> None:
        """Begin with none; ``absent`` until it joins."""
        self._absent = absent
        self._faults: dict[int, Fault] = {}

    def __bool__(self) -> bool:
        return bool(self._faults)

    def __contains__(self, number: int) -> bool:
        return number in self._faults

    def step(self, step: Step) -> None:
        """Take a fault's beginning or end."""
        self._absent = self._absent and not isinstance(step.fault, Join)
        if step.begins:
            self._faults[step.number] = step.fault
        else:
            self._faults.pop(step.number, None)

    @property
    def down(self) -> bool:
        """Whether the node is not to run."""
        return self._absent or any(isinstance(one, Crash | Leave) for one in self._faults.values())

    def of(self, kind: type[F]) -> list[F]:
        """Return those of a kind, oldest first."""
        return [fault for fault in self._faults.values() if isinstance(fault, kind)]

    def forget(self, kind: type[Fault]) -> None:
        """End those of a kind before their time."""
        for number in [one for one, fault in self._faults.items() if isinstance(fault, kind)]:
            del self._faults[number]


def before(plan: Sequence[Step], names: Iterable[Name]) -> dict[Name, Lasting]:
    """Return what is in force for each node before a plan begins."""
    joining = absent(plan)
    return {name: Lasting(absent=name in joining) for name in names}


def follow(network: Network, step: Step) -> None:
    """Have a network do what a step of the plan wants of it, if anything."""
    fault, key = step.fault, step.number
    if not step.begins:
        network.lift(key)
    elif isinstance(fault, Silence):
        network.silence(step.names, key)
    elif isinstance(fault, Cut):
        network.cut(step.names, step.others[0], key)
    elif isinstance(fault, Partition):
        network.partition(*step.others, key=key)
    elif isinstance(fault, Link):
        network.worsen(step.names, fault, key)
