"""What people read of runs at a terminal, and what files keep of them."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simnet import report
from simnet.progress import Progress
from tests.simnet.outcomes import bare, full


def row(text: str, begins: str) -> list[str]:
    """The words of the one line that begins so."""
    (line,) = [line for line in text.splitlines() if line.startswith(begins)]
    return line.removeprefix(begins).split()


def test_a_run_shows_the_average_beside_the_slowest() -> None:
    text = report.table(full())
    assert text.startswith("partition, seed 7, 50 nodes: failed: agreement\n")
    assert row(text, "spread of a write")[:3] == ["rounds", "2.50", "12"]
    assert row(text, "death noticed by all")[:3] == ["probes", "3.50", "5"]
    assert row(text, "sent  ")[:3] == ["B/s", "2,300", "8,100"]
    assert row(text, "batch ") == ["3.0", "MB", "75.0", "%"]
    assert row(text, "   1 ") == ["100", "95", "5", "0", "21", "40", "88"]
    assert row(text, "   3 ") == ["50", "0", "0", "50", "-", "-", "-"]
    assert "for good  crash" in text


def test_a_run_says_how_its_figures_came_about() -> None:
    text = report.table(full())
    assert "virtual time; stand-in cryptography; emulated accelerators" in text
    assert "latency by tier (emulated accelerators)" in text
    real = replace(full(), host="cluster", cryptography="real", emulated=False)
    text = report.table(real)
    assert "real processes; real cryptography" in text
    assert "emulated" not in text


def test_a_failure_ends_with_what_happened_before_and_how_to_see_it_again() -> None:
    text = report.table(full())
    assert "violation: agreement at 62.500 s: n1 differs" in text
    assert "  1.000 n1 said x\n  2.000 n2" in text
    assert "replay  python -m simnet replay partition --seed 7\n" in text
    assert "never agreed" in text


def test_what_a_node_wrote_cannot_steer_the_terminal() -> None:
    shown = report.table(full()) + report.summary([full(), bare()])
    assert all(line.isprintable() for line in shown.splitlines())


def test_many_seeds_are_counted_by_invariant_with_their_distributions() -> None:
    outcomes = [full(seed, failed=seed % 4 == 0) for seed in range(10)] + [bare(99)]
    text = report.summary(outcomes)
    assert text.startswith("11 seeds: 7 passed, 4 failed\n")
    assert row(text, "agreement  ") == ["3", "0,", "4,", "8"]
    assert row(text, "worker  ") == ["1", "99"]
    # 4, 5, 6, 8, 9, 10 and 12 s
    assert row(text, "heal  ") == ["s", "7.71", "8", "12", "12", "12", "9"]
    assert row(text, "spread, average")[1] == "2.50"
    assert row(text, "spread, slowest")[1] == "12"
    assert "first failure: partition, seed 0: agreement" in text
    assert "processor: 85 s, 7.73 s a seed, at most 8.50 s" in text


def test_few_or_no_seeds_have_a_summary_too() -> None:
    assert report.summary([]) == "0 seeds: 0 passed, 0 failed\n"
    assert "died 3 times" in report.summary([bare()])
    assert report.table(bare()).startswith("seed 1: failed: worker\n")


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    outcomes = [full(), full(8, failed=False), bare()]
    report.write_json(path, outcomes)
    assert report.read_json(path) == outcomes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Expecting"),
        ("[]", "not a file of outcomes"),
        ("{}", "not a file of outcomes"),
        ('{"outcomes": [{"seed": 1}]}', "missing"),
        ('{"outcomes": [{"speed": 1}]}', "did you mean 'seed'"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_name(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "runs.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as refused:
        report.read_json(path)
    assert str(path) in str(refused.value)
    with pytest.raises(ValueError, match="No such file"):
        report.read_json(tmp_path / "none.json")


@given(st.floats(0, 1e12))
def test_a_number_keeps_about_three_digits(value: float) -> None:
    read = float(report.number(value).replace(",", ""))
    assert read == pytest.approx(value, rel=0.006)


class Terminal(io.StringIO):
    """A stream that says that it is one."""

    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_one_line_and_goes() -> None:
    stream, now = Terminal(), [0.0]
    with Progress(stream, "swarm", seeds=4, clock=lambda: now[0]) as progress:
        for seed in range(3):
            now[0] += 10.0
            progress.done(full(seed, failed=seed == 1))
    *_, said, cleared = stream.getvalue().split("\r")
    assert said == "swarm: 3 of 4 seeds, 1 failed (1), 10 s simulated a second, 10 s left\x1b[K"
    assert cleared == "\x1b[K"
    assert "\n" not in stream.getvalue()


def test_progress_elsewhere_is_a_line_now_and_then_and_at_once_for_a_failure() -> None:
    stream, now = io.StringIO(), [0.0]
    with Progress(stream, "swarm", seeds=None, clock=lambda: now[0]) as progress:
        for seed in range(12):
            now[0] += 1.0
            progress.done(full(seed, failed=seed == 1))
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "swarm: 2 seeds",
        "swarm: 7 seeds",
        "swarm: 12 seeds",
    ]


def test_progress_of_one_run_is_its_own_time() -> None:
    stream, now = io.StringIO(), [0.0]
    progress = Progress(stream, "city", each_s=100.0, clock=lambda: now[0])
    now[0] = 6.0
    progress.reached(25.0)
    assert stream.getvalue() == "city: 25 of 100 s, 4.17 s simulated a second, 18 s left\n"
