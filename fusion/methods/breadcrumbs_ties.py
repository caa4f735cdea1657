"""Model Breadcrumbs with TIES' election: task vectors without their extremes, averaged where they agree."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from fusion.methods import breadcrumbs
from fusion.methods.call import Place, spread
from fusion.methods.elect import elected
from fusion.methods.mergekit import banded, compat
from fusion.methods.method import Method
from fusion.methods.trim import trim
from fusion.params import param

FORMULA = "theta = base + lambda mean of the breadcrumbs' task vectors whose sign is the sign of their sum"
PAPER = "Davari and Belilovsky 2023, arXiv:2312.06795 (section 3), with the election of TIES, arXiv:2306.01708"


@dataclass(frozen=True)
class Params(breadcrumbs.Params):
    """Breadcrumbs' parameters, and TIES' mean."""

    normalize: bool = param(True, help="true: the mean of those that agree on a sign; false: their sum")


def merge(
    models: list[Float[Tensor, " n"]],
    base: Float[Tensor, " n"],
    weights: Sequence[float] | None,
    params: Params,
    at: Place,
) -> Float[Tensor, " n"]:
    """Breadcrumbs' mask (Davari and Belilovsky 2023, section 3) for TIES' trim (Yadav et al. 2023, algorithm 1).

    1. mask            tau_i = m_i (theta_i - base), as breadcrumbs has it
    2. elect           gamma = sgn(sum_i w_i tau_i)
    3. disjoint mean   tau = sum_A w_i tau_i / sum_A |w_i|   over A = {i: sgn(w_i tau_i) = gamma != 0}
    4. scale           theta = base + lambda tau
    """
    deltas = [trim(theta - base, band, at.start) for theta, band in zip(models, at.found, strict=True)]
    return elected(base, deltas, spread(weights, len(models)), params.normalize, params.lambda_)


METHOD = Method(
    name="breadcrumbs_ties",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="required",
    models=(1, None),
    weights=True,
    version=1,
    unit="elements",
    survey=breadcrumbs.survey,
    compat=compat(banded, elect=True),
)
