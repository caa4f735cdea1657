"""How task vectors become one: their weighted sum, or the mean of those that agree on a sign."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fusion.errors import RecipeError


def weighted_sum(
    base: Float[Tensor, " *shape"],
    deltas: Iterable[Float[Tensor, " *shape"]],
    weights: Sequence[float],
    normalize: bool,
    scale: float,
) -> Float[Tensor, " *shape"]:
    """base + scale sum_i w_i delta_i, divided by sum_i w_i where asked to (Ilharco et al. 2023, section 2).

    Raises RecipeError where the weights to divide by sum to 0.
    """
    if normalize and (wrong := without_sum(weights)):
        raise RecipeError(wrong)
    factor = scale / sum(weights) if normalize else scale
    total = torch.zeros_like(base)
    for delta, weight in zip(deltas, weights, strict=True):
        total.add_(delta, alpha=weight)
    return total.mul_(factor).add_(base)


def elected(
    base: Float[Tensor, " *shape"],
    deltas: Sequence[Float[Tensor, " *shape"]],
    weights: Sequence[float],
    normalize: bool,
    scale: float,
) -> Float[Tensor, " *shape"]:
    """base + scale tau by TIES' election and disjoint merge (Yadav et al. 2023, algorithm 1); `deltas` are overwritten.

    1. elect   gamma = sgn(sum_i w_i delta_i)
    2. merge   tau = sum_A w_i delta_i / sum_A |w_i|   over A = {i: sgn(w_i delta_i) = gamma != 0}

    The paper has no weights (w_i = 1): a weight counts a model so many times, and a negative one negates its task
    vector. Without `normalize` tau is the sum alone. Where signs balance exactly, gamma = 0 and the base stays.
    """
    sign = torch.zeros_like(base)
    for delta, weight in zip(deltas, weights, strict=True):
        sign.add_(delta if weight == 1 else delta.mul_(weight))
    sign.sign_()
    total = torch.zeros_like(base)
    mass = torch.zeros_like(base) if normalize else None
    agrees = torch.empty_like(base)
    for delta, weight in zip(deltas, weights, strict=True):
        # What agrees is positive now, and the sign is put back at the end.
        total.add_(delta.mul_(sign).clamp_min_(0.0))
        if mass is not None:
            mass.add_(torch.gt(delta, 0.0, out=agrees), alpha=abs(weight))
    if mass is not None:
        # Where nobody agrees the sum is 0, whatever it is divided by.
        total.div_(mass.add_(torch.eq(mass, 0.0, out=agrees)))
    return total.mul_(sign).mul_(scale).add_(base)


def without_sum(weights: Sequence[float]) -> str | None:
    """What is wrong with weights that are to be divided by their sum."""
    if sum(weights) != 0:
        return None
    return f"the weights {list(weights)} sum to 0, and 'normalize' divides by their sum: set normalize: false"
