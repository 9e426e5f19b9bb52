"""Single frames on a real daemon: explained by `why`, submitted by `infer`."""

import json
from collections.abc import Callable
from pathlib import Path

from models.images import encode_jpeg
from tests.clips import picture
from tests.e2e.fleet import Node, wait_for

Make = Callable[..., Node]


def test_a_frame_of_a_camera_and_a_submitted_image_can_be_explained(make_node: Make) -> None:
    node = make_node("a")
    node.camera("door", "generated:3", fps=5)
    node.start().ready()
    wait_for("answers", lambda: node.answered("door") > 3)
    number = wait_for("a result", lambda: node.get("detections/latest").get("door"))["frame"]
    told = json.loads(node.cli("why", f"door/{number}", "--json").stdout)
    assert (told["agent"], told["frame"], told["outcome"]) == ("door", number, "answered")
    assert told["of"] == "a"
    assert 0 < told["budget_ms"] <= 200
    image = node.folder / "image.jpg"
    image.write_bytes(encode_jpeg(picture()))
    answer = json.loads(node.cli("infer", str(image), "--deadline-ms", "5000", "--json").stdout)
    assert (answer["node"], answer["variant"], answer["met"]) == ("a", "large", True)
    told = json.loads(node.cli("why", answer["frame"], "--json").stdout)
    assert (told["scope"], told["chosen"]) == ("plan", "a")
    assert [one["outcome"] for one in told["attempts"]] == ["answered"]
    text = node.cli("why", answer["frame"]).stdout
    assert "CANDIDATE" in text
    assert "outcome    answered by large" in text


def test_wrong_arguments_are_answered_with_what_to_do(make_node: Make, tmp_path: Path) -> None:
    node = make_node("a")
    node.start().ready()
    image = tmp_path / "image.jpg"
    image.write_bytes(encode_jpeg(picture()))
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    empty = tmp_path / "empty.jpg"
    empty.write_bytes(b"")
    for arguments, status, expected in (
        (("why", "nobody"), 1, "no decision about nobody is known here"),
        (("why", "door/7"), 1, "no decision about door/7 is known here"),
        (("why", "door/x"), 1, "x is not the number of a frame"),
        (("infer", str(tmp_path / "none.jpg")), 2, "No such file"),
        (("infer", str(broken)), 1, "image"),
        (("infer", str(empty)), 1, "the body is empty"),
        (("infer", str(image), "--variant", "huge"), 1, "no variant huge; there is: large, small"),
        (("infer", str(image), "--variant", "small"), 1, "no living node has the model"),
        (("infer", str(image), "--deadline-ms", "0"), 1, "the deadline passed"),
        (("infer", str(image), "--deadline-ms", "-5"), 1, "the deadline passed 5 ms ago"),
        (("infer", str(image), "--deadline-ms", "1e9"), 1, "deadline_ms at most 60000"),
        (("infer", str(image), "--tier", "4"), 2, "invalid choice"),
    ):
        result = node.cli(*arguments)
        assert result.returncode == status, (arguments, result.stderr)
        assert expected in result.stderr, (arguments, result.stderr)
        assert "Traceback" not in result.stderr
    assert "prior" in node.cli("affinity").stdout


def test_what_a_node_cannot_do_a_peer_does(make_node: Make) -> None:
    a = make_node("a")
    b = make_node("b", seeds=[a])
    b.sections["model"] = "also = 'small'"
    for node in (a, b):
        node.start()
    for node in (a, b):
        node.ready()
    wait_for("b is known", lambda: a.states().get("b") == "alive")
    image = a.folder / "image.jpg"
    image.write_bytes(encode_jpeg(picture()))

    def answered() -> dict[str, object] | None:
        result = a.cli("infer", str(image), "--variant", "small", "--json")
        found: dict[str, object] | None = json.loads(result.stdout) if result.stdout else None
        return found

    answer = wait_for("b's load is known", answered)
    assert (answer["node"], answer["variant"]) == ("b", "small")
