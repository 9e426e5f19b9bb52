"""Three real daemons: they find each other, share state, help each other and survive a death."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.e2e.fleet import SECRET, Node, busy_clip, same_hash, wait_for

Make = Callable[..., Node]


def three(make_node: Make) -> list[Node]:
    a = make_node("a")
    return [a, make_node("b", seeds=[a]), make_node("c", seeds=[a])]


def together(nodes: list[Node]) -> None:
    for node in nodes:
        node.start()
    for node in nodes:
        node.ready()
    for node in nodes:
        wait_for(
            f"{node.name} sees all alive",
            lambda node=node: sorted(node.states().values()) == ["alive", "alive", "self"],
        )


def lines(node: Node) -> list[dict[str, object]]:
    return [json.loads(line) for line in (node.folder / "out.jsonl").read_text().splitlines()]


def test_a_fleet_lives_through_a_release_and_a_death(make_node: Make) -> None:
    nodes = a, b, c = three(make_node)
    a.camera("door", "generated:1", deadline_ms=1000, criticality=1)
    b.camera("yard", "generated:2", deadline_ms=1000)
    b.camera("desk", "generated:3", deadline_ms=1000, takeover=False)
    together(nodes)
    wait_for(
        "all agents known to all",
        lambda: all(
            {r["agent"] for r in n.get("agents")} == {"door", "yard", "desk"} for n in nodes
        ),
    )
    wait_for("equal hashes", lambda: same_hash(nodes))
    wait_for("answers of door", lambda: a.answered("door") > 5)
    wait_for("answers of yard", lambda: b.answered("yard") > 5)

    # A release set on one node is what all three run, and the answers carry it.
    before = a.agent("door")["digest"]
    status, model = c.request("PUT", "/edge/v1/models/person-detector", {"variant": "small"})
    assert status == 200, model
    digest = model["desired"]["digest"]
    assert digest != before
    changed_s = time.monotonic()
    wait_for("equal hashes after the change", lambda: same_hash(nodes), timeout_s=5)
    assert time.monotonic() - changed_s < 5
    wait_for("door answers with small", lambda: a.agent("door")["digest"] == digest)
    wait_for("yard answers with small", lambda: b.agent("yard")["digest"] == digest)
    wait_for(
        "all run small",
        lambda: set(a.get("models")[0]["running"].values()) == {digest[:16]},
    )
    assert lines(a)[-1]["digest"] == digest

    # A node dies: the others notice, and run its movable camera within 15 s.
    b.kill(signal.SIGKILL)
    killed_s = time.monotonic()
    survivors = [a, c]
    wait_for(
        "b seen down by both",
        lambda: all(node.states()["b"] == "down" for node in survivors),
        timeout_s=15,
    )
    heir = wait_for(
        "yard runs again",
        lambda: next((n for n in survivors if n.answered("yard") > 0), None),
        timeout_s=15,
    )
    assert time.monotonic() - killed_s < 15 + 5
    other = a if heir is c else c
    wait_for("the heir is agreed on", lambda: other.agent("yard")["host"] == heir.name)
    assert other.agent("yard")["here"] is False
    assert a.agent("desk")["state"] == "orphaned"
    wait_for("equal hashes of the survivors", lambda: same_hash(survivors))

    # It comes back, and gets its camera back.
    b.start().ready()
    wait_for("b alive again", lambda: all(n.states()["b"] == "alive" for n in survivors), 60)
    wait_for("yard at home", lambda: b.agent("yard")["here"] and not heir.agent("yard")["here"])
    wait_for("yard answered at home", lambda: b.answered("yard") > 0)
    assert b.agent("yard")["digest"] == digest
    wait_for("equal hashes at the end", lambda: same_hash(nodes))


def test_an_overloaded_node_meets_more_deadlines_with_its_peers(
    make_node: Make, tmp_path: Path
) -> None:
    nodes = a, b, c = three(make_node)
    a.sections["placement"] = "policy = 'local'"
    a.sections["model"] = "adapt = 'off'"
    clip = str(busy_clip(tmp_path / "busy.mp4"))
    a.camera("busy", clip, fps=10, deadline_ms=400)
    a.accelerator(provider="cpu", share=0.05)
    for node in (b, c):
        node.accelerator(provider="cpu", share=0.3)
    together(nodes)
    wait_for("answers", lambda: a.answered("busy") > 30)
    (service_ms,) = a.get("peers")[0]["load"]["service_ms"].values()
    a.arrays[0] = a.arrays[0].replace("fps = 10", f"fps = {2 * 1e3 / service_ms:.1f}")
    a.reload()
    wait_for("the reopened camera", lambda: a.agent("busy")["frames"] < 30)
    wait_for("its queue", lambda: a.agent("busy")["frames"] > 30)

    alone = a.deltas(6)
    print(f"service {service_ms} ms")
    a.sections["placement"] = "policy = 'affinity'"
    a.reload()
    wait_for("frames forwarded", lambda: a.get("stats")["forwarded"] > 0)
    helped = a.deltas(6)
    print(f"alone {alone}, with peers {helped}")
    assert alone["forwarded"] == 0
    assert helped["forwarded"] > 0
    assert alone["met"] / alone["ended"] < 0.8, "the node was not overloaded"
    assert helped["met"] / helped["ended"] > alone["met"] / alone["ended"]
    forwarded = a.get("stats")["forwarded"]
    assert sum(node.get("stats")["received"] for node in (b, c)) >= forwarded


def test_frames_are_accounted_for_exactly_once_whatever_happens(make_node: Make) -> None:
    node = make_node("a")
    node.camera("door", "generated:1000001", fps=20)
    node.start().ready()
    wait_for("answers", lambda: node.answered("door") > 10)
    pid = node.get("node")["accelerators"][0]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(
        "another worker", lambda: node.get("node")["accelerators"][0]["pid"] not in (None, pid)
    )
    answered = node.get("stats")["answered"]
    wait_for("answers again", lambda: node.get("stats")["answered"] > answered + 10)
    assert node.request("PUT", "/edge/v1/models/person-detector", {"variant": "small"})[0] == 200
    node.arrays[0] = node.arrays[0].replace("fps = 20", "fps = 15")
    node.reload()  # the camera is closed and opened again
    wait_for("the reopened camera", lambda: node.agent("door")["fps"] == 15)
    wait_for("its answers", lambda: node.answered("door") > 10)
    node.arrays.clear()
    node.reload()
    wait_for("no camera", lambda: not node.get("agents"))

    def settled() -> dict[str, int] | None:
        stats = node.get("stats")
        ended = stats["answered"] + stats["shed"] + stats["lost"]
        assert ended <= stats["frames"]
        return stats if ended == stats["frames"] else None

    stats = wait_for("every frame has ended", settled)
    written = wait_for(
        "every answer is written", lambda: (w := lines(node)) and len(w) >= stats["answered"] and w
    )
    assert len(written) == stats["answered"]
    numbers = [(line["agent"], line["frame"]) for line in written]
    assert len(set(numbers)) == len(numbers)
    assert sum(bool(line["met"]) for line in written) == stats["met"]


def test_a_node_with_another_secret_stays_outside(make_node: Make) -> None:
    a = make_node("a")
    stranger = make_node("stranger", seeds=[a])
    stranger.secret = SECRET[::-1]
    a.start()
    stranger.start()
    a.ready()
    dropped = wait_for(
        "a counts what it cannot open", lambda: a.get("stats")["gossip"].get("dropped_seal", 0)
    )
    assert dropped > 0
    assert a.states() == {"a": "self"}
    assert set(stranger.states().values()) == {"self"}


def test_goodbye_on_sigterm(make_node: Make) -> None:
    a = make_node("a")
    b = make_node("b", seeds=[a])
    b.camera("yard", "generated:2")
    a.start().ready()
    b.start().ready()
    wait_for("b alive", lambda: a.states().get("b") == "alive")
    wait_for("answers", lambda: b.answered("yard"))
    assert b.kill(signal.SIGTERM) == 0
    wait_for("b left", lambda: a.states()["b"] == "left", timeout_s=3)
    wait_for("a took its camera over", lambda: a.agent("yard")["here"])


def test_a_restarted_node_keeps_its_id_and_its_writes(make_node: Make) -> None:
    a = make_node("a")
    a.start().ready()
    identity, before = a.get("node")["id"], a.hash()
    status, _ = a.request("PUT", "/edge/v1/models/person-detector", {"variant": "small"})
    assert status == 200
    changed = a.hash()
    assert changed != before
    a.kill(signal.SIGKILL)
    a.start().ready()
    assert a.get("node")["id"] == identity
    assert a.get("models")[0]["desired"]["variant"] == "small"
