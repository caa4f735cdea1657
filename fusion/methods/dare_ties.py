"""DARE, then TIES' election: drop entries of task vectors at random, rescale the others, average those that agree."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from fusion.methods import dare_linear
from fusion.methods.call import Place, spread
from fusion.methods.elect import elected
from fusion.methods.mergekit import compat, dropped
from fusion.methods.method import Method
from fusion.params import param

FORMULA = "theta = base + lambda mean of the DARE task vectors whose sign is the sign of their sum"
PAPER = (
    "Yu et al. 2024, DARE, arXiv:2311.03099 (section 3.2), with the election of TIES, arXiv:2306.01708 (algorithm 1)"
)


@dataclass(frozen=True)
class Params(dare_linear.Params):
    """DARE's parameters, and TIES' mean."""

    normalize: bool = param(True, help="true: the mean of those that agree on a sign; false: their sum")


def merge(
    models: list[Float[Tensor, " n"]],
    base: Float[Tensor, " n"],
    weights: Sequence[float] | None,
    params: Params,
    at: Place,
) -> Float[Tensor, " n"]:
    """DARE's drop and rescale (Yu et al. 2024, section 3.2) in place of TIES' trim (Yadav et al. 2023, algorithm 1).

    1. drop, rescale   delta_i = m_i (theta_i - base) / density,   m_i ~ Bernoulli(density) for every entry
    2. elect           gamma = sgn(sum_i w_i delta_i)
    3. disjoint mean   delta = sum_A w_i delta_i / sum_A |w_i|   over A = {i: sgn(w_i delta_i) = gamma != 0}
    4. scale           theta = base + lambda delta
    """
    deltas = [dare_linear.drop(theta - base, params, at, i) for i, theta in enumerate(models)]
    return elected(base, deltas, spread(weights, len(models)), params.normalize, params.lambda_)


METHOD = Method(
    name="dare_ties",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="required",
    models=(1, None),
    weights=True,
    version=1,
    unit="elements",
    random=True,
    compat=compat(dropped, elect=True, random=True),
)
