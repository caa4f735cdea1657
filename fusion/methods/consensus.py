"""Consensus task arithmetic: the sum of task vectors, where enough tasks use it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fusion.methods.call import Place, spread
from fusion.methods.method import Method
from fusion.params import PerModel, param

FORMULA = (
    "theta = base + lambda tau 1[sum_i m_i >= agree],  tau = sum_i tau_i,  m_i = 1[|tau_i| >= threshold |tau - tau_i|]"
)
PAPER = "Wang et al. 2024, Localizing task information for improved model merging, arXiv:2405.07813 (sections 4, 5)"


@dataclass(frozen=True)
class Params:
    """Consensus' parameters. The paper chooses each task's threshold from 0.2 to 0.6 on held-out data."""

    threshold: PerModel = param(0.4, low=0.0, help="the paper's lambda_t: a greater one makes a task's mask sparser")
    agree: int = param(2, low=0, help="how many tasks must use an entry for it to stay")
    lambda_: float = param(1.0, help="scale of the merged task vector")


def merge(
    models: list[Float[Tensor, " n"]],
    base: Float[Tensor, " n"],
    weights: Sequence[float] | None,
    params: Params,
    at: Place,
) -> Float[Tensor, " n"]:
    """Consensus merging with task arithmetic (Wang et al. 2024, sections 4 and 5).

    1. task vectors   tau_i = w_i (theta_i - base), w_i = 1 in the paper;   tau = sum_i tau_i
    2. TALL masks     m_i = 1[|tau_i| >= threshold_i |tau - tau_i|]
    3. consensus      theta = base + lambda tau 1[sum_i m_i >= agree]

    agree: 1 drops what no task uses, 2 (the paper's choice) what a single task uses too; 0 is task arithmetic.
    """
    total = torch.zeros_like(base)
    deltas = [theta - base for theta in models]
    for delta, weight in zip(deltas, spread(weights, len(models)), strict=True):
        total.add_(delta if weight == 1 else delta.mul_(weight))
    users, far = torch.zeros_like(base), torch.empty_like(base)
    for delta, threshold in zip(deltas, params.threshold, strict=True):
        torch.sub(total, delta, out=far)
        users.add_(delta.abs_().ge_(far.abs_().mul_(threshold)))
    return total.mul_(users.ge_(params.agree)).mul_(params.lambda_).add_(base)


METHOD = Method(
    name="consensus",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="required",
    models=(1, None),
    weights=True,
    version=1,
    unit="elements",
)
