"""Differential inference: run only what changed of a camera's frames, and stay exact.

`onnxfile` reads and writes ONNX bytes, `graph` finds out which layers are local, `plan` compiles
them over row-major activations, `native` (C) and `graphexec` (stock operators) execute the plan.
Nothing here decides when delta pays or what has changed in a frame: the ladder does.
"""
