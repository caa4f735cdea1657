"""DELLA with task arithmetic: drop small entries of task vectors more often than large ones, rescale, add up."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fusion.errors import RecipeError
from fusion.methods.call import Place, spread
from fusion.methods.draw import bounds, uniform
from fusion.methods.elect import weighted_sum, without_sum
from fusion.methods.mergekit import compat, magpruned
from fusion.methods.method import Method
from fusion.params import PerModel, param

FORMULA = "theta = base + lambda sum_i w_i m_i (theta_i - base) / p_i,   m_i ~ Bernoulli(p_i), p_i by rank in its row"
PAPER = "Deep et al. 2024, DELLA-Merging, arXiv:2406.11617 (section 3, MAGPRUNE)"

PLACE = (1 << 32) - 1


@dataclass(frozen=True)
class Params:
    """DELLA's parameters, in shares that are kept. Those of the authors' example: drop rate 0.3, window 0.14."""

    density: PerModel = param(0.7, low=0.0, high=1.0, help="how likely an entry of a task vector is kept, on average")
    epsilon: PerModel = param(
        0.07,
        low=0.0,
        high=0.5,
        help="the smallest of a row is kept with density - epsilon, the largest with density + it",
    )
    lambda_: float = param(1.0, help="scale of the merged task vector")
    rescale: bool = param(True, help="divide what is kept by its own probability, so that it is expected to stay")
    normalize: bool = param(False, help="divide the sum by the sum of the weights")


def check(weights: Sequence[float], params: Params) -> str | None:
    """Probabilities lie in [0, 1]; a normalised sum needs weights with a sum to divide by."""
    return window(params) or (without_sum(weights) if params.normalize else None)


def merge(
    models: list[Float[Tensor, "rows width"]],
    base: Float[Tensor, "rows width"],
    weights: Sequence[float] | None,
    params: Params,
    at: Place,
) -> Float[Tensor, "rows width"]:
    """MAGPRUNE (Deep et al. 2024, section 3) with task arithmetic.

    1. rank      r = 0 .. m-1 by |theta_i - base| within each row of m entries, the smallest first; of equal ones the
                 first counts as smaller; a vector is one row
    2. drop      kept with p = density - epsilon + 2 epsilon r / (m-1); in a row of one entry with p = density
    3. rescale   delta_i = m_i (theta_i - base) / p
    4. sum       theta = base + lambda sum_i w_i delta_i

    The paper counts what is dropped: its p is 1 - density, and its window epsilon is twice ours, which is mergekit's.
    Density 1 keeps all and density 0 nothing, whatever epsilon is.
    """
    deltas = (magprune(theta - base, params, at, i) for i, theta in enumerate(models))
    return weighted_sum(base, deltas, spread(weights, len(models)), params.normalize, params.lambda_)


def magprune(delta: Float[Tensor, "rows width"], params: Params, at: Place, model: int) -> Float[Tensor, "rows width"]:
    """Steps 1 to 3 for one model, in place. Raises RecipeError where density -+ epsilon leaves [0, 1]."""
    density = params.density[model]
    if density >= 1:
        return delta
    if density <= 0:
        return torch.zeros_like(delta)
    if wrong := window(params):
        raise RecipeError(f"{wrong} (in {at.tensor})")
    limits, gains = _by_rank(delta.shape[-1], density, params.epsilon[model], params.rescale)
    # One number a rank: which of a row's numbers an entry gets is as good as random either way.
    drawn = uniform(at, model, delta.numel()).reshape(delta.shape) < limits
    factors = torch.from_numpy(drawn * gains).to(delta.device).reshape(-1)
    return delta.mul_(torch.empty_like(factors).scatter_(0, _ranked(delta), factors).reshape(delta.shape))


def window(params: Params) -> str | None:
    """What is wrong with the range of probabilities."""
    for density, epsilon in zip(params.density, params.epsilon, strict=True):
        if 0 < density < 1 and not 0 <= density - epsilon <= density + epsilon <= 1:
            return (
                f"density {density} with epsilon {epsilon} gives probabilities from {density - epsilon:.6g} to "
                f"{density + epsilon:.6g}; allowed: [0, 1]"
            )
    return None


@lru_cache(maxsize=64)
def _by_rank(
    width: int, density: float, epsilon: float, rescale: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """For every rank, the smallest first: what a uniform int32 must be below to be kept, and the factor if it is."""
    kept = np.linspace(density - epsilon, density + epsilon, width) if width > 1 else np.full(width, density)
    gains = np.divide(1.0, kept, out=np.zeros(width), where=kept > 0) if rescale else np.ones(width)
    return bounds(kept), gains.astype(np.float32)


def _ranked(delta: Float[Tensor, "rows width"]) -> Int64[Tensor, " n"]:
    """The positions of a block's entries by row, and within a row by magnitude, the smallest first.

    Magnitude and position in one number make every number different, so that any sort gives the same order.
    """
    magnitude = delta.abs().view(torch.int32)
    if delta.is_cuda:
        numbers = torch.arange(delta.numel(), device=delta.device).reshape(delta.shape)
        ordered = (magnitude.long().bitwise_left_shift_(32) + numbers).sort(dim=-1).values
        return ordered.bitwise_and_(PLACE).reshape(-1)
    # numpy's sort of 64 bits is several times as fast as torch's.
    both = magnitude.numpy().astype(np.int64)
    both <<= 32
    both += np.arange(delta.numel(), dtype=np.int64).reshape(both.shape)
    both.sort(axis=-1)
    both &= PLACE
    return torch.from_numpy(both.reshape(-1))


METHOD = Method(
    name="della_linear",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="required",
    models=(1, None),
    weights=True,
    version=1,
    unit="rows",
    random=True,
    check=check,
    compat=compat(magpruned, elect=False, random=True),
)
