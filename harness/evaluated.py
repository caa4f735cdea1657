"""The `evaluate:` and `published:` of a suite: what models are scored on, and what papers say that others scored."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.pocket import HELD_OUT
from harness.problems import Problems
from harness.spec import Group
from harness.yamlfile import Key

SAMPLING_KEYS = ("samples", "temperature", "top_p")
GROUP_KEYS = ("tasks", "limit", "batch_size", "metric", *SAMPLING_KEYS)
TEXT_KEYS = ("bits_per_byte", "limit", "batch_size")
PUBLISHED_KEYS = ("source", "beside", "note", "scores")
SCORE_KEYS = ("value", "tasks")
BATCH_SIZE = 32
TEMPERATURE, TOP_P = 0.2, 0.95
"""How programs are drawn unless a suite says otherwise, as in Chen et al. 2021 (arXiv:2107.03374) for pass@1."""
LONGEST_NAME = 80


def read_groups(problems: Problems, folder: Path, given: Mapping[Any, Any], planning: bool) -> tuple[Group, ...]:
    """The groups of `evaluate:`; paths are relative to `folder`. planning: texts need not be there yet."""
    found = []
    for name, value in given.items():
        at: Key = ("evaluate", name)
        if not problems.good_name(at, name):
            continue
        if not isinstance(value, dict) or ("tasks" in value) == ("bits_per_byte" in value):
            problems.add(at, f"group '{name}' needs `tasks:`, or `bits_per_byte:` with a text")
            continue
        text = _text(problems, at, folder, value, planning) if "bits_per_byte" in value else None
        tasks = () if "bits_per_byte" in value else _tasks(problems, at, value)
        limit = problems.positive((*at, "limit"), value.get("limit"))
        size = problems.positive((*at, "batch_size"), value.get("batch_size")) or BATCH_SIZE
        metric = problems.typed((*at, "metric"), value.get("metric", ""), str, "the name of one of the tasks' scores")
        drawn, wrong = sampling({} if "bits_per_byte" in value else value)
        for key, message in wrong.items():
            problems.add((*at, key), message)
        if text is not None or tasks:
            found.append(Group(name, tasks, limit, size, text, metric or None, **drawn))
    if found and all(group.text is not None for group in found):
        problems.add(("evaluate",), "bits per byte stand beside a score: add a group with `tasks:`")
    return tuple(found)


def sampling(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings of SAMPLING_KEYS, filled in, and what is wrong with those that are given, by key."""
    samples, temperature, top_p = (given.get(key) for key in SAMPLING_KEYS)
    wrong = {}
    if samples is not None and (type(samples) is not int or samples < 1):
        wrong["samples"] = f"'samples' is {samples!r}; expected a whole number from 1"
    if temperature is not None and not _within(temperature, 0, math.inf):
        wrong["temperature"] = f"'temperature' is {temperature!r}; expected a number from 0, which is greedy"
    if top_p is not None and not (_within(top_p, 0, 1) and top_p > 0):
        wrong["top_p"] = f"'top_p' is {top_p!r}; expected a share above 0, up to 1"
    if wrong:
        return {}, wrong
    many = samples is not None and samples > 1
    if many and temperature == 0:
        return {}, {"temperature": f"{samples} samples at temperature 0 are all the same: leave it out, or ask for 1"}
    if not many and temperature in (None, 0):
        return {}, {"top_p": "'top_p' is of samples that are drawn: add a `temperature:` above 0"} if top_p else {}
    drawn = {"temperature": TEMPERATURE if temperature is None else float(temperature)}
    return {"samples": samples or 1, **drawn, "top_p": TOP_P if top_p is None else float(top_p)}, {}


def _within(value: Any, low: float, high: float) -> bool:
    """Whether a value is a finite number between two."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and low <= value <= high


def _tasks(problems: Problems, at: Key, value: dict[str, Any]) -> tuple[str, ...]:
    problems.known_keys(at, value, GROUP_KEYS)
    tasks = [value["tasks"]] if isinstance(value["tasks"], str) else value["tasks"]
    if not isinstance(tasks, list) or not tasks or not all(isinstance(t, str) for t in tasks):
        problems.add((*at, "tasks"), "tasks is a task's name or file, or a list of them")
        return ()
    for repeated in sorted({t for t in tasks if tasks.count(t) > 1}):
        problems.add((*at, "tasks"), f"task '{repeated}' is there more than once")
    return tuple(tasks)


def _text(problems: Problems, at: Key, folder: Path, value: dict[str, Any], planning: bool) -> str | None:
    """HELD_OUT, or the absolute path of a .jsonl file."""
    problems.known_keys(at, value, TEXT_KEYS)
    given, at = value["bits_per_byte"], (*at, "bits_per_byte")
    if given == HELD_OUT:
        return HELD_OUT
    hint = f"a .jsonl file of documents, or {HELD_OUT}"
    if not isinstance(given, str) or not given.endswith(".jsonl"):
        problems.add(at, f"'bits_per_byte' is {given!r}; expected a text", hint)
        return None
    path = (folder / Path(given).expanduser()).absolute()
    if not path.is_file() and not planning:
        problems.add(at, f"there is no file {path}", hint)
    return str(path)


# -------------------------------------------------------------------------------------------------------- published


def read_published(problems: Problems, given: Mapping[Any, Any], known: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What is published elsewhere, by name; `known`: the models and rows that it may stand beside."""
    found = {}
    for name, value in given.items():
        at: Key = ("published", name)
        if not isinstance(name, str) or not name.strip() or len(name) > LONGEST_NAME:
            problems.add(at, f"{name!r} is not a name: text of at most {LONGEST_NAME} characters", None, True)
        elif not isinstance(value, dict):
            problems.add(at, f"'{name}' needs `source:` and `scores:`")
        else:
            found[name] = _published(problems, at, value, known)
    return found


def _published(problems: Problems, at: Key, value: dict[str, Any], known: Sequence[str]) -> dict[str, Any]:
    problems.known_keys(at, value, PUBLISHED_KEYS)
    source = value.get("source")
    if not isinstance(source, str) or not source.strip():
        problems.add(at, f"'{at[-1]}' needs `source:`", "the paper and its table")
    if "note" in value:
        problems.typed((*at, "note"), value["note"], str, "text")
    if "beside" in value:
        problems.reference((*at, "beside"), value["beside"], known)
    scores = value.get("scores")
    if not isinstance(scores, dict) or not scores:
        problems.add(at, f"'{at[-1]}' needs `scores:`", "{group: {value: 0.42, tasks: {task: 0.5}}}")
        scores = {}
    for group, score in scores.items():
        if problems.good_name((*at, "scores", group), group):
            _score(problems, (*at, "scores", group), score)
    return value


def _score(problems: Problems, at: Key, score: Any) -> None:
    if not isinstance(score, dict) or not score:
        problems.add(at, f"'{at[-1]}' is {score!r}; expected {{value: share, tasks: {{task: share}}}}")
        return
    problems.known_keys(at, score, SCORE_KEYS)
    if "value" in score:
        _share(problems, (*at, "value"), score["value"])
    tasks = score.get("tasks", {})
    if not isinstance(tasks, dict) or not ("value" in score or tasks):
        problems.add((*at, "tasks"), f"'tasks' is {tasks!r}; expected {{task: share}}")
        return
    for task, value in tasks.items():
        problems.typed((*at, "tasks", task), task, str, "a task's name")
        _share(problems, (*at, "tasks", task), value)


def _share(problems: Problems, at: Key, value: Any) -> None:
    if not _within(value, 0, 1):
        problems.add(at, f"'{at[-1]}' is {value!r}; expected a share from 0 to 1", "41.75 % is written 0.4175")
