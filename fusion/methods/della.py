"""DELLA: drop small entries of task vectors more often than large ones, rescale, average those that agree on a sign."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from fusion.methods import della_linear
from fusion.methods.call import Place, spread
from fusion.methods.elect import elected
from fusion.methods.mergekit import compat, magpruned
from fusion.methods.method import Method
from fusion.params import param

FORMULA = "theta = base + lambda mean of the MAGPRUNE task vectors whose sign is the sign of their sum"
PAPER = "Deep et al. 2024, DELLA-Merging, arXiv:2406.11617 (section 3)"


@dataclass(frozen=True)
class Params(della_linear.Params):
    """DELLA's parameters; the paper averages those that agree."""

    normalize: bool = param(True, help="true: the mean of those that agree on a sign; false: their sum")


def check(weights: Sequence[float], params: Params) -> str | None:
    """Probabilities lie in [0, 1]."""
    return della_linear.window(params)


def merge(
    models: list[Float[Tensor, "rows width"]],
    base: Float[Tensor, "rows width"],
    weights: Sequence[float] | None,
    params: Params,
    at: Place,
) -> Float[Tensor, "rows width"]:
    """DELLA-Merging (Deep et al. 2024, section 3): drop, elect, fuse.

    1. drop, rescale   delta_i = m_i (theta_i - base) / p_i, as della_linear has it
    2. elect           gamma = sgn(sum_i w_i delta_i)
    3. fuse            delta = sum_A w_i delta_i / sum_A |w_i|   over A = {i: sgn(w_i delta_i) = gamma != 0}
    4. scale           theta = base + lambda delta
    """
    deltas = [della_linear.magprune(theta - base, params, at, i) for i, theta in enumerate(models)]
    return elected(base, deltas, spread(weights, len(models)), params.normalize, params.lambda_)


METHOD = Method(
    name="della",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="required",
    models=(1, None),
    weights=True,
    version=1,
    unit="rows",
    random=True,
    check=check,
    compat=compat(magpruned, elect=True, random=True),
)
