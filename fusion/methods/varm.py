"""VaRM: models weighted matrix by matrix by how far each has moved from the base there."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from fusion.methods.call import Blocks, Place, inner
from fusion.methods.geometry import combined, vectors
from fusion.methods.method import Method

FORMULA = "theta = base + sum_i w_i tau_i,   w_i = mean(tau_i^2) / sum_j mean(tau_j^2) of each parameter matrix"
PAPER = "Wan et al. 2024, Knowledge Fusion of Chat LLMs (FuseChat v1), arXiv:2402.16107 (VaRM)"


@dataclass(frozen=True)
class Params:
    """VaRM has no parameters."""


def merge(
    models: list[Float[Tensor, " n"]],
    base: Float[Tensor, " n"],
    weights: None,
    params: Params,
    at: Place,
) -> Float[Tensor, " n"]:
    """Variation ratio merge (Wan et al. 2024, FuseChat v1), tensor by tensor, without a number to choose.

    1. variation  v_i = mean of tau_i^2 over the tensor,   tau_i = theta_i - base; the base is the fusions' target
    2. weights    w_i = v_i / sum_j v_j; where no model has changed the tensor, it is the base's
    3. merge      theta = base + sum_i w_i tau_i, which is sum_i w_i theta_i

    The paper's unit is the parameter matrix, and here every tensor is one. The authors' program has other units (model,
    layer, module, element) and sums of absolute changes instead of squares, too; none of them is here. It also differs
    from the paper: all models read one file of changes, and the command that it is published with measures the change
    from one fused model to the other instead of from the base, so that every model has the same weight and the result
    is the plain average (`linear`); and where one model alone has not changed a matrix, all are weighted alike, while
    here that model weighs nothing.
    """
    return combined(models, base, at.found)


def survey(blocks: Blocks, weights: None, params: Params, at: Place) -> list[float]:
    """Every model's weight in one tensor. All have as many elements, so that sums stand for means."""
    sizes = [0.0] * len(at.models)
    for block in blocks():
        deltas = vectors(block.models, block.base)
        sizes = [size + inner(delta, delta) for size, delta in zip(sizes, deltas, strict=True)]
    total = sum(sizes)
    return [size / total if total > 0 else 1.0 / len(sizes) for size in sizes]


METHOD = Method(
    name="varm",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="required",
    models=(1, None),
    weights=False,
    version=1,
    unit="elements",
    survey=survey,
)
