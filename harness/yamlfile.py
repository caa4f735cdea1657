"""YAML 1.2 with places: what the user wrote, and the line and column of every part of it.

`1e-3` is a number, `no` is a word, a duplicate key is an error (YAML 1.1 readers get all three wrong).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from fusion.params import Problem
from harness.errors import SuiteError

Key = tuple[str | int, ...]


class Document:
    """A YAML file as plain Python values in `data`, with the place of every part."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines, self._tree = _read(path)
        self.data = _plain(self._tree)

    def error(self, problems: Sequence[Problem]) -> SuiteError:
        """One error that shows every problem at its place, in the file's order."""
        # The points of a sweep share what is wrong with their line, which is one mistake.
        unique = {(self._place(p), p.message): p for p in problems}
        placed = sorted(((place, p) for (place, _), p in unique.items()), key=lambda pair: pair[0])
        shown = [show(self.path, self.lines, place, p.message, p.hint) for place, p in placed]
        count = f"{len(shown)} problem{'s' if len(shown) > 1 else ''} in {self.path}"
        return SuiteError("\n\n".join([*shown, count]))

    def _place(self, problem: Problem) -> tuple[int, int]:
        """The line and column (from 0) of a problem: of its key, of its value, or of the nearest part around it."""
        node, place = self._tree, (0, 0)
        for depth, step in enumerate(problem.key):
            last = depth == len(problem.key) - 1
            found = _child_place(node, step, key=last and problem.on_key)
            if found is None:
                break
            place = found
            node = node[step]
        return place


def show(path: Path, lines: Sequence[str], place: tuple[int, int], message: str, hint: str | None) -> str:
    """An error with its line and a caret under the column."""
    line, column = place
    text = lines[line] if line < len(lines) else ""
    number = str(line + 1)
    parts = [
        f"error: {message}",
        f"  --> {path}:{line + 1}:{column + 1}",
        f"{number:>5} | {text}",
        f"{'':>5} | {' ' * column}^",
    ]
    return "\n".join(parts + ([f"{'':>5} = help: {hint}"] if hint else []))


def _read(path: Path) -> tuple[list[str], Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SuiteError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path} cannot be read: {error}") from error
    lines = text.splitlines()
    try:
        return lines, YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line, mark.column) if mark else (0, 0)
        message = str(error.problem or error.context or "not YAML").strip().splitlines()[0]
        raise SuiteError(show(path, lines, place, message, None)) from error
    except (YAMLError, ValueError) as error:
        raise SuiteError(f"{path} is not YAML: {error}") from error


def _child_place(node: Any, step: str | int, *, key: bool) -> tuple[int, int] | None:
    if isinstance(node, CommentedMap) and step in (node.lc.data or {}):
        line, column = node.lc.key(step) if key else node.lc.value(step)
        return (line, column)
    if isinstance(node, CommentedSeq) and isinstance(step, int) and step < len(node):
        line, column = node.lc.item(step)
        return (line, column)
    return None


def _plain(node: Any) -> Any:
    """Built-in types only: ruamel's own number and text classes carry formatting that nobody here needs."""
    if isinstance(node, CommentedMap):
        return {_plain(key): _plain(value) for key, value in node.items()}
    if isinstance(node, CommentedSeq | list):
        return [_plain(value) for value in node]
    for plain in (bool, int, float, str):
        if isinstance(node, plain):
            return plain(node)
    return node


def under(prefix: Key, problems: Iterable[Problem]) -> list[Problem]:
    """The same problems, seen from further up in the file."""
    return [Problem((*prefix, *p.key), p.message, p.hint, p.on_key) for p in problems]
