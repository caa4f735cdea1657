"""mergekit's recipes, unmodified: https://github.com/arcee-ai/mergekit, as version 0.1.5 reads them.

What is left out has mergekit's default, since the file was written for it. The arithmetic is the papers' unless
`compat` asks for mergekit's; it is in float32 whatever `dtype` says, and the result is in `out_dtype`, else in `dtype`.
Unlike there, a key or a parameter that means nothing is an error. Parameters that mergekit reads and does not use are
accepted: `int8_mask` everywhere, `density` of task_arithmetic, and what the base has where it is listed as a model.

Several documents are several merges; one names another by its `name`. Nothing is written in between.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusion.mergekit_values import FOREIGN, Values
from fusion.methods import METHODS
from fusion.modelref import Delta, ModelRef
from fusion.params import Problem, did_you_mean
from fusion.recipe import Recipe, Slice, model_problems, setting_problems, tokenizer_problems, weighed
from fusion.recipe_yaml import Document, Entry, Key, Models, layer_range, refuse, slice_of, weights_of

# Any of these tells a recipe of mergekit's from one of ours.
SIGNS = ("merge_method", "base_model", "modules", "parameters", "tokenizer_source", "out_dtype")
KEYS = (*SIGNS, "models", "slices", "dtype", "tokenizer", "chat_template", "name")
NOT_SUPPORTED = {
    "modules": "merge one part of the model at a time: write 'models' or 'slices'",
    "residual_weight": "it has no effect there either: remove it",
    "override_architecture": "no architecture needs to be known here: remove it",
    "revision": "download that revision to a folder and name the folder",
}


def read(path: Path, documents: Sequence[Document], options: Mapping[str, Any]) -> ModelRef:
    """The merge that mergekit's file describes. options: fields of every recipe in it.

    Raises RecipeError with everything that is wrong with the file, each with its line and column.
    """
    order, problems = _order(documents)
    refuse(path, problems)
    # What others may name: a merge that has problems of its own is known by its name all the same.
    made: dict[str, ModelRef | None] = {document.data["name"]: None for document in order if "name" in document.data}
    result = None
    for document in order:
        reader = _Reader(document, options, made)
        result = reader.read()
        problems += [(document, problem) for problem in (*reader.problems, *reader.models.problems)]
        if "name" in document.data:
            made[document.data["name"]] = result
    refuse(path, problems)
    assert result is not None
    return result


def _order(documents: Sequence[Document]) -> tuple[list[Document], list[tuple[Document, Problem]]]:
    """The documents, each after those it names, so that the result comes last; and what is wrong with their names."""
    problems = []
    named: dict[str, Document] = {}
    for document in documents:
        name = document.data.get("name")
        if "name" in document.data and (not isinstance(name, str) or name in named):
            problems.append((document, Problem(("name",), f"'name' is {name!r}; expected a text that no other has")))
        elif name is not None:
            named[name] = document
    if problems:
        return [], problems
    needs = {id(d): [named[n] for n in dict.fromkeys(_mentioned(d.data)) if n in named] for d in documents}
    used = {id(needed) for mentioned in needs.values() for needed in mentioned}
    # The result is the one without a name, else the last.
    unused = sorted((d for d in documents if id(d) not in used), key=lambda document: "name" not in document.data)
    for document in unused[:-1]:
        what = f"the merge '{document.data['name']}'" if "name" in document.data else "this merge, which has no name"
        message = f"no other document uses {what}"
        problems.append((document, Problem((), message, "name it as a model of another, or remove it")))
    order: list[Document] = []
    left = list(documents)
    while left:
        done = {id(document) for document in order}
        ready = [d for d in left if all(id(needed) in done for needed in needs[id(d)])]
        if not ready:
            names = ", ".join(document.data["name"] for document in left if id(document) in used)
            problems.append((left[0], Problem(("name",), f"these merges need each other: {names}")))
            break
        order += ready
        left = [document for document in left if document not in ready]
    return order, problems


def _mentioned(node: Any, key: Any = None) -> Iterator[str]:
    """Every text of a document that may be the name of a model."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _mentioned(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from _mentioned(value, key)
    elif isinstance(node, str) and key in ("model", "base_model", "tokenizer_source", "source", "path"):
        yield node


class _Reader:
    """One document of mergekit's, and the problems found on the way."""

    def __init__(self, document: Document, options: Mapping[str, Any], stages: Mapping[str, ModelRef | None]) -> None:
        self.content, self.options = document.data, options
        self.models = Models(document.path.parent, stages)
        self.problems: list[Problem] = []

    def read(self) -> ModelRef | None:
        """The merge; None, with problems, where there is something wrong."""
        method = str(self.content.get("merge_method", ""))
        if method not in FOREIGN or method not in METHODS:
            hint = did_you_mean(method, [name for name in FOREIGN if name in METHODS])
            self.problems.append(Problem(("merge_method",), f"unknown merge_method '{method}'", hint))
            return None
        self.row, self.foreign = METHODS[method], FOREIGN[method]
        # Whether the base is what task vectors are taken from; else it is the first of the models that are merged.
        self.based = self.row.base != "none" and self.foreign.base != "model"
        self.values = Values(self.row, self.foreign, self.problems)
        self.problems += [self.odd_key(key) for key in self.content if key not in KEYS or key in NOT_SUPPORTED]
        top = self.values.level(self.content.get("parameters"), ("parameters",), for_all=True)
        base = self.base(self.content, ())
        recipe = self.recipe(top, base)
        if recipe is None:
            return None
        key: Key = () if "tokenizer" in self.content else ("tokenizer_source",)
        self.problems += [replace(p, key=key or p.key) for p in tokenizer_problems(recipe)]
        return Delta(recipe, tuple(self.models.refs.items()))

    def odd_key(self, key: Any) -> Problem:
        if key in NOT_SUPPORTED:
            return Problem((key,), f"'{key}' is not supported", NOT_SUPPORTED[key], True)
        if key in self.values.known:
            return Problem((key,), f"'{key}' has no effect here", "write it under 'parameters'", True)
        return Problem((key,), f"unknown key '{key}'", did_you_mean(str(key), KEYS), True)

    def recipe(self, top: Mapping[str, Any], base: str | None) -> Recipe | None:
        content = self.content
        if ("models" in content) == ("slices" in content):
            self.problems.append(Problem((), "a recipe has either 'models' or 'slices'"))
            return None
        recipe = self.sliced(top, base) if "slices" in content else self.whole(top, base)
        tokenizer = self.tokenizer()
        given = {key: content[key] for key in ("dtype", "out_dtype", "chat_template") if content.get(key) is not None}
        for key in ("dtype", "out_dtype"):
            if key in given:
                given[key] = str(given[key]).removeprefix("torch.")
                wrong = setting_problems({"dtype": given[key]})
                self.problems += [replace(problem, key=(key,)) for problem in wrong]
        self.problems += setting_problems({"chat_template": given.get("chat_template")})
        if recipe is None or self.problems:
            return None
        dtype = given.get("out_dtype", given.get("dtype"))
        settings = {"dtype": dtype, "chat_template": given.get("chat_template"), **self.options}
        return replace(recipe, tokenizer=tokenizer, **settings)

    def whole(self, top: Mapping[str, Any], base: str | None) -> Recipe | None:
        """The recipe of models that are merged from their first layer to their last."""
        read = [self.entry(part, ("models", i)) for i, part in self.listed("models")]
        entries = self.placed([entry for entry in read if entry is not None], base, ())
        if self.based:
            entries = [entry for entry in entries if entry.name != base]
        if None in read or not read:
            return None
        params, entries = self.values.resolve(entries, [top], ())
        names = tuple(entry.name for entry in entries)
        self.problems += model_problems(self.row, names)
        for i, entry in enumerate(entries):
            if entry.name in names[:i]:
                self.problems.append(Problem(entry.key, f"model '{entry.name}' is named twice", "weight it"))
        if self.problems:
            return None
        weights, own = weights_of(entries), tuple(entry.own for entry in entries)
        if wrong := weighed(self.row, weights, own, params):
            self.problems.append(Problem(("models",), wrong))
        return Recipe(self.row.name, names, base if self.based else None, weights, params, own=own if any(own) else ())

    def sliced(self, top: Mapping[str, Any], base: str | None) -> Recipe | None:
        """The recipe of a stack of layers that is put together from runs of layers."""
        found = [self.slice(part, top, base, ("slices", i)) for i, part in self.listed("slices")]
        slices = tuple(part for part in found if part is not None)
        bases = dict.fromkeys(part.base.model for part in slices if part.base is not None)
        if len(bases) > 1:
            message = f"slices with bases of their own ({', '.join(bases)}) are not supported"
            self.problems.append(Problem(("slices",), message, "write one recipe a base, and stack the results", True))
        if self.problems or not slices:
            return None
        # The models in the order in which they appear, each once; the first gives the config.
        names = dict.fromkeys(span.model for part in slices for span in part.sources)
        if base is not None and not self.based:
            if base not in names:
                hint = "remove it, or name it among the sources"
                self.problems.append(Problem(("base_model",), f"{self.row.name} takes no base", hint, True))
            names = dict.fromkeys([base, *names])
        return Recipe(self.row.name, tuple(names), next(iter(bases), None), None, slices[0].params, slices=slices)

    def slice(self, given: Any, top: Mapping[str, Any], base: str | None, key: Key) -> Slice | None:
        if not isinstance(given, dict):
            self.problems.append(Problem(key, f"{given!r} is no slice; expected {{sources: [{{model, layer_range}}]}}"))
            return None
        self.only(given, ("sources", "base_model", "parameters"), key)
        mine = self.values.level(given.get("parameters"), (*key, "parameters"), for_all=True)
        base = self.base(given, key) if "base_model" in given else base
        read = [self.entry(part, (*key, "sources", i), True) for i, part in self.listed("sources", given, key)]
        sources = [entry for entry in read if entry is not None and entry.span is not None]
        if len(sources) < len(read) or not read:
            return None
        sources = self.placed(sources, base, key)
        blank = [entry for entry in sources if self.based and entry.name == base]
        params, weighed_sources = self.values.resolve([e for e in sources if e not in blank], [mine, top], key)
        part, problems = slice_of(self.row, [*blank, *weighed_sources], base if self.based else None, params, key)
        self.problems += problems
        if part is not None and not self.problems and (wrong := weighed(self.row, part.weights, part.own, params)):
            self.problems.append(Problem(key, wrong))
        return part

    def placed(self, entries: list[Entry], base: str | None, key: Key) -> list[Entry]:
        """The models with the base first where it is one of those that are merged; checks that it is there."""
        if base is None:
            needed = self.row.base == "required" or self.foreign.base == "first"
            if needed and "base_model" not in self.content:
                hint = "base_model: the model that the others were trained from"
                self.problems.append(Problem(key, f"{self.row.name} needs a base_model", hint))
            return entries
        if self.based or (key and self.foreign.base == "model"):
            return entries
        first = [entry for entry in entries if entry.name == base]
        if not first and (key or self.foreign.base != "first"):
            message = f"the base_model '{base}' is not among the models that {self.row.name} merges"
            self.problems.append(
                Problem((*key, "base_model") if key else ("base_model",), message, "list it, or remove it")
            )
        rest = [entry for entry in entries if entry.name != base]
        return [*(first or [Entry(base, ("base_model",))]), *rest]

    def entry(self, given: Any, key: Key, ranged: bool = False) -> Entry | None:
        """A model of `models`, or a source of a slice, with its own level of parameters in `own`."""
        if not isinstance(given, dict) or "model" not in given:
            self.problems.append(Problem(key, f"{given!r} names no model; expected {{model: FOLDER}}"))
            return None
        self.only(given, ("model", "parameters", *(["layer_range"] if ranged else [])), key)
        span = None
        if ranged:
            span, problems = layer_range(given.get("layer_range"), (*key, "layer_range"))
            self.problems += problems
        own = self.values.level(given.get("parameters"), (*key, "parameters"), for_all=False)
        name = self.model(given["model"], (*key, "model"))
        return None if name is None else Entry(name, key, None, own, span)

    def only(self, given: Mapping[Any, Any], known: Sequence[str], key: Key) -> None:
        """Every key that means nothing here is a problem."""
        for name in given:
            if name in NOT_SUPPORTED:
                self.problems.append(Problem((*key, name), f"'{name}' is not supported", NOT_SUPPORTED[name], True))
            elif name in self.values.known and name not in known:
                hint = "write it under 'parameters'"
                self.problems.append(Problem((*key, name), f"'{name}' has no effect here", hint, True))
            elif name not in known:
                hint = did_you_mean(str(name), known) or ""
                self.problems.append(Problem((*key, name), f"unknown key '{name}'", hint, True))

    def listed(self, name: str, given: Mapping[str, Any] | None = None, key: Key = ()) -> list[tuple[int, Any]]:
        """The parts of a list that must hold some."""
        parts = (self.content if given is None else given).get(name)
        if isinstance(parts, list) and parts:
            return list(enumerate(parts))
        self.problems.append(Problem((*key, name), f"'{name}' is {parts!r}; expected a list that is not empty"))
        return []

    def base(self, content: Mapping[str, Any], key: Key) -> str | None:
        given = content.get("base_model")
        return None if given is None else self.model(given, (*key, "base_model"))

    def model(self, given: Any, key: Key) -> str | None:
        """A model's name, from PATH, PATH+LORA or {model: {path: PATH}, lora: {path: LORA}}."""
        if not isinstance(given, dict):
            return self.models.name(given, key)
        self.only(given, ("model", "lora"), key)
        path = self.path(given.get("model"), (*key, "model"))
        lora = given.get("lora")
        return self.models.name(path, key, None if lora is None else self.path(lora, (*key, "lora")))

    def path(self, given: Any, key: Key) -> Any:
        if not isinstance(given, dict):
            return given
        self.only({name: value for name, value in given.items() if value is not None}, ("path",), key)
        return given.get("path")

    def tokenizer(self) -> dict[str, Any] | None:
        named, block = self.content.get("tokenizer_source"), self.content.get("tokenizer")
        if named is not None and block is not None:
            hint = "write 'source:' in the block"
            self.problems.append(
                Problem(("tokenizer_source",), "'tokenizer_source' and 'tokenizer' exclude each other", hint)
            )
            return None
        key = "tokenizer_source" if block is None else "tokenizer"
        return self.models.tokenizer(named if block is None else block, (key,))
