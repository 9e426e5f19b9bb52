"""What the benchmark makes of lines, and of measurements."""

import math

import pytest

from tests.bench.gossip import figures, options, table
from tests.bench.peers.fleet import Row
from tests.bench.peers.lines import Ledger, quantile


def told(*lines: str, agents: int = 3) -> Ledger:
    ledger = Ledger()
    for number in range(agents):
        ledger.name(number, f"n{number}")
    for line in lines:
        speaker, _, rest = line.partition(" ")
        ledger.take(int(speaker), rest)
    return ledger


def test_a_value_is_late_by_what_its_last_reader_says() -> None:
    ledger = told("0 S 7 1000000", "1 U n0 7 3000000", "2 U n0 7 9000000", "1 U n0 7 99000000")
    assert ledger.delays_ms("7", [1, 2]) == [2.0, 8.0]


def test_who_has_not_read_a_value_is_missing_and_not_late() -> None:
    ledger = told("0 S 7 1000000", "1 U n0 7 3000000")
    assert ledger.delays_ms("7", [1, 2]) == [2.0]
    assert ledger.delays_ms("8", [1, 2]) == []


def test_what_the_sender_says_of_its_own_value_is_not_counted() -> None:
    ledger = told("0 S 7 1000000", "0 U n0 7 1500000", "1 U n0 7 3000000")
    assert ledger.delays_ms("7", [1, 2]) == [2.0]


def test_a_death_is_noticed_after_the_kill_only() -> None:
    ledger = told("0 D n2 1000000000", "1 D n2 6000000000")
    assert ledger.noticed_s(2, 5_000_000_000, [0, 1]) == [1.0]


def test_an_alias_names_the_agent_that_claimed_it() -> None:
    ledger = told("2 I cafe 1", "0 D cafe 6000000000", "0 J cafe 8000000000")
    assert ledger.noticed_s(2, 5_000_000_000, [0, 1]) == [1.0]
    assert ledger.knows(0, 2, 7_000_000_000)
    assert not ledger.knows(0, 2, 9_000_000_000)


def test_only_deaths_of_the_living_told_by_the_living_are_false() -> None:
    ledger = told("0 D n1 1")
    assert ledger.false_downs == 1
    ledger.excused.add(2)
    ledger.take(0, "D n2 2")  # it was killed
    ledger.take(2, "D n0 3")  # it was cut off from all
    assert ledger.false_downs == 1


@pytest.mark.parametrize(
    "line", ["", "U", "U n0 7", "D n9 5", "S 7 soon", "C many 5", "STATS { 5", "X 5", "R R 5"]
)
def test_a_line_that_is_none_is_counted_and_changes_nothing(line: str) -> None:
    ledger = told()
    ledger.take(1, line)
    assert ledger.strange == 1
    ledger.strange = 0
    assert vars(ledger) == vars(told())


def test_counters_come_as_json() -> None:
    assert told('1 STATS {"batches_new":4} 5').stats == {1: {"batches_new": 4}}


@pytest.mark.parametrize(("part", "value"), [(0.5, 50), (0.99, 99), (1, 100), (0.001, 1)])
def test_a_quantile_is_one_of_the_values(part: float, value: float) -> None:
    assert quantile([float(number) for number in range(100, 0, -1)], part) == value


def test_a_quantile_of_nothing_is_no_number() -> None:
    assert math.isnan(quantile([], 0.5))


def row(agent: str, n: int = 30, loss: int = 0, **values: object) -> Row:
    default = {"to_all_ms": [10.0, 20.0], "idle_packets": 2.0, "idle_bytes": 200.0, "cpu_s": 0.1}
    made = Row(agent, n, loss, formed_s=5.0)
    for name, value in {**default, **values}.items():
        assert hasattr(made, name)
        setattr(made, name, value)
    return made


def values(rows: list[Row]) -> dict[str, float]:
    return {one.figure: one.value for one in figures(rows)}


def test_ratios_compare_the_same_row() -> None:
    rows = [row("ours"), row("kinship", to_all_ms=[40.0]), row("kinship", n=10, to_all_ms=[1.0])]
    made = values(rows)
    assert made["n30.to_all_p50.vs_kinship"] == 0.25
    assert made["n30.to_all_p99.vs_kinship"] == 0.5
    assert not any(name.startswith("n10.to_all_p50.vs") for name in made)


def test_targets_are_those_of_the_quiet_or_the_lossy_network() -> None:
    rows = [row(agent, loss=loss) for loss in (0, 20) for agent in ("ours", "kinship")]
    targets = {one.figure: one.target for one in figures(rows)}
    assert targets["n30.to_all_p99.vs_kinship"] == 0.25
    assert targets["n30.loss20.to_all_p99.vs_kinship"] == 0.5
    assert targets["n30.loss20.idle_bytes.vs_quiet"] == 2
    assert targets["n30.loss20.ours.missed"] == 0


def test_traffic_is_compared_between_ten_and_sixty_nodes_both_ways() -> None:
    made = values([row("ours", n=10), row("ours", n=60, idle_bytes=100.0)])
    assert made["idle_bytes.n60_to_n10"] == 2
    assert made["idle_packets.n60_to_n10"] == 1


def test_what_could_not_be_measured_is_left_out() -> None:
    made = values([row("ours", idle_packets=0.0), row("kinship", idle_packets=0.0, idle_bytes=0.0)])
    assert "n30.ours.sigkill_p50_s" not in made
    assert "n30.idle_bytes.vs_kinship" not in made
    assert not any(math.isnan(value) for value in made.values())


def test_a_fleet_that_never_formed_fails_and_is_compared_with_none() -> None:
    made = figures([row("ours", formed_s=0.0), row("kinship")])
    assert [(one.figure, one.value, one.target) for one in made if "ours" in one.figure] == [
        ("n30.ours.formed", 0, 1)
    ]
    assert not any(".vs_" in one.figure for one in made)


def test_the_table_has_a_line_for_each_agent() -> None:
    lines = table([row("ours"), row("memberlist")]).splitlines()
    assert [line.split()[0] for line in lines] == ["agent", "ours", "memberlist"]


def test_options_that_make_no_sense_are_refused() -> None:
    assert options(["--quick", "--updates", "7"]).updates == 7
    assert options(["--quick"]).n == [10, 30]
    for wrong in (["--agents", "serf"], ["--n", "2"], ["--updates", "0"]):
        with pytest.raises(SystemExit):
            options(wrong)
