"""A cluster of real daemons on loopback, under the same scenarios as the world."""

from simnet.cluster.course import run
from simnet.cluster.processes import ClusterError

__all__ = ["ClusterError", "run"]
