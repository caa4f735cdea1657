"""Model Breadcrumbs: task vectors without their largest and their smallest entries, added up."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from fusion.methods.call import Blocks, Place, spread
from fusion.methods.elect import weighted_sum, without_sum
from fusion.methods.mergekit import banded, compat
from fusion.methods.method import Method
from fusion.methods.trim import Band, kept_count, own_cuts, rescaled, trim
from fusion.params import PerModel, param

FORMULA = "theta = base + lambda sum_i w_i m_i (theta_i - base),   m_i: in each tensor, neither largest nor smallest"
PAPER = "Davari and Belilovsky 2023, Model breadcrumbs, arXiv:2312.06795 (section 3)"


@dataclass(frozen=True)
class Params:
    """Breadcrumbs' parameters; by default the smallest 85 % and the largest 1 % of each tensor are left out."""

    density: PerModel = param(0.14, low=0.0, high=1.0, help="share of each tensor of a task vector that is kept")
    gamma: PerModel = param(0.01, low=0.0, high=1.0, help="share that is left out as too large")
    lambda_: float = param(1.0, help="scale of the merged task vector")
    normalize: bool = param(False, help="divide the sum by the sum of the weights")
    rescale: bool = param(False, help="restore each task vector's L1 norm, tensor by tensor, after masking")


def check(weights: Sequence[float], params: Params) -> str | None:
    """A normalised sum needs weights with a sum to divide by."""
    return without_sum(weights) if params.normalize else None


def survey(blocks: Blocks, weights: Sequence[float] | None, params: Params, at: Place) -> list[Band]:
    """What stays of every model's task vector in one tensor."""
    numel = math.prod(at.shape)
    ranks = []
    for density, gamma in zip(params.density, params.gamma, strict=True):
        top = round(gamma * numel)
        ranks.append((top + min(kept_count(numel, density), numel - top), top))
    bands = [Band(lower, upper) for lower, upper in own_cuts(blocks, ranks, numel)]
    return rescaled(blocks, bands) if params.rescale else bands


def merge(
    models: list[Float[Tensor, " n"]],
    base: Float[Tensor, " n"],
    weights: Sequence[float] | None,
    params: Params,
    at: Place,
) -> Float[Tensor, " n"]:
    """Model Breadcrumbs (Davari and Belilovsky 2023, section 3).

    1. task vectors   tau_i = theta_i - base
    2. mask           in every tensor of n entries, by magnitude: leave out the round(gamma n) largest, keep the
                      max(1, round(density n)) next (fewer where so many are not left), leave out the others; the
                      paper's beta, the share of the smallest, is 1 - density - gamma
    3. sum            theta = base + lambda sum_i w_i m_i tau_i

    Of equal magnitudes the first by position counts as the largest. `rescale: true`, which the paper does not have,
    multiplies each masked tau_i by |tau_i|_1 / |m_i tau_i|_1.
    """
    deltas = (trim(theta - base, band, at.start) for theta, band in zip(models, at.found, strict=True))
    return weighted_sum(base, deltas, spread(weights, len(models)), params.normalize, params.lambda_)


METHOD = Method(
    name="breadcrumbs",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="required",
    models=(1, None),
    weights=True,
    version=1,
    unit="elements",
    survey=survey,
    check=check,
    compat=compat(banded, elect=False),
)
