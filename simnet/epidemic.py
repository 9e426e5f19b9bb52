"""How old news are: an epidemic over a fleet.

Owns one function. Never sends anything; the gossip itself runs in :mod:`simnet.world`.
"""

import random


def hops(count: int, fan_out: int, rng: random.Random) -> list[list[int]]:
    """Return after how many periods node i has heard what node j said: ``[i][j]``, 0 for i = j.

    In each period everybody who knows tells ``fan_out`` others drawn at random. O(n^2 log n).
    """
    heard = [[0] * count for _ in range(count)]
    for source in range(count):
        knows, period = {source}, 0
        while len(knows) < count:
            period += 1
            for _ in range(len(knows) * fan_out):
                told = int(rng.random() * count)
                if told not in knows:
                    knows.add(told)
                    heard[told][source] = period
    return heard
