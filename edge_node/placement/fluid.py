"""Say which types of accelerator should serve which kinds of task under today's demand.

Owns one small linear program: demand flows like a fluid from kinds to types so that the highest
utilisation is the least possible. Pure arithmetic in a fixed order, so that every node gets the
same from the same. Invariant: the shares of a kind that anybody can serve add up to one.

A dense simplex: a fleet has a handful of kinds and types, for which a library costs more time and
memory than the program itself (the README has the measured comparison).
"""

from collections.abc import Mapping, Sequence

EPSILON = 1e-9
MAX_PIVOTS = 500
TIE = 1e-4
"""Weight of the work done against the highest utilisation: of equal solutions the cheapest."""

Shares = dict[tuple[str, str], float]


def shares(
    demand: Mapping[str, float],
    service: Mapping[tuple[str, str], float],
    capacity: Mapping[str, float],
) -> Shares:
    """Return the share of each kind's demand that each type should serve, those above 0 only.

    Minimises max over types of (sum over kinds of demand x share x service) / capacity.

    Args:
        demand: tasks per second by kind, > 0.
        service: seconds per task by (kind, type); a pair left out is a type that cannot.
        capacity: accelerators by type, > 0.
    """
    types = [one for one in sorted(capacity) if capacity[one] > 0.0]
    pairs = [
        (kind, one)
        for kind in sorted(demand)
        for one in types
        if (kind, one) in service and demand[kind] > 0.0
    ]
    kinds = sorted({kind for kind, _ in pairs})
    if not pairs:
        return {}
    work = [demand[kind] * service[kind, one] / capacity[one] for kind, one in pairs]
    found = _solve(
        [kinds.index(kind) for kind, _ in pairs], [types.index(one) for _, one in pairs], work
    )
    return {pair: x for pair, x in zip(pairs, found, strict=True) if x > EPSILON}


def _solve(rows: Sequence[int], columns: Sequence[int], work: Sequence[float]) -> list[float]:
    """Return x >= 0, one a pair, that minimises the highest load.

    The x of one row add up to 1; a column's load is the sum of x * work.
    Variables: one x a pair, the load U, one slack a column. The start gives each row to the pair
    with the least work, and U to the fullest column: feasible, so that no first phase is needed.
    """
    height, width, count = max(rows) + 1, max(columns) + 1, len(work)
    top = count + 1 + width  # where the right-hand side stands
    table = [[0.0] * (top + 1) for _ in range(height + width)]
    for index, (row, column) in enumerate(zip(rows, columns, strict=True)):
        table[row][index] = 1.0
        table[height + column][index] = work[index]
    for row in range(height):
        table[row][top] = 1.0
    for column in range(width):
        table[height + column][count] = -1.0
        table[height + column][count + 1 + column] = 1.0
    objective = [TIE * one for one in work] + [1.0] + [0.0] * (width + 1)
    basis = [0] * height + [count + 1 + column for column in range(width)]
    for row in range(height):
        mine = [index for index in range(count) if rows[index] == row]
        basis[row] = min(mine, key=lambda index: (work[index], index))
        _pivot(table, objective, row, basis[row])
    fullest = min(range(width), key=lambda column: (table[height + column][top], column))
    _pivot(table, objective, height + fullest, count)
    basis[height + fullest] = count
    for _ in range(MAX_PIVOTS):
        # Bland's rule: the first that improves, so that it cannot go round in circles.
        entering = next((index for index in range(top) if objective[index] < -EPSILON), None)
        if entering is None:
            break
        leaving = min(
            (row for row in range(height + width) if table[row][entering] > EPSILON),
            key=lambda row: (table[row][top] / table[row][entering], basis[row]),
        )
        _pivot(table, objective, leaving, entering)
        basis[leaving] = entering
    found = [0.0] * (top + 1)
    for row, index in enumerate(basis):
        found[index] = table[row][top]
    return found[:count]


def _pivot(table: list[list[float]], objective: list[float], row: int, column: int) -> None:
    scale = table[row][column]
    pivot = table[row] = [value / scale for value in table[row]]
    for index, other in enumerate(table):
        if index != row and (factor := other[column]) != 0.0:
            table[index] = [a - factor * b for a, b in zip(other, pivot, strict=True)]
    if (factor := objective[column]) != 0.0:
        objective[:] = [a - factor * b for a, b in zip(objective, pivot, strict=True)]
