"""What to merge, by which method, with which parameters: our own YAML -> one Recipe.

method: ties
base: ./base                     # a model is a folder, relative to the recipe's
models: {./math: 0.7, ./code: 1} # or a list: [./math, ./code]
density: 0.3                     # the method's parameters; `fuse-bench methods` lists them
dtype: bfloat16                  # of the result; default: the base's, else the first model's
seed: 17
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from fusion.errors import RecipeError
from fusion.methods import METHODS, Method
from fusion.params import Problem, build, did_you_mean, fill

OUTPUT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What only a mergekit recipe has at its top level.
MERGEKIT_KEYS = ("merge_method", "base_model", "slices", "modules", "parameters", "tokenizer_source", "out_dtype")
OWN_KEYS = ("method", "base", "models", "dtype", "seed")


@dataclass(frozen=True)
class Folder:
    """A model on disk: the path of a transformers folder (config.json, *.safetensors, tokenizer)."""

    path: str


@dataclass(frozen=True)
class Recipe:
    """A merge, by the names of its parents. `weights` follow `models`; `params` are complete, by their YAML names."""

    method: str
    models: tuple[str, ...]
    base: str | None
    weights: tuple[float, ...] | None
    params: Mapping[str, Any]
    seed: int = 0
    dtype: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes an equal recipe."""
        weights = None if self.weights is None else list(self.weights)
        return {**asdict(self), "models": list(self.models), "weights": weights, "params": dict(self.params)}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "Recipe":
        """The recipe that `to_json` wrote."""
        weights = content["weights"]
        lists = {"models": tuple(content["models"]), "weights": None if weights is None else tuple(weights)}
        return Recipe(**{**content, **lists})


def check_recipe(
    method: str,
    models: Sequence[str],
    weights: Mapping[str, Any] | Sequence[Any] | None,
    base: str | None,
    params: Mapping[str, Any],
) -> tuple[dict[str, Any], list[Problem]]:
    """Check a merge against its method's row in METHODS and fill in its parameters' defaults.

    `weights` are by model's name or in the models' order. The keys of the problems are those of the YAML: ("method",),
    ("base",), ("models", name or position), (parameter,). The values are complete only when there are no problems.
    """
    if method not in METHODS:
        return {}, [Problem(("method",), f"unknown method '{method}'", did_you_mean(str(method), METHODS))]
    row = METHODS[method]
    values, problems = fill(row.Params, params)
    problems += _base_problems(row, base) + _model_problems(row, models)
    problems += [] if weights is None else _weight_problems(row, models, weights)
    if not problems and row.check is not None:
        wrong = row.check(in_order(models, weights) or [1.0] * len(models), build(row.Params, values))
        problems += [Problem((), wrong)] if wrong else []
    return values, problems


def in_order(models: Sequence[str], weights: Mapping[str, Any] | Sequence[Any] | None) -> tuple[float, ...] | None:
    """Weights in the order of the models; 1 for a model without one."""
    if isinstance(weights, Mapping):
        return tuple(float(weights.get(model, 1.0)) for model in models)
    return None if weights is None else tuple(float(weight) for weight in weights)


def checked(recipe: Recipe, parents: Mapping[str, Any]) -> Recipe:
    """The recipe with its parameters filled in. Raises RecipeError with all that is wrong with it."""
    values, problems = check_recipe(recipe.method, recipe.models, recipe.weights, recipe.base, recipe.params)
    named = [*recipe.models, *([] if recipe.base is None else [recipe.base])]
    lost = [name for name in named if name not in parents]
    problems += [Problem(("models",), f"no model '{name}' is given", did_you_mean(name, parents)) for name in lost]
    problems += _dtype_problems(recipe.dtype)
    if problems:
        raise RecipeError(f"cannot merge by {recipe.method}:\n" + _listed(problems))
    return replace(recipe, params=values)


def torch_dtype(name: str | None) -> torch.dtype | None:
    """The dtype of a recipe's result, or None where the recipe leaves it to the parents."""
    return None if name is None else OUTPUT_DTYPES[name]


def read_recipe(path: Path) -> tuple[Recipe, dict[str, Folder]]:
    """A recipe file in our own YAML, and the folders of the models that it names.

    Raises RecipeError with everything that is wrong with the file, each with its line.
    """
    content = _load(path, "safe")
    if not isinstance(content, dict):
        raise RecipeError(f"{path} holds {type(content).__name__} where a recipe with 'method:' and 'models:' belongs")
    foreign = [key for key in MERGEKIT_KEYS if key in content]
    if foreign:
        raise RecipeError(
            f"{path} looks like a mergekit recipe ({', '.join(foreign)}), which is not read yet: write 'method:', "
            "'base:', 'models:' (a list, or names with weights) and the method's parameters, all at the top level"
        )
    models, weights, problems = _models(content.get("models"))
    base, dtype, seed = content.get("base"), content.get("dtype"), content.get("seed", 0)
    params = {key: value for key, value in content.items() if key not in OWN_KEYS}
    values, found = check_recipe(
        str(content.get("method", "")), models, weights, None if base is None else str(base), params
    )
    # Without a list of models there is nothing to count.
    problems += [problem for problem in found if not problems or problem.key != ("models",)]
    problems += _dtype_problems(dtype) + _type_problems(base, seed)
    if problems:
        raise RecipeError(f"{path}:\n" + _listed(problems, _load(path, "rt")))
    recipe = Recipe(str(content["method"]), models, base, in_order(models, weights), values, seed, dtype)
    named = dict.fromkeys([*([] if base is None else [base]), *models])
    return recipe, {name: Folder(str(path.parent / Path(name).expanduser())) for name in named}


def _load(path: Path, kind: str) -> Any:
    try:
        return YAML(typ=kind, pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from error


def _models(given: Any) -> tuple[tuple[str, ...], dict[str, Any] | None, list[Problem]]:
    """The models of a recipe file: names, their weights where they have any, and what is wrong."""
    weights = given if isinstance(given, dict) else None
    if not isinstance(given, dict | list) or not given:
        return (), None, [Problem(("models",), "'models' is missing", "a list of folders, or folders with weights")]
    odd = [model for model in given if not isinstance(model, str)]
    problems = [Problem(("models",), f"{model!r} is not the path of a model") for model in odd]
    return tuple(model for model in given if isinstance(model, str)), weights, problems


def _type_problems(base: Any, seed: Any) -> list[Problem]:
    problems = []
    if base is not None and not isinstance(base, str):
        problems.append(Problem(("base",), f"'base' is {base!r}; expected the path of a model"))
    if not isinstance(seed, int) or isinstance(seed, bool):
        problems.append(Problem(("seed",), f"'seed' is {seed!r}; expected an integer"))
    return problems


def _dtype_problems(dtype: Any) -> list[Problem]:
    if dtype is None or dtype in OUTPUT_DTYPES:
        return []
    return [Problem(("dtype",), f"unknown dtype '{dtype}'", did_you_mean(str(dtype), OUTPUT_DTYPES))]


def _base_problems(row: Method, base: str | None) -> list[Problem]:
    if row.base == "required" and base is None:
        return [Problem((), f"{row.name} needs a base", "base: the model that the others were trained from")]
    if row.base == "none" and base is not None:
        return [Problem(("base",), f"{row.name} takes no base", "remove 'base', or name it among the models")]
    return []


def _model_problems(row: Method, models: Sequence[str]) -> list[Problem]:
    least, most = row.models
    problems = []
    if len(models) < least or (most is not None and len(models) > most):
        wanted = f"{least} or more" if most is None else f"{least}" if least == most else f"{least} to {most}"
        problems.append(Problem(("models",), f"{row.name} takes {wanted} models, got {len(models)}"))
    twice = [model for i, model in enumerate(models) if model in models[:i]]
    return problems + [Problem(("models",), f"model '{m}' is named twice", "give it a weight instead") for m in twice]


def _weight_problems(row: Method, models: Sequence[str], weights: Mapping[str, Any] | Sequence[Any]) -> list[Problem]:
    if not row.weights:
        return [Problem(("models",), f"{row.name} takes no weights", "write the models as a list")]
    if not isinstance(weights, Mapping):
        if len(weights) != len(models):
            return [Problem(("models",), f"{len(weights)} weights for {len(models)} models", "give one a model")]
        weights = dict(zip(models, weights, strict=True))
    problems = []
    for model, weight in weights.items():
        if model not in models:
            hint = did_you_mean(str(model), models)
            problems.append(Problem(("models", model), f"a weight for '{model}', which is no model here", hint, True))
        elif isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            problems.append(Problem(("models", model), f"the weight of '{model}' is {weight!r}; expected a number"))
    return problems


def _listed(problems: Sequence[Problem], document: Any = None) -> str:
    """The problems, one a line, each with its line and column where the YAML document is given."""
    return "\n".join(
        f"  {_position(problem, document)}{problem.message}{f' ({problem.hint})' if problem.hint else ''}"
        for problem in problems
    )


def _position(problem: Problem, document: Any) -> str:
    if document is None or not problem.key or problem.key[0] not in document:
        return ""
    line, column = document.lc.key(problem.key[0])
    return f"{line + 1}:{column + 1}: "
