"""TIES: trim task vectors, elect a sign for every parameter, average those that agree."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from fusion.methods.call import BLOCK, Pass, Place, spread
from fusion.params import param

FORMULA = "theta = base + lambda mean of the trimmed task vectors whose sign is the sign of their sum"
PAPER = "Yadav et al. 2023, TIES-Merging, arXiv:2306.01708 (algorithm 1)"

# A float32 magnitude is 31 bits that sort as the magnitudes do: the upper 16 choose a bin, the lower 15 a value in it.
LOW_BITS = 15
HIGH_BINS = 1 << 16
LOW_BINS = 1 << LOW_BITS

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Params:
    """TIES' parameters; the defaults are the paper's."""

    density: float = param(0.2, low=0.0, high=1.0, help="share of each task vector that is kept: the largest")
    lambda_: float = param(1.0, help="scale of the merged task vector")
    trim: Literal["global", "tensor"] = param(
        "global", help="global: trim over the whole task vector, as the paper does; tensor: over each tensor by itself"
    )


@dataclass(frozen=True)
class Cut:
    """What of one task vector stays: magnitudes above `threshold`, and of those equal to it the first `ties` a tensor.

    `ties` None keeps all that are equal to it.
    """

    threshold: float
    ties: Mapping[str, int] | None = None


def prepare(passes: Pass, params: Params) -> list[Cut] | None:
    """The cut of every model's whole task vector; None where no cut over all tensors is needed.

    An exact selection of the k-th largest magnitude in two passes of fixed memory, as a radix sort would find it: the
    first counts magnitudes by their upper 16 bits, the second by the lower 15 within the bin that holds the k-th. A
    third pass, only where some but not all of the magnitudes equal to the k-th are kept, counts these by tensor.
    """
    if params.trim == "tensor" or params.density in (0.0, 1.0):
        return None
    first = _histograms(passes, None)
    upper = [_find(counts, kept_count(int(counts.sum()), params.density)) for counts in first]
    second = _histograms(passes, [high for high, _ in upper])
    lower = [_find(counts, rank) for counts, (_, rank) in zip(second, upper, strict=True)]
    thresholds = [_magnitude(high, low) for (high, _), (low, _) in zip(upper, lower, strict=True)]
    # Which zeros are kept makes no difference, so a threshold of 0 needs no count.
    splits = [
        threshold > 0 and ties < counts[low]
        for threshold, (low, ties), counts in zip(thresholds, lower, second, strict=True)
    ]
    shared = _share_ties(passes, thresholds, [ties for _, ties in lower]) if any(splits) else [None] * len(splits)
    return [Cut(threshold, ties) for threshold, ties in zip(thresholds, shared, strict=True)]


def merge(
    models: list[Float[Tensor, " *shape"]],
    base: Float[Tensor, " *shape"],
    weights: Sequence[float] | None,
    params: Params,
    at: Place,
) -> Float[Tensor, " *shape"]:
    """TIES-Merging (Yadav et al. 2023, algorithm 1).

    1. task vectors   tau_i = theta_i - base
    2. trim           keep the k = density n largest |tau_i|, zero the rest
    3. elect          gamma = sgn(sum_i w_i tau_i)
    4. disjoint mean  tau = sum_A w_i tau_i / sum_A |w_i|   over A = {i: sgn(w_i tau_i) = gamma != 0}
    5. scale          theta = base + lambda tau

    The paper has no weights (w_i = 1): a weight counts a model so many times, and a negative one negates its task
    vector. Ties: of equal magnitudes at the cut the first are kept, by sorted tensor name, then by row-major position,
    so that exactly k = max(1, round(density n)) stay (none at density 0); where signs balance exactly, gamma = 0 and
    the base stays.
    """
    shares = spread(weights, len(models))
    deltas = [
        trim(theta - base, _cut(at, i), at.tensor, params.density).mul_(weight)
        for i, (theta, weight) in enumerate(zip(models, shares, strict=True))
    ]
    elected = torch.zeros_like(base)
    for delta in deltas:
        elected += delta
    elected.sign_()
    total, mass = torch.zeros_like(base), torch.zeros_like(base)
    for delta, weight in zip(deltas, shares, strict=True):
        agrees = (delta * elected) > 0
        total += delta.mul_(agrees)
        mass.add_(agrees, alpha=abs(weight))
    # Where nobody agrees the sum is 0, whatever it is divided by.
    return total.div_(mass.masked_fill_(mass == 0, 1.0)).mul_(params.lambda_).add_(base)


def trim(delta: Float[Tensor, " *shape"], cut: Cut | None, tensor: str, density: float) -> Float[Tensor, " *shape"]:
    """The task vector with its small magnitudes set to 0, in place; by this tensor's own cut where `cut` is None."""
    if density in (0.0, 1.0):
        return delta.mul_(density)
    magnitude = delta.abs().reshape(-1)
    if cut is None:
        cut = _own_cut(magnitude, tensor, density)
    keep = magnitude > cut.threshold
    equal = (magnitude == cut.threshold).nonzero().reshape(-1)
    keep[equal if cut.ties is None else equal[: cut.ties.get(tensor, 0)]] = True
    return delta.mul_(keep.reshape(delta.shape))


def kept_count(numel: int, density: float) -> int:
    """How many of `numel` values are kept at a density above 0: the nearest whole number, but at least one."""
    return min(numel, max(1, round(density * numel)))


def _cut(at: Place, model: int) -> Cut | None:
    return None if at.state is None else at.state[model]


def _own_cut(magnitude: Float[Tensor, " n"], tensor: str, density: float) -> Cut:
    count = kept_count(magnitude.numel(), density)
    if count == 0:
        return Cut(float("inf"))
    threshold = float(magnitude.kthvalue(magnitude.numel() - count + 1).values)
    return Cut(threshold, {tensor: count - int((magnitude > threshold).sum())})


def _histograms(passes: Pass, within: list[int] | None) -> list[Counts]:
    """For every model, how often each upper half of a magnitude's bits occurs in its task vector.

    Given the upper half of each model (`within`): how often each lower half occurs beside it.
    """
    found: list[Counts] = []

    def visit(_: str, models: list[Tensor], base: Tensor | None) -> None:
        if not found:
            found.extend(np.zeros(HIGH_BINS if within is None else LOW_BINS, dtype=np.int64) for _ in models)
        for i, theta in enumerate(models):
            for bits in _magnitude_bits(theta, base):
                high = bits >> LOW_BITS
                values = high if within is None else bits[high == within[i]] & (LOW_BINS - 1)
                found[i] += np.bincount(values, minlength=len(found[i]))

    passes(visit)
    return found


def _share_ties(passes: Pass, thresholds: list[float], ties: list[int]) -> list[dict[str, int]]:
    """How many of the magnitudes that equal the threshold each tensor keeps, first come, first served."""
    left = list(ties)
    shares: list[dict[str, int]] = [{} for _ in ties]

    def visit(name: str, models: list[Tensor], base: Tensor | None) -> None:
        for i, theta in enumerate(models):
            wanted = np.float32(thresholds[i]).view(np.int32)
            equal = sum(int((bits == wanted).sum()) for bits in _magnitude_bits(theta, base)) if left[i] else 0
            shares[i][name] = min(equal, left[i])
            left[i] -= shares[i][name]

    passes(visit)
    return shares


def _magnitude_bits(theta: Tensor, base: Tensor | None) -> Iterator[npt.NDArray[np.int32]]:
    """The task vector's magnitudes, block by block, as the integers that sort as they do."""
    assert base is not None
    for a, b in zip(theta.reshape(-1).split(BLOCK), base.reshape(-1).split(BLOCK), strict=True):
        yield (a - b).abs_().view(torch.int32).numpy()


def _find(counts: Counts, rank: int) -> tuple[int, int]:
    """The bin that holds the value of this rank, the largest being 1, and its rank within that bin."""
    above = counts[::-1].cumsum()
    place = int(np.searchsorted(above, rank))
    before = int(above[place - 1]) if place else 0
    return len(counts) - 1 - place, rank - before


def _magnitude(high: int, low: int) -> float:
    return float(np.array((high << LOW_BITS) | low, dtype=np.int32).view(np.float32))
