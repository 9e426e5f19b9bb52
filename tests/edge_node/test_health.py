"""Whether a node should keep its agents: a tree of files stands for sysfs' thermal zones."""

from pathlib import Path

import pytest

from edge_node.fleet.health import COOL_BELOW_C, COOL_EPOCHS, HOT_EPOCHS, Health, Zone, read_zones

HOT_C = 85.0


def zone(root: Path, number: int, temperature_c: float, **trips_c: float) -> Path:
    folder = root / f"thermal_zone{number}"
    folder.mkdir(parents=True)
    (folder / "type").write_text(f"soc{number}\n")
    (folder / "temp").write_text(f"{round(temperature_c * 1e3)}\n")
    for index, (kind, limit_c) in enumerate(trips_c.items()):
        (folder / f"trip_point_{index}_type").write_text(f"{kind}\n")
        (folder / f"trip_point_{index}_temp").write_text(f"{round(limit_c * 1e3)}\n")
    return folder


def feel(health: Health, temperature_c: float, epochs: int = 1) -> list[bool]:
    return [health.felt([Zone("soc", temperature_c, None)], HOT_C) for _ in range(epochs)]


def test_the_zones_are_read_with_the_limit_at_which_the_kernel_throttles(tmp_path: Path) -> None:
    zone(tmp_path, 0, 61.5, critical=110.0, passive=95.0, hot=90.0, active=50.0)
    zone(tmp_path, 1, 40.0)
    zone(tmp_path, 2, 40.0, passive=-274.0, hot=0.0)  # what firmware writes for "none"
    zone(tmp_path, 3, 1_000.0)  # a sensor that is not there
    (zone(tmp_path, 4, 40.0) / "temp").write_text("")
    (zone(tmp_path, 5, 40.0) / "temp").unlink()
    (tmp_path / "cooling_device0").mkdir()
    assert read_zones(tmp_path) == [
        Zone("soc0", 61.5, 90.0),
        Zone("soc1", 40.0, None),
        Zone("soc2", 40.0, None),
    ]


def test_a_node_without_sensors_is_never_hot(tmp_path: Path) -> None:
    health = Health()
    for root in (None, tmp_path / "none", tmp_path):
        assert read_zones(root) == []
        assert not any(health.felt([], HOT_C) for _ in range(2 * HOT_EPOCHS))
    assert not health.leaving


def test_hot_is_for_three_epochs_and_cool_for_ten_five_degrees_below() -> None:
    health = Health()
    assert feel(health, 90.0, HOT_EPOCHS) == [False] * (HOT_EPOCHS - 1) + [True]
    assert health.leaving
    assert health.temperature == "too hot (soc at 90 of 85 °C)"
    assert not any(feel(health, HOT_C - COOL_BELOW_C + 0.1, 5 * COOL_EPOCHS))
    assert not any(feel(health, 70.0, COOL_EPOCHS - 1))
    assert feel(health, 84.0) == [False]
    assert feel(health, 70.0, COOL_EPOCHS) == [False] * (COOL_EPOCHS - 1) + [True]
    assert not health.leaving


def test_a_moment_s_heat_changes_nothing() -> None:
    health = Health()
    for _ in range(5):
        feel(health, 99.0, HOT_EPOCHS - 1)
        feel(health, 84.0)
    assert not health.hot


def test_the_worst_zone_counts_against_its_own_limit() -> None:
    health = Health()
    zones = [Zone("cpu", 84.0, None), Zone("gpu", 71.0, 70.0), Zone("nvme", 60.0, 95.0)]
    assert [health.felt(zones, HOT_C) for _ in range(HOT_EPOCHS)][-1]
    assert health.temperature == "too hot (gpu at 71 of 70 °C)"


def test_sensors_that_vanish_count_as_cool() -> None:
    health = Health()
    feel(health, 90.0, HOT_EPOCHS)
    assert [health.felt([], HOT_C) for _ in range(COOL_EPOCHS)][-1]
    assert not health.hot


@pytest.mark.parametrize(
    ("record", "draining"),
    [(None, False), ({}, False), ({"draining": True}, True), ({"draining": 1}, False)],
)
def test_a_drain_is_taken_up_again_from_the_node_s_own_record(
    record: object, draining: bool
) -> None:
    health = Health()
    health.restore(record)
    assert health.draining is health.leaving is draining
