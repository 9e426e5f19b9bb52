"""The command line of the simulator.

Owns the parsing, what is printed where, and the exit status: 0 every invariant held (of a replay:
the same trace), 1 one did not, 2 wrong usage. Never runs anything itself.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from simnet import page, plants, report, runs, scenario, shrink, swarm, sweep
from simnet.outcome import Outcome
from simnet.progress import Progress
from simnet.runs import ScenarioError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.verb(arguments)
        sys.stdout.flush()
        return status
    except (ScenarioError, OSError) as error:
        print(f"simnet: {error}", file=sys.stderr)
        return USAGE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=runs.PROGRAM,
        description="Run whole fleets under faults, and check what must always hold.",
        epilog="Exit status: 0 all held, 1 something did not, 2 wrong usage.",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    one = verbs.add_parser("run", help="run a scenario in a world in virtual time")
    _add_scenario(one)
    _add_reports(one)
    one.set_defaults(verb=_run)

    many = verbs.add_parser("swarm", help="run many seeds, each with faults of its own")
    many.add_argument("--scenario", default=swarm.NAME, help="another than one drawn from the seed")
    many.add_argument("--seeds", default="1-20", help="1-20, 7, 3,9,12, or 5- without an end")
    many.add_argument("--nodes", type=int, help="another number of nodes")
    many.add_argument("--plant", default="", help="with a deliberate defect")
    many.add_argument("--engine", default="processes", choices=sweep.ENGINES)
    many.add_argument("--workers", type=int, help="at once; one per processor")
    many.add_argument("--address", help="of a Ray cluster; without it one of this machine")
    _add_reports(many)
    many.set_defaults(verb=_swarm)

    again = verbs.add_parser("replay", help="run a seed again and compare the trace")
    _add_scenario(again)
    again.add_argument("--expect", default="", metavar="HASH", help="what the trace hash must be")
    _add_reports(again)
    again.set_defaults(verb=_replay)

    real = verbs.add_parser("cluster", help="run a scenario with real daemons on this machine")
    real.add_argument("scenario", help="a name (see `list`) or a file")
    real.add_argument("--seed", type=int, default=1)
    real.add_argument("--nodes", type=int, help="another number of nodes")
    _add_reports(real)
    real.set_defaults(verb=_cluster)

    shown = verbs.add_parser("report", help="show outcomes that were written with --json")
    shown.add_argument("outcomes", nargs="+", help="files")
    shown.add_argument("--html", metavar="FILE", help="write a page that opens offline")
    shown.set_defaults(verb=_report)

    known = verbs.add_parser("list", help="list the scenarios and the deliberate defects")
    known.set_defaults(verb=_list)
    return parser


def _add_scenario(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenario", help="a name (see `list`), a file, or `swarm`")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nodes", type=int, help="another number of nodes")
    parser.add_argument("--plant", default="", help="with a deliberate defect")
    parser.add_argument(
        "--shrink", metavar="FILE", help="if it fails: write a smaller scenario that does too"
    )


def _add_reports(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write the outcomes for programs")
    parser.add_argument("--html", metavar="FILE", help="write a page that opens offline")


def _run(arguments: argparse.Namespace) -> int:
    outcome = _once(arguments)
    print(report.table(outcome))
    _write(arguments, [outcome])
    if outcome.passed:
        return OK
    _shrink(arguments)
    return FAILED


def _replay(arguments: argparse.Namespace) -> int:
    outcome = _once(arguments)
    print(report.table(outcome))
    _write(arguments, [outcome])
    _shrink(arguments)
    if not arguments.expect:
        return OK if outcome.passed else FAILED
    same = outcome.trace_hash.startswith(arguments.expect)
    print("the same trace" if same else f"another trace than {arguments.expect}")
    return OK if same else FAILED


def _once(arguments: argparse.Namespace) -> Outcome:
    found = runs.find(arguments.scenario, arguments.seed, arguments.nodes, arguments.plant)
    time = found.time
    with Progress(sys.stderr, found.name, each_s=time.settle_s + time.duration_s) as progress:
        return runs.run(
            arguments.scenario,
            arguments.seed,
            arguments.nodes,
            arguments.plant,
            lambda at_s, _: progress.reached(at_s),
        )


def _swarm(arguments: argparse.Namespace) -> int:
    given, nodes, plant = arguments.scenario, arguments.nodes, arguments.plant
    seeds, count = _seeds(arguments.seeds)
    found = runs.find(given, next(iter(seeds)), nodes, plant)  # what cannot be is refused at once
    time, outcomes = found.time, list[Outcome]()
    task = partial(runs.run, given, nodes=nodes, plant=plant)
    try:
        running = sweep.sweep(
            task,
            _seeds(arguments.seeds)[0],
            engine=arguments.engine,
            workers=arguments.workers,
            address=arguments.address,
        )
    except ValueError as error:
        raise ScenarioError(str(error)) from error
    each_s = time.settle_s + time.duration_s
    with (
        Progress(sys.stderr, given, seeds=count, each_s=each_s) as progress,
        closing(running),  # type: ignore[type-var]
    ):
        try:
            for outcome in running:
                if not outcome.scenario:  # its worker died, or it could not be run
                    outcome = replace(
                        outcome,
                        scenario=given,
                        replay=runs.replay_command(given, outcome, nodes, plant),
                    )
                outcomes.append(outcome)
                progress.done(outcome)
        except KeyboardInterrupt:
            if not outcomes:
                raise
    outcomes.sort(key=lambda one: one.seed)
    print(report.summary(outcomes))
    for outcome in outcomes:
        if not outcome.passed:
            print()
            print(report.table(outcome))
    _write(arguments, outcomes)
    return OK if all(outcome.passed for outcome in outcomes) else FAILED


def _cluster(arguments: argparse.Namespace) -> int:
    from simnet import cluster  # asyncio and the daemon: the other verbs need neither

    try:
        found = scenario.load(arguments.scenario)
        found = found.sized(arguments.nodes) if arguments.nodes is not None else found
        outcome = cluster.run(
            found, arguments.seed, progress=lambda line: print(line, file=sys.stderr)
        )
    except ValueError as error:
        raise ScenarioError(str(error)) from error
    words = f"{runs.PROGRAM} cluster {arguments.scenario} --seed {arguments.seed}"
    size = "" if arguments.nodes is None else f" --nodes {arguments.nodes}"
    outcome = replace(outcome, replay=words + size)
    print(report.table(outcome))
    _write(arguments, [outcome])
    return OK if outcome.passed else FAILED


def _report(arguments: argparse.Namespace) -> int:
    try:
        outcomes = [one for path in arguments.outcomes for one in report.read_json(path)]
    except ValueError as error:
        raise ScenarioError(str(error)) from error
    if not outcomes:
        raise ScenarioError("the files hold no outcome")
    print(report.table(outcomes[0]) if len(outcomes) == 1 else report.summary(outcomes))
    _write(arguments, outcomes)
    return OK if all(outcome.passed for outcome in outcomes) else FAILED


def _list(arguments: argparse.Namespace) -> int:
    for name in scenario.names():
        found = scenario.load(name)
        print(f"{name:12} {found.nodes:4} nodes  {found.about}")
    print(f"{swarm.NAME:12}  25-60 nodes  Drawn from the seed.")
    print("\ndeliberate defects, for --plant:")
    for name, plant in plants.PLANTS.items():
        print(f"{name:18} {plant.scenario:10} {plant.invariant:15} {plant.what}")
    return OK


def _write(arguments: argparse.Namespace, outcomes: list[Outcome]) -> None:
    if getattr(arguments, "json", None):
        report.write_json(arguments.json, outcomes)
    if arguments.html:
        Path(arguments.html).write_text(page.page(outcomes))


def _shrink(arguments: argparse.Namespace) -> None:
    if not arguments.shrink:
        return
    found = runs.find(arguments.scenario, arguments.seed, arguments.nodes, arguments.plant)
    try:
        smaller, outcome = shrink.shrink(
            found,
            arguments.seed,
            plant=arguments.plant,
            progress=lambda line: print(line, file=sys.stderr),
        )
    except ValueError as error:
        raise ScenarioError(str(error)) from error
    Path(arguments.shrink).write_text(scenario.text(smaller))
    print(f"\n{arguments.shrink}: {smaller.nodes} nodes, {len(smaller.faults)} faults")
    print(outcome.violation)
    print(runs.replay_command(arguments.shrink, outcome, plant=arguments.plant))


def _seeds(text: str) -> tuple[Iterator[int], int | None]:
    """Return the seeds that a text names, and how many, None for no end."""
    try:
        if text.endswith("-"):
            return itertools.count(int(text[:-1])), None
        parts = [part.split("-", 1) for part in text.split(",")]
        found = [seed for part in parts for seed in range(int(part[0]), int(part[-1]) + 1)]
    except ValueError:
        found = []
    if not found:
        _refuse(f"--seeds {text}: give 1-20, 7, 3,9,12, or 5- for no end")
    return iter(found), len(found)


def _refuse(what: str) -> NoReturn:
    raise ScenarioError(what)
