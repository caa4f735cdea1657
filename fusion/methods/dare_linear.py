"""DARE with task arithmetic: drop entries of task vectors at random, rescale the others, add them up."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fusion.methods.call import Place, spread
from fusion.methods.draw import bernoulli
from fusion.methods.elect import weighted_sum, without_sum
from fusion.methods.mergekit import compat, dropped
from fusion.methods.method import Method
from fusion.params import PerModel, param

FORMULA = "theta = base + lambda sum_i w_i m_i (theta_i - base) / density,   m_i ~ Bernoulli(density)"
PAPER = "Yu et al. 2024, Language models are super Mario, arXiv:2311.03099 (section 3.2)"


@dataclass(frozen=True)
class Params:
    """DARE's parameters. The density is 1 - p, p the paper's drop rate: 0.2 in its scripts for language models."""

    density: PerModel = param(0.8, low=0.0, high=1.0, help="how likely an entry of a task vector is kept")
    lambda_: float = param(1.0, help="scale of the merged task vector")
    rescale: bool = param(True, help="divide what is kept by the density, so that it is expected to stay as it was")
    normalize: bool = param(False, help="divide the sum by the sum of the weights")


def check(weights: Sequence[float], params: Params) -> str | None:
    """A normalised sum needs weights with a sum to divide by."""
    return without_sum(weights) if params.normalize else None


def merge(
    models: list[Float[Tensor, " n"]],
    base: Float[Tensor, " n"],
    weights: Sequence[float] | None,
    params: Params,
    at: Place,
) -> Float[Tensor, " n"]:
    """DARE (Yu et al. 2024, section 3.2) with task arithmetic.

    1. drop      m_i ~ Bernoulli(density) for every entry: the paper's 1 - m, with drop rate p = 1 - density
    2. rescale   delta_i = m_i (theta_i - base) / density
    3. sum       theta = base + lambda sum_i w_i delta_i
    """
    deltas = (drop(theta - base, params, at, i) for i, theta in enumerate(models))
    return weighted_sum(base, deltas, spread(weights, len(models)), params.normalize, params.lambda_)


def drop(delta: Float[Tensor, " n"], params: Params, at: Place, model: int) -> Float[Tensor, " n"]:
    """Steps 1 and 2 for one model, in place."""
    density = params.density[model]
    if density >= 1:
        return delta
    if density <= 0:
        return torch.zeros_like(delta)
    delta.mul_(bernoulli(at, model, density, delta))
    return delta.div_(density) if params.rescale else delta


METHOD = Method(
    name="dare_linear",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="required",
    models=(1, None),
    weights=True,
    version=1,
    unit="elements",
    random=True,
    check=check,
    compat=compat(dropped, elect=False, random=True),
)
