"""What is known of several models that have read the same texts: the facts that measures of texts take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Pair = tuple[int, int]


@dataclass(frozen=True)
class Divergence:
    """How far apart two models' next-token distributions are, and the share of the positions where they compare."""

    bits: float | None
    aligned: float


@dataclass(frozen=True)
class Probed:
    """Facts by the models' positions, pairs as (a, b) with a < b; what no asked measure needs is empty.

    layers: debiased CKA of the pair's matched layers. last: each model's last layer's features of the texts that all
    have read. divergence: of next-token distributions. bits[i, j]: bits per byte of what model j says, read by model i;
    nan where j says nothing.
    """

    layers: Mapping[Pair, Sequence[float | None]]
    last: Sequence[Float[np.ndarray, "texts _"]]
    divergence: Mapping[Pair, Divergence]
    bits: Float[np.ndarray, "models models"]


def pair(a: int, b: int) -> Pair:
    """The key of two models, in either order."""
    return min(a, b), max(a, b)
