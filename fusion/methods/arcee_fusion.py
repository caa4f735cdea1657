"""Arcee Fusion: only the changes that stand out, by their size and by what their row does to a softmax."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fusion.methods.call import Block, Blocks, Place
from fusion.methods.geometry import as_rows
from fusion.methods.method import Compat, Method
from fusion.methods.trim import own_cuts

FORMULA = (
    "theta = base + tau 1[s >= median + 1.5 (q_3 - q_1)],   s = |tau| KL(softmax(theta_1 row) || softmax(base row))"
)
PAPER = "Arcee Fusion, by Arcee AI, without a paper; after mergekit, method arcee_fusion"

# Added to every probability.
LEAST = 1e-8
QUANTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Params:
    """Arcee Fusion takes no parameters."""


def merge(
    models: list[Float[Tensor, "rows width"]],
    base: Float[Tensor, "rows width"],
    weights: None,
    params: Params,
    at: Place,
) -> Float[Tensor, "rows width"]:
    """Arcee Fusion of one model into the base (as mergekit has it).

    1. divergence   D = sum p (log p - log q) of every row,   p = softmax(theta_1) + 1e-8, q = softmax(base) + 1e-8
    2. importance   s = |tau| D,   tau = theta_1 - base
    3. threshold    c = median + 1.5 (q_3 - q_1) of s, a quantile being the value at floor(q (n-1)) of the sorted n
    4. select       theta = base + tau where s >= c, else base

    Rows are along the last axis, and a vector is one row. D is summed in float64, since it is a small difference of
    sums near 1: in float32, where mergekit computes it, much of it is rounding. The quantiles are exact; mergekit draws
    a million elements of larger tensors at random for them, which `compat` does not imitate.
    """
    divergence, threshold = at.found
    here = _of_block(divergence, at.start, at.shape, base)
    return torch.where(_importance(models[0], base, here) >= threshold, models[0], base)


def survey(blocks: Blocks, weights: None, params: Params, at: Place) -> tuple[Float64[Tensor, " rows"], float]:
    """The divergence of every row of one tensor, and the importance from which elements are selected."""
    parts = [_divergence(as_rows(b.models[0], at.shape), as_rows(_base(b), at.shape)) for b in blocks()]
    divergence = torch.cat(parts)

    def importances() -> Iterator[Block]:
        for block in blocks():
            here = _of_block(divergence, block.start, at.shape, _base(block))
            found = _importance(block.models[0], _base(block), here).reshape(-1)
            yield Block(block.start, [found], found.new_zeros(()))

    return divergence, _outlying(*_quantiles(importances, sum(b.models[0].numel() for b in blocks())))


def _quantiles(values: Blocks, count: int) -> list[float]:
    """Values of numbers that are none of them negative: those at floor(q (count-1)) of the sorted ones."""
    if not count:
        return [0.0] * len(QUANTILES)
    # The k-th largest is what a cut that keeps k is at; one that keeps all is not at the smallest.
    ranks = [count - int(q * (count - 1)) for q in QUANTILES]
    (cuts,) = own_cuts(values, [ranks], count)
    smallest = min(float(block.models[0].min()) for block in values()) if count in ranks else 0.0
    return [smallest if rank == count else cut.threshold for rank, cut in zip(ranks, cuts, strict=True)]


def _outlying(first: float, median: float, third: float) -> float:
    return median + 1.5 * (third - first)


def _divergence(theta: Float[Tensor, "rows width"], base: Float[Tensor, "rows width"]) -> Float64[Tensor, " rows"]:
    p, q = (torch.softmax(rows.double(), 1).add_(LEAST) for rows in (theta, base))
    return (p.log() - q.log()).mul_(p).sum(1).clamp_min_(0.0)


def _importance(theta: Tensor, base: Tensor, divergence: Float64[Tensor, " rows"]) -> Float[Tensor, "..."]:
    difference = (theta - base).abs_().reshape(len(divergence), base.numel() // max(len(divergence), 1))
    return (difference * divergence[:, None]).float().reshape(base.shape)


def _of_block(
    divergence: Float64[Tensor, " rows"], start: int, shape: Sequence[int], block: Tensor
) -> Float64[Tensor, " some"]:
    """The divergences of a block's rows."""
    if len(shape) < 2:
        return divergence
    width = max(shape[-1], 1)
    return divergence[start // width : (start + block.numel()) // width]


def _base(block: Block) -> Tensor:
    assert block.base is not None
    return block.base


def _as_mergekit(
    models: list[Float[Tensor, " *shape"]], base: Float[Tensor, " *shape"], weights: None, params: Params, at: Place
) -> Float[Tensor, " *shape"]:
    """In float32 throughout."""
    if not base.numel():
        return base
    p, q = (torch.softmax(theta, -1).add_(LEAST) for theta in (models[0], base))
    importance = (models[0] - base).abs_() * (p * (p / q).log()).sum(-1, keepdim=base.ndim > 0)
    ordered = importance.reshape(-1).sort().values
    threshold = _outlying(*(float(ordered[int(q * (len(ordered) - 1))]) for q in QUANTILES))
    return base + (models[0] - base) * (importance >= threshold)


METHOD = Method(
    name="arcee_fusion",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="required",
    merges_base=True,
    models=(1, 1),
    weights=False,
    version=1,
    unit="rows",
    survey=survey,
    compat=Compat(merge=_as_mergekit),
)
