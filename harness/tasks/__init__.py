"""The tasks that models are scored on: lm-eval task files, shipped or the user's own.

    find(names, base_dir)              names and paths -> task files
    describe(names, base_dir, cache)   what each task is and which items it has; reads data once, then a cached JSON
    describe_here(...)                 the same without the network, and what is not here
    describe_text(name, source)        a text that models are measured on, as a task

A task file may say more about itself under lm-eval's `metadata`: `version`, `chance` (the score of guessing), `kind`
(likelihood, generate or code), `metric` (the one that counts). A code task has HumanEval's fields prompt, test (with
`check(candidate)`) and entry_point; its programs run in `harness.sandbox`. Nothing here imports torch or lm-eval until
a task is described for the first time.
"""

import difflib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.errors import TaskError
from harness.tasks import files, texts

SCHEMA = 1
"""Of the cached descriptions."""


@dataclass(frozen=True)
class Task:
    """What decides a task's scores, and what they mean.

    name: its `task:`. source: its file. digest: over YAML, included files, data, lm-eval's version. kind: likelihood,
    generate, code or text. metric: what counts; also: further means over items. chance: the score of guessing, if
    known. items: the hash of every document, in doc_id order.
    """

    name: str
    source: str
    version: str
    digest: str
    output_type: str
    kind: str
    metric: str
    also: tuple[str, ...]
    chance: float | None
    shots: int
    items: tuple[str, ...]


def shipped() -> dict[str, Path]:
    """The tasks that come with the bench, by name."""
    folder = Path(__file__).resolve().parents[2] / "suites"
    return files.names_in(folder / "pocket")


@functools.cache
def builtin() -> dict[str, Path]:
    """lm-eval's own tasks and groups, by name (a scan of its 14,000 files: seconds the first time)."""
    return files.names_in(files.builtin_folder())


def find(names: Iterable[str], base_dir: Path) -> dict[str, Path]:
    """The file of every task, by the name it was asked for.

    A name with a slash or ending in .yaml is a path relative to `base_dir`. Other names are shipped tasks, and if none
    matches lm-eval's; a group of lm-eval's is replaced by its tasks. Raises TaskError with near names.
    """
    found: dict[str, Path] = {}
    for name in names:
        found |= _find(name, Path(base_dir))
    return found


def _find(name: str, base_dir: Path) -> dict[str, Path]:
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = (base_dir / name).expanduser()
        if not path.is_file():
            raise TaskError(f"no task file {path}{_near(path.name, [one.name for one in path.parent.glob('*.y*ml')])}")
        return {name: path.resolve()}
    own = shipped()
    if name in own:
        return {name: own[name]}
    known = builtin()
    if name not in known:
        raise TaskError(f"unknown task '{name}'{_near(name, [*own, *known])}")
    inside = files.members(known[name])
    if inside is None:
        return {name: known[name]}
    return {task: path for member in inside for task, path in _find(member, base_dir).items()}


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(one) for one in near)}?" if near else ""


def describe(names: Iterable[str], base_dir: Path, cache: Path, trust: bool = False) -> dict[str, Task]:
    """Every task by the name it was asked for, with its items.

    `trust`: tasks may run code of their own (`!function`). Raises TaskError for whatever keeps a task from being
    scored, and for two files that define one task.
    """
    return distinct({name: _describe(path, Path(cache), trust) for name, path in find(names, base_dir).items()})


def describe_here(
    names: Iterable[str], base_dir: Path, cache: Path, trust: bool = False
) -> tuple[dict[str, Task], dict[str, tuple[int, int]]]:
    """As `describe`, but nothing is fetched: also how many tasks of an asked name have no data here, of how many."""
    tasks: dict[str, Task] = {}
    absent: dict[str, tuple[int, int]] = {}
    for asked in names:
        paths = find([asked], base_dir)
        here = {}
        for name, path in paths.items():
            task = _describe_here(path, Path(cache), trust)
            if task is not None:
                here[name] = task
        if len(here) < len(paths):
            absent[asked] = (len(paths) - len(here), len(paths))
        tasks |= here
    return distinct(tasks), absent


def distinct(tasks: dict[str, Task]) -> dict[str, Task]:
    """The same tasks. Raises TaskError where two files define one of them."""
    by_name: dict[str, Task] = {}
    for task in tasks.values():
        other = by_name.setdefault(task.name, task)
        if other.source != task.source:
            raise TaskError(f"two files define task '{task.name}': {other.source} and {task.source}")
    return tasks


def describe_text(name: str, source: str) -> Task:
    """A text (`texts.load`) whose bits per byte are measured. Raises TaskError for one that cannot be."""
    ids = texts.load(source).ids
    return Task(
        name=name,
        source=source,
        version="1",
        digest="sha256:" + hashlib.sha256("\n".join(ids).encode()).hexdigest(),
        output_type="loglikelihood",
        kind="text",
        metric="bits_per_byte",
        also=(),
        chance=None,
        shots=0,
        items=ids,
    )


def _describe_here(path: Path, cache: Path, trust: bool) -> Task | None:
    """A task, or None where its data would have to be fetched."""
    if not files.read(path, trust).remote:
        return _describe(path, cache, trust)
    from harness.tasks import load

    try:
        with load.offline():
            return _describe(path, cache, trust)
    except load.RemoteError:
        return None


def _describe(path: Path, cache: Path, trust: bool) -> Task:
    definition = files.read(path, trust)
    key = hashlib.sha256(f"{SCHEMA} {definition.digest()}".encode()).hexdigest()
    kept = cache / f"task-{key}.json"
    try:
        record = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = asdict(_read(path, trust, key))
        _write(kept, json.dumps(record))
    tuples = {name: tuple(record[name]) for name in ("also", "items")}
    return Task(**(record | tuples | {"source": str(definition.path)}))


def _read(path: Path, trust: bool, key: str) -> Task:
    from harness.tasks import load

    loaded = load.load(path, trust)
    config = loaded.definition.config
    return Task(
        name=loaded.definition.name,
        source=str(path),
        version=str((config.get("metadata") or {}).get("version", "0")),
        digest="sha256:" + hashlib.sha256("\n".join((key, *loaded.ids)).encode()).hexdigest(),
        output_type=str(loaded.task.OUTPUT_TYPE),
        kind=loaded.kind,
        metric=loaded.scores[0].label,
        also=tuple(score.label for score in loaded.scores[1:]),
        chance=load.chance(loaded),
        shots=int(config.get("num_fewshot") or 0),
        items=loaded.ids,
    )


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".task-")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(name, path)
