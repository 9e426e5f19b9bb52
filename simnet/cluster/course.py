"""One scenario on real daemons: from a seed to an outcome.

Owns the order of a run: come up, settle, faults and writes, heal, last look. Decides nothing about
right and wrong: :mod:`simnet.checkers` does. Invariant: however a run ends, no process of it is
left, and its folder only if it failed.
"""

import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from simnet.checkers import Broken, Checkers
from simnet.cluster.capacity import cpu_s, memory, refuse_unfit
from simnet.cluster.machines import Machines
from simnet.cluster.processes import ClusterError, Fact, Processes
from simnet.cluster.setting import Setting, free_ports
from simnet.cluster.watching import Watching
from simnet.link import Name
from simnet.outcome import Load, Outcome, Violation
from simnet.scenario import Scenario

SIGHT_S = 1.0
_AHEAD_S = 0.3
"""So long before the run's zero the nodes hear of it."""
_UP_S, _UP_NODE_S = 30.0, 4.0
"""How long it may take until all are up, and how much longer for each node."""
_LOOK_S = 30.0
_ASK_S = 0.25
"""How often all are asked whether they agree, in the end."""

_LINES = 200_000
"""Bytes of a log's end that are looked at."""

Progress = Callable[[str], None]


def run(
    scenario: Scenario, seed: int, *, progress: Progress | None = None, folder: Path | None = None
) -> Outcome:
    """Run a scenario on real daemons; a failure is an outcome too. Blocks, in real time.

    Args:
        progress: told about once a second, in words.
        folder: where the nodes live, empty or not there yet; it is kept. Without one it is a
            temporary folder, kept only if the run fails (the outcome's notes name it).

    Raises:
        ValueError: an impossible plan, or more nodes than fit on this machine; nothing was started.
        ClusterError: the cluster itself does not work here.
    """
    scenario.plan(seed)
    refuse_unfit(scenario)
    return Course(scenario, seed, progress or (lambda words: None), folder).run()


class Course:
    """A run under way."""

    def __init__(
        self, scenario: Scenario, seed: int, progress: Progress, folder: Path | None
    ) -> None:
        """Make the folder with all its files; nothing runs yet. Raises OSError."""
        self.scenario, self.seed = scenario, seed
        self._progress = progress
        temporary = folder is None
        folder = folder or Path(tempfile.mkdtemp(prefix="simnet-"))
        folder.mkdir(parents=True, exist_ok=True)
        ports = free_ports(2 * scenario.nodes)
        pairs = tuple(zip(ports[::2], ports[1::2], strict=True))
        reports = f"simnet-{secrets.token_hex(8)}"
        self.setting = Setting(scenario, seed, folder.resolve(), temporary, reports, pairs)
        self.setting.write_files()
        self._heal_s = -1.0
        self._cpu_begun: dict[int, float] = {}

    def run(self) -> Outcome:
        """Run it all."""
        self._launched_s = time.monotonic()
        self.processes = Processes(self.setting)
        violation = None
        keep = not self.setting.temporary
        try:
            self.processes.prepare()
            self.machines = Machines(self.setting, self.processes)
            try:
                self._come_up()
                self._settle()
                self._live()
                self._heal()
                self._search_logs()
            except Broken as broken:
                violation = broken.violation
            keep = keep or violation is not None
            return self._outcome(violation)
        except ClusterError as error:
            keep = True
            raise ClusterError(f"{error}; logs: {self.setting.folder}") from error
        finally:
            self.processes.close(keep=keep)

    @property
    def now_s(self) -> float:
        """Seconds since the settling was over; negative before."""
        return time.monotonic() - self._zero_s

    # ------------------------------------------------------------- the course of it

    def _come_up(self) -> None:
        """Start all that begin, and wait until they are up; if warm, until they agree."""
        warm, wanted = self.scenario.start == "warm", self.machines.wanted
        limit_s = time.monotonic() + _UP_S + _UP_NODE_S * len(wanted)
        self._facts: list[Fact] = []
        self._zero_s = time.monotonic()
        self.watching = self._watching()
        up: set[Name] = set()
        starting, next_s = self.machines.start_all(), 0.0
        while len(up) < len(wanted) or (warm and not self.watching.agreed()):
            while (now_s := time.monotonic()) >= next_s:
                next_s = now_s + next(starting, inf)
            for fact in self.processes.facts(min(next_s, now_s + 0.1)):
                if fact.kind == "event":
                    continue  # a machine that starts so many is too busy for their judgement
                self._facts.append(fact)
                if fact.kind == "gone":
                    raise ClusterError(f"{fact.name} does not start: {self._last_words(fact.name)}")
                if fact.kind == "up":
                    up.add(fact.name)
                if warm:
                    self.watching.take(fact)
            if time.monotonic() > limit_s:
                apart = len(self.watching.apart())
                why = f"{len(up)} of {len(wanted)} nodes are up, {apart} do not agree, in time"
                raise ClusterError(why)
        took_s = time.monotonic() - self._launched_s
        self._progress(f"{len(wanted)} nodes are up after {took_s:.1f} s")

    def _tell_all(self, *words: Any) -> None:
        for name in self.processes.pids:
            self.processes.say(name, *words)

    def _watching(self) -> Watching:
        settle_s = self._zero_s - self._launched_s
        time_ = replace(self.scenario.time, settle_s=settle_s)
        return Watching(Checkers(replace(self.scenario, time=time_)), self._zero_s)

    def _settle(self) -> None:
        """Fix the run's zero, and judge what was told so far by it."""
        self._zero_s = time.monotonic() + max(_AHEAD_S, self.scenario.time.settle_s)
        self.watching = self._watching()
        for fact in self._facts:
            self.watching.take(fact)
        self._facts.clear()
        self._pass(-_AHEAD_S)
        self._tell_all("zero", self._zero_s)
        self._cpu_begun = {pid: cpu_s(pid) for pid in self.processes.pids.values()}
        self._pass(0.0)

    def _live(self) -> None:
        """Carry out the plan."""
        for step in self.setting.plan:
            self._pass(step.at_s)
            self.watching.checkers.stepped(step.at_s, step)
            self.machines.step(step)
        self._pass(self.scenario.time.duration_s)

    def _heal(self) -> None:
        """Wait until all agree, and look at what they read."""
        begun_s = self.now_s
        while True:
            asked_s = self.now_s
            for name in self.machines.wanted:
                self.processes.say(name, "sample")
            self._pass(asked_s + _ASK_S)
            if self._settled(asked_s):
                break
            if self.now_s - begun_s >= self.scenario.time.heal_s:
                self.watching.checkers.unsettled(self.now_s, self._disagreement())
        self._heal_s = self.now_s - begun_s
        running = set(self.machines.wanted)
        for name in running:
            self.processes.say(name, "look")
        limit_s = self.now_s + _LOOK_S
        while self.watching.readings.keys() < running:
            if self.now_s > limit_s:
                missing = sorted(running - self.watching.readings.keys())
                self.watching.checkers.unsettled(self.now_s, f"{missing[:8]} do not answer")
            self._pass(self.now_s + 0.1)
        self.watching.checkers.agreed(self.now_s, self.watching.readings)

    def _settled(self, since_s: float) -> bool:
        running = self.watching.views.keys() == self.machines.wanted
        return running and self.watching.agreed(since_s)

    def _pass(self, until_s: float) -> None:
        """Let time pass, and take what is told meanwhile."""
        while self.now_s < until_s:
            sight_s = self.watching.sights[-1].at_s + SIGHT_S if self.watching.sights else -1e9
            wake_s = min(until_s, max(sight_s, self.now_s))
            wake_s = min(self._zero_s + wake_s, self.machines.next_s())
            for fact in self.processes.facts(wake_s):
                self._take(fact)
            self.machines.due()
            for name, how in self.machines.unasked:
                words = self._last_words(name)
                self.watching.checkers.failed(self.now_s, name, f"{how}: {words}")
            if self.now_s >= sight_s:
                sight = self.watching.sight(self.now_s)
                self._progress(
                    f"{sight.at_s:6.1f} s: {sight.running} run, {sight.replicas} replicas, "
                    f"{sight.seen:.1%} seen"
                )

    def _take(self, fact: Fact) -> None:
        if fact.kind == "gone":
            forgetful = self.machines.forgets(fact.name)
            self.watching.take(fact._replace(kind="stopped", fields=[forgetful]))
            self.machines.gone(fact.name, fact.fields[0])
            return
        if fact.kind == "up" and self.now_s > -_AHEAD_S:
            self.processes.say(fact.name, "zero", self._zero_s)
        self.watching.take(fact)

    # ------------------------------------------------------------- what goes wrong

    def _disagreement(self) -> str:
        views, wanted = self.watching.views, self.machines.wanted
        replicas = {view.fingerprint for view in views.values()}
        blind = [name for name, view in views.items() if view.live != len(wanted)]
        down = sorted(wanted - views.keys())
        return (
            f"after {self.scenario.time.heal_s:g} s: {len(replicas)} different replicas; apart: "
            f"{', '.join(self.watching.apart()[:8]) or 'none'}; who does not see as many as run: "
            f"{', '.join(blind[:8]) or 'none'}; not up: {', '.join(down[:8]) or 'none'}"
        )

    def _last_words(self, name: Name) -> str:
        """Return a node's first error of ours, or the last line of its log."""
        with suppress(OSError):
            lines = self.setting.log_of(name).read_text(errors="replace").splitlines()
            return _error(lines) or next((one for one in reversed(lines) if one.strip()), "")[:300]
        return "it has no log"

    def _search_logs(self) -> None:
        """Look for errors that did not end a daemon, and should not be."""
        for name in self.setting.names:
            with suppress(OSError):
                found = _error(self.setting.log_of(name).read_text(errors="replace").splitlines())
                if found:
                    self.watching.checkers.failed(self.now_s, name, found)

    # ------------------------------------------------------------- figures

    def _outcome(self, violation: Violation | None) -> Outcome:
        pids = dict(self.processes.pids)
        ran_s = max(SIGHT_S, time.monotonic() - self._launched_s)
        used_s = {name: cpu_s(pid) for name, pid in pids.items()}
        share = {
            name: (used_s[name] - self._cpu_begun[pid]) / max(SIGHT_S, self.now_s)
            for name, pid in pids.items()
            if pid in self._cpu_begun
        }
        held = {name: memory(pid) for name, pid in pids.items()}
        watching = self.watching
        judged = watching.checkers.outcome(
            self.seed, "cluster", "real", violation, watching.counts()
        )
        kept = () if violation is None else (f"the daemons' files and logs: {self.setting.folder}",)
        return replace(
            judged,
            ran_s=ran_s,
            wall_s=ran_s,
            cpu_s=sum(used_s.values()) + sum(self.processes.cpu_s.values()),
            memory_mib=sum(one.pss for one in held.values()),
            heal_s=self._heal_s,
            sights=tuple(watching.sights),
            loads={
                "sent_bytes_per_s": watching.load("out_bytes", ran_s),
                "datagrams_per_s": watching.load("out_datagrams", ran_s),
                "cpu_share": Load.over(share),
                "pss_mib": Load.over({name: one.pss for name, one in held.items()}),
                "beyond_shared_mib": Load.over({name: one.own for name, one in held.items()}),
            },
            notes=(*judged.notes, *kept),
        )


def _error(lines: Sequence[str]) -> str:
    """Return the last line of the first traceback, with the place that it came from."""
    place = ""
    for index, line in enumerate(lines):
        if line.startswith("Traceback (most recent call last)"):
            for one in lines[index + 1 :]:
                if not one.startswith(" "):
                    return f"{one} ({place})"[:300]
                if one.startswith("  File "):
                    place = one.strip()
    return ""
