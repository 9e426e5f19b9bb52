"""What this node's workers reuse of their cameras' earlier frames, for people and Prometheus.

Owns the shape of a record and the names of its metrics; decides nothing about reuse (`models.cache`
and `models.ladder` do). Invariant: metrics name only agents hosted here, so that a peer's frames
cannot make new series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, Literal

from edge_node.metrics import Family
from edge_node.workers import WorkerHandle

Json = dict[str, Any]

MODES = ("strict", "calibrating", "calibrated", "off")
HITS = ("same", "gate")
"""The rungs that answer without the network."""


def records(
    workers: Iterable[WorkerHandle],
    variants: Mapping[str, str],
    hosted: Set[str],
    holders: Callable[[str, str], list[Json]],
) -> list[Json]:
    """Return a record per camera, model and accelerator, by agent.

    `variants` names models by digest, `holders(agent, digest)` the other nodes with an entry.
    What nothing is known of yet is None. O(records).
    """
    found = []
    for worker in workers:
        for known in worker.cameras:
            frames = sum(known["rungs"].values())
            found.append(
                {
                    **known,
                    "accelerator": worker.spec.name,
                    "variant": variants.get(known["digest"]),
                    "here": known["agent"] in hosted,
                    "agreement": known["agreement"] if known["audits"] else None,
                    "hit_ratio": _share(sum(known["rungs"][rung] for rung in HITS), frames),
                    "work_saved": known["work_saved"] if frames else None,
                    "holders": holders(known["agent"], known["digest"]),
                }
            )
    return sorted(found, key=lambda one: (one["agent"], one["accelerator"], one["digest"]))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def families(known: Iterable[Json]) -> list[Family]:
    """Return the metrics of the agents hosted here, out of what `records` returned."""
    here = [(_labels(one), one) for one in known if one["here"]]

    def family(name: str, kind: Literal["counter", "gauge"], text: str, field: str) -> Family:
        samples = [(labels, one[field]) for labels, one in here if one[field] is not None]
        return Family(f"edge_node_reuse_{name}", kind, text, samples)

    rungs = [
        ({**labels, "rung": rung}, count)
        for labels, one in here
        for rung, count in one["rungs"].items()
    ]
    modes = [
        ({**labels, "mode": mode}, float(one["mode"] == mode))
        for labels, one in here
        for mode in MODES
    ]
    return [
        Family("edge_node_reuse_frames_total", "counter", "Frames by rung of the ladder.", rungs),
        Family("edge_node_reuse_mode", "gauge", "1 for the camera's mode, else 0.", modes),
        family("work_saved_ratio", "gauge", "Share of the network's work not done.", "work_saved"),
        family(
            "agreement_ratio", "gauge", "Agreement of the newest audited answers (F1).", "agreement"
        ),
        family("target_ratio", "gauge", "Agreement that audits must not miss.", "target"),
        family("audited_frames", "gauge", "Audits since the setting was chosen.", "audits"),
        family("breaches_total", "counter", "Audits that missed the target for sure.", "breaches"),
        family("camera_bytes", "gauge", "Memory held for a camera and model.", "size_bytes"),
    ]


def _labels(one: Json) -> dict[str, str]:
    model = one["variant"] or one["digest"][:12]
    return {"agent": one["agent"], "accelerator": one["accelerator"], "model": model}
