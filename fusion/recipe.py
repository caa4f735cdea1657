"""What to merge, by which method, with which parameters: the Recipe, and all that can be wrong with one.

fusion/recipe_file.py reads it from our own YAML and from mergekit's.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, cast, get_type_hints

import torch

from fusion.errors import RecipeError
from fusion.methods import METHODS
from fusion.methods.method import Method
from fusion.params import PerModel, Problem, build_at, check_weight, did_you_mean, fill, is_varied, yaml_name

OUTPUT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COMPAT = ("mergekit",)
# What every method has: whether a value of it is good, and what it should be.
SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": (
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
        "a whole number from 0",
    ),
    "allow_unrelated": (lambda value: isinstance(value, bool), "true or false"),
    "chat_template": (
        lambda value: value in (None, "auto") or (isinstance(value, str) and "{" in value),
        "auto, or the text of a Jinja template: none is built in",
    ),
    "compat": (lambda value: value is None or value in COMPAT, "mergekit, or nothing for the papers' arithmetic"),
    "dtype": (lambda value: value is None or value in OUTPUT_DTYPES, ", ".join(OUTPUT_DTYPES)),
}
TOKENIZER_KEYS = ("source", "tokens", "pad_to_multiple_of")


@dataclass(frozen=True)
class Span:
    """A run of a model's layers: from `start`, the first being 0, up to but without `stop`."""

    model: str
    start: int
    stop: int


@dataclass(frozen=True)
class Slice:
    """A run of the result's layers, merged from as many layers of each source; the same model may be there twice.

    `weights` and `own` follow `sources`; `params` are complete, by their YAML names.
    """

    sources: tuple[Span, ...]
    base: Span | None
    weights: tuple[Any, ...] | None
    params: Mapping[str, Any]
    own: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A merge, by the names of its parents. `params` are complete, by their YAML names.

    `weights` follow `models`, and so does `own`: the parameters that a model has for itself. A number may vary over the
    tensors (see fusion/params.py). `compat` asks for another tool's arithmetic instead of the paper's.

    `slices`, where there are any, make up the result's layers in their order, each with weights and parameters of its
    own; `models` are then all models that they name, and `weights` is None.
    `tokenizer` says which tokens the result has: {"source": union, base or a model's name, "tokens": {token:
    {"source": ..., "force": ...}}, "pad_to_multiple_of"}; None keeps the donor's. `chat_template`: the result's.
    `corpora` is the text of each model's own domain, for methods that are guided by data, and `calibration` how much of
    it is read. `allow_unrelated` skips the check that the models descend from the base.
    """

    method: str
    models: tuple[str, ...]
    base: str | None
    weights: tuple[Any, ...] | None
    params: Mapping[str, Any]
    seed: int = 0
    dtype: str | None = None
    own: tuple[Mapping[str, Any], ...] = ()
    compat: Literal["mergekit"] | None = None
    slices: tuple[Slice, ...] = ()
    tokenizer: Mapping[str, Any] | None = None
    chat_template: str | None = None
    corpora: Mapping[str, str] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    allow_unrelated: bool = False

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes an equal recipe."""
        return cast(dict[str, Any], json.loads(json.dumps(asdict(self))))

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "Recipe":
        """The recipe that `to_json` wrote."""
        lists = {"models": tuple(content["models"]), "weights": _tuple(content["weights"])}
        own, slices = tuple(content.get("own", ())), tuple(map(_slice, content.get("slices", ())))
        return Recipe(**{**content, **lists, "own": own, "slices": slices})


def _slice(content: Mapping[str, Any]) -> Slice:
    base = None if content["base"] is None else Span(**content["base"])
    spans = tuple(Span(**span) for span in content["sources"])
    return Slice(spans, base, _tuple(content["weights"]), content["params"], tuple(content["own"]))


def _tuple(values: Sequence[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)


def check_recipe(
    method: str,
    models: Sequence[str],
    weights: Mapping[str, Any] | Sequence[Any] | None,
    base: str | None,
    params: Mapping[str, Any],
    own: Sequence[Mapping[str, Any]] = (),
) -> tuple[dict[str, Any], list[Problem]]:
    """Check a merge against its method's row in METHODS and fill in its parameters' defaults.

    `weights` are by model's name or in the models' order; `own` holds the parameters of each model, in that order.
    The keys of the problems are those of the YAML: ("method",), ("base",), ("models", name or position), (parameter,),
    ("models", position, parameter). The values are complete only when there are no problems.
    """
    if method not in METHODS:
        return {}, [Problem(("method",), f"unknown method '{method}'", did_you_mean(str(method), METHODS))]
    row = METHODS[method]
    values, problems = fill(row.Params, params, varied=True)
    problems += base_problems(row, base) + model_problems(row, models) + _twice(models)
    problems += [] if weights is None else _weight_problems(row, models, weights)
    if own and len(own) != len(models):
        problems.append(Problem(("models",), f"parameters of {len(own)} models for {len(models)}", "give one a model"))
    for i, mine in enumerate(own):
        problems += under(("models", i), check_own(row, mine)[1])
    if not problems:
        wrong = weighed(row, in_order(models, weights), own or [{}] * len(models), values)
        problems += [Problem((), wrong)] if wrong else []
    return values, problems


def check_own(row: Method, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The parameters that one model has for itself, and what is wrong with them."""
    values, problems = fill(row.Params, given, varied=True, defaults=False)
    hints = get_type_hints(row.Params)
    shared = [yaml_name(f) for f in fields(row.Params) if hints[f.name] != PerModel]
    hint = "write it once, beside 'method'"
    problems += [Problem((name,), f"'{name}' is one for all models", hint, True) for name in shared if name in given]
    return {name: value for name, value in values.items() if name not in shared}, problems


def weighed(
    row: Method, weights: Sequence[Any] | None, own: Sequence[Mapping[str, Any]], values: Mapping[str, Any]
) -> str | None:
    """What is wrong with weights and parameters that are each in range. None where they vary over the tensors.

    own: the parameters of each model, as many as there are models.
    """
    for name in row.steady(values):
        every = (weights or ()) if name == "weight" else (values[name], *(one[name] for one in own if name in one))
        if any(map(is_varied, every)):
            why = "; trim: tensor allows it" if "trim" in values else ""
            return f"{row.name} needs one {name} for all tensors, and not a gradient or filters{why}"
    given = tuple(weights or (1.0,) * len(own))
    mine = [value for one in own for value in one.values()]
    if row.check is None or any(map(is_varied, (*given, *values.values(), *mine))):
        return None
    return row.check(given, build_at(row.Params, values, own, "", 0.0))


def in_order(models: Sequence[str], weights: Mapping[str, Any] | Sequence[Any] | None) -> tuple[Any, ...] | None:
    """Weights in the order of the models; 1 for a model without one."""
    if isinstance(weights, Mapping):
        return tuple(_number(weights.get(model, 1.0)) for model in models)
    return None if weights is None else tuple(_number(weight) for weight in weights)


def _number(weight: Any) -> Any:
    return weight if isinstance(weight, list) else float(weight)


def checked(recipe: Recipe, parents: Mapping[str, Any]) -> Recipe:
    """The recipe with its parameters filled in. Raises RecipeError with all that is wrong with it."""
    if recipe.slices and recipe.method in METHODS:
        row = METHODS[recipe.method]
        values, problems = fill(row.Params, recipe.params, varied=True)
        found = [_checked_slice(recipe, part, i) for i, part in enumerate(recipe.slices)]
        problems += base_problems(row, recipe.base) + [problem for _, wrong in found for problem in wrong]
        recipe = replace(recipe, slices=tuple(part for part, _ in found))
    else:
        values, problems = check_recipe(
            recipe.method, recipe.models, recipe.weights, recipe.base, recipe.params, recipe.own
        )
    problems += _parent_problems(recipe, parents) + setting_problems(vars(recipe)) + tokenizer_problems(recipe)
    if problems:
        raise RecipeError(f"cannot merge by {recipe.method}:\n" + "\n".join(f"  {text(p)}" for p in problems))
    return replace(recipe, params=values)


def _checked_slice(recipe: Recipe, part: Slice, i: int) -> tuple[Slice, list[Problem]]:
    base = None if part.base is None else part.base.model
    names = [str(span) for span in part.sources]
    values, problems = check_recipe(recipe.method, names, part.weights, base, part.params, part.own)
    problems += span_problems(part)
    if part.base is not None and part.base.model != recipe.base:
        problems.append(Problem((), f"its base is '{part.base.model}' and the recipe's '{recipe.base}'"))
    known = (*recipe.models, recipe.base)
    lost = [span.model for span in part.sources if span.model not in known]
    problems += [Problem((), f"'{name}' is not among the recipe's models") for name in lost]
    named = [replace(problem, message=f"slice {i + 1}: {problem.message}") for problem in problems]
    return replace(part, params=values), under(("slices", i), named)


def span_problems(part: Slice) -> list[Problem]:
    """What is wrong with the lengths of a slice's sources."""
    every = [*part.sources, *([] if part.base is None else [part.base])]
    problems = [
        Problem((), f"{span.model} layers [{span.start}, {span.stop}] are none: give [first, last + 1], from 0")
        for span in every
        if not 0 <= span.start < span.stop
    ]
    if len({span.stop - span.start for span in every}) > 1:
        shown = ", ".join(f"{span.model} {span.stop - span.start}" for span in every)
        problems.append(Problem((), f"its sources differ in their number of layers: {shown}"))
    return problems


def torch_dtype(name: str | None) -> torch.dtype | None:
    """The dtype of a recipe's result, or None where the recipe leaves it to the parents."""
    return None if name is None else OUTPUT_DTYPES[name]


def setting_problems(settings: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with those of the settings of every method that are given."""
    return [
        Problem((name,), f"'{name}' is {settings[name]!r}; expected {wanted}")
        for name, (good, wanted) in SETTINGS.items()
        if name in settings and not good(settings[name])
    ]


def data_problems(recipe: Recipe) -> list[Problem]:
    """What is wrong with the text that a method is guided by: one corpus a model, where the method needs any."""
    row = METHODS.get(recipe.method)
    if row is None:
        return []
    if row.statistics is None:
        given = [name for name in ("corpora", "calibration") if getattr(recipe, name)]
        return [Problem((name,), f"{row.name} is not guided by data", f"remove '{name}'", True) for name in given]
    # Statistics need torch's data tools and transformers; most recipes need neither.
    from fusion.calibration import Collect

    problems = under(("calibration",), fill(Collect, recipe.calibration)[1])
    problems += [
        Problem(("calibration", name), f"'{name}' is not a setting of the text", "known: context, sequences", True)
        for name in ("seed", "device")
        if name in recipe.calibration
    ]
    if recipe.slices:
        problems.append(Problem(("slices",), f"{row.name} is guided by data of whole models", "remove 'slices'", True))
    lacking = [model for model in recipe.models if model not in recipe.corpora]
    hint = "corpora: {MODEL: FILE.jsonl}, of text from the model's own domain"
    problems += [Problem(("corpora",), f"{row.name} needs a corpus for '{model}'", hint) for model in lacking]
    for model in recipe.corpora:
        if model not in recipe.models:
            hint = did_you_mean(str(model), recipe.models) or ""
            problems.append(Problem(("corpora", model), f"a corpus for '{model}', which is no model here", hint, True))
    return problems


def base_problems(row: Method, base: str | None) -> list[Problem]:
    """What is wrong with a recipe that has this base, or none."""
    if row.base == "required" and base is None:
        return [Problem((), f"{row.name} needs a base", "base: the model that the others were trained from")]
    if row.base == "none" and base is not None:
        return [Problem(("base",), f"{row.name} takes no base", "remove 'base', or name it among the models")]
    return []


def model_problems(row: Method, models: Sequence[str]) -> list[Problem]:
    """What is wrong with the number of models."""
    least, most = row.models
    if least <= len(models) and (most is None or len(models) <= most):
        return []
    wanted = f"{least} or more" if most is None else f"{least}" if least == most else f"{least} to {most}"
    plural = "model" if wanted == "1" else "models"
    return [Problem(("models",), f"{row.name} takes {wanted} {plural}, got {len(models)}")]


def under(prefix: tuple[str | int, ...], problems: Sequence[Problem]) -> list[Problem]:
    """The same problems, seen from further up in the file."""
    return [replace(problem, key=(*prefix, *problem.key)) for problem in problems]


def text(problem: Problem) -> str:
    """A problem in one line."""
    return problem.message + (f" ({problem.hint})" if problem.hint else "")


def _twice(models: Sequence[str]) -> list[Problem]:
    twice = [model for i, model in enumerate(models) if model in models[:i]]
    return [Problem(("models",), f"model '{m}' is named twice", "give it a weight instead") for m in twice]


def _weight_problems(row: Method, models: Sequence[str], weights: Mapping[str, Any] | Sequence[Any]) -> list[Problem]:
    if not row.weights:
        return [Problem(("models",), f"{row.name} takes no weights", "write the models as a list")]
    if not isinstance(weights, Mapping):
        if len(weights) != len(models):
            return [Problem(("models",), f"{len(weights)} weights for {len(models)} models", "give one a model")]
        keyed: list[tuple[str | int, str, Any]] = [(i, models[i], weight) for i, weight in enumerate(weights)]
    else:
        keyed = [(model, model, weight) for model, weight in weights.items()]
    problems = []
    for key, model, weight in keyed:
        if model not in models:
            hint = did_you_mean(str(model), models)
            problems.append(Problem(("models", key), f"a weight for '{model}', which is no model here", hint, True))
        elif (wrong := check_weight(weight)[1]) is not None:
            problems.append(Problem(("models", key), f"the weight of '{model}' {wrong}"))
    return problems


def _parent_problems(recipe: Recipe, parents: Mapping[str, Any]) -> list[Problem]:
    named = [*recipe.models, *([] if recipe.base is None else [recipe.base])]
    lost = [name for name in named if name not in parents]
    return [Problem(("models",), f"no model '{name}' is given", did_you_mean(name, parents)) for name in lost]


def tokenizer_problems(recipe: Recipe) -> list[Problem]:
    """What is wrong with what a recipe says of the result's tokenizer."""
    return [] if recipe.tokenizer is None else under(("tokenizer",), _block_problems(recipe, recipe.tokenizer))


def _block_problems(recipe: Recipe, given: Mapping[str, Any]) -> list[Problem]:
    problems = [_unknown(key, TOKENIZER_KEYS) for key in given if key not in TOKENIZER_KEYS]
    source = given.get("source", "union")
    if not isinstance(source, str):
        problems.append(Problem(("source",), f"'source' is {source!r}; expected union, base or a model"))
    multiple = given.get("pad_to_multiple_of")
    if multiple is not None and (not isinstance(multiple, int) or isinstance(multiple, bool) or multiple < 1):
        problems.append(Problem(("pad_to_multiple_of",), f"'pad_to_multiple_of' is {multiple!r}; expected 1 or more"))
    tokens = given.get("tokens") or {}
    if not isinstance(tokens, Mapping):
        return [*problems, Problem(("tokens",), f"'tokens' is {tokens!r}; expected {{token: {{source: model}}}}")]
    models = (*recipe.models, *([] if recipe.base is None else [recipe.base]))
    for token, rule in tokens.items():
        problems += under(("tokens", token), _token_problems(str(token), rule, models))
    return problems


def _token_problems(token: str, rule: Any, models: Sequence[str]) -> list[Problem]:
    """What is wrong with where one token's rows come from."""
    if not isinstance(rule, Mapping):
        return [Problem((), f"the rule of token '{token}' is {rule!r}; expected {{source: model, force: true}}")]
    problems = [_unknown(key, ("source", "force")) for key in rule if key not in ("source", "force")]
    if not isinstance(rule.get("force", False), bool):
        problems.append(Problem(("force",), f"'force' is {rule['force']!r}; expected true or false"))
    source = rule.get("source")
    if not isinstance(source, Mapping):
        return problems + ([] if source is None else _row_problems(source, ("source",), models))
    kind = source.get("kind")
    known = {"zero": ("kind",), "model_token": ("kind", "model", "token", "token_id")}.get(str(kind))
    if known is None:
        return [*problems, Problem(("source", "kind"), f"'kind' is {kind!r}; expected zero or model_token")]
    problems += under(("source",), [_unknown(key, known) for key in source if key not in known])
    if kind == "model_token":
        problems += _row_problems(source.get("model"), ("source", "model"), models)
        if ("token" in source) == ("token_id" in source):
            problems.append(Problem(("source",), "a row of another token needs either 'token' or 'token_id'"))
    return problems


def _row_problems(model: Any, key: tuple[str, ...], models: Sequence[str]) -> list[Problem]:
    if model in models:
        return []
    return [
        Problem(key, f"rows can come only from a model of the merge, not {model!r}", did_you_mean(str(model), models))
    ]


def _unknown(key: Any, known: Sequence[str]) -> Problem:
    return Problem((key,), f"unknown key '{key}'", did_you_mean(str(key), known), True)
