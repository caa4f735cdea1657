"""Weighted average of the models' weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fusion.methods.call import Place, spread

FORMULA = "theta = sum_i w_i theta_i / sum_i w_i"
PAPER = "Wortsman et al. 2022, Model soups, arXiv:2203.05482 (uniform soup, section 2)"


@dataclass(frozen=True)
class Params:
    """Linear takes no parameters beside the models' weights."""


def check(weights: Sequence[float], params: Params) -> str | None:
    """An average needs weights with a sum to divide by."""
    return None if sum(weights) else f"the weights {list(weights)} sum to 0, so their average is undefined"


def merge(
    models: list[Float[Tensor, " *shape"]],
    base: None,
    weights: Sequence[float] | None,
    params: Params,
    at: Place,
) -> Float[Tensor, " *shape"]:
    """theta = sum_i w_i theta_i / sum_i w_i; w_i = 1 where no weights are given. Negative weights are allowed.

    Model soups' uniform soup is the case of equal weights (Wortsman et al. 2022, section 2).
    """
    shares = spread(weights, len(models))
    total = sum(shares)
    merged = torch.zeros_like(models[0])
    for theta, weight in zip(models, shares, strict=True):
        merged.add_(theta, alpha=weight / total)
    return merged
