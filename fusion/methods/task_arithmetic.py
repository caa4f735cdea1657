"""The sum of task vectors, added to the base."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from fusion.methods.call import Place, spread
from fusion.methods.elect import weighted_sum, without_sum
from fusion.methods.mergekit import compat
from fusion.methods.method import Method
from fusion.params import param

FORMULA = "theta = base + lambda sum_i w_i (theta_i - base)"
PAPER = "Ilharco et al. 2023, Editing models with task arithmetic, arXiv:2212.04089 (section 2)"


@dataclass(frozen=True)
class Params:
    """Task arithmetic's parameters."""

    lambda_: float = param(1.0, help="scale of the summed task vectors")
    normalize: bool = param(False, help="divide the sum by the sum of the weights")


def check(weights: Sequence[float], params: Params) -> str | None:
    """A normalised sum needs weights with a sum to divide by."""
    return without_sum(weights) if params.normalize else None


def merge(
    models: list[Float[Tensor, " n"]],
    base: Float[Tensor, " n"],
    weights: Sequence[float] | None,
    params: Params,
    at: Place,
) -> Float[Tensor, " n"]:
    """Addition and negation of task vectors (Ilharco et al. 2023, section 2).

    1. task vectors   tau_i = theta_i - base
    2. sum            tau = sum_i w_i tau_i          w_i = 1 where no weights are given; w_i < 0 negates a task
    3. scale          theta = base + lambda tau
    """
    deltas = (theta - base for theta in models)
    return weighted_sum(base, deltas, spread(weights, len(models)), params.normalize, params.lambda_)


METHOD = Method(
    name="task_arithmetic",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="required",
    models=(1, None),
    weights=True,
    version=1,
    unit="elements",
    check=check,
    compat=compat(None, elect=False),
)
