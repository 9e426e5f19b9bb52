"""A real daemon loses its journal: its peers give back what it had written."""

import signal
from collections.abc import Callable

from tests.e2e.fleet import Node, same_hash, wait_for


def test_a_lost_journal_comes_back_from_a_peer(make_node: Callable[..., Node]) -> None:
    a = make_node("a")
    b = make_node("b", seeds=[a])
    a.camera("door", "generated:1", deadline_ms=1000)
    for node in (a, b):
        node.start()
    for node in (a, b):
        node.ready()
    status, _ = a.request("PUT", "/edge/v1/models/person-detector", {"variant": "small"})
    assert status == 200
    wait_for("b knows", lambda: b.get("models")[0]["desired"]["variant"] == "small")
    wait_for("equal hashes", lambda: same_hash([a, b]))
    a.kill(signal.SIGKILL)
    for path in (a.folder / "state").glob("journal.db*"):
        path.unlink()
    a.start().ready()
    wait_for("the camera's record", lambda: a.get("agents"))
    wait_for("a camera that runs", lambda: a.answered("door") > 0)
    wait_for("equal hashes again", lambda: same_hash([a, b]))
    for node in (a, b):
        assert node.get("models")[0]["desired"]["variant"] == "small"
        assert node.get("node")["degraded"] == []
        assert node.get("stats")["gossip"].get("batches_forked", 0) == 0
