"""What happens in the demo, and when: overload, forwarding, a new model, a death, a takeover.

Owns the order of events and the measuring of each. Never judges (`report` does) and prints only
through `view`. Invariant: whatever way it ends, no process is left, and the files are kept only
on failure or request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from edge_node.demo import footage, report
from edge_node.demo.cost import CostError, full_pass_s
from edge_node.demo.fleet import MODEL, Fleet, FleetError, Plan
from edge_node.demo.plan import DOOMED, OVERLOADED, QUIET, THIRD, generated_sources, plan
from edge_node.demo.report import Measured, Window
from edge_node.demo.view import BLOCK_PERIOD_S, REFRESH_PERIOD_S, Screen, View, summary
from edge_node.demo.watch import Watch

NEW_VARIANT = "small"
KILL_AT_S = 20.0
SETTLE_S = 1.5
AFTERMATH_S = 3.0
TICK_S = 0.05


def run(seconds: float, *, keep: bool, as_json: bool) -> int:
    """Run the whole demo; return its exit status. Raises KeyboardInterrupt."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    screen = Screen(sys.stderr if as_json else sys.stdout)
    screen.say("edge-node demo: three daemons on this machine, over loopback.")
    sources, label = _sources(screen)
    try:
        pass_s = full_pass_s()
    except CostError as error:
        screen.say(f"The demo cannot run: {error}")
        return 1
    pass_ms = round(pass_s * 1e3, 2)
    measured = Measured(pass_ms, label, OVERLOADED, NEW_VARIANT, DOOMED)
    folder = Path(tempfile.mkdtemp(prefix="edge-node-demo-"))
    good, leave = False, True
    try:
        plans = plan(sources, pass_s, len(os.sched_getaffinity(0)))
        _introduce(screen, plans, measured)
        good = asyncio.run(Story(screen, Fleet(folder, plans), measured, seconds, keep).tell())
        if as_json:
            print(json.dumps(report.as_json(measured, report.judge(measured)), indent=2))
        leave = keep or not good
    except KeyboardInterrupt:
        leave = keep
        raise
    finally:
        if not leave:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            screen.say(f"Logs, configurations and state: {folder}")
    return 0 if good else 1


def _interrupt(signum: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _sources(screen: Screen) -> tuple[list[str], str]:
    """Return four sources and what they are; generated scenes where no footage can be had."""
    try:
        clips = footage.ensure(footage.cache_folder(), say=lambda line: screen.say("  " + line))
    except footage.FootageError as error:
        screen.say(f"  No footage ({error}): generated scenes take its place.")
        return generated_sources(), "generated"
    return [str(clip) for clip in clips], "footage"


def _introduce(screen: Screen, plans: list[Plan], measured: Measured) -> None:
    four = "four of real footage (pose2sim, BSD-3-Clause), looped with sensor noise,"
    if measured.footage == "generated":
        four = "four generated busy scenes"
    shares = ", ".join(f"{one.name} {one.share:.1%}" for one in plans)
    screen.say(
        f"  cameras  {four} and a generated quiet one",
        f"  cores    one full pass of the large model takes {measured.full_pass_ms:.1f} ms here; "
        "for three nodes to fit one machine,",
        f"           each is capped to a share of one core: {shares}",
        f"           ({OVERLOADED}'s is half of what its own cameras ask for)",
        "",
    )


class Story:
    """One telling of the demo on a fleet that was not started yet."""

    def __init__(
        self, screen: Screen, fleet: Fleet, measured: Measured, seconds: float, keep: bool
    ) -> None:
        self.screen, self.fleet, self.measured = screen, fleet, measured
        self.seconds, self.keep = seconds, keep
        self.cameras = [one for node in fleet.nodes.values() for one in node.plan.cameras]
        self.watch = Watch(fleet)
        self.view = View(self.watch, screen, self.cameras)
        self.watch.tell = self.view.event

    async def tell(self) -> bool:
        """Run all of it; return whether every expectation holds. Raises KeyboardInterrupt."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(signum, task.cancel)
        try:
            try:
                await self._with_audience(self._chapters())
            except FleetError as error:
                self.view.event("demo", f"stops: {error}")
            good = self._verdict()
            if self.keep:
                await self._stay()
            return good
        except asyncio.CancelledError:
            self.screen.say("", "Interrupted; ending the daemons.")
            raise KeyboardInterrupt from None
        finally:
            await self.fleet.stop()

    async def _with_audience(self, play: Coroutine[Any, Any, Any]) -> None:
        """Run `play` while watching and showing; whichever ends first ends the others."""
        acts = [asyncio.create_task(one) for one in (play, self.watch.run(), self._show())]
        try:
            await asyncio.wait(acts, return_when=asyncio.FIRST_COMPLETED)
            for act in acts:
                if act.done():
                    act.result()
        finally:
            for act in acts:
                act.cancel()
            await asyncio.gather(*acts, return_exceptions=True)

    async def _show(self) -> None:
        drawn_s, period_s = 0.0, REFRESH_PERIOD_S if self.screen.live else BLOCK_PERIOD_S
        while True:
            await asyncio.sleep(REFRESH_PERIOD_S)
            self.view.remember()
            if self.watch.now_s() - drawn_s >= period_s:
                drawn_s = self.watch.now_s()
                self.screen.draw(self.view.block())

    # The chapters

    async def _chapters(self) -> None:
        await self._come_up()
        await self._overload()
        await self._change_model()
        await self._kill()
        await self._rest(AFTERMATH_S)
        await self._bring_back()
        await self._rest(AFTERMATH_S)

    async def _come_up(self) -> None:
        self.view.chapter = "three daemons find each other"
        for name in self.fleet.nodes:
            await self.fleet.start(name)
        up_s = await self._until(self._is_up, report.UP_LIMIT_S)
        if up_s is None:
            raise FleetError(f"the fleet is not up after {report.UP_LIMIT_S:.0f} s")
        self.measured.up_s = up_s
        self.watch.members = set(self.fleet.nodes)
        self.view.event("demo", "all see each other, and every camera is answered")
        self.measured.agreed_after_s["start"] = await self._agreed_after(up_s)

    def _is_up(self) -> bool:
        answered = {one.agent for one in self.watch.answers}
        cameras = {camera.name for camera in self.cameras}
        return self._everyone_sees_everyone() and answered >= cameras

    def _everyone_sees_everyone(self) -> bool:
        names, peers = self.fleet.nodes, self.watch.peers
        return all(
            peers.get(one, {}).get(other) in ("self", "alive") for one in names for other in names
        )

    async def _overload(self) -> None:
        measured, node = self.measured, self.fleet.nodes[OVERLOADED]
        own = [camera.name for camera in node.plan.cameras]
        self.view.chapter = f"{OVERLOADED} is overloaded and alone (forwarding is off)"
        await self._rest(SETTLE_S)
        measured.off = await self._window(own)
        self.fleet.set_policy(OVERLOADED, "affinity")
        self.view.event("demo", f'sets [placement] policy = "affinity" on {OVERLOADED}, and SIGHUP')
        self.view.chapter = f"{OVERLOADED} is overloaded and forwards to its peers"
        await self._rest(SETTLE_S)
        measured.on = await self._window(own)

    async def _window(self, agents: list[str]) -> Window:
        """Measure these cameras for the window's length."""
        started_s, before = self.watch.now_s(), self.watch.counts(agents)
        await self._rest(self.seconds)
        ended_s, after = self.watch.now_s(), self.watch.counts(agents)
        step = {key: after[key] - before[key] for key in after}
        latencies = [
            one.latency_ms
            for one in self.watch.answers
            if one.agent in agents and started_s <= one.at_s <= ended_s
        ]
        return Window(
            seconds=ended_s - started_s,
            frames=step["frames"],
            ended=step["answered"] + step["shed"] + step["lost"],
            answered=step["answered"],
            met=step["met"],
            forwarded=step["forwarded"],
            p50_ms=report.quantile(latencies, 0.5),
            p95_ms=report.quantile(latencies, 0.95),
        )

    async def _change_model(self) -> None:
        measured, watch = self.measured, self.watch
        digest = watch.digest_of(NEW_VARIANT)
        self.view.chapter = f"the fleet changes to the {NEW_VARIANT} model"
        command = ("models", "set", MODEL, NEW_VARIANT)
        self.view.event("demo", f"types on {THIRD}: edge-node {' '.join(command)}")
        typed_s = watch.now_s()
        await self.fleet.command(THIRD, *command)
        measured.agreed_after_s["models set"] = await self._agreed_after(watch.now_s())

        def first(name: str) -> float | None:
            return self._first_answer(typed_s, lambda a: (a.node, a.digest) == (name, digest))

        names = list(self.fleet.nodes)
        await self._until(lambda: None not in map(first, names), report.MODEL_LIMIT_S)
        for name in names:
            at_s = first(name)
            measured.model_by_node_s[name] = None if at_s is None else at_s - typed_s
        times = report.each(measured.model_by_node_s)
        self.view.event("demo", f"answers carry {NEW_VARIANT} {digest[:8]}: {times}")
        await self._rest(SETTLE_S)

    async def _kill(self) -> None:
        measured, watch = self.measured, self.watch
        orphans = [c.name for c in self.cameras if watch.here()[c.name]["host"] == DOOMED]
        survivors = [name for name in self.fleet.nodes if name != DOOMED]
        await self._until(lambda: watch.now_s() >= KILL_AT_S, KILL_AT_S)
        self.view.chapter = f"{DOOMED} is dead"
        watch.members.discard(DOOMED)
        await self.fleet.kill(DOOMED)
        killed_s = measured.killed_s = watch.now_s()
        self.view.event("demo", f"kills {DOOMED} (SIGKILL), which ran {', '.join(orphans)}")

        def noticed(observer: str) -> float | None:
            for change in watch.changes:
                seen = (change.kind, change.observer, change.subject, change.value)
                if seen == ("member", observer, DOOMED, "down") and change.at_s > killed_s:
                    return change.at_s - killed_s
            return None

        def answered(agent: str) -> float | None:
            at_s = self._first_answer(killed_s, lambda a: a.agent == agent and a.host != DOOMED)
            return None if at_s is None else at_s - killed_s

        def over() -> bool:
            told = all(agent in watch.here() for agent in orphans)
            return told and None not in [*map(noticed, survivors), *map(answered, orphans)]

        await self._until(over, report.TAKEOVER_LIMIT_S + 5.0)
        measured.death_seen_s = {name: noticed(name) for name in survivors}
        measured.takeover_s = {name: answered(name) for name in orphans}
        self.view.chapter = "two nodes do the work of three"
        for agent, after_s in measured.takeover_s.items():
            if after_s is not None:
                words = f"{agent} is answered again, {after_s:.1f} s after the kill"
                self.view.event("demo", words)
        claims_s = [change.at_s for change in watch.changes if change.subject in orphans]
        measured.agreed_after_s["takeover"] = await self._agreed_after(max(claims_s))

    async def _bring_back(self) -> None:
        measured, watch = self.measured, self.watch
        own = [camera.name for camera in self.fleet.nodes[DOOMED].plan.cameras]
        self.view.chapter = f"{DOOMED} starts again"
        watch.forget(DOOMED)
        self.view.event("demo", f"starts {DOOMED} again, with the state that it had")
        started_s = watch.now_s()
        await self.fleet.start(DOOMED)

        def back() -> bool:
            recent = [one for one in watch.answers if one.at_s > started_s]
            answered = {one.agent for one in recent if one.host == DOOMED}
            return self._everyone_sees_everyone() and answered.issuperset(own)

        back_s = await self._until(back, report.RETURN_LIMIT_S)
        if back_s is not None:
            measured.returned_s = back_s - started_s
            self.view.chapter = "three nodes again"
            self.view.event("demo", f"{DOOMED} is back after {report.seconds(measured.returned_s)}")
        watch.members.add(DOOMED)
        measured.agreed_after_s["return"] = await self._agreed_after(watch.now_s())

    # Measuring

    async def _rest(self, seconds: float) -> None:
        await self._until(lambda: False, seconds)

    def _first_answer(self, since_s: float, matches: Callable[[Any], bool]) -> float | None:
        for one in self.watch.answers:
            if one.at_s > since_s and matches(one):
                return one.at_s
        return None

    async def _agreed_after(self, changed_s: float) -> float | None:
        """Return how long after `changed_s` all living nodes gave the same state hash."""

        def agreed_s() -> float | None:
            samples = self.watch.agreement
            return next((at_s for at_s, same in samples if same and at_s > changed_s), None)

        await self._until(lambda: agreed_s() is not None, 5 * report.AGREE_LIMIT_S)
        at_s = agreed_s()
        return None if at_s is None else at_s - changed_s

    async def _until(self, condition: Callable[[], bool], limit_s: float) -> float | None:
        """Wait for a condition; return when it came to hold, None if it did not in time.

        Raises FleetError if a daemon ends that should run.
        """
        last_s = self.watch.now_s() + limit_s
        while not condition():
            if self.watch.now_s() >= last_s:
                return None
            self.fleet.check()
            await asyncio.sleep(TICK_S)
        return self.watch.now_s()

    # The end

    def _verdict(self) -> bool:
        """Sum up, print the verdicts; return whether all hold."""
        measured, watch = self.measured, self.watch
        measured.total_s = watch.now_s()
        for camera in self.cameras:
            mine = [one for one in watch.answers if one.agent == camera.name]
            measured.answers[camera.name] = len(mine)
            measured.people[camera.name] = sum(one.people for one in mine)
            if camera.name == QUIET:
                measured.quiet_answers = len(mine)
                measured.quiet_hits = sum(one.rung != "full" for one in mine)
        if measured.up_s is not None:
            measured.longest_disagreement_s = report.longest_disagreement_s(
                watch.agreement, measured.up_s, measured.total_s
            )
        verdicts = report.judge(measured)
        failed = sum(not one.holds for one in verdicts)
        words = f"{failed} of {len(verdicts)} do not hold" if failed else "All of it holds"
        end = f"{words}; the demo took {measured.total_s:.0f} s."
        self.screen.say(*summary(self.screen, verdicts), "", end)
        return failed == 0

    async def _stay(self) -> None:
        living, called = self.fleet.nodes[THIRD], Path(sys.argv[0])
        command = called if called.name == "edge-node" else f"{sys.executable} -m edge_node.cli"
        self.view.chapter = "Ctrl-C ends it"
        self.screen.say(
            "",
            "The fleet stays up. Look around from another terminal, for example:",
            f"  {command} peers -c {living.config}",
            f"  {command} agents -c {living.config}",
            "",
        )
        with contextlib.suppress(asyncio.CancelledError):
            await self._with_audience(asyncio.Event().wait())
