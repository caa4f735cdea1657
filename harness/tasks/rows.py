"""Checks a task's own data row by row, so that a fault is named by file, line and field.

lm-eval would not say: `datasets` fills a missing field with None, and the prompt then reads "None".
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta

from harness.errors import TaskError
from harness.tasks.files import Definition

TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice", "description", "gen_prefix")
CODE_FIELDS = {
    "humaneval": ("prompt", "test", "entry_point"),
    "mbpp": ("task_id", "text", "test_list"),
    "multiple": ("name", "language", "prompt", "tests"),
    "bigcode": ("prompt", "reference", "index", "doc"),
}
"""What a row of a code task must have, by the kind of its rows."""


def check(definition: Definition, fields: Iterable[str] = ()) -> None:
    """TaskError for the first row of the scored split's JSONL files that is no object or lacks a field that is used.

    A field that is an empty text in every row is lacking, too: a file of questions about passages, without them.
    `fields`: more names that must be there. Other formats are left to `datasets`.
    """
    files = [file for file in definition.data.get(definition.eval_split, ()) if file.suffix == ".jsonl"]
    rows = [(file, line, row) for file in files for line, row in of_file(file)]
    if files and not rows:
        raise TaskError(f"{definition.place}: no data: no rows in {', '.join(map(str, files))}")
    known = {key for _, _, row in rows for key in row}
    read = _used(definition.config, known)
    empty = {field for field in read if all(row.get(field) == "" for _, _, row in rows)}
    for file, line, row in rows:
        missing = sorted({field for field in (*read, *fields) if row.get(field) is None} | empty)
        if missing:
            named = ", ".join(f"'{field}'" for field in missing)
            raise TaskError(f"{file}:{line}: the row has no {named}, which task '{definition.name}' uses")


def line_of(definition: Definition, index: int) -> str:
    """Where row `index` of the scored split stands: file:line, or the split and the row's number."""
    files = definition.data.get(definition.eval_split, ())
    if files and "process_docs" not in definition.config and all(file.suffix == ".jsonl" for file in files):
        places = [f"{file}:{line}" for file in files for line, _ in of_file(file)]
        if index < len(places):
            return places[index]
    return f"{definition.place}: row {index} of split '{definition.eval_split}'"


def of_file(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a JSONL file with their lines, blank ones left out; TaskError for one that is no object."""
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _row(line, f"{file}:{number}")
    except UnicodeDecodeError as error:
        raise TaskError(f"{file}: is not UTF-8 text (byte {error.start})") from None


def _row(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise TaskError(f"{place}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise TaskError(f"{place}: a row must be an object with fields, this is {line.strip()[:40]}")
    return row


def _used(config: Mapping[str, Any], known: set[str]) -> set[str]:
    """The fields that the task's templates read. A template that is the bare name of a field means that field."""
    if config.get("process_docs") is not None:
        return set()
    environment = jinja2.Environment()
    environment.filters["regex_replace"] = str
    used: set[str] = set()
    for key in TEMPLATES:
        template = config.get(key)
        if not isinstance(template, str):
            continue
        if template in known:
            used.add(template)
            continue
        try:
            used |= jinja2.meta.find_undeclared_variables(environment.parse(template))
        except jinja2.TemplateError as error:
            raise TaskError(f"the template of '{key}' of task '{config.get('task')}': {error}") from None
    return used
