"""Data kernels: which texts lie near which, as one model sees them and as another does.

Duderstadt, Helm & Priebe 2023, Comparing foundation models using data kernels, arXiv:2305.05126. A model's data kernel
is the graph of its texts' nearest neighbours, taken for a random dot product graph with edge probabilities Z Z^T. Both
models' graphs are embedded together (omnibus embedding, Levin et al. 2017, arXiv:1705.09355), which gives every text a
place Z1(x) with the one and Z2(x) with the other in one space, whatever the models' own widths are.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

# Neighbours of a text, and dimensions of an embedding, at most.
NEIGHBOURS, DIMENSIONS = 64, 128
# Texts of the smallest graph: with fewer, a text has a single neighbour and the graph falls apart.
TEXTS = 8


@dataclass(frozen=True)
class ItemTest:
    """Of each text how far it moved, |Z1(x) - Z2(x)|, the p-value of that, and its Benjamini-Hochberg q-value."""

    distance: Float[np.ndarray, " texts"]
    p: Float[np.ndarray, " texts"]
    q: Float[np.ndarray, " texts"]


def knn_graph(features: Float[np.ndarray, "texts width"]) -> Float[np.ndarray, "texts texts"] | None:
    """The data kernel (A + A^T) / 2: A has 1 where a text is among another's k nearest by cosine, itself left out.

    k is a quarter of the texts, at most 64: few enough to tell near from far, enough for a spectrum to be had. Of
    texts that are equally near the first are taken. None for fewer than 8 texts or a text without direction.
    """
    rows = np.asarray(features, np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    n = len(rows)
    if n < TEXTS or not (norms > 0).all():
        return None
    nearness = (rows / norms) @ (rows / norms).T
    np.fill_diagonal(nearness, -np.inf)
    nearest = np.argsort(-nearness, axis=1, kind="stable")[:, : min(NEIGHBOURS, n // 4)]
    graph = np.zeros((n, n))
    np.put_along_axis(graph, nearest, 1.0, axis=1)
    return (graph + graph.T) / 2


def omnibus(
    first: Float[np.ndarray, "texts texts"], second: Float[np.ndarray, "texts texts"], dimensions: int
) -> tuple[Float[np.ndarray, "texts d"], Float[np.ndarray, "texts d"]]:
    """The places Z1, Z2 of all texts: the leading eigenvectors of [[A1, M], [M, A2]], M = (A1 + A2) / 2, each times the
    square root of its eigenvalue. Only positive eigenvalues count, as in a dot product graph, so d may be less.
    """
    mean = (first + second) / 2
    places = _embed(np.block([[first, mean], [mean, second]]), dimensions)
    return places[: len(first)], places[len(first) :]


def dimensions(first: Float[np.ndarray, "texts texts"], second: Float[np.ndarray, "texts texts"]) -> int:
    """Of the joint embedding: how many eigenvalues of the mean graph exceed the size of its least one; 1 to 128.

    The edge probabilities of a dot product graph have no negative eigenvalue. Those of the graph itself come from the
    draw of its edges, which spreads them evenly to both sides of 0: what stands out beyond them is structure.
    """
    values = np.linalg.eigvalsh((first + second) / 2)
    return min(max(1, int((values > -values[0]).sum())), DIMENSIONS)


def distance(first: Float[np.ndarray, "texts texts"], second: Float[np.ndarray, "texts texts"]) -> float:
    """|Z1 - Z2| / min(|Z1|, |Z2|) in spectral norms (the paper, section 4): 0 for models with the same neighbours."""
    places = omnibus(first, second, dimensions(first, second))
    norms = [float(np.linalg.norm(own, 2)) for own in (places[0] - places[1], *places)]
    return norms[0] / min(norms[1:])


def item_test(
    first: Float[np.ndarray, "texts texts"], second: Float[np.ndarray, "texts texts"], seed: int, draws: int = 50
) -> ItemTest:
    """Which texts moved from one graph to the other (the paper, section 3).

    Under the null both graphs are draws of one dot product graph. That is estimated from their mean; pairs of graphs
    are drawn from it and embedded as the two were (a parametric bootstrap). A text's distance is divided by its mean
    over the draws, which lets all texts' draws serve as one null distribution: p-values down to
    1 / (draws * texts + 1). Of graphs that are two draws of one, p <= .05 comes out for 3 to 5 % of the texts. Kernels
    of related models have more in common than two draws have: for them the test errs on the side of "not moved".
    Texts that did not move themselves shift with neighbours that did: in simulations with 60 to 200 texts they were 2
    to 17 % of those with q <= .05.
    """
    n, d = len(first), dimensions(first, second)
    moved = _moved(first, second, d)
    places = _embed((first + second) / 2, d)
    likely = np.clip(places @ places.T, 0.0, 1.0)
    rng = np.random.default_rng(seed)
    null = np.stack([_moved(_draw(likely, rng), _draw(likely, rng), d) for _ in range(draws)])
    scale = np.maximum(null.mean(0), np.finfo(np.float64).tiny)
    drawn = np.sort((null / scale).ravel())
    # What differs from a draw by rounding alone is as far as it.
    above = drawn.size - np.searchsorted(drawn, moved / scale * (1 - 1e-9))
    p = (1 + above) / (drawn.size + 1)
    return ItemTest(moved, p, _benjamini_hochberg(p, n))


def _embed(graph: Float[np.ndarray, "n n"], d: int) -> Float[np.ndarray, "n d"]:
    from scipy.sparse.linalg import eigsh

    # A fixed start, so that the same graphs give the same places.
    values, vectors = eigsh(graph, min(d, len(graph) - 1), which="LA", v0=np.ones(len(graph)))
    kept = values > 0
    return vectors[:, kept] * np.sqrt(values[kept])


def _moved(
    first: Float[np.ndarray, "texts texts"], second: Float[np.ndarray, "texts texts"], d: int
) -> Float[np.ndarray, " texts"]:
    places = omnibus(first, second, d)
    moved: np.ndarray = np.linalg.norm(places[0] - places[1], axis=1)
    return moved


def _draw(likely: Float[np.ndarray, "n n"], rng: np.random.Generator) -> Float[np.ndarray, "n n"]:
    upper = np.triu(rng.random(likely.shape) < likely, 1)
    return (upper | upper.T).astype(np.float64)


def _benjamini_hochberg(p: Float[np.ndarray, " n"], n: int) -> Float[np.ndarray, " n"]:
    order = np.argsort(-p, kind="stable")
    q = np.empty(n)
    q[order] = np.minimum.accumulate(np.minimum(p[order] * n / np.arange(n, 0, -1), 1.0))
    return q
