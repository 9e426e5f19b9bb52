"""What a task would cost on each candidate, learned from what tasks did cost here.

Owns the node's trace table, the training of its regressors and their scoring; never decides where
a task runs. Invariant: the daemon's process imports neither the `lightgbm` package nor numpy for
it (only `training`, a process of its own, does), and without a model, a library or a disk the
declared prior corrected by what was observed still answers.
"""
