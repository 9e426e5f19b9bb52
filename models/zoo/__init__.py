"""The detectors this project trained itself: weights, their manifest, how to train them anew.

Owns the files `person-detector-*.onnx`, `person-detector.json` and the programs behind them
(`train`, `evaluate`). Nothing here runs in the daemon: the daemon reads the manifest and the
weights, and torch is needed for training alone. Figures and limits: MODEL_CARD.md.
"""
