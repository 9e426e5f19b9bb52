"""Decide where a frame runs, which tier an agent has and who takes over: pure functions only."""
