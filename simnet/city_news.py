"""What the nodes of a city know of each other, how late, and what they plan from it.

Owns reports, publications, plans and takeovers; never moves a frame. Invariant: a node uses only
what could have reached it: its own news at once, another's as many gossip periods later as it is
hops away.
"""

from collections.abc import Mapping

from edge_node.placement import epoch, hosting
from edge_node.placement.choose import Reach
from edge_node.placement.epoch import Plan, Seat, Stream
from edge_node.placement.view import IDLE, Waits
from simnet.city_load import Load
from simnet.city_node import CameraState, Node, Published


class News:
    """Reports each gossip period, publications and plans each epoch."""

    def __init__(self, load: Load, nodes: list[Node], cameras: list[CameraState]) -> None:
        self.load, self.nodes, self.cameras = load, nodes, cameras
        self.known_dead: set[int] = set()
        self.plans_made = 0
        self.moves = 0
        self._reports: list[list[tuple[Waits, Mapping[str, float]]]] = []
        self._claims: set[int] = set()
        self._ways = [
            [self.way_ms(one, two) for two in range(len(nodes))] for one in range(len(nodes))
        ]
        self._acquaint()
        self.publish(0.0)

    def way_ms(self, one: int, other: int) -> float:
        """Return the median time from one node to another, with an image."""
        if one == other:
            return 0.0
        near = self.load.sites[one].zone == self.load.sites[other].zone
        network = self.load.scenario.network
        return network.zone_ms if near else network.fleet_ms

    def _acquaint(self) -> None:
        """Let everybody know everybody, idle."""
        for node in self.nodes:
            for other in self.nodes:
                if other is not node:
                    way_ms = self._ways[node.index][other.index]
                    table = other.service_ms
                    node.view.heard_load(other.site.node, -1, IDLE, table, way_ms, 0.0)

    def report(self, now_s: float) -> None:
        """Let every node say how busy it is, and hear what has come through to it. O(n^2)."""
        self._reports.append([(node.waits_ms(now_s), node.service_ms) for node in self.nodes])
        newest = len(self._reports) - 1
        names = [site.node for site in self.load.sites]
        for node in self.nodes:
            if not node.alive:
                continue
            heard, ways = node.view.heard_load, self._ways[node.index]
            for other, hop in enumerate(self.load.hops[node.index]):
                number = newest - hop
                if hop and number >= 0 and other not in self.known_dead:
                    waits, service_ms = self._reports[number][other]
                    heard(names[other], number, waits, service_ms, ways[other], now_s)

    def died(self, index: int) -> None:
        """Let everybody know that a node is dead."""
        self.known_dead.add(index)
        for node in self.nodes:
            node.view.forget(self.load.sites[index].node)

    def publish(self, now_s: float) -> None:
        """Let every node say what its cameras ask for and how fast it is."""
        demands: list[dict[int, tuple[float, float, bytes | None]]] = [{} for _ in self.nodes]
        for index, camera in enumerate(self.cameras):
            rate_hz = 1.0 / max(camera.interval_s, now_s - camera.seen_s)
            demands[camera.home][index] = (rate_hz, camera.work, camera.place)
        for node, demand in zip(self.nodes, demands, strict=True):
            if node.alive:
                node.published.append(Published(now_s, dict(node.service_ms), demand))

    def take_over(self) -> None:
        """Let orphaned cameras change their home once a claim has survived an epoch."""
        takers = {
            node.site.node: 1e3 * len(node.service_ms) / sum(node.service_ms.values())
            for node in self.nodes
            if node.index not in self.known_dead
        }
        at = {node.site.node: node.index for node in self.nodes}
        for index, camera in enumerate(self.cameras):
            if camera.home not in self.known_dead:
                continue
            if index not in self._claims:
                self._claims.add(index)  # it has to survive an epoch
                continue
            heir = hosting.successor(self.load.cameras[index].name, takers)
            if heir is not None:
                camera.home = at[heir]
                self._claims.discard(index)

    def plan(self, now_s: float) -> None:
        """Let every node plan the epoch; those to which the same has come share the work."""
        made: dict[tuple[int, ...], Plan] = {}
        for node in self.nodes:
            if not node.alive:
                continue
            heard = self._heard(node, now_s)
            fresh = made.get(heard)
            if fresh is None:
                records = self._records(heard)
                current = {
                    self.load.cameras[index].name: place
                    for index, (_, _, place) in records.items()
                    if place is not None
                }
                fresh = epoch.plan(self._streams(records), self._seats(heard), current)
                made[heard] = fresh
                self.plans_made += 1
                self.moves += sum(current.get(one, at) != at for one, at in fresh.primary.items())
            node.heard, node.plan = heard, fresh
            node.reaches.clear()
        for number, camera in enumerate(self.cameras):
            home = self.nodes[camera.home]
            if home.alive and home.plan is not None:
                camera.place = home.plan.primary.get(self.load.cameras[number].name)

    def reach(self, node: Node, kind: str) -> Reach:
        """Return whom a node may ask for a kind, by its plan."""
        found = node.reaches.get(kind)
        if found is None:
            assert node.plan is not None, "a fleet plans before its first frame"
            seats = self._seats(node.heard)
            found = node.reaches[kind] = epoch.reach(node.plan, seats, node.site.node, kind)
        return found

    def _heard(self, node: Node, now_s: float) -> tuple[int, ...]:
        """Return the number of the newest publication of each node that has reached one; -1."""
        period_s = self.load.scenario.gossip.period_ms / 1e3
        return tuple(
            -1
            if other.index in self.known_dead
            else max(
                (
                    number
                    for number, one in enumerate(other.published)
                    if one.at_s + period_s * hop <= now_s
                ),
                default=0,  # everybody was acquainted before the run
            )
            for other, hop in zip(self.nodes, self.load.hops[node.index], strict=True)
        )

    def _records(self, heard: tuple[int, ...]) -> dict[int, tuple[float, float, bytes | None]]:
        """Return what was published of each camera whose home lives; a dead home's last word too.

        Who the home is now is a register that is taken to have reached everybody.
        """
        found: dict[int, tuple[float, tuple[float, float, bytes | None]]] = {}
        for node, number in zip(self.nodes, heard, strict=True):
            published = node.published[number]
            for index, record in published.demand.items():
                if self.cameras[index].home in self.known_dead:
                    continue
                if index not in found or found[index][0] < published.at_s:
                    found[index] = published.at_s, record
        return {index: record for index, (_, record) in sorted(found.items())}

    def _streams(self, records: Mapping[int, tuple[float, float, bytes | None]]) -> list[Stream]:
        found = []
        for index, (rate_hz, work, _) in records.items():
            camera = self.load.cameras[index]
            home = self.load.sites[self.cameras[index].home].node
            deadline_ms = camera.deadline_s * 1e3
            found.append(
                Stream(camera.name, camera.kind, camera.tier, rate_hz, deadline_ms, home, work)
            )
        return found

    def _seats(self, heard: tuple[int, ...]) -> list[Seat]:
        return [
            Seat(
                node.site.node,
                node.site.profile.name,
                f"zone{node.site.zone}",
                node.published[number].service_ms,
                epoch.TARGET,
            )
            for node, number in zip(self.nodes, heard, strict=True)
            if number >= 0
        ]
