"""The fleet's key is rotated while nodes are away, and outlives every restart."""

import json
import os
import signal
import stat
from collections.abc import Callable
from typing import Any

from tests.e2e.fleet import SECRET, Node, same_hash, wait_for

Make = Callable[..., Node]


def three(make_node: Make) -> list[Node]:
    a = make_node("a")
    nodes = [a, make_node("b", seeds=[a]), make_node("c", seeds=[a])]
    for node in nodes:
        node.start()
    for node in nodes:
        node.ready()
    together(nodes)
    return nodes


def together(nodes: list[Node]) -> None:
    """Wait until all see all alive and know the same."""
    for node in nodes:
        wait_for(
            f"{node.name} sees all alive",
            lambda node=node: list(node.states().values()).count("alive") == len(nodes) - 1,
            40,
        )
    wait_for("equal hashes", lambda: same_hash(nodes), 40)


def keys(node: Node) -> dict[str, Any]:
    shown: dict[str, Any] = node.get("keys")
    return shown


def under(nodes: list[Node], epoch: int) -> None:
    """Wait until all hold the key of an epoch durably, and know it of each other."""
    names = sorted(node.name for node in nodes)
    for node in nodes:
        wait_for(
            f"{node.name} is under key epoch {epoch}",
            lambda node=node: (
                (k := keys(node))["epoch"] == epoch
                and k["durable"]
                and set(names) <= set(k["current"])
            ),
        )


def share(author: Node, reader: Node) -> None:
    """Have a large value written on one node and read on another: gossip and HTTP."""
    value = os.urandom(20_000).hex()
    assert author.request("PUT", "/edge/v1/values/site/map", value)[0] == 200
    wait_for(
        f"{reader.name} reads what {author.name} wrote",
        lambda: value in reader.request("GET", "/edge/v1/values/site/map")[1],
    )


def test_a_rotation_outlives_restarts_and_loses_nobody(make_node: Make) -> None:
    nodes = a, b, c = three(make_node)
    assert keys(a)["epoch"] == 0
    under(nodes, 0)
    assert c.kill(signal.SIGKILL) == -signal.SIGKILL

    done = a.cli("keys", "rotate")
    assert done.returncode == 0, done.stderr
    under([a, b], 1)
    assert keys(b)["previous"] == 0
    assert "c" in wait_for("c is known to be behind", lambda: keys(a)["behind"])
    share(a, b)
    share(b, a)

    refused = a.cli("keys", "rotate")
    assert refused.returncode == 1
    assert "c would be locked out" in refused.stderr
    assert keys(a)["epoch"] == 1

    c.start().ready()
    assert SECRET in (c.folder / "fleet.secret").read_text()
    under(nodes, 1)
    together(nodes)
    share(c, a)
    share(a, c)

    for node in (a, b):
        assert node.kill(signal.SIGKILL) == -signal.SIGKILL
        node.start().ready()
        assert keys(node)["epoch"] == 1
        under(nodes, 1)
        together(nodes)
    done = b.cli("keys", "rotate", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epoch"] == 2
    under(nodes, 2)
    together(nodes)
    share(a, c)
    for node in nodes:
        assert node.get("node")["degraded"] == []
        ring = node.folder / "state" / "fleet.keys"
        assert stat.S_IMODE(ring.stat().st_mode) == 0o600
        for _, secret in json.loads(ring.read_bytes().split(b"\n")[0])["keys"]:
            assert (
                secret not in node.log + node.cli("keys").stdout + node.cli("keys", "--json").stdout
            )


def test_who_was_away_comes_back_although_all_others_have_restarted(make_node: Make) -> None:
    nodes = a, b, c = three(make_node)
    under(nodes, 0)
    assert c.kill(signal.SIGKILL) == -signal.SIGKILL
    assert a.cli("keys", "rotate").returncode == 0
    under([a, b], 1)
    for node in (a, b):
        assert node.kill(signal.SIGKILL) == -signal.SIGKILL
    for node in (a, b):
        node.start().ready()
    wait_for("a and b are together", lambda: same_hash([a, b]))
    c.start().ready()
    under(nodes, 1)
    together(nodes)


def test_a_previous_key_ends_and_a_copied_ring_lets_in(make_node: Make) -> None:
    a, b = make_node("a"), make_node("b")
    b.seeds = [a]
    a.sections["fleet"] = f"bind = '127.0.0.1:{a.peer_port}'\nkeep_previous_key_s = 0"
    a.start().ready()
    assert a.cli("keys", "rotate").returncode == 0
    wait_for("the previous key is forgotten", lambda: keys(a)["previous"] is None)
    b.start().ready()
    wait_for("a refuses b", lambda: a.get("stats")["gossip"].get("dropped_epoch"))
    assert a.states() == {"a": "self"}
    b.stop()
    ring = b.folder / "state" / "fleet.keys"
    ring.touch(0o600)
    ring.write_bytes((a.folder / "state" / "fleet.keys").read_bytes())
    b.start().ready()
    under([a, b], 1)
    together([a, b])


def test_a_ring_that_cannot_be_read_is_told_and_healed_by_the_fleet(make_node: Make) -> None:
    nodes = a, _, c = three(make_node)
    under(nodes, 0)
    assert a.cli("keys", "rotate").returncode == 0
    under(nodes, 1)
    assert c.kill(signal.SIGKILL) == -signal.SIGKILL
    ring = c.folder / "state" / "fleet.keys"
    ring.write_bytes(ring.read_bytes()[:100])
    c.start().ready()
    assert "fleet.keys: damaged" in c.log
    under(nodes, 1)
    together(nodes)
    assert c.get("node")["degraded"] == []


def test_a_revoked_member_is_shut_out(make_node: Make) -> None:
    a, b, c = three(make_node)
    under([a, b, c], 0)
    done = a.cli("members", "revoke", "c")
    assert done.returncode == 0, done.stderr
    for node in (a, b):
        wait_for("c is gone", lambda node=node: node.states()["c"] == "down", 30)
    assert a.cli("members", "revoke", "a").returncode == 1
    assert a.cli("keys", "rotate").returncode == 0
    under([a, b], 1)
    assert c.kill(signal.SIGKILL) == -signal.SIGKILL
    c.start().ready()  # another boot of it is met by nobody either
    before = a.get("stats")["gossip"].get("dropped_revoked", 0)
    wait_for(
        "c is refused", lambda: a.get("stats")["gossip"].get("dropped_revoked", 0) > before + 3
    )
    assert keys(c)["epoch"] == 0
    assert a.states()["c"] == "down"
    done = b.cli("members", "restore", c.get("node")["id"])
    assert done.returncode == 0, done.stderr
    c.kill(signal.SIGKILL)
    c.start().ready()
    under([a, b, c], 1)
    together([a, b, c])
