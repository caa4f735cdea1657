"""EMR-Merging: one elected task vector, and for every task a mask of it and a scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fusion.errors import RecipeError
from fusion.methods.call import Block, Blocks, Pass, Place
from fusion.methods.method import Method
from fusion.params import param

FORMULA = "theta_t = base + lambda_t M_t tau,   tau: elected sign times the largest magnitude that agrees with it"
PAPER = "Huang et al. 2024, EMR-Merging, arXiv:2405.17461 (section 3.3)"

# Every task's sum |tau_i| and sum |M_i tau|.
Norms = Float64[np.ndarray, "tasks 2"]


@dataclass(frozen=True)
class Params:
    """EMR's parameters."""

    task: str = param(help="the model whose mask and scale are used")
    rescaler: Literal["paper", "code"] = param(
        "paper", help="paper: from sums over all entries; code: from sums over tensors of their means, as released"
    )


def prepare(passes: Pass, params: Params) -> dict[str, float]:
    """Every task's rescaler. Raises RecipeError where `task` is none of the models."""
    models: tuple[str, ...] = ()
    norms = np.zeros((0, 2))
    for _, (found, mine) in passes(
        lambda blocks, weights, params, at: (at.models, tensor_norms(blocks, params.rescaler))
    ):
        models, norms = found, mine if not models else norms + mine
    if params.task not in models:
        raise RecipeError(f"task '{params.task}' is none of the models: {', '.join(models)}")
    return dict(zip(models, rescalers(norms), strict=True))


def merge(
    models: list[Float[Tensor, " n"]],
    base: Float[Tensor, " n"],
    weights: None,
    params: Params,
    at: Place,
) -> Float[Tensor, " n"]:
    """EMR-Merging (Huang et al. 2024, section 3.3): elect, mask and rescale.

    1. elect     gamma = sgn(sum_i tau_i);   tau = gamma max {|tau_i| : sgn(tau_i) = gamma}, entry by entry
    2. mask      M_t = 1[tau_t tau > 0]
    3. rescale   lambda_t = sum |tau_t| / sum |M_t tau| over all entries of the model; 1 where nothing is masked in
    4. task t    theta_t = base + lambda_t M_t tau

    It gives the model of one task; which one must be known when the model is used. `rescaler: code` is the released
    implementation's lambda_t: both sums are over tensors, of each tensor's mean.
    """
    tau, masks = elect(models, base)
    return tau.mul_(masks[at.models.index(params.task)]).mul_(at.state[params.task]).add_(base)


def elect(
    models: Sequence[Float[Tensor, " n"]], base: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], list[Float[Tensor, " n"]]]:
    """The elected task vector, and each task's mask of 1 and 0."""
    deltas = [theta - base for theta in models]
    sign = torch.zeros_like(base)
    for delta in deltas:
        sign.add_(delta)
    sign.sign_()
    largest = torch.zeros_like(base)
    for delta in deltas:
        torch.maximum(largest, delta.mul_(sign), out=largest)
    return largest.mul_(sign), [delta.gt_(0.0) for delta in deltas]


def block_norms(block: Block, tau: Float[Tensor, " n"], masks: Sequence[Float[Tensor, " n"]]) -> Norms:
    """Every task's sum |tau_i| and sum |M_i tau| in one block, summed in float64."""
    assert block.base is not None
    magnitude = tau.abs()
    return np.array(
        [
            [
                float(torch.sub(theta, block.base).abs_().sum(dtype=torch.float64)),
                float((magnitude * mask).sum(dtype=torch.float64)),
            ]
            for theta, mask in zip(block.models, masks, strict=True)
        ]
    )


def tensor_norms(blocks: Blocks, rescaler: str) -> Norms:
    """Every task's two norms in one tensor, of which `rescalers` makes a rescaler."""
    total, numel = np.zeros((0, 2)), 0
    for block in blocks():
        assert block.base is not None
        mine = block_norms(block, *elect(block.models, block.base))
        total, numel = mine if not len(total) else total + mine, numel + block.base.numel()
    return total / max(numel, 1) if rescaler == "code" else total


def rescalers(norms: Norms) -> list[float]:
    """lambda_t of every task from its two norms over the model; 1 where nothing of tau is masked in."""
    return [float(own / masked) if masked > 0 else 1.0 for own, masked in norms]


METHOD = Method(
    name="emr",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="required",
    models=(1, None),
    weights=False,
    version=1,
    unit="elements",
    routed=True,
    prepare=prepare,
)
