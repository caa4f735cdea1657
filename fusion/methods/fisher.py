"""Fisher merging: an average in which a model's parameter counts by how much the model's outputs depend on it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fusion.methods import linear
from fusion.methods.call import Place, spread
from fusion.methods.method import Method
from fusion.params import param

FORMULA = "theta = sum_i c_i F_i theta_i / sum_i c_i F_i, F_i the diagonal Fisher information, at least the floor"
PAPER = "Matena and Raffel 2022, Merging models with Fisher-weighted averaging, arXiv:2111.09832 (section 3)"


@dataclass(frozen=True)
class Params:
    """Fisher merging's parameters."""

    floor: float = param(
        1e-6, low=0.0, help="least Fisher information of a parameter, as a share of the model's root mean square"
    )
    normalise: bool = param(True, help="divide each model's Fisher information by its norm, as the paper does")


@dataclass(frozen=True)
class Fisher:
    """The diagonal Fisher information of one tensor, per token; scale: its root mean square over the whole model."""

    diagonal: Float[Tensor, " *shape"]
    scale: float


def check(weights: Sequence[float], params: Params) -> str | None:
    """Weights scale information, so none may be negative."""
    if min(weights) < 0:
        return f"the weights {list(weights)} hold a negative one: information cannot be less than none"
    return linear.check(weights, linear.Params())


def merge(
    models: list[Float[Tensor, " *shape"]],
    base: None,
    weights: Sequence[float] | None,
    params: Params,
    at: Place,
) -> Float[Tensor, " *shape"]:
    """Fisher-weighted averaging (Matena and Raffel 2022, section 3), with their normalisation and floor.

    1. scale      F~_i = F_i / s_i; s_i is the root mean square of F_i over model i, or, without `normalise`, the mean
                  of these over the models. The paper divides by the norm: the same up to a factor all models share
    2. floor      F~_i = max(F~_i, floor); relative to s_i, so that it means the same whatever the size of the model
    3. average    theta = A + sum_i c_i F~_i (theta_i - A) / sum_i c_i F~_i;  A = sum_i c_i theta_i / sum_i c_i

    The paper's code gives a floor to the first model alone, which then wins where no model has any information. Here
    all have it, so that the result there is the weighted average A; and so it is, at floor 0, where all are exactly 0.
    A tensor without Fisher information of every model is the weighted average.
    The ledger gets `floored`, the share of values below the floor in all models.
    """
    average = linear.merge(models, None, weights, linear.Params(), at)
    found: list[Fisher] = [fisher for fisher in at.statistics if fisher is not None]
    if len(found) < len(models):
        if found:
            at.note("fishers_missing", len(models) - len(found))
        return average
    scales = [fisher.scale for fisher in found]
    if not params.normalise:
        scales = [sum(scales) / len(scales)] * len(scales)
    top, mass = torch.zeros_like(average), torch.zeros_like(average)
    floored = torch.ones_like(average, dtype=torch.bool)
    for theta, fisher, scale, share in zip(models, found, scales, spread(weights, len(models)), strict=True):
        information = fisher.diagonal.to(theta.device, torch.float32) / (scale or 1.0)
        floored &= information <= params.floor
        information.clamp_(min=params.floor)
        mass.add_(information, alpha=share)
        top.add_(information.mul_(theta - average), alpha=share)
    at.note("floored", float(floored.double().mean()) if floored.numel() else 0.0)
    # Where there is no information at all, the sum above is 0, whatever it is divided by.
    return top.div_(mass.masked_fill_(mass == 0, 1.0)).add_(average)


METHOD = Method(
    name="fisher",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="none",
    models=(1, None),
    weights=True,
    version=1,
    unit="tensor",
    statistics="fisher",
    check=check,
)
