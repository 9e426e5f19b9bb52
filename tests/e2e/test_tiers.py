"""Real daemons: a camera's tier follows what it sees, is known to all, and can be overridden."""

from collections.abc import Callable
from typing import Any

from tests.e2e.fleet import Node, same_hash, wait_for

Make = Callable[..., Node]


def tier(node: Node, name: str) -> dict[str, Any]:
    rows = [row for row in node.get("tiers") if row["agent"] == name]
    return rows[0] if rows else {"tier": None, "override": None}


def test_tiers_follow_the_scene_and_can_be_overridden(make_node: Make) -> None:
    a = make_node("a")
    b = make_node("b", seeds=[a])
    # Nobody walks through a generated scene.
    a.camera("yard", "generated:1", deadline_ms=2000)
    a.camera("gate", "generated:2", deadline_ms=2000, criticality=3, safety=True)
    for node in (a, b):
        node.sections["placement"] = "epoch_s = 0.5"
        node.start()
    for node in (a, b):
        node.ready()
    for node in (a, b):
        wait_for("the yard falls", lambda node=node: tier(node, "yard")["tier"] == 3)
        assert tier(node, "gate")["tier"] == 1
        assert tier(node, "gate")["reason"] == "safety camera"
    seen = tier(b, "yard")
    assert (seen["declared"], seen["reason"]) == (2, "nothing is seen")
    assert [change["tier"] for change in seen["history"]] == [3]
    wait_for("equal replicas", lambda: same_hash([a, b]))
    before = a.hash()

    done = b.cli("tiers", "set", "yard", "1")
    assert done.returncode == 0, done.stderr
    assert "set for the fleet (else 3: nothing is seen)" in done.stdout
    for node in (a, b):
        wait_for("the override", lambda node=node: tier(node, "yard")["tier"] == 1)
        assert tier(node, "yard")["override"] == 1
        assert node.agent("yard")["tier"] == 1
    done = a.cli("tiers", "clear", "yard")
    assert done.returncode == 0, done.stderr
    for node in (a, b):
        wait_for("no override", lambda node=node: tier(node, "yard")["tier"] == 3)
    shown = b.cli("tiers", "yard").stdout.splitlines()
    assert shown[-1].endswith("3  nothing is seen")
    assert before != a.hash()
    wait_for("equal replicas", lambda: same_hash([a, b]))
    settled = a.hash()
    answered = a.answered("yard")
    wait_for("more epochs", lambda: a.answered("yard") > answered + 30)
    assert a.hash() == settled, "a tier that does not change is not published again"

    refused = a.cli("tiers", "set", "lawn", "1")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "edge-node: no agent lawn; there is: gate, yard\n"
    a.sections["placement"] += "\ntiers = false"
    a.reload()
    wait_for("tiers off", lambda: tier(a, "gate")["tier"] == 2)
    assert "tiers = false" in a.cli("tiers").stdout
    wait_for("its tiers are withdrawn", lambda: tier(b, "yard")["tier"] == 2)
