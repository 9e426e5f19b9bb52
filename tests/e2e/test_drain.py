"""Real daemons: a node is drained under load or gets too hot, and gets its camera back."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

from tests.e2e.fleet import Node, wait_for

Make = Callable[..., Node]
EPOCH = "epoch_s = 0.5\n"


def pair(make_node: Make, **fields: object) -> tuple[Node, Node]:
    """Two nodes that know each other; the first has a camera that the second can open."""
    a = make_node("a")
    b = make_node("b", seeds=[a])
    a.seeds = [b]  # so that it asks its peer when it is started again
    a.camera("door", "generated:1", fps=20, deadline_ms=1000, **fields)
    for node in (a, b):
        node.sections.setdefault("placement", "")
        node.sections["placement"] += EPOCH
        node.start()
    for node in (a, b):
        node.ready()
    wait_for("they meet", lambda: a.states().get("b") == "alive" == b.states().get("a"))
    wait_for("answers at home", lambda: a.answered("door") > 10)
    return a, b


def moved(door: str, to: Node, away: Node) -> None:
    wait_for(
        f"{door} answered by {to.name} alone",
        lambda: to.answered(door) > 0 and not away.agent(door)["here"],
    )
    for node in (to, away):
        wait_for(f"{node.name} agrees", lambda node=node: node.agent(door)["host"] == to.name)


def settled(node: Node) -> dict[str, int]:
    """Return the node's counts once every frame that came has ended; never does one end twice."""

    def exact() -> dict[str, int] | None:
        stats: dict[str, int] = node.get("stats")
        ended = sum(stats[name] for name in ("met", "missed", "shed", "lost"))
        assert ended <= stats["frames"]
        return stats if ended == stats["frames"] else None

    return wait_for(f"every frame of {node.name} has ended", exact)  # type: ignore[no-any-return]


def written(node: Node) -> list[tuple[str, int]]:
    rows = [json.loads(line) for line in (node.folder / "out.jsonl").read_text().splitlines()]
    return [(row["agent"], row["captured_ms"]) for row in rows]


def metric(node: Node, name: str) -> int:
    """Return a sample of the metrics; 0 if there is none."""
    text = node.request("GET", "/metrics")[1]
    found = [line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")]
    return int(found[0]) if found else 0


def handovers(node: Node, cause: str) -> int:
    return metric(node, f'edge_node_handovers_total{{cause="{cause}"}}')


def test_a_drained_node_hands_its_camera_over_and_gets_it_back(make_node: Make) -> None:
    a, b = pair(make_node)
    drained = a.cli("drain")
    assert drained.returncode == 0, drained.stderr
    assert "It still runs: door" in drained.stdout
    moved("door", to=b, away=a)
    assert handovers(b, "drain") == 1
    assert "self, draining" in a.cli("peers").stdout
    wait_for("b sees it", lambda: "alive, draining" in b.cli("peers").stdout)
    assert b.get("node")["draining"] is False

    # It keeps draining over a restart, and takes nothing back.
    at_home = settled(a)
    a.kill(signal.SIGTERM)
    a.start().ready()
    wait_for("b sees it again", lambda: b.states()["a"] == "alive")
    assert a.get("node")["draining"] is True
    wait_for("more answers", lambda: b.answered("door") > 20)
    assert a.get("stats")["frames"] == 0

    undone = a.cli("drain", "--undo")
    assert undone.returncode == 0, undone.stderr
    moved("door", to=a, away=b)
    assert handovers(a, "home") == 1
    wait_for("answers at home", lambda: a.answered("door") > 10)
    a.arrays.clear()
    a.reload()
    wait_for("no camera", lambda: not a.get("agents"))
    ended = [at_home, settled(a), settled(b)]
    answers = written(a) + written(b)
    assert len(answers) == sum(stats["met"] + stats["missed"] for stats in ended)
    assert len(set(answers)) == len(answers)
    for node in (a, b):
        assert metric(node, 'edge_node_duplicates_total{agent="door"}') == 0


def test_a_node_that_drains_keeps_what_nobody_can_take_and_takes_nothing(make_node: Make) -> None:
    a, b = pair(make_node, takeover=False)
    b.cli("drain")
    a.cli("drain")
    wait_for("both know", lambda: all(peer["draining"] for peer in a.get("peers")))
    frames = a.agent("door")["frames"]
    wait_for("it runs on", lambda: a.agent("door")["frames"] > frames + 40)
    assert a.agent("door")["here"]
    assert b.get("stats")["received"] == 0
    a.kill(signal.SIGTERM)
    wait_for("b sees it", lambda: b.states()["a"] == "left")
    assert b.agent("door")["here"] is False


def test_a_node_too_hot_gives_its_camera_away_until_it_has_cooled(
    make_node: Make, tmp_path: Path
) -> None:
    zone = tmp_path / "thermal" / "thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("soc\n")
    (zone / "trip_point_0_type").write_text("passive\n")
    (zone / "trip_point_0_temp").write_text("70000\n")

    def temperature(celsius: int) -> None:
        (zone / "new").write_text(f"{celsius}000\n")
        (zone / "new").rename(zone / "temp")

    temperature(50)
    a = make_node("a")
    a.sections["placement"] = f"thermal = '{zone.parent}'\n"
    b = make_node("b", seeds=[a])
    b.sections["placement"] = "thermal = ''\n"
    a.camera("door", "generated:1", fps=20, deadline_ms=1000)
    for node in (a, b):
        node.sections["placement"] += EPOCH
        node.start()
    for node in (a, b):
        node.ready()
    wait_for("answers at home", lambda: a.answered("door") > 10)
    wait_for("they meet", lambda: a.states().get("b") == "alive")
    temperature(75)
    moved("door", to=b, away=a)
    assert handovers(b, "hot") == 1
    assert any("too hot (soc at 75 of 70 °C)" in one for one in a.get("node")["degraded"])
    assert "alive, hot" in b.cli("peers").stdout
    temperature(60)
    moved("door", to=a, away=b)
    assert a.get("node")["hot"] is False
    settled(b)
