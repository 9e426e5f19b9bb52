"""Outcomes with all that reports show, made up."""

from simnet.outcome import Episode, Frames, Load, Outcome, Sight, Spread, Violation

NASTY = '<script>alert("1")</script> & \x1b[2J'


def full(seed: int = 7, *, failed: bool = True) -> Outcome:
    """A run of a world that has every kind of figure."""
    last = ("1.000 n1 said x", f"2.000 n2 {NASTY}")
    return Outcome(
        scenario="partition",
        seed=seed,
        host="world",
        nodes=50,
        cryptography="stand-in",
        emulated=True,
        replay=f"python -m simnet replay partition --seed {seed}",
        trace_hash="3f" * 32,
        violation=Violation("agreement", 62.5, f"n1 differs: {NASTY}", last) if failed else None,
        ran_s=100.0,
        wall_s=9.0,
        cpu_s=8.5,
        memory_mib=120.0,
        round_s=0.03,
        heal_s=-1.0 if failed else 3.0 + seed,
        down_rounds=(2.0, 5.0),
        spreads=(Spread(10.0, 2.0, 4.0, 0), Spread(20.0, 3.0, 12.0, 1)),
        sights=tuple(Sight(float(at), 50, 1 + at % 3, 0.5, 0.75) for at in range(0, 100, 5)),
        episodes=(
            Episode(20.0, 60.0, "partition", 50, "25 and 25"),
            Episode(30.0, -1.0, "crash", 1, NASTY),
        ),
        frames=(
            Frames(1, 100, {"answered": 95, "late": 5}, 21.0, 40.0, 88.0),
            Frames(3, 50, {"shed: full": 50}, -1.0, -1.0, -1.0),
        ),
        bytes_by_kind={"batch": 3_000_000, "probe": 1_000_000, "join": 0},
        loads={"sent_bytes_per_s": Load(2300.0, 8100.0, "n7")},
        counts={"datagrams_in": 1234567},
        notes=("a note",),
    )


def bare(seed: int = 1) -> Outcome:
    """What a seed leaves whose workers died."""
    violation = Violation("worker", -1.0, "died 3 times, the last time: SIGKILL")
    return Outcome(scenario="", seed=seed, host="", nodes=0, cryptography="", violation=violation)
