"""The paired sign-flip test, without random flips.

The distribution of the sum of signs times |differences| is enumerated where it has few enough outcomes (one task of 0/1
scores: the exact McNemar test), and otherwise taken from the saddlepoint approximation of Robinson (1982), whose error
is relative: a p-value of 1e-6 is as good as one of .05, so Holm over hundreds of pairs needs no millions of flips, and
the same data always give the same p.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Sums are enumerated up to this many distinct outcomes, and approximated above.
ENUMERATED = 1 << 17


def sign_flip(differences: Array) -> float:
    """Two-sided p of the sum of `differences` under independent flips of their signs."""
    d = np.asarray(differences, dtype=np.float64).ravel()
    scale = np.abs(d).max(initial=0.0)
    if scale == 0:
        return 1.0
    # Equal up to rounding is equal: 1/600 + 1/600 of two tasks must fall into one bin.
    sizes, counts = np.unique(np.round(np.abs(d) / scale, 10), return_counts=True)
    sizes, counts = sizes[sizes > 0], counts[sizes > 0]
    observed = abs(float(d.sum())) / float(scale)
    if observed < 1e-9 * float(sizes @ counts):
        return 1.0
    enumerable = float(np.log1p(counts).sum()) <= math.log(ENUMERATED)
    tail = _enumerated_tail(sizes, counts, observed) if enumerable else _saddlepoint_tail(sizes, counts, observed)
    return min(1.0, 2 * tail)


def _enumerated_tail(sizes: Array, counts: NDArray[np.int64], observed: float) -> float:
    """P(sum of signs times sizes >= observed), exactly: the sums and their probabilities, one size after another."""
    sums, chances = np.zeros(1), np.ones(1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        ups = np.arange(count + 1)
        log_ways = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in ups.tolist()]
        sums = (sums[:, None] + size * (2 * ups - count)).ravel()
        chances = (chances[:, None] * np.exp(np.array(log_ways) - count * math.log(2))).ravel()
    return float(chances[sums >= observed - 1e-8 * float(sizes @ counts)].sum())


def _saddlepoint_tail(sizes: Array, counts: NDArray[np.int64], observed: float) -> float:
    """P(sum of signs times sizes >= observed) by Lugannani and Rice; the cumulant function is sum log cosh (size s)."""
    smallest = math.exp(-float(counts.sum()) * math.log(2))
    if observed >= float(sizes @ counts) * (1 - 1e-9):
        return smallest
    s = _solve(sizes, counts, observed)
    x = sizes * s
    cumulant = float(counts @ (x + np.log1p(np.exp(-2 * x)) - math.log(2)))
    w = math.sqrt(max(0.0, 2 * (s * observed - cumulant)))
    u = s * math.sqrt(float(counts @ (sizes**2 * (1 - np.tanh(x) ** 2))))
    tail = math.erfc(w / math.sqrt(2)) / 2
    # Near the centre both terms grow without bound and cancel: the distribution is symmetric, the normal is right.
    if w > 0.01 and u > 0:
        tail += math.exp(-w * w / 2) / math.sqrt(2 * math.pi) * (1 / u - 1 / w)
    return max(tail, smallest)


def _solve(sizes: Array, counts: NDArray[np.int64], observed: float) -> float:
    """The s at which the tilted mean sum(size tanh(size s)) is the observed sum: bisection, it is monotone."""
    low, high = 0.0, 1.0
    while float(counts @ (sizes * np.tanh(sizes * high))) < observed and high < 1e6:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if float(counts @ (sizes * np.tanh(sizes * middle))) < observed:
            low = middle
        else:
            high = middle
    return (low + high) / 2
