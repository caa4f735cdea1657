"""Data on this machine for tasks whose data lie elsewhere: from `data:` of a suite, or the folder of FUSE_BENCH_DATA.

A folder is laid out as FILES says, one JSON object a line, with the fields that the task's own file reads. A task that
FILES does not name, or that needs more than the scored split, is given its files by its name:
`{truthfulqa_mc2: a.jsonl, gsm8k: {test: b.jsonl, train: c.jsonl}}`.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from harness.errors import TaskError
from harness.tasks.files import Definition

VARIABLE = "FUSE_BENCH_DATA"
FILES = (
    (r"(?:bbh_(?:cot_)?(?:few|zero)shot|leaderboard_bbh)_(\w+)", r"bbh/\1.jsonl"),
    (r"(arc_easy|arc_challenge|openbookqa|piqa|winogrande)", r"commonsense/\1.jsonl"),
    (r"(hellaswag|boolq|social_iqa|commonsense_qa)", r"commonsense/\1.jsonl"),
    (r"humaneval(?:_stripped)?", "code/humaneval.jsonl"),
    (r"mbpp", "code/mbpp.jsonl"),
    (r"multiple-(\w+)", r"code/multiple/humaneval-\1.jsonl"),
)
"""The file of a folder that holds a task's scored split, by a pattern of its name."""

WHOLE = {"mbpp": ("prompt",)}
"""Splits that are read from the same file as the scored one: the task takes its own rows of it."""

READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}

Given = str | Mapping[str, str | Mapping[str, str]] | None
"""`data:` of a suite, paths absolute: a folder, or files by task, each the scored split's or by split."""


def files_of(definition: Definition, given: Given) -> dict[str, Path]:
    """A task's local data by split, where they are given: by name before `data:` before FUSE_BENCH_DATA.

    Empty where its data are elsewhere, or beside its own file. Raises TaskError for a file that is not there, or not
    of a split of the task.
    """
    own = given.get(definition.name) if isinstance(given, Mapping) else None
    if own is not None:
        return _named(definition, {definition.eval_split: own} if isinstance(own, str) else own)
    if not definition.remote:
        return {}
    for folder in (given, os.environ.get(VARIABLE)):
        if isinstance(folder, str) and folder:
            if not Path(folder).is_dir():
                raise TaskError(
                    f"{VARIABLE if folder != given else '`data:`'} is {folder}, and there is no such folder"
                )
            file = _in_folder(definition.name, Path(folder).absolute())
            if file is not None:
                return _named(definition, {definition.eval_split: str(file)})
    return {}


def _in_folder(name: str, folder: Path) -> Path | None:
    for pattern, file in FILES:
        match = re.fullmatch(pattern, name)
        if match and (folder / match.expand(file)).is_file():
            return folder / match.expand(file)
    return None


def _named(definition: Definition, files: Mapping[str, str]) -> dict[str, Path]:
    known = splits(definition)
    for split, file in files.items():
        at = f"`data:` of task '{definition.name}'"
        if split not in known:
            raise TaskError(f"{at}: '{split}' is none of its splits; it reads {', '.join(known)}")
        if not Path(file).is_file():
            raise TaskError(f"{at}: there is no file {file}")
        if Path(file).suffix not in READERS:
            raise TaskError(f"{at}: {file} is of no known format; expected {', '.join(READERS)}")
    if definition.eval_split not in files:
        raise TaskError(
            f"`data:` of task '{definition.name}' lacks '{definition.eval_split}', the split that is scored"
        )
    if len({READERS[Path(file).suffix] for file in files.values()}) > 1:
        raise TaskError(f"`data:` of task '{definition.name}': its files are of different formats")
    also = {split: files[definition.eval_split] for split in WHOLE.get(definition.name, ()) if split not in files}
    return {split: Path(file) for split, file in {**files, **also}.items()}


def splits(definition: Definition) -> dict[str, None]:
    """The names of the splits that a task reads, in the order of their keys."""
    config = definition.config
    named = [config.get(key) for key in ("test_split", "validation_split", "training_split", "fewshot_split")]
    return dict.fromkeys(str(one) for one in [*named, (config.get("fewshot_config") or {}).get("split")] if one)
