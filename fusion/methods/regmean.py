"""RegMean: every linear layer becomes the least-squares fit to what the models' own layers do to their own inputs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fusion.errors import RecipeError
from fusion.methods import linear
from fusion.methods.call import Place, spread
from fusion.methods.method import Method
from fusion.params import param

FORMULA = "W = (sum_i c_i G_i)^-1 sum_i c_i G_i W_i, G_i = alpha X_i' X_i + (1 - alpha) diag(X_i' X_i); others averaged"
PAPER = "Jin et al. 2023, Dataless knowledge fusion by merging weights of language models, arXiv:2212.09849 (section 3)"

# Beyond this condition number fewer digits of the solution are right than a float32 holds.
CONDITION_LIMIT = 1e10


@dataclass(frozen=True)
class Params:
    """RegMean's parameters."""

    alpha: float = param(
        0.9,
        low=0.0,
        high=1.0,
        help="factor of the Gram matrices' off-diagonal, the paper's alpha: 1 keeps it, 0 leaves a weighted mean by "
        "input feature. Some code and recipes write the other number, 1 - alpha, under a like name (reduce_nondiag)",
    )
    ridge: float = param(
        0.0, low=0.0, help="pull towards the weighted average, as a share of the mean diagonal of the summed Grams"
    )


@dataclass(frozen=True)
class Gram:
    """What a linear layer is given: matrix [d_in, d_in] = X'X per token of the corpus, in float64.

    tokens: how many rows of inputs went into it. transposed: the layer keeps its weight as [d_in, d_out].
    """

    matrix: Float[Tensor, "d_in d_in"]
    tokens: int
    transposed: bool = False


def check(weights: Sequence[float], params: Params) -> str | None:
    """Each weight counts a model's inputs so many times, so none may be negative."""
    if min(weights) < 0:
        return f"the weights {list(weights)} hold a negative one: inputs cannot count less than not at all"
    return linear.check(weights, linear.Params())


def merge(
    models: list[Float[Tensor, " *shape"]],
    base: None,
    weights: Sequence[float] | None,
    params: Params,
    at: Place,
) -> Float[Tensor, " *shape"]:
    """RegMean (Jin et al. 2023, section 3): W minimises sum_i c_i |X_i W - X_i W_i|^2 for every linear layer.

    1. Gram matrices  G_i = X_i' X_i per token of corpus i, so that a long corpus counts no more than a short one
    2. off-diagonals  G~_i = alpha G_i + (1 - alpha) diag(G_i)
    3. solution       W = A + (S + r I)^-1 sum_i c_i G~_i (W_i - A),  S = sum_i c_i G~_i, A = sum_i c_i W_i / sum_i c_i

    With r = 0 this is the paper's S^-1 sum_i c_i G~_i W_i; r = ridge times the mean diagonal of S pulls towards A.
    It is solved by Cholesky in float64, scaled to a unit diagonal so that features of different size do no harm.
    What no model's data tells anything of is the weighted average A: inputs that are 0 in all data, and tensors that
    are no linear layer's weight or of which a model has no Gram (biases, norms, embeddings, an expert without tokens).

    The ledger gets `condition` (of the scaled S + r I, in the 1-norm), `dead` (share of inputs that are always 0) and
    `tokens`. Raises RecipeError where S + r I is singular to working precision: it is never inverted all the same.
    """
    average = linear.merge(models, None, weights, linear.Params(), at)
    grams: list[Gram] = [gram for gram in at.statistics if gram is not None]
    if len(grams) < len(models):
        if grams:
            at.note("grams_missing", len(models) - len(grams))
        return average
    shares = spread(weights, len(models))
    at.note("tokens", sum(gram.tokens for gram in grams))
    summed = right = None
    for theta, gram, share in zip(models, grams, shares, strict=True):
        scaled = _reduced(gram.matrix.to(theta.device), params.alpha).mul_(share)
        change = theta.double() - average.double()
        product = scaled @ (change if gram.transposed else change.T)
        summed = scaled if summed is None else summed.add_(scaled)
        right = product if right is None else right.add_(product)
    assert summed is not None and right is not None
    if not right.any():  # the models agree wherever there is data: nothing to solve for
        return average
    solved = _solve(summed, right, params, at)
    return (average.double() + (solved if grams[0].transposed else solved.T)).float()


def _reduced(matrix: Float[Tensor, "d d"], alpha: float) -> Float[Tensor, "d d"]:
    """A new float64 matrix with the off-diagonal times alpha."""
    reduced = matrix.to(torch.float64, copy=True)
    diagonal = reduced.diagonal().clone()
    reduced.mul_(alpha).diagonal().copy_(diagonal)
    return reduced


def _solve(
    summed: Float[Tensor, "d d"], right: Float[Tensor, "d out"], params: Params, at: Place
) -> Float[Tensor, "d out"]:
    """The solution X of (S + r I) X = right; 0 for inputs without data. `summed` is written over."""
    diagonal = summed.diagonal()
    live = diagonal > 0
    at.note("dead", 1.0 - float(live.double().mean()))
    if params.ridge:
        diagonal.add_(params.ridge * diagonal[live].mean())
    if not bool(live.all()):
        summed = summed[live][:, live]
    scale = summed.diagonal().rsqrt()
    summed.mul_(scale[:, None]).mul_(scale)
    factor, failed = torch.linalg.cholesky_ex(summed)
    condition = float("inf") if int(failed) else _condition(summed, factor)
    if not condition <= CONDITION_LIMIT:
        raise RecipeError(_singular(condition, len(live), params, at))
    at.note("condition", condition)
    solved = torch.zeros_like(right)
    solved[live] = torch.cholesky_solve(right[live] * scale[:, None], factor) * scale[:, None]
    return solved


def _condition(matrix: Float[Tensor, "d d"], factor: Float[Tensor, "d d"]) -> float:
    """The condition number in the 1-norm of a matrix with this Cholesky factor."""
    return float(_norm(matrix) * _norm(torch.cholesky_inverse(factor)))


def _norm(matrix: Float[Tensor, "d d"]) -> Float[Tensor, ""]:
    return torch.linalg.matrix_norm(matrix, 1)


def _singular(condition: float, width: int, params: Params, at: Place) -> str:
    found = "is not positive definite" if condition == float("inf") else f"has condition number {condition:.1e}"
    tokens = sum(gram.tokens for gram in at.statistics)
    return (
        f"{at.tensor}: the sum of the models' Gram matrices {found} (allowed: {CONDITION_LIMIT:.0e}), so its solution "
        f"would be noise; it comes from {tokens} tokens, for {width} inputs, at alpha {params.alpha:g} and ridge "
        f"{params.ridge:g}. Collect more text (at least 4 tokens an input), lower alpha, or set ridge above 0, "
        "such as 0.001"
    )


METHOD = Method(
    name="regmean",
    merge=merge,
    Params=Params,
    formula=FORMULA,
    paper=PAPER,
    base="none",
    models=(1, None),
    weights=True,
    version=1,
    unit="tensor",
    statistics="gram",
    check=check,
)
