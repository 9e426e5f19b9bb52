"""Where the frames of a city go: the product's decision, and those it is compared with.

Owns the choice of a place for one frame under a policy; never moves a frame. Invariant: only a
centre sees more than has reached the frame's home.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf

from edge_node.placement import choose as choosing
from edge_node.placement import epoch
from edge_node.placement.view import Option
from edge_node.placement.warmth import WARM_S
from simnet.city.frame import Frame
from simnet.city.load import Load
from simnet.city.node import Node
from simnet.city.policy import Policy


class Decider:
    """Decides for every node of a city, each from its own view."""

    def __init__(self, policy: Policy, load: Load, nodes: Sequence[Node]) -> None:
        self.policy, self.load, self.nodes = policy, load, nodes
        self.scopes: Counter[str] = Counter()
        """How far decisions looked."""
        self.at = {node.id: node for node in nodes}
        self.last: dict[int, tuple[Node, float]] = {}
        """Which node ran a camera's last frame, and when: there the next finds its state."""

    def option(self, frame: Frame, now_s: float) -> Option:
        """Decide as this policy does. O(1), but for a centre that looks at all."""
        home, camera = frame.home, frame.camera
        wait_ms = home.accelerator.waits_ms[camera.tier - 1]
        share = home.warmth.share(camera.name, None, home.now_s)
        here = Option(None, wait_ms, home.accelerator.service_ms[camera.kind], share=share)
        if self.policy.centre == "best":
            return self._best(frame, here, now_s)
        if not self.policy.coordinated:
            return self._drawn(frame, here, now_s)
        planner = home.planner
        planned = planner.planned(camera.name)
        able = planned is None or planner.serves(camera.kind)
        found = choosing.choose(
            frame.budget.remaining_ms(now_s),
            here if able else None,
            planned,
            planner.reach(camera.kind),
            self.asker(frame, home, now_s),
            home.rng,
            reuses=home.warmth.reuses(camera.name),
        )
        self.scopes[found.scope] += 1
        if found.option is not None and found.scope != "plan":
            planner.moved(camera.name, found.option.node)
        return found.option or here

    def _drawn(self, frame: Frame, here: Option, now_s: float) -> Option:
        """Return the best of here and two others drawn at random."""
        home = frame.home
        ask = self.asker(frame, home, now_s)
        pool: Sequence[bytes] = [node.id for node in self.nodes]
        if self.policy.listed:
            reach = home.planner.reach(frame.camera.kind)
            pool = reach.zone + reach.fleet
        best = here
        for _ in range(2 if pool else 0):
            node = pool[int(home.rng.random() * len(pool))]
            option = ask(node) if node != home.id else None
            if option is not None and option.finish_ms < best.finish_ms:
                best = option
        return best

    def _best(self, frame: Frame, here: Option, now_s: float) -> Option:
        """Return the earliest predicted finish of all; what the plan does not want costs more."""
        kind, best, least = frame.camera.kind, here, inf
        for node in self.nodes:
            if not node.up:
                continue
            option = here if node is frame.home else self._fresh(frame, frame.home, node, now_s)
            cost = option.finish_ms
            if not node.planner.serves(kind):
                cost += (epoch.PRICE - 1.0) * option.service_ms
            if cost < least:
                best, least = option, cost
        return best

    def asker(self, frame: Frame, node: Node, now_s: float) -> Callable[[bytes], Option | None]:
        """Return what a decision at a node asks about its peers."""
        if self.policy.centre:
            return lambda peer: self._fresh(frame, node, self.at[peer], now_s)
        view, own_s, name = node.view, node.now_s, frame.camera.name
        kind, tier = frame.camera.kind, frame.camera.tier

        def ask(peer: bytes) -> Option | None:
            option = view.option(peer, kind, tier, own_s)
            if option is None or not node.warmth.is_warm(name, peer, own_s):
                return option
            return replace(option, share=node.warmth.factor(name))

        return ask

    def _fresh(self, frame: Frame, source: Node, node: Node, now_s: float) -> Option:
        """Return the truth about a node, what is on its way to it included."""
        wait_ms = node.accelerator.waits_ms[frame.camera.tier - 1] + node.coming_ms
        way_ms = self.load.way_ms(source.index, node.index)
        return Option(node.id, wait_ms, self.run_ms(frame, node, now_s), way_ms)

    def run_ms(self, frame: Frame, node: Node, now_s: float) -> float:
        """Predict a frame's time on a node's accelerator, as that has learnt it."""
        service_ms = node.accelerator.service_ms[frame.camera.kind]
        if not self.is_warm(frame, node, now_s):
            return service_ms
        return service_ms * frame.home.warmth.factor(frame.camera.name)

    def is_warm(self, frame: Frame, node: Node, now_s: float) -> bool:
        """Tell whether a node can reuse what it computed for a camera's last frame."""
        last = self.last.get(frame.arrival.camera)
        return last is not None and last[0] is node and now_s - last[1] < WARM_S
