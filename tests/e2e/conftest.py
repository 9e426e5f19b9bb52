"""Fixtures of the end-to-end tests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.fleet import Node


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Make nodes that end with the test."""
    nodes: list[Node] = []

    def make(name: str, **arguments: list[Node]) -> Node:
        nodes.append(Node(tmp_path, name, **arguments))
        return nodes[-1]

    yield make
    for node in nodes:
        node.stop()
