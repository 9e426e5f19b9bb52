"""Prepare a node's folder: `init DIR`.

Owns: making a new configuration, the fleet's secret, the API's token and the node's key.
Never: overwrites or changes a file that is there.
Invariant: the configuration is written last, so a folder that has one is complete.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_node.cli.outcome import FAILED, USAGE, CliError
from edge_node.cli.tables import print_json

if TYPE_CHECKING:
    from edge_node.fields import Address


def add_verbs(verbs: Any) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser(
        "init", help="make a node's configuration, key and secret; overwrites nothing"
    )
    parser.add_argument("dir", metavar="DIR", type=Path, help="folder for the node's files")
    parser.add_argument("--name", help="the node's name (default: the host name)")
    parser.add_argument("--bind", metavar="HOST:PORT", help="where it listens to its peers")
    parser.add_argument(
        "--seed",
        metavar="HOST:PORT",
        action="append",
        default=[],
        help="a node of the fleet to join; can be repeated",
    )
    parser.add_argument(
        "--secret-file",
        metavar="FILE",
        type=Path,
        help="the secret of the fleet to join, copied into DIR (default: make a new one)",
    )
    parser.add_argument("--api", metavar="HOST:PORT", help="where its API listens")
    parser.add_argument("--state-dir", metavar="DIR", type=Path, help="default: DIR/state")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(verb=init)


def init(parsed: argparse.Namespace) -> int:
    """Make what is missing, and say what to do next."""
    folder: Path = parsed.dir
    config_path = folder / "node.toml"
    if config_path.exists() or config_path.is_symlink():
        what = f"{config_path} is there already, and nothing was changed"
        raise CliError(f"{what}; choose another folder, or edit it")
    if parsed.seed and parsed.secret_file is None and not (folder / "fleet.secret").exists():
        what = "--seed joins a fleet, which takes its secret; copy fleet.secret from a node of it"
        raise CliError(f"{what} and give it with --secret-file", USAGE)
    given = _given(parsed)
    try:
        made = _make(parsed, given)
    except OSError as error:
        what = f"cannot write {error.filename or folder} ({error.strerror})"
        raise CliError(f"{what}; correct the path or its permissions") from None
    if parsed.json:
        print_json(made)
    else:
        _print_next(parsed, made)
    return 0


def _given(parsed: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Check the arguments and return them as the configuration's fields by section."""
    given: dict[str, dict[str, Any]] = {"node": {}, "fleet": {}, "api": {}}
    if parsed.name is not None:
        given["node"]["name"] = parsed.name
    if parsed.state_dir is not None:
        given["node"]["state_dir"] = str(parsed.state_dir.absolute())
    if parsed.bind is not None:
        given["fleet"]["bind"] = str(_address("--bind", parsed.bind))
    if parsed.seed:
        given["fleet"]["seeds"] = [str(_address("--seed", seed)) for seed in parsed.seed]
    if parsed.api is not None:
        given["api"]["bind"] = str(_address("--api", parsed.api))
        if not _address("--api", parsed.api).is_loopback:
            given["api"]["token_file"] = "api.token"
    return given


def _address(option: str, text: str) -> Address:
    from edge_node.fields import parse_address

    try:
        return parse_address(text)
    except ValueError as error:
        raise CliError(f"{option}: {error}", USAGE) from None


def _make(parsed: argparse.Namespace, given: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Write the files; returns their paths, the node's id, and which were there before."""
    from edge_node.config import Config, ConfigError, load
    from edge_node.fleet.identity import IdentityError, load_or_create_identity, load_secret

    folder: Path = parsed.dir
    secret = folder / "fleet.secret"
    content = _new_secret() if parsed.secret_file is None else _given_secret(parsed, secret)
    kept: list[str] = []
    folder.mkdir(parents=True, exist_ok=True)
    _place(secret, content, kept)
    if "token_file" in given["api"]:
        _place(folder / "api.token", _new_secret(), kept)
    config_path = folder / "node.toml"
    _write_new(config_path, Config.default_text(**given).encode(), 0o640)
    try:
        load_secret(secret)
        config = load(config_path, environ={})
        config.node.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        identity = load_or_create_identity(config.node.state_dir)
    except (ConfigError, IdentityError, OSError) as error:
        config_path.unlink()
        if isinstance(error, OSError):
            raise
        raise CliError(str(error), USAGE if isinstance(error, ConfigError) else FAILED) from None
    return {
        "config": str(config_path),
        "secret": str(secret),
        "state_dir": str(config.node.state_dir),
        "name": config.node.name,
        "node_id": identity.node_id.hex(),
        "bind": str(config.fleet.bind),
        "kept": kept,
    }


def _new_secret() -> bytes:
    import secrets  # here and not above: `--help` has no use for it

    return secrets.token_hex(32).encode() + b"\n"


def _given_secret(parsed: argparse.Namespace, target: Path) -> bytes:
    """Read the secret to copy; refuses what is none, and one that differs from the target's."""
    from edge_node.fleet.identity import IdentityError, load_secret

    source: Path = parsed.secret_file
    try:
        secret = load_secret(source)
        if target.exists() and load_secret(target) != secret:
            what = f"{target} is there already, with another secret than {source}"
            raise CliError(f"{what}; nothing was changed: remove the wrong one")
    except IdentityError as error:
        raise CliError(f"--secret-file: {error}", USAGE) from None
    return source.read_bytes()


def _place(target: Path, content: bytes, kept: list[str]) -> None:
    """Write a secret file, or note that one is there."""
    try:
        _write_new(target, content, 0o600)
    except FileExistsError:
        kept.append(str(target))


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a new file in one go; raises FileExistsError and changes nothing if it is there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _print_next(parsed: argparse.Namespace, made: dict[str, Any]) -> None:
    import shlex
    import socket

    config = shlex.quote(made["config"])
    secret = shlex.quote(made["secret"])
    host, _, port = made["bind"].rpartition(":")
    host = socket.gethostname() if host in ("0.0.0.0", "[::]") else host
    print(f"Node {made['name']} ({made['node_id']}) is ready in {parsed.dir}.")
    for path in made["kept"]:
        print(f"Kept {path}, which was there already.")
    print("\nNext:")
    print(f"  1. Add a camera: the end of {config} shows how.")
    print(f"  2. Examine this device:   edge-node doctor -c {config}")
    print(f"  3. Start the node:        edge-node run -c {config}")
    print("\nA second device joins with a copy of this fleet's secret:")
    print(f"  scp {secret} SECOND-DEVICE:fleet.secret")
    print(f"  edge-node init DIR --seed {host}:{port} --secret-file fleet.secret   (there)")
