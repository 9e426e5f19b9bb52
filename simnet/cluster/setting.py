"""What all processes of a cluster know from the beginning, and the files that a daemon starts from.

Owns the folder's layout, the configuration files and the choice of ports. Never starts anything.
Invariant: the daemon gets nothing but a configuration file that a user could have written.
"""

import json
import random
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from simnet import scenario as scenarios
from simnet.faults import Step, names_of, seeds_of
from simnet.link import Name
from simnet.scenario import Scenario

API_HOST = "127.0.0.1"
LOWEST_PORT, HIGHEST_PORT = 20_000, 32_000
"""Below the range that the kernel hands out, so that no port is gone when its node comes back."""


@dataclass(frozen=True)
class Setting:
    """One run."""

    scenario: Scenario
    seed: int
    folder: Path
    temporary: bool
    """Whether nobody wants the folder when the run is over."""
    reports: str
    """Name of the controller's socket, in the abstract namespace."""
    ports: tuple[tuple[int, int], ...]
    """Of every node: gossip's (and the peers' HTTP), and the API's."""

    @cached_property
    def names(self) -> tuple[Name, ...]:
        """The nodes."""
        return names_of(self.scenario.nodes)

    @cached_property
    def plan(self) -> list[Step]:
        """What happens when; the same in every process."""
        return self.scenario.plan(self.seed)

    @cached_property
    def name_at(self) -> Mapping[int, Name]:
        """Who listens at a port."""
        return {own[0]: name for name, own in zip(self.names, self.ports, strict=True)}

    def folder_of(self, name: Name) -> Path:
        """Return a node's folder."""
        return self.folder / name

    def config_of(self, name: Name) -> Path:
        """Return a node's configuration file."""
        return self.folder / name / "node.toml"

    def state_of(self, name: Name) -> Path:
        """Return what a node keeps over a crash."""
        return self.folder / name / "state"

    def log_of(self, name: Name) -> Path:
        """Return what a node's daemon wrote to standard output and error."""
        return self.folder / name / "log"

    def write_files(self) -> None:
        """Make every node's folder and configuration, and the fleet's secret."""
        secret = self.folder / "fleet.secret"
        secret.touch(0o600)
        secret.write_text(secrets.token_hex(32) + "\n")
        for index, name in enumerate(self.names):
            self.folder_of(name).mkdir()
            self.config_of(name).write_text(self._config_text(index, name))

    def _config_text(self, index: int, name: Name) -> str:
        gossip, api = self.ports[index]
        port_of = {one: port for port, one in self.name_at.items()}
        seeds = [f"{host_of(one)}:{port_of[one]}" for one in seeds_of(name, len(self.names))]
        lines = [
            "[node]",
            f'name = "{name}"',
            'state_dir = "state"',
            f'zone = "zone-{index % self.scenario.zones}"',
            "[fleet]",
            f'bind = "{host_of(name)}:{gossip}"',
            f"seeds = {json.dumps(seeds)}",
            'secret_file = "../fleet.secret"',
            "[api]",
            f'bind = "{API_HOST}:{api}"',
        ]
        return "\n".join(lines) + "\n"

    def packed(self) -> dict[str, Any]:
        """Return what ``unpacked`` makes the same setting of, as plain data."""
        return {
            "scenario": scenarios.tables(self.scenario),
            "seed": self.seed,
            "folder": str(self.folder),
            "temporary": self.temporary,
            "reports": self.reports,
            "ports": self.ports,
        }


def host_of(name: Name) -> str:
    """Return a node's own address on loopback: what gossip allows one address, one machine has."""
    index = int(name[1:])
    return f"127.77.{index // 250}.{index % 250 + 1}"


def unpacked(fields: Mapping[str, Any]) -> Setting:
    """Return a setting from another process of this run."""
    return Setting(
        scenarios.parse(fields["scenario"]),
        fields["seed"],
        Path(fields["folder"]),
        fields["temporary"],
        fields["reports"],
        tuple((gossip, api) for gossip, api in fields["ports"]),
    )


def free_ports(count: int) -> list[int]:
    """Return loopback ports that are free for TCP and UDP just now. Raises OSError if too few."""
    candidates = range(LOWEST_PORT, HIGHEST_PORT)
    begin = random.SystemRandom().randrange(len(candidates))
    found = []
    for index in range(len(candidates)):
        port = candidates[(begin + index) % len(candidates)]
        if _is_free(port):
            found.append(port)
            if len(found) == count:
                return found
    raise OSError(f"{count} ports of loopback are needed, {len(found)} are free")


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                return False
    return True
