"""Weighted average of the models' weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fusion.methods.call import Place, spread
from fusion.methods.geometry import cancels, combined, shares
from fusion.methods.method import Compat, Method
from fusion.params import param

FORMULA = "theta = sum_i w_i theta_i / sum_i w_i"
PAPER = "Wortsman et al. 2022, Model soups, arXiv:2203.05482 (uniform soup, section 2)"


@dataclass(frozen=True)
class Params:
    """Linear's parameters."""

    normalize: bool = param(True, help="true: the weights are divided by their sum; false: they are taken as they are")


def check(weights: Sequence[float], params: Params) -> str | None:
    """An average needs weights with a sum to divide by."""
    return cancels(weights) if params.normalize else None


def merge(
    models: list[Float[Tensor, " *shape"]],
    base: None,
    weights: Sequence[float] | None,
    params: Params,
    at: Place,
) -> Float[Tensor, " *shape"]:
    """theta = sum_i w_i theta_i / sum_i w_i; w_i = 1 where no weights are given. Negative weights are allowed.

    Model soups' uniform soup is the case of equal weights (Wortsman et al. 2022, section 2). Without `normalize` the
    sum is not divided. mergekit divides the sum instead of the weights, which differs by rounding alone (`compat` does
    so, too); weights that sum to 0 are refused here and give infinities there.
    """
    count = len(models)
    return combined(models, None, shares(weights, count, at.tensor) if params.normalize else spread(weights, count))


def _as_mergekit(
    models: list[Float[Tensor, " *shape"]],
    base: None,
    weights: Sequence[float] | None,
    params: Params,
    at: Place,
) -> Float[Tensor, " *shape"]:
    """The weighted sum in float32, then divided: mergekit's operations in their order."""
    given = torch.tensor(spread(weights, len(models)), dtype=torch.float32, device=models[0].device)
    total = torch.zeros_like(models[0])
    for theta, weight in zip(models, given, strict=True):
        total.addcmul_(theta, weight)
    return total.div_(given.sum()) if params.normalize else total


METHOD = Method(
    name="linear",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="none",
    models=(1, None),
    weights=True,
    version=1,
    unit="elements",
    check=check,
    compat=Compat(_as_mergekit),
)
