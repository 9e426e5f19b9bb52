"""A city that nobody directs, and what it is compared with: `make bench-placement`.

Scenario S1 (simnet/scenarios/city.toml) in the simulated world, where the daemon's own gossip,
store, plans, budgets, queues and views run: fifty nodes, 100 to 400 cameras at 12 Hz. The same
frames, noise, bursts and throttling meet every policy (common random numbers). DSR is the share of
the demand answered within its deadline. Figures with a target are means of twelve seeds, where the
note names no others. A centre sees everything, and has no gossip.

Policies: ours; the naive baseline (the same code path with the mechanisms off: any task costs the
same anywhere, two random choices on stale views, first come first served, output cache); the fair
one (knows what each kind takes where, own sends and replies corrected); centres that see every
queue as it is (`fresh`: our decisions; `best`: the best of all nodes; `batch`: all frames of 20 ms
at once, tests/bench/placement_central.py). All hardware is emulated. placement_bound.py has the
plan against its lower bound; the affinity model's rows are real, from tests/bench/affinity.py.
"""

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from multiprocessing import get_context

from simnet.city import alone
from simnet.city.load import Load
from simnet.city.policy import FAIR, NAIVE, OURS, Policy
from simnet.city.scenario import CityScenario
from simnet.scenario import Scenario, load
from tests.bench import affinity, placement_bound
from tests.bench.placement_bound import slope
from tests.bench.placement_central import schedule
from tests.bench.report import Figure, report

S1 = load("city")
SEEDS = tuple(range(1, 13))
EMULATED = f"emulated; mean of {len(SEEDS)} seeds"
FEW = SEEDS[:3]
OF_FEW = f"emulated; mean of seeds {', '.join(map(str, FEW))}"
ONE_SEED = f"emulated; seed {SEEDS[0]}"

CENTRES = {name: Policy(centre=name) for name in ("fresh", "best", "batch")}
BLIND = replace(CENTRES["batch"], knows_reuse=False)

# The three mechanisms, as they stand in the rows of all combinations.
LETTERS = ("cache", "coordination", "affinity")
COMBINED_AT = (50, 150, 250)
REPORTS_S = (0.2, 0.5, 2.0, 4.0)
DEATHS_AT, DEATH_S, DEAD_SHARE = 150, 4.0, 1 / 6
DECIDED_AT = (100, 200, 400)
CAP_MS = 5_000.0  # what an unanswered frame counts for in mean latencies


@dataclass(frozen=True)
class Job:
    """One run, and what of its outcome is wanted."""

    cameras: int
    policy: Policy = OURS
    seed: int = SEEDS[0]
    reports_s: float = S1.gossip.volatile_interval_s
    even_clips: bool = False
    dies: bool = False


@dataclass(frozen=True)
class Result:
    """The counts of a run that the figures are made of."""

    dsr: float
    tiers: tuple[float, float, float]
    p50_ms: float
    mean_ms: float
    energy_j: float
    epochs: tuple[float, ...]
    frames: int


def sized(cameras: int, *, nodes: int = S1.nodes, even_clips: bool = False) -> Scenario:
    """Return S1 with so many cameras and nodes."""
    city = _city()
    given = replace(city.cameras, count=cameras)
    if even_clips:
        given = replace(given, clips={name: 1 / len(given.clips) for name in given.clips})
    zones = max(1, nodes // (S1.nodes // S1.zones))
    return replace(S1, nodes=nodes, zones=zones, city=replace(city, cameras=given))


def _city() -> CityScenario:
    assert S1.city is not None
    return S1.city


def run(job: Job) -> Result:
    """Do one run."""
    given = sized(job.cameras, even_clips=job.even_clips)
    given = replace(given, gossip=replace(S1.gossip, volatile_interval_s=job.reports_s))
    scheduler = schedule if job.policy.centre == "batch" else None
    city = alone.settle(Load(given, job.seed), job.policy, scheduler=scheduler)
    found = alone.run(city, die=(DEATH_S, DEAD_SHARE) if job.dies else None)
    assert found.ends.total() == found.arrivals, "every frame ends exactly once"
    times = [min(CAP_MS, one) for one in found.latencies_ms]
    return Result(
        found.dsr,
        (found.tier_dsr(1), found.tier_dsr(2), found.tier_dsr(3)),
        found.latency_ms(0.5),
        sum(times) / len(times),
        found.energy_per_met_j,
        tuple(found.epoch_dsr(number) for number in sorted(found.epoch_demand)),
        found.arrivals,
    )


class Results:
    """All runs, done once each on two processes."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        wanted = sorted(set(jobs), key=lambda job: -job.cameras)
        with get_context("spawn").Pool(2) as pool:
            found = pool.map(run, wanted, chunksize=1)
        self._found = dict(zip(wanted, found, strict=True))

    def each(self, job: Job, seeds: Iterable[int] = SEEDS) -> list[Result]:
        """Return a run's results, seed by seed."""
        return [self._found[replace(job, seed=seed)] for seed in seeds]

    def mean(self, job: Job, of: Callable[[Result], float], seeds: Iterable[int] = SEEDS) -> float:
        """Return the mean of a figure over seeds."""
        values = [of(one) for one in self.each(job, seeds)]
        return sum(values) / len(values)

    def dsr(self, job: Job, seeds: Iterable[int] = SEEDS) -> float:
        """Return the mean DSR."""
        return self.mean(job, lambda one: one.dsr, seeds)


def mechanisms(cache: bool, coordination: bool, affinity_: bool) -> Policy:
    """Return the policy with these mechanisms on; none of them is the naive baseline."""
    return Policy(
        "delta" if cache else "output",
        coordinated=coordination,
        affinity=affinity_,
        corrected=coordination,
    )


COMBINATIONS = {
    f"{cache:d}{coordination:d}{affinity_:d}": mechanisms(cache, coordination, affinity_)
    for cache in (False, True)
    for coordination in (False, True)
    for affinity_ in (False, True)
}


def jobs() -> list[Job]:
    """Return every run that the table needs."""
    main = [Job(count) for count in (150, 200, 250, 400)] + [Job(175, NAIVE)]
    main += [Job(count, policy) for count in (200, 250) for policy in CENTRES.values()]
    rest = [
        Job(100),
        Job(100, FAIR),
        Job(200, FAIR),
        Job(200, BLIND),
        Job(250, BLIND),
        Job(250, Policy("none")),
    ]
    rest += [Job(count, even_clips=True) for count in (150, 200, 250)]
    rest += [Job(250, COMBINATIONS[name]) for name in ("011", "101", "110")]
    rest += [Job(200, reports_s=period_s) for period_s in REPORTS_S]
    rest += [Job(DEATHS_AT, dies=True)]
    found = [replace(job, seed=seed) for job in main for seed in SEEDS]
    found += [replace(job, seed=seed) for job in rest for seed in FEW]
    return found + [Job(count, one) for count in COMBINED_AT for one in COMBINATIONS.values()]


def cities(found: Results) -> list[Figure]:
    """Return how well the city does."""
    figures = [
        Figure(f"s1.dsr{count}", found.dsr(Job(count)), ">=", least, _by_seed(found, Job(count)))
        for count, least in ((150, 0.99), (200, 0.99), (250, 0.97))
    ]
    over = Job(400)
    first, third = (found.mean(over, lambda one, tier=tier: one.tiers[tier]) for tier in (0, 2))
    naive = Job(175, NAIVE)
    p50 = [found.mean(Job(count), lambda one: one.p50_ms, FEW) for count in (250, 100)]
    return [
        *figures,
        Figure("s1.dsr400", found.dsr(over), note=_by_seed(found, over)),
        Figure("s1.tier1_400", first, ">=", 0.98, EMULATED),
        Figure("s1.tier3_400", third, ">=", 0.05, f"share of demand; {EMULATED}"),
        Figure("s1.naive175", found.dsr(naive), "<=", 0.40, _by_seed(found, naive)),
        Figure("s1.p50_ratio", p50[0] / p50[1], "<", 2.5, f"{p50[0]:.0f} ms; {OF_FEW}"),
        *(
            Figure(
                f"s1.dsr{count}.even_clips",
                found.dsr(Job(count, even_clips=True), FEW),
                note=f"every recorded clip as often; {OF_FEW}",
            )
            for count in (150, 200, 250)
        ),
    ]


def _by_seed(found: Results, job: Job) -> str:
    each = ", ".join(f"{one.dsr:.3f}" for one in found.each(job))
    return f"by seed {each}; emulated"


def rivals(found: Results) -> list[Figure]:
    """Return ours minus what a centre reaches, the worse of two loads."""
    gaps: dict[str, float] = {}
    words: dict[str, str] = {}
    for name, policy in {**CENTRES, "blind": BLIND}.items():
        seeds = FEW if policy is BLIND else SEEDS
        pairs = {
            count: (found.dsr(Job(count), seeds), found.dsr(Job(count, policy), seeds))
            for count in (200, 250)
        }
        gaps[name] = min(ours - its for ours, its in pairs.values())
        words[name] = ", ".join(
            f"{count}: ours {ours:.4f}, its {its:.4f}" for count, (ours, its) in pairs.items()
        )
    same = min("fresh", "best", key=gaps.__getitem__)
    knowing = f"{words['batch']}; it knows who can reuse what; {EMULATED}"
    blind = f"{words['blind']}; it knows kinds and nodes, not reuse; {OF_FEW}"
    ours, fair = Job(100), Job(100, FAIR)
    energy = [found.mean(job, lambda one: one.energy_j, FEW) for job in (ours, fair)]
    done = f"N = 100, DSR {found.dsr(ours, FEW):.3f} and {found.dsr(fair, FEW):.3f}"
    return [
        Figure("s1.central_same", gaps[same], ">=", -0.01, f"{same}: {words[same]}; {EMULATED}"),
        Figure("s1.central_task", gaps["batch"], ">", 0.0, knowing),
        Figure("s1.central_task.blind", gaps["blind"], note=blind),
        Figure("s1.fair200", found.dsr(Job(200, FAIR), FEW), note=OF_FEW),
        Figure(
            "energy.ratio",
            energy[0] / energy[1],
            "<=",
            0.5,
            f"{energy[0]:.3f} J a frame in time, fair {energy[1]:.3f}; {done}; {OF_FEW}",
        ),
    ]


def disturbances(found: Results) -> list[Figure]:
    """Return what old news and dead nodes do."""
    by_period = {one: found.dsr(Job(200, reports_s=one), FEW) for one in REPORTS_S}
    spread = max(by_period.values()) - min(by_period.values())
    words = ", ".join(f"{one:g} s: {dsr:.4f}" for one, dsr in by_period.items())
    first = int(DEATH_S / _city().epoch_s)
    needed = []
    for one in found.each(Job(DEATHS_AT, dies=True), FEW):
        after = one.epochs[first:]
        needed.append(next((n for n, dsr in enumerate(after) if dsr >= 0.98), len(after)))
    dsrs = found.each(Job(DEATHS_AT, dies=True), FEW)[0].epochs[first - 1 :]
    course = ", ".join(f"{dsr:.3f}" for dsr in dsrs)
    return [
        Figure("s1.gossip_spread", spread, "<=", 0.01, f"{words}; N = 200; {OF_FEW}"),
        Figure(
            "s1.death_epochs",
            max(needed),
            "<=",
            3,
            f"epochs below .98 after a sixth died, worst of seeds; N = {DEATHS_AT}, "
            f"by epoch {course}; emulated",
        ),
    ]


def table(found: Results) -> list[Figure]:
    """Return what each mechanism does alone and together."""
    figures = [
        Figure(f"mechanism.{name}", found.dsr(Job(250, policy), FEW), note=f"DSR at 250; {OF_FEW}")
        for name, policy in {
            "all": OURS,
            "output cache": COMBINATIONS["011"],
            "no cache": Policy("none"),
            "no coordination": COMBINATIONS["101"],
            "no affinity": COMBINATIONS["110"],
        }.items()
    ]
    for count in COMBINED_AT:
        one = {
            name: found.each(Job(count, policy), SEEDS[:1])[0]
            for name, policy in COMBINATIONS.items()
        }
        gain = {name: one["000"].mean_ms / each.mean_ms for name, each in one.items()}
        ratio = gain["111"] / (gain["100"] * gain["010"] * gain["001"])
        dsrs = ", ".join(f"{name} {each.dsr:.2f}" for name, each in one.items())
        note = f"speed-up of all / product of singles; {'-'.join(LETTERS)}: DSR {dsrs}; {ONE_SEED}"
        figures.append(Figure(f"mechanism.interaction{count}", ratio, note=note))
    return figures


def decisions() -> list[Figure]:
    """Time the decisions of short runs, K = N/4."""
    p50_us: dict[int, float] = {}
    for count in DECIDED_AT:
        given = sized(count, nodes=count // 4)
        assert given.city is not None
        short = replace(
            given,
            time=replace(S1.time, settle_s=2.0, duration_s=1.0),
            city=replace(given.city, warmup_s=0.2, drain_s=0.0),
        )
        city = alone.settle(Load(short, 1), clock=time.thread_time)
        alone.run(city)
        taken = sorted(city.decision_s)
        p50_us[count] = 1e6 * taken[len(taken) // 2]
    note = f"emulated fleet; thread-CPU p50 by N: {_listed(p50_us)}"
    return [
        Figure("decide.us", p50_us[200], "<=", 50.0, note),
        Figure("decide.exponent", slope(p50_us), "<=", 0.3, "K = N/4; emulated fleet"),
    ]


def _listed(values: dict[int, float]) -> str:
    return ", ".join(f"{key}: {value:.1f}" for key, value in values.items())


def main() -> None:
    """Print the table and write `.bench/placement.json`."""
    begun_s = time.monotonic()
    figures = [*decisions(), *placement_bound.figures(FEW)]
    found = Results(jobs())
    figures = [*cities(found), *rivals(found), *disturbances(found), *figures, *table(found)]
    figures += affinity.figures()
    report("placement", figures)
    print(f"{time.monotonic() - begun_s:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
