"""mergekit's arithmetic for task vectors, from its formulas in float64; `make peers` compares with mergekit itself."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from tests.fusion.arrays import (
    BASE,
    SHAPES,
    A,
    Arrays,
    B,
    C,
    assert_close,
    assert_same,
    merge_of,
    merged,
    random_model,
    wide,
)
from tests.fusion.plain_vectors import plain_l1, plain_order, task_vectors


def plain_mergekit(
    deltas: Sequence[Arrays], base: Arrays, weights: Sequence[float], elect: bool, normalize: bool, scale: float
) -> Arrays:
    result = {}
    for k in base:
        stacked = np.stack([w * d[k] for w, d in zip(weights, deltas, strict=True)])
        shares = np.reshape(weights, (-1, *([1] * base[k].ndim)))
        if elect:
            agree = np.sign(stacked) == np.where(stacked.sum(0) >= 0, 1.0, -1.0)
            total, mass = (stacked * agree).sum(0), (shares * agree).sum(0)
            mass = np.where(mass == 0, 1.0, mass)
        else:
            total, mass = stacked.sum(0), np.full(base[k].shape, sum(weights))
            mass = np.where(np.abs(mass) < 1e-8, 1.0, mass)
        result[k] = base[k] + scale * (total / mass if normalize else total)
    return result


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.7, -0.3, 0.4), (1.0, -2.0, 0.0)])
def test_compat_trims_each_tensor_and_elects_by_weights(weights: tuple[float, ...], rescale: bool) -> None:
    base = wide(BASE)

    def sparse(delta: np.ndarray, top: int, count: int) -> np.ndarray:
        keep = np.zeros(delta.size, dtype=bool)
        keep[plain_order(delta)[top : top + count]] = True
        cut = np.where(keep.reshape(delta.shape), delta, 0.0)
        return plain_l1(delta, cut) if rescale else cut

    deltas = task_vectors([wide(m) for m in (A, B, C)], base)
    trimmed = [{k: sparse(d[k], 0, max(1, int(0.35 * d[k].size))) for k in d} for d in deltas]
    found = merged("ties", [A, B, C], BASE, weights, compat="mergekit", density=0.35, rescale=rescale)
    assert_close(found, plain_mergekit(trimmed, base, weights, True, True, 1.0), 1e-6)
    banded = [{k: sparse(d[k], int(0.1 * d[k].size), int(0.35 * d[k].size)) for k in d} for d in deltas]
    for method, elect in (("breadcrumbs", False), ("breadcrumbs_ties", True)):
        params = {"density": 0.35, "gamma": 0.1, "rescale": rescale, "normalize": True, "lambda": 0.7}
        found = merged(method, [A, B, C], BASE, weights, compat="mergekit", **params)
        assert_close(found, plain_mergekit(banded, base, weights, elect, True, 0.7), 1e-6)


def test_compat_draws_from_one_stream_in_the_order_of_names() -> None:
    density = (0.3, 1.0, 0.6)
    base = wide(BASE)
    stream = torch.Generator().manual_seed(42)
    deltas = task_vectors([wide(m) for m in (A, B, C)], base)
    for k in sorted(base):
        for delta, share in zip(deltas, density, strict=True):
            if share < 1:
                mask = torch.bernoulli(torch.full(SHAPES[k], share), generator=stream).double().numpy()
                delta[k] = plain_l1(delta[k], delta[k] * mask)
    own = tuple({"density": share} for share in density)
    for method, elect in (("dare_linear", False), ("dare_ties", True)):
        merge = merge_of(method, [A, B, C], BASE, compat="mergekit", seed=42, own=own, normalize=False)
        found = {name: merge.tensor(name).numpy() for name in reversed(merge.names())}
        assert_close(found, plain_mergekit(deltas, base, (1, 1, 1), elect, False, 1.0), 1e-6)


def test_compat_keeps_nothing_at_density_0() -> None:
    for method in ("ties", "dare_ties", "della", "breadcrumbs"):
        found = merged(method, [A, random_model(9)], BASE, compat="mergekit", density=0.0)
        assert_same(found, BASE)


def test_compat_drops_by_rank_along_the_second_axis() -> None:
    density, epsilon = 0.6, 0.3
    base = wide(BASE)
    stream = torch.Generator().manual_seed(3)
    deltas = task_vectors([wide(m) for m in (A, B)], base)
    for k in sorted(base):
        for delta in deltas:
            rows = np.atleast_2d(delta[k])
            width = rows.shape[1]
            ranks = np.argsort(np.argsort(np.abs(rows), axis=1), axis=1)
            share = density - epsilon + 2 * epsilon * ranks / (width - 1) if width > 1 else np.full(rows.shape, density)
            mask = torch.bernoulli(torch.tensor(share).float(), generator=stream).double().numpy()
            delta[k] = plain_l1(delta[k], delta[k] * mask.reshape(delta[k].shape))
    for method, elect in (("della_linear", False), ("della", True)):
        params = {"density": density, "epsilon": epsilon, "normalize": True}
        found = merged(method, [A, B], BASE, compat="mergekit", seed=3, **params)
        assert_close(found, plain_mergekit(deltas, base, (1, 1), elect, True, 1.0), 1e-6)
