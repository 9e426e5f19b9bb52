"""Say which node should host an agent.

Owns the rule that every node applies to its own replica: the home node while it can, otherwise
one successor, the same on every node whose view is the same; nodes that drain or are too hot keep
only what nobody else can take. Views that differ for a while cost a second claim, and the
register's order settles it. Never looks at a clock.
"""

import hashlib
import math
from collections.abc import Mapping, Set


def successor(agent: str, capacities: Mapping[bytes, float]) -> bytes | None:
    """Return the node that takes over an orphaned agent, or None if there is nobody.

    Weighted rendezvous hashing: each agent falls to a node with probability in proportion to its
    capacity, and a node's death moves only its own agents. O(n) in the number of nodes.

    Args:
        agent: the agent's name.
        capacities: node id -> full passes per second, of every living node that could take it.
    """
    best: tuple[float, bytes] | None = None
    for node, capacity in capacities.items():
        if capacity <= 0.0:
            continue
        digest = hashlib.blake2b(agent.encode() + node, digest_size=8).digest()
        uniform = (int.from_bytes(digest, "big") + 0.5) / 2**64
        score = (-capacity / math.log(uniform), node)
        if best is None or score > best:
            best = score
    return best[1] if best else None


def should_host(
    agent: str, home: bytes, host: bytes, able: Mapping[bytes, float], leaving: Set[bytes]
) -> bytes | None:
    """Return the node that should host ``agent`` now, or None if it has to wait for one.

    Args:
        home: the node that configured the agent.
        host: who hosts it now.
        able: full passes per second of every living node that can run it and would: its home, and
            those that take cameras over and can open its source.
        leaving: the nodes that drain or are too hot.
    """
    staying = {node: capacity for node, capacity in able.items() if node not in leaving}
    for node in (home, host):
        if node in staying:
            return node
    heir = successor(agent, staying)
    if heir is not None:
        return heir
    return next((node for node in (host, home) if node in able), None)
