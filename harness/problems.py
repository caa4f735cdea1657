"""What is wrong with a suite, collected while it is read: every problem of the file is reported at once."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion.builders.builder import Builder
from fusion.errors import RecipeError, TrainingError
from fusion.params import Problem, build, did_you_mean, fill
from fusion.trainer_arguments import with_files
from harness.pocket import CORPORA
from harness.yamlfile import Key, under

NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")


class Problems:
    """Notes problems at their places. Each check gives the value back, so that reading goes on past a mistake."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def add(self, at: Key, message: str, hint: str | None = None, on_key: bool = False) -> None:
        """One thing that is wrong, and what to do about it."""
        self.found.append(Problem(at, message, hint, on_key))

    def known_keys(self, at: Key, value: Mapping[str, Any], known: Sequence[str] | Mapping[str, str]) -> None:
        """Only `known` keys are there."""
        for key in value:
            if key not in known:
                self.add((*at, key), f"unknown key '{key}'", did_you_mean(str(key), known), True)

    def good_name(self, at: Key, name: Any) -> bool:
        """A name that can stand in a path and in a table."""
        if isinstance(name, str) and NAME.match(name) and len(name) <= 80:
            return True
        self.add(at, f"{name!r} is not a name: letters, digits, '-', '_' and '.', at most 80", None, True)
        return False

    def typed(self, at: Key, value: Any, kind: type | tuple[type, ...], expected: str) -> Any:
        """A value of some type; true and false are no numbers."""
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            self.add(at, f"'{at[-1]}' is {value!r}; expected {expected}")
        return value

    def positive(self, at: Key, value: Any) -> int | None:
        """A whole number from 1, or None where nothing is given."""
        if value is not None and (type(value) is not int or value < 1):
            self.add(at, f"'{at[-1]}' is {value!r}; expected a whole number from 1")
            return None
        return value

    def params(self, at: Key, params: type, given: Mapping[str, Any]) -> dict[str, Any]:
        """A table row's parameters, filled in."""
        values, problems = fill(params, given)
        self.found += under(at, problems)
        return values

    def reference(self, at: Key, name: Any, known: Sequence[str]) -> None:
        """The name of a model or candidate of the suite."""
        if not isinstance(name, str):
            self.add(at, f"{name!r} is not the name of a model")
        elif name not in known:
            self.add(at, f"there is no model or candidate '{name}'", did_you_mean(name, set(known)))

    def corpus(self, at: Key, corpus: Any, folder: Path, planning: bool) -> str:
        """A corpus of the pocket world by its name, or a file's absolute path; in planning it may be absent yet."""
        if isinstance(corpus, str) and corpus.startswith("pocket/"):
            if corpus not in CORPORA:
                self.add(at, f"there is no corpus '{corpus}'", did_you_mean(corpus, CORPORA))
            return corpus
        path = (folder / str(corpus)).absolute()
        if not path.is_file() and not planning:
            self.add(at, f"there is no file {path}", f"a corpus is a .jsonl file, or {', '.join(CORPORA)}")
        return str(path)

    def training(
        self, at: Key, builder: Builder, given: Mapping[str, Any], teachers: int, folder: Path
    ) -> dict[str, Any]:
        """A training's parameters, filled in, and checked for what goes together; files are relative to `folder`."""
        before = len(self.found)
        values = self.params(at, builder.Params, given)
        if len(self.found) > before:
            return values
        try:
            values["trainer"] = with_files(values["trainer"], folder)
            builder.check(build(builder.Params, values), teachers)
        except (RecipeError, TrainingError) as error:
            self.add(at, str(error))
        return values
