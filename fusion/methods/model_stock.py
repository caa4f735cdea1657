"""Model Stock: the mean of fine-tuned models, pulled towards the base by the angle between their task vectors."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fusion.methods.call import Blocks, Place
from fusion.methods.geometry import as_rows, combined, products, row_products, vectors
from fusion.methods.method import Compat, Method
from fusion.params import param

FORMULA = "theta = t mean_i theta_i + (1-t) base,   t = N c / (1 + (N-1) c),   c the mean cosine between task vectors"
PAPER = "Jang et al. 2024, Model Stock, arXiv:2403.19522 (section 4, N models)"

# What mergekit takes a product of two lengths to be at least, and what it takes for a denominator of 0.
NO_LENGTH = 1e-6
NO_SHARE = 1e-6


@dataclass(frozen=True)
class Params:
    """Model Stock's parameters."""

    filter_wise: bool = param(False, help="true: one ratio for every row of a tensor instead of one for the tensor")


def merge(
    models: list[Float[Tensor, "rows width"]],
    base: Float[Tensor, "rows width"],
    weights: None,
    params: Params,
    at: Place,
) -> Float[Tensor, "rows width"]:
    """Interpolation between the base and the mean of N fine-tuned models (Jang et al. 2024, section 4).

    1. angles   c = mean over pairs i < j of <tau_i, tau_j> / (|tau_i| |tau_j|),   tau_i = theta_i - base
    2. ratio    t = N c / (1 + (N-1) c)
    3. merge    theta = base + t mean_i tau_i

    A pair with a zero task vector counts as at a right angle. t is an interpolation ratio, so where c < 0, at angles
    that the paper's geometry does not have, it is 0: the released code and mergekit then move away from the models,
    without bound. mergekit also takes |tau_i| |tau_j| to be at least 1e-6, which shrinks t of small tensors; `compat`
    does both. `filter_wise` takes tensors along their last axis (for a linear layer, all weights of one output).
    """
    if at.found is not None:
        return combined(models, base, [at.found / len(models)] * len(models))
    rows, below = [as_rows(theta, at.shape) for theta in models], as_rows(base, at.shape)
    ratio = _ratio(row_products(vectors(rows, below))) / len(models)
    return combined(rows, below, ratio[:, None].expand(len(models), -1, -1)).reshape(base.shape)


def survey(blocks: Blocks, weights: None, params: Params, at: Place) -> float | None:
    """The ratio of the tensor; None where every row has its own."""
    if params.filter_wise:
        return None
    return float(_ratio(products(blocks)))


def _ratio(inner: Float64[Tensor, "n n *parts"]) -> Float64[Tensor, " *parts"]:
    count = len(inner)
    lengths = torch.stack([inner[i, i] for i in range(count)]).clamp_min(0.0).sqrt()
    pairs = [(i, j) for i in range(count) for j in range(i)]
    sizes = [lengths[i] * lengths[j] for i, j in pairs]
    cosines = [inner[i, j] / torch.where(size > 0, size, 1.0) for (i, j), size in zip(pairs, sizes, strict=True)]
    cosine = torch.stack(cosines).mean(0).clamp(0.0, 1.0)
    return count * cosine / (1.0 + (count - 1) * cosine)


def _as_mergekit(
    models: list[Float[Tensor, " *shape"]], base: Float[Tensor, " *shape"], weights: None, params: Params, at: Place
) -> Float[Tensor, " *shape"]:
    """In float32 throughout."""
    form = at.shape if params.filter_wise and at.shape else (-1,)
    deltas = [delta.reshape(form) for delta in vectors(models, base)]
    lengths = [torch.linalg.norm(delta, dim=-1, keepdim=True) for delta in deltas]
    cosines = [
        ((deltas[i] * deltas[j]).sum(-1, keepdim=True) / (lengths[i] * lengths[j]).clamp_min(NO_LENGTH)).clamp(-1, 1)
        for i in range(len(deltas))
        for j in range(i)
    ]
    cosine = torch.stack(cosines).mean(0)
    share = 1.0 + (len(models) - 1) * cosine
    gone = share.abs() < NO_SHARE
    ratio = torch.where(gone, 0.0, len(models) * cosine / torch.where(gone, 1.0, share))
    ratio = ratio if params.filter_wise else ratio.reshape(())
    return ratio * torch.stack(models).mean(0) + (1.0 - ratio) * base


METHOD = Method(
    name="model_stock",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="required",
    models=(2, None),
    weights=False,
    version=1,
    unit="rows",
    survey=survey,
    compat=Compat(merge=_as_mergekit),
)
