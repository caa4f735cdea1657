"""Interpolation between two models that is the stronger the nearer they are, element by element."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from fusion.methods.call import Place
from fusion.methods.method import Method
from fusion.params import param

FORMULA = "theta = (1-s) base + s theta_1,   s = clip(t / |base - theta_1|, 0, 1)"
PAPER = "Alchemonaut 2024, QuartetAnemoi-70B (a model card); after mergekit, method nearswap"

# What a difference is taken to be at least before it is divided by.
NO_DIFFERENCE = 1e-6


@dataclass(frozen=True)
class Params:
    """Nearswap's parameters."""

    t: float = param(1e-4, low=0.0, help="the difference up to which the other model's values are taken")


def merge(
    models: list[Float[Tensor, " n"]],
    base: Float[Tensor, " n"],
    weights: None,
    params: Params,
    at: Place,
) -> Float[Tensor, " n"]:
    """theta = (1-s) base + s theta_1 with s = clip(t / max(|base - theta_1|, 1e-6), 0, 1) for every element.

    Where the two differ by t or less, theta is the other model's value; elsewhere it moves from the base by t. A model
    card is its origin: there is no paper. The default t is that card's; mergekit has none.
    """
    share = (base - models[0]).abs_().clamp_min_(NO_DIFFERENCE).reciprocal_().mul_(params.t).clamp_(0.0, 1.0)
    return base.mul(1.0 - share).add_(share.mul_(models[0]))


METHOD = Method(
    name="nearswap",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="required",
    merges_base=True,
    models=(1, 1),
    weights=False,
    version=1,
    unit="elements",
)
