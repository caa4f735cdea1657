from pathlib import Path
from typing import Any

import pytest

from fusion.errors import RecipeError
from fusion.recipe import Recipe, check_recipe, in_order, read_recipe


def messages(*args: Any) -> list[str]:
    return [problem.message for problem in check_recipe(*args)[1]]


def test_defaults_are_filled_in() -> None:
    values, problems = check_recipe("ties", ["a", "b"], None, "base", {"density": 1})
    assert problems == []
    assert values == {"density": 1.0, "lambda": 1.0, "trim": "global"}


def test_every_problem_at_once() -> None:
    _, problems = check_recipe("ties", ["a", "a"], {"c": 1.0, "a": float("nan")}, None, {"densty": 1, "lambda": "x"})
    assert [(problem.key, problem.message) for problem in problems] == [
        (("densty",), "unknown parameter 'densty'"),
        (("lambda",), "'lambda' is 'x'; expected number"),
        ((), "ties needs a base"),
        (("models",), "model 'a' is named twice"),
        (("models", "c"), "a weight for 'c', which is no model here"),
        (("models", "a"), "the weight of 'a' is nan; expected a number"),
    ]
    assert problems[0].hint == "did you mean 'density'?"


def test_an_unknown_method_has_a_hint() -> None:
    _, [problem] = check_recipe("slurp", ["a", "b"], None, None, {})
    assert problem.key == ("method",)
    assert problem.hint == "did you mean 'slerp'?"


@pytest.mark.parametrize(
    ("method", "models", "weights", "base", "params", "message"),
    [
        ("slerp", ["a"], None, None, {}, "slerp takes 2 models, got 1"),
        ("slerp", ["a", "b", "c"], None, None, {}, "slerp takes 2 models, got 3"),
        ("slerp", ["a", "b"], [1.0, 2.0], None, {}, "slerp takes no weights"),
        ("slerp", ["a", "b"], None, None, {"t": 1.5}, "'t' is 1.5; allowed: [0.0, 1.0]"),
        ("linear", [], None, None, {}, "linear takes 1 or more models, got 0"),
        ("linear", ["a", "b"], None, "base", {}, "linear takes no base"),
        ("linear", ["a", "b"], [1.0], None, {}, "1 weights for 2 models"),
        (
            "linear",
            ["a", "b"],
            [1.0, -1.0],
            None,
            {},
            "the weights [1.0, -1.0] sum to 0, so their average is undefined",
        ),
        ("task_arithmetic", ["a"], None, None, {}, "task_arithmetic needs a base"),
        ("ties", ["a"], None, "base", {"density": -0.1}, "'density' is -0.1; allowed: [0.0, 1.0]"),
        ("ties", ["a"], None, "base", {"trim": "layer"}, "'trim' is 'layer'; expected global | tensor"),
    ],
)
def test_one_problem(method: str, models: list[str], weights: Any, base: Any, params: Any, message: str) -> None:
    assert messages(method, models, weights, base, params) == [message]


def test_weights_by_name_come_in_the_models_order() -> None:
    assert in_order(["b", "a", "c"], {"a": 2, "b": 0.5}) == (0.5, 2.0, 1.0)
    assert in_order(["a"], None) is None


def test_a_recipe_survives_json() -> None:
    for weights in (None, (1.0, 2.0)):
        recipe = Recipe("ties", ("a", "b"), "base", weights, {"density": 0.5}, 3, "bfloat16")
        assert Recipe.from_json(recipe.to_json()) == recipe


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_recipe_file(tmp_path: Path) -> None:
    path = written(
        tmp_path, "method: ties\nbase: base\nmodels: {./math: 0.7, code: 1}\ndensity: 3e-1\ndtype: bfloat16\n"
    )
    recipe, folders = read_recipe(path)
    assert recipe == Recipe(
        "ties", ("./math", "code"), "base", (0.7, 1.0), {"density": 0.3, "lambda": 1.0, "trim": "global"}, 0, "bfloat16"
    )
    assert {name: folder.path for name, folder in folders.items()} == {
        "base": str(tmp_path / "base"),
        "./math": str(tmp_path / "math"),
        "code": str(tmp_path / "code"),
    }
    recipe, folders = read_recipe(written(tmp_path, "method: linear\nmodels: [/a, b]\nseed: 4\n"))
    assert recipe == Recipe("linear", ("/a", "b"), None, None, {}, 4, None)
    assert folders["/a"].path == "/a"


def fault(tmp_path: Path, text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read_recipe(written(tmp_path, text))
    return str(caught.value)


def test_every_problem_of_a_file_with_its_line(tmp_path: Path) -> None:
    text = fault(tmp_path, "method: ties\nmodels: [a, b]\ndensity: 2\nlamda: 1\ndtype: fp16\nseed: x\n")
    assert str(tmp_path / "recipe.yaml") in text
    for line in (
        "3:1: 'density' is 2.0; allowed: [0.0, 1.0]",
        "4:1: unknown parameter 'lamda' (did you mean 'lambda'?)",
        "  ties needs a base",
        "5:1: unknown dtype 'fp16'",
        "6:1: 'seed' is 'x'; expected an integer",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "merge_method: ties\nmodels: []\nbase_model: x\n",
            r"mergekit recipe (merge_method, base_model), which is not read",
        ),
        ("- a\n", "holds list where a recipe"),
        ("method: [\n", "is not valid YAML"),
        ("method: linear\nmethod: ties\n", "is not valid YAML"),
        ("method: linear\n", "'models' is missing"),
        ("method: linear\nmodels: [1, a]\n", "1 is not the path of a model"),
        ("method: linear\nmodels: {a: x}\n", "the weight of 'a' is 'x'; expected a number"),
        ("models: [a]\n", "unknown method ''"),
        ("method: ties\nbase: 3\nmodels: [a]\n", "'base' is 3; expected the path of a model"),
    ],
)
def test_a_bad_file(tmp_path: Path, text: str, message: str) -> None:
    assert message in fault(tmp_path, text)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*none\.yaml: No such file"):
        read_recipe(tmp_path / "none.yaml")
