"""Spherical interpolation between two models, or two task vectors, with a weight for each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from fusion.methods.call import Blocks, Place
from fusion.methods.geometry import (
    arc,
    as_rows,
    cancels,
    column_products,
    combined,
    products,
    row_products,
    shares,
    vectors,
)
from fusion.methods.method import Compat, Method
from fusion.params import param

FORMULA = "slerp with t = w_2 / (w_1 + w_2), of the task vectors where there is a base"
PAPER = "mergekit (Goddard et al. 2024, arXiv:2403.13257), method nuslerp; the arc is Shoemake's (1985)"

# sin^2(omega) below which no arc is defined: less than float32 can tell from a line.
IN_LINE = 1e-12
# What mergekit takes a length to be at least.
NO_LENGTH = 1e-7


@dataclass(frozen=True)
class Params:
    """NuSLERP's parameters."""

    nuslerp_flatten: bool = param(True, help="true: each tensor is one vector; false: its rows or columns are vectors")
    nuslerp_row_wise: bool = param(
        False, help="where tensors are not flattened: true takes vectors along the first axis, false along the last"
    )


def check(weights: Sequence[float], params: Params) -> str | None:
    """The place on the arc is a share of the weights' sum."""
    return cancels(weights)


def merge(
    models: list[Float[Tensor, "rows width"]],
    base: Float[Tensor, "rows width"] | None,
    weights: Sequence[float] | None,
    params: Params,
    at: Place,
) -> Float[Tensor, "rows width"]:
    """Slerp between two models, or between their task vectors where there is a base (mergekit's nuslerp).

    1. vectors   v_i = theta_i, or theta_i - base
    2. angle     omega = arccos <v_1, v_2> / (|v_1| |v_2|)
    3. arc       theta = base + sin((1-t) omega)/sin(omega) v_1 + sin(t omega)/sin(omega) v_2,   t = w_2 / (w_1 + w_2)
    4. fallback  (1-t) v_1 + t v_2 where v_1 and v_2 are in line (sin^2 omega <= 1e-12) or one is zero

    A vector is the whole tensor; without `nuslerp_flatten` the tensor along its last axis (for a linear layer, all
    weights of one output), or with `nuslerp_row_wise` along its first. Where mergekit differs: it takes a zero vector
    to be at a right angle to the other (`compat` does so too), sets t = 1/2 where the weights sum to 0, which is
    refused here, and returns rounding noise for opposite vectors.
    """
    if at.found is not None:
        return combined(models, base, at.found)
    rows, below = [as_rows(theta, at.shape) for theta in models], None if base is None else as_rows(base, at.shape)
    factors = arc(row_products(vectors(rows, below)), shares(weights, 2, at.tensor)[1], straight)
    return combined(rows, below, factors.unsqueeze(-1)).reshape(models[0].shape)


def survey(
    blocks: Blocks, weights: Sequence[float] | None, params: Params, at: Place
) -> Float64[Tensor, "2 parts"] | list[float] | None:
    """The factors of the two models, for the tensor or for each column; None where rows go by themselves."""
    flat = params.nuslerp_flatten or len(at.shape) < 2
    if not flat and not params.nuslerp_row_wise:
        return None
    found = arc(products(blocks) if flat else column_products(blocks), shares(weights, 2, at.tensor)[1], straight)
    return found.tolist() if flat else found


def straight(cosine: Float64[Tensor, " *parts"]) -> Bool[Tensor, " *parts"]:
    """Whether two vectors are in line."""
    return 1.0 - cosine * cosine <= IN_LINE


def _as_mergekit(
    models: list[Float[Tensor, " *shape"]],
    base: Float[Tensor, " *shape"] | None,
    weights: Sequence[float] | None,
    params: Params,
    at: Place,
) -> Float[Tensor, " *shape"]:
    """In float32 throughout."""
    dim = 0 if params.nuslerp_row_wise and not params.nuslerp_flatten else -1
    form = (-1,) if params.nuslerp_flatten or not at.shape else at.shape
    near, far = [vector.reshape(form) for vector in vectors(models, base)]
    t = shares(weights, 2, at.tensor)[1]
    units = [v / torch.linalg.norm(v, dim=dim, keepdim=True).clamp_min(NO_LENGTH) for v in (near, far)]
    cosine = (units[0] * units[1]).sum(dim, keepdim=True).clamp(-1.0, 1.0)
    omega = torch.acos(cosine)
    curved = (torch.sin((1.0 - t) * omega) * near + torch.sin(t * omega) * far) / torch.sin(omega)
    found = torch.where(cosine.abs() == 1.0, (1.0 - t) * near + t * far, curved).reshape(at.shape)
    return found if base is None else base + found


METHOD = Method(
    name="nuslerp",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="optional",
    models=(2, 2),
    weights=True,
    version=1,
    unit="rows",
    survey=survey,
    check=check,
    compat=Compat(merge=_as_mergekit),
)
