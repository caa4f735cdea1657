"""Spherical interpolation between two models."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fusion.methods.call import Blocks, Place
from fusion.methods.geometry import arc, combined, products
from fusion.methods.method import Compat, Method
from fusion.params import param

FORMULA = "theta = sin((1-t) omega)/sin(omega) theta_1 + sin(t omega)/sin(omega) theta_2, omega the angle between them"
PAPER = "Shoemake 1985, Animating rotation with quaternion curves (slerp), applied tensor by tensor"

# Nearer to a line than this, sin(omega) is too small to divide by.
COLINEAR = 0.9995
# What mergekit takes for no length, and how many elements it adds up at a time.
NO_LENGTH = 1e-8
PIECE = 1 << 20


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


def straight(cosine: Float[Tensor, " *parts"]) -> Bool[Tensor, " *parts"]:
    """Whether two vectors are so nearly in line that the line between them is taken."""
    return cosine.abs() > COLINEAR


def _as_mergekit(
    models: list[Float[Tensor, " *shape"]], base: None, weights: None, params: Params, at: Place
) -> Float[Tensor, " *shape"]:
    """In float32 throughout, lengths and products summed piece by piece."""
    pieces = [theta.reshape(-1).split(PIECE) for theta in models]
    lengths = [torch.linalg.norm(torch.stack([torch.linalg.norm(part) for part in mine])) for mine in pieces]
    near, far = [length if length > NO_LENGTH else torch.ones_like(length) for length in lengths]
    cosine = sum((a / near * (b / far)).sum() for a, b in zip(*pieces, strict=True)).clamp(-1.0, 1.0)
    if straight(cosine):
        return models[0] * (1.0 - params.t) + models[1] * params.t
    omega = torch.acos(cosine)
    shares = [torch.sin(part * omega) / torch.sin(omega) for part in (1.0 - params.t, params.t)]
    return models[0] * shares[0] + models[1] * shares[1]


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
