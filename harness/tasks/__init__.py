"""The tasks that models are scored on: lm-eval task files, shipped or the user's own.

    sources(names, base_dir, cache)    names and paths -> task files; groups and tags -> those of their tasks
    describe(names, base_dir, cache)   what each task is and which items it has; reads data once, then a cached JSON
    describe_here(...)                 the same without the network, and what is not here
    describe_text(name, source)        a text that models are measured on, as a task

A task file may say more about itself under lm-eval's `metadata`: `version`, `chance` (the score of guessing), `kind`
(likelihood, generate or code), `metric` (the one that counts), `rows` (what the rows of a code task are like:
humaneval, mbpp or multiple; `rows.CODE_FIELDS` has their fields) and `language` (of its programs). Programs run in
`harness.sandbox`. Nothing here imports torch or lm-eval until a task is described for the first time.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.errors import TaskError
from harness.store import write_whole
from harness.tasks import derived, files, texts
from harness.tasks.local import Given
from harness.tasks.names import benchmarks, find, shipped

__all__ = ["Task", "benchmarks", "describe", "describe_here", "describe_text", "distinct", "shipped", "sources"]
SCHEMA = 2
"""Of the cached descriptions."""


@dataclass(frozen=True)
class Task:
    """What decides a task's scores, and what they mean.

    name: its `task:`. source: its file, or the one that was derived from it. digest: over YAML, included files, data,
    lm-eval's version. kind: likelihood, generate, code or text. metric: what counts; also: further means over items.
    chance: the score of guessing, if known. items: the hash of every document, in doc_id order. language: of its
    programs. data, prompts: digests of the documents, and of every text that is asked with. revision: the data set's
    commit on the hub, if it is known. unanswerable: items with no right choice, which every model has wrong.
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
    language: str | None = None
    data: str = ""
    prompts: str = ""
    revision: str | None = None
    unanswerable: int = 0


def sources(
    asked: Iterable[str],
    base_dir: Path,
    cache: Path,
    trust: bool = False,
    data: Given = None,
    metric: str | None = None,
) -> dict[str, Path]:
    """The file of every task by the name it was asked for; of a group or a tag, those of its tasks.

    A name with a slash or ending in .yaml is a path relative to `base_dir`. `cache`: a folder for what is dear to
    compute, and for the files of tasks that are derived from others: it must stay while they are used. `trust`: tasks
    may run code of their own (`!function`). `data`: where local data are, before those of FUSE_BENCH_DATA (`local.py`).
    `metric`: the score that counts, of all the tasks. Raises TaskError, for an unknown name with near ones.
    """
    found = find(asked, base_dir, cache)
    return {name: derived.derive(one, Path(cache), data, metric, trust) for name, one in found.items()}


def describe(
    asked: Iterable[str],
    base_dir: Path,
    cache: Path,
    trust: bool = False,
    data: Given = None,
    metric: str | None = None,
) -> dict[str, Task]:
    """Every task by the name it was asked for, with its items; arguments as of `sources`.

    Raises TaskError for whatever keeps a task from being scored, and for two files that define one task.
    """
    paths = sources(asked, base_dir, cache, trust, data, metric)
    return distinct({name: _describe(path, Path(cache), trust) for name, path in paths.items()})


def describe_here(
    asked: Iterable[str],
    base_dir: Path,
    cache: Path,
    trust: bool = False,
    data: Given = None,
    metric: str | None = None,
) -> tuple[dict[str, Task], dict[str, tuple[int, int]]]:
    """As `describe`, but nothing is fetched: also how many tasks of an asked name have no data here, of how many."""
    tasks: dict[str, Task] = {}
    absent: dict[str, tuple[int, int]] = {}
    for one in asked:
        paths = sources([one], base_dir, cache, trust, data, metric)
        here = {}
        for name, path in paths.items():
            task = _describe_here(path, Path(cache), trust)
            if task is not None:
                here[name] = task
        if len(here) < len(paths):
            absent[one] = (len(paths) - len(here), len(paths))
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
        digest=_digest(*ids),
        output_type="loglikelihood",
        kind="text",
        metric="bits_per_byte",
        also=(),
        chance=None,
        shots=0,
        items=ids,
        data=_digest(*ids),
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
    # The 1 is of the digests, which stay what they are when more is kept in a description.
    key = hashlib.sha256(f"1 {definition.digest()}".encode()).hexdigest()
    told = hashlib.sha256(f"{SCHEMA} {key} {definition.config.get('counts')}".encode()).hexdigest()
    kept = cache / f"task-{told}.json"
    try:
        record = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = asdict(_read(path, trust, key))
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, json.dumps(record))
    tuples = {name: tuple(record[name]) for name in ("also", "items")}
    return Task(**(record | tuples | {"source": str(definition.path)}))


def _read(path: Path, trust: bool, key: str) -> Task:
    from harness.tasks import load

    loaded = load.load(path, trust)
    config = loaded.definition.config
    metadata = config.get("metadata") or {}
    return Task(
        name=loaded.definition.name,
        source=str(path),
        version=str(metadata.get("version", "0")),
        digest=_digest(key, *loaded.ids),
        output_type=str(loaded.task.OUTPUT_TYPE),
        kind=loaded.kind,
        metric=loaded.scores[0].label,
        also=tuple(score.label for score in loaded.scores[1:]),
        chance=load.chance(loaded),
        shots=int(config.get("num_fewshot") or 0),
        items=loaded.ids,
        language=str(metadata.get("language", "python")) if loaded.kind == "code" else None,
        data=_digest(*loaded.ids),
        prompts=load.prompts_digest(loaded),
        revision=load.revision(loaded),
        unanswerable=loaded.unanswerable,
    )


def _digest(*lines: str) -> str:
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()
