"""One model as it is, or scaled: what stacks of layers are put together from."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from fusion.methods.call import Place
from fusion.methods.method import Method
from fusion.params import PerModel, param

FORMULA = "theta = s theta_1"
PAPER = "Kim et al. 2023, SOLAR 10.7B, arXiv:2312.15166 (depth up-scaling, section 2), with slices; after mergekit"


@dataclass(frozen=True)
class Params:
    """Passthrough's parameters."""

    scale: PerModel = param(1.0, help="what the values are multiplied by")


def merge(
    models: list[Float[Tensor, " *shape"]],
    base: None,
    weights: None,
    params: Params,
    at: Place,
) -> Float[Tensor, " *shape"]:
    """theta = s theta_1: a copy, bit for bit, at s = 1. With slices, of each layer from the model that its slice names.

    A scale by filters makes a block's outputs weaker, as depth up-scaling with down-scaled projections does.
    """
    (scale,) = params.scale
    return models[0] if scale == 1 else models[0] * scale


METHOD = Method(
    name="passthrough",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="none",
    models=(1, 1),
    weights=False,
    version=1,
    unit="elements",
)
