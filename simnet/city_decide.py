"""Where the frames of a city go: the product's decision, and those it is compared with.

Owns the choice of a place for one frame under a policy; never moves a frame. Invariant: only a
centre sees more than has reached the frame's home.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf

from edge_node.placement import choose as choosing
from edge_node.placement import epoch
from edge_node.placement.view import Option
from simnet.city_news import News
from simnet.city_node import CameraState, Frame, Node


@dataclass(frozen=True)
class Policy:
    """Which mechanisms are on; all of them is the product."""

    cache: str = "delta"
    """``delta``, ``output`` (the ladder's rungs without a pass), ``none``."""
    coordinated: bool = True
    """Plan, tiers, shedding, bounce; else two random choices and first come, first served."""
    affinity: bool = True
    """Nodes know what each kind takes where; else each task is taken to cost the same anywhere."""
    corrected: bool = True
    """Views learn from own sends and from replies."""
    listed: bool = False
    """Without coordination: draw among those that are good at the kind, not among all."""
    knows_reuse: bool = True
    """A centre of batches knows where an earlier frame can be reused."""
    centre: str = ""
    """``fresh``: the same decisions on fresh views; ``best``: the best of all nodes on fresh views;
    ``batch``: all frames of a while at once, by the scheduler given."""


OURS = Policy()
NAIVE = Policy("output", coordinated=False, affinity=False, corrected=False)
FAIR = Policy("output", coordinated=False, listed=True)


class Decider:
    """Decides for every node of a city, each from its own view."""

    def __init__(self, policy: Policy, news: News) -> None:
        self.policy, self.news = policy, news
        self.scopes: Counter[str] = Counter()
        """How far decisions looked."""
        self._keep_s = news.load.scenario.reuse.keep_s
        self._at = {node.site.node: node for node in news.nodes}

    def option(self, frame: Frame, home: Node, now_s: float) -> Option:
        """Decide as this policy does. O(1), but for a centre that looks at all."""
        here = Option(
            None,
            home.waits_ms(now_s)[frame.camera.tier - 1],
            self.run_ms(frame, home, now_s),
        )
        if self.policy.centre == "best":
            return self._best(frame, home, here, now_s)
        if not self.policy.coordinated:
            return self._drawn(frame, home, here, now_s)
        assert home.plan is not None
        kind = frame.camera.kind
        state = self.news.cameras[frame.arrival.camera]
        place = state.place if state.place is not None else home.site.node
        planned = None if place == home.site.node else place
        able = planned is None or home.plan.supports(kind, home.site.profile.name)
        found = choosing.choose(
            (frame.deadline_s - now_s) * 1e3,
            here if able else None,
            planned,
            self.news.reach(home, kind),
            self.asker(frame, home, now_s),
            home.rng,
        )
        self.scopes[found.scope] += 1
        option = found.option or here
        state.place = option.node or home.site.node  # it stays where it was moved to
        return option

    def _drawn(self, frame: Frame, home: Node, here: Option, now_s: float) -> Option:
        """Return the best of here and two others drawn at random."""
        ask = self.asker(frame, home, now_s)
        if self.policy.listed:
            reach = self.news.reach(home, frame.camera.kind)
            pool: Sequence[bytes] = reach.zone + reach.fleet
        else:
            pool = [site.node for site in self.news.load.sites]
        best = here
        for _ in range(2):
            node = pool[int(home.rng.random() * len(pool))]
            option = ask(node) if node != home.site.node else None
            if option is not None and option.finish_ms < best.finish_ms:
                best = option
        return best

    def _best(self, frame: Frame, home: Node, here: Option, now_s: float) -> Option:
        """Return the earliest predicted finish of all; what the plan does not want costs more."""
        assert home.plan is not None
        kind, best, least = frame.camera.kind, here, inf
        for node in self.news.nodes:
            if node.index in self.news.known_dead:
                continue
            option = here if node is home else self._fresh(frame, home, node, now_s)
            cost = option.finish_ms
            if not home.plan.supports(kind, node.site.profile.name):
                cost += (epoch.PRICE - 1.0) * option.service_ms
            if cost < least:
                best, least = option, cost
        return best

    def asker(self, frame: Frame, home: Node, now_s: float) -> Callable[[bytes], Option | None]:
        """Return what a decision asks about peers."""
        if self.policy.centre == "fresh":
            return lambda node: self._fresh(frame, home, self._at[node], now_s)
        view, kind, tier = home.view, frame.camera.kind, frame.camera.tier
        state = self.news.cameras[frame.arrival.camera]
        if state.last is None or now_s - state.last_s >= self._keep_s:
            return lambda node: view.option(node, kind, tier, now_s)
        warm, work = state.last.site.node, state.work

        def ask(node: bytes) -> Option | None:
            option = view.option(node, kind, tier, now_s)
            if option is None or node != warm:
                return option
            return replace(option, service_ms=option.service_ms * work)

        return ask

    def _fresh(self, frame: Frame, home: Node, node: Node, now_s: float) -> Option:
        """Return the truth about a node, what is on its way to it included."""
        wait_ms = node.waits_ms(now_s)[frame.camera.tier - 1] + node.coming_ms
        return Option(
            node.site.node,
            wait_ms,
            self.run_ms(frame, node, now_s),
            self.news.way_ms(home.index, node.index),
        )

    def run_ms(self, frame: Frame, node: Node, now_s: float) -> float:
        """Predict a frame's time on a node's accelerator."""
        state, service_ms = (
            self.news.cameras[frame.arrival.camera],
            node.service_ms[frame.camera.kind],
        )
        return service_ms * state.work if self.is_warm(state, node, now_s) else service_ms

    def is_warm(self, state: CameraState, node: Node, now_s: float) -> bool:
        """Tell whether a node can reuse what it computed for a camera's last frame."""
        return state.last is node and now_s - state.last_s < self._keep_s
