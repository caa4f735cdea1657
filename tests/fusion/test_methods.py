"""Every method against a plain float64 implementation of its formula, written here without looking at the engine's."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.methods import METHODS, linear, ties
from fusion.methods.apply import Merge
from fusion.methods.call import inner
from fusion.recipe import Recipe
from tests.fusion.models import Memory

Arrays = dict[str, np.ndarray]
SHAPES = {"a": (5, 7), "b": (11,), "c": (3, 2, 4), "d": ()}


def random_model(seed: int, scale: float = 1.0) -> Arrays:
    generator = np.random.default_rng(seed)
    return {name: np.float32(scale * generator.standard_normal(shape)) for name, shape in SHAPES.items()}


def merged(
    method: str,
    models: Sequence[Arrays],
    base: Arrays | None = None,
    weights: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
    **params: Any,
) -> Arrays:
    """What the engine makes of models that are stored in `dtype`; written in float32."""
    names = tuple(f"m{i}" for i in range(len(models)))
    found = {**dict(zip(names, models, strict=True)), **({} if base is None else {"base": base})}
    sources = {
        name: Memory({key: torch.tensor(value).to(dtype) for key, value in arrays.items()})
        for name, arrays in found.items()
    }
    chosen = None if weights is None else tuple(weights)
    recipe = Recipe(method, names, None if base is None else "base", chosen, params, dtype="float32")
    merge = Merge(recipe, sources)
    return {name: merge.tensor(name).numpy() for name in merge.names()}


def wide(arrays: Mapping[str, np.ndarray], dtype: torch.dtype = torch.float32) -> Arrays:
    """The arrays as they are after storage in `dtype`, in float64."""
    return {name: torch.tensor(value).to(dtype).double().numpy() for name, value in arrays.items()}


def assert_close(found: Arrays, expected: Mapping[str, np.ndarray], tolerance: float = 2e-7) -> None:
    scale = max(1.0, *(float(np.abs(value).max(initial=0.0)) for value in expected.values()))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=4 * tolerance * scale, err_msg=name)


# The plain implementations: whole models, float64, loops.


def plain_linear(models: Sequence[Arrays], weights: Sequence[float]) -> Arrays:
    return {k: sum(w * m[k] for w, m in zip(weights, models, strict=True)) / sum(weights) for k in models[0]}


def plain_task_arithmetic(models: Sequence[Arrays], base: Arrays, weights: Sequence[float], scale: float) -> Arrays:
    return {k: base[k] + scale * sum(w * (m[k] - base[k]) for w, m in zip(weights, models, strict=True)) for k in base}


def plain_slerp(models: Sequence[Arrays], t: float) -> Arrays:
    result = {}
    for k, a in models[0].items():
        b = models[1][k]
        norms = np.linalg.norm(a) * np.linalg.norm(b)
        cosine = float((a * b).sum() / norms) if norms else 1.0
        if abs(cosine) > 0.9995:
            result[k] = (1 - t) * a + t * b
        else:
            omega = math.acos(cosine)
            result[k] = (math.sin((1 - t) * omega) * a + math.sin(t * omega) * b) / math.sin(omega)
    return result


def plain_trim(delta: np.ndarray, density: float) -> np.ndarray:
    """Keep the largest by a stable sort: of equal magnitudes the first."""
    count = 0 if density == 0 else min(delta.size, max(1, round(density * delta.size)))
    keep = np.zeros(delta.size, dtype=bool)
    keep[np.argsort(-np.abs(delta), kind="stable")[:count]] = True
    return np.where(keep, delta, 0.0)


def plain_ties(
    models: Sequence[Arrays], base: Arrays, weights: Sequence[float], density: float, scale: float, trim: str
) -> Arrays:
    names = sorted(base)
    # A task vector is stored in float32, and where it is cut depends on it.
    deltas = [{k: np.float64(np.float32(m[k] - base[k])).reshape(-1) for k in names} for m in models]
    if trim == "global":
        cuts = np.cumsum([base[k].size for k in names])[:-1]
        flat = [np.split(plain_trim(np.concatenate([d[k] for k in names]), density), cuts) for d in deltas]
        deltas = [dict(zip(names, parts, strict=True)) for parts in flat]
    else:
        deltas = [{k: plain_trim(d[k], density) for k in names} for d in deltas]
    result = {}
    for k in names:
        tau = np.zeros(base[k].size)
        for p in range(base[k].size):
            column = [w * d[k][p] for w, d in zip(weights, deltas, strict=True)]
            sign = np.sign(sum(column))
            agree = [i for i, value in enumerate(column) if sign != 0 and np.sign(value) == sign]
            if agree:
                tau[p] = sum(column[i] for i in agree) / sum(abs(weights[i]) for i in agree)
        result[k] = base[k] + scale * tau.reshape(base[k].shape)
    return result


BASE, A, B, C = random_model(0), random_model(1), random_model(2), random_model(3)
OPPOSITE = {k: np.float32(2 * BASE[k] - A[k]) for k in BASE}
TIED = {k: np.float32(BASE[k] * 0 + 0.5) for k in BASE}
COARSE = {k: np.float32(np.round(v)) for k, v in B.items()}
ZEROS = {k: np.zeros_like(v) for k, v in BASE.items()}

SETS = {
    "three": ([A, B, C], BASE),
    "one": ([A], BASE),
    "zero deltas": ([BASE, BASE], BASE),
    "one zero delta": ([A, BASE, C], BASE),
    "opposite deltas": ([A, {k: -v for k, v in A.items()}], ZEROS),
    "opposite about a base": ([A, OPPOSITE], BASE),
    "equal magnitudes": ([TIED, COARSE], ZEROS),
}
WEIGHTS = {"none": None, "unequal": (0.7, 1.3, 0.1), "zero": (1.0, 0.0, 2.0), "negative": (1.0, -0.3, 0.4)}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def prepared(
    models: str, weights: str, dtype: torch.dtype
) -> tuple[list[Arrays], Arrays, list[Arrays], Arrays, tuple[float, ...] | None, tuple[float, ...]]:
    given_models, base = SETS[models]
    chosen = WEIGHTS[weights]
    used = None if chosen is None else chosen[: len(given_models)]
    plain = (1.0,) * len(given_models) if used is None else used
    return given_models, base, [wide(m, dtype) for m in given_models], wide(base, dtype), used, plain


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("models", SETS)
def test_linear(models: str, weights: str, dtype: torch.dtype) -> None:
    stored, _, plain, _, used, numbers = prepared(models, weights, dtype)
    assert_close(merged("linear", stored, None, used, dtype), plain_linear(plain, numbers))


@pytest.mark.parametrize("scale", [0.0, 0.4, 1.0, -1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("models", SETS)
def test_task_arithmetic(models: str, weights: str, dtype: torch.dtype, scale: float) -> None:
    stored, base, plain, plain_base, used, numbers = prepared(models, weights, dtype)
    found = merged("task_arithmetic", stored, base, used, dtype, **{"lambda": scale})
    assert_close(found, plain_task_arithmetic(plain, plain_base, numbers, scale))


@pytest.mark.parametrize("trim", ["global", "tensor"])
@pytest.mark.parametrize("density", [0.0, 1e-6, 0.2, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("models", SETS)
def test_ties(models: str, weights: str, dtype: torch.dtype, density: float, trim: str) -> None:
    stored, base, plain, plain_base, used, numbers = prepared(models, weights, dtype)
    found = merged("ties", stored, base, used, dtype, density=density, trim=trim, **{"lambda": 0.7})
    assert_close(found, plain_ties(plain, plain_base, numbers, density, 0.7, trim))


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "pair", [(A, B), (A, A), (A, OPPOSITE), (A, {k: -v for k, v in A.items()}), (A, ZEROS), (ZEROS, ZEROS)]
)
def test_slerp(pair: tuple[Arrays, Arrays], dtype: torch.dtype, t: float) -> None:
    found = merged("slerp", pair, None, None, dtype, t=t)
    # Close to a line the weights of the arc are ill-conditioned; elsewhere they are exact.
    assert_close(found, plain_slerp([wide(m, dtype) for m in pair], t), 1e-6)


def test_slerp_keeps_the_length_of_unit_vectors() -> None:
    x, y = {"v": np.float32([1, 0, 0])}, {"v": np.float32([0, 1, 0])}
    found = merged("slerp", (x, y), t=1 / 3)["v"]
    np.testing.assert_allclose(found, [math.cos(math.pi / 6), math.sin(math.pi / 6), 0], atol=1e-7)


def test_ties_keeps_exactly_k_and_the_first_of_equal_magnitudes() -> None:
    base = {"a": np.zeros(4, np.float32), "b": np.zeros(4, np.float32)}
    model = {"a": np.float32([1, -1, 2, 1]), "b": np.float32([1, 1, -1, 1])}
    found = merged("ties", [model], base, density=0.5)
    np.testing.assert_array_equal(found["a"], [1, -1, 2, 1])
    np.testing.assert_array_equal(found["b"], [0, 0, 0, 0])
    found = merged("ties", [model], base, density=0.75)
    np.testing.assert_array_equal(found["b"], [1, 1, 0, 0])
    found = merged("ties", [model], base, density=0.5, trim="tensor")
    np.testing.assert_array_equal(found["a"], [1, 0, 2, 0])
    np.testing.assert_array_equal(found["b"], [1, 1, 0, 0])


def test_ties_trims_globally_by_default_as_the_paper_does() -> None:
    base = {"large": np.zeros(10, np.float32), "small": np.zeros(10, np.float32)}
    model = {"large": np.arange(101, 111, dtype=np.float32), "small": np.arange(1, 11, dtype=np.float32)}
    found = merged("ties", [model], base, density=0.5)
    assert (found["large"] != 0).all() and (found["small"] == 0).all()


def test_signs_that_balance_exactly_leave_the_base() -> None:
    base = {"a": np.float32([10, 10, 10])}
    models = [{"a": np.float32([12, 11, 13])}, {"a": np.float32([8, 11, 9])}]
    np.testing.assert_array_equal(merged("ties", models, base, density=1.0)["a"], [10, 11, 13])


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.sampled_from([0.0, -0.0, 1e-40, 1.0, -1.0, 1.5, -2.0, 3e38, 1.0000001]), min_size=1, max_size=40
    ),
    density=st.floats(0.0, 1.0),
    at=st.integers(0, 40),
)
def test_the_global_cut_is_that_of_a_stable_sort(values: list[float], density: float, at: int) -> None:
    vector = np.float32(values)
    model = {"a": vector[:at], "b": vector[at:]}
    base = {k: np.zeros_like(v) for k, v in model.items()}
    found = merged("ties", [model], base, density=density)
    expected = plain_trim(np.float64(vector), density)
    np.testing.assert_array_equal(np.concatenate([found["a"], found["b"]]), np.float32(expected))


def test_the_global_cut_over_many_blocks_is_exact() -> None:
    """Values that share their upper bits, so that the second pass decides, and tensors longer than a block."""
    generator = np.random.default_rng(5)
    vector = np.float32(1.0 + generator.integers(0, 3000, 200_000) * 2.0**-23)
    model = {"a": vector[:150_000], "b": vector[150_000:]}
    base = {k: np.zeros_like(v) for k, v in model.items()}
    found = merged("ties", [model], base, density=0.123)
    expected = plain_trim(np.float64(vector), 0.123)
    np.testing.assert_array_equal(np.concatenate([found["a"], found["b"]]), np.float32(expected))


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_never_written_to_and_two_runs_agree(method: str) -> None:
    row = METHODS[method]
    sources = {
        name: Memory({key: torch.tensor(value) for key, value in arrays.items()})
        for name, arrays in (("x", A), ("y", B), ("base", BASE))
    }
    before = {name: {k: t.clone() for k, t in source.tensors.items()} for name, source in sources.items()}
    recipe = Recipe(method, ("x", "y"), "base" if row.base == "required" else None, None, {})
    first, second = Merge(recipe, sources), Merge(recipe, sources)
    one = {name: first.tensor(name) for name in first.names()}
    two = {name: second.tensor(name) for name in reversed(second.names())}
    assert all(torch.equal(one[name], two[name]) for name in one)
    for name, source in sources.items():
        assert all(torch.equal(source.tensors[k], t) for k, t in before[name].items())


@pytest.mark.parametrize("method", METHODS)
def test_a_row_says_all_about_its_method(method: str) -> None:
    row = METHODS[method]
    assert row.name == method and row.formula and row.paper and row.version >= 1
    assert all(f.metadata["help"] for f in fields(row.Params))
    assert row.merge.__doc__


def test_every_method_file_is_in_the_table() -> None:
    from pathlib import Path

    import fusion.methods

    files = {path.stem for path in Path(fusion.methods.__file__).parent.glob("*.py")}
    assert files - {"__init__", "call", "apply"} == set(METHODS)


def test_linear_refuses_weights_that_cancel() -> None:
    assert "sum to 0" in str(linear.check((1.0, -1.0), linear.Params()))
    assert linear.check((1.0, -0.5), linear.Params()) is None


def test_inner_sums_in_float64() -> None:
    vector = torch.full((1 << 20,), 0.1)
    assert inner(vector, vector) == pytest.approx((1 << 20) * float(np.float32(0.1)) ** 2, rel=1e-12)


def test_kept_count() -> None:
    counted: Callable[[int, float], int] = ties.kept_count
    assert [counted(100, 0.29), counted(10, 1e-9), counted(1, 0.5), counted(0, 0.5), counted(3, 1.0)] == [
        29,
        1,
        1,
        0,
        3,
    ]
