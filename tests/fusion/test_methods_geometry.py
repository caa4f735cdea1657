"""Averages and the methods that go by lengths and angles, against a plain float64 implementation of each."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fusion.errors import RecipeError
from fusion.methods import METHODS, linear, multislerp, nuslerp
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
    merged,
    wide,
)
from tests.fusion.plain import NEGATED, Vector, each, one_by_one, used

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
