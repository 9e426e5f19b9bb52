"""The edge-node daemon: wiring, placement, cameras, HTTP and command line.

Owns the process and everything that does IO; the rules it follows live in ``crdt``, ``gossip``
and ``models``. Importing this package imports nothing else, so that the command line stays fast.
"""

__version__ = "0.1.0"
