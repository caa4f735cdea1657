"""SCE: select the elements in which models differ most, calculate a weight of each matrix, erase minority signs."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fusion.methods.call import BLOCK, Block, Blocks, Place, inner
from fusion.methods.geometry import vectors
from fusion.methods.method import Compat, Method
from fusion.methods.trim import Band, Cut, kept_count, own_cuts, trim
from fusion.params import param

FORMULA = "theta = base + sum_i eta_i tau_i 1[sgn(tau_i) = sgn(sum_j tau_j)],   eta_i = |tau_i|^2 / sum_j |tau_j|^2"
PAPER = "Wan et al. 2024, FuseChat: Knowledge Fusion of Chat Models, arXiv:2408.07990 (SCE, section 3.4)"

# The sum of mean squares, and that of weights, below which mergekit takes them for nothing.
NO_SIZE = 1e-6
NO_MASS = 1e-6


@dataclass(frozen=True)
class Params:
    """SCE's parameters; the defaults are the paper's."""

    select_topk: float = param(0.1, low=0.0, high=1.0, help="share of each tensor's elements that is selected")
    variant: Literal["paper", "fusechat", "mergekit"] = param(
        "paper",
        help="paper: the sum of selected elements; fusechat, the authors' code: the weighted mean of all elements, the "
        "weights from selected ones; mergekit: the weighted mean of selected elements",
    )


class Found(NamedTuple):
    """What is selected of a tensor (None: everything) and every model's coefficient."""

    cut: Cut | None
    shares: list[float]


def merge(
    models: list[Float[Tensor, " n"]],
    base: Float[Tensor, " n"],
    weights: None,
    params: Params,
    at: Place,
) -> Float[Tensor, " n"]:
    """SCE (Wan et al. 2024, section 3.4), tensor by tensor.

    1. select      the k = select_topk n elements of largest variance over the models of tau_i = theta_i - base; the
                   other elements of tau_i become 0 (at select_topk 1 all stay)
    2. calculate   eta_i = sum tau_i^2 / sum_j sum tau_j^2, the sums over the selected elements
    3. erase       tau_i becomes 0 where its sign is not that of sum_i tau_i
    4. merge       theta = base + sum_i eta_i tau_i

    Two programs are published that differ from this and from each other. The authors' (variant: fusechat) selects for
    step 2 only, so that steps 3 and 4 see all elements; mergekit (variant: mergekit) selects as the paper does. Both
    divide step 4 by the sum of eta_i over the models that are left at the element, a mean instead of the paper's sum;
    both take k = int(select_topk m) of the m elements in which models differ at all, where the paper has all n; and
    both let positive elements win where the signs balance, where here nothing is left.

    `compat` gives mergekit's numbers whatever the variant: also there, coefficients are equal where the mean squares of
    all models sum to less than 1e-6, as those of light fine-tuning do, and the divisor of step 4 is at least 1e-6.
    Elements in which the models do not differ are never selected below select_topk 1, so that one model alone gives
    the base. Of equal variances the first elements are selected; k >= 1 unless select_topk is 0.
    """
    plain = params.variant == "paper"
    deltas = vectors(models, base)
    if at.found.cut is not None and params.variant != "fusechat":
        deltas = _selected(deltas, at.found.cut, at.start)
    sign = _sum(deltas)
    sign = sign.sign_() if plain else torch.where(sign >= 0, 1.0, -1.0)
    total, mass = torch.zeros_like(base), torch.zeros_like(base)
    for delta, share in zip(deltas, at.found.shares, strict=True):
        # What agrees is positive now, and the sign is put back at the end.
        agrees = delta.mul_(sign).clamp_min_(0.0)
        total.add_(agrees, alpha=share)
        if not plain:
            mass.add_(agrees.gt_(0.0), alpha=share)
    if not plain:
        # Where nobody agrees the sum is 0, whatever it is divided by.
        total.div_(mass.add_(torch.eq(mass, 0.0)))
    return total.mul_(sign).add_(base)


def survey(blocks: Blocks, weights: None, params: Params, at: Place) -> Found:
    """What is selected of one tensor, and its coefficients."""
    numel = math.prod(at.shape)
    cut = None if params.select_topk >= 1 else _cut(blocks, params, numel)
    sizes = [0.0] * len(at.models)
    for block in blocks():
        deltas = vectors(block.models, block.base)
        if cut is not None:
            deltas = _selected(deltas, cut, block.start)
        sizes = [size + inner(delta, delta) for size, delta in zip(sizes, deltas, strict=True)]
    total = sum(sizes)
    return Found(cut, [size / total if total > 0 else 1.0 / len(sizes) for size in sizes])


def _cut(blocks: Blocks, params: Params, numel: int) -> Cut:
    """The cut through the variances that keeps the k largest."""
    count = kept_count(numel, params.select_topk)
    if params.variant != "paper":
        different = sum(int(_variance(vectors(b.models, b.base)).count_nonzero()) for b in blocks())
        count = int(different * params.select_topk)
    ((cut,),) = own_cuts(lambda: _variances(blocks), [(count,)], numel)
    return cut


def _selected(deltas: Sequence[Float[Tensor, " n"]], cut: Cut, start: int) -> list[Float[Tensor, " n"]]:
    """A block of task vectors with all set to 0, in place, that the cut leaves out or in which they are equal."""
    chosen = trim(_variance(deltas), Band(cut), start).gt_(0.0)
    return [delta.mul_(chosen) for delta in deltas]


def _variances(blocks: Blocks) -> Iterator[Block]:
    for block in blocks():
        variance = _variance(vectors(block.models, block.base))
        yield Block(block.start, [variance], variance.new_zeros(()))


def _variance(deltas: Sequence[Float[Tensor, " n"]]) -> Float[Tensor, " n"]:
    """The variance of every element over the models."""
    mean = _sum(deltas).div_(len(deltas))
    total = torch.zeros_like(mean)
    off = torch.empty_like(mean)
    for delta in deltas:
        torch.sub(delta, mean, out=off)
        total.addcmul_(off, off)
    return total.div_(len(deltas))


def _sum(deltas: Sequence[Float[Tensor, " n"]]) -> Float[Tensor, " n"]:
    total = deltas[0].clone()
    for delta in deltas[1:]:
        total.add_(delta)
    return total


def _as_mergekit(
    models: list[Float[Tensor, " *shape"]], base: Float[Tensor, " *shape"], weights: None, params: Params, at: Place
) -> Float[Tensor, " *shape"]:
    """In mergekit's operations for each element, some elements at a time; its top-k decides among equal variances."""
    parts = [torch.stack(part).sub_(part[-1])[:-1] for part in _parts(models, base)]
    if params.select_topk < 1 and base.numel():
        variance = torch.cat([part.var(0, correction=0) for part in parts])
        count = int(variance.count_nonzero().item() * params.select_topk)
        chosen = torch.zeros_like(variance)
        chosen[variance.topk(count, sorted=False).indices] = 1.0
        for part, here in zip(parts, chosen.split(BLOCK), strict=True):
            part.mul_(here)
    sizes = torch.stack([torch.cat([part[i].square() for part in parts]).mean() for i in range(len(models))])
    shares = sizes / sizes.sum() if sizes.sum() >= NO_SIZE else torch.full_like(sizes, 1.0 / len(models))
    found = []
    for part, below in zip(parts, base.reshape(-1).split(BLOCK), strict=True):
        sign = torch.where(part.sum(0) >= 0, 1.0, -1.0)
        left = part.sign().eq_(sign).mul_(shares[:, None])
        found.append(part.mul_(left).sum(0).div_(left.sum(0).clamp_min_(NO_MASS)).add_(below))
    return torch.cat(found).reshape(base.shape)


def _parts(models: Sequence[Float[Tensor, " *shape"]], base: Float[Tensor, " *shape"]) -> Iterator[tuple[Tensor, ...]]:
    """The models and the base, a run of elements at a time."""
    return zip(*(theta.reshape(-1).split(BLOCK) for theta in (*models, base)), strict=True)


METHOD = Method(
    name="sce",
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
    compat=Compat(merge=_as_mergekit),
)
