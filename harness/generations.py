"""Programs of a run, written as the bigcode harness reads them: a list for each problem, with the prompt."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import bigcode, facts, runs, samples
from harness.errors import UsageError
from harness.evaluating import task_named
from harness.programs import of_rows
from harness.store import Store
from harness.suite import load as load_suite
from harness.tasks import Task, load


def write(run: str, model: str, task: str, file: Path, out: Path, root: Path) -> int:
    """Write what a model of a run answered a code task with, dev items too; returns the number of problems.

    root: the store's folder. Raises UsageError where the run lacks a problem of the task, or programs of one, where the
    task is no code task, and where its data are no longer those that the run had.
    """
    run_dir, store = runs.find_run(run, out), Store(root)
    responses = samples.responses(run_dir, model, task, store)
    found = _task(run_dir, task, store)
    loaded = load.load(Path(found.source), trust=True)
    if found.kind != "code":
        raise UsageError(f"'{task}' is no code task: generations are programs")
    if any(one["doc_id"] >= len(loaded.ids) or loaded.ids[one["doc_id"]] != one["id"] for one in responses):
        raise UsageError(f"the data of '{task}' are no longer those that {run_dir.name} had: run it again")
    if load.rows_of(loaded.definition) == "bigcode":
        texts = bigcode.texts(loaded, responses)
    else:
        texts = [[program.program for program in some] for some in of_rows(loaded, responses)[1]]
    written = dict(zip((one["doc_id"] for one in responses), texts, strict=True))
    bigcode.write_generations(file, written, len(loaded.ids))
    return len(written)


def _task(run_dir: Path, name: str, store: Store) -> Task:
    """A task as the run asked for it: as its suite says where that is still there, else by its name."""
    about: Mapping[str, Any] = runs.read(run_dir)["suite"]
    path = Path(str(about.get("path")))
    if not path.is_file():
        return task_named(name, store.root / "facts")
    suite = load_suite(path, planning=True)
    asked, _, name = name.rpartition("/")
    for group in (group for group in suite.groups if group.text is None and asked in ("", group.name)):
        found = {task.name: task for task in facts.tasks_of(suite, group, store, group.tasks).values()}
        if name in found:
            return found[name]
    raise UsageError(f"{path} has no task '{name}' any more, which {run_dir.name} was scored on")
