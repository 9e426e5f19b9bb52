"""Hold one node's configuration: a TOML file, overridden by the environment.

Owns: every field of the product, its unit, range, default and meaning (declared once, in the
dataclasses below), what the fields must be together, and the texts generated from them.
Never: opens sockets or devices, or changes a file.
Invariant: a `Config` that exists is valid as a whole; anything else is a `ConfigError` that names
the file, line and field, and says what to do.
"""

# ruff: noqa: RUF009 - `setting` returns a dataclass field

from __future__ import annotations

import dataclasses
import os
import re
import socket
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edge_node import fields
from edge_node.cameras.address import public_address
from edge_node.fields import REQUIRED, Address, Setting, setting
from edge_node.toml_source import ConfigError, TomlSource

__all__ = [
    "AcceleratorConfig",
    "Address",
    "ApiConfig",
    "CameraConfig",
    "Config",
    "ConfigError",
    "FleetConfig",
    "ModelConfig",
    "NodeConfig",
    "OutputConfig",
    "PlacementConfig",
    "load",
    "needs_restart",
    "reference",
]

NETWORK_SCHEMES = ("rtsp", "rtsps", "http", "https")
SOURCE_SCHEMES = (*NETWORK_SCHEMES, "v4l2", "generated", "file")
MAX_SOURCE_BYTES = 400
"""The fleet hears of a camera in one small record."""


def _source(value: str, base: Path) -> str:
    source = _checked_source(value, base)
    if (size_bytes := len(source.encode())) > MAX_SOURCE_BYTES:
        raise ValueError(
            f"is {size_bytes} bytes long, at most {MAX_SOURCE_BYTES} fit; use a shorter path or URL"
        )
    return source


def _checked_source(value: str, base: Path) -> str:
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", value)
    if not value:
        raise ValueError('is empty; give a file, an rtsp:// URL or a device like "/dev/video0"')
    if scheme is None:
        return str(base / Path(value).expanduser())
    if scheme[1] not in SOURCE_SCHEMES:
        known = fields.suggest(scheme[1], SOURCE_SCHEMES)
        raise ValueError(f'"{scheme[1]}:" is not a kind of source; {known}')
    if scheme[1] in NETWORK_SCHEMES and not re.match(r"[a-z]+://[^/]", value):
        raise ValueError(f'names no host; write "{scheme[1]}://HOST/..."')
    if scheme[1] == "generated" and not re.fullmatch(r"generated:\d{1,9}", value):
        raise ValueError(f'"{value}" lacks its seed; write for example "generated:1"')
    return value


def _jsonl(value: str, base: Path) -> str:
    return value if value in ("", "-") else str(base / Path(value).expanduser())


def _folder(value: str, base: Path) -> str:
    return str(base / Path(value).expanduser()) if value else ""


def _mqtt(value: str, base: Path) -> str:
    try:
        url = urlsplit(value)
        valid = url.scheme == "mqtt" and bool(url.hostname) and url.port != 0
    except ValueError:
        valid = False
    if value and not valid:
        raise ValueError(
            f'"{public_address(value)}" is not an MQTT address; write "mqtt://HOST:1883/PREFIX", '
            "and in a user or password %40 for @, %2F for /, %3A for :"
        )
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """This node."""

    name: str = setting(
        fields.name(optional=True), "", "Name shown to people; empty means the host name."
    )
    state_dir: Path = setting(
        fields.path(), "state", "Folder for the node's key and journal; keep it across restarts."
    )
    zone: str = setting(
        fields.name(optional=True),
        "",
        "Where the node is, for people and for placement: a frame goes to a node of the same zone "
        "first.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetConfig:
    """The fleet that this node belongs to."""

    bind: Address = setting(
        fields.address(),
        "0.0.0.0:7946",
        "Where this node listens to its peers: UDP (gossip) and TCP (frames) on one number.",
    )
    advertise: Address | None = setting(
        fields.address(optional=True),
        "",
        "Address that peers use to reach this node; empty means `bind`, or, when that is a "
        "wildcard, this host's address on the route to the seeds.",
    )
    seeds: tuple[Address, ...] = setting(
        fields.addresses(),
        [],
        "Peers to join through; one that answers is enough. Empty: the fleet's first node.",
    )
    secret_file: Path = setting(
        fields.path(),
        "fleet.secret",
        "File of the fleet's secret, the same on every node; `edge-node init` makes one.",
    )
    keep_previous_key_s: float = setting(
        fields.number(0, 31_536_000, "s"),
        604_800.0,
        "How long after `edge-node keys rotate` the key before is still taken, for nodes that "
        "were away.",
        live=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiConfig:
    """The HTTP interface for people, programs and this command line."""

    bind: Address = setting(
        fields.address(), "127.0.0.1:8470", "Where the API listens; not loopback needs a token."
    )
    token_file: Path | None = setting(
        fields.path(optional=True),
        "",
        "File of the token that every API request must carry; empty means none.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementConfig:
    """Which node does which work."""

    policy: str = setting(
        fields.choice("affinity", "local", "blind", "round-robin"),
        "affinity",
        "Where frames run: where they are predicted to be answered in time, `local`: here only. "
        "The others are there to be measured against: the shortest queue of three, whatever the "
        "node can do; every node in turn.",
        live=True,
    )
    takeover: bool = setting(
        fields.flag(), True, "Take over the cameras of a node that died.", live=True
    )
    files: str = setting(
        fields.text("folder, relative to this file's folder", _folder),
        "",
        "Folder under which this node may open files of other nodes' cameras; empty: none.",
        live=True,
    )
    epoch_s: float = setting(
        fields.number(0.2, 60, "s"),
        2.0,
        "Period of the tier and host decisions; a claim must survive one period.",
        live=True,
    )
    tiers: bool = setting(
        fields.flag(),
        True,
        "Evaluate tiers; without, this node treats every camera as tier 2, for comparisons.",
        live=True,
    )
    thermal: Path | None = setting(
        fields.path(optional=True),
        "/sys/class/thermal",
        "Folder of the kernel's thermal zones: a node too hot gives its cameras away. Empty: "
        "never.",
        live=True,
    )
    hot_c: float = setting(
        fields.number(30, 130, "°C"),
        85.0,
        "Temperature at which a thermal zone is too hot that has no passive or hot trip point.",
        live=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The first model release; later ones come from `edge-node models set`."""

    name: str = setting(
        fields.name(), "person-detector", "Model to run when the fleet desires none yet."
    )
    variant: str = setting(fields.name(), "large", "Its variant.")
    adapt: str = setting(
        fields.choice("late", "price", "off"),
        "late",
        "When a frame may be answered at half the resolution, or by the variant `also`: where it "
        "would be late otherwise; `price`: also where others wait for it; or never.",
        live=True,
    )
    also: str = setting(
        fields.name(optional=True),
        "",
        "A variant that is loaded besides the fleet's, for such answers; empty: none.",
    )
    manifest: Path | None = setting(
        fields.path(optional=True), "", "Manifest of the models; empty means the packaged ones."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputConfig:
    """Where detections go, besides the API."""

    jsonl: str = setting(
        fields.text('path, relative to this file\'s folder, or `"-"` for stdout', _jsonl),
        "",
        "File that gets one JSON line per answer; empty means none.",
        live=True,
    )
    mqtt: str = setting(
        fields.text("`mqtt://[USER:PASSWORD@]HOST:PORT/PREFIX`", _mqtt),
        "",
        "MQTT broker and topic prefix for answers; empty means none.",
        live=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceleratorConfig:
    """One accelerator and its worker process; none given means one CPU."""

    name: str = setting(
        fields.name(optional=True), "", "Its name; empty means the provider, numbered if needed."
    )
    provider: str = setting(
        fields.choice("cpu", "cuda", "openvino"), "cpu", "ONNX Runtime execution provider."
    )
    device: str = setting(
        fields.text("string"),
        "",
        'Device of the provider: a CUDA number ("0") or OpenVINO\'s "CPU", "GPU" or "NPU"; '
        "empty means the provider's first.",
    )
    share: float = setting(
        fields.number(0.001, 1.0, "of one core"),
        1.0,
        "Part of the time that inference may use; the rest is left to other programs.",
    )
    queue: int = setting(
        fields.integer(1, 1024, "frames"), 32, "Length at which the queue refuses more work."
    )
    cache_mb: int = setting(
        fields.integer(0, 65_536, "MB"),
        256,
        "Memory for what is reused of its cameras' earlier frames; when it is short, the camera "
        "that gains least by its share goes without. 0: nothing is reused.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraConfig:
    """One camera and what is expected of its answers: an agent."""

    name: str = setting(fields.name(), REQUIRED, "Its name, unique in the fleet.", live=True)
    source: str = setting(
        fields.text("file, `rtsp://...`, `/dev/videoN` or `generated:SEED`", _source),
        REQUIRED,
        "Where frames come from; files are relative to this file's folder.",
        live=True,
    )
    fps: float = setting(
        fields.number(0.1, 120, "frames/s"), 10.0, "Frames sampled per second.", live=True
    )
    deadline_ms: int = setting(
        fields.integer(10, 60_000, "ms"), 200, "Time from capture to answer.", live=True
    )
    criticality: int = setting(
        fields.integer(1, 3), 2, "1 critical, 2 important, 3 best effort.", live=True
    )
    loop: bool = setting(
        fields.flag(), True, "Start a file again at its end; other sources ignore it.", live=True
    )
    noise_sigma: float = setting(
        fields.number(0, 40, "grey levels"),
        2.0,
        "Sensor noise added from a file's second pass on, so that no cache is flattered.",
        live=True,
    )
    takeover: bool = setting(
        fields.flag(),
        True,
        "Let a peer run this camera when this node dies, drains or is too hot.",
        live=True,
    )
    safety: bool = setting(
        fields.flag(), False, "People's safety depends on it: tier 1 whatever it sees.", live=True
    )


_TABLES: dict[str, type] = {
    "node": NodeConfig,
    "fleet": FleetConfig,
    "api": ApiConfig,
    "placement": PlacementConfig,
    "model": ModelConfig,
    "output": OutputConfig,
}
_ARRAYS: dict[str, type] = {"accelerator": AcceleratorConfig, "camera": CameraConfig}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Hold a whole valid configuration; accelerators is never empty and its names are unique."""

    node: NodeConfig
    fleet: FleetConfig
    api: ApiConfig
    placement: PlacementConfig
    model: ModelConfig
    output: OutputConfig
    accelerators: tuple[AcceleratorConfig, ...]
    cameras: tuple[CameraConfig, ...]
    path: Path

    @staticmethod
    def default_text(**given: Mapping[str, Any]) -> str:
        """Write a commented file: every field with its default, those `given` by section set.

        Example: `Config.default_text(node={"name": "porch"}, fleet={"seeds": ["10.0.0.2:7946"]})`.
        """
        lines = ["# edge-node. A line that begins with # is a comment; defaults are shown so."]
        for title, section in _TABLES.items():
            lines += ["", f"# {section.__doc__}", f"[{title}]"]
            for field in fields.settings_of(section).values():
                lines += _field_lines(field, given.get(title, {}))
        for title, section in _ARRAYS.items():
            lines += ["", f"# {section.__doc__}", f"# [[{title}]]"]
            for field in fields.settings_of(section).values():
                lines += _field_lines(field, {})
        return "\n".join(lines) + "\n"


def _field_lines(field: Setting, given: Mapping[str, Any]) -> list[str]:
    kind = field.kind.describe.replace("`", "")
    example = {"name": "front-door", "source": "rtsp://192.168.1.20/stream"}
    value = given.get(field.key, field.default)
    value = example[field.key] if value is REQUIRED else value
    mark = "" if field.key in given else "# "
    doc = field.doc.replace("`", "")
    about = textwrap.wrap(f"{doc} ({kind})", 96, initial_indent="#   ", subsequent_indent="#   ")
    return [*about, f"{mark}{field.key} = {fields.toml_text(value)}"]


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Read the file and the environment's overrides, and check them as a whole.

    Raises ConfigError naming every problem found, one a line.
    """
    path = Path(path)
    source = TomlSource(path, _TABLES, _ARRAYS)
    source.override(environ)
    tables = {title: source.section(title) for title in _TABLES}
    arrays = {title: source.array(title) for title in _ARRAYS}
    source.raise_problems()
    node = NodeConfig(**tables["node"])
    config = Config(
        node=dataclasses.replace(node, name=node.name or _host_name()),
        fleet=FleetConfig(**tables["fleet"]),
        api=ApiConfig(**tables["api"]),
        placement=PlacementConfig(**tables["placement"]),
        model=ModelConfig(**tables["model"]),
        output=OutputConfig(**tables["output"]),
        accelerators=_named([AcceleratorConfig(**one) for one in arrays["accelerator"]]),
        cameras=tuple(CameraConfig(**one) for one in arrays["camera"]),
        path=path,
    )
    _check_together(source, config)
    source.raise_problems()
    return config


def _check_together(source: TomlSource, config: Config) -> None:
    fleet, api = config.fleet, config.api
    if _is_missing(fleet.secret_file):
        what = f"there is no {fleet.secret_file}; copy the fleet's secret there, or make one: "
        make = f"(umask 077; openssl rand -hex 32 > '{fleet.secret_file}')"
        source.blame(("fleet", "secret_file"), what + make)
    if api.token_file is not None and _is_missing(api.token_file):
        what = f"there is no {api.token_file}; make one: "
        make = f"(umask 077; openssl rand -hex 32 > '{api.token_file}')"
        source.blame(("api", "token_file"), what + make)
    if not api.bind.is_loopback and api.token_file is None:
        what = f"{api.bind} can be reached by other machines; set token_file, or bind 127.0.0.1"
        source.blame(("api", "bind"), what)
    if api.bind.port == fleet.bind.port and _overlap(api.bind, fleet.bind):
        what = f"port {api.bind.port} is already [fleet] bind's; choose another"
        source.blame(("api", "bind"), what)
    for key, one in [("advertise", fleet.advertise), *(("seeds", s) for s in fleet.seeds)]:
        if one is not None and one.is_wildcard:
            what = f"{one} is no host that can be reached; give its real address"
            source.blame(("fleet", key), what)
    if config.model.manifest is not None and _is_missing(config.model.manifest):
        what = f"there is no {config.model.manifest}; correct the path, or leave it empty"
        source.blame(("model", "manifest"), what)
    _check_unique(source, "camera", [camera.name for camera in config.cameras])
    _check_unique(source, "accelerator", [one.name for one in config.accelerators])


def _check_unique(source: TomlSource, title: str, names: list[str]) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            what = f'"{name}" is the name of another {title}; choose a different one'
            source.blame((title, index, "name"), what)


def _is_missing(path: Path) -> bool:
    """Tell whether the file is not there; one that may not be looked at counts as there."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _overlap(one: Address, other: Address) -> bool:
    return one.host == other.host or one.is_wildcard or other.is_wildcard


def _host_name() -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname()).lstrip("._-")[:64] or "node"


def _named(given: list[AcceleratorConfig]) -> tuple[AcceleratorConfig, ...]:
    """Give the nameless accelerators a name each: provider, then provider-2, ..."""
    taken = {one.name for one in given}
    named = []
    for one in given or [AcceleratorConfig()]:
        candidates = (f"{one.provider}-{i}" if i > 1 else one.provider for i in range(1, 10**6))
        name = one.name or next(name for name in candidates if name not in taken)
        taken.add(name)
        named.append(dataclasses.replace(one, name=name))
    return tuple(named)


def needs_restart(old: Config, new: Config) -> list[str]:
    """List the changed fields that a reload cannot apply, as `[section] field`."""
    changed = [
        f"[{title}] {key}"
        for title, section in _TABLES.items()
        for key, field in fields.settings_of(section).items()
        if not field.live and getattr(getattr(old, title), key) != getattr(getattr(new, title), key)
    ]
    return changed + ["[[accelerator]]"] * (old.accelerators != new.accelerators)


def reference() -> str:
    """Write the table of every field, in Markdown, for the operations manual."""
    lines: list[str] = []
    for title, section in {**_TABLES, **_ARRAYS}.items():
        head = f"[[{title}]]" if title in _ARRAYS else f"[{title}]"
        lines += [f"#### `{head}`: {section.__doc__}", ""]
        lines += ["| field | value | default | changes | meaning |", "|---|---|---|---|---|"]
        for key, field in fields.settings_of(section).items():
            default = (
                "required" if field.default is REQUIRED else f"`{fields.toml_text(field.default)}`"
            )
            changes = "on reload" if field.live else "on restart"
            lines.append(
                f"| `{key}` | {field.kind.describe} | {default} | {changes} | {field.doc} |"
            )
        lines.append("")
    return "\n".join(lines)
