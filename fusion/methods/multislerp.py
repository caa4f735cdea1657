"""The mean direction of several models, or task vectors, with their mean length."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fusion.errors import RecipeError
from fusion.methods.call import Block, Blocks, Place, spread
from fusion.methods.geometry import cancels, combined, products, shares, vectors
from fusion.methods.method import Compat, Method
from fusion.params import param

FORMULA = "theta = (sum_i w_i |v_i|) m / |m|,   m = sum_i w_i v_i / |v_i|, of the task vectors where there is a base"
PAPER = "mergekit (Goddard et al. 2024, arXiv:2403.13257), method multislerp"

# A mean of unit vectors shorter than this is what rounding leaves of vectors that cancel.
CANCELLED = 1e-6


@dataclass(frozen=True)
class Params:
    """Multislerp's parameters."""

    normalize_weights: bool = param(True, help="whether the weights are divided by their sum")
    eps: float = param(1e-8, low=0.0, help="added to lengths before they are divided by")


def check(weights: Sequence[float], params: Params) -> str | None:
    """Weights that are divided by their sum need one."""
    return cancels(weights) if params.normalize_weights else None


def merge(
    models: list[Float[Tensor, " n"]],
    base: Float[Tensor, " n"] | None,
    weights: Sequence[float] | None,
    params: Params,
    at: Place,
) -> Float[Tensor, " n"]:
    """Barycentre on the sphere, to first order (mergekit's multislerp).

    1. vectors     v_i = theta_i, or theta_i - base;   u_i = v_i / (|v_i| + eps)
    2. direction   m = sum_i w_i u_i,   w_i divided by their sum where `normalize_weights`
    3. length      theta = base + (sum_i w_i |v_i|) m / |m|

    mergekit then moves along the mean of the vectors' projections on the tangent space at m, which is 0 since m is
    their mean: rounding apart, which `compat` repeats, this is all. One model is returned as it is. Where directions
    cancel (|m| < 1e-6), two vectors are averaged, sum_i w_i v_i, and more raise RecipeError; so they do there, and
    there also where all vectors are zero, as with a tensor that no model has trained: here it keeps the base's values.
    """
    return combined(models, base, at.found)


def survey(blocks: Blocks, weights: Sequence[float] | None, params: Params, at: Place) -> list[float]:
    """The models' factors, from the lengths of their vectors and the angles between them."""
    count = len(at.models)
    if count == 1:
        return [1.0]
    given = shares(weights, count, at.tensor) if params.normalize_weights else spread(weights, count)
    inner = products(blocks).numpy()
    lengths = [math.sqrt(max(float(inner[i, i]), 0.0)) for i in range(count)]
    if not any(lengths):
        return [0.0] * count
    unit = np.array([w / (size + params.eps) if size else 0.0 for w, size in zip(given, lengths, strict=True)])
    size = math.sqrt(max(float(unit @ inner @ unit), 0.0))
    if size >= max(params.eps, CANCELLED):
        scale = sum(w * length for w, length in zip(given, lengths, strict=True)) / size
        return [scale * float(part) for part in unit]
    if count == 2:
        return given
    raise RecipeError(
        f"{at.tensor}: the weighted directions of {', '.join(at.models)} cancel, so they have no mean: change the "
        "weights, or merge by linear"
    )


def _as_mergekit(
    models: list[Float[Tensor, " *shape"]],
    base: Float[Tensor, " *shape"] | None,
    weights: Sequence[float] | None,
    params: Params,
    at: Place,
) -> Float[Tensor, " *shape"]:
    """In float32 throughout, with the step on the tangent space."""
    count = len(models)
    given = torch.tensor(spread(weights, count), device=models[0].device)
    if params.normalize_weights:
        # Only to refuse weights that sum to 0: these are to be float32 as mergekit's are.
        shares(weights, count, at.tensor)
        given = given / given.sum()
    from_base = vectors(models, base)
    lengths = [torch.linalg.norm(vector) for vector in from_base]
    units = [vector / (length + params.eps) for vector, length in zip(from_base, lengths, strict=True)]
    mean = sum(w * unit for w, unit in zip(given, units, strict=True))
    size = torch.linalg.norm(mean)
    if count == 1 or size < max(params.eps, CANCELLED):
        return combined(models, base, survey(lambda: iter([Block(0, models, base)]), weights, params, at))
    mean = mean / size
    step = sum(w * (unit - (unit * mean).sum() * mean) for w, unit in zip(given, units, strict=True))
    angle = torch.linalg.norm(step) + params.eps
    found = mean * torch.cos(angle) + step * (torch.sin(angle) / angle)
    found = found * sum(w * length for w, length in zip(given, lengths, strict=True))
    return found if base is None else base + found


METHOD = Method(
    name="multislerp",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="optional",
    models=(1, None),
    weights=True,
    version=1,
    unit="elements",
    survey=survey,
    check=check,
    compat=Compat(merge=_as_mergekit),
)
