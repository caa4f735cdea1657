"""Recipe files: our own YAML, and mergekit's (see fusion/mergekit_recipe.py).

method: ties
base: ./base                     # a model is a folder, relative to the recipe's; FOLDER+LORA; or a LoRA folder
models: {./math: 0.7, ./code: 1} # a list: [./math, ./code]; or with parameters: {./math: {weight: 0.7, density: 0.5}}
density: 0.3                     # the method's parameters; `fuse-bench methods` lists them
dtype: bfloat16                  # of the result; default: the base's, else the first model's
seed: 17

A number may vary over the tensors: `density: [0.1, 0.9]` from the first layer to the last, `density: [{filter: mlp,
value: 0.3}, {value: 0.5}]` by the tensor's name. `slices:` stands in the place of `models:` and builds the result's
layers from runs of the models' layers:

slices:
  - sources: [{model: ./math, layer_range: [0, 8], weight: 0.5}, {model: ./code, layer_range: [0, 8]}]
    density: 0.3

Further keys: tokenizer (union, base, a model, or mergekit's block), chat_template, compat: mergekit, allow_unrelated,
and, for methods that are guided by data, corpora: {./math: math.jsonl, ./code: code.jsonl} and calibration:
{sequences: 256, context: 256}.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusion import mergekit_recipe
from fusion.errors import RecipeError
from fusion.mergekit_values import FOREIGN
from fusion.methods import METHODS
from fusion.methods.method import Method
from fusion.modelref import Delta, ModelRef
from fusion.params import Problem, check_weight, did_you_mean, fill
from fusion.recipe import (
    SETTINGS,
    Recipe,
    Slice,
    base_problems,
    check_own,
    data_problems,
    model_problems,
    setting_problems,
    tokenizer_problems,
    under,
    weighed,
)
from fusion.recipe_yaml import (
    Document,
    Entry,
    Key,
    Models,
    documents,
    fallback,
    layer_range,
    refuse,
    slice_of,
    weights_of,
)

OWN_KEYS = ("method", "base", "models", "slices", "tokenizer", "corpora", "calibration", *SETTINGS)


def read_recipe(
    path: Path, seed: int | None = None, compat: str | None = None, allow_unrelated: bool = False
) -> ModelRef:
    """The merge that a recipe file describes, ready to be opened or written; the options override the file.

    Raises RecipeError with everything that is wrong with the file, each with its line and column.
    """
    found = documents(path)
    options: dict[str, Any] = {} if seed is None else {"seed": seed}
    options |= {} if compat is None else {"compat": compat}
    options |= {"allow_unrelated": True} if allow_unrelated else {}
    if any(key in document.data for document in found for key in mergekit_recipe.SIGNS):
        return mergekit_recipe.read(path, found, options)
    if len(found) > 1:
        raise RecipeError(f"{path} holds {len(found)} documents: a recipe of several merges is written as mergekit's")
    return _Reader(found[0], options).read()


class _Reader:
    """One recipe of our own, and the problems found on the way."""

    def __init__(self, document: Document, options: Mapping[str, Any]) -> None:
        self.document, self.options = document, options
        self.content = document.data
        self.models = Models(document.path.parent)
        self.problems: list[Problem] = []

    def read(self) -> ModelRef:
        method = str(self.content.get("method", ""))
        row = METHODS.get(method)
        given = self.content.get("base")
        base = None if given is None else self.models.name(given, ("base",))
        if row is None:
            hint = did_you_mean(method, METHODS)
            self.problems.append(Problem(("method",), f"unknown method '{method}'", hint))
            self.entries(None, self.content.get("models"), ("models",))
            self.finish()
            raise AssertionError("an unknown method is refused")
        rest = {key: value for key, value in self.content.items() if key not in OWN_KEYS}
        params, found = fill(row.Params, rest, varied=True)
        # Whether there is a base was written; which one it is may be a problem of its own.
        self.problems += found + base_problems(row, base or (None if given is None else str(given)))
        recipe = self.recipe(row, base, params)
        self.problems += tokenizer_problems(recipe) + data_problems(recipe)
        if recipe.compat is not None and row.name not in FOREIGN:
            self.problems.append(Problem(("compat",), f"mergekit has no {row.name}", "remove 'compat'"))
        self.finish()
        return Delta(recipe, tuple(self.models.refs.items()))

    def recipe(self, row: Method, base: str | None, params: Mapping[str, Any]) -> Recipe:
        given = {key: self.content[key] for key in SETTINGS if self.content.get(key) is not None}
        wrong = setting_problems(given)
        self.problems += wrong
        settings = {key: value for key, value in given.items() if (key,) not in [problem.key for problem in wrong]}
        settings |= {"calibration": self.mapping("calibration"), **self.options}
        if "slices" in self.content:
            slices = self.slices(row, base, params)
            # The models in the order in which they appear, each once.
            named = tuple(dict.fromkeys(span.model for part in slices for span in part.sources))
            settings["tokenizer"] = self.models.tokenizer(self.content.get("tokenizer"), ("tokenizer",))
            return Recipe(row.name, named, base, None, params, slices=slices, **settings)
        entries = self.entries(row, self.content.get("models"), ("models",))
        names = tuple(entry.name for entry in entries)
        weights, own = weights_of(entries), tuple(entry.own for entry in entries)
        if not self.problems and not self.models.problems:
            self.problems += model_problems(row, names)
            unfit = weighed(row, weights, own, params)
            self.problems += [Problem(("models",), unfit)] if unfit else []
        # After the models, so that they have their names.
        settings["tokenizer"] = self.models.tokenizer(self.content.get("tokenizer"), ("tokenizer",))
        settings["corpora"] = self.corpora()
        return Recipe(row.name, names, base, weights, params, own=own if any(own) else (), **settings)

    def finish(self) -> None:
        refuse(self.document.path, [(self.document, p) for p in (*self.problems, *self.models.problems)])

    def entries(self, row: Method | None, given: Any, key: Key) -> list[Entry]:
        """The models of a recipe: names, or names with what each has for itself."""
        if not isinstance(given, dict | list) or not given:
            hint = "a list of folders, or folders with weights"
            shown = "is missing" if given is None else f"is {given!r}"
            self.problems.append(Problem(key, f"'models' {shown}", hint))
            return []
        weighted = isinstance(given, dict)
        found = []
        for i, model in enumerate(given):
            at: Key = (*key, model if weighted else i)
            entry = self.entry(row, model, given[model] if weighted else {}, at, at)
            found += [] if entry is None else [entry]
        names = [entry.name for entry in found]
        for i, entry in enumerate(found):
            if entry.name in names[:i]:
                self.problems.append(Problem(entry.key, f"model '{entry.name}' is named twice", "weight it", True))
        return found

    def entry(self, row: Method | None, model: Any, value: Any, at: Key, named_at: Key) -> Entry | None:
        """One model with its weight, or with a mapping of what it has for itself."""
        given = dict(value) if isinstance(value, dict) else {"weight": value}
        weight_at = (*at, "weight") if isinstance(value, dict) else at
        adapter, weight = given.pop("adapter", None), given.pop("weight", None)
        name = self.models.name(model, named_at, adapter)
        own: dict[str, Any] = {}
        if row is not None:
            own, problems = check_own(row, given)
            self.problems += under(at, problems)
        if weight is not None or not isinstance(value, dict):
            weight = self.weight(row, name or str(model), weight, weight_at)
        return None if name is None else Entry(name, at, weight, own)

    def weight(self, row: Method | None, name: str, given: Any, at: Key) -> Any:
        if row is not None and not row.weights:
            self.problems.append(Problem(at, f"{row.name} takes no weights", "write the models as a list"))
            return None
        weight, wrong = check_weight(given)
        if wrong:
            self.problems.append(Problem(at, f"the weight of '{name}' {wrong}"))
        return None if wrong else weight

    def slices(self, row: Method, base: str | None, params: Mapping[str, Any]) -> tuple[Slice, ...]:
        given = self.content["slices"]
        if "models" in self.content:
            hint = "each slice names its own sources"
            self.problems.append(Problem(("models",), "'models' and 'slices' exclude each other", hint, True))
        if not isinstance(given, list) or not given:
            wanted = "a list of {sources: [{model, layer_range}]}"
            self.problems.append(Problem(("slices",), f"'slices' is {given!r}; expected {wanted}"))
            return ()
        found = [self.slice(row, base, params, part, ("slices", i)) for i, part in enumerate(given)]
        return tuple(part for part in found if part is not None)

    def slice(self, row: Method, base: str | None, params: Mapping[str, Any], given: Any, key: Key) -> Slice | None:
        sources = given.get("sources") if isinstance(given, dict) else None
        if not isinstance(sources, list) or not sources:
            self.problems.append(Problem(key, "a slice needs 'sources'", "sources: [{model: a, layer_range: [0, 8]}]"))
            return None
        mine = {name: value for name, value in given.items() if name != "sources"}
        values, problems = fill(row.Params, mine, varied=True, defaults=False)
        self.problems += under(key, problems)
        merged = {name: fallback(values[name], value) if name in values else value for name, value in params.items()}
        entries = [self.source(row, source, (*key, "sources", i)) for i, source in enumerate(sources)]
        sound = [entry for entry in entries if entry is not None]
        if len(sound) < len(entries):
            return None
        part, problems = slice_of(row, sound, base, merged, key)
        self.problems += problems
        if part is not None and not problems:
            wrong = weighed(row, part.weights, part.own, merged) if not self.problems else None
            self.problems += [Problem(key, wrong)] if wrong else []
        return part

    def source(self, row: Method, given: Any, key: Key) -> Entry | None:
        """One source of a slice: a model with a run of its layers."""
        if not isinstance(given, dict) or "model" not in given:
            self.problems.append(Problem(key, f"{given!r} is no source", "{model: a, layer_range: [0, 8]}"))
            return None
        span, problems = layer_range(given.get("layer_range"), (*key, "layer_range"))
        self.problems += problems
        rest = {name: value for name, value in given.items() if name not in ("model", "layer_range")}
        entry = self.entry(row, given["model"], rest, key, (*key, "model"))
        return None if entry is None or span is None else replace(entry, span=span)

    def corpora(self) -> dict[str, str]:
        """The corpus of each model, by the model's name."""
        found = {}
        for model, file in self.mapping("corpora").items():
            known = self.models.known(model)
            path = self.document.path.parent / Path(str(file)).expanduser()
            if not path.is_file():
                self.problems.append(Problem(("corpora", model), f"there is no corpus {path}", "a .jsonl file"))
            found[str(model) if known is None else known] = str(path)
        return found

    def mapping(self, key: str) -> dict[str, Any]:
        given = self.content.get(key, {})
        if isinstance(given, dict):
            return given
        self.problems.append(Problem((key,), f"'{key}' is {given!r}; expected {{name: value}}"))
        return {}
