"""What a node runs and what it learns: sessions, the reuse cache, the worker of one accelerator.

Owns everything that touches ONNX Runtime, numpy and pixels; never sees replicated state, peers
or the daemon's configuration. The daemon's own process may import only the modules that are
free of numpy, ONNX Runtime and PyAV: ``accelerators``, ``manifest``, ``queue`` and ``wire``.
"""
