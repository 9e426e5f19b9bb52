"""Records of reuse: what the API and the metrics make of what a real worker says."""

from __future__ import annotations

import asyncio
from typing import Any

from edge_node import reuse
from edge_node.metrics import Family, render
from edge_node.workers import WorkerHandle
from models.accelerators import AcceleratorSpec
from models.images import encode_jpeg
from models.manifest import load_manifest
from tests.clips import picture
from tests.edge_node.test_metrics import parse

SMALL = load_manifest().variants["small"]
HOLDERS = [{"id": b"\1" * 16, "name": "shed"}]


def holders(agent: str, digest: str) -> list[dict[str, Any]]:
    return HOLDERS if (agent, digest) == ("gate", SMALL.digest) else []


async def asked(hosted: set[str], variants: dict[str, str]) -> list[reuse.Json]:
    """Return the records of a worker that answered six frames of two cameras."""
    worker = WorkerHandle(
        AcceleratorSpec("cpu0", "cpu"),
        on_frame=lambda frame: None,
        on_event=lambda event: None,
        heartbeat_s=0.05,
    )
    assert worker.cameras == ()
    await worker.start()
    try:
        await worker.load(SMALL)
        jpeg = encode_jpeg(picture())
        for agent in ("yard", "gate", "gate", "gate", "gate", "gate"):
            deadline_s = asyncio.get_running_loop().time() + 5
            await worker.infer_image(agent, jpeg, SMALL.digest, deadline_s, 2)
        async with asyncio.timeout(20):
            while True:
                found = reuse.records([worker], variants, hosted, holders)
                if sum(sum(one["rungs"].values()) for one in found) == 6:
                    return found
                await asyncio.sleep(0.01)
    finally:
        await worker.stop(0.0)


def test_a_record_says_what_the_worker_said_and_who_else_holds_an_entry() -> None:
    gate, yard = asyncio.run(asked({"gate"}, {SMALL.digest: "small"}))
    assert (gate["agent"], gate["accelerator"], gate["variant"]) == ("gate", "cpu0", "small")
    assert (gate["here"], yard["here"]) == (True, False)
    assert (gate["holders"], yard["holders"]) == (HOLDERS, [])
    assert gate["rungs"] == {"full": 1, "sparse": 0, "gate": 0, "same": 4}
    assert (gate["hit_ratio"], yard["hit_ratio"]) == (0.8, 0.0)
    assert (gate["audits"], gate["agreement"]) == (0, None)
    assert gate["mode"] == "strict"
    assert gate["size_bytes"] > 0


def record(agent: str, **changes: Any) -> reuse.Json:
    return {
        "agent": agent,
        "accelerator": "cpu",
        "digest": "ab" * 32,
        "variant": None,
        "here": True,
        "mode": "calibrated",
        "rungs": {"full": 1, "sparse": 2, "gate": 3, "same": 4},
        "work_saved": 0.75,
        "agreement": 0.99,
        "target": 0.98,
        "audits": 7,
        "breaches": 1,
        "size_bytes": 1000,
    } | changes


def samples(families: list[Family]) -> dict[str, tuple[str, list[tuple[dict[str, str], float]]]]:
    return {
        name.removeprefix("edge_node_reuse_"): found
        for name, found in parse(render(families)).items()
    }


def test_the_metrics_of_a_camera_read_back() -> None:
    found = samples(reuse.families([record("gate")]))
    labels = {"agent": "gate", "accelerator": "cpu", "model": "abababababab"}
    assert found == {
        "frames_total": (
            "counter",
            [
                (labels | {"rung": rung}, count)
                for rung, count in {"full": 1, "sparse": 2, "gate": 3, "same": 4}.items()
            ],
        ),
        "mode": (
            "gauge",
            [
                (labels | {"mode": mode}, float(mode == "calibrated"))
                for mode in ("strict", "calibrating", "calibrated", "off")
            ],
        ),
        "work_saved_ratio": ("gauge", [(labels, 0.75)]),
        "agreement_ratio": ("gauge", [(labels, 0.99)]),
        "target_ratio": ("gauge", [(labels, 0.98)]),
        "audited_frames": ("gauge", [(labels, 7)]),
        "breaches_total": ("counter", [(labels, 1)]),
        "camera_bytes": ("gauge", [(labels, 1000)]),
    }


def test_what_is_not_known_or_not_hosted_here_has_no_series() -> None:
    strangers = [record(f"stranger{n}", here=False) for n in range(50)]
    known = [*strangers, record("gate", variant="small", agreement=None, work_saved=None)]
    found = samples(reuse.families(known))
    assert "agreement_ratio" not in found
    assert "work_saved_ratio" not in found
    agents = {labels["agent"] for _, rows in found.values() for labels, _ in rows}
    assert agents == {"gate"}
    assert {labels["model"] for labels, _ in found["mode"][1]} == {"small"}
    assert reuse.families([])
    assert render(reuse.families([])) == ""
