"""Kinship from representations: do two models place the same texts alike?

The models may differ in architecture, width, depth and tokenizer: what is compared are texts, each a vector in every
layer (`hidden.py`), and of them only how they lie to each other.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from fusion.kinship import data_kernel
from fusion.kinship.measure import Measure
from fusion.kinship.probed import Probed, pair

# Features whose spread is a smaller share of their size are one number and the rounding of float32.
ROUNDING = float(np.finfo(np.float32).eps)


def linear_cka(x: Float[np.ndarray, "n p"], y: Float[np.ndarray, "n q"]) -> float | None:
    """Debiased linear CKA of two models' features of the same n texts, in [-1, 1].

    HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) for K = x x^T, L = y y^T (Kornblith et al. 2019, arXiv:1905.00414) with the
    unbiased HSIC of Song et al. 2012 (equation 5), as Nguyen et al. 2021, arXiv:2010.15327, use it. Of features that
    have nothing to do with each other it is 0 on average, with a standard deviation of sqrt(2 / (n (n - 3))), however
    many there are; the plain CKA then nears 1 once there are more features than texts.

    None for fewer than 4 texts, and for features that are the same for all texts.
    """
    first, second = _u_centred(x), _u_centred(y)
    if first is None or second is None:
        return None
    norms = np.linalg.norm(first) * np.linalg.norm(second)
    return float(np.clip(np.vdot(first, second) / norms, -1.0, 1.0)) if norms > 0 else None


def _u_centred(x: Float[np.ndarray, "n p"]) -> Float[np.ndarray, "n n"] | None:
    """x x^T without its diagonal, centred so that inner products are n (n - 3) times the unbiased HSIC."""
    rows = np.asarray(x, np.float64)
    n = len(rows)
    if n < 4:
        return None
    centred = rows - rows.mean(0)
    if np.linalg.norm(centred) <= ROUNDING * np.linalg.norm(rows):
        return None
    # Of a scale near 1, so that the squares of squares stay in range.
    centred /= np.abs(centred).max()
    kernel = centred @ centred.T
    np.fill_diagonal(kernel, 0.0)
    sums = kernel.sum(0) / (n - 2)
    kernel += sums.sum() / (n - 1) - sums[:, None] - sums[None, :]
    np.fill_diagonal(kernel, 0.0)
    return kernel


def matched_layers(first: int, second: int) -> list[tuple[int, int]]:
    """The layers (from 0) of two models of `first` and `second` layers that lie at the same relative depth.

    Each layer of the shallower model meets the nearest of the deeper one; the last always meets the last.
    """
    fewer, more = min(first, second), max(first, second)
    matched = [(layer, max(0, int((layer + 1) * more / fewer + 0.5) - 1)) for layer in range(fewer)]
    return matched if first <= second else [(b, a) for a, b in matched]


def cka_by_layer(
    first: Float[np.ndarray, "layers n p"], second: Float[np.ndarray, "more_layers n q"]
) -> list[float | None]:
    """Debiased linear CKA of the matched layers, from the input on."""
    return [linear_cka(first[a], second[b]) for a, b in matched_layers(len(first), len(second))]


def cka(facts: Probed, a: int, b: int) -> float | None:
    """The mean of debiased linear CKA over the matched layers; None where it is undefined in one of them."""
    layers: Sequence[float | None] = facts.layers[pair(a, b)]
    known = [value for value in layers if value is not None]
    return float(np.mean(known)) if known and len(known) == len(layers) else None


def kernel_distance(facts: Probed, a: int, b: int) -> float | None:
    """`data_kernel.distance` of the models' last layers; None where one of the two has no data kernel."""
    first, second = data_kernel.knn_graph(facts.last[a]), data_kernel.knn_graph(facts.last[b])
    return None if first is None or second is None else data_kernel.distance(first, second)


COST = "one pass of each model over the texts"

REPRESENTATION: dict[str, Measure] = {
    "cka": Measure(
        "cka",
        "mean over layers of HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), HSIC unbiased",
        "Kornblith et al. 2019, arXiv:1905.00414; debiased as in Nguyen et al. 2021, arXiv:2010.15327",
        "higher is closer",
        COST,
        "texts",
        cka,
    ),
    "data_kernel": Measure(
        "data_kernel",
        "|Z_a - Z_b| / min(|Z_a|, |Z_b|), Z the omnibus embedding of the texts' nearest neighbours",
        "Duderstadt, Helm & Priebe 2023, arXiv:2305.05126",
        "lower is closer",
        COST,
        "texts",
        kernel_distance,
    ),
}
