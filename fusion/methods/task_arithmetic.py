"""The sum of task vectors, added to the base."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fusion.methods.call import Place, spread
from fusion.params import param

FORMULA = "theta = base + lambda sum_i w_i (theta_i - base)"
PAPER = "Ilharco et al. 2023, Editing models with task arithmetic, arXiv:2212.04089 (section 2)"


@dataclass(frozen=True)
class Params:
    """Task arithmetic's parameters."""

    lambda_: float = param(1.0, help="scale of the summed task vectors")


def merge(
    models: list[Float[Tensor, " *shape"]],
    base: Float[Tensor, " *shape"],
    weights: Sequence[float] | None,
    params: Params,
    at: Place,
) -> Float[Tensor, " *shape"]:
    """Addition and negation of task vectors (Ilharco et al. 2023, section 2).

    1. task vectors   tau_i = theta_i - base
    2. sum            tau = sum_i w_i tau_i          w_i = 1 where no weights are given; w_i < 0 negates a task
    3. scale          theta = base + lambda tau
    """
    total = torch.zeros_like(base)
    for theta, weight in zip(models, spread(weights, len(models)), strict=True):
        total.add_(theta - base, alpha=weight)
    return total.mul_(params.lambda_).add_(base)
