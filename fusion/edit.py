"""Edit distances between tokens, and the cheapest way to walk through two token sequences side by side.

Distances are Levenshtein's: insertions, deletions and substitutions, each of cost 1. Both parts give exactly what the
plain recurrences give (`tests/fusion/plain_align.py` keeps those), ties included.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Int, UInt
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

# Target strings by the machine word that holds one bit for each of their characters.
WIDTHS = (8, 16, 32, 64)
# Strings too long for any word are compared pair by pair, this many pairs at a time.
PAIRS = 1 << 23
# Cells of the dynamic programme held at a time (64 MiB); a longer document costs a second pass, no more memory.
CELLS = 1 << 24
# Characters whose places in the targets are kept at hand.
RECENT = 512


def distances(a: Sequence[str], b: Sequence[str]) -> Int[np.ndarray, "a b"]:
    """The distance of each string of a to each of b."""
    found: np.ndarray = cdist(a, b, scorer=Levenshtein.distance, dtype=np.int32)
    return found.reshape(len(a), len(b))


# ---------------------------------------------------------------------------------------------------------------------
# The nearest string


def nearest(sources: Sequence[str], targets: Sequence[str]) -> Int[np.ndarray, " sources"]:
    """For each source the index of the target at the smallest distance; of equal ones the lowest index.

    Myers' bit-parallel algorithm ("A fast bit-vector algorithm for approximate string matching", J. ACM 46, 1999, in
    the form of Hyyrö 2003) over all targets at once. Sources are read in alphabetical order, so that a prefix that
    several share is read once. Needs at least one target.
    """
    order = sorted(range(len(sources)), key=sources.__getitem__)
    length = np.asarray([len(target) for target in targets])
    distance = np.full(len(sources), np.iinfo(np.int64).max)
    best = np.zeros(len(sources), np.int64)
    for bits, shortest in zip(WIDTHS, (-1, *WIDTHS), strict=False):
        there = np.flatnonzero((length > shortest) & (length <= bits))
        if len(there):
            words = _Words([targets[i] for i in there.tolist()], bits)
            found = np.asarray(list(words.read([sources[k] for k in order])), np.int64).reshape(-1, 2)
            _take_nearer(distance, best, np.asarray(order, np.int64), found[:, 0], there[found[:, 1]])
    there = np.flatnonzero(length > WIDTHS[-1])
    long = [targets[i] for i in there.tolist()]
    height = max(1, PAIRS // max(len(long), 1))
    for start in range(0, len(sources) if long else 0, height):
        table = distances(sources[start : start + height], long)
        rows = np.arange(start, start + len(table))
        _take_nearer(distance, best, rows, table.min(1), there[table.argmin(1)])
    return best


def _take_nearer(
    distance: Int[np.ndarray, " sources"],
    best: Int[np.ndarray, " sources"],
    rows: Int[np.ndarray, " n"],
    found: Int[np.ndarray, " n"],
    index: Int[np.ndarray, " n"],
) -> None:
    nearer = (found < distance[rows]) | ((found == distance[rows]) & (index < best[rows]))
    distance[rows[nearer]] = found[nearer]
    best[rows[nearer]] = index[nearer]


class _Words:
    """Targets of up to `bits` characters, one machine word each, that read one string at a time.

    The highest bit is a target's last character. Of the column of Myers' matrix that belongs to what has been read,
    `up` has a bit where the distance grows by 1 from one character of the target to the next, `down` where it falls.
    The bits below a target's first character have neither, and so stand for the matrix's first row.
    """

    def __init__(self, targets: Sequence[str], bits: int) -> None:
        self.word = np.dtype(f"uint{bits}").type
        places: dict[str, dict[int, int]] = {}
        for number, target in enumerate(targets):
            for bit, character in enumerate(target, bits - len(target)):
                at = places.setdefault(character, {})
                at[number] = at.get(number, 0) | 1 << bit
        self.places = places
        self.length = len(targets)
        self.equal = lru_cache(RECENT)(self._equal)
        first = [(1 << bits) - (1 << bits - len(target)) for target in targets]
        # columns[n]: up and down after n characters of the string that is being read.
        self.columns = [(np.asarray(first, self.word), np.zeros(self.length, self.word))]
        self.room = tuple(np.empty(self.length, self.word) for _ in range(3))

    def _equal(self, character: str) -> UInt[np.ndarray, " targets"]:
        """The bits of the targets' characters that are this one."""
        found = np.zeros(self.length, self.word)
        at = self.places.get(character, {})
        found[list(at)] = np.asarray(list(at.values()), self.word)
        return found

    def read(self, strings: Sequence[str]) -> Iterator[tuple[int, int]]:
        """For each string the smallest distance to a target, and the first target at that distance."""
        before = ""
        match, diagonal, right = self.room
        for string in strings:
            shared = 0
            while shared < min(len(before), len(string)) and before[shared] == string[shared]:
                shared += 1
            before = string
            for n in range(shared, len(string)):
                up, down = self.columns[n]
                if len(self.columns) == n + 1:
                    self.columns.append((np.empty_like(up), np.empty_like(down)))
                next_up, next_down = self.columns[n + 1]
                np.bitwise_or(self.equal(string[n]), down, match)
                np.bitwise_and(match, up, diagonal)
                np.add(diagonal, up, diagonal)
                np.bitwise_xor(diagonal, up, diagonal)
                np.bitwise_or(diagonal, match, diagonal)
                np.bitwise_or(up, diagonal, right)
                np.invert(right, right)
                np.bitwise_or(right, down, right)
                # A sum with itself is a shift by 1, and numpy does many sums at once.
                np.add(right, right, right)
                np.bitwise_or(right, 1, right)
                np.bitwise_and(right, diagonal, next_down)
                np.bitwise_or(right, diagonal, right)
                np.invert(right, right)
                np.bitwise_and(up, diagonal, next_up)
                np.add(next_up, next_up, next_up)
                np.bitwise_or(next_up, right, next_up)
            up, down = self.columns[len(string)]
            distance = np.bitwise_count(up).view(np.int8) - np.bitwise_count(down).view(np.int8)
            at = int(distance.argmin())
            yield len(string) + int(distance[at]), at


# ---------------------------------------------------------------------------------------------------------------------
# The cheapest path


def warp(
    cost: Int[np.ndarray, "a b"], rows: Int[np.ndarray, " n"], columns: Int[np.ndarray, " m"]
) -> Int[np.ndarray, "2 path"]:
    """Dynamic time warping: the pairs (i, j) of the cheapest path from (0, 0) to (n - 1, m - 1), in its order.

    D[i, j] = c[i, j] + min(D[i - 1, j], D[i, j - 1], D[i - 1, j - 1]) with c[i, j] = cost[rows[i], columns[j]]. Going
    back, equal ways are preferred in the order (i - 1, j - 1), (i - 1, j), (i, j - 1). Empty where a side is.

    In a row, with C the running sum of its costs, D[j] - C[j] is the running minimum of what comes from the row above
    less C[j - 1]: no loop over its cells is needed.
    """
    n, m = len(rows), len(columns)
    if not n or not m:
        return np.zeros((2, 0), np.int64)
    number = np.int32 if (n + m) * (int(cost.max()) + 1) < 1 << 29 else np.int64
    cost = cost.astype(number)
    above = np.full(m + 1, _beyond(number), number)
    above[0] = 0
    height = max(1, CELLS // (m + 1))
    starts = list(range(0, n, height))
    tops = [above]
    for start in starts[:-1]:
        tops.append(_block(tops[-1], cost, rows[start : start + height], columns)[-1].copy())
    path: list[tuple[int, int]] = []
    i, j = n - 1, m - 1
    for start, top in zip(reversed(starts), reversed(tops), strict=True):
        block = _block(top, cost, rows[start : start + height], columns)
        i, j = _back(block, start, i, j, path)
    return np.asarray(path[::-1], np.int64).T


def _beyond(number: type[np.signedinteger]) -> int:
    """More than any path costs, and far enough from the type's end to add one to."""
    return int(np.iinfo(number).max) // 2


def _block(
    above: Int[np.ndarray, " m_and_one"],
    cost: Int[np.ndarray, "a b"],
    rows: Int[np.ndarray, " n"],
    columns: Int[np.ndarray, " m"],
) -> Int[np.ndarray, "n_and_one m_and_one"]:
    """Rows of D under `above`, which is the first of them; a column that no path enters is on their left."""
    found = np.empty((len(rows) + 1, len(above)), above.dtype)
    found[0] = above
    found[1:, 0] = _beyond(above.dtype.type)
    for row, (before, now) in zip(rows.tolist(), zip(found[:-1], found[1:, 1:], strict=True), strict=True):
        total = cost[row].take(columns).cumsum(dtype=above.dtype)
        np.minimum(before[1:], before[:-1], out=now)
        now[1:] -= total[:-1]
        np.minimum.accumulate(now, out=now)
        now += total
    return found


def _back(
    block: Int[np.ndarray, "n_and_one m_and_one"], start: int, i: int, j: int, path: list[tuple[int, int]]
) -> tuple[int, int]:
    """Follow the path up from (i, j) through the rows of a block, the first of which is `start`; where it leaves it."""
    at = block.item
    while i >= start:
        path.append((i, j))
        row = i - start
        diagonal, up, left = at(row, j), at(row, j + 1), at(row + 1, j)
        if i == 0 and j == 0:
            break
        if diagonal <= up and diagonal <= left:
            i, j = i - 1, j - 1
        elif up <= left:
            i -= 1
        else:
            j -= 1
    return i, j
