"""RAM+: as RAM, with what a single model changed made larger for models that share much."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fusion.methods.call import Blocks, Place
from fusion.methods.method import Method
from fusion.methods.ram import changes, joined
from fusion.params import param

FORMULA = "theta = base + shared mean + sum_i lambda_i unique_i,   lambda_i = 1 + r clip(shared_i / unique_i, 0, alpha)"
PAPER = "Yuan et al. 2026, Behavior Knowledge Merge in Reinforced Agentic Models, arXiv:2601.13572 (RAM+), by tensor"


@dataclass(frozen=True)
class Params:
    """RAM+'s parameters."""

    epsilon: float = param(1e-5, low=0.0, help="a change no larger than this counts as none")
    r: float = param(0.1, low=0.0, help="how much unique changes grow with the ratio of shared to unique ones")
    alpha: float = param(0.2, low=0.0, help="the ratio is no more than this")


def merge(
    models: list[Float[Tensor, " n"]],
    base: Float[Tensor, " n"],
    weights: None,
    params: Params,
    at: Place,
) -> Float[Tensor, " n"]:
    """Reinforced agent merging with rescaling (Yuan et al. 2026), the ratio taken tensor by tensor as mergekit does.

    1. changed   C = {i: |tau_i| > epsilon},   tau_i = theta_i - base, for every element
    2. ratio     rho_i = elements that i changed with others / elements that i alone changed
    3. shared    the mean of tau_i over C where several models changed the element
    4. unique    (1 + r clip(rho_i, 0, alpha)) tau_i where model i alone did
    """
    return joined(models, base, params.epsilon, at.found)


def survey(blocks: Blocks, weights: None, params: Params, at: Place) -> list[float]:
    """The factor of what each model alone changed in a tensor."""
    unique, shared = [0] * len(at.models), [0] * len(at.models)
    for block in blocks():
        assert block.base is not None
        deltas, count = changes(block.models, block.base, params.epsilon)
        alone = torch.eq(count, 1.0)
        for i, delta in enumerate(deltas):
            changed = torch.ne(delta, 0.0)
            total = int(changed.count_nonzero())
            mine = int(changed.logical_and_(alone).count_nonzero())
            unique[i] += mine
            shared[i] += total - mine
    # A model with no unique change has nothing that the factor would scale.
    ratios = [both / max(one, 1) for both, one in zip(shared, unique, strict=True)]
    return [1.0 + params.r * min(ratio, params.alpha) for ratio in ratios]


METHOD = Method(
    name="ramplus_tl",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="required",
    models=(1, None),
    weights=False,
    version=1,
    unit="elements",
    survey=survey,
)
