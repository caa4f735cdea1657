"""The methods that go element by element, each against a plain float64 implementation, and what all these share."""

from typing import Any

import numpy as np
import pytest
import torch

from fusion.methods import METHODS, apply
from tests.fusion.arrays import (
    BASE,
    DTYPES,
    SETS,
    A,
    Arrays,
    B,
    C,
    assert_close,
    merge_of,
    merged,
    random_model,
    wide,
)
from tests.fusion.plain import NEGATED, Vector, each

OTHER = [
    *("linear", "slerp", "nuslerp", "multislerp", "karcher", "model_stock", "sce", "ram", "ramplus_tl", "nearswap"),
    *("arcee_fusion", "passthrough", "tsv", "iso_c", "varm"),
]
# Those with a base and one other model, or with two models.
PAIRS = {"nearswap": 1, "arcee_fusion": 1, "passthrough": 1, "slerp": 2, "nuslerp": 2}


# Element by element.


def plain_sce(tensors: list[Vector], base: Vector, share: float, variant: str) -> Vector:
    # A task vector and its variance are float32 numbers, and what is selected depends on it.
    deltas = [np.float64(np.float32(theta - base)).reshape(-1) for theta in tensors]
    variance = np.float32(np.var(deltas, axis=0))
    chosen = np.ones(base.size, dtype=bool)
    if share < 1:
        count = min(base.size, max(1, round(share * base.size))) if share else 0
        if variant != "paper":
            count = int(np.count_nonzero(variance) * share)
        chosen[:] = False
        chosen[np.argsort(-variance, kind="stable")[:count]] = True
        chosen &= variance > 0
    selected = [np.where(chosen, d, 0) for d in deltas]
    sizes = [float((d * d).sum()) for d in selected]
    weights = [size / sum(sizes) if sum(sizes) else 1 / len(sizes) for size in sizes]
    used = deltas if variant == "fusechat" else selected
    result = np.zeros(base.size)
    for p in range(base.size):
        total = sum(float(np.float32(d[p])) for d in used)
        sign = float(np.sign(total)) if variant == "paper" or total else 1.0
        left = [i for i, d in enumerate(used) if d[p] * sign > 0]
        value = sum(weights[i] * used[i][p] for i in left)
        mass = sum(weights[i] for i in left)
        result[p] = value if variant == "paper" else value / mass if mass else 0.0
    return base + result.reshape(base.shape)


@pytest.mark.parametrize("variant", ["paper", "fusechat", "mergekit"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("models", SETS)
def test_sce(models: str, dtype: torch.dtype, share: float, variant: str) -> None:
    stored, base = SETS[models]
    found = merged("sce", stored, base, None, dtype, select_topk=share, variant=variant)
    assert_close(found, each(plain_sce, [wide(m, dtype) for m in stored], wide(base, dtype), share, variant))


def test_the_variants_of_sce_differ_as_told() -> None:
    """Two models and four elements, of which the first two are selected; everything can be worked out by hand."""
    base = {"v": np.zeros(4, np.float32)}
    models = [{"v": np.float32([3, 4, 1, 2])}, {"v": np.float32([0, -4, 1.5, 1])}]
    settings: dict[str, Any] = {"select_topk": 0.5}
    # eta: 25/41 and 16/41; the second element's signs balance.
    paper = merged("sce", models, base, variant="paper", **settings)["v"]
    np.testing.assert_allclose(paper, [75 / 41, 0, 0, 0], rtol=1e-6)
    theirs = merged("sce", models, base, variant="mergekit", **settings)["v"]
    np.testing.assert_allclose(theirs, [3, 4, 0, 0], rtol=1e-6)
    fusechat = merged("sce", models, base, variant="fusechat", **settings)["v"]
    np.testing.assert_allclose(fusechat, [3, 4, (25 + 16 * 1.5) / 41, (25 * 2 + 16) / 41], rtol=1e-6)
    compat = merged("sce", models, base, compat="mergekit", **settings)["v"]
    np.testing.assert_allclose(compat, theirs, rtol=1e-6)
    light = [{"v": m["v"] * np.float32(1e-4)} for m in models]
    uniform = merged("sce", light, base, compat="mergekit", select_topk=1.0)["v"]
    np.testing.assert_allclose(uniform, [3e-4, 4e-4, 1.25e-4, 1.5e-4], rtol=1e-6)


def plain_ram(tensors: list[Vector], base: Vector, epsilon: float, r: float = 0.0, alpha: float = 0.0) -> Vector:
    deltas = [np.float64(np.float32(theta - base)) for theta in tensors]
    count = sum((np.abs(d) > epsilon).astype(int) for d in deltas)
    result = base.copy()
    for delta in deltas:
        changed = np.abs(delta) > epsilon
        unique, shared = changed & (count == 1), changed & (count > 1)
        ratio = min(shared.sum() / max(unique.sum(), 1), alpha)
        result += np.where(unique, (1 + r * ratio) * delta, 0) + np.where(shared, delta / np.maximum(count, 1), 0)
    return result


@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 1.0, 10.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("models", SETS)
def test_ram(models: str, dtype: torch.dtype, epsilon: float) -> None:
    stored, base = SETS[models]
    plain = [wide(m, dtype) for m in stored]
    at = np.float64(np.float32(epsilon))
    found = merged("ram", stored, base, None, dtype, epsilon=epsilon)
    assert_close(found, each(plain_ram, plain, wide(base, dtype), at))
    found = merged("ramplus_tl", stored, base, None, dtype, epsilon=epsilon, r=0.3, alpha=0.6)
    assert_close(found, each(plain_ram, plain, wide(base, dtype), at, 0.3, 0.6))


@pytest.mark.parametrize("t", [0.0, 1e-7, 0.3, 1.0, 100.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("other", [A, BASE, NEGATED])
def test_nearswap(other: Arrays, dtype: torch.dtype, t: float) -> None:
    def plain(tensors: list[Vector], base: Vector) -> Vector:
        share = np.clip(t / np.maximum(np.abs(base - tensors[0]), 1e-6), 0, 1)
        return (1 - share) * base + share * tensors[0]

    found = merged("nearswap", [other], BASE, None, dtype, t=t)
    assert_close(found, each(plain, [wide(other, dtype)], wide(BASE, dtype)))


def plain_arcee(tensors: list[Vector], base: Vector) -> Vector:
    def softmax(x: Vector) -> Vector:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True) + 1e-8

    theta, below = (np.atleast_1d(x) for x in (tensors[0], base))
    p, q = softmax(theta), softmax(below)
    divergence = np.maximum((p * (np.log(p) - np.log(q))).sum(-1, keepdims=True), 0)
    importance = np.float32(np.float64(np.float32(np.abs(theta - below))) * divergence)
    ordered = np.sort(importance.reshape(-1)).astype(np.float64)
    first, median, third = (ordered[int(share * (ordered.size - 1))] for share in (0.25, 0.5, 0.75))
    return np.where(importance >= median + 1.5 * (third - first), theta, below).reshape(base.shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("other", [A, B, BASE, NEGATED])
def test_arcee_fusion(other: Arrays, dtype: torch.dtype) -> None:
    found = merged("arcee_fusion", [other], BASE, None, dtype)
    assert_close(found, each(plain_arcee, [wide(other, dtype)], wide(BASE, dtype)))


def test_arcee_fusion_selects_by_exact_quantiles_over_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    base = {"w": np.float32(generator.standard_normal((60, 50)))}
    model = {"w": np.float32(base["w"] + 0.1 * generator.standard_normal((60, 50)) ** 3)}
    whole = merged("arcee_fusion", [model], base)["w"]
    np.testing.assert_array_equal(whole, np.float32(plain_arcee([wide(model)["w"]], wide(base)["w"])))
    assert 0 < (whole != base["w"]).mean() < 0.5
    monkeypatch.setattr(apply, "BLOCK", 128)
    np.testing.assert_array_equal(merged("arcee_fusion", [model], base)["w"], whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_passthrough(dtype: torch.dtype) -> None:
    assert_close(merged("passthrough", [A], None, None, dtype), wide(A, dtype), 0)
    found = merged("passthrough", [A], None, None, dtype, own=({"scale": [{"filter": "b", "value": -0.5}]},))
    assert_close(found, {k: v * (-0.5 if k == "b" else 1.0) for k, v in wide(A, dtype).items()}, 0)


# What all of them have in common.


def arguments(method: str) -> tuple[list[Arrays], Arrays | None]:
    row = METHODS[method]
    return [A, B, C][: PAIRS.get(method, 3)], BASE if row.base != "none" else None


@pytest.mark.parametrize("method", OTHER)
@pytest.mark.parametrize("compat", [None, "mergekit"])
def test_tensors_without_elements_stay_so(method: str, compat: str | None) -> None:
    models, base = arguments(method)
    empty = {"e": np.zeros((0, 4), np.float32), "f": np.zeros((4, 0), np.float32), "g": np.zeros(0, np.float32)}
    for more in ({}, {"nuslerp_flatten": False}, {"filter_wise": True}):
        if not set(more) <= {f.name for f in METHODS[method].Params.__dataclass_fields__.values()}:
            continue
        found = merged(method, [empty] * len(models), None if base is None else empty, compat=compat, **more)
        assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in empty.items()}


ROW_WISE: list[tuple[str, dict[str, Any]]] = [
    ("nuslerp", {"nuslerp_flatten": False}),
    ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("model_stock", {"filter_wise": True}),
    ("sce", {"variant": "fusechat", "select_topk": 0.3}),
]


@pytest.mark.parametrize("method, more", [*((method, {}) for method in OTHER), *ROW_WISE])
def test_blocks_and_threads_change_nothing(method: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    models, base = arguments(method)
    long = [{**m, "long": np.tile(random_model(9 + i)["a"], (40, 3))} for i, m in enumerate([*models, BASE])]
    models, base = long[:-1], None if base is None else long[-1]
    whole = merged(method, models, base, None, torch.bfloat16, **more)
    monkeypatch.setattr(apply, "BLOCK", 17)
    cut = merged(method, models, base, None, torch.bfloat16, **more)
    both = merge_of(method, models, base, None, torch.bfloat16, threads=2, **more)
    assert_close(cut, {k: np.float64(v) for k, v in whole.items()})
    assert all(np.array_equal(both.tensor(name).numpy(), value) for name, value in cut.items())


@pytest.mark.parametrize("method", OTHER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compat_is_close_to_the_default_where_they_mean_the_same(method: str, dtype: torch.dtype) -> None:
    if METHODS[method].compat is None:
        return
    models, base = arguments(method)
    kin = [{k: np.float32(BASE[k] + 0.3 * m[k] + 0.3) for k in BASE} for m in models]
    # The variant of SCE that is closest; a scalar's only cosines are 1 and -1.
    more: dict[str, Any] = {"variant": "mergekit", "select_topk": 1.0} if method == "sce" else {}
    ours = merged(method, kin, base, None, dtype, **more)
    theirs = merged(method, kin, base, None, dtype, compat="mergekit", **more)
    assert_close(theirs, {k: np.float64(v) for k, v in ours.items()}, 1e-5)
