"""What both kinds of recipe file share: YAML with the place of every part, and how a file names models."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError

from fusion.adapter import adapter_base, is_adapter
from fusion.errors import CheckpointError, RecipeError
from fusion.methods.method import Method
from fusion.modelref import Folder, ModelRef
from fusion.params import Problem
from fusion.recipe import Slice, Span, in_order, model_problems, span_problems, text, under

Key = tuple[str | int, ...]

# Far beyond any recipe: aliases within aliases can make a short file endless.
MOST_PARTS = 100_000
HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")


class Document:
    """One document of a YAML file: plain Python values in `data`, problems with the place of what they are about."""

    def __init__(self, path: Path, tree: Any) -> None:
        self.path = path
        self._tree = tree
        self._left = MOST_PARTS
        self.data = self._plain(tree)

    def problem(self, found: Problem) -> tuple[tuple[int, int], str]:
        """A problem's place, from 1, and its text: of its key, of its value, or of the nearest part around it."""
        place = self._top()
        node = self._tree
        for depth, step in enumerate(found.key):
            child = _child_place(node, step, found.on_key and depth == len(found.key) - 1)
            if child is None:
                break
            place, node = child, node[step]
        return (place[0] + 1, place[1] + 1), text(found)

    def _top(self) -> tuple[int, int]:
        """Where the method stands, for what is wrong with the recipe as a whole."""
        places = (_child_place(self._tree, key, True) for key in ("method", "merge_method"))
        return next((place for place in places if place is not None), (self._tree.lc.line, self._tree.lc.col))

    def _plain(self, node: Any) -> Any:
        """Built-in types only: the reader's own classes of numbers and texts carry formatting."""
        self._left -= 1
        if self._left < 0:
            raise RecipeError(f"{self.path} holds more than {MOST_PARTS} parts: it is no recipe")
        if isinstance(node, CommentedMap):
            return {_plain_key(key): self._plain(value) for key, value in node.items()}
        if isinstance(node, CommentedSeq | list):
            return [self._plain(value) for value in node]
        for plain in (bool, int, float, str):
            if isinstance(node, plain):
                return plain(node)
        return node


def documents(path: Path) -> list[Document]:
    """The documents of a YAML 1.2 file. Raises RecipeError when it cannot be read or is not YAML."""
    try:
        content = path.read_text(encoding="utf-8")
        found = [Document(path, tree) for tree in YAML(typ="rt", pure=True).load_all(content) if tree is not None]
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from error
    except RecursionError as error:
        raise RecipeError(f"{path} is nested too deeply: it is no recipe") from error
    # The reader lets some of its own errors out as Python's.
    except (YAMLError, ValueError, TypeError, AttributeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from error
    for document in found:
        if not isinstance(document.data, dict):
            kind = type(document.data).__name__
            raise RecipeError(f"{path} holds {kind} where a recipe with 'method:' and 'models:' belongs")
    if not found:
        raise RecipeError(f"{path} is empty: a recipe has 'method:' and 'models:'")
    return found


def refuse(path: Path, problems: Iterable[tuple[Document, Problem]]) -> None:
    """Raises RecipeError with every problem, one a line, in the order of the file."""
    lines = sorted(dict.fromkeys(document.problem(problem) for document, problem in problems))
    if lines:
        raise RecipeError("\n".join([f"{path}:", *(f"  {line}:{column}: {what}" for (line, column), what in lines)]))


@dataclass
class Models:
    """The models that a recipe file names, each under the first name that it was given.

    `stages` are merges of the same file that others of its documents name.
    """

    folder: Path
    stages: Mapping[str, ModelRef | None] = field(default_factory=dict)
    refs: dict[str, ModelRef] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def name(self, given: Any, key: Key, adapter: Any = None) -> str | None:
        """The name under which a model is a parent; None, with a problem, for what names no model.

        given: a folder (relative to the recipe's own), FOLDER+LORA, a LoRA folder or the name of a stage.
        """
        if not isinstance(given, str) or not given.strip():
            self.problems.append(Problem(key, f"{given!r} is not the path of a model"))
            return None
        if given in self.stages and adapter is None:
            ref = self.stages[given]
            if ref is not None:
                self.refs[given] = ref
            return given
        written = given if adapter is None else f"{given}+{adapter}"
        found = self._folder(given) if adapter is None else self._adapted(given, adapter)
        if isinstance(found, str):
            self.problems.append(Problem(key, found))
            return None
        # Two spellings of one folder are one model.
        known = next((name for name, ref in self.refs.items() if ref == found), written)
        self.refs[known] = found
        return known

    def known(self, given: Any) -> str | None:
        """The name of a parent that is already there, however it is spelt; None where it is none."""
        if given in self.refs or not isinstance(given, str):
            return given if isinstance(given, str) else None
        found = self._folder(given)
        return next((name for name, ref in self.refs.items() if ref == found), None)

    def tokenizer(self, given: Any, key: Key) -> dict[str, Any] | None:
        """A recipe's tokenizer from its name, or from mergekit's block, with models by their parents' names.

        A model that is only its tokenizer's source becomes a parent too.
        """
        if given is None:
            return None
        if not isinstance(given, str | dict):
            wanted = "union, base, a model, or {source, tokens, pad_to_multiple_of}"
            self.problems.append(Problem(key, f"'{key[-1]}' is {given!r}; expected {wanted}"))
            return None
        block: dict[str, Any] = {"source": given} if isinstance(given, str) else dict(given)
        source = block.get("source")
        if isinstance(source, str) and source not in ("union", "base"):
            block["source"] = self.name(source, key if isinstance(given, str) else (*key, "source")) or "union"
        tokens = block.get("tokens")
        if isinstance(tokens, dict):
            block["tokens"] = {token: self._token_rule(rule) for token, rule in tokens.items()}
        return block

    def _token_rule(self, rule: Any) -> Any:
        """The rule with the model whose row it takes by its parent's name."""
        source = rule.get("source") if isinstance(rule, dict) else None
        if isinstance(source, str):
            return {**rule, "source": self.known(source) or source}
        if isinstance(source, dict) and "model" in source:
            return {**rule, "source": {**source, "model": self.known(source["model"]) or source["model"]}}
        return rule

    def _folder(self, given: str) -> Folder | str:
        """The folder of a model, or what is wrong."""
        path = self._path(given)
        if path.is_dir():
            return self._of_adapter(path) if is_adapter(path) else Folder(str(path))
        model, plus, adapter = given.rpartition("+")
        if plus:
            return self._adapted(model, adapter)
        if "@" in given:
            name, _, revision = given.partition("@")
            return f"'{given}' asks for revision '{revision}': download it to a folder and name that instead of {name}"
        if HUB_NAME.match(given) and not given.startswith("."):
            return (
                f"there is no folder {path}, and models are not fetched: if '{given}' is a name on the Hugging Face "
                f"Hub, download it (hf download {given} --local-dir FOLDER) and name the folder"
            )
        return f"there is no model folder {path}: name one that holds config.json and *.safetensors"

    def _adapted(self, model: str, adapter: Any) -> Folder | str:
        base = self._folder(model)
        if isinstance(base, str):
            return base
        if base.adapter is not None:
            return f"'{model}' is a LoRA adapter itself: merge one adapter at a time, in a recipe of its own"
        path = self._path(str(adapter))
        if not is_adapter(path):
            return f"{path} is no LoRA adapter: it has no adapter_config.json"
        return Folder(base.path, str(path))

    def _of_adapter(self, path: Path) -> Folder | str:
        """An adapter on the base that its own config names."""
        try:
            base = adapter_base(path)
        except CheckpointError as error:
            return str(error)
        if base is None or not self._path(base).is_dir():
            named = "names no base" if base is None else f"was trained on '{base}', which is no folder here"
            return f"the LoRA adapter {path} {named}: write BASE+{path.name}, with the folder of the base model"
        return Folder(str(self._path(base)), str(path))

    def _path(self, given: str) -> Path:
        return self.folder / Path(given).expanduser()


def fallback(value: Any, rest: Any) -> Any:
    """A value that may vary, with another for the tensors that none of its filters matches."""
    if catches_all(value):
        return value
    filtered = isinstance(rest, list) and isinstance(rest[0], Mapping)
    return [*value, *(rest if filtered else [{"filter": None, "value": rest}])]


def catches_all(value: Any) -> bool:
    """Whether a value that may vary says something about every tensor."""
    if not isinstance(value, list) or not isinstance(value[0], Mapping):
        return True
    return any(entry.get("filter") in (None, "*") for entry in value)


@dataclass(frozen=True)
class Entry:
    """A model as a recipe names it: its key in the file, what it has for itself, and its layers in a slice."""

    name: str
    key: Key
    weight: Any = None
    own: Mapping[str, Any] = field(default_factory=dict)
    span: tuple[int, int] | None = None


def slice_of(
    row: Method, entries: Sequence[Entry], base: str | None, params: Mapping[str, Any], key: Key
) -> tuple[Slice | None, list[Problem]]:
    """A slice from its entries, where the base's entry says which layers of the base are meant."""
    chosen = None if row.base == "none" else base
    based = [entry for entry in entries if entry.name == chosen]
    rest = [entry for entry in entries if entry.name != chosen]
    spans = [Span(entry.name, *entry.span) for entry in rest if entry.span is not None]
    base_span = None
    if chosen is not None and len(based) == 1 and based[0].span is not None:
        base_span = Span(chosen, *based[0].span)
    elif chosen is not None:
        ranges = {(span.start, span.stop) for span in spans}
        if len(ranges) != 1 or based:
            hint = f"list {{model: {chosen}, layer_range: [first, last + 1]}} once among the slice's sources"
            return None, [
                Problem((*key, "sources"), f"which layers of the base '{chosen}' are meant is not said", hint)
            ]
        base_span = Span(chosen, *ranges.pop())
    part = Slice(tuple(spans), base_span, weights_of(rest), params, tuple(entry.own for entry in rest))
    problems = under((*key, "sources"), span_problems(part))
    problems += [replace(wrong, key=(*key, "sources")) for wrong in model_problems(row, [e.name for e in rest])]
    twice = [str(span) for i, span in enumerate(spans) if span in spans[:i]]
    problems += [Problem((*key, "sources"), "the same layers of the same model are named twice")] if twice else []
    return part, problems


def weights_of(entries: Sequence[Entry]) -> tuple[Any, ...] | None:
    """The models' weights, 1 for one without; None where none has any."""
    if all(entry.weight is None for entry in entries):
        return None
    return in_order([str(i) for i in range(len(entries))], [1.0 if e.weight is None else e.weight for e in entries])


def layer_range(value: Any, key: Key) -> tuple[tuple[int, int] | None, list[Problem]]:
    """A slice's [first, last + 1], and what is wrong with it."""
    whole = isinstance(value, list) and all(isinstance(part, int) and not isinstance(part, bool) for part in value)
    if whole and len(value) == 2:
        return (value[0], value[1]), []
    shown = "is missing" if value is None else f"is {value!r}"
    return None, [Problem(key, f"'layer_range' {shown}; expected [first, last + 1], from 0")]


def _plain_key(key: Any) -> str | int:
    return int(key) if isinstance(key, int) else str(key)


def _child_place(node: Any, step: str | int, on_key: bool) -> tuple[int, int] | None:
    if isinstance(node, CommentedMap) and step in node:
        try:
            line, column = node.lc.key(step) if on_key else node.lc.value(step)
        except (KeyError, TypeError):  # a part that came in by a merge key has no place of its own
            return None
        return line, column
    if isinstance(node, CommentedSeq) and isinstance(step, int) and step < len(node):
        line, column = node.lc.item(step)
        return line, column
    return None
