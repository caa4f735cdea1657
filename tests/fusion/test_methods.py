"""What holds for every method of the table, and linear and slerp against a plain float64 implementation."""

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fusion.methods
from fusion.methods import METHODS, linear
from fusion.methods.apply import Merge
from fusion.methods.call import inner
from fusion.recipe import Recipe
from tests.fusion.arrays import BASE, DTYPES, OPPOSITE, SETS, WEIGHTS, ZEROS, A, Arrays, B, assert_close, merged, wide
from tests.fusion.models import Memory

# Arguments of methods that have no default for them.
NEEDED: dict[str, dict[str, Any]] = {"emr": {"task": "x"}}


def plain_linear(models: Sequence[Arrays], weights: Sequence[float]) -> Arrays:
    return {k: sum(w * m[k] for w, m in zip(weights, models, strict=True)) / sum(weights) for k in models[0]}


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


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.statistics is None])
def test_inputs_are_never_written_to_and_two_runs_agree(method: str) -> None:
    row = METHODS[method]
    sources = {
        name: Memory({key: torch.tensor(value) for key, value in arrays.items()})
        for name, arrays in (("x", A), ("y", B), ("base", BASE))
    }
    before = {name: {k: t.clone() for k, t in source.tensors.items()} for name, source in sources.items()}
    models = ("x", "y") if row.models[1] != 1 else ("x",)
    recipe = Recipe(method, models, "base" if row.base == "required" else None, None, NEEDED.get(method, {}))
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
    assert row.merge.__doc__ and row.Params.__doc__
    assert row.survey is None or row.survey.__doc__
    assert row.prepare is None or row.prepare.__doc__


def test_every_method_file_is_in_the_table() -> None:
    files = [path for path in Path(fusion.methods.__file__).parent.glob("*.py") if path.stem != "__init__"]
    declared = [path for path in files if "\nMETHOD = " in path.read_text(encoding="utf-8")]
    rows = {id(row) for row in METHODS.values()}
    found = [getattr(fusion.methods, path.stem).METHOD for path in declared]
    assert {id(row) for row in found} == rows


def test_linear_refuses_weights_that_cancel() -> None:
    assert "sum to 0" in str(linear.check((1.0, -1.0), linear.Params()))
    assert linear.check((1.0, -0.5), linear.Params()) is None


def test_inner_sums_in_float64() -> None:
    vector = torch.full((1 << 20,), 0.1)
    assert inner(vector, vector) == pytest.approx((1 << 20) * float(np.float32(0.1)) ** 2, rel=1e-12)
