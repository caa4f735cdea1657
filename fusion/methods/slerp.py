"""Spherical interpolation between two models."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fusion.methods.call import Place, inner
from fusion.params import param

FORMULA = "theta = sin((1-t) omega)/sin(omega) theta_1 + sin(t omega)/sin(omega) theta_2, omega the angle between them"
PAPER = "Shoemake 1985, Animating rotation with quaternion curves (slerp), applied tensor by tensor"

# Nearer to a line than this, sin(omega) is too small to divide by.
COLINEAR = 0.9995


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
    """
    first, second = models
    near, far = 1.0 - params.t, params.t
    lengths = math.sqrt(inner(first, first) * inner(second, second))
    cosine = inner(first, second) / lengths if lengths > 0 else 1.0
    if abs(cosine) <= COLINEAR:
        omega = math.acos(cosine)
        near, far = math.sin(near * omega) / math.sin(omega), math.sin(far * omega) / math.sin(omega)
    return torch.mul(first, near).add_(second, alpha=far)
