"""Open ONNX models with ONNX Runtime on an accelerator.

Owns the session options and provider settings; never reads files nor decides what to run.
Invariant: a session that exists runs on the provider that was asked for.
"""

from __future__ import annotations

import onnxruntime

from models.accelerators import PROVIDERS, AcceleratorSpec
from models.wire import ModelError

LOG_ERRORS_ONLY = 3


def open_session(
    data: bytes, spec: AcceleratorSpec, *, strict: bool = False
) -> onnxruntime.InferenceSession:
    """Open an ONNX model on an accelerator with one thread.

    With `strict`, nodes that the provider cannot run are an error instead of falling to the CPU.
    Raises ModelError; ONNX Runtime's silent change to another provider is one too.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = LOG_ERRORS_ONLY
    # Layer fusion that the provider wants to do itself must not be done for it beforehand.
    if spec.provider == "openvino":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if strict and spec.provider != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    wanted = PROVIDERS[spec.provider]
    try:
        session = onnxruntime.InferenceSession(
            data, options, providers=[(wanted, _provider_options(spec))]
        )
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises its own unexported classes
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(f"ONNX Runtime ({wanted}) refuses it: {text}") from None
    if wanted not in session.get_providers():
        raise ModelError(
            f"{wanted} is not usable: ONNX Runtime fell back to {session.get_providers()[0]}; "
            f"install edge-node[{spec.provider}] and its driver"
        )
    return session


def _provider_options(spec: AcceleratorSpec) -> dict[str, str]:
    if spec.provider == "cuda":
        return {"device_id": spec.device or "0"}
    if spec.provider == "openvino":
        return {"device_type": spec.device or "CPU", "num_of_threads": "1"}
    return {}
