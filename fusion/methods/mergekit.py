"""mergekit 0.1.5's arithmetic for the methods on task vectors, where a recipe says `compat: mergekit`.

One formula serves all of them, tensor by tensor:

    d_i = sparsified theta_i - base
    D_i = w_i d_i
    elected:  s = +1 where sum_i D_i >= 0, else -1;   m_i = 1[sgn(D_i) = s]
              tau = sum_i m_i D_i;   mass = sum_i m_i w_i, and 1 where that is 0
    else:     tau = sum_i D_i;       mass = sum_i w_i, and 1 where that is below 1e-8
    theta = base + lambda tau, or lambda tau / mass with `normalize`

It differs from the papers in this: trimming goes tensor by tensor; counts are rounded down; weights take part in the
election, and a sum of 0 elects +1; `rescale` restores the L1 norm of each tensor instead of dividing by a probability;
and the random numbers are one stream of torch's generator, drawn in the order of sorted tensor names and of the
recipe's models. Everything here is written from the formulas and checked against mergekit's output.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fusion.methods.call import Blocks, Pass, Place, spread
from fusion.methods.method import Compat

# Sums that mergekit takes for nothing.
NO_NORM = 1e-7
NO_MASS = 1e-8
# The least density above 0.
SMALLEST = 5e-324

# What one model's task vector becomes, from its parameters by name and the stream of random numbers.
Sparsify = Callable[[Tensor, Mapping[str, float], torch.Generator], Tensor]


def trimmed(delta: Tensor, own: Mapping[str, float], stream: torch.Generator) -> Tensor:
    """TIES' trim: the max(1, int(density n)) largest."""
    count = max(1, int(own["density"] * delta.numel()))
    return delta * _ranked(delta, 0, count, descending=True)


def banded(delta: Tensor, own: Mapping[str, float], stream: torch.Generator) -> Tensor:
    """Breadcrumbs: int(density n) entries, next to the int(gamma n) largest."""
    numel = delta.numel()
    count, top = int(own["density"] * numel), int(own["gamma"] * numel)
    low = max(0, numel - count - top)
    return delta * _ranked(delta, low, low + count, descending=False)


def dropped(delta: Tensor, own: Mapping[str, float], stream: torch.Generator) -> Tensor:
    """DARE's drop; at density 0 too it draws."""
    return delta * torch.bernoulli(torch.full_like(delta, own["density"], device="cpu"), generator=stream).to(delta)


def magpruned(delta: Tensor, own: Mapping[str, float], stream: torch.Generator) -> Tensor:
    """DELLA's drop: a probability by rank along the second axis, a vector being one row.

    In a row of one entry, where mergekit divides 0 by 0 and stops, it is the density.
    """
    density, epsilon = own["density"], own["epsilon"]
    rows = delta if delta.ndim > 1 else delta.reshape(1, -1)
    width = rows.shape[1]
    if width == 1:
        return dropped(delta, own, stream)
    numbers = torch.arange(1, width + 1, dtype=rows.dtype, device=rows.device)
    places = rows.abs().argsort(dim=1)
    ranks = torch.empty_like(rows).scatter_(1, places, numbers.reshape(-1, *([1] * (rows.ndim - 2))).expand_as(rows))
    kept = (density - epsilon) + (ranks - 1) / (width - 1) * 2 * epsilon
    return delta * torch.bernoulli(kept.cpu(), generator=stream).to(delta).reshape(delta.shape)


def compat(sparsify: Sparsify | None, elect: bool, random: bool = False) -> Compat:
    """How mergekit computes a method; the method's Params hold lambda, normalize and what `sparsify` needs."""
    prepare = partial(_streams, least=0.0 if sparsify is dropped else SMALLEST) if random else None
    return Compat(partial(_merge, sparsify=sparsify, elect=elect), prepare)


def _merge(
    models: list[Float[Tensor, " *shape"]],
    base: Float[Tensor, " *shape"],
    weights: Sequence[float] | None,
    params: Any,
    at: Place,
    sparsify: Sparsify | None,
    elect: bool,
) -> Float[Tensor, " *shape"]:
    stream = torch.Generator()
    if at.state is not None:
        stream.set_state(at.state[at.tensor])
    deltas = [theta - base for theta in models]
    if sparsify is not None:
        deltas = [_sparse(delta, sparsify, params, i, stream) for i, delta in enumerate(deltas)]
    shares = torch.tensor(spread(weights, len(models)), dtype=base.dtype, device=base.device)
    shares = shares.reshape(-1, *([1] * base.ndim))
    stacked = torch.stack(deltas) * shares
    if elect:
        agree = stacked.sign() == (stacked.sum(dim=0) >= 0).to(stacked) * 2 - 1
        total, mass = (stacked * agree).sum(dim=0), (shares * agree).sum(dim=0)
        mass[mass == 0] = 1
    else:
        total, mass = stacked.sum(dim=0), shares.sum(dim=0)
        mass[mass.abs() < NO_MASS] = 1
    if params.normalize:
        total /= mass
    return base + (total * params.lambda_ if params.lambda_ != 1 else total)


def _sparse(delta: Tensor, sparsify: Sparsify, params: Any, model: int, stream: torch.Generator) -> Tensor:
    own = {name: values[model] for name, values in vars(params).items() if isinstance(values, tuple)}
    if own["density"] >= 1 or delta.numel() == 0:
        return delta
    if own["density"] <= 0 and sparsify is not dropped:
        return torch.zeros_like(delta)
    sparse = sparsify(delta, own, stream)
    if not params.rescale:
        return sparse
    before, after = delta.abs().sum(), sparse.abs().sum()
    return sparse if before < NO_NORM or after < NO_NORM else sparse * (before / after)


def _ranked(delta: Tensor, start: int, stop: int, descending: bool) -> Tensor:
    """1 for the entries whose place, sorted by magnitude, is in [start, stop).

    Which of equal magnitudes comes first is up to torch's unstable sort, whose order mergekit takes; it is only sorted
    where that matters, since selecting is several times as fast.
    """
    magnitude = delta.abs().reshape(-1)
    mask = torch.zeros_like(magnitude)
    if start >= stop:
        return mask.reshape(delta.shape)
    first, last = (magnitude.numel() - stop, magnitude.numel() - start - 1) if descending else (start, stop - 1)
    chosen = np.partition(magnitude.cpu().numpy(), sorted({first, last}))
    inside = (magnitude >= float(chosen[first])) & (magnitude <= float(chosen[last]))
    if int(inside.sum()) == stop - start:
        return inside.to(delta).reshape(delta.shape)
    mask[magnitude.argsort(descending=descending)[start:stop]] = 1
    return mask.reshape(delta.shape)


def _streams(passes: Pass, params: Any, least: float) -> dict[str, UInt8[Tensor, " n"]]:
    """The state of mergekit's random stream before each tensor: seeded once, drawn from tensor after tensor.

    Their order is that of the last name among the tensors that each is made of, in which slices differ from the result,
    and then that of the result's layers. A model draws where its density is below 1 and at least `least`.
    """

    def visit(blocks: Blocks, weights: Any, params: Any, at: Place) -> _Draw:
        return _Draw(max(at.sources), at.seed, at.shape, params.density)

    stream = torch.Generator()
    states: dict[str, Tensor] = {}
    for name, draw in sorted(passes(visit), key=lambda found: (found[1].order, _counted(found[0]))):
        if not states:
            stream.manual_seed(draw.seed)
        states[name] = stream.get_state()
        half = torch.full(draw.shape, 0.5)
        for share in draw.density:
            if least <= share < 1:
                torch.bernoulli(half, generator=stream)
    return states


def _counted(name: str) -> list[tuple[int, str]]:
    """A name that sorts by the numbers in it, layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


class _Draw(NamedTuple):
    """What of a tensor decides when and how much is drawn for it."""

    order: str
    seed: int
    shape: tuple[int, ...]
    density: tuple[float, ...]
