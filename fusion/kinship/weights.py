"""Kinship from weights: how alike are two models' task vectors, their differences from a common base.

Hu et al. 2024, Exploring model kinship for merging large language models, arXiv:2410.12613, section 3. With the task
vectors d_i = theta_i - base as vectors of n numbers, everything is had from their Gram matrix G = <d_i, d_j> and their
sums S = sum d_i, which one pass over the base and all models finds for all pairs at once.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from fusion.checkpoint import Source, check_finite, check_same
from fusion.errors import RecipeError
from fusion.kinship.measure import Measure
from fusion.params import did_you_mean
from fusion.stream import one_thread

PAPER = "Hu et al. 2024, arXiv:2410.12613, section 3"

# Elements a block: small enough for all models' blocks in float64 to stay in the processor's cache.
BLOCK = 1 << 15

# Below this share of its terms, what is left of a difference of float64 sums is their rounding.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Moments:
    """What one pass over the models finds: per-model sums and the Gram matrix of their task vectors.

    `near` holds the squared distances of pairs (a < b) that are too close for the Gram matrix to tell.
    """

    count: int
    sums: Float64[Tensor, " models"]
    gram: Float64[Tensor, " models models"]
    near: Mapping[tuple[int, int], float]

    def dot(self, a: int, b: int) -> float:
        """<d_a, d_b>."""
        return float(self.gram[a, b])

    def covariance(self, a: int, b: int) -> float:
        """The sum over elements of (d_a - mean d_a)(d_b - mean d_b); 0 where it is only rounding."""
        mean_part = float(self.sums[a]) * float(self.sums[b]) / max(self.count, 1)
        value = self.dot(a, b) - mean_part
        return 0.0 if abs(value) <= ROUNDING * abs(mean_part) else value


def pcc(moments: Moments, a: int, b: int) -> float | None:
    """Pearson's correlation of two task vectors, in [-1, 1]; None where one of them is constant."""
    return _normalised(moments.covariance(a, b), moments.covariance(a, a), moments.covariance(b, b))


def cosine(moments: Moments, a: int, b: int) -> float | None:
    """The cosine of the angle between two task vectors, signed, in [-1, 1]; None where one of them is zero."""
    return _normalised(moments.dot(a, b), moments.dot(a, a), moments.dot(b, b))


def euclidean(moments: Moments, a: int, b: int) -> float:
    """The distance of two models, in units of weights. It does not depend on the base."""
    pair = (min(a, b), max(a, b))
    if pair in moments.near:
        return math.sqrt(moments.near[pair])
    return math.sqrt(moments.dot(a, a) + moments.dot(b, b) - 2.0 * moments.dot(a, b))


PCC = Measure(
    "pcc", "sum (d_a - mean d_a)(d_b - mean d_b) / (n sd(d_a) sd(d_b))", PAPER + " (PCC)", "higher is closer", pcc
)
COSINE = Measure(
    "cosine", "<d_a, d_b> / (|d_a| |d_b|)", PAPER + " (CS), signed as the formula is", "higher is closer", cosine
)
EUCLIDEAN = Measure("euclidean", "|d_a - d_b|", PAPER + " (ED)", "lower is closer", euclidean)
WEIGHT_MEASURES = {measure.name: measure for measure in (PCC, COSINE, EUCLIDEAN)}


def kinship(
    models: Mapping[str, Source], base: Source, measures: Sequence[str] = ("pcc", "cosine", "euclidean")
) -> list[dict[str, str | float | None]]:
    """All pairs of models by the given measures, in the models' order, from one pass over the models and their base.

    Sums are float64 whatever the checkpoints hold. Returns a row a pair: {"a", "b", measure: value, ...}. A value that
    is undefined is None, and the row then has a "status" that says why.

    Raises RecipeError for an unknown measure or fewer than two models, MismatchError with every tensor that the models
    and the base do not share, CheckpointError for a NaN.
    """
    for measure in measures:
        if measure not in WEIGHT_MEASURES:
            raise RecipeError(f"unknown measure '{measure}': {did_you_mean(measure, WEIGHT_MEASURES)}")
    if len(models) < 2:
        raise RecipeError(f"kinship compares models pair by pair: got {len(models)}, give two or more")
    check_same({"the base": base, **models})
    with one_thread():
        moments = _moments(models, base)
    names = list(models)
    return [_row(names, moments, measures, a, b) for a in range(len(names)) for b in range(a + 1, len(names))]


def _row(names: list[str], moments: Moments, measures: Sequence[str], a: int, b: int) -> dict[str, str | float | None]:
    values = {measure: WEIGHT_MEASURES[measure].value(moments, a, b) for measure in measures}
    row: dict[str, str | float | None] = {"a": names[a], "b": names[b], **values}
    if None in values.values():
        row["status"] = "; ".join(why for model in (a, b) if (why := _degenerate(names[model], moments, model)))
    return row


def _degenerate(name: str, moments: Moments, model: int) -> str:
    """Why a model has no correlation with another, or nothing."""
    if moments.dot(model, model) == 0:
        return f"'{name}' equals the base: its task vector is zero"
    if moments.covariance(model, model) == 0:
        return f"'{name}' differs from the base by the same number everywhere: its task vector has no variance"
    return ""


def _normalised(shared: float, a: float, b: float) -> float | None:
    """shared / sqrt(a b), kept within [-1, 1]; None where it is 0 / 0."""
    if a <= 0 or b <= 0:
        return None
    return max(-1.0, min(1.0, shared / (math.sqrt(a) * math.sqrt(b))))


def _moments(models: Mapping[str, Source], base: Source) -> Moments:
    """One pass over all checkpoints; and a second over those models only that are nearly the same."""
    count = 0
    sums = torch.zeros(len(models), dtype=torch.float64)
    gram = torch.zeros(len(models), len(models), dtype=torch.float64)
    for deltas in _blocks(models, base):
        count += deltas.shape[1]
        sums += deltas.sum(1)
        gram += deltas @ deltas.T
    squares = gram.diagonal()
    distances = squares[:, None] + squares[None, :] - 2.0 * gram
    alike = (distances <= 1e6 * ROUNDING * (squares[:, None] + squares[None, :])).triu(1)
    pairs = [(a, b) for a, b in alike.nonzero().tolist()]
    return Moments(count, sums, gram, _near(models, base, pairs))


def _near(models: Mapping[str, Source], base: Source, pairs: list[tuple[int, int]]) -> dict[tuple[int, int], float]:
    """Squared distances by differences, where the difference of Gram entries would be rounding."""
    near = dict.fromkeys(pairs, 0.0)
    for deltas in _blocks(models, base) if pairs else ():
        for a, b in pairs:
            near[a, b] += float((deltas[a] - deltas[b]).square().sum())
    return near


def _blocks(models: Mapping[str, Source], base: Source) -> Iterator[Float64[Tensor, " models block"]]:
    """The task vectors, block by block over every floating-point tensor of the base."""
    sources = {"the base": base, **models}
    for name in base.names():
        if base.dtype(name).is_floating_point:
            yield from _blocks_of(name, sources)


def _blocks_of(name: str, sources: Mapping[str, Source]) -> Iterator[Float64[Tensor, " models block"]]:
    """One tensor's task vectors, block by block; the base is the first source."""
    tensors = [source.tensor(name).reshape(-1) for source in sources.values()]
    for model, tensor in zip(sources, tensors, strict=True):
        check_finite(tensor, name, model)
    for blocks in zip(*(tensor.split(BLOCK) for tensor in tensors), strict=True):
        origin, *others = (block.double() for block in blocks)
        yield torch.stack(others).sub_(origin)
