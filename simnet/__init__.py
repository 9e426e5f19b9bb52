"""Simulated fleets: the daemon's own code under virtual time."""
