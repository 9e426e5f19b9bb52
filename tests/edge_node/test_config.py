"""The configuration: what is accepted, and that every error can be acted upon."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.codec import encode_value
from edge_node import config as configuration
from edge_node.cameras.spec import AgentSpec
from edge_node.config import Address, Config, ConfigError, load, needs_restart
from edge_node.fields import parse_address
from edge_node.toml_source import locate

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "fleet.secret").write_text("00" * 32)
    return tmp_path


def read(folder: Path, text: str, **environ: str) -> Config:
    (folder / "node.toml").write_text(text)
    return load(folder / "node.toml", environ)


def refusals(folder: Path, text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(folder, text, **environ)
    return [line.removeprefix(f"{folder}/") for line in str(caught.value).splitlines()]


def test_an_empty_file_is_a_whole_configuration(folder: Path) -> None:
    config = read(folder, "")
    assert config.fleet.bind == Address("0.0.0.0", 7946) == ("0.0.0.0", 7946)
    assert config.fleet.advertise is None
    assert config.fleet.secret_file == folder / "fleet.secret"
    assert config.api.bind.is_loopback
    assert config.api.token_file is None
    assert config.node.name
    assert config.node.state_dir == folder / "state"
    assert [one.name for one in config.accelerators] == ["cpu"]
    assert config.cameras == ()


def test_what_is_given_is_what_is_had(folder: Path) -> None:
    config = read(
        folder,
        """
        node = {name = "porch"}
        [fleet]
        seeds = ["10.0.0.2:7946",
                 "[fd00::1]:7946"]
        [[accelerator]]
        [[accelerator]]
        share = 0.5
        cache_mb = 48
        [[accelerator]]
        provider = "openvino"
        device = "NPU"
        name = "npu"
        [[camera]]
        name = "gate"
        source = "clips/gate.mp4"
        fps = 5
        [[camera]]
        name = "door"
        source = "rtsp://user:word@10.0.0.9/1"
        """,
    )
    assert config.node.name == "porch"
    assert config.fleet.seeds == (Address("10.0.0.2", 7946), Address("fd00::1", 7946))
    assert str(config.fleet.seeds[1]) == "[fd00::1]:7946"
    assert [one.name for one in config.accelerators] == ["cpu", "cpu-2", "npu"]
    assert config.accelerators[1].share == 0.5
    assert [one.cache_mb for one in config.accelerators] == [256, 48, 256]
    assert config.cameras[0].source == str(folder / "clips/gate.mp4")
    assert isinstance(config.cameras[0].fps, float)
    assert config.cameras[1].source == "rtsp://user:word@10.0.0.9/1"


CAMERA = '[[camera]]\nname = "a"\nsource = "a.mp4"\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n[fleeet]", "node.toml:2: [fleeet]: is not a section; did you mean fleet?"),
        ('name = "x"', "node.toml:1: [name]: is not a section"),
        ("[fleet]\n\nbnd = 1", "node.toml:3: [fleet] bnd: unknown field; did you mean bind?"),
        ("fleet = 3", "node.toml:1: [fleet]: must be a section; write [fleet]"),
        ("\n[camera]\nname = 'a'", "node.toml:2: [[camera]]: can be given several times; write"),
        (CAMERA + "fps = '9'", "node.toml:4: [[camera]] fps: expected a number, got a string"),
        (CAMERA + "fps = true", "node.toml:4: [[camera]] fps: expected a number, got a boolean"),
        (CAMERA + "fps = nan", "[[camera]] fps: nan is out of range; use 0.1 to 120 frames/s"),
        (CAMERA + "criticality = 4", "[[camera]] criticality: 4 is out of range; use 1 to 3"),
        (CAMERA + "deadline_ms = 1.5", "expected an integer, got a number; correct it"),
        (CAMERA + "noise_sigma = 41", "node.toml:4: [[camera]] noise_sigma: 41 is out of range"),
        ("[[camera]]\nname='b'\nsource='http://h/" + "x" * 392 + "'", "node.toml:3: [[camera]] s"),
        ("[[camera]]\nname='b'\nsource='rtsp:cam'", 'names no host; write "rtsp://HOST/..."'),
        (CAMERA + "loop = 1", "[[camera]] loop: expected a boolean, got an integer"),
        (CAMERA + CAMERA, 'node.toml:5: [[camera]] name: "a" is the name of another camera'),
        ("[[camera]]\nname = 'a'", "node.toml:1: [[camera]] source: is missing; give the camera"),
        (CAMERA + "[[camera]]\nname='b'\nsource='rtps://x'", 'node.toml:6: [[camera]] source: "rt'),
        ("[[camera]]\nname='b'\nsource='generated:'", 'write for example "generated:1"'),
        ("[[camera]]\nname = 'a/b'\nsource = 'x'", '[[camera]] name: "a/b" is not a name; use'),
        ("[[accelerator]]\ncache_mb = -8", "cache_mb: -8 is out of range; use 0 to 65536 MB"),
        ("[[accelerator]]\nprovider = 'cdua'", '"cdua" is not known; did you mean cuda?'),
        ("[fleet]\nbind = 7946", "[fleet] bind: expected a string, got an integer; put it in"),
        ("[fleet]\nbind = '10.0.0.1'", '"10.0.0.1" is not HOST:PORT; write'),
        ("[fleet]\nbind = '10.0.0.256:1'", '"10.0.0.256" is neither a host name nor an IP'),
        ("[fleet]\nbind = '::1:80'", "put the IPv6 address in brackets"),
        ("[fleet]\nseeds = [\n'a:1',\n'b:0']", 'node.toml:2: [fleet] seeds: "0" is not a port'),
        ("[fleet]\nseeds = 'a:1'", "[fleet] seeds: expected a list of strings, got a string"),
        ("[fleet]\nadvertise = '0.0.0.0:1'", "is no host that can be reached; give its real"),
        ("[fleet]\nsecret_file = 'no'", "/no; copy the fleet's secret there, or make one: (umask"),
        ("[api]\nbind = '0.0.0.0:80'", "node.toml:2: [api] bind: 0.0.0.0:80 can be reached by"),
        ("[api]\ntoken_file = 'no'", "node.toml:2: [api] token_file: there is no "),
        ("[api]\nbind = '127.0.0.1:7946'", "port 7946 is already [fleet] bind's; choose another"),
        ("[output]\nmqtt = 'tcp://x'", 'write "mqtt://HOST:1883/PREFIX"'),
        ("[model]\nmanifest = 'no.json'", "[model] manifest: there is no "),
        ("[node]\nname = 'a'\nname = 'b'", "node.toml:3: is not valid TOML: "),
        ("[node]\nname = 'a", "node.toml:2: is not valid TOML: "),
        ("\n\na = " + "[" * 5000, "is not valid TOML: "),
        ("a = " + "1" * 5000, "is not valid TOML: "),
    ],
)
def test_a_mistake_is_named_with_its_line_and_its_cure(
    folder: Path, text: str, expected: str
) -> None:
    (only,) = refusals(folder, text)
    assert expected in only
    assert re.match(r"node\.toml:\d+: ", only)
    assert "; " in only


def test_every_camera_that_is_accepted_can_be_opened_and_published(folder: Path) -> None:
    longest = "http://h/" + "é" * 195 + "x"
    assert len(longest.encode()) == 400
    text = f'[[camera]]\nname = "{"n" * 64}"\nsource = "{longest}"\nnoise_sigma = 40\n'
    (camera,) = read(folder, text + "fps = 0.1\ndeadline_ms = 60000").cameras
    spec = AgentSpec(
        name=camera.name,
        home=bytes(16),
        source=camera.source,
        fps=camera.fps,
        model="m" * 64,
        deadline_ms=camera.deadline_ms,
        tier=camera.criticality,
        loop=camera.loop,
        noise_sigma=camera.noise_sigma,
        takeover=camera.takeover,
        since_ms=1 << 45,
    )
    assert AgentSpec.from_record(spec.name, spec.home, spec.record()).camera().noise_sigma == 40
    assert len(encode_value(spec.record())) + len(f"agent/{spec.name}") <= 690
    message = refusals(folder, text.replace('x"', 'xx"'))[0]
    assert "is 401 bytes long, at most 400 fit" in message


def test_a_wrong_broker_address_does_not_tell_its_password(folder: Path) -> None:
    (only,) = refusals(folder, "[output]\nmqtt = 'mqtt://me:se/cret@h:1/x'")
    assert "mqtt://***@h:1/x" in only
    assert "%2F" in only
    assert "cret" not in only


def test_all_mistakes_are_named_at_once(folder: Path) -> None:
    found = refusals(folder, "[node]\nnam = 'a'\n[placement]\npolicy = 'yes'\nepoch_s = 0")
    assert [line.split(":")[1] for line in found] == ["2", "4", "5"]


@pytest.mark.parametrize("content", [None, b"\xff\xfe", "folder"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "node.toml"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: .*; "):
        load(path, {})


def test_the_environment_overrides_the_file(folder: Path) -> None:
    config = read(
        folder,
        "[fleet]\nbind = '127.0.0.1:1'",
        EDGE_NODE__FLEET__BIND="127.0.0.1:2",
        EDGE_NODE__FLEET__SEEDS="a:1, b:2",
        EDGE_NODE__PLACEMENT__POLICY="local",
        EDGE_NODE__PLACEMENT__EPOCH_S="3",
        EDGE_NODE_API="not ours to read",
    )
    assert config.fleet.bind.port == 2
    assert config.fleet.seeds == (("a", 1), ("b", 2))
    assert (config.placement.policy, config.placement.epoch_s) == ("local", 3.0)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("EDGE_NODE__FLEET__BIND", "x", '[fleet] bind: "x" is not HOST:PORT; '),
        ("EDGE_NODE__FLEET__BNID", "x", "[fleet] bnid: unknown field; did you mean bind?"),
        ("EDGE_NODE__CAMERA__FPS", "1", "set in the file alone; "),
        ("EDGE_NODE__PLACEMENT__TIERS", "maybe", "expected true or false, "),
        ("EDGE_NODE__PLACEMENT__EPOCH_S", "soon", 'expected a number, got "soon"; correct it'),
    ],
)
def test_a_wrong_variable_is_named(folder: Path, variable: str, value: str, expected: str) -> None:
    (only,) = refusals(folder, "", **{variable: value})
    assert only.startswith(f"environment {variable}: ")
    assert expected in only


def test_a_reload_says_what_waits_for_a_restart(folder: Path) -> None:
    old = read(folder, "[fleet]\nbind = '127.0.0.1:1'\n[placement]\npolicy = 'affinity'\n" + CAMERA)
    new = read(folder, "[fleet]\nbind = '127.0.0.1:2'\n[placement]\npolicy = 'local'\n")
    assert needs_restart(old, old) == []
    assert needs_restart(old, new) == ["[fleet] bind"]
    accelerator = read(folder, "[fleet]\nbind = '127.0.0.1:1'\n[[accelerator]]\nshare = 0.5")
    assert needs_restart(old, accelerator) == ["[[accelerator]]"]


def test_the_default_text_is_the_default_and_shows_every_field(folder: Path) -> None:
    assert dataclasses.replace(read(folder, Config.default_text()), path=Path()) == (
        dataclasses.replace(read(folder, ""), path=Path())
    )
    text = Config.default_text(node={"name": "a"}, fleet={"seeds": ["b:1"]})
    config = read(folder, text)
    assert (config.node.name, config.fleet.seeds) == ("a", (("b", 1),))
    uncommented = re.sub(r"(?m)^# (?=\w+ = |\[\[)", "", text)
    assert read(folder, uncommented).cameras[0].name == "front-door"
    for section in (*configuration._TABLES.values(), *configuration._ARRAYS.values()):
        for field in dataclasses.fields(section):
            assert re.search(rf"(?m)^(# )?{field.name} = ", text), field.name


def test_the_manual_holds_the_reference_as_it_is() -> None:
    manual = OPERATIONS.read_text(encoding="utf-8")
    match = re.search(r"(?s)<!-- fields: .*? -->\n(.*?)\n<!-- /fields -->", manual)
    assert match is not None
    assert match[1].strip() == configuration.reference().strip()


def test_lines_are_found_behind_anything() -> None:
    text = '# c\n\n[a]\nx = """\n[b]\ny = 1\n"""\n"q.r" = [\n  1, # [z]\n]\n'
    text += "[[c]]\nk.l = 1\r\n[[c]]\nm=1"
    places = locate(text)
    assert places[("a",)] == 3
    assert places[("a", "x")] == 4
    assert places[("a", "q.r")] == 8
    assert places[("c", 0, "k", "l")] == 12
    assert places[("c", 1)] == 13
    assert places[("c", 1, "m")] == 14
    assert ("b",) not in places


PIECES = [
    "[node]",
    "[fleet]",
    "[[camera]]",
    "[camera]",
    "name",
    "bind",
    "fps",
    "=",
    "\n",
    '"',
    "'''",
]
PIECES += ["[", "]", "{", "}", ",", ".", "1", "true", "nan", "a:1", "\x00", "\r", "é", "#", " "]


@given(st.lists(st.sampled_from(PIECES), max_size=24).map("".join) | st.text(max_size=60))
def test_any_text_is_a_configuration_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "fleet.secret").write_text("00" * 32)
    (folder / "fuzz.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load(folder / "fuzz.toml", {})
    except ConfigError as error:
        refusal = str(error)
    else:
        return
    assert refusal.startswith(str(folder))


@given(st.text(max_size=30))
def test_an_address_survives_its_text(text: str) -> None:
    try:
        address = parse_address(text)
    except ValueError:
        return
    assert parse_address(str(address)) == address
