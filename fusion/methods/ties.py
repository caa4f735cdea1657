"""TIES: trim task vectors, elect a sign for every parameter, average those that agree."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from fusion.methods.call import Blocks, Pass, Place, spread
from fusion.methods.elect import elected
from fusion.methods.mergekit import compat, trimmed
from fusion.methods.method import Method
from fusion.methods.trim import Band, Cut, Shared, cut_of, kept_count, own_cuts, rescaled, shared_cuts, trim
from fusion.params import PerModel, param

FORMULA = "theta = base + lambda mean of the trimmed task vectors whose sign is the sign of their sum"
PAPER = "Yadav et al. 2023, TIES-Merging, arXiv:2306.01708 (algorithm 1)"


@dataclass(frozen=True)
class Params:
    """TIES' parameters; the defaults are the paper's."""

    density: PerModel = param(0.2, low=0.0, high=1.0, help="share of each task vector that is kept: the largest")
    lambda_: float = param(1.0, help="scale of the merged task vector")
    trim: Literal["global", "tensor"] = param(
        "global", help="global: trim over the whole task vector, as the paper does; tensor: over each tensor by itself"
    )
    normalize: bool = param(True, help="true: the mean of those that agree on a sign; false: their sum")
    rescale: bool = param(False, help="restore each task vector's L1 norm, tensor by tensor, after trimming")


def prepare(passes: Pass, params: Params) -> list[Cut | Shared] | None:
    """The cut of every model's whole task vector; None where each tensor is trimmed by itself."""
    return None if params.trim == "tensor" else shared_cuts(passes, params.density)


def survey(blocks: Blocks, weights: Sequence[float] | None, params: Params, at: Place) -> list[Band]:
    """What stays of every model's task vector in one tensor."""
    if at.state is not None:
        bands = [Band(cut_of(blocks, i, cut, at.tensor)) for i, cut in enumerate(at.state)]
    else:
        numel = math.prod(at.shape)
        ranks = [(kept_count(numel, share),) for share in params.density]
        bands = [Band(cut) for (cut,) in own_cuts(blocks, ranks, numel)]
    return rescaled(blocks, bands) if params.rescale else bands


def merge(
    models: list[Float[Tensor, " n"]],
    base: Float[Tensor, " n"],
    weights: Sequence[float] | None,
    params: Params,
    at: Place,
) -> Float[Tensor, " n"]:
    """TIES-Merging (Yadav et al. 2023, algorithm 1).

    1. task vectors   tau_i = theta_i - base
    2. trim           keep the k = density n largest |tau_i|, zero the rest
    3. elect          gamma = sgn(sum_i w_i tau_i)
    4. disjoint mean  tau = sum_A w_i tau_i / sum_A |w_i|   over A = {i: sgn(w_i tau_i) = gamma != 0}
    5. scale          theta = base + lambda tau

    Ties: of equal magnitudes at the cut the first are kept, by sorted tensor name, then by row-major position, so that
    exactly k = max(1, round(density n)) stay (none at density 0). `normalize: false` leaves out the division in 4, and
    `rescale: true`, which the paper does not have, multiplies each trimmed tau_i by |tau_i|_1 / |trimmed tau_i|_1.
    """
    deltas = [trim(theta - base, band, at.start) for theta, band in zip(models, at.found, strict=True)]
    return elected(base, deltas, spread(weights, len(models)), params.normalize, params.lambda_)


METHOD = Method(
    name="ties",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="required",
    models=(1, None),
    weights=True,
    version=3,
    unit="elements",
    prepare=prepare,
    survey=survey,
    steady=lambda values: ("density",) if values.get("trim") == "global" else (),
    compat=compat(trimmed, elect=True),
)
