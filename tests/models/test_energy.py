"""Counters in a folder tree as the kernel lays them out, and what happens when they fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.energy import DECLARED_W, Meter


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def jetson(root: Path, *, total: bool) -> Path:
    hwmon = "class/hwmon/hwmon3"
    labels = {1: "VDD_IN" if total else "VDD_SOC", 2: "VDD_CPU_GPU_CV", 3: "NC"}
    files = {f"{hwmon}/name": "ina3221", f"{hwmon}/in7_label": "sum of shunt voltages"}
    files |= {"class/hwmon/hwmon0/name": "thermal"}
    for channel, label in labels.items():
        files |= {
            f"{hwmon}/in{channel}_label": label,
            f"{hwmon}/in{channel}_input": "5000",
            f"{hwmon}/curr{channel}_input": str(1000 * channel),
        }
    return write(root, files)


def rapl(root: Path, *microjoules: int) -> Path:
    files = {}
    for number, value in enumerate(microjoules):
        package = f"class/powercap/intel-rapl:{number}"
        files |= {
            f"{package}/name": f"package-{number}",
            f"{package}/energy_uj": str(value),
            f"{package}/max_energy_range_uj": "1000000000",
        }
    part = "class/powercap/intel-rapl:0:0"
    files |= {f"{part}/name": "core", f"{part}/energy_uj": "999"}
    files |= {"class/powercap/intel-rapl/enabled": "1"}
    return write(root, files)


def test_a_jetsons_input_rail_is_taken_alone(tmp_path: Path) -> None:
    meter = Meter("cuda", sysfs=jetson(tmp_path, total=True))
    assert meter.source == "ina"
    assert meter.advance(10.0, 0.0) == 0.0
    assert meter.watts == pytest.approx(5.0)  # 5 V x 1 A
    write(tmp_path, {"class/hwmon/hwmon3/curr1_input": "3000"})
    assert meter.advance(12.0, 0.0) == pytest.approx((5 + 15) / 2 * 2)
    assert meter.task_j(100.0) == pytest.approx(1.5)


def test_without_an_input_rail_the_connected_ones_are_added(tmp_path: Path) -> None:
    meter = Meter("cuda", sysfs=jetson(tmp_path, total=False))
    meter.advance(0.0, 0.0)
    assert (meter.source, meter.watts) == ("ina", pytest.approx(5.0 + 10.0))


def test_an_older_jetsons_rails_in_milliwatts(tmp_path: Path) -> None:
    device = "bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    rails = {f"{device}/rail_name_0": "POM_5V_IN", f"{device}/in_power0_input": "2500"}
    rails |= {f"{device}/rail_name_1": "POM_5V_GPU", f"{device}/in_power1_input": "700"}
    meter = Meter("cuda", sysfs=write(tmp_path, rails))
    meter.advance(0.0, 0.0)
    assert (meter.source, meter.watts) == ("ina", pytest.approx(2.5))


def test_packages_are_added_parts_are_not_and_counters_wrap(tmp_path: Path) -> None:
    meter = Meter("cpu", sysfs=rapl(tmp_path, 100, 999_000_000))
    assert meter.source == "rapl"
    assert meter.advance(5.0, 0.0) == 0.0
    rapl(tmp_path, 20_000_100, 9_000_000)  # the second one has wrapped
    assert meter.advance(7.0, 0.0) == pytest.approx(20.0 + 10.0)
    assert meter.watts == pytest.approx(15.0)


def test_readings_close_together_do_not_change_the_draw(tmp_path: Path) -> None:
    meter = Meter("cpu", sysfs=rapl(tmp_path, 0))
    meter.advance(0.0, 0.0)
    rapl(tmp_path, 10_000_000)
    meter.advance(1.0, 0.0)
    rapl(tmp_path, 10_900_000)
    assert meter.advance(1.001, 0.0) == pytest.approx(0.9)
    assert meter.watts == pytest.approx(10.0)


def test_without_counters_only_busy_time_counts_at_the_declared_watts(tmp_path: Path) -> None:
    meter = Meter("cuda", sysfs=tmp_path)
    assert meter.source == "declared"
    meter.advance(0.0, 0.0)
    assert meter.advance(10.0, 2.0) == pytest.approx(2 * DECLARED_W["cuda"])
    assert meter.advance(11.0, 50.0) == pytest.approx(DECLARED_W["cuda"])  # no more than the time
    assert meter.advance(5.0, 1.0) == 0.0  # a clock that went back
    assert Meter("an accelerator of tomorrow", sysfs=tmp_path).watts > 0


@pytest.mark.parametrize("spoilt", ["", "many", "-5", "nan", "inf"])
def test_a_counter_that_talks_nonsense_falls_to_the_declared_table(
    tmp_path: Path, spoilt: str
) -> None:
    meter = Meter("cpu", sysfs=rapl(tmp_path, 100))
    meter.advance(0.0, 0.0)
    write(tmp_path, {"class/powercap/intel-rapl:0/energy_uj": spoilt})
    assert meter.advance(2.0, 1.0) == pytest.approx(DECLARED_W["cpu"])
    assert (meter.source, meter.watts) == ("declared", DECLARED_W["cpu"])
    assert Meter("cpu", sysfs=tmp_path).source == "declared"


def test_a_jump_that_no_device_can_draw_is_not_believed(tmp_path: Path) -> None:
    meter = Meter("cpu", sysfs=rapl(tmp_path, 0))
    meter.advance(0.0, 0.0)
    rapl(tmp_path, 900_000_000)
    assert meter.advance(0.1, 0.1) == pytest.approx(0.1 * DECLARED_W["cpu"])
    assert meter.source == "declared"


def test_a_counter_that_may_not_be_read_or_vanishes(tmp_path: Path) -> None:
    meter = Meter("cpu", sysfs=rapl(tmp_path, 100))
    (tmp_path / "class/powercap/intel-rapl:0/energy_uj").unlink()
    assert meter.advance(0.0, 0.0) == 0.0
    assert (meter.source, Meter("cpu", sysfs=tmp_path).source) == ("declared", "declared")
