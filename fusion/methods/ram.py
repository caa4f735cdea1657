"""RAM: task vectors averaged where several models changed an element, and kept whole where a single one did."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fusion.methods.call import Place
from fusion.methods.method import Method
from fusion.params import param

FORMULA = "theta = base + sum_{i in C} tau_i / |C|,   C = {i: |tau_i| > epsilon}, element by element"
PAPER = "Yuan et al. 2026, Behavior Knowledge Merge in Reinforced Agentic Models, arXiv:2601.13572 (RAM)"


@dataclass(frozen=True)
class Params:
    """RAM's parameters."""

    epsilon: float = param(1e-5, low=0.0, help="a change no larger than this counts as none")


def merge(
    models: list[Float[Tensor, " n"]],
    base: Float[Tensor, " n"],
    weights: None,
    params: Params,
    at: Place,
) -> Float[Tensor, " n"]:
    """Reinforced agent merging (Yuan et al. 2026): task vectors of reinforcement learning are sparse, and rarely meet.

    1. changed   C = {i: |tau_i| > epsilon},   tau_i = theta_i - base, for every element
    2. shared    the mean of tau_i over C where several models changed the element
    3. unique    tau_i, undiminished, where one model did
    """
    return joined(models, base, params.epsilon, [1.0] * len(models))


def joined(
    models: Sequence[Float[Tensor, " n"]], base: Float[Tensor, " n"], epsilon: float, scales: Sequence[float]
) -> Float[Tensor, " n"]:
    """The base plus the mean change of each element, multiplied by s_i where model i alone changed it."""
    deltas, count = changes(models, base, epsilon)
    alone = torch.eq(count, 1.0)
    count.clamp_min_(1.0)
    total = torch.zeros_like(base)
    for delta, scale in zip(deltas, scales, strict=True):
        delta.div_(count)
        total.add_(delta if scale == 1 else torch.where(alone, delta * scale, delta))
    return total.add_(base)


def changes(
    models: Sequence[Float[Tensor, " n"]], base: Float[Tensor, " n"], epsilon: float
) -> tuple[list[Float[Tensor, " n"]], Float[Tensor, " n"]]:
    """Task vectors with all that is no change set to 0, and how many models changed each element."""
    count = torch.zeros_like(base)
    deltas = []
    for theta in models:
        delta = theta - base
        changed = delta.abs().gt_(epsilon)
        count.add_(changed)
        deltas.append(delta.mul_(changed))
    return deltas, count


METHOD = Method(
    name="ram",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="required",
    models=(1, None),
    weights=False,
    version=1,
    unit="elements",
)
