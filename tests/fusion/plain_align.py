"""Edit distances and alignments written as plainly as their definitions, to compare the quick ones with."""

import math
from collections.abc import Mapping, Sequence


def distance(a: str, b: str) -> int:
    """Levenshtein."""
    above = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y)))
        above = row
    return above[-1]


def nearest(source: str, targets: Sequence[str]) -> int:
    """The first target at the smallest distance."""
    return min(range(len(targets)), key=lambda i: (distance(source, targets[i]), i))


def warp(cost: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """The path of FuseLLM's dynamic programme through costs [n][m], from (0, 0) to (n - 1, m - 1)."""
    n, m = len(cost), len(cost[0])
    total = [[math.inf] * m for _ in range(n)]

    def at(i: int, j: int) -> float:
        return total[i][j] if i >= 0 and j >= 0 else math.inf

    for i in range(n):
        for j in range(m):
            best = min(at(i - 1, j), at(i, j - 1), at(i - 1, j - 1)) if i or j else 0
            total[i][j] = cost[i][j] + best
    path = [(i := n - 1, j := m - 1)]
    while i or j:
        ways = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        i, j = min(ways, key=lambda way: (at(*way), ways.index(way)))
        path.append((i, j))
    return path[::-1]


def beside(target: Sequence[str], source: Sequence[str]) -> list[list[int]]:
    """For each target token the source tokens that the programme puts beside it."""
    path = warp([[distance(a, b) for b in target] for a in source])
    return [[i for i, other in path if other == j] for j in range(len(target))]


def published_rows(
    target: Sequence[str],
    source: Sequence[str],
    marks: tuple[str, str],
    image: Mapping[str, str],
    soft: bool,
) -> list[int]:
    """For each target token i the source token whose row FuseLLM's code takes for what follows i; -1: it falls back.

    target, source: spelt tokens; marks: for a space, the target's and the source's; image: the published map, from a
    source token with the target's mark to a target token; soft: alignment min_ed, else exact.
    """
    ours, theirs = marks
    rows = []
    without = ([token.replace(ours, "") for token in target], [token.replace(theirs, "") for token in source])
    for i, found in enumerate(beside(*without)):
        rows.append(-1)
        if len(found) == 1:
            other = source[found[0]].replace(theirs, ours)
            if theirs == "Ġ" and i == 0 and target[i].startswith(ours) and not other.startswith(ours):
                other = ours + other
            if target[i] == other or (soft and image.get(other) == target[i]):
                rows[i] = found[0]
    return rows
