"""The methods that go by lengths, angles, elements or singular vectors, each against a plain float64 implementation."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from fusion.errors import RecipeError
from fusion.methods import METHODS, apply, linear, multislerp, nuslerp
from fusion.methods.spectral import is_map
from tests.fusion.arrays import (
    BASE,
    DTYPES,
    SETS,
    WEIGHTS,
    ZEROS,
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

Vector = np.ndarray
NEGATED = {k: -v for k, v in A.items()}
OTHER = [
    *("linear", "slerp", "nuslerp", "multislerp", "karcher", "model_stock", "sce", "ram", "ramplus_tl", "nearswap"),
    *("arcee_fusion", "passthrough", "tsv", "iso_c"),
]
# Those with a base and one other model, or with two models.
PAIRS = {"nearswap": 1, "arcee_fusion": 1, "passthrough": 1, "slerp": 2, "nuslerp": 2}


def used(weights: str, count: int) -> tuple[tuple[float, ...] | None, list[float]]:
    """The weights that are given, and as they count."""
    chosen = WEIGHTS[weights]
    return (None, [1.0] * count) if chosen is None else (chosen[:count], list(chosen[:count]))


def each(plain: Callable[..., Vector], models: Sequence[Arrays], base: Arrays | None, *args: Any) -> Arrays:
    """A plain implementation for one tensor, of all of them."""
    return {k: plain([m[k] for m in models], None if base is None else base[k], *args) for k in models[0]}


def one_by_one(plain: Callable[[list[Vector]], Vector], tensors: Sequence[Vector], along: int | None) -> Vector:
    """A function of vectors, of whole tensors (along: None) or of those along an axis."""
    if along is None or tensors[0].ndim < 2:
        return plain([t.reshape(-1) for t in tensors]).reshape(tensors[0].shape)
    moved = [np.moveaxis(t, along, -1) for t in tensors]
    result = np.empty_like(moved[0])
    for index in itertools.product(*map(range, moved[0].shape[:-1])):
        result[index] = plain([m[index] for m in moved])
    return np.moveaxis(result, -1, along)


# Weighted average.


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("models", SETS)
def test_linear(models: str, weights: str, dtype: torch.dtype, normalize: bool) -> None:
    stored = SETS[models][0]
    given, numbers = used(weights, len(stored))
    total = sum(numbers) if normalize else 1.0
    plain = each(
        lambda ts, _: sum(w * t for w, t in zip(numbers, ts, strict=True)) / total,
        [wide(m, dtype) for m in stored],
        None,
    )
    assert_close(merged("linear", stored, None, given, dtype, normalize=normalize), plain)


def test_one_model_alone_is_copied() -> None:
    for method, more in (("linear", {}), ("multislerp", {}), ("passthrough", {}), ("sce", {"select_topk": 1.0})):
        base = BASE if method == "sce" else None
        weights = (0.7,) if METHODS[method].weights else None
        found = merged(method, [A], base, weights, torch.bfloat16, **more)
        tolerance = 1e-7 if method == "sce" else 0
        for k, v in wide(A, torch.bfloat16).items():
            np.testing.assert_allclose(found[k], v, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", ["linear", "nuslerp", "multislerp"])
def test_weights_that_cancel_are_refused(method: str) -> None:
    with pytest.raises(RecipeError, match="sum to 0"):
        merged(method, [A, B], None, (1.0, -1.0))
    weights: Any = ([{"filter": "b", "value": -1.0}, {"value": 1.0}], 1.0)
    with pytest.raises(RecipeError, match=r"b: the weights .* sum to 0"):
        merged(method, [A, B], None, weights)


def test_what_checks_allow() -> None:
    assert linear.check((1.0, -1.0), linear.Params(normalize=False)) is None
    assert linear.check((1.0, -0.5), linear.Params()) is None
    assert multislerp.check((1.0, -1.0), multislerp.Params(normalize_weights=False)) is None
    assert "sum to 0" in str(nuslerp.check((0.0, 0.0), nuslerp.Params()))


# On the sphere.


def plain_arc(pair: list[Vector], t: float, line: Callable[[float], bool]) -> Vector:
    a, b = pair
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    cosine = float(np.clip((a * b).sum() / lengths, -1, 1)) if lengths else 1.0
    if line(cosine):
        return (1 - t) * a + t * b
    omega = math.acos(cosine)
    return (math.sin((1 - t) * omega) * a + math.sin(t * omega) * b) / math.sin(omega)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pair", [(A, B), (A, A), (A, C), (A, NEGATED), (A, ZEROS), (ZEROS, ZEROS)])
def test_slerp(pair: tuple[Arrays, Arrays], dtype: torch.dtype, t: float) -> None:
    def plain(tensors: list[Vector], base: None) -> Vector:
        return plain_arc(tensors, t, lambda cosine: abs(cosine) > 0.9995)

    # Close to a line the factors of the arc are ill-conditioned; elsewhere they are exact.
    assert_close(merged("slerp", pair, None, None, dtype, t=t), each(plain, [wide(m, dtype) for m in pair], None), 1e-6)


@pytest.mark.parametrize("method", ["slerp", "nuslerp"])
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_the_ends_of_the_arc_are_the_parents(method: str, t: float) -> None:
    more: dict[str, Any] = {"t": t} if method == "slerp" else {"weights": (1.0 - t, t)}
    found = merged(method, [A, B], None, **more)
    assert_close(found, wide(B if t else A))


def test_slerp_keeps_the_length_of_unit_vectors() -> None:
    x, y = {"v": np.float32([1, 0, 0])}, {"v": np.float32([0, 1, 0])}
    found = merged("slerp", (x, y), t=1 / 3)["v"]
    np.testing.assert_allclose(found, [math.cos(math.pi / 6), math.sin(math.pi / 6), 0], atol=1e-7)


def test_compat_takes_a_zero_tensor_to_be_at_a_right_angle() -> None:
    pair = [{"v": np.float32([3, 4])}, {"v": np.float32([0, 0])}]
    for method, more in (("slerp", {"t": 0.25}), ("nuslerp", {"weights": (3.0, 1.0)})):
        found = merged(method, pair, None, compat="mergekit", **more)["v"]
        np.testing.assert_allclose(found, math.sin(0.75 * math.pi / 2) * np.array([3, 4]), rtol=2e-7)


@pytest.mark.parametrize("weights", [None, (0.7, 1.3), (1.0, 0.0), (1.0, -0.3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("base", [None, BASE])
@pytest.mark.parametrize("along", [None, -1, 0])
@pytest.mark.parametrize("pair", [(A, B), (A, BASE), (C, C)])
def test_nuslerp(
    pair: tuple[Arrays, Arrays],
    along: int | None,
    base: Arrays | None,
    dtype: torch.dtype,
    weights: tuple[float, float] | None,
) -> None:
    first, second = weights or (1.0, 1.0)
    t = second / (first + second)

    def plain(tensors: list[Vector], below: Vector | None) -> Vector:
        put = 0.0 if below is None else below
        vectors = [theta - put for theta in tensors]
        return put + one_by_one(lambda vs: plain_arc(vs, t, lambda c: 1 - c * c <= 1e-12), vectors, along)

    stored = None if base is None else wide(base, dtype)
    expected = each(plain, [wide(m, dtype) for m in pair], stored)
    settings = {"nuslerp_flatten": along is None, "nuslerp_row_wise": along == 0}
    assert_close(merged("nuslerp", pair, base, weights, dtype, **settings), expected, 1e-6)


def plain_multislerp(tensors: list[Vector], base: Vector | None, weights: list[float], normalize: bool) -> Vector:
    """With the step on the tangent space that mergekit makes, so that it is seen to be none."""
    put = np.zeros_like(tensors[0]) if base is None else base
    vectors = [theta - put for theta in tensors]
    if len(tensors) == 1 or not any(v.any() for v in vectors):
        return put + vectors[0]
    shares = [w / sum(weights) for w in weights] if normalize else weights
    lengths = [np.linalg.norm(v) for v in vectors]
    units = [v / (length + 1e-8) for v, length in zip(vectors, lengths, strict=True)]
    mean = sum(w * u for w, u in zip(shares, units, strict=True))
    if np.linalg.norm(mean) < 1e-6:
        return put + sum(w * v for w, v in zip(shares, vectors, strict=True))
    mean = mean / np.linalg.norm(mean)
    step = sum(w * (u - (u * mean).sum() * mean) for w, u in zip(shares, units, strict=True))
    angle = np.linalg.norm(step) + 1e-8
    point = mean * math.cos(angle) + step * math.sin(angle) / angle
    return put + point * sum(w * length for w, length in zip(shares, lengths, strict=True))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("based", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("models", SETS)
def test_multislerp(models: str, weights: str, based: bool, dtype: torch.dtype, normalize: bool) -> None:
    stored, base = SETS[models][0], SETS[models][1] if based else None
    given, numbers = used(weights, len(stored))
    plain = each(
        plain_multislerp,
        [wide(m, dtype) for m in stored],
        None if base is None else wide(base, dtype),
        numbers,
        normalize,
    )
    # Where directions nearly cancel, what is left is as much larger in length as it is short.
    tolerance = 1e-4 if "opposite" in models else 1e-6
    assert_close(merged("multislerp", stored, base, given, dtype, normalize_weights=normalize), plain, tolerance)


def test_multislerp_refuses_directions_that_cancel() -> None:
    third = 2 * math.pi / 3
    stars = [{"v": np.float32([math.cos(i * third), math.sin(i * third)])} for i in range(3)]
    with pytest.raises(RecipeError, match=r"v: the weighted directions of m0, m1, m2 cancel"):
        merged("multislerp", stars)
    found = merged("multislerp", stars, None, (1.0, 1.0, 1.1))["v"]
    np.testing.assert_allclose(found / np.linalg.norm(found), stars[2]["v"], atol=2e-6)
    still = merged("multislerp", [BASE, BASE, BASE], BASE)
    assert all(np.array_equal(still[k], BASE[k]) for k in BASE)


def plain_karcher(tensors: list[Vector], base: None, steps: int = 10, tol: float = 1e-5) -> Vector:
    vectors = [t.reshape(-1) for t in tensors]
    lengths = [np.linalg.norm(v) for v in vectors]
    units = [v / length for v, length in zip(vectors, lengths, strict=True) if length]
    if not units:
        return np.zeros_like(tensors[0])
    point = sum(units) / len(units)
    point = point / np.linalg.norm(point) if np.linalg.norm(point) >= tol else units[0]
    for _ in range(steps):
        step = np.zeros_like(point)
        for unit in units:
            cosine = float(np.clip(point @ unit, -1, 1))
            angle = math.acos(cosine)
            if tol <= angle < math.pi - 1e-6:
                step = step + angle / math.sin(angle) * (unit - cosine * point) / len(units)
        size = np.linalg.norm(step)
        if size < tol:
            break
        point = math.cos(size) * point + math.sin(size) * step / size
        point = point / np.linalg.norm(point)
    return (np.mean(lengths) * point).reshape(tensors[0].shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("models", [[A, B], [A, B, C], [A, A], [A, BASE, ZEROS], [ZEROS, ZEROS], [A, NEGATED]])
def test_karcher(models: list[Arrays], dtype: torch.dtype) -> None:
    found = merged("karcher", models, None, None, dtype)
    assert_close(found, each(plain_karcher, [wide(m, dtype) for m in models], None), 1e-6)


def test_the_karcher_mean_is_where_the_logarithms_sum_to_nothing() -> None:
    vectors = [np.random.default_rng(i).standard_normal(3) + 1 for i in range(4)]
    found = merged("karcher", [{"v": np.float32(v)} for v in vectors], max_iter=100, tol=1e-9)["v"]
    point = np.float64(found) / np.linalg.norm(np.float64(found))
    pull = np.zeros(3)
    for v in vectors:
        unit = v / np.linalg.norm(v)
        angle = math.acos(point @ unit)
        pull += angle / math.sin(angle) * (unit - (point @ unit) * point)
    np.testing.assert_allclose(pull, 0, atol=1e-6)
    assert np.linalg.norm(found) == pytest.approx(np.mean([np.linalg.norm(v) for v in vectors]), rel=1e-6)


# Towards the base.


def plain_stock(tensors: list[Vector], base: Vector, by_row: bool, compat: bool = False) -> Vector:
    def ratio(deltas: list[Vector]) -> Vector:
        cosines = []
        for a, b in itertools.combinations(deltas, 2):
            lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
            lengths = max(lengths, 1e-6) if compat else lengths
            cosines.append(float(a @ b) / lengths if lengths else 0.0)
        c, n = float(np.mean(cosines)), len(deltas)
        c = c if compat else max(c, 0.0)
        t = n * c / (1 + (n - 1) * c) if abs(1 + (n - 1) * c) >= 1e-6 else 0.0
        return t * sum(deltas) / n

    return base + one_by_one(ratio, [theta - base for theta in tensors], -1 if by_row else None)


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("models", [name for name in SETS if name != "one"])
def test_model_stock(models: str, dtype: torch.dtype, by_row: bool) -> None:
    stored, base = SETS[models]
    found = merged("model_stock", stored, base, None, dtype, filter_wise=by_row)
    assert_close(found, each(plain_stock, [wide(m, dtype) for m in stored], wide(base, dtype), by_row), 1e-6)


@pytest.mark.parametrize("by_row", [False, True])
def test_model_stock_as_mergekit_extrapolates_and_shrinks_small_tensors(by_row: bool) -> None:
    base = {"v": np.zeros((2, 2), np.float32)}
    apart = [{"v": np.float32([[1, 0], [3e-4, 4e-4]])}, {"v": np.float32([[-0.5, 0.8], [3e-4, 1e-4]])}]
    found = merged("model_stock", apart, base, compat="mergekit", filter_wise=by_row)
    assert_close(found, each(plain_stock, [wide(m) for m in apart], wide(base), by_row, True), 1e-6)
    ours = merged("model_stock", apart, base, filter_wise=by_row)["v"]
    assert np.abs(found["v"] - ours).max() > 0.1


@pytest.mark.parametrize("count", [2, 3, 5])
def test_model_stock_of_equal_angles(count: int) -> None:
    """Deltas e_i + s: every pair has the same cosine c, and the ratio is that of the paper."""
    base = {"v": np.zeros(count, np.float32)}
    models = [{"v": np.float32(np.eye(count)[i] + 0.5)} for i in range(count)]
    c = float(models[0]["v"] @ models[1]["v"] / (models[0]["v"] @ models[0]["v"]))
    found = merged("model_stock", models, base)["v"]
    mean = np.mean([m["v"] for m in models], axis=0)
    np.testing.assert_allclose(found, count * c / (1 + (count - 1) * c) * mean, rtol=1e-6)


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


# Singular vectors.

MATRICES = {
    "proj.weight": (12, 8),
    "wide.weight": (5, 20),
    "embed_tokens.weight": (12, 8),
    "norm.weight": (8,),
    "s": (),
}


def matrices(seed: int, rank: int | None = None) -> Arrays:
    generator = np.random.default_rng(seed)
    found = {}
    for name, shape in MATRICES.items():
        value = generator.standard_normal(shape)
        if rank is not None and len(shape) == 2:
            value = generator.standard_normal((shape[0], rank)) @ generator.standard_normal((rank, shape[1]))
        found[name] = np.float32(value)
    return found


def added(base: Arrays, deltas: Sequence[Arrays]) -> list[Arrays]:
    return [{k: np.float32(base[k] + d[k]) for k in base} for d in deltas]


def plain_rank(matrix: Vector) -> tuple[Vector, Vector, Vector]:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    rank = int((s > 1e-5 * max(s[0], 1e-30)).sum())
    return u[:, :rank], s[:rank], vt[:rank]


def plain_tsv(tensors: list[Vector], base: Vector, scale: float) -> Vector:
    """By inverse square roots: U (U^T U)^(-1/2) is the nearest matrix with orthonormal columns."""
    found = [plain_rank(theta - base) for theta in tensors]
    count = max(1, min(base.shape) // len(tensors))
    u = np.concatenate([f[0][:, :count] for f in found], 1)
    s = np.concatenate([f[1][:count] for f in found])
    v = np.concatenate([f[2][:count].T for f in found], 1)

    def whitened(x: Vector) -> Vector:
        values, vectors = np.linalg.eigh(x.T @ x)
        inverse = np.where(values > 1e-9, 1 / np.sqrt(np.maximum(values, 1e-9)), 0)
        return x @ (vectors * inverse) @ vectors.T

    return base + scale * whitened(u) @ np.diag(s) @ whitened(v).T


def plain_iso(tensors: list[Vector], base: Vector, scale: float) -> Vector:
    u, s, vt = plain_rank(sum(theta - base for theta in tensors))
    return base + (scale * s.mean() * u @ vt if s.size else 0.0)


@pytest.mark.parametrize("method, plain", [("tsv", plain_tsv), ("iso_c", plain_iso)])
@pytest.mark.parametrize("case", ["three", "one", "low rank", "one zero delta", "zero deltas", "the same twice"])
@pytest.mark.parametrize("scale", [1.0, -0.4])
def test_merges_of_singular_vectors(method: str, plain: Callable[..., Vector], case: str, scale: float) -> None:
    base, zero = matrices(0), {k: np.zeros_like(v) for k, v in matrices(0).items()}
    deltas = {
        "three": [matrices(1), matrices(2), matrices(3)],
        "one": [matrices(1)],
        "low rank": [matrices(1, 2), matrices(2, 1)],
        "one zero delta": [matrices(1), zero],
        "zero deltas": [zero, zero],
        "the same twice": [matrices(1), matrices(1)],
    }[case]
    models = added(base, deltas)
    found = merged(method, models, base, **{"lambda": scale})
    for name, value in wide(base).items():
        tensors = [wide(m)[name] for m in models]
        if name in ("proj.weight", "wide.weight"):
            expected = plain(tensors, value, scale)
        else:
            expected = value + scale * sum(theta - value for theta in tensors) / len(tensors)
        np.testing.assert_allclose(found[name], expected, atol=1e-5 * max(1.0, np.abs(expected).max()), err_msg=name)


def test_tsv_of_orthogonal_tasks_keeps_their_leading_parts_whole() -> None:
    base = {"w": np.zeros((4, 4), np.float32)}
    models = [{"w": np.float32(np.diag([3, 2, 0, 0]))}, {"w": np.float32(np.diag([0, 0, 5, 4]))}]
    np.testing.assert_allclose(merged("tsv", models, base)["w"], np.diag([3, 2, 5, 4]), atol=1e-5)
    twice = merged("tsv", [models[0], models[0]], base)["w"]
    np.testing.assert_allclose(twice, models[0]["w"], atol=1e-5)


def test_iso_c_has_equal_singular_values_with_their_sum_kept() -> None:
    base = matrices(0)
    models = added(base, [matrices(1), matrices(2)])
    name = "proj.weight"
    total = sum(np.float64(m[name]) - base[name] for m in models)
    values = np.linalg.svd(merged("iso_c", models, base)[name] - np.float64(base[name]), compute_uv=False)
    np.testing.assert_allclose(values, np.linalg.svd(total, compute_uv=False).mean(), rtol=1e-5)


def test_which_tensors_are_linear_maps() -> None:
    maps = ["model.layers.0.mlp.up_proj.weight", "h.0.attn.c_attn.weight", "w"]
    tables = ["model.embed_tokens.weight", "lm_head.weight", "transformer.wte.weight", "wpe.weight", "output.weight"]
    assert [is_map(name, (4, 4)) for name in maps + tables] == [True] * 3 + [False] * 5
    assert not any(is_map("w", shape) for shape in [(4,), (2, 4, 4), (), (0, 4)])


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
