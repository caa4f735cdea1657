"""Parameters that are a mapping; numbers and choices are tested where methods and suites use them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from fusion.params import build, describe, fill, param


@dataclass(frozen=True)
class Params:
    needed: Mapping[str, Any] = param(help="no default")
    trainer: Mapping[str, Any] = param({"a": 1}, help="further arguments")


def test_a_mapping_has_a_default_of_its_own() -> None:
    values, problems = fill(Params, {"needed": {}})
    assert not problems and values == {"needed": {}, "trainer": {"a": 1}}
    values["trainer"]["a"] = 2
    assert fill(Params, {"needed": {}})[0]["trainer"] == {"a": 1}
    assert build(Params, values).trainer == {"a": 2}
    assert Params(needed={}).trainer == {"a": 1}


def test_a_given_mapping_is_copied() -> None:
    given = {"needed": {"x": [1, {"y": None}]}}
    values, problems = fill(Params, given)
    assert not problems and values["needed"] == given["needed"] and values["needed"] is not given["needed"]


@pytest.mark.parametrize("wrong", [None, 3, "text", ["a"], {1: 2}])
def test_what_is_no_mapping(wrong: Any) -> None:
    _, (problem,) = fill(Params, {"needed": wrong})
    assert problem.key == ("needed",)
    assert "expected a mapping of names to values" in problem.message


def test_a_mapping_is_described() -> None:
    needed, trainer = describe(Params)
    assert (trainer["type"], trainer["required"], trainer["default"]) == ("mapping", False, {"a": 1})
    assert (needed["required"], needed["default"]) == (True, None)
