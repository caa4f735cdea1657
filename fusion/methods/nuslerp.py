"""Spherical interpolation between two models, or two task vectors, with a weight for each."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float, Float64
from torch import Tensor

from fusion.methods.call import Block, Blocks, Place
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
    factors = _by_row(models, base, weights, params, at, 0.0) if at.found is None else at.found
    return _put(models, base, factors, at.shape)


def survey(
    blocks: Blocks, weights: Sequence[float] | None, params: Params, at: Place
) -> Float64[Tensor, "2 parts"] | list[float] | None:
    """The factors of the two models, for the tensor or for each column; None where rows go by themselves."""
    return _factors(blocks, weights, params, at, 0.0)


def straight(cosine: Float64[Tensor, " *parts"]) -> Bool[Tensor, " *parts"]:
    """Whether two vectors are in line."""
    return 1.0 - cosine * cosine <= IN_LINE


def _factors(
    blocks: Blocks, weights: Sequence[float] | None, params: Params, at: Place, shortest: float
) -> Float64[Tensor, "2 parts"] | list[float] | None:
    flat = params.nuslerp_flatten or len(at.shape) < 2
    if not flat and not params.nuslerp_row_wise:
        return None
    t = shares(weights, 2, at.tensor)[1]
    found = arc(products(blocks) if flat else column_products(blocks), t, straight, shortest)
    return found.tolist() if flat else found


def _by_row(
    models: list[Tensor], base: Tensor | None, weights: Sequence[float] | None, params: Params, at: Place, least: float
) -> Float64[Tensor, "2 parts 1"]:
    rows = [as_rows(vector, at.shape) for vector in vectors(models, base)]
    return arc(row_products(rows), shares(weights, 2, at.tensor)[1], straight, least).unsqueeze(-1)


def _put(models: list[Tensor], base: Tensor | None, factors: Tensor | list[float], shape: tuple[int, ...]) -> Tensor:
    """The combination, with factors for every row in the rows' own shape."""
    if not isinstance(factors, Tensor) or factors.ndim == 2:
        return combined(models, base, factors)
    rows = [as_rows(theta, shape) for theta in models]
    return combined(rows, None if base is None else as_rows(base, shape), factors).reshape(models[0].shape)


def _as_mergekit(
    models: list[Tensor], base: Tensor | None, weights: Sequence[float] | None, params: Params, at: Place
) -> Tensor:
    """With a zero vector at a right angle to the other."""
    count = at.shape[0] if len(at.shape) > 1 else 1
    form = (count, models[0].numel() // max(count, 1))
    own, below = [theta.reshape(form) for theta in models], None if base is None else base.reshape(form)
    found = _factors(lambda: iter([Block(0, own, below)]), weights, params, at, NO_LENGTH)
    factors = _by_row(own, below, weights, params, at, NO_LENGTH) if found is None else found
    return _put(own, below, factors, at.shape).reshape(at.shape)


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
