"""What a real daemon shows of the frames it reuses: API, metrics, command line."""

import json
from collections.abc import Callable

from tests.e2e.fleet import Node, wait_for

Make = Callable[..., Node]


def test_a_camera_s_reuse_is_seen_in_the_api_the_metrics_and_the_command(make_node: Make) -> None:
    node = make_node("a")
    node.camera("gate", fps=20)
    node.start().ready()
    (gate,) = wait_for(
        "frames of the gate in the ladder",
        lambda: [one for one in node.get("cache") if sum(one["rungs"].values()) >= 5],
    )
    assert (gate["agent"], gate["here"], gate["accelerator"]) == ("gate", True, "cpu")
    assert gate["variant"] == node.agent("gate")["variant"]
    assert (gate["mode"], gate["holders"]) == ("strict", [])
    labels = f'{{agent="gate",accelerator="cpu",model="{gate["variant"]}"'
    _, metrics = node.request("GET", "/metrics")
    assert f'edge_node_reuse_mode{labels},mode="strict"}} 1\n' in metrics
    assert f"edge_node_reuse_target_ratio{labels}}} 0.98\n" in metrics
    shown = node.cli("cache", "gate", "--json")
    assert json.loads(shown.stdout)[0]["digest"] == gate["digest"]
    assert "\ngate " in node.cli("cache").stdout
    refused = node.cli("cache", "gaet")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "edge-node: no agent gaet; there is: gate\n"
