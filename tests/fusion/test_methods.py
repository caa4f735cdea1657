"""What holds for every method of the table."""

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
from tests.fusion.arrays import BASE, A, B
from tests.fusion.models import Memory

# Arguments of methods that have no default for them.
NEEDED: dict[str, dict[str, Any]] = {"emr": {"task": "x"}}


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
