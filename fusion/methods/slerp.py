"""Spherical interpolation between two models."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Float64
from torch import Tensor

from fusion.methods.call import Blocks, Place, gram
from fusion.methods.geometry import arc, combined, products
from fusion.methods.method import Compat, Method
from fusion.params import param

FORMULA = "theta = sin((1-t) omega)/sin(omega) theta_1 + sin(t omega)/sin(omega) theta_2, omega the angle between them"
PAPER = "Shoemake 1985, Animating rotation with quaternion curves (slerp), applied tensor by tensor"

# Nearer to a line than this, sin(omega) is too small to divide by.
COLINEAR = 0.9995
# What mergekit takes for no length.
NO_LENGTH = 1e-8


@dataclass(frozen=True)
class Params:
    """Slerp's parameters."""

    t: float = param(0.5, low=0.0, high=1.0, help="0 is the first model, 1 the second")


def merge(
    models: list[Float[Tensor, " *shape"]],
    base: None,
    weights: None,
    params: Params,
    at: Place,
) -> Float[Tensor, " *shape"]:
    """Interpolation along the arc between two tensors taken as vectors (Shoemake 1985), their lengths left as they are.

    1. angle     omega = arccos <theta_1, theta_2> / (|theta_1| |theta_2|)
    2. arc       theta = sin((1-t) omega)/sin(omega) theta_1 + sin(t omega)/sin(omega) theta_2
    3. fallback  theta = (1-t) theta_1 + t theta_2 where |cos omega| > 0.9995 or a tensor is zero: no arc is defined

    mergekit takes a zero tensor to be at a right angle to the other; `compat` does as it does.
    """
    return combined(models, None, at.found)


def survey(blocks: Blocks, weights: None, params: Params, at: Place) -> list[float]:
    """The factors of the two models, from the angle between their tensors."""
    return arc(products(blocks), params.t, straight).tolist()


def straight(cosine: Float64[Tensor, " *parts"]) -> Bool[Tensor, " *parts"]:
    """Whether two vectors are so nearly in line that the line between them is taken."""
    return cosine.abs() > COLINEAR


def _as_mergekit(models: list[Tensor], base: None, weights: None, params: Params, at: Place) -> Tensor:
    """With a zero tensor at a right angle to the other."""
    return combined(models, None, arc(gram(models), params.t, straight, NO_LENGTH).tolist())


METHOD = Method(
    name="slerp",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="none",
    models=(2, 2),
    weights=False,
    version=1,
    unit="elements",
    survey=survey,
    compat=Compat(merge=_as_mergekit),
)
